-- What the daemon, its operators and its metrics read.

-- Prompts by status. Exact for what is open or needs a person; of settled ones, an estimate of the planner's statistics
-- where the table is large.
create or replace function herald.prompt_counts()
returns table (status text, prompts bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if (select c.reltuples from pg_class as c where c.oid = 'herald.prompt'::regclass) < 20000 then
    return query
    select k.status, count(p.prompt_id)
    from unnest(array['ready', 'sending', 'sent', 'failed', 'unknown', 'skipped', 'expired']) as k (status)
    left join herald.prompt as p on p.status = k.status
    group by k.status;
  else
    return query
    select 'ready', count(*) from herald.open_prompt as o where o.deadline is null
    union all
    select 'sending', count(*) from herald.open_prompt as o where o.deadline is not null
    union all
    select 'failed', count(*) from herald.prompt as p where p.failed_at is not null
    union all
    select 'unknown', count(*) from herald.prompt as p where p.unknown_at is not null
    union all
    select k.status, coalesce((
      select (c.reltuples * f.frequency)::bigint
      from pg_stats as t
      cross join lateral unnest(t.most_common_vals::text::text[], t.most_common_freqs) as f (status, frequency)
      join pg_class as c on c.oid = 'herald.prompt'::regclass
      where t.schemaname = 'herald' and t.tablename = 'prompt' and t.attname = 'status' and f.status = k.status
    ), 0)
    from unnest(array['sent', 'skipped', 'expired']) as k (status);
  end if;
end
$$;
comment on function herald.prompt_counts is 'Prompts by status: exact where open or in need of a person, else estimated on a large table.';
revoke all on function herald.prompt_counts from public;
grant execute on function herald.prompt_counts to herald_daemon, herald_reader;

-- When the ready prompts may be claimed, by the index (priority, not_before): two probes for each priority that waits,
-- however many rows there are.
create or replace function herald.ready_times(p_now timestamptz)
returns table (first_not_before timestamptz, next_not_before timestamptz)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive level as (
    (select o.priority from herald.open_prompt as o where o.deadline is null order by o.priority desc limit 1)
    union all
    select (
      select o.priority from herald.open_prompt as o
      where o.deadline is null and o.priority < l.priority
      order by o.priority desc limit 1
    )
    from level as l
    where l.priority is not null
  )
  select
    min((
      select o.not_before from herald.open_prompt as o
      where o.deadline is null and o.priority = l.priority and o.not_before <= p_now
      order by o.not_before limit 1
    )),
    min((
      select o.not_before from herald.open_prompt as o
      where o.deadline is null and o.priority = l.priority and o.not_before > p_now and o.not_before < 'infinity'
      order by o.not_before limit 1
    ))
  from level as l;
$$;
comment on function herald.ready_times is
  'Since when the oldest claimable prompt waits (null: none), and when the next one becomes claimable (null: none).';
revoke all on function herald.ready_times from public;

-- One row of everything that the daemon measures or decides by between its claims. p_seen: the snapshot that the last call returned
-- (seen). Runs that were not visible in it are told now: each once, however late its transaction committed. The two bounds of
-- written_in are for the index; above the upper one lie runs that a dump brought from another server. While a transaction that
-- writes is open for hours, in whatever database, all runs since then are read each time, to find which are new (40,000 in 40 ms).
create or replace function herald.daemon_state(p_seen pg_snapshot default null, p_now timestamptz default now())
returns table (
  schema_version integer, prompts jsonb, oldest_ready_seconds double precision,
  paused boolean, held integer, last_evaluation_at timestamptz, seen text, runs jsonb, scenario_types text[],
  notify_queue_usage double precision, now timestamptz
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    (select max(m.version) from herald.migration as m),
    (select jsonb_object_agg(c.status, c.prompts) from herald.prompt_counts() as c),
    coalesce(case when (select g.paused_at is null from herald.setting as g) then extract(epoch from p_now - w.first_not_before)::double precision end, 0),
    (select g.paused_at is not null from herald.setting as g),
    (select count(distinct c.scenario_id)::integer from herald.catch_up as c where c.held_at is not null),
    case when exists (select from herald.scenario as s where s.mode <> 'off') then (
      -- a probe for each scenario, not the runs of a day
      select max(l.started_at)
      from herald.scenario as s
      cross join lateral (
        select r.started_at
        from herald.evaluation_run as r
        where r.scenario_id = s.scenario_id and r.source = 'schedule'
        order by r.started_at desc
        limit 1
      ) as l
      where l.started_at > p_now - interval '1 day'
    ) else p_now end,
    pg_current_snapshot()::text,
    (
      select coalesce(jsonb_agg(jsonb_build_object(
        'scenario_type', s.scenario_type, 'seconds', extract(epoch from r.duration), 'suppressed', r.suppressed,
        'failed', r.error is not null and r.error not like 'held:%'
      )), '[]')
      from herald.evaluation_run as r
      join herald.scenario as s on s.scenario_id = r.scenario_id
      where r.written_in >= pg_snapshot_xmin(p_seen) and r.written_in < pg_snapshot_xmax(pg_current_snapshot())
        and not pg_visible_in_snapshot(r.written_in, p_seen)
    ),
    (select array_agg(t.scenario_type order by t.scenario_type) from herald.scenario_type as t),
    pg_notification_queue_usage(),
    p_now
  from herald.ready_times(p_now) as w;
$$;
comment on function herald.daemon_state is
  'One row for the daemon''s metrics and decisions; last_evaluation_at: the last scheduled run, and p_now where no scenario is to run; runs: the evaluation runs that were not there when p_seen was (null: none); seen: the next p_seen.';
revoke all on function herald.daemon_state from public;
grant execute on function herald.daemon_state to herald_daemon, herald_reader;

-- Cheap enough for every turn of the loop.
create or replace function herald.work_waiting(p_now timestamptz default now())
returns table (touched boolean, ready boolean, next_not_before timestamptz, oldest_running xid8)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    exists (select from herald.touched_user as t),
    w.first_not_before is not null,
    w.next_not_before,
    pg_snapshot_xmin(pg_current_snapshot())
  from herald.ready_times(p_now) as w;
$$;
comment on function herald.work_waiting is 'Whether there is anything to evaluate or to claim now, when next, and the oldest transaction still running.';
revoke all on function herald.work_waiting from public;
grant execute on function herald.work_waiting to herald_daemon;

-- Asked by a daemon before it claims anything: p_program is the version that it was made for.
create or replace function herald.schema_version(p_program integer)
returns table (version integer, breaking boolean)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select max(m.version), coalesce(bool_or(not m.compatible) filter (where m.version > p_program), false)
  from herald.migration as m;
$$;
comment on function herald.schema_version is
  'The schema''s version, and whether a migration after p_program breaks programs that do not know it.';
revoke all on function herald.schema_version from public;
grant execute on function herald.schema_version to herald_daemon, herald_reader;
