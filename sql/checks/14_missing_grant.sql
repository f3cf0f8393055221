-- What each role needs for its work, as migrate granted it.
select
  format('role %s may not call %s', g.grantee, f.signature) as problem,
  format('grant execute on routine %s to %s', f.signature, g.grantee) as remedy
from herald.shipped_functions() as f
cross join lateral unnest(f.missing_grantees) as g (grantee)
where f.installed is not null
union all
select
  format('role %s may not use schema herald', r.rolname),
  format('grant usage on schema herald to %s', r.rolname)
from pg_catalog.pg_roles as r
where r.rolname in ('herald_daemon', 'herald_reader', 'authenticated', 'service_role')
  and not pg_catalog.has_schema_privilege(r.oid, 'herald', 'USAGE')
union all
select
  format('role %s lacks %s on %s', w.grantee, w.privilege, w.relation),
  format('grant %s on %s to %s', w.privilege, w.relation, w.grantee)
from (values
  ('authenticated', 'delete', 'herald.scenario'),
  ('authenticated', 'select', 'herald.scenario_type'),
  ('herald_reader', 'select', 'herald.scenario_statistics'),
  ('herald_reader', 'select', 'herald.outbox_statistics'),
  ('herald_reader', 'select', 'herald.delivery_statistics'),
  ('herald_reader', 'select', 'herald.device_statistics')
) as w (grantee, privilege, relation)
where not pg_catalog.has_table_privilege(w.grantee, w.relation, w.privilege)
union all
select
  format('role authenticated lacks %s (%s) on herald.scenario', w.privilege, string_agg(a.attname, ', ' order by a.attnum)),
  format('grant %s (%s) on herald.scenario to authenticated', w.privilege, string_agg(a.attname, ', ' order by a.attnum))
from (values ('select'), ('insert'), ('update')) as w (privilege)
join pg_catalog.pg_attribute as a on a.attrelid = 'herald.scenario'::pg_catalog.regclass and a.attnum > 0 and not a.attisdropped
where (w.privilege = 'select' or a.attname in ('scenario_type', 'organisation_id', 'chapter_id', 'name', 'params', 'title_key', 'body_key', 'presentation',
    'devices', 'cooldown', 'quiet_from', 'quiet_until', 'mode', 'canary_percent', 'priority', 'jitter', 'expires_after',
    'on_unknown', 'max_prompts_per_run'))
  and not pg_catalog.has_column_privilege('authenticated', 'herald.scenario', a.attname, w.privilege)
group by w.privilege
order by 1;
