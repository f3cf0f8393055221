-- What is watched is watched whole, by a column that it has; and the schema's own triggers are there.
with watched as (
  select distinct t.tgrelid,
    convert_from(substring(t.tgargs from 1 for greatest(position('\x00'::bytea in t.tgargs) - 1, 0)), getdatabaseencoding()) as user_column
  from pg_catalog.pg_trigger as t
  where t.tgfoid = pg_catalog.to_regproc('herald.touch')
)
select
  format('table %s is watched, but has no trigger %s', w.tgrelid::pg_catalog.regclass, k.tgname) as problem,
  format('select herald.watch(%L, %L)', w.tgrelid::pg_catalog.regclass, w.user_column) as remedy
from (select q.tgrelid, min(q.user_column) as user_column from watched as q group by q.tgrelid) as w
cross join (values ('herald_touch_insert'), ('herald_touch_update'), ('herald_touch_delete')) as k (tgname)
where not exists (
  select from pg_catalog.pg_trigger as t
  where t.tgrelid = w.tgrelid and t.tgname = k.tgname and t.tgfoid = pg_catalog.to_regproc('herald.touch')
)
union all
select
  format('table %s is watched by its column "%s", which it does not have: its changes wait for the scheduled run',
    w.tgrelid::pg_catalog.regclass, w.user_column),
  format('select herald.watch(%L, %L)', w.tgrelid::pg_catalog.regclass, coalesce(a.attname, '<the column with the user_id>'))
from watched as w
left join pg_catalog.pg_attribute as a on a.attrelid = w.tgrelid and a.attname = 'user_id'
where not exists (
  select from pg_catalog.pg_attribute as c
  where c.attrelid = w.tgrelid and c.attname = w.user_column
)
union all
-- a column of another name is read as text
select
  format('table %s is watched by its column "user_id", which is of type %s and not uuid: each write of it warns, and its changes wait for the scheduled run',
    w.tgrelid::pg_catalog.regclass, format_type(c.atttypid, null)),
  format('select herald.unwatch(%L)', w.tgrelid::pg_catalog.regclass)
from watched as w
join pg_catalog.pg_attribute as c on c.attrelid = w.tgrelid and c.attname = w.user_column
join pg_catalog.pg_type as t on t.oid = c.atttypid
where w.user_column = 'user_id' and 'uuid'::pg_catalog.regtype not in (t.oid, t.typbasetype)
union all
select
  'trigger check_scenario on herald.scenario is missing: scenarios are not validated',
  'pgherald migrate'
where not exists (
  select from pg_catalog.pg_trigger as t
  where t.tgrelid = pg_catalog.to_regclass('herald.scenario') and t.tgname = 'check_scenario'
)
union all
select
  format('trigger %s on herald.prompt is missing: prompts are not found to be sent', k.tgname),
  'pgherald migrate'
from (values ('open_prompt_insert'), ('open_prompt_update'), ('open_prompt_rename'), ('open_prompt_delete'), ('open_prompt_truncate')) as k (tgname)
where not exists (
  select from pg_catalog.pg_trigger as t
  where t.tgrelid = pg_catalog.to_regclass('herald.prompt') and t.tgname = k.tgname
)
order by 1;
