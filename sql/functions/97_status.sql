-- What `pgherald status` shows: each scenario in its words and numbers, and the outbox as a whole.

-- Whomever a run for touched users found, the scheduled run finds too: it alone counts as due each candidate once. What
-- was held comes again.
create or replace function herald.status(p_locale text default 'en', p_since interval default '1 day')
returns table (
  scenario_id uuid, name text, scenario_type text, organisation_id uuid, chapter_id uuid, sentence text,
  mode text, canary_percent integer, paused_at timestamptz, held_at timestamptz, held_prompts integer, evaluated_through timestamptz,
  last_run_at timestamptz, last_scheduled_at timestamptz, error_code text,
  due bigint, prompts bigint, suppressed jsonb, waiting bigint, sent bigint, failed bigint, skipped bigint, unknown bigint
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    s.scenario_id, s.name, s.scenario_type, s.organisation_id, s.chapter_id, herald.describe(s.scenario_id, p_locale),
    s.mode, s.canary_percent, s.paused_at, b.held_at,
    case when b.held_at is not null then (
      select (e.suppressed ->> 'held')::integer
      from herald.evaluation_run as e
      where e.scenario_id = s.scenario_id and e.suppressed ? 'held'
      order by e.started_at desc, e.run_id desc
      limit 1
    ) end,
    least(s.evaluated_through, b.evaluated_through),
    l.started_at, c.started_at, nullif(left(l.error, 5), 'held:'),
    greatest(r.due, r.prompts), r.prompts, coalesce(g.suppressed, '{}'),
    coalesce(w.waiting, 0), coalesce(h.sent, 0), coalesce(h.failed, 0), coalesce(h.skipped, 0), coalesce(h.unknown, 0)
  from herald.scenario as s
  cross join lateral (
    select min(k.held_at) as held_at, min(k.evaluated_through) as evaluated_through
    from herald.catch_up as k
    where k.scenario_id = s.scenario_id
  ) as b
  cross join lateral (
    select
      coalesce(sum(e.candidates - coalesce((e.suppressed ->> 'held')::integer, 0)) filter (where e.source = 'schedule'), 0) as due,
      coalesce(sum(e.prompts), 0) as prompts
    from herald.evaluation_run as e
    where e.scenario_id = s.scenario_id and e.started_at > now() - p_since
  ) as r
  cross join lateral (
    select jsonb_object_agg(t.gate, t.n) as suppressed
    from (
      select k.key as gate, sum(k.value::bigint) as n
      from herald.evaluation_run as e
      cross join lateral jsonb_each_text(e.suppressed) as k
      where e.scenario_id = s.scenario_id and e.source = 'schedule' and e.started_at > now() - p_since
        and k.key not in ('held', 'duplicate')
      group by k.key
    ) as t
  ) as g
  left join lateral (
    select e.started_at, e.error
    from herald.evaluation_run as e
    where e.scenario_id = s.scenario_id
    order by e.started_at desc, e.run_id desc
    limit 1
  ) as l on true
  left join lateral (
    select e.started_at
    from herald.evaluation_run as e
    where e.scenario_id = s.scenario_id and e.source = 'schedule'
    order by e.started_at desc
    limit 1
  ) as c on true
  left join (
    select o.scenario_id, count(*) as waiting
    from herald.open_prompt as o
    where o.deadline is null
    group by o.scenario_id
  ) as w on w.scenario_id = s.scenario_id
  left join (
    select
      d.scenario_id,
      count(*) filter (where d.delivery_status = 'dispatched') as sent,
      count(*) filter (where d.delivery_status = 'failed') as failed,
      count(*) filter (where d.delivery_status = 'skipped') as skipped,
      count(*) filter (where d.delivery_status = 'unknown') as unknown
    from herald.scenario_prompt_history as d
    where d.dispatched_at > now() - p_since
    group by d.scenario_id
  ) as h on h.scenario_id = s.scenario_id
  order by s.mode = 'off', s.scenario_type, s.name, s.scenario_id;
$$;
comment on function herald.status is
  'Each scenario: its sentence, how it stands, its last run (of an error the SQLSTATE), and since p_since: due, prompts, suppressed by gate, sent, failed, skipped, unknown; waiting: ready now.';
revoke all on function herald.status from public;
grant execute on function herald.status to herald_daemon, herald_reader;

-- leader: a daemon runs the schedule (it holds the advisory lock for it).
create or replace function herald.outbox_status()
returns table (
  now timestamptz, schema_version integer, prompts jsonb, oldest_ready_seconds double precision, next_not_before timestamptz,
  paused_at timestamptz, touched boolean, last_scheduled_at timestamptz, leader boolean, cron boolean, notify_queue_usage double precision
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    d.now, d.schema_version, d.prompts, d.oldest_ready_seconds, w.next_not_before, g.paused_at, w.touched,
    case when exists (select from herald.scenario as s where s.mode <> 'off') then d.last_evaluation_at end,
    exists (
      select from pg_locks as l
      where l.locktype = 'advisory' and l.database = (select b.oid from pg_database as b where b.datname = current_database())
        and l.classid = 1751479908 and l.objid = 2 and l.objsubid = 2 and l.granted
    ),
    exists (select from pg_extension as x where x.extname = 'pg_cron'),
    d.notify_queue_usage
  from herald.daemon_state() as d
  cross join herald.work_waiting() as w
  cross join herald.setting as g;
$$;
comment on function herald.outbox_status is
  'The outbox as a whole: prompts by status, what waits, since when all is paused, the last scheduled run (null: none within a day, or none to make), and who makes them: pg_cron (cron) or a daemon (leader).';
revoke all on function herald.outbox_status from public;
grant execute on function herald.outbox_status to herald_daemon, herald_reader;
