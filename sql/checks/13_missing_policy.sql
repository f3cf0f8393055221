-- Without its policy the owner, and so every function, sees an empty table; without theirs coordinators see nothing.
select
  format('no policy lets herald_owner work on %s', c.oid::pg_catalog.regclass) as problem,
  format('create policy owner_all on %s to herald_owner using (true) with check (true)', c.oid::pg_catalog.regclass) as remedy
from pg_catalog.pg_class as c
where c.relnamespace = 'herald'::pg_catalog.regnamespace
  and c.relkind in ('r', 'p')
  and not exists (
    select from pg_catalog.pg_policy as p
    where p.polrelid = c.oid
      and p.polpermissive
      and p.polcmd = '*'
      and 'herald_owner'::pg_catalog.regrole = any (p.polroles)
      and pg_catalog.pg_get_expr(p.polqual, p.polrelid) = 'true'
  )
union all
select
  format('policy %s on %s is missing', w.policy, w.relation),
  'pgherald migrate'
from (values
  ('herald.scenario', 'coordinator_read'),
  ('herald.scenario', 'coordinator_insert'),
  ('herald.scenario', 'coordinator_update'),
  ('herald.scenario', 'coordinator_delete'),
  ('herald.scenario_type', 'type_read')
) as w (relation, policy)
where not exists (
  select from pg_catalog.pg_policy as p
  where p.polrelid = pg_catalog.to_regclass(w.relation) and p.polname = w.policy
)
order by 1;
