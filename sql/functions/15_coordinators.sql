-- Which scenarios a coordinator may see and change: row-level security over the view herald.source_coordinator.
-- The set-returning helpers run once a statement (hashed subplan), not once a row.

create or replace function herald.my_chapters()
returns setof uuid
language sql stable security definer parallel safe
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
language sql stable security definer parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select distinct o.organisation_id
  from herald.my_chapters() as c (chapter_id)
  cross join lateral (
    select r.organisation_id
    from herald.source_recipient as r
    where r.chapter_id = c.chapter_id
    limit 1
  ) as o;
$$;
comment on function herald.my_organisations is 'The organisations of the chapters that the caller (JWT) coordinates.';
revoke all on function herald.my_organisations from public;
grant execute on function herald.my_organisations to authenticated, service_role;

drop policy if exists coordinator_read on herald.scenario;
create policy coordinator_read on herald.scenario for select to authenticated
  using (
    chapter_id in (select herald.my_chapters())
    or (chapter_id is null and organisation_id in (select herald.my_organisations()))
  );
drop policy if exists coordinator_insert on herald.scenario;
create policy coordinator_insert on herald.scenario for insert to authenticated
  with check (chapter_id in (select herald.my_chapters()) and organisation_id in (select herald.my_organisations()));
drop policy if exists coordinator_update on herald.scenario;
create policy coordinator_update on herald.scenario for update to authenticated
  using (chapter_id in (select herald.my_chapters()))
  with check (chapter_id in (select herald.my_chapters()) and organisation_id in (select herald.my_organisations()));
drop policy if exists coordinator_delete on herald.scenario;
create policy coordinator_delete on herald.scenario for delete to authenticated
  using (chapter_id in (select herald.my_chapters()));
drop policy if exists type_read on herald.scenario_type;
create policy type_read on herald.scenario_type for select to authenticated
  using (true);

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

create or replace function herald.may_read(p_organisation uuid, p_chapter uuid)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return
  herald.is_staff()
  or p_chapter in (select herald.my_chapters())
  or (p_chapter is null and p_organisation in (select herald.my_organisations()));
comment on function herald.may_read is 'Whether the caller may read scenarios of this organisation (chapter null) or chapter.';
comment on function herald.scenario_for_caller is 'A scenario that the caller may read; P0002 when there is none.';
revoke all on function herald.may_read from public;
revoke all on function herald.scenario_for_caller from public;
