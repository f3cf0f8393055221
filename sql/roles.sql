-- The roles of pgherald. Run first by `pgherald migrate`, as the migrating role (CREATEROLE, not superuser).
-- Roles belong to the whole cluster: whatever exists already, made by Supabase or by another database's
-- migrate at this very moment, is taken as it is.
do $$
declare
  v_role text;
begin
  foreach v_role in array array['herald_owner', 'herald_daemon', 'herald_reader', 'anon', 'authenticated', 'service_role']
  loop
    if not exists (select from pg_catalog.pg_roles as r where r.rolname = v_role) then
      begin
        execute format('create role %I nologin', v_role);
      exception when duplicate_object or unique_violation then
        null;
      end;
    end if;
  end loop;
  -- From 16 on, the creator of a role administers it, but must grant itself the right to act as it.
  if not pg_catalog.pg_has_role(current_user, 'herald_owner', 'USAGE')
    or not pg_catalog.pg_has_role(current_user, 'herald_owner',
      case when current_setting('server_version_num')::integer >= 160000 then 'SET' else 'MEMBER' end)
  then
    begin
      execute format('grant herald_owner to %I', current_user);
    exception when insufficient_privilege then
      raise exception 'role "%" may not act as "herald_owner"', current_user
        using errcode = 'insufficient_privilege',
              hint = format('As a role with ADMIN on it, or a superuser: grant herald_owner to %I', current_user);
    end;
  end if;
  if exists (select from pg_catalog.pg_roles as r where r.rolname = 'herald_owner' and (r.rolsuper or r.rolbypassrls)) then
    raise exception 'role "herald_owner" is a superuser or bypasses row-level security'
      using errcode = 'invalid_role_specification',
            hint = 'alter role herald_owner nosuperuser nobypassrls';
  end if;
end
$$;

do $$
begin
  if not exists (select from pg_catalog.pg_namespace as n where n.nspname = 'herald') then
    if not pg_catalog.has_database_privilege(current_user, current_database(), 'CREATE') then
      raise exception 'role "%" may not create a schema in database "%"', current_user, current_database()
        using errcode = 'insufficient_privilege',
              hint = format('As the owner of the database: grant create on database %I to %I', current_database(), current_user);
    end if;
    create schema herald authorization herald_owner;
  end if;
end
$$;
