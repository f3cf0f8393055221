-- What operators look at, for the role herald_reader: counts, times, codes; no token, no text, no person. The views read
-- with their owner's rights. Exact, so not for a dashboard that asks every second: that is what the daemon's metrics are for.

create or replace view herald.scenario_statistics with (security_barrier) as
select
  s.scenario_id,
  s.scenario_type,
  s.organisation_id,
  s.chapter_id,
  s.name,
  s.mode,
  s.paused_at,
  b.held_at,
  least(s.evaluated_through, b.evaluated_through) as evaluated_through,
  r.runs,
  r.failed_runs,
  r.candidates,
  r.prompts,
  coalesce(g.suppressed, '{}') as suppressed,
  r.longest_run,
  l.started_at as last_run_at,
  nullif(left(l.error, 5), 'held:') as last_error_code,
  coalesce(h.dispatched, 0) as dispatched,
  coalesce(h.failed, 0) as failed,
  coalesce(h.skipped, 0) as skipped,
  coalesce(h.unknown, 0) as unknown,
  coalesce(n.opened, 0) as opened
from herald.scenario as s
cross join lateral (
  select min(c.held_at) as held_at, min(c.evaluated_through) as evaluated_through
  from herald.catch_up as c
  where c.scenario_id = s.scenario_id
) as b
cross join lateral (
  select
    count(*) as runs,
    count(e.error) filter (where e.error not like 'held:%') as failed_runs,
    coalesce(sum(e.candidates), 0) as candidates,
    coalesce(sum(e.prompts), 0) as prompts,
    max(e.duration) as longest_run
  from herald.evaluation_run as e
  where e.scenario_id = s.scenario_id and e.started_at > now() - interval '1 day'
) as r
left join lateral (
  select jsonb_object_agg(t.gate, t.n) as suppressed
  from (
    select k.key as gate, sum(k.value::bigint) as n
    from herald.evaluation_run as e
    cross join lateral jsonb_each_text(e.suppressed) as k
    where e.scenario_id = s.scenario_id and e.started_at > now() - interval '1 day'
    group by k.key
  ) as t
) as g on true
left join lateral (
  select e.started_at, e.error
  from herald.evaluation_run as e
  where e.scenario_id = s.scenario_id
  order by e.started_at desc, e.run_id desc
  limit 1
) as l on true
left join (
  select
    d.scenario_id,
    count(*) filter (where d.delivery_status = 'dispatched') as dispatched,
    count(*) filter (where d.delivery_status = 'failed') as failed,
    count(*) filter (where d.delivery_status = 'skipped') as skipped,
    count(*) filter (where d.delivery_status = 'unknown') as unknown
  from herald.scenario_prompt_history as d
  where d.dispatched_at > now() - interval '1 day'
  group by d.scenario_id
) as h on h.scenario_id = s.scenario_id
left join (
  select m.scenario_id, count(m.opened_at) as opened
  from herald.scenario_notification as m
  where m.dispatched_at > now() - interval '1 day'
  group by m.scenario_id
) as n on n.scenario_id = s.scenario_id;
comment on view herald.scenario_statistics is
  'Each scenario: how it stands, and what it did in the last 24 hours. The last error as its code only: the text may hold a value.';
grant select on herald.scenario_statistics to herald_reader;

create or replace view herald.outbox_statistics with (security_barrier) as
select
  p.scenario_type,
  p.status,
  p.gate,
  p.error_code,
  count(*) as prompts,
  count(*) filter (where p.status = 'ready' and p.not_before <= now()) as claimable,
  min(p.not_before) filter (where p.status = 'ready') as first_not_before,
  min(p.deadline) filter (where p.status = 'sending') as first_deadline,
  min(p.due_at) as first_due_at,
  max(p.due_at) as last_due_at,
  max(p.attempts) as most_attempts
from herald.prompt as p
group by p.scenario_type, p.status, p.gate, p.error_code;
comment on view herald.outbox_statistics is 'The outbox by scenario type, status, gate and error code.';
grant select on herald.outbox_statistics to herald_reader;

create or replace view herald.delivery_statistics with (security_barrier) as
select
  (h.dispatched_at at time zone 'UTC')::date as day,
  s.scenario_type,
  h.delivery_status,
  h.error_code,
  count(*) as attempts,
  max(h.attempt) as most_attempts
from herald.scenario_prompt_history as h
left join herald.scenario as s on s.scenario_id = h.scenario_id
group by 1, 2, 3, 4;
comment on view herald.delivery_statistics is 'What became of prompts, by UTC day, scenario type, status and error code.';
grant select on herald.delivery_statistics to herald_reader;

create or replace view herald.device_statistics with (security_barrier) as
select
  d.platform,
  d.kind,
  case when d.revoked_at is not null then coalesce(d.revoked_reason, 'unknown') end as revoked_reason,
  count(*) as devices,
  count(distinct d.user_id) as people,
  count(*) filter (where d.last_seen_at > now() - interval '7 days') as seen_in_7_days,
  min(d.last_seen_at) as longest_unseen
from herald.device_token as d
group by 1, 2, 3;
comment on view herald.device_statistics is 'Devices by platform, kind and (null: live) the reason they were revoked.';
grant select on herald.device_statistics to herald_reader;
