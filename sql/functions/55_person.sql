-- One person, now: for a program that evaluates and dispatches by itself (pgherald.dispatcher.evaluate_and_dispatch).

create or replace function herald.evaluate_person(p_user uuid, p_scenario_type text, p_now timestamptz default now())
returns table (scenario_id uuid, candidates integer, prompts integer, suppressed jsonb, prompt_ids uuid[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_scenario herald.scenario;
begin
  if not exists (select from herald.scenario_type as t where t.scenario_type = p_scenario_type) then
    raise exception 'unknown scenario type "%"', p_scenario_type
      using errcode = 'invalid_parameter_value',
            hint = 'known: ' || (select string_agg(t.scenario_type, ', ' order by t.scenario_type) from herald.scenario_type as t);
  end if;
  for v_scenario in
    select s.*
    from herald.scenario as s
    where s.scenario_type = p_scenario_type and s.mode <> 'off' and herald.not_held(s, array[p_user]) <> '{}'
    order by s.priority desc, s.scenario_id
  loop
    scenario_id := v_scenario.scenario_id;
    select r.candidates, r.prompts, r.suppressed into candidates, prompts, suppressed
    from herald.run(v_scenario, tstzrange(herald.touched_from(v_scenario, p_now), p_now, '(]'), array[p_user], p_now) as r;
    select array_agg(p.prompt_id) into prompt_ids
    from herald.prompt as p
    where p.user_id = p_user and p.scenario_id = v_scenario.scenario_id and p.status = 'ready' and p.not_before <= p_now;
    return next;
  end loop;
end
$$;
comment on function herald.evaluate_person is
  'Evaluates the scenarios of one type for one person, as a run for touched users does; one row each, with the prompts that may be claimed.';
revoke all on function herald.evaluate_person from public;
grant execute on function herald.evaluate_person to herald_daemon;
