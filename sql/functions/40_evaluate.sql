-- Evaluation: candidates -> gates -> prompts. Scheduled runs cover the time since the last one; runs for touched users
-- look back as far as a prompt may still be sent. Both go through herald.run(), so they cannot differ.
-- Lock order: scenario row (scheduled runs), touched users, prompts, history.

-- One run of one scenario: decides and writes. p_users null: everybody.
create or replace function herald.run(
  p_scenario herald.scenario, p_window tstzrange, p_users uuid[], p_now timestamptz,
  out candidates integer, out prompts integer, out suppressed jsonb, out held boolean
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_candidates herald.candidate[] := herald.candidates(p_scenario, p_window, p_users);
  v_wanted bigint;
begin
  held := false;
  -- Nobody due and nobody who could be withdrawn: done, the most common case.
  if v_candidates = '{}' and p_users is null then
    candidates := 0;
    prompts := 0;
    suppressed := '{}';
    return;
  end if;
  if cardinality(v_candidates) > p_scenario.max_prompts_per_run and not p_scenario.hold_released then
    select count(*) into v_wanted
    from herald.gate(p_scenario, v_candidates, p_now) as g
    where g.decision in ('send', 'quiet_hours');
    if v_wanted > p_scenario.max_prompts_per_run then
      update herald.scenario as s
      set held_at = coalesce(s.held_at, p_now)
      where s.scenario_id = p_scenario.scenario_id;
      candidates := cardinality(v_candidates);
      prompts := 0;
      suppressed := jsonb_build_object('held', v_wanted);
      held := true;
      return;
    end if;
  end if;
  with decided as materialized (
    select g.user_id, g.activity_ref, g.due_at, g.decision, g.not_before
    from herald.gate(p_scenario, v_candidates, p_now) as g
  ), wanted as materialized (
    select
      d.user_id,
      d.activity_ref,
      d.due_at,
      case d.decision when 'expired' then 'expired' when 'no_device_token' then 'skipped' else 'ready' end as status,
      case when d.decision <> 'send' then d.decision end as gate,
      case
        when p_scenario.paused_at is not null then 'infinity'
        when p_users is null then d.not_before + random() * p_scenario.jitter
        else d.not_before
      end as not_before,
      (p_now at time zone 'UTC')::date as evaluation_date
    from decided as d
    where d.decision in ('send', 'quiet_hours', 'no_device_token', 'expired')
  ), withdrawn as (
    update herald.prompt as p
    set status = 'skipped', gate = 'no_longer_due', settled_at = p_now
    where p_users is not null
      and p.user_id = any (p_users) and p.scenario_id = p_scenario.scenario_id
      and p.status = 'ready' and p.origin = 'evaluation' and p_window @> p.due_at
      and not exists (
        select from decided as d
        where d.user_id = p.user_id and d.activity_ref = p.activity_ref
          and d.decision not in ('no_longer_due', 'inactive_recipient', 'opted_out')
      )
    returning p.prompt_id, p.user_id, p.status, p.gate, p.attempts
  ), armed_again as (
    update herald.prompt as p
    set status = w.status, gate = w.gate, due_at = w.due_at, not_before = w.not_before, priority = p_scenario.priority,
      error_code = null, settled_at = case when w.status <> 'ready' then p_now end
    from wanted as w
    where p.user_id = w.user_id and p.scenario_id = p_scenario.scenario_id and p.activity_ref = w.activity_ref
      and p.status in ('failed', 'skipped', 'expired') and p.gate is distinct from 'discarded'
      and (p.status, p.gate) is distinct from (w.status, w.gate)
    returning p.prompt_id, p.user_id, p.status, p.gate, p.attempts
  ), inserted as (
    insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, due_at, evaluation_date, idempotency_key,
      cooldown_window_start, status, gate, not_before, priority, created_at, settled_at)
    select
      p_scenario.scenario_id,
      p_scenario.scenario_type,
      w.user_id,
      w.activity_ref,
      w.due_at,
      w.evaluation_date,
      herald.idempotency_key(w.user_id, p_scenario.scenario_type, w.evaluation_date),
      herald.cooldown_window_start(p_now, p_scenario.cooldown),
      w.status,
      w.gate,
      w.not_before,
      p_scenario.priority,
      p_now,
      case when w.status <> 'ready' then p_now end
    from wanted as w
    on conflict do nothing
    returning prompt_id, user_id, status, gate, attempts
  ), written as (
    select i.prompt_id, i.user_id, i.status, i.gate, i.attempts from inserted as i
    union all
    select a.prompt_id, a.user_id, a.status, a.gate, a.attempts from armed_again as a
  ), told as (
    insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, dispatched_at, delivery_status, error_code, attempt)
    select e.prompt_id, p_scenario.scenario_id, e.user_id, p_now, 'skipped', e.gate, e.attempts
    from (select * from written union all select * from withdrawn) as e
    where e.status in ('skipped', 'expired')
  ), counted as (
    select d.decision as gate, count(*) as n
    from decided as d
    where d.decision <> 'send'
    group by d.decision
    union all
    -- somebody else decided on the same at this very moment
    select 'duplicate', count(*) - (select count(*) from written as r where r.status = 'ready' and r.gate is null)
    from decided as d
    where d.decision = 'send'
  )
  select
    (select count(*) from decided),
    (select count(*) from written as r where r.status = 'ready'),
    coalesce((
      select jsonb_object_agg(t.gate, t.n)
      from (select k.gate, sum(k.n)::bigint as n from counted as k group by k.gate) as t
      where t.n > 0
    ), '{}')
  into candidates, prompts, suppressed;
end
$$;
comment on function herald.run is
  'One run of one scenario over a window, for everybody or p_users: writes the prompts and says how many candidates, prompts, and suppressed by gate; held when it would exceed max_prompts_per_run.';
revoke all on function herald.run from public;

-- The scheduled run. A scenario that another run is just evaluating is left to it. Missed time is caught up in slices
-- of a day; what cannot be evaluated stays where it was, and says why.
create or replace function herald.evaluate(p_now timestamptz default now(), p_scenario uuid default null)
returns table (scenario_id uuid, candidates integer, prompts integer, suppressed jsonb, duration interval, error text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  c_slice constant interval := '1 day';
  c_slices constant integer := 400;
  v_id uuid;
  v_scenario herald.scenario;
  v_from timestamptz;
  v_lower timestamptz;
  v_upper timestamptz;
  v_slice record;
  v_began timestamptz;
  v_ready boolean := false;
begin
  if p_scenario is not null and not exists (select from herald.scenario as s where s.scenario_id = p_scenario) then
    raise exception 'no scenario %', p_scenario
      using errcode = 'no_data_found', hint = 'select scenario_id, name from herald.scenario';
  end if;
  for v_id in
    select s.scenario_id
    from herald.scenario as s
    where s.mode <> 'off' and (p_scenario is null or s.scenario_id = p_scenario)
    order by s.priority desc, s.scenario_id
  loop
    select s.* into v_scenario
    from herald.scenario as s
    where s.scenario_id = v_id and s.mode <> 'off'
    for no key update skip locked;
    continue when not found;
    v_began := clock_timestamp();
    scenario_id := v_id;
    candidates := 0;
    prompts := 0;
    suppressed := '{}';
    error := null;
    v_from := greatest(least(v_scenario.evaluated_through, v_scenario.catch_up_from), v_scenario.evaluated_from);
    v_lower := v_from;
    begin
      for i in 1 .. c_slices
      loop
        exit when v_lower >= p_now;
        v_upper := least(v_lower + c_slice, p_now);
        select r.* into v_slice from herald.run(v_scenario, tstzrange(v_lower, v_upper, '(]'), null, p_now) as r;
        candidates := candidates + v_slice.candidates;
        prompts := prompts + v_slice.prompts;
        suppressed := (
          select coalesce(jsonb_object_agg(t.gate, t.n), '{}')
          from (
            select e.key as gate, sum(e.value::bigint) as n
            from (select * from jsonb_each_text(suppressed) union all select * from jsonb_each_text(v_slice.suppressed)) as e
            group by e.key
          ) as t
        );
        if v_slice.held then
          error := format('held: %s prompts would exceed max_prompts_per_run = %s; look at pgherald preview, then pgherald resume %s',
            v_slice.suppressed ->> 'held', v_scenario.max_prompts_per_run, v_id);
          exit;
        end if;
        v_lower := v_upper;
      end loop;
      update herald.scenario as s
      set evaluated_through = greatest(s.evaluated_through, v_lower),
        catch_up_from = case when v_lower < s.evaluated_through then v_lower end,
        held_at = case when error is not null then s.held_at end,
        hold_released = s.hold_released and error is null and v_lower < p_now
      where s.scenario_id = v_id;
    exception when others then
      -- The slices of this scenario are rolled back together with the failed one.
      candidates := 0;
      prompts := 0;
      suppressed := '{}';
      error := sqlstate || ': ' || sqlerrm;
      v_lower := v_from;
    end;
    duration := clock_timestamp() - v_began;
    insert into herald.evaluation_run (scenario_id, source, started_at, evaluated, candidates, prompts, suppressed, error, duration)
    values (v_id, 'schedule', p_now, tstzrange(v_from, greatest(v_lower, v_from), '(]'), candidates, prompts, suppressed, error, duration);
    v_ready := v_ready or prompts > 0;
    return next;
  end loop;
  if v_ready then
    perform herald.ring();
  end if;
end
$$;
comment on function herald.evaluate is
  'The scheduled run: every scenario that is not off (or one) up to p_now, one row each; an error is that scenario''s alone.';
revoke all on function herald.evaluate from public;
grant execute on function herald.evaluate to herald_daemon;

-- What was due earlier could not be sent any more; a scenario started or set back just now looks back to where it starts.
create or replace function herald.touched_from(p_scenario herald.scenario, p_now timestamptz)
returns timestamptz
language sql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
return case
  when p_scenario.started_at > p_now - p_scenario.expires_after then p_scenario.evaluated_from
  else greatest(p_scenario.evaluated_from, p_now - p_scenario.expires_after)
end;
comment on function herald.touched_from is 'How far a run for touched users looks back: as far as a prompt may still be sent.';
revoke all on function herald.touched_from from public;

-- The event-driven run: takes up to p_limit touched rows and evaluates just those people, looking back as far as a
-- prompt may still be sent. A scenario that fails or is held keeps its place through catch_up_from.
create or replace function herald.evaluate_touched(p_limit integer default 1000, p_now timestamptz default now())
returns table (scenario_id uuid, candidates integer, prompts integer, suppressed jsonb, duration interval, error text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_users uuid[];
  v_scenario herald.scenario;
  v_lower timestamptz;
  v_run record;
  v_began timestamptz;
begin
  with taken as (
    delete from herald.touched_user as t
    where t.ctid = any (array(select q.ctid from herald.touched_user as q limit p_limit for update skip locked))
    returning t.user_id
  )
  select array_agg(distinct k.user_id) into v_users
  from taken as k;
  if v_users is null then
    return;
  end if;
  for v_scenario in
    select s.*
    from herald.scenario as s
    where s.mode <> 'off' and s.held_at is null
    order by s.priority desc, s.scenario_id
  loop
    v_began := clock_timestamp();
    scenario_id := v_scenario.scenario_id;
    v_lower := herald.touched_from(v_scenario, p_now);
    continue when v_lower >= p_now;
    begin
      select r.* into v_run from herald.run(v_scenario, tstzrange(v_lower, p_now, '(]'), v_users, p_now) as r;
      candidates := v_run.candidates;
      prompts := v_run.prompts;
      suppressed := v_run.suppressed;
      error := null;
      if v_run.held then
        error := format('held: %s prompts would exceed max_prompts_per_run = %s; look at pgherald preview, then pgherald resume %s',
          v_run.suppressed ->> 'held', v_scenario.max_prompts_per_run, scenario_id);
      end if;
    exception when others then
      candidates := 0;
      prompts := 0;
      suppressed := '{}';
      error := sqlstate || ': ' || sqlerrm;
    end;
    duration := clock_timestamp() - v_began;
    if error is not null then
      update herald.scenario as s
      set catch_up_from = least(s.catch_up_from, v_lower)
      where s.scenario_id = v_scenario.scenario_id;
    end if;
    if candidates > 0 or error is not null then
      insert into herald.evaluation_run (scenario_id, source, started_at, evaluated, candidates, prompts, suppressed, error, duration)
      values (scenario_id, 'touched', p_now, tstzrange(v_lower, p_now, '(]'), candidates, prompts, suppressed, error, duration);
      return next;
    end if;
  end loop;
end
$$;
comment on function herald.evaluate_touched is
  'The event-driven run: evaluates up to p_limit touched rows'' people in every scenario; one row per scenario that found somebody or failed.';
revoke all on function herald.evaluate_touched from public;
grant execute on function herald.evaluate_touched to herald_daemon;
