-- An index that is not valid is written to and never read: what a failed `create index concurrently` leaves behind.
select
  format('index %s on %s is not valid', i.indexrelid::pg_catalog.regclass, i.indrelid::pg_catalog.regclass) as problem,
  format('reindex index concurrently %s', i.indexrelid::pg_catalog.regclass) as remedy
from pg_catalog.pg_index as i
join pg_catalog.pg_class as c on c.oid = i.indrelid
where not (i.indisvalid and i.indisready)
  and (
    c.relnamespace = 'herald'::pg_catalog.regnamespace
    or c.oid in (select s.relation from herald.source_tables() as s)
  )
order by 1;
