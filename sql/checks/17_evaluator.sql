-- Evaluators run with herald_owner's rights: who can replace one can do what herald_owner can.
select
  format('%s of scenario type %s, %s, does not exist', e.purpose, e.scenario_type, e.function_name) as problem,
  'create it again, or register the type anew: select herald.register_scenario_type(...)' as remedy
from herald.evaluators() as e
where not exists (
  select from pg_catalog.pg_proc as p
  join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
  where format('%I.%I', n.nspname, p.proname) = e.function_name
)
union all
select
  format('%s of scenario type %s, %s, belongs to %s, who could act as herald_owner through it', e.purpose, e.scenario_type,
    p.oid::pg_catalog.regprocedure, p.proowner::pg_catalog.regrole),
  format('alter function %s owner to herald_owner', p.oid::pg_catalog.regprocedure)
from herald.evaluators() as e
join pg_catalog.pg_proc as p on true
join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
where format('%I.%I', n.nspname, p.proname) = e.function_name
  and not p.prosecdef
  and not pg_catalog.pg_has_role(p.proowner, 'herald_owner', 'MEMBER')
order by 1;
