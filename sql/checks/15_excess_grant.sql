-- What everybody, clients, the daemon and readers may do with tables directly: coordinators configure scenarios, readers
-- read statistics, and that is all.
select
  format('role %s has %s on %s%s', r.name, lower(a.privilege_type), a.relation, ' (' || a.column_name || ')') as problem,
  format('revoke %s%s on %s from %s', lower(a.privilege_type), ' (' || a.column_name || ')', a.relation, r.name) as remedy
from (
  select c.oid::pg_catalog.regclass as relation, c.relname, c.relkind, null as column_name, x.grantee, x.privilege_type
  from pg_catalog.pg_class as c
  cross join lateral pg_catalog.aclexplode(c.relacl) as x
  where c.relnamespace = 'herald'::pg_catalog.regnamespace
  union all
  select c.oid::pg_catalog.regclass, c.relname, c.relkind, t.attname, x.grantee, x.privilege_type
  from pg_catalog.pg_class as c
  join pg_catalog.pg_attribute as t on t.attrelid = c.oid
  cross join lateral pg_catalog.aclexplode(t.attacl) as x
  where c.relnamespace = 'herald'::pg_catalog.regnamespace
) as a
cross join lateral (
  select case when a.grantee = 0 then 'public' else a.grantee::pg_catalog.regrole::text end as name
) as r
where r.name in ('public', 'anon', 'authenticated', 'service_role', 'herald_daemon', 'herald_reader')
  and (
    r.name = 'herald_reader' and a.relkind = 'v' and a.relname like '%\_statistics' and a.privilege_type = 'SELECT'
    or r.name = 'authenticated' and a.relname = 'scenario_type' and a.privilege_type = 'SELECT'
    -- column by column, for a right to the table (column_name is null) is one to its system columns: those tell of other rows
    or r.name = 'authenticated' and a.relname = 'scenario' and a.privilege_type = 'SELECT' and a.column_name is not null
    or r.name = 'authenticated' and a.relname = 'scenario' and a.privilege_type = 'DELETE'
    or r.name = 'authenticated' and a.relname = 'scenario' and a.privilege_type in ('INSERT', 'UPDATE')
      and a.column_name in ('scenario_type', 'organisation_id', 'chapter_id', 'name', 'params', 'title_key', 'body_key',
        'presentation', 'devices', 'cooldown', 'quiet_from', 'quiet_until', 'mode', 'canary_percent', 'priority', 'jitter',
        'expires_after', 'on_unknown', 'max_prompts_per_run')
  ) is not true
order by 1;
