-- What is watched is watched whole, and the schema's own triggers are there.
select
  format('table %s is watched, but has no trigger %s', w.tgrelid::pg_catalog.regclass, k.tgname) as problem,
  format('select herald.watch(%L, %L)', w.tgrelid::pg_catalog.regclass, w.user_column) as remedy
from (
  select t.tgrelid, min(split_part(encode(t.tgargs, 'escape'), '\000', 1)) as user_column
  from pg_catalog.pg_trigger as t
  where t.tgfoid = pg_catalog.to_regproc('herald.touch')
  group by t.tgrelid
) as w
cross join (values ('herald_touch_insert'), ('herald_touch_update'), ('herald_touch_delete')) as k (tgname)
where not exists (
  select from pg_catalog.pg_trigger as t
  where t.tgrelid = w.tgrelid and t.tgname = k.tgname and t.tgfoid = pg_catalog.to_regproc('herald.touch')
)
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
