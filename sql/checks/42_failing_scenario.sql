-- Scenarios whose last run failed: nobody hears from them until it is mended.
select
  format('the last run of scenario "%s" (%s), at %s, failed with SQLSTATE %s', r.name, r.scenario_id, r.failed_at, r.error_code) as problem,
  format('select error from herald.evaluation_run where scenario_id = %L and error is not null order by run_id desc limit 1', r.scenario_id) as remedy
from herald.last_runs() as r
where r.error_code is not null and r.mode <> 'off'
order by 1;
