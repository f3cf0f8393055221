-- The roles of pgherald, and its schema. Run first by `pgherald migrate`, as the migrating role: CREATEROLE where a role is
-- missing, never a superuser. Roles belong to the whole cluster: whatever exists already, made by Supabase or by another
-- database's migrate at this very moment, is taken as it is.
do $$
declare
  v_role text;
  v_new boolean := current_setting('server_version_num')::integer >= 160000;
  v_admins text;
begin
  foreach v_role in array array['herald_owner', 'herald_daemon', 'herald_reader', 'anon', 'authenticated', 'service_role']
  loop
    if not exists (select from pg_catalog.pg_roles as r where r.rolname = v_role) then
      begin
        execute format('create role %I nologin', v_role);
      exception
        when duplicate_object or unique_violation then
          null;
        when insufficient_privilege then
          raise exception 'role "%" does not exist, and "%" may not create it', v_role, current_user
            using errcode = 'insufficient_privilege',
                  hint = format('As a superuser, or a role with CREATEROLE: alter role %I createrole', current_user);
      end;
    end if;
  end loop;
  if exists (select from pg_catalog.pg_roles as r where r.rolname = 'herald_owner' and (r.rolsuper or r.rolbypassrls or r.rolcanlogin)) then
    raise exception 'role "herald_owner" can log in, is a superuser or bypasses row-level security'
      using errcode = 'invalid_role_specification',
            hint = 'As a superuser: alter role herald_owner nologin nosuperuser nobypassrls';
  end if;
  -- From 16 on, the creator of a role administers it, but must grant itself the right to act as it.
  if not pg_catalog.pg_has_role(current_user, 'herald_owner', 'USAGE')
    or not pg_catalog.pg_has_role(current_user, 'herald_owner', case when v_new then 'SET' else 'MEMBER' end)
  then
    begin
      execute format('grant herald_owner to %I', current_user) || case when v_new then ' with inherit true, set true' else '' end;
    exception when insufficient_privilege then
      select string_agg(m.member::pg_catalog.regrole::text, ' or ' order by m.member::pg_catalog.regrole::text) into v_admins
      from pg_catalog.pg_auth_members as m
      where m.roleid = 'herald_owner'::pg_catalog.regrole and m.admin_option;
      raise exception 'role "%" may not act as "herald_owner", which exists in this cluster already', current_user
        using errcode = 'insufficient_privilege',
              hint = format('As %s: grant herald_owner to %I', coalesce(v_admins || ', or a superuser', 'a superuser'), current_user);
    end;
    if not pg_catalog.pg_has_role(current_user, 'herald_owner', 'USAGE') then
      raise exception 'role "%" does not inherit the rights of "herald_owner"', current_user
        using errcode = 'insufficient_privilege',
              hint = format('As a superuser, or a role with CREATEROLE: alter role %I inherit', current_user);
    end if;
  end if;
end
$$;

do $$
declare
  v_owner text;
begin
  select n.nspowner::pg_catalog.regrole::text into v_owner
  from pg_catalog.pg_namespace as n
  where n.nspname = 'herald';
  if v_owner is null then
    if not pg_catalog.has_database_privilege(current_user, current_database(), 'CREATE') then
      raise exception 'role "%" may not create a schema in database "%"', current_user, current_database()
        using errcode = 'insufficient_privilege',
              hint = format('As the owner of the database: grant create on database %I to %I', current_database(), current_user);
    end if;
    create schema herald authorization herald_owner;
  elsif v_owner <> 'herald_owner' then
    raise exception 'schema "herald" belongs to role "%", not to "herald_owner"', v_owner
      using errcode = 'duplicate_schema',
            hint = case
              when exists (
                select from pg_catalog.pg_class as c where c.relnamespace = pg_catalog.to_regnamespace('herald') and c.relname = 'migration'
              )
              then 'It was restored where the roles of pgherald were missing, and lacks their rights and policies: drop it, '
                'make the roles (pg_dumpall --globals-only on the other server), and restore it again'
              else 'pgherald needs the schema for itself: rename the other one (alter schema herald rename to ...), or drop it if it is empty'
            end;
  end if;
end
$$;
