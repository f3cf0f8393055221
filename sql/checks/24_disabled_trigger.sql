-- Triggers that pgherald relies on and that do not fire: themselves disabled, or all of them in sessions that replay
-- rows, as while a backup or another server's rows are loaded. The setting of this session is likely the app's too.
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
union all
select
  'session_replication_role is replica: no trigger fires, so changes are not noted and prompts are not queued',
  format(
    'alter %s reset session_replication_role; then, in new sessions, select herald.mend_open_prompts()',
    case s.source
      when 'user' then format('role %I', session_user)
      when 'database user' then format('role %I in database %I', session_user, current_database())
      when 'database' then format('database %I', current_database())
      else 'system'
    end
  )
from pg_catalog.pg_settings as s
where s.name = 'session_replication_role' and s.setting = 'replica'
order by 1;
