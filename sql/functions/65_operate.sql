-- For operators, through `pgherald` or psql: pause and resume, what failed, what is not known, devices. Each function takes
-- what it needs and says what it did; none of them sends anything.
-- Lock order: scenario, prompts (by prompt_id), open prompts, notifications, history.

-- A scenario by what a person types: its id, the beginning of it (four digits at least), or its name.
create or replace function herald.find_scenario(p_what text)
returns table (scenario_id uuid, name text, scenario_type text, title_key text, body_key text, presentation text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.scenario_id, s.name, s.scenario_type, s.title_key, s.body_key, s.presentation
  from herald.scenario as s
  where lower(s.name) = lower(p_what)
    or (p_what ~* '^[0-9a-f][0-9a-f-]{3,35}$' and starts_with(s.scenario_id::text, lower(p_what)))
  order by s.name, s.scenario_id;
$$;
comment on function herald.find_scenario is 'The scenarios that a person may mean by an id, four or more first digits of one, or a name.';
revoke all on function herald.find_scenario from public;
grant execute on function herald.find_scenario to herald_daemon, herald_reader;

create or replace function herald.check_prompts(p_prompts uuid[])
returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_prompts is null or array_position(p_prompts, null) is not null then
    raise exception 'pass the ids of prompts'
      using errcode = 'invalid_parameter_value',
            hint = 'select * from herald.retry(array(select prompt_id from herald.failed(p_limit => null)))';
  end if;
end
$$;
comment on function herald.check_prompts is 'Refuses what is no list of prompt ids (22023).';
revoke all on function herald.check_prompts from public;

-- Pausing everything stops the claims; evaluation goes on, and no run is waited for. Pausing one scenario puts its ready
-- prompts off for good; it waits for a run that has been at it, which keeps its row to the end of the transaction.
create or replace function herald.pause(p_scenario uuid default null, out paused_at timestamptz, out prompts bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '10s'
as $$
#variable_conflict use_column
begin
  if p_scenario is null then
    update herald.setting as g
    set paused_at = coalesce(g.paused_at, now())
    returning g.paused_at into paused_at;
    select count(*) into prompts
    from herald.open_prompt as o
    where o.deadline is null;
    return;
  end if;
  begin
    update herald.scenario as s
    set paused_at = coalesce(s.paused_at, now())
    where s.scenario_id = p_scenario
    returning s.paused_at into paused_at;
    if not found then
      raise exception 'no scenario %', p_scenario
        using errcode = 'no_data_found', hint = 'select scenario_id, name from herald.find_scenario(''<name>'')';
    end if;
    with waiting as materialized (
      select p.prompt_id
      from herald.open_prompt as o
      join herald.prompt as p on p.prompt_id = o.prompt_id
      where o.scenario_id = p_scenario and o.deadline is null and p.status = 'ready'
      order by p.prompt_id
      for no key update of p
    ), put_off as (
      update herald.prompt as p
      set not_before = 'infinity'
      from waiting as w
      where p.prompt_id = w.prompt_id and p.status = 'ready' and p.not_before < 'infinity'
    )
    select count(*) into prompts
    from waiting as w;
  exception when lock_not_available then
    raise exception 'scenario % is held by another transaction, such as a run', p_scenario
      using errcode = 'lock_not_available',
        hint = 'pgherald pause, without a scenario, waits for none: select herald.pause(); when the run is over, '
          'pause the scenario, and end that pause with herald.resume()';
  end;
end
$$;
comment on function herald.pause is
  'Holds back all prompts, or those of one scenario, until herald.resume(); evaluation goes on. Of all at once; of one, 55P03 after 10 s while a scheduled run is not over. Says since when, and how many prompts wait.';
revoke all on function herald.pause from public;
grant execute on function herald.pause to herald_daemon;

-- Resuming everything leaves scenarios that are paused or held by themselves as they are.
create or replace function herald.resume(p_scenario uuid default null, out was_paused boolean, out was_held boolean, out prompts bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '10s'
as $$
#variable_conflict use_column
declare
  v_scenario herald.scenario;
begin
  was_held := false;
  if p_scenario is null then
    select g.paused_at is not null into was_paused
    from herald.setting as g
    for no key update;
    update herald.setting as g
    set paused_at = null
    where g.paused_at is not null;
    select count(*) into prompts
    from herald.open_prompt as o
    where o.deadline is null and o.not_before < 'infinity';
  else
    select s.* into v_scenario
    from herald.scenario as s
    where s.scenario_id = p_scenario
    for no key update;
    if not found then
      raise exception 'no scenario %', p_scenario
        using errcode = 'no_data_found', hint = 'select scenario_id, name from herald.find_scenario(''<name>'')';
    end if;
    was_paused := v_scenario.paused_at is not null;
    update herald.scenario as s
    set paused_at = null
    where s.scenario_id = p_scenario and was_paused;
    update herald.catch_up as c
    set held_at = null, hold_released = true
    where c.scenario_id = p_scenario and c.held_at is not null;
    was_held := found;
    with waiting as materialized (
      select p.prompt_id
      from herald.open_prompt as o
      join herald.prompt as p on p.prompt_id = o.prompt_id
      where o.scenario_id = p_scenario and o.deadline is null and p.status = 'ready'
      order by p.prompt_id
      for no key update of p
    ), let_go as (
      update herald.prompt as p
      set not_before = greatest(now(), p.due_at)
      from waiting as w
      where p.prompt_id = w.prompt_id and p.status = 'ready' and p.not_before = 'infinity'
    )
    select count(*) into prompts
    from waiting as w;
  end if;
  perform herald.ring();
end
$$;
comment on function herald.resume is
  'Ends herald.pause(), of all or of one scenario; of one also a hold: its next run may exceed max_prompts_per_run. Says what was so, and how many prompts wait to be sent.';
revoke all on function herald.resume from public;
grant execute on function herald.resume to herald_daemon;

create or replace function herald.failed(p_scenario uuid default null, p_error_code text default null, p_limit integer default 100)
returns table (
  prompt_id uuid, scenario_id uuid, scenario text, scenario_type text, user_id uuid, activity_ref text, due_at timestamptz,
  error_code text, attempts integer, failed_at timestamptz, expires_at timestamptz
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select p.prompt_id, p.scenario_id, s.name, p.scenario_type, p.user_id, p.activity_ref, p.due_at,
    p.error_code, p.attempts, p.failed_at,
    herald.expires_at(p.due_at, p.created_at, s.evaluated_from, s.started_at, s.expires_after)
  from herald.prompt as p
  join herald.scenario as s on s.scenario_id = p.scenario_id
  where p.failed_at is not null
    and (p_scenario is null or p.scenario_id = p_scenario)
    and (p_error_code is null or p.error_code = p_error_code)
  order by p.failed_at desc, p.prompt_id
  limit p_limit;
$$;
comment on function herald.failed is 'Prompts that were not sent, for certain, and are not tried again by themselves; the latest first. p_limit null: all.';
revoke all on function herald.failed from public;
grant execute on function herald.failed to herald_daemon, herald_reader;

-- Prompt by prompt, each in a block of its own: another prompt of the same kind may be opened at this very moment.
create or replace function herald.retry(p_prompts uuid[], p_now timestamptz default now())
returns table (prompt_id uuid, decision text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '10s'
as $$
#variable_conflict use_column
declare
  v_prompt record;
begin
  perform herald.check_prompts(p_prompts);
  for v_prompt in
    select u.id, p.status, s.paused_at,
      herald.expires_at(p.due_at, p.created_at, s.evaluated_from, s.started_at, s.expires_after) as expires_at
    from (select distinct i.id from unnest(p_prompts) as i (id)) as u
    left join herald.prompt as p on p.prompt_id = u.id
    left join herald.scenario as s on s.scenario_id = p.scenario_id
    order by u.id
  loop
    prompt_id := v_prompt.id;
    decision := case
      when v_prompt.status is null then 'no_such_prompt'
      when v_prompt.status <> 'failed' then 'not_failed'
      when v_prompt.expires_at <= p_now then 'expired'
    end;
    if decision is null then
      begin
        update herald.prompt as p
        set status = 'ready', gate = null, settled_at = null,
          not_before = case when v_prompt.paused_at is not null then 'infinity' else p_now end
        where p.prompt_id = v_prompt.id and p.status = 'failed';
        decision := case when found then 'ready' else 'not_failed' end;
      exception when unique_violation then
        decision := 'duplicate';
      end;
    end if;
    return next;
  end loop;
  perform herald.ring();
end
$$;
comment on function herald.retry is
  'Makes failed prompts ready again: the same prompts, the same keys, gates checked again when they are claimed. One row each: ready, or why not: expired, duplicate (another prompt of the type is open), not_failed, no_such_prompt.';
revoke all on function herald.retry from public;
grant execute on function herald.retry to herald_daemon;

create or replace function herald.discard(p_prompts uuid[], p_now timestamptz default now())
returns table (prompt_id uuid, decision text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '10s'
as $$
#variable_conflict use_column
begin
  perform herald.check_prompts(p_prompts);
  return query
  with locked as materialized (
    select p.prompt_id, p.status
    from herald.prompt as p
    where p.prompt_id = any (p_prompts)
    order by p.prompt_id
    for no key update
  ), discarded as (
    update herald.prompt as p
    set status = 'skipped', gate = 'discarded', settled_at = p_now
    from locked as l
    where p.prompt_id = l.prompt_id and l.status = 'failed'
    returning p.prompt_id, p.scenario_id, p.user_id, p.attempts
  ), told as (
    insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, dispatched_at, delivery_status, error_code, attempt)
    select d.prompt_id, d.scenario_id, d.user_id, p_now, 'skipped', 'discarded', d.attempts
    from discarded as d
  )
  select u.id, case when d.prompt_id is not null then 'discarded' when l.prompt_id is not null then 'not_failed' else 'no_such_prompt' end
  from (select distinct i.id from unnest(p_prompts) as i (id)) as u
  left join locked as l on l.prompt_id = u.id
  left join discarded as d on d.prompt_id = u.id
  order by u.id;
end
$$;
comment on function herald.discard is
  'Gives failed prompts up: skipped, with the gate discarded; no evaluation arms them again. One row each: discarded, or why not: not_failed, no_such_prompt.';
revoke all on function herald.discard from public;
grant execute on function herald.discard to herald_daemon;

create or replace function herald.unknown(p_scenario uuid default null, p_limit integer default 100)
returns table (
  prompt_id uuid, scenario_id uuid, scenario text, scenario_type text, user_id uuid, activity_ref text, due_at timestamptz,
  error_code text, attempts integer, claimed_at timestamptz, notification_id uuid
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.prompt_id, p.scenario_id, s.name, p.scenario_type, p.user_id, p.activity_ref, p.due_at,
    p.error_code, p.attempts, p.unknown_at, p.notification_id
  from herald.prompt as p
  join herald.scenario as s on s.scenario_id = p.scenario_id
  where p.unknown_at is not null and (p_scenario is null or p.scenario_id = p_scenario)
  order by p.unknown_at desc, p.prompt_id
  limit p_limit;
$$;
comment on function herald.unknown is
  'Prompts that may or may not have been sent: FCM''s answer was lost, or whoever sent them was. The latest first; p_limit null: all.';
revoke all on function herald.unknown from public;
grant execute on function herald.unknown to herald_daemon, herald_reader;

-- The word of a person who knows better. As sent: the record that its own answer would have made, at the time of the
-- claim. As not sent: failed. What its sender may still report later (the spool) counts as it always does.
create or replace function herald.resolve(p_prompts uuid[], p_sent boolean, p_now timestamptz default now())
returns table (prompt_id uuid, decision text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '10s'
as $$
#variable_conflict use_column
begin
  perform herald.check_prompts(p_prompts);
  if p_sent is null then
    raise exception 'p_sent must be true or false'
      using errcode = 'invalid_parameter_value', hint = 'true: it was sent; false: it was not';
  end if;
  return query
  with locked as materialized (
    select p.prompt_id, p.status, p.unknown_at
    from herald.prompt as p
    where p.prompt_id = any (p_prompts)
    order by p.prompt_id
    for no key update
  ), resolved as (
    update herald.prompt as p
    set status = case when p_sent then 'sent' else 'failed' end,
      error_code = case when p_sent then null else 'RESOLVED_NOT_SENT' end,
      settled_at = p_now
    from locked as l
    where p.prompt_id = l.prompt_id and l.status = 'unknown'
    returning p.prompt_id, p.notification_id, p.user_id, p.scenario_type, p.scenario_id, l.unknown_at, p.idempotency_key,
      p.cooldown_window_start, p.activity_ref, p.attempts
  ), noted as (
    insert into herald.scenario_notification (id, user_id, scenario_type, scenario_id, dispatched_at, idempotency_key,
      cooldown_window_start, prompt_id, activity_ref)
    select r.notification_id, r.user_id, r.scenario_type, r.scenario_id, r.unknown_at, r.idempotency_key,
      r.cooldown_window_start, r.prompt_id, r.activity_ref
    from resolved as r
    where p_sent
    on conflict do nothing
  ), told as (
    insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, dispatched_at, delivery_status, error_code, attempt)
    select r.prompt_id, r.scenario_id, r.user_id, case when p_sent then r.unknown_at else p_now end,
      case when p_sent then 'dispatched' else 'failed' end, case when not p_sent then 'RESOLVED_NOT_SENT' end, r.attempts
    from resolved as r
  )
  select u.id,
    case
      when r.prompt_id is not null then case when p_sent then 'sent' else 'failed' end
      when l.prompt_id is not null then 'not_unknown'
      else 'no_such_prompt'
    end
  from (select distinct i.id from unnest(p_prompts) as i (id)) as u
  left join locked as l on l.prompt_id = u.id
  left join resolved as r on r.prompt_id = u.id
  order by u.id;
end
$$;
comment on function herald.resolve is
  'Settles unknown prompts by hand: as sent (p_sent; notification and history are written) or as failed, which may be retried. One row each: sent, failed, or why not: not_unknown, no_such_prompt.';
revoke all on function herald.resolve from public;
grant execute on function herald.resolve to herald_daemon;

create or replace function herald.token_counts(p_unseen interval default null)
returns table (platform text, kind text, live bigint, people bigint, unseen_30_days bigint, revoked bigint, reasons jsonb, prunable bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    t.platform,
    t.kind,
    sum(t.devices) filter (where t.reason is null),
    sum(t.people) filter (where t.reason is null),
    sum(t.unseen) filter (where t.reason is null),
    coalesce(sum(t.devices) filter (where t.reason is not null), 0),
    coalesce(jsonb_object_agg(t.reason, t.devices) filter (where t.reason is not null), '{}'),
    sum(t.prunable)
  from (
    select
      d.platform,
      d.kind,
      case when d.revoked_at is not null then coalesce(d.revoked_reason, 'unknown') end as reason,
      count(*) as devices,
      count(distinct d.user_id) as people,
      count(*) filter (where d.last_seen_at < now() - interval '30 days') as unseen,
      count(*) filter (where d.last_seen_at < now() - coalesce(p_unseen, g.token_retention)) as prunable
    from herald.device_token as d
    cross join herald.setting as g
    group by 1, 2, 3
  ) as t
  group by t.platform, t.kind
  order by t.platform, t.kind;
$$;
comment on function herald.token_counts is
  'Devices by platform and kind: live ones, their people, those unseen for 30 days, revoked ones by reason, and how many a prune would delete (p_unseen null: by setting.token_retention).';
revoke all on function herald.token_counts from public;
grant execute on function herald.token_counts to herald_daemon, herald_reader;

create or replace function herald.devices_of(p_user uuid)
returns table (device_id uuid, platform text, kind text, token text, last_seen_at timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select t.id, t.platform, t.kind, t.token, t.last_seen_at
  from herald.device_token as t
  where t.user_id = p_user and t.revoked_at is null
  order by t.last_seen_at desc, t.id;
$$;
comment on function herald.devices_of is 'The devices of a person that a push would go to, in the order they would be tried: for a test message.';
revoke all on function herald.devices_of from public;
grant execute on function herald.devices_of to herald_daemon;

create or replace function herald.devices_to_verify(p_after uuid, p_unseen interval, p_limit integer)
returns table (device_id uuid, platform text, kind text, token text, last_seen_at timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select t.id, t.platform, t.kind, t.token, t.last_seen_at
  from herald.device_token as t
  where t.revoked_at is null and t.id > p_after and t.last_seen_at <= now() - p_unseen
  order by t.id
  limit p_limit;
$$;
comment on function herald.devices_to_verify is 'Live devices unseen for p_unseen, by id from p_after on: to ask FCM whether it still knows them.';
revoke all on function herald.devices_to_verify from public;
grant execute on function herald.devices_to_verify to herald_daemon;

create or replace function herald.prune_tokens(p_unseen interval default null, p_batch integer default 10000)
returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unseen interval;
  v_rows bigint;
begin
  select coalesce(p_unseen, g.token_retention) into v_unseen
  from herald.setting as g;
  if v_unseen < interval '30 days' then
    raise exception 'devices seen within the last 30 days are not pruned'
      using errcode = 'invalid_parameter_value', hint = 'pass 30 days or more; FCM itself drops tokens after 270 days';
  end if;
  delete from herald.device_token as d
  where d.id = any (array(
    select q.id
    from herald.device_token as q
    where q.last_seen_at < now() - v_unseen
    order by q.id
    limit p_batch
    for update skip locked
  ));
  get diagnostics v_rows = row_count;
  return v_rows;
end
$$;
comment on function herald.prune_tokens is
  'Deletes one batch of devices unseen for longer than p_unseen (null: setting.token_retention; 30 days at least); says how many. Call again while it returns p_batch.';
revoke all on function herald.prune_tokens from public;
grant execute on function herald.prune_tokens to herald_daemon;
