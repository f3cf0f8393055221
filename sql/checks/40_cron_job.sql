-- pg_cron's jobs, where the extension is and this role may see them. Without it the daemon runs the schedule.
select
  case
    when not j.scheduled then format('pg_cron is installed, but has no job %s', j.jobname)
    when not j.active then format('pg_cron job %s of %s is not active', j.jobname, j.username)
    else format('the last run of pg_cron job %s of %s failed, at %s', j.jobname, j.username, j.last_start)
  end as problem,
  case
    when not j.scheduled then 'pgherald migrate'
    when not j.active then
      format('as %I: select cron.unschedule(%L), then pgherald migrate', j.username, j.jobname)
    else 'select return_message from cron.job_run_details where status = ''failed'' order by runid desc limit 1'
  end as remedy
from herald.cron_jobs() as j
where not j.scheduled or not j.active or j.last_status = 'failed'
union all
select
  format('pg_cron job %s is scheduled %s times, by %s', j.jobname, count(*), string_agg(j.username, ', ' order by j.username)),
  format('select cron.unschedule(jobid) from cron.job where jobname = %L and username <> %L', j.jobname, min(j.username))
from herald.cron_jobs() as j
where j.scheduled
group by j.jobname
having count(*) > 1
order by 1;
