-- How the evaluators reach the tables of the app: the cost of a run must follow what became due, never the tables' size.

-- The plans of a one-minute run and of a run for one person, for each scenario that is not off. An evaluator in PL/pgSQL
-- shows nothing of its inside here. Volatile, because EXPLAIN is not allowed in any other function; it runs nothing.
create or replace function herald.sequential_scans(p_rows bigint default 10000, p_now timestamptz default now())
returns table (scenario_type text, scenario text, run text, relation text, relation_rows bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
declare
  v_scenario herald.scenario;
  v_evaluator text;
  v_run text;
  v_plan json;
begin
  for v_scenario in
    select s.*
    from herald.scenario as s
    where s.mode <> 'off'
    order by s.scenario_type, s.name, s.scenario_id
  loop
    select t.evaluator into v_evaluator
    from herald.scenario_type as t
    where t.scenario_type = v_scenario.scenario_type;
    foreach v_run in array array['scheduled', 'touched']
    loop
      begin
        execute format('explain (format json, verbose) select d.user_id, d.activity_ref, d.due_at from %s($1, $2, $3) as d', v_evaluator)
          into v_plan
          using v_scenario, tstzrange(p_now - interval '1 minute', p_now, '(]'),
            case v_run when 'touched' then array['00000000-0000-0000-0000-000000000000'::uuid] end;
      exception when others then
        return query select v_scenario.scenario_type, v_scenario.name, v_run, null::text, null::bigint;
        continue;
      end;
      return query
      select distinct v_scenario.scenario_type, v_scenario.name, v_run, c.oid::regclass::text, c.reltuples::bigint
      -- an index walked from end to end, for want of a better one, is no better; its first entry alone, as of max(), is none
      from jsonb_path_query(v_plan::jsonb,
        'strict $.** ? (@."Node Type" == "Seq Scan" || @."Node Type" like_regex "^Index (Only )?Scan" && !exists(@."Index Cond"))') as n
      join pg_namespace as s on s.nspname = n ->> 'Schema'
      join pg_class as c on c.relnamespace = s.oid and c.relname = n ->> 'Relation Name'
      where c.reltuples >= p_rows
        and n not in (select jsonb_path_query(v_plan::jsonb, 'strict $.** ? (@."Node Type" == "Limit").Plans[*] ? (!exists(@.Filter))'));
    end loop;
  end loop;
end
$$;
comment on function herald.sequential_scans is
  'Tables of p_rows rows or more that a run of a scenario would read whole (by EXPLAIN; nothing is run): an index is missing, or statistics are. relation null: the evaluator cannot even be planned.';
revoke all on function herald.sequential_scans from public;
grant execute on function herald.sequential_scans to herald_daemon, herald_reader;
