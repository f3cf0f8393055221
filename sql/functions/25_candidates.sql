-- From a scenario to its candidates: calls the evaluator of its type and refuses what makes no sense. Dynamic SQL over
-- names that register_scenario_type() looked up in the catalog and quoted.

-- Refuses what an evaluator must not return, and says what it was.
create or replace function herald.checked_candidates(p_scenario herald.scenario, p_window tstzrange, p_candidates herald.candidate[], p_most integer)
returns herald.candidate[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bad text;
begin
  if cardinality(p_candidates) > p_most then
    raise exception 'the evaluator of % returned more than % candidates', p_scenario.scenario_type, p_most
      using errcode = 'program_limit_exceeded', hint = 'narrow its condition, or set evaluated_through less far back';
  end if;
  select case
      when c.user_id is null then 'a null user_id'
      when coalesce(c.activity_ref, '') = '' then 'an empty activity_ref'
      when length(c.activity_ref) > 400 then 'an activity_ref of more than 400 characters'
      else 'a due_at outside the window'
    end into v_bad
  from unnest(p_candidates) as c
  where c.user_id is null or coalesce(c.activity_ref, '') = '' or length(c.activity_ref) > 400 or p_window @> c.due_at is not true
  limit 1;
  if v_bad is not null then
    raise exception 'the evaluator of % returned %', p_scenario.scenario_type, v_bad
      using errcode = 'data_exception', hint = 'user_id, activity_ref and due_at must be set, and due_at lie inside p_window';
  end if;
  return p_candidates;
end
$$;
comment on function herald.checked_candidates is 'Candidates as they are, or an error that names what an evaluator must not return.';
revoke all on function herald.checked_candidates from public;

-- EXECUTE plans with the very values of the call, and an evaluator in plain SQL is inlined into that plan: null p_users
-- vanishes, and the planner sees how narrow the window is.
create or replace function herald.candidates(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null)
returns herald.candidate[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  c_most constant integer := 1000000;
  v_evaluator text;
  v_candidates herald.candidate[];
begin
  if isempty(p_window) then
    return '{}';
  end if;
  select t.evaluator into v_evaluator
  from herald.scenario_type as t
  where t.scenario_type = p_scenario.scenario_type;
  execute format('select array_agg(row(c.user_id, c.activity_ref, c.due_at)::herald.candidate) from '
      '(select d.user_id, d.activity_ref, d.due_at from %s($1, $2, $3) as d limit %s) as c', v_evaluator, c_most + 1)
    into v_candidates
    using p_scenario, p_window, p_users;
  if v_candidates is null then
    return '{}';
  end if;
  return herald.checked_candidates(p_scenario, p_window, v_candidates, c_most);
end
$$;
comment on function herald.candidates is
  'The candidates of a scenario for a window (lower, upper], of all people or p_users; refuses nulls and moments outside the window.';
revoke all on function herald.candidates from public;

-- For a few people, right after their rows changed, planning takes longer than finding them. So the evaluators that come
-- with pgherald are named here: inlined into statements that are planned once a session, for look-ups person by person.
create or replace function herald.candidates_of(p_scenario herald.scenario, p_window tstzrange, p_users uuid[])
returns herald.candidate[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  c_most constant integer := 1000000;
  v_candidates herald.candidate[];
begin
  if isempty(p_window) then
    return '{}';
  end if;
  case (select t.evaluator from herald.scenario_type as t where t.scenario_type = p_scenario.scenario_type)
    when 'herald.due_inactivity' then
      v_candidates := array(
        select row(d.user_id, d.activity_ref, d.due_at)::herald.candidate from herald.due_inactivity(p_scenario, p_window, p_users) as d);
    when 'herald.due_milestone' then
      v_candidates := array(
        select row(d.user_id, d.activity_ref, d.due_at)::herald.candidate from herald.due_milestone(p_scenario, p_window, p_users) as d);
    when 'herald.due_expiry' then
      v_candidates := array(
        select row(d.user_id, d.activity_ref, d.due_at)::herald.candidate from herald.due_expiry(p_scenario, p_window, p_users) as d);
    when 'herald.due_follow_up' then
      v_candidates := array(
        select row(d.user_id, d.activity_ref, d.due_at)::herald.candidate from herald.due_follow_up(p_scenario, p_window, p_users) as d);
    else
      return herald.candidates(p_scenario, p_window, p_users);
  end case;
  if v_candidates = '{}' then
    return v_candidates;
  end if;
  return herald.checked_candidates(p_scenario, p_window, v_candidates, c_most);
end
$$;
comment on function herald.candidates_of is 'The candidates of a scenario for a window, of p_users; the same as herald.candidates(), by plans that a session keeps.';
revoke all on function herald.candidates_of from public;

-- Time is read in slices, so that each stays a short range of an index however much is asked for; where little is due
-- they grow. Ends early, at `through`, once there are p_most.
create or replace function herald.candidates_between(
  p_scenario herald.scenario, p_from timestamptz, p_to timestamptz, p_most integer, p_users uuid[] default null,
  out candidates herald.candidate[], out through timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_length interval := '1 day';
  v_upper timestamptz;
  v_slice herald.candidate[];
begin
  candidates := '{}';
  through := p_from;
  while through < p_to and cardinality(candidates) < p_most
  loop
    v_upper := least(through + v_length, p_to);
    v_slice := herald.candidates(p_scenario, tstzrange(through, v_upper, '(]'), p_users);
    candidates := candidates || v_slice;
    through := v_upper;
    if cardinality(v_slice) < 1000 then
      v_length := v_length * 2;
    end if;
  end loop;
end
$$;
comment on function herald.candidates_between is
  'The candidates of a scenario for (p_from, through], of all people or p_users: through is p_to, or earlier where there are p_most.';
revoke all on function herald.candidates_between from public;

-- Types without a still_due function hold for ever.
create or replace function herald.still_due(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamptz)
returns setof herald.candidate
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_still_due text;
begin
  select t.still_due into v_still_due
  from herald.scenario_type as t
  where t.scenario_type = p_scenario.scenario_type;
  if v_still_due is null then
    return query select c.user_id, c.activity_ref, c.due_at from unnest(p_candidates) as c;
  else
    return query execute format('select c.user_id, c.activity_ref, c.due_at from %s($1, $2, $3) as c', v_still_due)
      using p_scenario, p_candidates, p_now;
  end if;
end
$$;
comment on function herald.still_due is 'Those candidates whose condition still holds at p_now (a person may have become active since).';
revoke all on function herald.still_due from public;
