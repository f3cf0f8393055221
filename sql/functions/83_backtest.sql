-- Who would have got it: candidates of the past, and which of them the cooldown would have let through had the scenario
-- run all that time, each minute. Evaluators tell who was due then; opt-outs count from when they were made; whether a
-- person is active is as it is today, and quiet hours, devices and caps are left aside.

create or replace function herald.backtested(p_scenario herald.scenario, p_from timestamptz, p_to timestamptz)
returns table (kind text, day date, user_id uuid, candidates integer, sent integer)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
declare
  c_most constant integer := 1000000;
  c_people constant integer := 20;
begin
  if p_from is null or p_to is null or not isfinite(p_from) or not isfinite(p_to) or p_from >= p_to then
    raise exception 'a backtest needs a time that begins before it ends'
      using errcode = 'invalid_parameter_value', hint = 'for example p_from => now() - interval ''90 days'', p_to => now()';
  end if;
  return query
  with candidate as (
    select c.user_id, c.activity_ref, c.due_at
    from unnest(herald.visible_candidates(p_scenario, p_from, p_to, c_most)) as c
    join herald.source_recipient as r on r.user_id = c.user_id
    where r.organisation_id = p_scenario.organisation_id and (p_scenario.chapter_id is null or r.chapter_id = p_scenario.chapter_id)
  ), decided as materialized (
    select d.user_id, (d.due_at at time zone 'UTC')::date as day, d.passed
    from herald.simulated(array(select row(c.user_id, c.activity_ref, c.due_at)::herald.candidate from candidate as c), p_scenario) as d
  ), by_day as (
    select d.day, count(*)::integer as candidates, (count(*) filter (where d.passed))::integer as sent
    from decided as d
    group by d.day
  ), by_person as (
    select d.user_id, count(*)::integer as candidates, (count(*) filter (where d.passed))::integer as sent
    from decided as d
    group by d.user_id
    order by 3 desc, 2 desc, 1
    limit c_people
  )
  select 'day', g.day::date, null::uuid, coalesce(b.candidates, 0), coalesce(b.sent, 0)
  from generate_series((p_from at time zone 'UTC')::date, (p_to at time zone 'UTC')::date, interval '1 day') as g (day)
  left join by_day as b on b.day = g.day::date
  union all
  select 'person', null, p.user_id, p.candidates, p.sent
  from by_person as p
  order by 1, 2, 5 desc, 4 desc, 3;
end
$$;
comment on function herald.backtested is 'The rows of herald.backtest(), for a caller that may read them.';
revoke all on function herald.backtested from public;

-- Person by person, in the order of time: a push unless the last one is less than a cooldown ago, or of the same UTC day. What
-- is due exactly a cooldown after the last one was due comes too early: that push went out a moment later.
-- Of what falls due within the same minute, one run decides: the latest.
create or replace function herald.simulated(p_candidates herald.candidate[], p_scenario herald.scenario)
returns table (user_id uuid, due_at timestamptz, passed boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
  v_candidate record;
  v_user uuid;
  v_last timestamptz;
  v_minute timestamptz;
begin
  for v_candidate in
    select c.user_id, c.due_at, date_trunc('minute', c.due_at) as minute,
      r.is_active is true and not exists (
        select from herald.opt_out as o
        where o.user_id = c.user_id and (o.scenario_type = p_scenario.scenario_type or o.scenario_type is null) and o.opted_out_at <= c.due_at
      ) and (p_scenario.mode <> 'canary' or herald.in_canary(p_scenario.scenario_id, c.user_id, p_scenario.canary_percent)) as wanted
    from unnest(p_candidates) as c
    left join herald.source_recipient as r on r.user_id = c.user_id
    order by c.user_id, minute, c.due_at desc, length(c.activity_ref) desc, c.activity_ref desc
  loop
    if v_user is distinct from v_candidate.user_id then
      v_user := v_candidate.user_id;
      v_last := '-infinity';
      v_minute := '-infinity';
    end if;
    user_id := v_candidate.user_id;
    due_at := v_candidate.due_at;
    passed := v_candidate.wanted and v_candidate.minute > v_minute and v_last < v_candidate.due_at - p_scenario.cooldown
      and v_last < date_trunc('day', v_candidate.due_at);
    if passed then
      v_last := v_candidate.due_at;
      v_minute := v_candidate.minute;
    end if;
    return next;
  end loop;
end
$$;
comment on function herald.simulated is 'Which candidates the cooldown would have let through, had each been decided on when it was due.';
revoke all on function herald.simulated from public;

create or replace function herald.backtest(p_scenario uuid, p_from timestamptz, p_to timestamptz default now())
returns table (kind text, day date, user_id uuid, candidates integer, sent integer)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select b.kind, b.day, b.user_id, b.candidates, b.sent
  from herald.backtested(herald.scenario_for_caller(p_scenario), p_from, p_to) as b;
$$;
comment on function herald.backtest is
  'Candidates and simulated pushes of (p_from, p_to]: one row a day (kind day, UTC), then the 20 people most often reached (kind person). Writes nothing.';
revoke all on function herald.backtest from public;
grant execute on function herald.backtest to authenticated, service_role, herald_daemon, herald_reader;

create or replace function herald.backtest_definition(p_definition jsonb, p_from timestamptz, p_to timestamptz default now())
returns table (kind text, day date, user_id uuid, candidates integer, sent integer)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select b.kind, b.day, b.user_id, b.candidates, b.sent
  from herald.backtested(herald.definition_for_caller(p_definition, now()), p_from, p_to) as b;
$$;
comment on function herald.backtest_definition is 'The backtest of a scenario not yet saved, see herald.backtest().';
revoke all on function herald.backtest_definition from public;
grant execute on function herald.backtest_definition to authenticated, service_role, herald_daemon, herald_reader;
