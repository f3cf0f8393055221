-- Which scenarios a coordinator may see and change: row-level security over the view herald.source_coordinator.
-- The set-returning helpers run once a statement, not once a row; and as arrays they let the indexes be used, so that a
-- coordinator's list costs what their chapter holds, not what the table does (tests/bench/rls.py).
-- How a run went is kept out of the row of a scenario, because coordinators of several chapters may read that. evaluated_through
-- moves on with each run, whatever that met; the rest is in catch_up and evaluation_run, which are closed to clients.

-- A chapter's organisation is that of its people: null as long as it has none.
create or replace function herald.my_scopes()
returns table (organisation_id uuid, chapter_id uuid)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select o.organisation_id, c.chapter_id
  from herald.source_coordinator as c
  left join lateral (
    select r.organisation_id
    from herald.source_recipient as r
    where r.chapter_id = c.chapter_id
    limit 1
  ) as o on true
  where c.user_id = (select herald.jwt_user_id());
$$;
comment on function herald.my_scopes is 'The chapters that the caller (JWT) coordinates, each with its organisation.';
revoke all on function herald.my_scopes from public;
grant execute on function herald.my_scopes to authenticated, service_role;

create or replace function herald.my_chapters()
returns setof uuid
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.chapter_id
  from herald.source_coordinator as c
  where c.user_id = (select herald.jwt_user_id());
$$;
comment on function herald.my_chapters is 'The chapters that the caller (JWT) coordinates.';
revoke all on function herald.my_chapters from public;
grant execute on function herald.my_chapters to authenticated, service_role;

create or replace function herald.my_organisations()
returns setof uuid
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select distinct s.organisation_id
  from herald.my_scopes() as s
  where s.organisation_id is not null;
$$;
comment on function herald.my_organisations is 'The organisations of the chapters that the caller (JWT) coordinates.';
revoke all on function herald.my_organisations from public;
grant execute on function herald.my_organisations to authenticated, service_role;

-- Made where they are missing and else left alone: `create policy` locks the table against every run, and migrate must
-- not. A policy that changes is dropped by a migration, and made anew here.
do $$
declare
  v_there constant name[] := array(select p.polname from pg_policy as p where p.polrelid = 'herald.scenario'::regclass);
begin
  if 'coordinator_read' <> all (v_there) then
    create policy coordinator_read on herald.scenario for select to authenticated
      using (
        chapter_id = any (array(select herald.my_chapters()))
        or (chapter_id is null and organisation_id = any (array(select herald.my_organisations())))
      );
  end if;
  if 'coordinator_insert' <> all (v_there) then
    create policy coordinator_insert on herald.scenario for insert to authenticated
      with check (
        (organisation_id, chapter_id) in (select s.organisation_id, s.chapter_id from herald.my_scopes() as s)
        or chapter_id in (select s.chapter_id from herald.my_scopes() as s where s.organisation_id is null)
      );
  end if;
  if 'coordinator_update' <> all (v_there) then
    create policy coordinator_update on herald.scenario for update to authenticated
      using (chapter_id = any (array(select herald.my_chapters())))
      with check (
        (organisation_id, chapter_id) in (select s.organisation_id, s.chapter_id from herald.my_scopes() as s)
        or chapter_id in (select s.chapter_id from herald.my_scopes() as s where s.organisation_id is null)
      );
  end if;
  if 'coordinator_delete' <> all (v_there) then
    create policy coordinator_delete on herald.scenario for delete to authenticated
      using (chapter_id = any (array(select herald.my_chapters())));
  end if;
  if not exists (select from pg_policy as p where p.polrelid = 'herald.scenario_type'::regclass and p.polname = 'type_read') then
    create policy type_read on herald.scenario_type for select to authenticated
      using (true);
  end if;
end
$$;

-- False and never null, which a caller's `not` would let through: of no chapter, the second condition alone is null.
create or replace function herald.may_read(p_organisation uuid, p_chapter uuid)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return coalesce(
  herald.is_staff()
  or p_chapter in (select herald.my_chapters())
  or (p_chapter is null and p_organisation in (select herald.my_organisations())),
  false
);
comment on function herald.may_read is 'Whether the caller may read scenarios of this organisation (chapter null) or chapter.';
revoke all on function herald.may_read from public;

-- A scenario by id for functions that clients may call too: the same answer for one that does not exist and one of
-- another chapter.
create or replace function herald.scenario_for_caller(p_scenario uuid)
returns herald.scenario
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_scenario herald.scenario;
begin
  -- Malformed claims are refused first: after the look-up they would be only where there is such a scenario.
  perform herald.jwt_user_id() where not herald.is_staff();
  select s.* into v_scenario
  from herald.scenario as s
  where s.scenario_id = p_scenario;
  if v_scenario.scenario_id is null or not herald.may_read(v_scenario.organisation_id, v_scenario.chapter_id) then
    raise exception 'no scenario %', p_scenario
      using errcode = 'no_data_found', hint = 'select scenario_id, name from herald.scenario';
  end if;
  return v_scenario;
end
$$;
comment on function herald.scenario_for_caller is 'A scenario that the caller may read; P0002 when there is none.';
revoke all on function herald.scenario_for_caller from public;
