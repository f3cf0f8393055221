-- For phones, through the API with the person's own JWT: devices, opt-outs, what a push was about. Every function works
-- on the caller's own rows only, and none tells whether anything of anybody else exists.

-- The caller, or 28000: these functions make no sense without one.
create or replace function herald.require_user()
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_user uuid := herald.jwt_user_id();
begin
  if v_user is null then
    raise exception 'this call needs a signed-in person'
      using errcode = 'invalid_authorization_specification', hint = 'call it through the API with a JWT whose "sub" is the user_id';
  end if;
  return v_user;
end
$$;
comment on function herald.require_user is 'The user_id in the claims of this request; 28000 when there is none.';
revoke all on function herald.require_user from public;

create or replace function herald.check_device_token(p_token text)
returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_token is null or length(p_token) not between 1 and 2000 or p_token ~ '[^!-~]' then
    raise exception 'this is not a device token'
      using errcode = 'invalid_parameter_value',
            hint = 'pass what the Firebase SDK returned: 1 to 2000 visible ASCII characters, no white space';
  end if;
end
$$;
comment on function herald.check_device_token is 'Refuses what cannot be a device token (22023), without repeating it.';
revoke all on function herald.check_device_token from public;

-- Whether the tokens exist, and whose they are, changes neither the answer nor the statements that run.
-- Lock order: both tokens by hash (advisory), so that phones which swap tokens end one after the other; then the rows of
-- both by id, as herald.revoke_devices() takes them.
create or replace function herald.register_device_token(p_token text, p_platform text, p_replaces text default null)
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_lock constant integer := 1751479909;
  c_most constant integer := 20;
  v_user constant uuid := herald.require_user();
  v_first boolean;
begin
  perform herald.check_device_token(p_token);
  if p_platform is null or p_platform not in ('ios', 'android', 'web') then
    raise exception 'unknown platform'
      using errcode = 'invalid_parameter_value', hint = 'pass ''ios'', ''android'' or ''web''';
  end if;
  if p_replaces is not null then
    perform herald.check_device_token(p_replaces);
  end if;
  perform pg_advisory_xact_lock(c_lock, k.hash)
  from (
    select distinct hashtext(t.token) as hash
    from unnest(array[p_token, p_replaces]) as t (token)
    where t.token is not null
    order by 1
  ) as k;
  perform from herald.device_token as d
  where d.token in (p_token, p_replaces)
  order by d.id
  for update;
  v_first := not exists (select from herald.device_token as d where d.user_id = v_user and d.revoked_at is null);
  delete from herald.device_token as d
  where d.token = p_replaces and d.user_id = v_user and d.token <> p_token;
  insert into herald.device_token as d (user_id, token, platform, kind, registered_at, last_seen_at)
  -- A Firebase installation id has 22 URL-safe characters, the first of them c, d, e or f; registration tokens are far longer.
  values (v_user, p_token, p_platform, case when p_token ~ '^[cdef][A-Za-z0-9_-]{21}$' then 'fid' else 'token' end,
    clock_timestamp(), clock_timestamp())
  on conflict (token) do update
  set user_id = excluded.user_id, platform = excluded.platform, kind = excluded.kind, last_seen_at = excluded.last_seen_at,
    registered_at = case when d.user_id = excluded.user_id and d.revoked_at is null then d.registered_at else excluded.registered_at end,
    revoked_at = null, revoked_reason = null;
  -- Nobody has more phones than this; a program with somebody's JWT could otherwise fill the table.
  delete from herald.device_token as d
  where d.id = any (array(
    select e.id
    from herald.device_token as e
    where e.user_id = v_user and e.revoked_at is null
    order by e.last_seen_at desc, e.id
    offset c_most
    for update skip locked
  ));
  -- Whoever was due without a device is looked at again.
  if v_first then
    insert into herald.touched_user (user_id) values (v_user);
    perform herald.ring();
  end if;
end
$$;
comment on function herald.register_device_token is
  'Makes a device the caller''s (upsert), and removes the one it replaces, in one transaction; answers nothing. Of more than 20 devices the least recently seen goes.';
revoke all on function herald.register_device_token from public;
grant execute on function herald.register_device_token to authenticated;

create or replace function herald.unregister_device_token(p_token text)
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_user constant uuid := herald.require_user();
begin
  perform herald.check_device_token(p_token);
  delete from herald.device_token as d
  where d.token = p_token and d.user_id = v_user;
end
$$;
comment on function herald.unregister_device_token is 'Removes a device of the caller (signing out); answers nothing.';
revoke all on function herald.unregister_device_token from public;
grant execute on function herald.unregister_device_token to authenticated;

create or replace function herald.set_opt_out(p_scenario_type text, p_opted_out boolean)
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_user constant uuid := herald.require_user();
begin
  if p_opted_out is null then
    raise exception 'p_opted_out must be true or false'
      using errcode = 'invalid_parameter_value', hint = 'true: no more of these pushes; false: again';
  end if;
  if p_scenario_type is not null and not exists (select from herald.scenario_type as t where t.scenario_type = p_scenario_type) then
    raise exception 'unknown scenario type'
      using errcode = 'invalid_parameter_value', hint = 'pass a scenario type, or null for everything';
  end if;
  if p_opted_out then
    insert into herald.opt_out (user_id, scenario_type)
    values (v_user, p_scenario_type)
    on conflict do nothing;
  else
    delete from herald.opt_out as o
    where o.user_id = v_user and o.scenario_type is not distinct from p_scenario_type;
  end if;
end
$$;
comment on function herald.set_opt_out is 'The caller wants no more pushes (true), or again (false), of one scenario type or (null) of any.';
revoke all on function herald.set_opt_out from public;
grant execute on function herald.set_opt_out to authenticated;

create or replace function herald.check_notification_id(p_notification_id uuid)
returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_notification_id is null then
    raise exception 'p_notification_id is missing'
      using errcode = 'invalid_parameter_value', hint = 'pass notification_id from the data of the push';
  end if;
end
$$;
comment on function herald.check_notification_id is 'Refuses a null id (22023).';
revoke all on function herald.check_notification_id from public;

-- The texts by key in the caller's locale: exact, then its language, then English, then the key itself. Of a scenario that is gone,
-- the default keys of its type. The caller is checked before anything is looked up: in one query with the look-up, an id that does
-- not exist would skip that check, and so tell that it does not. A phone may ask before the record is written, or about a push whose
-- answer was lost, and that may be sent once more: then the prompt answers in place of the notification.
create or replace function herald.notification_content(p_notification_id uuid)
returns table (notification_id uuid, scenario_type text, title text, body text, activity_ref text, dispatched_at timestamptz, opened_at timestamptz)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_user constant uuid := herald.require_user();
begin
  perform herald.check_notification_id(p_notification_id);
  return query
  select
    n.id, n.scenario_type, coalesce(t.title, k.title_key), coalesce(t.body, k.body_key), n.activity_ref, n.dispatched_at, n.opened_at
  from (
    select d.id, d.user_id, d.scenario_id, d.scenario_type, d.activity_ref, d.dispatched_at, d.opened_at
    from herald.scenario_notification as d
    where d.id = p_notification_id and d.user_id = v_user
    union all
    select p.notification_id, p.user_id, p.scenario_id, p.scenario_type, p.activity_ref, null, null
    from herald.prompt as p
    where p.notification_id = p_notification_id and p.user_id = v_user and p.attempts > 0 and p.status in ('ready', 'sending', 'unknown')
      and not exists (select from herald.scenario_notification as e where e.id = p.notification_id)
  ) as n
  left join herald.scenario as s on s.scenario_id = n.scenario_id
  cross join lateral (
    select coalesce(s.title_key, n.scenario_type || '_title') as title_key, coalesce(s.body_key, n.scenario_type || '_body') as body_key
  ) as k
  left join herald.source_recipient as r on r.user_id = n.user_id
  left join lateral (
    select
      (array_agg(m.text order by m.place) filter (where m.text_key = k.title_key))[1] as title,
      (array_agg(m.text order by m.place) filter (where m.text_key = k.body_key))[1] as body
    from (
      select x.text_key, x.text,
        -- 'nb_NO', as phones and older databases write it, is 'nb-NO'
        case
          when lower(x.locale) = lower(replace(r.locale, '_', '-')) then 1
          when lower(x.locale) = lower(substring(r.locale from '^[A-Za-z]+')) then 2
          -- Norwegian under its other names, as in herald.describe()
          when lower(x.locale) = 'nb' and lower(substring(r.locale from '^[A-Za-z]+')) in ('no', 'nn') then 3
          when lower(x.locale) = 'en' then 4
        end as place
      from herald.message_text as x
      where x.text_key in (k.title_key, k.body_key)
    ) as m
    where m.place is not null
  ) as t on true;
end
$$;
comment on function herald.notification_content is
  'What a push was about, in the caller''s locale; dispatched_at null: not recorded as accepted; no row for an unknown id or somebody else''s.';
revoke all on function herald.notification_content from public;
grant execute on function herald.notification_content to authenticated;

create or replace function herald.mark_opened(p_notification_id uuid)
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_user constant uuid := herald.require_user();
begin
  perform herald.check_notification_id(p_notification_id);
  update herald.scenario_notification as n
  set opened_at = clock_timestamp()
  where n.id = p_notification_id and n.user_id = v_user and n.opened_at is null;
end
$$;
comment on function herald.mark_opened is 'Notes that the caller opened a push, once; answers nothing.';
revoke all on function herald.mark_opened from public;
grant execute on function herald.mark_opened to authenticated;
