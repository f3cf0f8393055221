-- The run for touched users, whose rows an app has just changed: it looks at those people alone, and back as far as a prompt may
-- still be sent. What fails is tried again chapter by chapter, as in a scheduled run.
-- Lock order: touched users, scenario row (where a chapter is held), prompts, open prompts, history. Where a chapter fails, the row
-- of the scenario comes last, and is not waited for.

-- What was due longer ago than expires_after cannot be sent any more. But what a scenario reached because it was started or set
-- back expires so long after that: while this was recent, all since the scenario's start may still be sent (see herald.expires_at).
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

-- herald.run() chapter by chapter, each in a block of its own, which may fail. One that fails is noted in herald.catch_up, and
-- for that the row of the scenario has to be locked. A scheduled run that has it locked may take long. It is not waited for, for
-- the daemon's claim would wait as long: the people of that chapter are returned (again) instead.
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

create or replace function herald.failed_just_now(p_scenario uuid, p_error_code text, p_now timestamptz)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    (
      select left(e.error, 5) = p_error_code and e.started_at > p_now - interval '1 minute'
      from herald.evaluation_run as e
      where e.scenario_id = p_scenario
      order by e.started_at desc, e.run_id desc
      limit 1
    ),
    false
  );
$$;
comment on function herald.failed_just_now is
  'Whether the last run of a scenario that was written down failed with this SQLSTATE, less than a minute before p_now.';
revoke all on function herald.failed_just_now from public;

-- The run for touched users: takes up to p_limit touched rows and evaluates just those people, looking back as far as a prompt may
-- still be sent.
-- The daemon claims in the same statement, so this must not raise: not where an evaluator fails, nor where a lock is not to be
-- had. A chapter where it fails is noted in herald.catch_up, for the next scheduled run. While a scheduled run has the scenario
-- locked that cannot be noted: the people of that chapter stay touched instead, once each. A chapter that is held is left out.
-- Not evaluated are scenarios in mode shadow (nothing is to be sent; the scheduled run counts each of their candidates once) and
-- those whose scope has none of these people. What waits for people who are gone is stopped by the claim.
-- p_now null: the moment at which the rows are taken.
-- Generic plans: for a few people, planning would take most of the time from a change to its push. No sequential scans: the plan
-- may be made while the tables are still empty, and used when they are full.
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
  -- Not now(), the start of this transaction: rows that were committed since then are among those taken, and whom they are about
  -- may have become due since then, too.
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
      -- Holds to the end of this function. Whoever has one of the locks may have all of them, and would be waited for at each.
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
      -- What fails on and on in the same way is written down once a minute: in a busy app it does so ten times a second.
      if candidates > 0 or not herald.failed_just_now(scenario_id, left(error, 5), v_now) then
        insert into herald.evaluation_run (scenario_id, source, started_at, evaluated, candidates, prompts, suppressed, error, duration)
        values (scenario_id, 'touched', v_now, tstzrange(v_lower, v_now, '(]'), candidates, prompts, suppressed, error, duration);
      end if;
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
  'The run for touched users: evaluates up to p_limit touched rows'' people in every scenario; one row per scenario that found somebody or failed.';
revoke all on function herald.evaluate_touched from public;
grant execute on function herald.evaluate_touched to herald_daemon;
