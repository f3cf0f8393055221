-- Retention: keeps the hot tables small. Nightly, by pg_cron (job herald-maintain) or by the daemon.

-- Why the hot tables are stored as they are (sql/migrations/0002_flow.sql; python -m tests.bench.bloat shows it):
-- - herald.prompt, fillfactor 45: each row is written three times (ready, sending, settled), the last two as HOT updates, which
--   need room on its page: for one version more, and the next update takes the one before it away. Of a backlog that is made,
--   claimed and settled all at once every update is HOT, and a prompt has 680 bytes of heap from first to last; at 50 it is
--   nine in ten, at 80 a third, with 370 bytes at first and 930 in the end. The price: prompts that wait take twice the room.
-- - herald.prompt, autovacuum at 2,000 rows + 2 %: by default it would wait for a fifth of ninety days of prompts.
-- - herald.open_prompt, autovacuum at 5,000 rows + 5 %: each of its rows is gone within hours or seconds, and claims would wade
--   through the dead entries of its index.
-- - herald.touched_user, at 5,000 rows whatever its size: it is emptied all the time, and read whole.
-- - history, notifications and runs are only appended to, and deleted from at their old end: the defaults serve, and the brin
--   indexes stay small because rows of one time lie together.

-- At most p_batch rows of each table a call; call again while it returns true. What dedupes is kept far longer than a
-- prompt may live: a pruned prompt was due longer ago than any evaluation looks back. What falls due anew under the same
-- activity_ref is then decided on anew.
create or replace function herald.maintain_batch(p_now timestamptz, p_batch integer)
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_setting herald.setting;
  v_rows integer;
  v_more boolean := false;
begin
  if p_batch is null or p_batch < 1 then
    raise exception 'maintain needs a batch of at least 1 row'
      using errcode = 'invalid_parameter_value', hint = 'call herald.maintain(p_batch => 10000)';
  end if;
  select g.* into v_setting from herald.setting as g;
  delete from herald.prompt as p
  where p.ctid = any (array(
    select q.ctid
    from herald.prompt as q
    join herald.scenario as s on s.scenario_id = q.scenario_id
    where q.created_at < p_now - v_setting.prompt_retention and q.status in ('sent', 'failed', 'skipped', 'expired')
      and greatest(q.created_at, q.settled_at) < p_now - greatest(v_setting.prompt_retention, s.expires_after + interval '1 day', s.cooldown)
    limit p_batch));
  get diagnostics v_rows = row_count;
  v_more := v_more or v_rows = p_batch;
  delete from herald.scenario_prompt_history as h
  where h.ctid = any (array(
    select q.ctid from herald.scenario_prompt_history as q
    where q.dispatched_at < p_now - v_setting.history_retention
    limit p_batch));
  get diagnostics v_rows = row_count;
  v_more := v_more or v_rows = p_batch;
  delete from herald.scenario_notification as n
  where n.ctid = any (array(
    select q.ctid
    from herald.scenario_notification as q
    left join (
      select s.scenario_type, greatest(max(s.expires_after) + interval '1 day', max(s.cooldown)) as keep
      from herald.scenario as s
      group by s.scenario_type
    ) as t on t.scenario_type = q.scenario_type
    where q.dispatched_at < p_now - greatest(v_setting.notification_retention, v_setting.prompt_retention)
      and q.dispatched_at < p_now - coalesce(t.keep, interval '0')
    limit p_batch));
  get diagnostics v_rows = row_count;
  v_more := v_more or v_rows = p_batch;
  delete from herald.evaluation_run as e
  where e.ctid = any (array(
    select q.ctid from herald.evaluation_run as q
    where q.started_at < p_now - v_setting.run_retention
    limit p_batch));
  get diagnostics v_rows = row_count;
  v_more := v_more or v_rows = p_batch;
  delete from herald.device_token as d
  where d.ctid = any (array(
    select q.ctid from herald.device_token as q
    where q.last_seen_at < p_now - v_setting.token_retention
    limit p_batch
    for update skip locked));
  get diagnostics v_rows = row_count;
  return v_more or v_rows = p_batch;
end
$$;
comment on function herald.maintain_batch is 'Deletes one batch of what is older than the retentions of herald.setting; true while there is more.';
revoke all on function herald.maintain_batch from public;
grant execute on function herald.maintain_batch to herald_daemon;

create or replace function herald.run_retention()
returns interval
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select g.run_retention from herald.setting as g;
$$;
comment on function herald.run_retention is 'How long evaluation runs, and pg_cron''s own record of its jobs, are kept.';
revoke all on function herald.run_retention from public;

-- A procedure, so that each batch commits on its own and vacuum can follow. pg_cron keeps a row of every run of a job for
-- ever (1,440 a day of ours): its own row security leaves the caller those of its own jobs, and of them ours are deleted. A
-- role without that right goes without.
create or replace procedure herald.maintain(p_now timestamptz default now(), p_batch integer default 10000)
language plpgsql
as $$
declare
  v_details regclass := pg_catalog.to_regclass('cron.job_run_details');
begin
  while herald.maintain_batch(p_now, p_batch)
  loop
    commit;
  end loop;
  if v_details is not null and pg_catalog.has_table_privilege(v_details, 'DELETE') then
    execute pg_catalog.format(
      'delete from %s as d where d.end_time operator(pg_catalog.<) $1 and d.jobid operator(pg_catalog.=) any '
      '(array(select j.jobid from cron.job as j where j.jobname in (''herald-evaluate'', ''herald-maintain'')))',
      v_details
    ) using p_now operator(pg_catalog.-) herald.run_retention();
  end if;
end
$$;
comment on procedure herald.maintain is
  'Deletes what is older than the retentions of herald.setting, batch by batch, pg_cron''s record of our jobs included.';
revoke all on procedure herald.maintain from public;
