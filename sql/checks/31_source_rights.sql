-- The source views read with their owner's rights, herald_owner's; views under them with those of their own owners.
select
  format('herald.%s cannot read %s: %s has no right to', s.source, s.relation::pg_catalog.regclass, s.reader::pg_catalog.regrole) as problem,
  format('grant select on %s to %s', s.relation::pg_catalog.regclass, s.reader::pg_catalog.regrole) as remedy
from herald.source_tables() as s
where not pg_catalog.has_table_privilege(s.reader, s.relation, 'SELECT')
  and (
    s.columns is null
    or exists (
      select from unnest(s.columns) as u (attnum)
      where not pg_catalog.has_column_privilege(s.reader, s.relation, u.attnum, 'SELECT')
    )
  )
order by 1;
