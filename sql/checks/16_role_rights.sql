-- The roles themselves: the owner logs in nowhere and bypasses nothing; whoever logs in as the daemon is the daemon only.
select
  format('role %s %s', r.rolname, a.what) as problem,
  format('alter role %s %s', r.rolname, a.without) as remedy
from pg_catalog.pg_roles as r
cross join lateral (values
  (r.rolsuper, 'is a superuser', 'nosuperuser'),
  (r.rolbypassrls, 'bypasses row-level security', 'nobypassrls'),
  (r.rolcanlogin and r.rolname = 'herald_owner', 'can log in', 'nologin')
) as a (has, what, without)
where r.rolname in ('herald_owner', 'herald_daemon', 'herald_reader') and a.has
union all
select e.problem, e.remedy
from (
  -- members that may use or put on the role; from 16 on, an ADMIN of it need not be one
  with recursive member as (
    select m.member
    from pg_catalog.pg_auth_members as m
    where m.roleid = 'herald_daemon'::pg_catalog.regrole
      and (coalesce(to_jsonb(m) ->> 'inherit_option', 'true')::boolean or coalesce(to_jsonb(m) ->> 'set_option', 'true')::boolean)
    union
    select m.member
    from member as g
    join pg_catalog.pg_auth_members as m on m.roleid = g.member
    where coalesce(to_jsonb(m) ->> 'inherit_option', 'true')::boolean or coalesce(to_jsonb(m) ->> 'set_option', 'true')::boolean
  )
  select r.rolname
  from member as g
  join pg_catalog.pg_roles as r on r.oid = g.member
  where r.rolcanlogin
) as l
cross join lateral herald.excess_rights(l.rolname) as e
order by 1;
