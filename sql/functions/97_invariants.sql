-- The promise, as queries: each counts rows that must not be, so 0 is good. The daemon asks once a minute.

-- Looks at the newest p_rows rows of the history and of the last hour's notifications, whatever the rate: what it costs does
-- not grow with the tables. Every look-up from there goes by a unique index, or by the history's index of the person; the
-- settings keep the planner from reading whole tables instead, which it takes to be cheaper while they are small.
create or replace function herald.invariants(p_rows integer default 10000, p_now timestamptz default now())
returns table (invariant text, violations bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
  with dispatched as materialized (
    select h.history_id, h.prompt_id, h.peer_mentor_id, h.scenario_id
    from (
      select r.history_id, r.prompt_id, r.peer_mentor_id, r.scenario_id, r.delivery_status
      from herald.scenario_prompt_history as r
      order by r.history_id desc
      limit p_rows
    ) as h
    where h.delivery_status = 'dispatched'
  ), accepted as materialized (
    select distinct p.prompt_id, p.status, p.notification_id, p.idempotency_key
    from dispatched as d
    join herald.prompt as p on p.prompt_id = d.prompt_id
  ), noted as materialized (
    select n.prompt_id, n.idempotency_key
    from herald.scenario_notification as n
    where n.dispatched_at > p_now - interval '1 hour'
    limit p_rows
  )
  -- A notification exists only if FCM accepted the push; with on_unknown = 'resend' its prompt may be on its way again.
  select 'notification_without_sent_prompt', count(*)
  from noted as n
  join herald.prompt as p on p.prompt_id = n.prompt_id
  where p.status not in ('sent', 'sending')
  union all
  -- A push that was accepted has its record.
  select 'sent_prompt_without_notification', count(*)
  from accepted as a
  where a.status = 'sent'
    and not exists (select from herald.scenario_notification as n where n.id = a.notification_id)
    and not exists (select from herald.scenario_notification as n where n.idempotency_key = a.idempotency_key)
  union all
  -- What the history calls dispatched is not open or failed.
  select 'dispatched_prompt_not_sent', count(*)
  from accepted as a
  where a.status not in ('sent', 'sending')
  union all
  -- One prompt, one accepted push; more only where the scenario asks for a second copy.
  select 'prompt_dispatched_twice', count(*)
  from dispatched as d
  join herald.scenario as s on s.scenario_id = d.scenario_id
  where s.on_unknown <> 'resend' and exists (
    select from herald.scenario_prompt_history as h
    where h.peer_mentor_id = d.peer_mentor_id and h.prompt_id = d.prompt_id and h.delivery_status = 'dispatched'
      and h.history_id < d.history_id
  )
  union all
  -- A claim whose owner is gone is swept within seconds.
  select 'sending_past_deadline', count(*)
  from herald.open_prompt as o
  where o.deadline < p_now - interval '2 minutes'
  union all
  -- The queue has what is open, and nothing else.
  select 'open_prompt_disagrees', (
    select count(*)
    from (
      select p.prompt_id, p.user_id, p.scenario_type, p.status
      from herald.prompt as p
      order by p.prompt_id desc
      limit p_rows
    ) as n
    where n.status in ('ready', 'sending') and not exists (
      select from herald.open_prompt as o
      where o.user_id = n.user_id and o.scenario_type = n.scenario_type and o.prompt_id = n.prompt_id
      offset 0
    )
  ) + (
    select count(*)
    from (
      select o.*
      from herald.open_prompt as o
      limit p_rows
    ) as q
    left join lateral (
      select r.status, r.user_id, r.scenario_type, r.scenario_id, r.priority, r.not_before
      from herald.prompt as r
      where r.prompt_id = q.prompt_id
      offset 0
    ) as p on true
    where p.status is distinct from case when q.deadline is null then 'ready' else 'sending' end
      or (p.user_id, p.scenario_type, p.scenario_id, p.priority, p.not_before)
        is distinct from (q.user_id, q.scenario_type, q.scenario_id, q.priority, q.not_before)
  );
$$;
comment on function herald.invariants is
  'Rows that must not be, by invariant, among the newest p_rows; 0 is good. Its cost does not grow with the tables.';
revoke all on function herald.invariants from public;
grant execute on function herald.invariants to herald_daemon, herald_reader;
