-- Claims whose owner is gone are swept to unknown within seconds, by any daemon that runs.
select
  format('%s prompts are in sending since %s (owner %s), and no daemon sweeps them', s.prompts, s.oldest_deadline, s.owner) as problem,
  'start a daemon (pgherald run); without one: select * from herald.sweep(interval ''10 minutes'')' as remedy
from herald.stuck_prompts(interval '5 minutes') as s
order by 1;
