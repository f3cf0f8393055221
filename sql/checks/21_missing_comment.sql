-- Everything in the schema says what it is for (\d+ and \df+ show it).
select
  format('%s %s has no comment', o.kind, o.name) as problem,
  format('comment on %s %s is ''...''', o.kind, o.name) as remedy
from (
  select
    case c.relkind when 'v' then 'view' when 'm' then 'materialized view' else 'table' end as kind,
    c.oid::pg_catalog.regclass::text as name,
    pg_catalog.obj_description(c.oid, 'pg_class') as comment
  from pg_catalog.pg_class as c
  where c.relnamespace = 'herald'::pg_catalog.regnamespace and c.relkind in ('r', 'p', 'v', 'm')
  union all
  select 'type', t.oid::pg_catalog.regtype::text, pg_catalog.obj_description(t.oid, 'pg_type')
  from pg_catalog.pg_type as t
  left join pg_catalog.pg_class as c on c.oid = t.typrelid
  where t.typnamespace = 'herald'::pg_catalog.regnamespace
    and (t.typtype in ('d', 'e') or c.relkind = 'c')
  union all
  select case p.prokind when 'p' then 'procedure' else 'function' end, f.signature, pg_catalog.obj_description(p.oid, 'pg_proc')
  from herald.shipped_functions() as f
  join pg_catalog.pg_proc as p on p.oid = pg_catalog.to_regprocedure(f.signature)
  union all
  select 'schema', n.nspname::text, pg_catalog.obj_description(n.oid, 'pg_namespace')
  from pg_catalog.pg_namespace as n
  where n.nspname = 'herald'
) as o
where o.comment is null
order by 1;
