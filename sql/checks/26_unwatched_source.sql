-- Something of each source is watched, or its changes wait for the scheduled run.
select
  format('no table that herald.%s reads is watched: its changes wait for the scheduled run', s.source) as problem,
  coalesce(
    min(format('select herald.watch(%L, %L)', s.relation::pg_catalog.regclass, a.attname)) filter (where a.attname is not null),
    format('select herald.watch(%L, %L)', min(s.relation::pg_catalog.regclass::text), '<the column with the user_id>')
  ) as remedy
from herald.source_tables() as s
join pg_catalog.pg_class as c on c.oid = s.relation and c.relkind in ('r', 'p')
left join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attname = 'user_id' and a.atttypid = 'uuid'::pg_catalog.regtype
where s.source <> 'source_coordinator'
group by s.source
having not bool_or(exists (
  select from pg_catalog.pg_trigger as t
  where t.tgrelid = s.relation and t.tgfoid = pg_catalog.to_regproc('herald.touch')
))
order by 1;
