-- Evaluation: candidates -> gates -> prompts. Scheduled runs cover the time since the last one; runs for touched users
-- look back as far as a prompt may still be sent. Both go through herald.decide(), so they cannot differ. What fails is
-- tried again chapter by chapter, so that the rows of one chapter never decide what becomes of another.
-- Lock order: scenario row (scheduled runs), touched users, prompts, open prompts, history.

-- Gates candidates and writes what follows. p_made: prompts that count as made by this very run. Rows are inserted in the
-- order of people, so that runs at the same time wait for one another rather than in a circle.
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
  -- Nobody due and nobody who could be withdrawn: done, the most common case.
  if p_candidates = '{}' and (p_users is null or not exists (
    select from herald.open_prompt as o
    where o.user_id = any (p_users) and o.scenario_type = p_scenario.scenario_type
  )) then
    candidates := 0;
    prompts := 0;
    suppressed := '{}';
    return;
  end if;
  -- no chapter has more than all together
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
      -- runs for touched users look at the same time again and again: what they found before is not counted again
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
      -- what expired has the key of the day on which it was due: that of today is left to what is sent today
      (case d.decision when 'expired' then d.due_at else p_now end at time zone 'UTC')::date as evaluation_date
    from decided as d
    where d.decision in ('send', 'quiet_hours', 'no_device_token', 'expired') and p_scenario.mode <> 'shadow'
  ), withdrawn as (
    update herald.prompt as p
    set status = 'skipped', gate = 'no_longer_due', settled_at = p_now
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
    -- somebody else decided on the same at this very moment
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

-- One run of one scenario for a few people. Its prompts count together with those that such runs made in the last minute:
-- a flood of single changes must not slip past max_prompts_per_run batch by batch.
create or replace function herald.run(
  p_scenario herald.scenario, p_window tstzrange, p_users uuid[], p_now timestamptz,
  out candidates integer, out prompts integer, out suppressed jsonb
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_made bigint := 0;
begin
  if p_scenario.max_prompts_per_run is not null then
    select coalesce(sum(e.prompts), 0) into v_made
    from herald.evaluation_run as e
    where e.scenario_id = p_scenario.scenario_id and e.source = 'touched'
      and e.started_at > p_now - interval '1 minute' and e.started_at <= p_now;
  end if;
  select d.candidates, d.prompts, d.suppressed into candidates, prompts, suppressed
  from herald.decide(p_scenario, herald.candidates_of(p_scenario, p_window, p_users), p_window, p_users, p_now, v_made) as d;
end
$$;
comment on function herald.run is
  'One run of one scenario for p_users over a window: candidates, decisions, prompts; see herald.decide().';
revoke all on function herald.run from public;

-- The same chapter by chapter, each in a block of its own. A scheduled run that has this scenario may take long: it is not
-- waited for, for claims wait as long.
create or replace function herald.run_by_chapter(
  p_scenario herald.scenario, p_window tstzrange, p_users uuid[], p_now timestamptz,
  out candidates integer, out prompts integer, out suppressed jsonb, out error text, out again uuid[]
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_part record;
  v_run record;
begin
  candidates := 0;
  prompts := 0;
  suppressed := '{}';
  again := '{}';
  for v_part in
    select r.chapter_id, array_agg(r.user_id) as people
    from herald.source_recipient as r
    where r.user_id = any (p_users)
      and r.organisation_id = p_scenario.organisation_id and (p_scenario.chapter_id is null or r.chapter_id = p_scenario.chapter_id)
    group by r.chapter_id
  loop
    begin
      select r.* into v_run from herald.run(p_scenario, p_window, v_part.people, p_now) as r;
      candidates := candidates + v_run.candidates;
      prompts := prompts + v_run.prompts;
      suppressed := herald.counted_together(suppressed, v_run.suppressed);
    exception when others then
      error := sqlstate || ': ' || sqlerrm;
      perform from herald.scenario as s where s.scenario_id = p_scenario.scenario_id for no key update skip locked;
      if found then
        perform herald.fall_behind(p_scenario, v_part.chapter_id, lower(p_window));
      else
        again := again || v_part.people;
      end if;
    end;
  end loop;
end
$$;
comment on function herald.run_by_chapter is
  'herald.run() for the people of each chapter by itself: one where it fails is left to the next scheduled run, and the error told; again: the people of those where a scheduled run has the scenario, for the next run for touched users.';
revoke all on function herald.run_by_chapter from public;

create or replace function herald.held_text(p_scenario herald.scenario, p_suppressed jsonb)
returns text
language sql stable
set search_path = pg_catalog, pg_temp
return format('held: %s prompts would exceed max_prompts_per_run = %s; look at pgherald preview %s, then pgherald resume %s',
  p_suppressed ->> 'held', p_scenario.max_prompts_per_run, p_scenario.scenario_id, p_scenario.scenario_id);
comment on function herald.held_text is 'What a run that was held says.';
revoke all on function herald.held_text from public;

-- The scheduled run for some chapters, that begin at the same moment. Missed time is caught up, in slices, and decided on
-- as one. First for all of them together: that costs what fell due. Where that fails, or finds more than 200,000
-- candidates (be it among people outside the scenario's scope), chapter by chapter, of its own people alone: a chapter that
-- fails stays where it was, and of one that has too many the rest is for the next run. p_made: what this run made before.
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
  -- chapters that are behind may have begun before a rule that was changed since
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
  if found then
    error := v_error;
  end if;
end
$$;
comment on function herald.evaluate_chapters is
  'The scheduled run of a scenario from p_from for these chapters; null: all that are not behind. The error is that of a chapter that could not be evaluated even by itself.';
revoke all on function herald.evaluate_chapters from public;

-- The scheduled run. A scenario that another run is just evaluating is left to it. Chapters that are behind are evaluated
-- from where they are; evaluated_through moves on whatever came of it, for those who read it may not learn that from it.
-- The time-out: a transaction that holds a prompt open (an application's herald.enqueue) delays one
-- scenario, not all.
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
  -- Also while a daemon is awake: a run may make more prompts than one can send, and the others sleep.
  if v_ready and pg_notification_queue_usage() < 0.5 then
    perform pg_notify('herald', '');
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
-- prompt may still be sent. A chapter where that fails or is held keeps its place in herald.catch_up. It raises for none of
-- that, nor for a lock that it did not get, for the daemon claims in the same statement: while a scheduled run has the
-- scenario, the people of that chapter stay touched, once each. Scenarios in the shadow have nothing to send, and the
-- scheduled run counts each of their candidates once. Scenarios that none of these people belong to are passed over; what
-- waits for people who are gone is stopped by the claim.
-- p_now null: the moment at which the rows are taken.
-- Generic plans: for a few people, planning would take most of the time from a change to its push. No sequential scans,
-- for such a plan may be made while the tables are still empty.
create or replace function herald.evaluate_touched(p_limit integer default 1000, p_now timestamptz default null)
returns table (scenario_id uuid, candidates integer, prompts integer, suppressed jsonb, duration interval, error text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set lock_timeout = '5s'
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_now timestamptz;
  v_users uuid[];
  v_these uuid[];
  v_again uuid[] := '{}';
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
  -- Not the start of this transaction: whoever committed since then is among the taken, and due only now.
  v_now := coalesce(p_now, clock_timestamp());
  for v_scenario in
    select s.*
    from herald.scenario as s
    where s.mode in ('on', 'canary')
      and exists (
        select from unnest(v_users) as u (user_id)
        cross join lateral (
          select v.organisation_id, v.chapter_id
          from herald.source_recipient as v
          where v.user_id = u.user_id
          offset 0
        ) as r
        where r.organisation_id = s.organisation_id and (s.chapter_id is null or r.chapter_id = s.chapter_id)
      )
    order by s.priority desc, s.scenario_id
  loop
    v_began := clock_timestamp();
    scenario_id := v_scenario.scenario_id;
    v_lower := herald.touched_from(v_scenario, v_now);
    v_these := herald.not_held(v_scenario, v_users);
    continue when v_lower >= v_now or v_these = '{}';
    begin
      select r.*, null::text as error into v_run from herald.run(v_scenario, tstzrange(v_lower, v_now, '(]'), v_these, v_now) as r;
    exception when others then
      -- to the end of this function: whoever has one of the locks may have all, and would be waited for time and again
      perform set_config('lock_timeout', '10ms', true);
      select r.* into v_run from herald.run_by_chapter(v_scenario, tstzrange(v_lower, v_now, '(]'), v_these, v_now) as r;
      v_again := v_again || v_run.again;
    end;
    candidates := v_run.candidates;
    prompts := v_run.prompts;
    suppressed := v_run.suppressed;
    error := coalesce(v_run.error, case when suppressed ? 'held' then herald.held_text(v_scenario, suppressed) end);
    duration := clock_timestamp() - v_began;
    if candidates > 0 or error is not null then
      insert into herald.evaluation_run (scenario_id, source, started_at, evaluated, candidates, prompts, suppressed, error, duration)
      values (scenario_id, 'touched', v_now, tstzrange(v_lower, v_now, '(]'), candidates, prompts, suppressed, error, duration);
      return next;
    end if;
  end loop;
  if v_again <> '{}' then
    insert into herald.touched_user (user_id)
    select distinct u.user_id from unnest(v_again) as u (user_id);
  end if;
end
$$;
comment on function herald.evaluate_touched is
  'The event-driven run: evaluates up to p_limit touched rows'' people in every scenario; one row per scenario that found somebody or failed.';
revoke all on function herald.evaluate_touched from public;
grant execute on function herald.evaluate_touched to herald_daemon;
