-- Who would get it: the same candidates and the same gates as a run, and nothing written. Coordinators see the people of
-- their own chapters only, whatever the scenario covers.

-- A definition as the API sends it becomes a scenario as an insert would make it: the table's own defaults, then the
-- same checks.
create or replace function herald.scenario_from(p_definition jsonb, p_now timestamptz)
returns herald.scenario
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_scenario herald.scenario;
  v_defaults jsonb;
  v_bad text;
  v_message text;
begin
  if jsonb_typeof(p_definition) is distinct from 'object' then
    raise exception 'a definition is a JSON object'
      using errcode = 'invalid_parameter_value',
            hint = '{"scenario_type": "inactivity", "organisation_id": "<uuid>", "name": "quiet mentors", "params": {"days": 30}}';
  end if;
  select k.name into v_bad
  from jsonb_object_keys(p_definition) as k (name)
  where not exists (
    select from pg_attribute as a
    where a.attrelid = 'herald.scenario'::regclass and a.attname = k.name and a.attnum > 0 and not a.attisdropped
  )
  order by k.name
  limit 1;
  if v_bad is not null then
    raise exception 'definition: unknown column "%"', v_bad
      using errcode = 'undefined_column', hint = 'the columns are explained by \d+ herald.scenario';
  end if;
  -- The expressions are the catalog's own.
  execute (
    select format('select jsonb_build_object(%s)', string_agg(format('%L, %s', a.attname, pg_get_expr(d.adbin, d.adrelid)), ', '))
    from pg_attribute as a
    join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = 'herald.scenario'::regclass
  ) into v_defaults;
  begin
    v_scenario := jsonb_populate_record(null::herald.scenario, v_defaults || p_definition || '{"evaluated_from": null}');
  exception when data_exception then
    get stacked diagnostics v_message = message_text;
    raise exception 'definition: %', v_message
      using errcode = 'invalid_parameter_value', hint = 'the columns are explained by \d+ herald.scenario';
  end;
  v_scenario := herald.checked_scenario(v_scenario);
  -- null is for who called to refuse
  v_scenario.started_at := coalesce(p_now, now());
  v_scenario.evaluated_from := '-infinity';
  select a.attname into v_bad
  from pg_attribute as a
  where a.attrelid = 'herald.scenario'::regclass and a.attnum > 0 and not a.attisdropped and a.attnotnull
    and to_jsonb(v_scenario) -> a.attname = 'null'
  order by a.attnum
  limit 1;
  if v_bad is not null then
    raise exception 'definition: % is missing', v_bad
      using errcode = 'not_null_violation', hint = 'leave it out to get its default';
  end if;
  return v_scenario;
end
$$;
comment on function herald.scenario_from is 'The scenario that an insert of this definition would make; an error that names what is wrong.';
revoke all on function herald.scenario_from from public;

-- A definition that the caller might save: staff any, a coordinator what the policy coordinator_insert lets in.
create or replace function herald.definition_for_caller(p_definition jsonb, p_now timestamptz)
returns herald.scenario
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_scenario constant herald.scenario := herald.scenario_from(p_definition, p_now);
begin
  if not herald.is_staff() and not exists (
    select from herald.my_scopes() as s
    where s.chapter_id = v_scenario.chapter_id
      and (s.organisation_id = v_scenario.organisation_id or s.organisation_id is null)
  ) then
    raise exception 'definition: chapter_id must be a chapter that you coordinate, of organisation_id'
      using errcode = 'insufficient_privilege', hint = 'set both to those of your chapter';
  end if;
  return v_scenario;
end
$$;
comment on function herald.definition_for_caller is 'The scenario of a definition that the caller might save; 42501 for anybody else''s chapter.';
revoke all on function herald.definition_for_caller from public;

-- Whom the evaluators look at for the caller: what they find among others, or fail on, is not for a coordinator to learn,
-- not even from an error.
create or replace function herald.my_people()
returns uuid[]
language sql stable
set search_path = pg_catalog, pg_temp
return case
  when not herald.is_staff() then (
    select coalesce(array_agg(r.user_id), '{}') from herald.source_recipient as r where r.chapter_id in (select herald.my_chapters())
  )
end;
comment on function herald.my_people is 'The people of the caller''s chapters; null for staff: everybody.';
revoke all on function herald.my_people from public;

-- Whether the caller may learn about these people: staff about all, coordinators about those of their own chapters.
create or replace function herald.visible_people(p_users uuid[])
returns setof uuid
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select u.user_id
  from unnest(p_users) as u (user_id)
  where (select herald.is_staff())
  union
  select r.user_id
  from herald.source_recipient as r
  where r.user_id = any (p_users) and r.chapter_id in (select herald.my_chapters());
$$;
comment on function herald.visible_people is 'Those of these people whom the caller may learn about.';
revoke all on function herald.visible_people from public;

-- The functions of a scenario type may meet rows of anybody before they leave them out, and their error may quote them. To be
-- called where it is handled, and then `raise`, which staff get to.
create or replace function herald.mask_failure(p_scenario_type text, p_sqlstate text)
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if not herald.is_staff() then
    raise exception 'a function of scenario type % fails with %', p_scenario_type, p_sqlstate
      using errcode = p_sqlstate, hint = 'the same call as herald_reader or the database''s owner says why';
  end if;
end
$$;
comment on function herald.mask_failure is
  'Raises, to anybody but staff, an error in place of one that a function of a scenario type met: its code without its text.';
revoke all on function herald.mask_failure from public;

create or replace function herald.visible_candidates(p_scenario herald.scenario, p_from timestamptz, p_to timestamptz, p_most integer)
returns herald.candidate[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_candidates herald.candidate[];
  v_through timestamptz;
begin
  begin
    select c.candidates, c.through into v_candidates, v_through
    from herald.candidates_between(p_scenario, p_from, p_to, p_most, herald.my_people()) as c;
  exception when others then
    perform herald.mask_failure(p_scenario.scenario_type, sqlstate);
    raise;
  end;
  if v_through < p_to then
    raise exception 'the time from % to % holds more than % candidates', p_from, p_to, p_most
      using errcode = 'program_limit_exceeded', hint = 'ask for a shorter time';
  end if;
  return array(
    select c
    from unnest(v_candidates) as c
    where c.user_id in (
      select v.user_id
      from herald.visible_people(array(select distinct d.user_id from unnest(v_candidates) as d)) as v (user_id)
    )
  );
end
$$;
comment on function herald.visible_candidates is
  'The candidates of (p_from, p_to] whom the caller may learn about; refuses more than p_most. What an evaluator fails on, only staff are told.';
revoke all on function herald.visible_candidates from public;

create or replace function herald.previewed(p_scenario herald.scenario, p_now timestamptz, p_window interval)
returns table (user_id uuid, activity_ref text, due_at timestamptz, decision text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
declare
  c_most constant integer := 200000;
  v_candidates herald.candidate[];
begin
  if p_now is null or not isfinite(p_now) or p_window is null or p_window <= interval '0' or p_window > interval '366 days' then
    raise exception 'a preview needs a moment and a window of up to a year'
      using errcode = 'invalid_parameter_value', hint = 'for example p_now => now(), p_window => ''7 days''';
  end if;
  if p_scenario.mode = 'off' then
    p_scenario.mode := 'on';
  end if;
  v_candidates := herald.visible_candidates(p_scenario, p_now - p_window, p_now, c_most);
  begin
    return query
    select g.user_id, g.activity_ref, g.due_at, g.decision
    from herald.gate(p_scenario, v_candidates, p_now) as g
    order by g.due_at, g.user_id, g.activity_ref;
  exception when others then
    perform herald.mask_failure(p_scenario.scenario_type, sqlstate);
    raise;
  end;
end
$$;
comment on function herald.previewed is 'The candidates of (p_now - p_window, p_now] and what becomes of each at p_now; one that is off counts as on.';
revoke all on function herald.previewed from public;

create or replace function herald.preview(p_scenario uuid, p_now timestamptz default now(), p_window interval default '7 days')
returns table (user_id uuid, activity_ref text, due_at timestamptz, decision text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select v.user_id, v.activity_ref, v.due_at, v.decision
  from herald.previewed(herald.scenario_for_caller(p_scenario), p_now, p_window) as v;
$$;
comment on function herald.preview(uuid, timestamptz, interval) is
  'Who became due in (p_now - p_window, p_now], and the decision at p_now: send, or the gate. Writes nothing; coordinators see their own chapters. In psql write ''<scenario_id>''::uuid, or p_scenario => ''<scenario_id>'': the other herald.preview() takes a definition.';
revoke all on function herald.preview(uuid, timestamptz, interval) from public;
grant execute on function herald.preview(uuid, timestamptz, interval) to authenticated, service_role, herald_daemon, herald_reader;

create or replace function herald.preview(p_definition jsonb, p_now timestamptz default now(), p_window interval default '7 days')
returns table (user_id uuid, activity_ref text, due_at timestamptz, decision text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select v.user_id, v.activity_ref, v.due_at, v.decision
  from herald.previewed(herald.definition_for_caller(p_definition, p_now), p_now, p_window) as v;
$$;
comment on function herald.preview(jsonb, timestamptz, interval) is
  'The preview of a scenario not yet saved: its columns as a JSON object, checked as an insert would.';
revoke all on function herald.preview(jsonb, timestamptz, interval) from public;
grant execute on function herald.preview(jsonb, timestamptz, interval) to authenticated, service_role, herald_daemon, herald_reader;

create or replace function herald.describe_definition(p_definition jsonb, p_locale text default 'en')
returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
return herald.described(herald.definition_for_caller(p_definition, now()), p_locale);
comment on function herald.describe_definition is 'The sentence of a scenario not yet saved, see herald.describe().';
revoke all on function herald.describe_definition from public;
grant execute on function herald.describe_definition to authenticated, service_role, herald_daemon, herald_reader;
