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
  v_problem text;
begin
  case v_type
    when 'integer', 'number' then
      -- 30.0 is no integer to the evaluators' casts
      if jsonb_typeof(p_value) <> 'number' or (v_type = 'integer' and p_value #>> '{}' !~ '^-?\d+$') then
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
      if length(p_value #>> '{}') > 200 then
        return 'must be a text of at most 200 characters';
      end if;
      -- terminals obey the rest
      if p_value #>> '{}' ~ '[\u0001-\u001f\u007f-\u009f]' then
        return 'must be a text of visible characters, on one line';
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
      end loop;
      if p_schema -> 'rising' = 'true' then
        for v_place in 1 .. jsonb_array_length(p_value) - 1
        loop
          if (p_value ->> v_place)::numeric <= (p_value ->> (v_place - 1))::numeric then
            return 'must rise from each number to the next';
          end if;
        end loop;
      end if;
    else
      null;
  end case;
  return null;
end
$$;
comment on function herald.value_problem is
  'What is wrong with a value by a JSON Schema property (type, minimum, maximum, enum, pattern, items, minItems, maxItems, and rising: true, of a list of numbers); null when nothing.';
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
      return format('parameter "%s" needs %s', v_name,
        (select string_agg(format('"%s"', d.value), ', ') from jsonb_array_elements_text(p_schema -> 'dependentRequired' -> v_name) as d));
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

-- Adds a scenario type, or replaces one. Its functions run with the engine's rights (herald_owner's), or as their owner
-- where they are SECURITY DEFINER: never more than its registrar chose.
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
  v_bad text;
begin
  if p_scenario_type is null or p_scenario_type !~ '^[a-z][a-z0-9_]{0,39}$' then
    raise exception 'a scenario type cannot be called "%"', p_scenario_type
      using errcode = 'invalid_parameter_value', hint = 'up to 40 lower-case letters, digits and underscores: birthday';
  end if;
  if p_evaluator is null or jsonb_typeof(p_description) is distinct from 'object' or jsonb_typeof(p_params_schema) is distinct from 'object' then
    raise exception 'scenario type "%" needs an evaluator, a description and a params_schema', p_scenario_type
      using errcode = 'invalid_parameter_value',
            hint = 'register_scenario_type(''birthday'', ''public.due_birthday'', ''{"en": "Send on the birthday"}'', ''{"type": "object", "properties": {}}'')';
  end if;
  select format('%s %s has the wrong form', w.what, w.function) into v_bad
  from (
    values
      ('evaluator', p_evaluator, 'herald.scenario, tstzrange, uuid[]', 'herald.candidate'::regtype, true),
      ('still_due function', p_still_due, 'herald.scenario, herald.candidate[], timestamp with time zone', 'herald.candidate'::regtype, true),
      ('why function', p_why, 'herald.scenario, uuid, timestamp with time zone', 'text'::regtype, false)
  ) as w (what, function, arguments, returns, returns_set)
  join pg_proc as p on p.oid = w.function
  where oidvectortypes(p.proargtypes) <> w.arguments or p.prorettype <> w.returns or p.proretset <> w.returns_set or p.provolatile = 'v';
  if v_bad is not null then
    raise exception '%', v_bad
      using errcode = 'invalid_function_definition',
            hint = 'evaluator: (p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null) returns setof herald.candidate; '
              'still_due: (herald.scenario, herald.candidate[], timestamptz) returns setof herald.candidate; '
              'why: (herald.scenario, uuid, timestamptz) returns text; each stable';
  end if;
  select p.oid::regprocedure::text into v_bad
  from pg_proc as p
  where p.oid in (p_evaluator, p_still_due, p_why)
    and not (has_function_privilege('herald_owner', p.oid, 'execute') and has_schema_privilege('herald_owner', p.pronamespace, 'usage'));
  if v_bad is not null then
    raise exception 'herald_owner may not call %', v_bad
      using errcode = 'insufficient_privilege',
            hint = format('grant usage on its schema to herald_owner; grant execute on function %s to herald_owner', v_bad);
  end if;
  if not p_description ? 'en' then
    raise exception 'the description of scenario type "%" has no sentence in English', p_scenario_type
      using errcode = 'invalid_parameter_value', hint = 'give at least {"en": "Send {days:day|days} after ..."}';
  end if;
  select format('the sentence "%s" of scenario type "%s" is not a text', d.key, p_scenario_type) into v_bad
  from jsonb_each(p_description) as d
  where jsonb_typeof(d.value) <> 'string' or d.value = '""'
  limit 1;
  if v_bad is not null then
    raise exception '%', v_bad
      using errcode = 'invalid_parameter_value', hint = 'leave out a language that has none: it is answered in English';
  end if;
  select format('the sentence "%s" of scenario type "%s" names the unknown parameter "%s"', d.key, p_scenario_type, m.names[1]) into v_bad
  from jsonb_each_text(p_description) as d
  cross join lateral regexp_matches(d.value, '[[{](\w+)', 'g') as m (names)
  where p_params_schema ? 'properties' and not p_params_schema -> 'properties' ? m.names[1]
  limit 1;
  if v_bad is not null then
    raise exception '%', v_bad
      using errcode = 'invalid_parameter_value', hint = 'list it in the properties of p_params_schema';
  end if;
  -- what is left of a sentence without its placeholders, and then without its options
  select format('a brace or bracket in the sentence "%s" of scenario type "%s" is not closed', d.key, p_scenario_type) into v_bad
  from jsonb_each_text(p_description) as d
  where regexp_replace(regexp_replace(d.value, '\{\w+(:[^{}]*|#)?\}', '', 'g'), '\[\w+:[^][]*\]', '', 'g') ~ '[][{}]'
  limit 1;
  if v_bad is not null then
    raise exception '%', v_bad
      using errcode = 'invalid_parameter_value', hint = 'placeholders are {name}, {name#}, {name:day|days}, and [name:text if it is set|text if not]';
  end if;
  -- herald.value_problem() would let anything pass
  select format('parameter "%s" of scenario type "%s" has the unknown type %s', k.key, p_scenario_type, s.schema ->> 'type') into v_bad
  from jsonb_each(case jsonb_typeof(p_params_schema -> 'properties') when 'object' then p_params_schema -> 'properties' else '{}' end) as k
  cross join lateral (values (k.value), (k.value -> 'items')) as s (schema)
  where coalesce(s.schema ->> 'type', 'string') not in ('integer', 'number', 'boolean', 'string', 'array')
  limit 1;
  if v_bad is not null then
    raise exception '%', v_bad
      using errcode = 'invalid_parameter_value', hint = 'integer, number, boolean, string, or array with items of one of these; none to accept anything';
  end if;
  -- else it would be found out by whoever adds a scenario
  begin
    perform herald.params_problem(p_params_schema, coalesce(p_params_schema #> '{examples,0}', '{}'));
  exception when data_exception then
    raise exception 'the params_schema of scenario type "%" makes no sense: %', p_scenario_type, sqlerrm
      using errcode = 'invalid_parameter_value',
            hint = 'required is a list of names, dependentRequired an object of such lists, minimum and maximum are numbers, pattern is a regular expression';
  end;
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

-- What is wrong with a scenario as a row; null when nothing. The constraints of the table hold the same, in fewer words.
create or replace function herald.scenario_problem(p_scenario herald.scenario)
returns text
language sql stable
set search_path = pg_catalog, pg_temp
return case
  when p_scenario.organisation_id is null then 'organisation_id is missing'
  when p_scenario.name is null or length(p_scenario.name) not between 1 and 200
    or p_scenario.name ~ '[\u0001-\u001f\u007f-\u009f]'
    then 'name must be a text of 1 to 200 characters, all visible and on one line'
  when p_scenario.title_key !~ '^[A-Za-z0-9_.-]{1,100}$' then 'title_key must be a key such as "inactivity_title", not a text'
  when p_scenario.body_key !~ '^[A-Za-z0-9_.-]{1,100}$' then 'body_key must be a key such as "inactivity_body", not a text'
  when p_scenario.presentation not in ('alert', 'data') then 'presentation must be alert or data'
  when p_scenario.devices not in ('latest', 'all') then 'devices must be latest or all'
  -- what lies thousands of years from now is an error to claims and runs, which are those of all scenarios; and so is what
  -- only adds up to less
  when p_scenario.cooldown < interval '0' or p_scenario.cooldown > interval '36500 days'
    or least(extract(year from p_scenario.cooldown), extract(month from p_scenario.cooldown), extract(day from p_scenario.cooldown), extract(hour from p_scenario.cooldown)) < 0
    then 'cooldown must lie between 0 and 36500 days, no part of it negative, for example 7 days'
  when (p_scenario.quiet_from is null) <> (p_scenario.quiet_until is null) then 'quiet_from and quiet_until go together, for example 21:00 and 08:00'
  when p_scenario.quiet_from = p_scenario.quiet_until then 'quiet_from and quiet_until must differ, for example 21:00 and 08:00'
  when p_scenario.mode not in ('off', 'shadow', 'canary', 'on') then 'mode must be off, shadow, canary or on'
  when p_scenario.mode = 'canary' and p_scenario.canary_percent is null then 'mode canary needs canary_percent, for example 10'
  when p_scenario.canary_percent not between 0 and 100 then 'canary_percent must lie between 0 and 100'
  when p_scenario.jitter not between interval '0' and interval '1 hour' then 'jitter must lie between 0 and 1 hour'
  when p_scenario.expires_after <= interval '0' or p_scenario.expires_after > interval '36500 days'
    or least(extract(year from p_scenario.expires_after), extract(month from p_scenario.expires_after), extract(day from p_scenario.expires_after), extract(hour from p_scenario.expires_after)) < 0
    then 'expires_after must be longer than nothing and at most 36500 days, no part of it negative, for example 3 days'
  when p_scenario.on_unknown not in ('drop', 'resend') then 'on_unknown must be drop or resend'
  when p_scenario.max_prompts_per_run <= 0 then 'max_prompts_per_run must be at least 1, or null for no limit'
  when not isfinite(p_scenario.evaluated_through) then 'evaluated_through must be a moment, not infinity'
end;
comment on function herald.scenario_problem is 'What is wrong with the columns of a scenario, but for its params; null when nothing.';
revoke all on function herald.scenario_problem from public;

create or replace function herald.in_days(p_duration interval)
returns interval
language sql immutable
set search_path = pg_catalog, pg_temp
return p_duration
  - make_interval(years => extract(year from p_duration)::integer, months => extract(month from p_duration)::integer)
  + make_interval(days => 365 * extract(year from p_duration)::integer + 30 * extract(month from p_duration)::integer);
comment on function herald.in_days is 'A duration with 30 days for a month and 365 for a year.';
revoke all on function herald.in_days from public;

-- Fills in what may be left out, and refuses what makes no sense. Months and years become days: the windows of the unique
-- constraint need a length that is the same at any time of the year, and herald.describe() says how long it is.
create or replace function herald.checked_scenario(p_scenario herald.scenario)
returns herald.scenario
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema jsonb;
  v_problem text;
begin
  select t.params_schema into v_schema
  from herald.scenario_type as t
  where t.scenario_type = p_scenario.scenario_type;
  if not found then
    raise exception 'scenario "%": %', coalesce(p_scenario.name, '(without a name)'),
      coalesce('unknown scenario type "' || p_scenario.scenario_type || '"', 'scenario_type is missing')
      using errcode = 'foreign_key_violation', column = 'scenario_type', table = 'scenario', schema = 'herald',
            hint = 'known: ' || (select string_agg(t.scenario_type, ', ' order by t.scenario_type) from herald.scenario_type as t);
  end if;
  v_problem := herald.params_problem(v_schema, p_scenario.params);
  if v_problem is not null then
    raise exception 'scenario "%" of type %: %', coalesce(p_scenario.name, '(without a name)'), p_scenario.scenario_type, v_problem
      using errcode = 'check_violation', column = 'params', table = 'scenario', schema = 'herald',
            hint = 'for example ' || coalesce(v_schema #>> '{examples,0}', '{}');
  end if;
  p_scenario.title_key := coalesce(p_scenario.title_key, p_scenario.scenario_type || '_title');
  p_scenario.body_key := coalesce(p_scenario.body_key, p_scenario.scenario_type || '_body');
  v_problem := herald.scenario_problem(p_scenario);
  if v_problem is null then
    p_scenario.cooldown := herald.in_days(p_scenario.cooldown);
    p_scenario.expires_after := herald.in_days(p_scenario.expires_after);
    v_problem := herald.scenario_problem(p_scenario);  -- to Postgres, 101 years were less than 36500 days
  end if;
  if v_problem is not null then
    raise exception 'scenario "%" of type %: %', coalesce(p_scenario.name, '(without a name)'), p_scenario.scenario_type, v_problem
      using errcode = case when p_scenario.organisation_id is null or p_scenario.name is null then 'not_null_violation' else 'check_violation' end,
            column = split_part(v_problem, ' ', 1), table = 'scenario', schema = 'herald',
            hint = 'the columns are explained by \d+ herald.scenario';
  end if;
  return p_scenario;
end
$$;
comment on function herald.checked_scenario is 'A scenario with what may be left out filled in; an error that names what is wrong with it.';
revoke all on function herald.checked_scenario from public;

-- Keeps the moments a scenario counts from. A new or re-enabled one starts from now, unless the same statement says
-- otherwise; a changed rule, from where the last run ended, chapter by chapter; the engine itself only ever moves
-- evaluated_through forward.
create or replace function herald.check_scenario()
returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_expired timestamptz;
begin
  if tg_op = 'INSERT' then
    new := herald.checked_scenario(new);
    new.evaluated_through := coalesce(new.evaluated_through, now());
    new.evaluated_from := new.evaluated_through;
    new.started_at := now();
    return new;
  end if;
  -- a run updates the row each minute, and none of these
  if (new.scenario_type, new.organisation_id, new.chapter_id, new.name, new.params, new.title_key, new.body_key, new.presentation, new.devices,
      new.cooldown, new.quiet_from, new.quiet_until, new.mode, new.canary_percent, new.jitter, new.expires_after, new.on_unknown,
      new.max_prompts_per_run, isfinite(new.evaluated_through))
    is distinct from
      (old.scenario_type, old.organisation_id, old.chapter_id, old.name, old.params, old.title_key, old.body_key, old.presentation, old.devices,
      old.cooldown, old.quiet_from, old.quiet_until, old.mode, old.canary_percent, old.jitter, old.expires_after, old.on_unknown,
      old.max_prompts_per_run, true)
  then
    -- keys that were left out are those of the type
    if new.scenario_type <> old.scenario_type then
      new.title_key := nullif(new.title_key, old.scenario_type || '_title');
      new.body_key := nullif(new.body_key, old.scenario_type || '_body');
    end if;
    new := herald.checked_scenario(new);
  end if;
  if old.mode = 'off' and new.mode <> 'off' then
    if new.evaluated_through = old.evaluated_through then
      new.evaluated_through := now();
    end if;
    new.evaluated_from := new.evaluated_through;
    new.started_at := now();
    delete from herald.catch_up as c
    where c.scenario_id = new.scenario_id;
  elsif new.evaluated_through < old.evaluated_through then
    -- Set back. What had expired already stays so, unless the new start lies further back than that.
    new.evaluated_from := least(new.evaluated_through, greatest(old.evaluated_from, now() - new.expires_after));
    new.started_at := now();
    -- The same for a chapter that has been behind for longer.
    v_expired := least(new.evaluated_from, now() - new.expires_after);
    update herald.catch_up as c
    set evaluated_through = greatest(c.evaluated_through, v_expired), catch_up_from = greatest(c.catch_up_from, v_expired)
    where c.scenario_id = new.scenario_id and least(c.evaluated_through, c.catch_up_from) < v_expired;
  elsif (new.scenario_type, new.organisation_id, new.chapter_id, new.params, new.mode, new.canary_percent)
    is distinct from (old.scenario_type, old.organisation_id, old.chapter_id, old.params, old.mode, old.canary_percent)
  then
    -- what was due before was decided on by the old rule
    new.evaluated_from := greatest(old.evaluated_from, new.evaluated_through);
    update herald.catch_up as c
    set catch_up_from = c.evaluated_through
    where c.scenario_id = new.scenario_id and c.catch_up_from < c.evaluated_through;
  end if;
  return new;
end
$$;
comment on function herald.check_scenario is
  'Trigger: refuses a scenario that makes no sense; a new or re-enabled one starts from now, a changed rule from the last run.';
revoke all on function herald.check_scenario from public;

-- Prompts are the memory of who was told of what, so their scenario stays as long as they do. The foreign key would refuse
-- as well, in words about tables that a coordinator has never heard of.
create or replace function herald.check_scenario_unused()
returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from herald.prompt as p where p.scenario_id = old.scenario_id) then
    raise exception 'scenario "%" has prompts, and cannot be deleted', old.name
      using errcode = 'foreign_key_violation',
        hint = 'set mode = ''off'' instead: nothing of it is sent from then on. It can be deleted when its prompts have gone, '
          'some time after the last one (herald.setting.prompt_retention)';
  end if;
  return old;
end
$$;
comment on function herald.check_scenario_unused is 'Trigger: refuses to delete a scenario that has prompts, with what to do instead.';
revoke all on function herald.check_scenario_unused from public;

-- Not `or replace`, which locks the table against every run.
do $$
declare
  v_there constant name[] := array(select t.tgname from pg_trigger as t where t.tgrelid = 'herald.scenario'::regclass);
begin
  if 'check_scenario' <> all (v_there) then
    create trigger check_scenario before insert or update on herald.scenario
    for each row execute function herald.check_scenario();
  end if;
  if 'check_scenario_unused' <> all (v_there) then
    create trigger check_scenario_unused before delete on herald.scenario
    for each row execute function herald.check_scenario_unused();
  end if;
end
$$;

-- Here, not in the migration that made them: that one is applied once.
comment on column herald.scenario.scenario_id is 'What prompts, runs and history name it by.';
comment on column herald.scenario.scenario_type is 'The kind of due condition: one of herald.scenario_type.';
comment on column herald.scenario.organisation_id is 'Whose people it is for, as in herald.source_recipient.';
comment on column herald.scenario.name is 'What coordinators and operators call it, 1 to 200 characters; never sent.';
comment on column herald.scenario.params is 'What its type needs to know, such as {"days": 30}: herald.scenario_type.params_schema says what.';
comment on column herald.scenario.presentation is 'alert: shows a notification; data: only wakes the app.';
comment on column herald.scenario.devices is 'latest: to the device of a person that was seen last; all: to each.';
comment on column herald.scenario.quiet_until is 'End of the quiet hours in the time zone of the person; what waited goes out then. Null, as quiet_from: none.';
comment on column herald.scenario.canary_percent is 'Per cent of the people, 0 to 100, that mode canary sends to: always the same ones.';
comment on column herald.scenario.created_at is 'When it was inserted.';
comment on column herald.setting.only_row is 'True: there is one row.';
comment on column herald.setting.prompt_retention is 'A prompt that was sent, failed, skipped or expired is deleted so long after, not before cooldown and expires_after of its scenario are over; 1 to 36500 days.';
comment on column herald.setting.history_retention is 'Rows of herald.scenario_prompt_history are deleted this long after their push; 1 to 36500 days.';
comment on column herald.setting.notification_retention is 'Rows of herald.scenario_notification are deleted this long after their push, not before the prompts nor the longest cooldown of their type; 1 to 36500 days.';
comment on column herald.setting.run_retention is 'Rows of herald.evaluation_run, and pg_cron''s of our jobs, are deleted this long after their run; 1 to 36500 days.';
comment on column herald.message_text.text_key is 'As in title_key or body_key of a scenario.';
comment on column herald.message_text.locale is 'Such as nb or en-GB.';
comment on column herald.message_text.text is 'What herald.notification_content() gives to the phone.';
