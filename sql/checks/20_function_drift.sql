-- Every function as this release ships it.
select
  format('function %s %s', f.signature, case when f.installed is null then 'is missing' else 'is not the one that migrate left' end) as problem,
  'pgherald migrate' as remedy
from herald.shipped_functions() as f
where f.installed is distinct from f.shipped
order by 1;
