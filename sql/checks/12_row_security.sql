-- Row-level security on every table, and forced, so that the owner works through a policy too.
select
  format('row-level security on %s is %s', c.oid::pg_catalog.regclass, case when c.relrowsecurity then 'not forced' else 'off' end) as problem,
  format('alter table %s enable row level security, force row level security', c.oid::pg_catalog.regclass) as remedy
from pg_catalog.pg_class as c
where c.relnamespace = 'herald'::pg_catalog.regnamespace
  and c.relkind in ('r', 'p')
  and not (c.relrowsecurity and c.relforcerowsecurity)
order by 1;
