-- The gates: why a candidate is not sent. All of them, once, here; evaluate, enqueue, preview and explain go through
-- herald.gate(), and herald.claim_rows() repeats those that may have changed while a prompt waited.

-- When the quiet hours that a moment lies in end; null when it lies in none. An unknown time zone counts as UTC
-- (the check unknown_time_zone tells the DBA). Not parallel safe: before Postgres 17 a block that catches errors cannot
-- run in a parallel query.
create or replace function herald.quiet_end(p_at timestamptz, p_from time, p_until time, p_time_zone text)
returns timestamptz
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_zone text := coalesce(p_time_zone, 'UTC');
  v_local timestamp;
begin
  if p_from is null then
    return null;
  end if;
  begin
    v_local := p_at at time zone v_zone;
  exception when invalid_parameter_value then
    v_zone := 'UTC';
    v_local := p_at at time zone v_zone;
  end;
  if p_from < p_until then
    if v_local::time >= p_from and v_local::time < p_until then
      return (v_local::date + p_until) at time zone v_zone;
    end if;
  elsif v_local::time >= p_from then
    return (v_local::date + 1 + p_until) at time zone v_zone;
  elsif v_local::time < p_until then
    return (v_local::date + p_until) at time zone v_zone;
  end if;
  return null;
end
$$;
comment on function herald.quiet_end is 'End of the quiet hours, in the person''s time zone, that a moment lies in; null when in none.';
revoke all on function herald.quiet_end from public;

-- How many pushes a person got on the local day of p_at. Notifications, and prompts whose answer was lost or is
-- still out, for those may have arrived.
create or replace function herald.pushes_today(p_user uuid, p_at timestamptz, p_time_zone text)
returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_midnight timestamptz;
begin
  begin
    v_midnight := date_trunc('day', p_at, coalesce(p_time_zone, 'UTC'));
  exception when invalid_parameter_value then
    v_midnight := date_trunc('day', p_at, 'UTC');
  end;
  return (
    select count(*)
    from herald.scenario_notification as n
    where n.user_id = p_user and n.dispatched_at >= v_midnight and n.dispatched_at <= p_at
  ) + (
    select count(*)
    from (
      select q.prompt_id, q.deadline from herald.open_prompt as q where q.user_id = p_user offset 0
    ) as o
    cross join lateral (
      select r.claimed_at from herald.prompt as r where r.prompt_id = o.prompt_id offset 0
    ) as p
    where o.deadline is not null and p.claimed_at >= v_midnight
  ) + (
    select count(*)
    from herald.prompt as p
    where p.user_id = p_user and p.unknown_at >= v_midnight
  );
end
$$;
comment on function herald.pushes_today is 'Pushes a person got, or may have got, since midnight in their time zone.';
revoke all on function herald.pushes_today from public;

-- Those that wait to go out before the day of p_at is over, by the person's clock.
create or replace function herald.pushes_planned(p_user uuid, p_at timestamptz, p_time_zone text)
returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_zone text := coalesce(p_time_zone, 'UTC');
  v_midnight timestamptz;
begin
  begin
    v_midnight := ((p_at at time zone v_zone)::date + 1)::timestamp at time zone v_zone;
  exception when invalid_parameter_value then
    v_midnight := ((p_at at time zone 'UTC')::date + 1)::timestamp at time zone 'UTC';
  end;
  return (
    select count(*)
    from (
      select q.deadline, q.not_before from herald.open_prompt as q where q.user_id = p_user offset 0
    ) as o
    where o.deadline is null and o.not_before < v_midnight
  );
end
$$;
comment on function herald.pushes_planned is 'Prompts of a person that wait to be sent until the next midnight in their time zone.';
revoke all on function herald.pushes_planned from public;

-- Whether a person is among the canary_percent of a scenario: the same people every time, others for every scenario.
create or replace function herald.in_canary(p_scenario uuid, p_user uuid, p_percent integer)
returns boolean
language sql immutable strict parallel safe
return (('x' || substr(md5(p_scenario::text || p_user::text), 1, 7))::bit(28)::integer % 100) < p_percent;
comment on function herald.in_canary is 'Whether a person belongs to the stable percentage of a canary scenario.';
revoke all on function herald.in_canary from public;

-- When a prompt is too old to be sent: expires_after after it was due. But what a scenario reached only because it was started or
-- set back counts from that moment (p_started_at): what was due after its new start (p_evaluated_from), and what was made since
-- then (p_made_at, because a rule that is changed later moves the start on). What had waited since before does not come alive
-- again. No SET and not strict, so that it is inlined into the claim.
create or replace function herald.expires_at(
  p_due_at timestamptz, p_made_at timestamptz, p_evaluated_from timestamptz, p_started_at timestamptz, p_expires_after interval
)
returns timestamptz
language sql stable parallel safe
return greatest(p_due_at, case when p_due_at > p_evaluated_from or p_made_at >= p_started_at then p_started_at end) + p_expires_after;
comment on function herald.expires_at is
  'When a prompt due at p_due_at, made at p_made_at (null: not made yet), is not sent any more; the rest are columns of its scenario.';
revoke all on function herald.expires_at from public;

-- What becomes of each candidate at p_now: decision 'send', or the gate. Of several candidates of one person one is
-- sent, the latest due. A candidate outside the scenario's scope is dropped without a trace: evaluators need not care
-- for scope. Rows of prompts that ended without a push (failed, skipped, expired) may be armed again.
-- plpgsql, because a session makes its plan once: for a few people, planning takes several times as long as running it. The plan
-- may be made while the outbox is still empty, and used when it is full. So: no sequential scans; `offset 0`, which keeps a look-up
-- from becoming a hash of all prompts; and `is not distinct from`, which no index serves, where one on that column would read far
-- too much.
create or replace function herald.gate(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamptz)
returns table (user_id uuid, activity_ref text, due_at timestamptz, decision text, not_before timestamptz)
language plpgsql stable rows 10
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  return query
  with candidate as materialized (
    -- one hash instead of a join, whose cost a generic plan cannot foresee
    select u.user_id, u.activity_ref, max(u.due_at) as due_at, bool_or(u.holds) as holds
    from (
      select c.user_id, c.activity_ref, c.due_at, false as holds
      from unnest(p_candidates) as c
      union all
      select h.user_id, h.activity_ref, null, true
      from herald.still_due(p_scenario, p_candidates, p_now) as h
    ) as u
    group by u.user_id, u.activity_ref
    having max(u.due_at) is not null
  ), checked as materialized (
    select
      c.user_id,
      c.activity_ref,
      c.due_at,
      r.time_zone,
      case
        when r.user_id is null then 'unknown_recipient'
        when r.is_active is not true then 'inactive_recipient'
        when exists (
          select from herald.opt_out as o
          where o.user_id = c.user_id and (o.scenario_type = p_scenario.scenario_type or o.scenario_type is null)
          offset 0
        ) then 'opted_out'
        when not c.holds then 'no_longer_due'
        when exists (
          select from herald.prompt as p
          where p.user_id = c.user_id and p.scenario_id is not distinct from p_scenario.scenario_id and p.activity_ref = c.activity_ref
            and (p.status in ('ready', 'sending', 'sent', 'unknown') or p.gate = 'discarded')
          offset 0
        ) or exists (
          select from herald.open_prompt as o
          where o.user_id = c.user_id and o.scenario_type = p_scenario.scenario_type
          offset 0
        ) then 'duplicate'
        when exists (
          select from herald.scenario_notification as n
          where n.user_id = c.user_id and n.scenario_type = p_scenario.scenario_type
            and n.dispatched_at > p_now - p_scenario.cooldown
          offset 0
        ) or exists (
          select from herald.prompt as p
          where p.user_id = c.user_id and p.scenario_type = p_scenario.scenario_type
            and p.unknown_at > p_now - p_scenario.cooldown
          offset 0
        ) then 'cooldown'
        when exists (
          select from herald.prompt as p
          where p.idempotency_key = herald.idempotency_key(c.user_id, p_scenario.scenario_type, (p_now at time zone 'UTC')::date)
            and (p.scenario_id, p.activity_ref) is distinct from (p_scenario.scenario_id, c.activity_ref)
          offset 0
        ) then 'duplicate'
        when herald.expires_at(c.due_at, null, p_scenario.evaluated_from, p_scenario.started_at, p_scenario.expires_after) <= p_now
          then 'expired'
        when p_scenario.mode = 'canary'
          and not herald.in_canary(p_scenario.scenario_id, c.user_id, p_scenario.canary_percent) then 'canary'
        when g.daily_cap is not null
          and g.daily_cap <= herald.pushes_today(c.user_id, p_now, r.time_zone) + herald.pushes_planned(c.user_id, p_now, r.time_zone)
          then 'daily_cap'
        when not exists (
          select from herald.device_token as d
          where d.user_id = c.user_id and d.revoked_at is null
          offset 0
        ) then 'no_device_token'
      end as stopped_by
    from candidate as c
    left join lateral (
      select v.user_id, v.organisation_id, v.chapter_id, v.time_zone, v.is_active
      from herald.source_recipient as v
      where v.user_id = c.user_id
      offset 0
    ) as r on true
    cross join herald.setting as g
    where r.user_id is null
      or (r.organisation_id = p_scenario.organisation_id and (p_scenario.chapter_id is null or r.chapter_id = p_scenario.chapter_id))
  ), ranked as (
    select
      k.*,
      case
        when k.stopped_by is null
        then herald.quiet_end(greatest(p_now, k.due_at), p_scenario.quiet_from, p_scenario.quiet_until, k.time_zone)
      end as quiet_end,
      row_number() over (
        partition by k.user_id, k.stopped_by is null or k.stopped_by in ('no_device_token', 'expired')
        order by k.stopped_by is not null, k.due_at desc, length(k.activity_ref) desc, k.activity_ref desc
      ) as place
    from checked as k
  )
  select
    k.user_id,
    k.activity_ref,
    k.due_at,
    case
      when (k.stopped_by is null or k.stopped_by in ('no_device_token', 'expired')) and k.place > 1 then 'duplicate'
      when k.stopped_by is not null then k.stopped_by
      when p_scenario.mode = 'shadow' then 'shadow'
      when k.quiet_end is not null then 'quiet_hours'
      else 'send'
    end,
    coalesce(k.quiet_end, greatest(p_now, k.due_at))
  from ranked as k;
end
$$;
comment on function herald.gate is
  'What becomes of each candidate: send, quiet_hours (a prompt, deferred to not_before), or the gate that stops it: unknown_recipient, inactive_recipient, opted_out, no_longer_due, duplicate, cooldown, expired, canary, daily_cap, no_device_token, shadow.';
revoke all on function herald.gate from public;
