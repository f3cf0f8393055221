-- A SECURITY DEFINER function without this very search path can be made to run a caller's code with its owner's rights.
select
  format('SECURITY DEFINER function %s does not pin its search path', p.oid::pg_catalog.regprocedure) as problem,
  format('alter routine %s set search_path = pg_catalog, pg_temp', p.oid::pg_catalog.regprocedure) as remedy
from pg_catalog.pg_proc as p
where p.pronamespace = 'herald'::pg_catalog.regnamespace
  and p.prosecdef
  and 'search_path=pg_catalog, pg_temp' <> all (coalesce(p.proconfig, '{}'))
order by 1;
