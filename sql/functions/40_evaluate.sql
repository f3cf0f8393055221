-- Evaluation: candidates -> gates -> prompts. Here are herald.decide(), which scheduled runs and runs for touched users
-- (41_touched.sql) both go through, so that they cannot differ; and the scheduled run, which covers the time since the last one.
-- What fails is tried again chapter by chapter, so that the rows of one chapter never decide what becomes of another.
-- Lock order: scenario row, prompts, open prompts, history.

-- Asks the gates about candidates and writes what follows: prompts that are new, armed again (they had ended without a push), or
-- withdrawn, with their history. p_users null: a scheduled run. p_made: prompts that count as made by this run, toward
-- max_prompts_per_run. Rows are inserted in the order of user_id, so that of two runs at the same time one waits for the other,
-- and never each for the other.
create or replace function herald.decide(
  p_scenario herald.scenario, p_candidates herald.candidate[], p_window tstzrange, p_users uuid[], p_now timestamptz, p_made bigint,
  out candidates integer, out prompts integer, out suppressed jsonb, out held uuid[]
)
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_hold record;
  v_wanted bigint := 0;
begin
  held := '{}';
  -- The most common case: nobody is due, and nobody has an open prompt that could be withdrawn.
  if p_candidates = '{}' and (p_users is null or not exists (
    select from herald.open_prompt as o
    where o.user_id = any (p_users) and o.scenario_type = p_scenario.scenario_type
  )) then
    candidates := 0;
    prompts := 0;
    suppressed := '{}';
    return;
  end if;
  -- If all chapters together are within the limit, each of them is.
  if cardinality(p_candidates) + p_made > p_scenario.max_prompts_per_run and p_scenario.mode <> 'shadow' then
    select h.* into v_hold
    from herald.hold(p_scenario, p_candidates, lower(p_window), p_made, p_users is not null, p_now) as h;
    p_candidates := v_hold.candidates;
    held := v_hold.chapters;
    v_wanted := v_hold.wanted;
    if v_wanted > 0 then
      p_users := herald.not_held(p_scenario, p_users);
    end if;
  end if;
  with decided as materialized (
    select g.user_id, g.activity_ref, g.due_at, g.decision, g.not_before,
      -- runs for touched users look back over the same time again and again: what one found before is not counted again
      p_users is not null and exists (
        select from herald.prompt as p
        where p.user_id = g.user_id and p.scenario_id is not distinct from p_scenario.scenario_id and p.activity_ref = g.activity_ref
          and (g.decision = 'duplicate' or p.gate = g.decision)
        offset 0
      ) as known
    from herald.gate(p_scenario, p_candidates, p_now) as g
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
      -- of each day there is one idempotency key: what expired takes that of the day on which it was due, and leaves today's to
      -- what is sent today
      (case d.decision when 'expired' then d.due_at else p_now end at time zone 'UTC')::date as evaluation_date
    from decided as d
    where d.decision in ('send', 'quiet_hours', 'no_device_token', 'expired') and p_scenario.mode <> 'shadow'
  ), withdrawn as (
    update herald.prompt as p
    set status = 'skipped', settled_at = p_now,
      gate = coalesce((
        select d.decision from decided as d where d.user_id = p.user_id and d.activity_ref = p.activity_ref limit 1
      ), 'no_longer_due')
    where p_users is not null
      and p.prompt_id = any (array(
        select o.prompt_id from herald.open_prompt as o where o.user_id = any (p_users) and o.scenario_id = p_scenario.scenario_id
      ))
      and p.status = 'ready' and p.origin = 'evaluation' and p_window @> p.due_at
      and not exists (
        select from decided as d
        where d.user_id = p.user_id and d.activity_ref = p.activity_ref
          and d.decision not in ('no_longer_due', 'inactive_recipient', 'opted_out')
        offset 0
      )
    returning p.prompt_id, p.user_id, p.status, p.gate, p.attempts
  ), again as materialized (
    select p.place, w.*
    from (select k.* from wanted as k order by k.user_id offset 0) as w
    cross join lateral (
      select q.ctid as place
      from herald.prompt as q
      where q.user_id = w.user_id and q.scenario_id is not distinct from p_scenario.scenario_id and q.activity_ref = w.activity_ref
        and q.status in ('failed', 'skipped', 'expired') and q.gate is distinct from 'discarded'
        and (q.status, q.gate) is distinct from (w.status, w.gate)
      for no key update
    ) as p
  ), armed_again as (
    update herald.prompt as p
    set status = a.status, gate = a.gate, due_at = a.due_at, not_before = a.not_before, priority = p_scenario.priority,
      error_code = null, settled_at = case when a.status <> 'ready' then p_now end
    from again as a
    where p.ctid = a.place
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
    order by w.user_id
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
    where d.decision <> 'send' and not d.known
    group by d.decision
    union all
    -- another transaction decided on the same at this very moment
    select 'duplicate', count(*) - (select count(*) from written as r where r.status = 'ready' and r.gate is null)
    from decided as d
    where d.decision = 'send'
  )
  select
    (select count(*) from decided as d where not d.known) + v_wanted,
    (select count(*) from written as r where r.status = 'ready'),
    coalesce((
      select jsonb_object_agg(t.gate, t.n)
      from (select k.gate, sum(k.n)::bigint as n from counted as k group by k.gate) as t
      where t.n > 0
    ), '{}')
  into candidates, prompts, suppressed;
  if v_wanted > 0 then
    suppressed := suppressed || jsonb_build_object('held', v_wanted);
  end if;
end
$$;
comment on function herald.decide is
  'Gates candidates and writes the prompts; says how many candidates, prompts, and suppressed by gate; held: the chapters for which nothing was written, because there would be more than max_prompts_per_run.';
revoke all on function herald.decide from public;

create or replace function herald.held_text(p_scenario herald.scenario, p_suppressed jsonb)
returns text
language sql stable
set search_path = pg_catalog, pg_temp
return format('held: %s prompts would exceed max_prompts_per_run = %s; look at pgherald preview %s, then pgherald resume %s',
  p_suppressed ->> 'held', p_scenario.max_prompts_per_run, p_scenario.scenario_id, p_scenario.scenario_id);
comment on function herald.held_text is 'What a run that was held says.';
revoke all on function herald.held_text from public;

-- The scheduled run of a scenario for some chapters, from the same moment on. Time that was missed is caught up: it is read in
-- slices, and decided on as one. First for all these chapters together, which costs what fell due. Where that fails, or finds
-- more than 200,000 candidates (perhaps among people outside the scenario's scope), chapter by chapter, each with its own people
-- alone. A chapter that fails then stays where it was; one that has too many candidates gets the rest in the next run.
-- p_made: prompts that this run made before.
create or replace function herald.evaluate_chapters(
  p_scenario herald.scenario, p_chapters uuid[], p_from timestamptz, p_now timestamptz, p_made bigint,
  out candidates integer, out prompts integer, out suppressed jsonb, out error text
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  c_most constant integer := 200000;
  v_candidates herald.candidate[];
  v_through timestamptz;
  v_done record;
  v_part record;
  v_error text;
begin
  -- A rule that was changed moves evaluated_from on; what is behind may start before that.
  p_scenario.evaluated_from := least(p_scenario.evaluated_from, p_from);
  begin
    select c.candidates, c.through into v_candidates, v_through
    from herald.candidates_between(p_scenario, p_from, p_now, c_most) as c;
    if v_through >= p_now then
      select d.* into v_done
      from herald.decide(p_scenario, herald.candidates_in(p_scenario, p_chapters, v_candidates),
        tstzrange(p_from, v_through, '(]'), null, p_now, p_made) as d;
      perform herald.caught_up(p_scenario, p_chapters, v_done.held, v_through, p_now);
      candidates := v_done.candidates;
      prompts := v_done.prompts;
      suppressed := v_done.suppressed;
      return;
    end if;
  exception when others then
    error := sqlstate || ': ' || sqlerrm;
  end;
  candidates := 0;
  prompts := 0;
  suppressed := '{}';
  for v_part in
    select q.chapter_id, q.people from herald.people_in(p_scenario, p_chapters) as q
  loop
    begin
      select c.candidates, c.through into v_candidates, v_through
      from herald.candidates_between(p_scenario, p_from, p_now, c_most, v_part.people) as c;
      select d.* into v_done
      from herald.decide(p_scenario, v_candidates, tstzrange(p_from, v_through, '(]'), null, p_now, p_made + prompts) as d;
      perform herald.caught_up(p_scenario, array[v_part.chapter_id], v_done.held, v_through, p_now);
      candidates := candidates + v_done.candidates;
      prompts := prompts + v_done.prompts;
      suppressed := herald.counted_together(suppressed, v_done.suppressed);
    exception when others then
      v_error := sqlstate || ': ' || sqlerrm;
      perform herald.fall_behind(p_scenario, v_part.chapter_id, p_from);
    end;
  end loop;
  -- Of a chapter by itself, and not that of all together, if there was a chapter.
  if found then
    error := v_error;
  end if;
end
$$;
comment on function herald.evaluate_chapters is
  'The scheduled run of a scenario from p_from for these chapters; null: all that are not behind. The error is that of a chapter that could not be evaluated even by itself.';
revoke all on function herald.evaluate_chapters from public;

-- The scheduled run. A scenario that another run is just evaluating is left to that run. Chapters that are behind are evaluated
-- from where they are, the others from evaluated_through. That moves on whatever came of the run: coordinators of every chapter
-- may read it, and must not learn from it what happened in another one.
-- lock_timeout: a transaction that keeps a prompt locked (an application's herald.enqueue) delays one scenario, not all.
create or replace function herald.evaluate(p_now timestamptz default now(), p_scenario uuid default null)
returns table (scenario_id uuid, candidates integer, prompts integer, suppressed jsonb, duration interval, error text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set lock_timeout = '5s'
as $$
declare
  v_id uuid;
  v_scenario herald.scenario;
  v_from timestamptz;
  v_part record;
  v_run record;
  v_made bigint;
  v_began timestamptz;
  v_ready boolean := false;
begin
  if p_now is null or not isfinite(p_now) then
    raise exception 'evaluate needs a moment' using errcode = 'invalid_parameter_value', hint = 'select * from herald.evaluate(now())';
  end if;
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
    error := null;
    candidates := 0;
    prompts := 0;
    suppressed := '{}';
    v_made := 0;
    v_from := greatest(v_scenario.evaluated_through, v_scenario.evaluated_from);
    begin
      for v_part in
        select q.chapters, q.start, q.released
        from (
          select null::uuid[] as chapters, v_from as start, false as released
          union all
          select array_agg(k.chapter_id), k.start, k.hold_released
          from (
            select c.chapter_id, least(c.catch_up_from, c.evaluated_through, v_from) as start, c.hold_released
            from herald.catch_up as c
            where c.scenario_id = v_id
          ) as k
          group by k.start, k.hold_released
        ) as q
        order by q.chapters is not null, q.start
      loop
        select r.* into v_run from herald.evaluate_chapters(v_scenario, v_part.chapters, v_part.start, p_now, v_made) as r;
        candidates := candidates + v_run.candidates;
        prompts := prompts + v_run.prompts;
        if not v_part.released then
          v_made := v_made + v_run.prompts;
        end if;
        suppressed := herald.counted_together(suppressed, v_run.suppressed);
        error := coalesce(error, v_run.error);
        v_from := least(v_from, v_part.start);
      end loop;
      if error is null and suppressed ? 'held' then
        error := herald.held_text(v_scenario, suppressed);
      end if;
      update herald.scenario as s
      set evaluated_through = greatest(s.evaluated_through, p_now)
      where s.scenario_id = v_id;
    exception when others then
      candidates := 0;
      prompts := 0;
      suppressed := '{}';
      error := sqlstate || ': ' || sqlerrm;
    end;
    duration := clock_timestamp() - v_began;
    insert into herald.evaluation_run (scenario_id, source, started_at, evaluated, candidates, prompts, suppressed, error, duration)
    values (v_id, 'schedule', p_now, tstzrange(v_from, case when error is null then greatest(v_from, p_now) else v_from end, '(]'),
      candidates, prompts, suppressed, error, duration);
    v_ready := v_ready or prompts > 0;
    return next;
  end loop;
  -- Also while a daemon is awake: there may be more prompts than that one can send, and others may sleep.
  if v_ready and pg_notification_queue_usage() < 0.5 then
    perform pg_notify('herald', '');
  end if;
end
$$;
comment on function herald.evaluate is
  'The scheduled run: every scenario that is not off (or one) up to p_now, one row each; an error is that scenario''s alone.';
revoke all on function herald.evaluate from public;
grant execute on function herald.evaluate to herald_daemon;
