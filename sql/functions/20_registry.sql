-- Scenario types and the validation of scenarios: a bad parameter is named, with what it may be and an example.

-- One value against one JSON Schema property; null when it fits, else what it must be.
create or replace function herald.value_problem(p_schema jsonb, p_value jsonb)
returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_type text := p_schema ->> 'type';
  v_item jsonb;
  v_previous numeric;
  v_problem text;
begin
  case v_type
    when 'integer', 'number' then
      if jsonb_typeof(p_value) <> 'number' or (v_type = 'integer' and (p_value #>> '{}')::numeric % 1 <> 0) then
        return 'must be ' || case v_type when 'integer' then 'a whole number' else 'a number' end;
      end if;
      if (p_value #>> '{}')::numeric < (p_schema ->> 'minimum')::numeric then
        return 'must be at least ' || (p_schema ->> 'minimum');
      end if;
      if (p_value #>> '{}')::numeric > (p_schema ->> 'maximum')::numeric then
        return 'must be at most ' || (p_schema ->> 'maximum');
      end if;
    when 'boolean' then
      if jsonb_typeof(p_value) <> 'boolean' then
        return 'must be true or false';
      end if;
    when 'string' then
      if jsonb_typeof(p_value) <> 'string' or p_value #>> '{}' = '' then
        return 'must be a text, not empty';
      end if;
      if p_schema ? 'enum' and not p_schema -> 'enum' @> p_value then
        return 'must be one of ' || (p_schema ->> 'enum');
      end if;
      if p_schema ? 'pattern' and p_value #>> '{}' !~ (p_schema ->> 'pattern') then
        return 'must match ' || (p_schema ->> 'pattern');
      end if;
    when 'array' then
      if jsonb_typeof(p_value) <> 'array' or jsonb_array_length(p_value) < coalesce((p_schema ->> 'minItems')::integer, 0) then
        return 'must be a list' || coalesce(' of at least ' || (p_schema ->> 'minItems'), '');
      end if;
      if jsonb_array_length(p_value) > coalesce((p_schema ->> 'maxItems')::integer, 100) then
        return 'must be a list of at most ' || coalesce(p_schema ->> 'maxItems', '100');
      end if;
      for v_item in select e.value from jsonb_array_elements(p_value) as e
      loop
        v_problem := herald.value_problem(p_schema -> 'items', v_item);
        if v_problem is not null then
          return 'has an element that ' || v_problem;
        end if;
        if p_schema ->> 'order' = 'rising' and (v_item #>> '{}')::numeric <= v_previous then
          return 'must rise from element to element';
        end if;
        if p_schema ->> 'order' = 'falling' and (v_item #>> '{}')::numeric >= v_previous then
          return 'must fall from element to element';
        end if;
        v_previous := case when p_schema ? 'order' then (v_item #>> '{}')::numeric end;
      end loop;
    else
      null;
  end case;
  return null;
end
$$;
comment on function herald.value_problem is
  'What is wrong with a value by a JSON Schema property (type, minimum, maximum, enum, pattern, items, minItems, maxItems; order: rising or falling); null when nothing.';
revoke all on function herald.value_problem from public;

-- A schema without "properties" accepts any parameters.
create or replace function herald.params_problem(p_schema jsonb, p_params jsonb)
returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_properties jsonb := p_schema -> 'properties';
  v_name text;
  v_problem text;
begin
  if jsonb_typeof(p_params) is distinct from 'object' then
    return 'params must be a JSON object';
  end if;
  if v_properties is null then
    return null;
  end if;
  for v_name in select k.name from jsonb_object_keys(p_params) as k (name) where not v_properties ? k.name order by 1
  loop
    return format('unknown parameter "%s"; it takes %s', v_name,
      coalesce((select string_agg(format('"%s"', k.name), ', ' order by k.name) from jsonb_object_keys(v_properties) as k (name)), 'none'));
  end loop;
  for v_name in select r.value from jsonb_array_elements_text(coalesce(p_schema -> 'required', '[]')) as r (value)
  loop
    if coalesce(p_params -> v_name, 'null') = 'null' then
      return format('parameter "%s" is missing', v_name);
    end if;
  end loop;
  for v_name in select r.key from jsonb_each(coalesce(p_schema -> 'dependentRequired', '{}')) as r where p_params ? r.key
  loop
    if not p_params ?& array(select jsonb_array_elements_text(p_schema -> 'dependentRequired' -> v_name)) then
      return format('parameter "%s" needs %s', v_name, p_schema -> 'dependentRequired' ->> v_name);
    end if;
  end loop;
  for v_name in select k.name from jsonb_object_keys(p_params) as k (name) order by 1
  loop
    v_problem := herald.value_problem(v_properties -> v_name, p_params -> v_name);
    if v_problem is not null then
      return format('parameter "%s" %s', v_name, v_problem);
    end if;
  end loop;
  return null;
end
$$;
comment on function herald.params_problem is 'What is wrong with a scenario''s params by its type''s params_schema; null when nothing.';
revoke all on function herald.params_problem from public;

-- Adds a scenario type, or replaces one. An evaluator runs with the engine's rights, or as its owner if it is
-- SECURITY DEFINER: never more than its registrar chose.
create or replace function herald.register_scenario_type(
  p_scenario_type text,
  p_evaluator regproc,
  p_description jsonb,
  p_params_schema jsonb,
  p_still_due regproc default null,
  p_why regproc default null
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_function record;
begin
  select p.provolatile, p.proretset, p.prorettype, p.proargtypes into v_function
  from pg_proc as p
  where p.oid = p_evaluator;
  if oidvectortypes(v_function.proargtypes) is distinct from 'herald.scenario, tstzrange, uuid[]'
    or v_function.prorettype <> 'herald.candidate'::regtype or not v_function.proretset or v_function.provolatile = 'v' then
    raise exception 'evaluator % has the wrong form', p_evaluator
      using errcode = 'invalid_function_definition',
            hint = 'create function ...(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null) '
              'returns setof herald.candidate language sql stable';
  end if;
  if not p_description ? 'en' then
    raise exception 'the description of scenario type "%" has no sentence in English', p_scenario_type
      using errcode = 'invalid_parameter_value', hint = 'give at least {"en": "Send {days:day|days} after ..."}';
  end if;
  insert into herald.scenario_type (scenario_type, evaluator, still_due, why, description, params_schema)
  select p_scenario_type, q.evaluator, q.still_due, q.why, p_description, p_params_schema
  from (
    select
      max(format('%I.%I', n.nspname, p.proname)) filter (where p.oid = p_evaluator) as evaluator,
      max(format('%I.%I', n.nspname, p.proname)) filter (where p.oid = p_still_due) as still_due,
      max(format('%I.%I', n.nspname, p.proname)) filter (where p.oid = p_why) as why
    from pg_proc as p
    join pg_namespace as n on n.oid = p.pronamespace
    where p.oid in (p_evaluator, p_still_due, p_why)
  ) as q
  on conflict (scenario_type) do update
  set evaluator = excluded.evaluator, still_due = excluded.still_due, why = excluded.why,
    description = excluded.description, params_schema = excluded.params_schema;
end
$$;
comment on function herald.register_scenario_type is
  'Adds or replaces a scenario type: its evaluator, sentence templates by locale, JSON Schema of its params, and optionally still_due and why functions.';
revoke all on function herald.register_scenario_type from public;

-- Validates a scenario and keeps the moments it counts from. A new, re-enabled or re-parametrised type starts from
-- now, unless the same statement says otherwise; the engine itself only ever moves evaluated_through forward.
create or replace function herald.check_scenario()
returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema jsonb;
  v_problem text;
begin
  select t.params_schema into v_schema
  from herald.scenario_type as t
  where t.scenario_type = new.scenario_type;
  if not found then
    raise exception 'scenario "%": unknown scenario type "%"', new.name, new.scenario_type
      using errcode = 'foreign_key_violation',
            hint = 'known: ' || (select string_agg(t.scenario_type, ', ' order by t.scenario_type) from herald.scenario_type as t);
  end if;
  v_problem := herald.params_problem(v_schema, new.params);
  if v_problem is not null then
    raise exception 'scenario "%" of type %: %', new.name, new.scenario_type, v_problem
      using errcode = 'check_violation', column = 'params', table = 'scenario', schema = 'herald',
            hint = 'for example ' || coalesce(v_schema #>> '{examples,0}', '{}');
  end if;
  new.title_key := coalesce(new.title_key, new.scenario_type || '_title');
  new.body_key := coalesce(new.body_key, new.scenario_type || '_body');
  if tg_op = 'INSERT' then
    new.evaluated_through := coalesce(new.evaluated_through, now());
    new.evaluated_from := new.evaluated_through;
    new.started_at := now();
  elsif new.evaluated_through < old.evaluated_through then
    new.evaluated_from := least(new.evaluated_through, old.evaluated_from);
    new.started_at := now();
  elsif old.mode = 'off' and new.mode <> 'off' then
    if new.evaluated_through = old.evaluated_through then
      new.evaluated_through := now();
    end if;
    new.evaluated_from := new.evaluated_through;
    new.started_at := now();
  end if;
  return new;
end
$$;
comment on function herald.check_scenario is 'Trigger: validates params against the type''s schema; a new or re-enabled scenario starts from now.';
revoke all on function herald.check_scenario from public;

-- Not `or replace`, which locks the table against every run.
do $$
begin
  if not exists (select from pg_trigger as t where t.tgrelid = 'herald.scenario'::regclass and t.tgname = 'check_scenario') then
    create trigger check_scenario before insert or update on herald.scenario
    for each row execute function herald.check_scenario();
  end if;
end
$$;
