-- Scenarios that would have made more prompts than max_prompts_per_run, and wait for a person's word.
select
  format('scenario "%s" (%s) is held since %s: a run would exceed its max_prompts_per_run', r.name, r.scenario_id, r.held_at) as problem,
  format('pgherald preview %s, then pgherald resume %s', r.scenario_id, r.scenario_id) as remedy
from herald.last_runs() as r
where r.held_at is not null and r.mode <> 'off'
order by 1;
