-- Why did she (not) get it: every check of one person and one scenario type, with its numbers. The verdict at the end is
-- herald.gate()'s own, as in a run.

-- What a type says about one person; a type without a why function says nothing more than yes or no.
create or replace function herald.why(p_scenario herald.scenario, p_user uuid, p_now timestamptz)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_why text;
  v_text text;
begin
  select t.why into v_why
  from herald.scenario_type as t
  where t.scenario_type = p_scenario.scenario_type;
  if v_why is not null then
    execute format('select %s($1, $2, $3)', v_why) into v_text using p_scenario, p_user, p_now;
  end if;
  return v_text;
end
$$;
comment on function herald.why is 'The numbers of one person in the words of the scenario''s type; null where it has no why function.';
revoke all on function herald.why from public;

-- What happened to the latest prompt of a scenario for a person, of those that there were by p_now.
create or replace function herald.prompt_fate_by(
  p_scenario uuid, p_user uuid, p_now timestamptz, p_zone text, out passed boolean, out detail text
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select
    p.status in ('ready', 'sending', 'sent'),
    format('about %s, due %s: %s', p.activity_ref, herald.moment_text(p.due_at, p_zone),
      case p.status
        when 'ready' then case
          when p.not_before = 'infinity' then 'waits, the scenario is paused'
          when (select s.paused_at is not null from herald.setting as s) then 'waits, everything is paused'
          else case when p.not_before > p_now then 'waits until ' else 'waits to be sent since ' end || herald.moment_text(p.not_before, p_zone) || coalesce(' (' || coalesce(p.gate, p.error_code) || ')', '')
        end
        when 'sending' then 'is being sent'
        when 'sent' then 'sent ' || coalesce(herald.moment_text(n.dispatched_at, p_zone), '')
          || case when n.opened_at is not null then ', opened ' || herald.moment_text(n.opened_at, p_zone) else ', not opened yet' end
        when 'failed' then 'failed with ' || coalesce(p.error_code, 'an unknown error') || ' after ' || p.attempts
          || case p.attempts when 1 then ' attempt' else ' attempts' end
        when 'unknown' then 'may have been sent: the answer of FCM is not known (' || coalesce(p.error_code, 'unknown') || ')'
        when 'skipped' then 'skipped' || coalesce(', ' || p.gate, '') || coalesce(' ' || herald.moment_text(p.settled_at, p_zone), '')
        else 'expired before it could be sent'
      end)
  from herald.prompt as p
  left join herald.scenario_notification as n on n.prompt_id = p.prompt_id and n.user_id = p_user
  where p.user_id = p_user and p.scenario_id = p_scenario and p.created_at <= p_now
  order by p.due_at desc, p.created_at desc
  limit 1;
$$;
comment on function herald.prompt_fate_by is 'What became of the latest prompt that a scenario had made for a person by p_now; no row without one.';
revoke all on function herald.prompt_fate_by from public;

create or replace function herald.explain(p_user uuid, p_scenario_type text, p_now timestamptz default now())
returns table (check_name text, passed boolean, detail text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_person record;
  v_zone text;
  v_scenario herald.scenario;
  v_candidates herald.candidate[];
  v_candidate herald.candidate;
  v_why text;
  v_decision text;
  v_not_before timestamptz;
  v_cap integer;
  v_paused_at timestamptz;
  v_at timestamptz;
  v_count bigint;
  v_other record;
  v_behind record;
  v_opted_out boolean;
  v_cooled boolean;
  v_decided boolean;
  v_none boolean := true;
begin
  -- Malformed claims are refused first, whether there is such a person or not.
  perform herald.jwt_user_id() where not herald.is_staff();
  if p_now is null or not isfinite(p_now) then
    raise exception 'explain needs a moment'
      using errcode = 'invalid_parameter_value', hint = 'select * from herald.explain(''<user_id>'', ''inactivity'', now())';
  end if;
  if not exists (select from herald.scenario_type as t where t.scenario_type = p_scenario_type) then
    raise exception 'unknown scenario type "%"', p_scenario_type
      using errcode = 'invalid_parameter_value',
            hint = 'known: ' || (select string_agg(t.scenario_type, ', ' order by t.scenario_type) from herald.scenario_type as t);
  end if;
  select r.* into v_person
  from herald.source_recipient as r
  where r.user_id = p_user and r.user_id in (select v.user_id from herald.visible_people(array[p_user]) as v (user_id));
  if not found then
    return query select 'recipient', false, 'no such person among those you may see';
    return;
  end if;
  v_zone := v_person.time_zone;
  return query select 'recipient', coalesce(v_person.is_active, false),
    format('%s; registered %s; time zone %s',
      case when v_person.is_active then 'active' else 'not active' end,
      coalesce(herald.moment_text(v_person.registered_at, v_zone), 'at an unknown time'), coalesce(
        -- the clock it would be told by
        v_zone || case when right(herald.moment_text(p_now, v_zone), length(v_zone)) <> v_zone then ', unknown: UTC is used' else '' end,
        'unknown, UTC is used'));
  v_opted_out := exists (
    select from herald.opt_out as o
    where o.user_id = p_user and (o.scenario_type = p_scenario_type or o.scenario_type is null) and o.opted_out_at <= p_now
  );
  return query
    select 'opt_out', not v_opted_out,
      coalesce(
        string_agg(format('opted out of %s since %s', coalesce(o.scenario_type, 'everything'), herald.moment_text(o.opted_out_at, v_zone)), '; '
          order by o.opted_out_at),
        'not opted out')
    from herald.opt_out as o
    where o.user_id = p_user and (o.scenario_type = p_scenario_type or o.scenario_type is null) and o.opted_out_at <= p_now;
  return query
    select 'device_token', count(*) filter (where d.revoked_at is null) > 0,
      coalesce(
        string_agg(
          format('%s, %s', d.platform, case
            when d.revoked_at is null and d.last_seen_at > p_now then 'seen ' || herald.moment_text(d.last_seen_at, v_zone)
            when d.revoked_at is null then 'seen ' || herald.duration_text(p_now - d.last_seen_at) || ' ago'
            else 'revoked ' || herald.moment_text(d.revoked_at, v_zone) || ' (' || coalesce(d.revoked_reason, 'unknown') || ')'
          end), '; ' order by d.revoked_at is not null, d.last_seen_at desc),
        'no device was ever registered, or it was signed out')
    from (
      -- an index for each half
      select t.platform, t.last_seen_at, t.revoked_at, t.revoked_reason
      from herald.device_token as t
      where t.user_id = p_user and t.revoked_at is null
      union all
      select t.platform, t.last_seen_at, t.revoked_at, t.revoked_reason
      from herald.device_token as t
      where t.user_id = p_user and t.revoked_at is not null
    ) as d;
  select s.daily_cap, s.paused_at into v_cap, v_paused_at from herald.setting as s;
  v_count := herald.pushes_today(p_user, p_now, v_zone) + herald.pushes_planned(p_user, p_now, v_zone);
  return query select 'daily_cap', v_cap is null or v_count < v_cap,
    format('%s today, sent or waiting; %s', v_count, coalesce('at most ' || v_cap, 'no limit'));

  for v_scenario in
    select s.*
    from herald.scenario as s
    where s.scenario_type = p_scenario_type and s.organisation_id = v_person.organisation_id
      and (s.chapter_id is null or s.chapter_id = v_person.chapter_id)
    order by s.priority desc, s.scenario_id
  loop
    v_none := false;
    -- of this person's chapter: what a run met in others is not to be seen here
    select c.held_at, least(c.evaluated_through, c.catch_up_from) as start into v_behind
    from herald.catch_up as c
    where c.scenario_id = v_scenario.scenario_id and c.chapter_id is not distinct from v_person.chapter_id;
    v_scenario.evaluated_from := least(v_scenario.evaluated_from, v_behind.start);
    return query select 'scenario', v_scenario.mode in ('on', 'canary') and v_scenario.paused_at is null
        and v_paused_at is null and v_behind.held_at is null,
      format('%s (%s): %s%s%s%s', v_scenario.name, v_scenario.scenario_id, v_scenario.mode,
        case when v_scenario.paused_at is not null then ', paused since ' || herald.moment_text(v_scenario.paused_at, v_zone) else '' end,
        case when v_paused_at is not null then ', and everything is paused since ' || herald.moment_text(v_paused_at, v_zone) else '' end,
        case when v_behind.held_at is not null then ', held since ' || herald.moment_text(v_behind.held_at, v_zone) else '' end);

    -- due within a year: what a run would send, else the latest; and whether it may still be sent
    v_candidate := null;
    begin
      v_why := herald.why(v_scenario, p_user, p_now);
      v_candidates := herald.candidates(v_scenario, tstzrange(p_now - interval '366 days', p_now, '(]'), array[p_user]);
      select c.* into v_candidate
      from unnest(v_candidates) as c
      left join herald.gate(v_scenario, v_candidates, p_now) as g on g.activity_ref = c.activity_ref and g.due_at = c.due_at
      order by coalesce(g.decision in ('send', 'quiet_hours', 'shadow') and c.due_at > v_scenario.evaluated_from, false) desc,
        c.due_at desc, length(c.activity_ref) desc, c.activity_ref desc
      limit 1;
    exception when others then
      return query select 'due', false, format('the evaluator of %s fails with %s', p_scenario_type, sqlstate);
      continue;
    end;
    if v_candidate.user_id is not null then
      v_count := (select count(*) from herald.still_due(v_scenario, array[v_candidate], p_now));
    end if;
    if v_candidate.user_id is null then
      return query select 'due', false, coalesce(v_why || '; ', '') || 'not due within the last year';
    elsif v_count = 0 and v_candidate.due_at <= herald.touched_from(v_scenario, p_now) then
      return query select 'due', false,
        format('%slast due %s, not any more', v_why || '; ', herald.moment_text(v_candidate.due_at, v_zone));
      v_candidate := null;
    else
      return query select 'due', v_candidate.due_at > v_scenario.evaluated_from,
        format('%sdue %s, %s ago, about %s%s', v_why || '; ', herald.moment_text(v_candidate.due_at, v_zone),
          herald.duration_text(p_now - v_candidate.due_at), v_candidate.activity_ref,
          case when v_candidate.due_at <= v_scenario.evaluated_from
            then '; the scenario looks back no further than ' || herald.moment_text(v_scenario.evaluated_from, v_zone) else '' end);
      return query select 'still_due', v_count > 0,
        case when v_count > 0 then 'still so' else 'no longer so: active since, or the item is past or renewed' end;
      v_at := herald.expires_at(v_candidate.due_at, null, v_scenario.evaluated_from, v_scenario.started_at, v_scenario.expires_after);
      return query select 'expires', v_at > p_now,
        format('to be sent before %s, %s after %s', herald.moment_text(v_at, v_zone), herald.span(v_scenario.expires_after, 'en'),
          case when v_at = v_candidate.due_at + v_scenario.expires_after then 'it was due' else 'the scenario was started or set back' end);
    end if;

    -- other prompts of the type
    select p.status, p.scenario_id, p.created_at into v_other
    from herald.prompt as p
    where p.user_id = p_user and p.scenario_type = p_scenario_type and p.created_at <= p_now
      and (p.scenario_id, p.activity_ref) is distinct from (v_scenario.scenario_id, v_candidate.activity_ref)
      and (p.status in ('ready', 'sending')
        or p.idempotency_key = herald.idempotency_key(p_user, p_scenario_type, (p_now at time zone 'UTC')::date))
    order by p.status in ('ready', 'sending') desc, p.created_at desc
    limit 1;
    return query select 'duplicate', v_other.status is null,
      case
        when v_other.status is null then 'no other prompt of this type is open or was decided on today (UTC)'
        when v_other.status in ('ready', 'sending') then format('another prompt of this type is open since %s', herald.moment_text(v_other.created_at, v_zone))
        else format('another prompt of this type was decided on today (UTC), %s: %s', herald.moment_text(v_other.created_at, v_zone), v_other.status)
      end;

    -- the latest push of the type, or one that may have arrived
    select max(q.at) into v_at
    from (
      select n.dispatched_at as at from herald.scenario_notification as n
      where n.user_id = p_user and n.scenario_type = p_scenario_type and n.dispatched_at <= p_now
      union all
      select p.unknown_at from herald.prompt as p
      where p.user_id = p_user and p.scenario_type = p_scenario_type and p.unknown_at <= p_now
    ) as q;
    v_cooled := v_at is null or v_at <= p_now - v_scenario.cooldown;
    return query select 'cooldown', v_cooled,
      case
        when v_at is null then format('no push of this type yet; cooldown %s', coalesce(herald.span(v_scenario.cooldown, 'en'), 'none'))
        else format('last push of this type %s, %s ago; cooldown %s', herald.moment_text(v_at, v_zone), herald.duration_text(p_now - v_at),
          coalesce(herald.span(v_scenario.cooldown, 'en') || ', over ' || herald.moment_text(v_at + v_scenario.cooldown, v_zone), 'none'))
      end;
    if v_scenario.mode = 'canary' then
      return query select 'canary', herald.in_canary(v_scenario.scenario_id, p_user, v_scenario.canary_percent),
        format('%s among the %s %% of people that this scenario is sent to',
          case when herald.in_canary(v_scenario.scenario_id, p_user, v_scenario.canary_percent) then 'is' else 'is not' end,
          v_scenario.canary_percent);
    end if;
    v_at := herald.quiet_end(p_now, v_scenario.quiet_from, v_scenario.quiet_until, v_zone);
    return query select 'quiet_hours', v_at is null,
      format('%s; now it is %s%s',
        coalesce(to_char(v_scenario.quiet_from, 'HH24:MI') || ' to ' || to_char(v_scenario.quiet_until, 'HH24:MI'), 'none'),
        herald.moment_text(p_now, v_zone), coalesce(': waits until ' || herald.moment_text(v_at, v_zone), ''));

    return query
      select 'prompt', f.passed, f.detail
      from herald.prompt_fate_by(v_scenario.scenario_id, p_user, p_now, v_zone) as f
      where f.detail is not null;
    v_decided := found;

    v_decision := null;
    if v_candidate.user_id is not null then
      select g.decision, g.not_before into v_decision, v_not_before
      from herald.gate(v_scenario, array[v_candidate], p_now) as g;
    end if;
    return query select 'decision',
      coalesce(v_decision = 'send', false) and v_scenario.mode in ('on', 'canary')
        and v_scenario.paused_at is null and v_paused_at is null and v_behind.held_at is null
        and v_candidate.due_at > v_scenario.evaluated_from,
      case
        when v_decision is null then 'nothing to send: not due'
        when v_decision in ('send', 'quiet_hours') and v_scenario.mode not in ('on', 'canary') then 'not sent: the scenario is ' || v_scenario.mode
        when v_candidate.due_at <= v_scenario.evaluated_from then 'not sent: the scenario does not look back so far'
        when v_decision in ('send', 'quiet_hours') and v_behind.held_at is not null then 'held: a run would have reached too many people'
        when v_decision in ('send', 'quiet_hours') and v_scenario.paused_at is not null then 'sent once the scenario goes on'
        when v_decision = 'send' and v_paused_at is not null then 'sent once everything goes on'
        when v_decision = 'send' then 'a run that looks at it now sends it'
        when v_decision = 'quiet_hours' then 'waits until ' || herald.moment_text(v_not_before, v_zone)
        when v_decision = 'duplicate' and v_other.status is null and not v_decided then 'decided after this moment'
        when v_decision = 'duplicate' and v_other.status is null then 'decided already, see prompt'
        when (v_decision = 'opted_out' and not v_opted_out) or (v_decision = 'cooldown' and v_cooled)
          then format('not sent: %s, since after this moment', v_decision)
        else 'not sent: ' || v_decision
      end;
  end loop;
  if v_none then
    return query select 'scenario', false, format('no scenario of type %s covers this person', p_scenario_type);
  end if;
end
$$;
comment on function herald.explain is
  'Why a person did (not) get a push of a type: every check with its numbers, scenario by scenario. Coordinators: people of their own chapters.';
revoke all on function herald.explain from public;
grant execute on function herald.explain to authenticated, service_role, herald_daemon, herald_reader;
