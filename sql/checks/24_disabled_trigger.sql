-- Triggers that pgherald relies on and that do not fire.
select
  format('trigger %s on %s is disabled', t.tgname, t.tgrelid::pg_catalog.regclass) as problem,
  format('alter table %s enable trigger %I', t.tgrelid::pg_catalog.regclass, t.tgname) as remedy
from pg_catalog.pg_trigger as t
join pg_catalog.pg_class as c on c.oid = t.tgrelid
where t.tgenabled in ('D', 'R')
  and (
    c.relnamespace = 'herald'::pg_catalog.regnamespace
    or t.tgfoid = pg_catalog.to_regproc('herald.touch')
  )
order by 1;
