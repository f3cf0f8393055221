-- Functions are called by the roles that were named, never by everybody.
select
  format('%s may be called by %s', p.oid::pg_catalog.regprocedure, r.name) as problem,
  format('revoke execute on routine %s from %s', p.oid::pg_catalog.regprocedure, r.name) as remedy
from pg_catalog.pg_proc as p
cross join lateral pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) as a
cross join lateral (
  select case when a.grantee = 0 then 'public' else a.grantee::pg_catalog.regrole::text end as name
) as r
where p.pronamespace = 'herald'::pg_catalog.regnamespace
  and r.name in ('public', 'anon')
order by 1;
