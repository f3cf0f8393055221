-- Row-level security on a table of the app applies to herald_owner too, and hides rows without an error: people would
-- silently never hear from us. One policy for it that says `using (true)` is enough, if none is restrictive.
select
  format('row-level security on %s hides rows from %s, and so from herald.%s', s.relation::pg_catalog.regclass,
    s.reader::pg_catalog.regrole, s.source) as problem,
  format('create policy herald_reads on %s for select to %s using (true)', s.relation::pg_catalog.regclass,
    s.reader::pg_catalog.regrole) as remedy
from herald.source_tables() as s
join pg_catalog.pg_class as c on c.oid = s.relation
join pg_catalog.pg_roles as r on r.oid = s.reader
where c.relrowsecurity
  and not r.rolsuper
  and not r.rolbypassrls
  and (c.relforcerowsecurity or not pg_catalog.pg_has_role(s.reader, c.relowner, 'USAGE'))
  and (
    not exists (
      select from pg_catalog.pg_policy as p
      where p.polrelid = s.relation
        and p.polpermissive
        and p.polcmd in ('*', 'r')
        and pg_catalog.pg_get_expr(p.polqual, p.polrelid) = 'true'
        and exists (
          select from unnest(p.polroles) as u (role)
          where u.role = 0 or pg_catalog.pg_has_role(s.reader, u.role, 'USAGE')
        )
    )
    or exists (
      select from pg_catalog.pg_policy as p
      where p.polrelid = s.relation
        and not p.polpermissive
        and p.polcmd in ('*', 'r')
        and pg_catalog.pg_get_expr(p.polqual, p.polrelid) <> 'true'
        and exists (
          select from unnest(p.polroles) as u (role)
          where u.role = 0 or pg_catalog.pg_has_role(s.reader, u.role, 'USAGE')
        )
    )
  )
order by 1;
