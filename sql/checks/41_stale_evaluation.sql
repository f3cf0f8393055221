-- The scheduled run comes each minute, from pg_cron or from a daemon.
select
  format('no scheduled run since %s: neither pg_cron nor a daemon evaluates', coalesce(max(r.last_scheduled_at), min(r.created_at))) as problem,
  'start a daemon (pgherald run), or look into cron.job_run_details; once by hand: select * from herald.evaluate()' as remedy
from herald.last_runs() as r
where r.mode <> 'off'
having coalesce(max(r.last_scheduled_at), min(r.created_at)) < now() - interval '5 minutes';
