-- A foreign key without an index of its own makes each delete on the other side read the whole table.
select
  format('foreign key %s on %s has no index', k.conname, k.conrelid::pg_catalog.regclass) as problem,
  format('create index concurrently on %s (%s)', k.conrelid::pg_catalog.regclass, k.columns) as remedy
from (
  select
    f.conname,
    f.conrelid,
    f.conkey,
    (
      select string_agg(format('%I', a.attname), ', ' order by u.place)
      from unnest(f.conkey) with ordinality as u (attnum, place)
      join pg_catalog.pg_attribute as a on a.attrelid = f.conrelid and a.attnum = u.attnum
    ) as columns
  from pg_catalog.pg_constraint as f
  join pg_catalog.pg_class as c on c.oid = f.conrelid
  where f.contype = 'f' and c.relnamespace = 'herald'::pg_catalog.regnamespace
) as k
where not exists (
  select from pg_catalog.pg_index as i
  where i.indrelid = k.conrelid
    and i.indisvalid
    and i.indpred is null
    -- its first columns are those of the key, in any order; indkey counts from 0
    and (i.indkey::smallint[])[0:cardinality(k.conkey) - 1] @> k.conkey
)
order by 1;
