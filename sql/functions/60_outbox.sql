-- The outbox, for the daemon: claim, settle, sweep. plpgsql almost throughout, because a session keeps its plans. A plan may be
-- made while the outbox is still empty, and used when it is full: so generic plans from the start, and no sequential scans.
-- Lock order, everywhere: prompts (by prompt_id where several are locked at once), then open prompts, notifications, history,
-- device tokens.

-- Claims rows of herald.prompt, given by their ctid. The caller has found them ready and due, and locked them in this transaction:
-- so they stay where they are, which saves two look-ups a row. Checks again what may have changed while they waited, and turns
-- those that pass to 'sending' until p_now + p_lease. One row for each prompt, with its decision: send (then with all that is
-- needed to send it, its devices latest first), deferred (quiet hours, or paused), skipped (gate) or expired; none for a prompt
-- that is left to the next claim. What depends on the scenario alone is worked out once for each scenario (rule).
create or replace function herald.claim_rows(p_owner text, p_rows tid[], p_lease interval, p_now timestamptz)
returns table (
  prompt_id uuid, decision text, gate text, epoch bigint, notification_id uuid, scenario_id uuid, scenario_type text, user_id uuid,
  activity_ref text, presentation text, title_key text, body_key text, priority integer, collapse_key text, attempt integer,
  due_at timestamptz, expires_at timestamptz, claimed_at timestamptz, all_devices boolean, devices json
)
language plpgsql
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  -- If a crash of the server took the claim back, the prompt would be sent a second time.
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  -- Under a cap, what another claim has in hand for the same person would be counted by neither. It shows by its lock; what
  -- is read below is read after that.
  if exists (select from herald.setting as g where g.daily_cap is not null) then
    p_rows := array(
      select p.ctid
      from herald.prompt as p
      where p.ctid = any (p_rows)
        and not exists (
          select from (
            select w.prompt_id, w.deadline from herald.open_prompt as w where w.user_id = p.user_id offset 0
          ) as o
          where o.prompt_id <> p.prompt_id and o.deadline is null
            and not exists (
              select from herald.prompt as q
              where q.prompt_id = o.prompt_id
              for no key update skip locked
            )
        )
    );
  end if;
  return query
  with picked as materialized (
    select p.ctid as place, p.user_id, p.scenario_id, p.scenario_type, p.due_at, p.created_at, p.priority, p.not_before
    from herald.prompt as p
    where p.ctid = any (p_rows)
  ), rule as materialized (
    select
      s.scenario_id,
      s.organisation_id,
      s.chapter_id,
      s.presentation,
      s.title_key,
      s.body_key,
      s.devices = 'all' as all_devices,
      s.evaluated_from,
      s.started_at,
      s.expires_after,
      s.paused_at,
      s.quiet_from,
      s.quiet_until,
      case when s.mode in ('off', 'shadow') then s.mode end as silent,
      s.cooldown,
      herald.cooldown_window_start(p_now, s.cooldown) as window_start,
      g.daily_cap
    from (select distinct q.scenario_id from picked as q) as k
    join herald.scenario as s on s.scenario_id = k.scenario_id
    cross join herald.setting as g
  ), weighed as materialized (
    select
      q.place,
      q.user_id,
      q.priority,
      q.not_before,
      r.time_zone,
      s.daily_cap,
      herald.expires_at(q.due_at, q.created_at, s.evaluated_from, s.started_at, s.expires_after) as expires_at,
      s.presentation,
      s.title_key,
      s.body_key,
      s.all_devices,
      s.window_start,
      case
        when s.paused_at is not null then 'infinity'
        when s.quiet_from is not null then herald.quiet_end(p_now, s.quiet_from, s.quiet_until, r.time_zone)
      end as quiet_end,
      case
        when herald.expires_at(q.due_at, q.created_at, s.evaluated_from, s.started_at, s.expires_after) <= p_now then 'expired'
        when s.silent is not null then s.silent
        -- no recipient any more, or no longer in this scenario's scope
        when (r.organisation_id = s.organisation_id and (s.chapter_id is null or r.chapter_id = s.chapter_id)) is not true
          then 'unknown_recipient'
        when r.is_active is not true then 'inactive_recipient'
        when exists (
          select from herald.opt_out as o
          where o.user_id = q.user_id and (o.scenario_type = q.scenario_type or o.scenario_type is null)
        ) then 'opted_out'
        when exists (
          select from herald.scenario_notification as n
          where n.user_id = q.user_id and n.scenario_type = q.scenario_type and n.dispatched_at > p_now - s.cooldown
        ) or exists (
          select from herald.prompt as u
          where u.user_id = q.user_id and u.scenario_type = q.scenario_type and u.unknown_at > p_now - s.cooldown
        ) then 'cooldown'
      end as gate
    from picked as q
    join rule as s on s.scenario_id = q.scenario_id
    left join herald.source_recipient as r on r.user_id = q.user_id
  ), in_turn as (
    -- with a daily cap, pushes to the same person that this very claim lets out before this one count too; without a cap there is
    -- nothing to sort
    select w.*, 0::bigint as before
    from weighed as w
    where w.daily_cap is null
    union all
    select w.*,
      case
        when w.gate is null and w.quiet_end is null then row_number() over (
          partition by w.user_id, w.gate is null and w.quiet_end is null
          order by w.priority desc, w.not_before, w.place
        ) - 1
        else 0
      end
    from weighed as w
    where w.daily_cap is not null
  ), decided as materialized (
    select
      c.place,
      c.expires_at,
      c.presentation,
      c.title_key,
      c.body_key,
      c.all_devices,
      c.window_start,
      c.quiet_end,
      case
        when c.stopped_by = 'expired' then 'expired'
        when c.stopped_by is not null then 'skipped'
        when c.quiet_end is not null then 'deferred'
        else 'send'
      end as decision,
      coalesce(c.stopped_by, case when c.quiet_end = 'infinity' then 'paused' when c.quiet_end is not null then 'quiet_hours' end) as gate
    from (
      select
        t.*,
        case
          when t.gate is not null then t.gate
          when t.daily_cap is not null and t.daily_cap <= herald.pushes_today(t.user_id, p_now, t.time_zone) + t.before then 'daily_cap'
        end as stopped_by
      from in_turn as t
      -- so that pushes_today is called once a prompt, not once for each use of stopped_by
      offset 0
    ) as c
  ), claimed as (
    update herald.prompt as p
    set
      status = case d.decision when 'send' then 'sending' when 'deferred' then 'ready' else d.decision end,
      gate = d.gate,
      not_before = case d.decision when 'deferred' then d.quiet_end else p.not_before end,
      cooldown_window_start = case d.decision when 'send' then d.window_start else p.cooldown_window_start end,
      owner = case d.decision when 'send' then p_owner end,
      claimed_at = case d.decision when 'send' then p_now end,
      deadline = case d.decision when 'send' then p_now + p_lease end,
      attempts = p.attempts + (d.decision = 'send')::integer,
      epoch = p.epoch + (d.decision = 'send')::integer,
      settled_at = case when d.decision in ('skipped', 'expired') then p_now end
    from decided as d
    where p.ctid = d.place
    returning p.prompt_id, d.decision, d.gate, p.epoch, p.notification_id, p.scenario_id, p.scenario_type, p.user_id, p.activity_ref,
      d.presentation, d.title_key, d.body_key, p.priority, p.collapse_key, p.attempts, p.due_at, d.expires_at, d.all_devices
  ), told as (
    insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, dispatched_at, delivery_status, error_code, attempt)
    select c.prompt_id, c.scenario_id, c.user_id, p_now, 'skipped', c.gate, c.attempts
    from claimed as c
    where c.decision in ('skipped', 'expired')
  )
  select
    c.prompt_id, c.decision, c.gate, c.epoch, c.notification_id, c.scenario_id, c.scenario_type, c.user_id,
    c.activity_ref, c.presentation, c.title_key, c.body_key, c.priority, c.collapse_key, c.attempts,
    -- Within the years that every program can read: one odd row must not keep the others back.
    greatest(least(c.due_at, timestamptz '9998-01-01 00:00:00+00'), timestamptz '0002-01-01 00:00:00+00'),
    least(c.expires_at, timestamptz '9998-01-01 00:00:00+00'), p_now, c.all_devices,
    case when c.decision = 'send' then coalesce((
      select json_agg(k)
      from (
        select t.id as device_id, t.platform, t.kind, t.token,
          greatest(least(t.last_seen_at, timestamptz '9998-01-01 00:00:00+00'), timestamptz '0002-01-01 00:00:00+00') as last_seen_at
        from herald.device_token as t
        where t.user_id = c.user_id and t.revoked_at is null
        order by t.last_seen_at desc, t.id
      ) as k
    ), '[]') end
  from claimed as c;
end
$$;
comment on function herald.claim_rows is
  'Claims locked rows of herald.prompt for p_owner until p_now + p_lease, gates that may have changed checked again; one row per prompt with its decision.';
revoke all on function herald.claim_rows from public;

-- Claims the given prompts, those that are ready and due; see herald.claim_rows. Never waits for a lock.
create or replace function herald.claim_prompts(p_owner text, p_prompts uuid[], p_lease interval, p_now timestamptz default now())
returns table (
  prompt_id uuid, decision text, gate text, epoch bigint, notification_id uuid, scenario_id uuid, scenario_type text, user_id uuid,
  activity_ref text, presentation text, title_key text, body_key text, priority integer, collapse_key text, attempt integer,
  due_at timestamptz, expires_at timestamptz, claimed_at timestamptz, all_devices boolean, devices json
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_rows tid[];
begin
  select array_agg(k.place) into v_rows
  from (
    select p.ctid as place
    from herald.prompt as p
    where p.prompt_id = any (p_prompts) and p.status = 'ready' and p.not_before <= p_now
    for no key update skip locked
  ) as k;
  if v_rows is not null then
    return query select c.* from herald.claim_rows(p_owner, v_rows, p_lease, p_now) as c;
  end if;
end
$$;
comment on function herald.claim_prompts is
  'Claims the given prompts for p_owner until p_now + p_lease; one row per prompt with its decision, see herald.claim_rows.';
revoke all on function herald.claim_prompts from public;
grant execute on function herald.claim_prompts to herald_daemon;

-- Claims up to p_limit ready prompts, highest priority first, then the longest waiting; nothing while all is paused. Never
-- waits for a lock. Goes along the index of the queue, and looks each prompt up by its id and locks it, until there are enough.
-- (That look-up stays one by one, because the planner does not flatten a subquery that locks.) Sorts are off: a sort would lock
-- every row that it reads, whether that is taken in the end or not.
create or replace function herald.claim(p_owner text, p_limit integer, p_lease interval, p_now timestamptz default now())
returns table (
  prompt_id uuid, decision text, gate text, epoch bigint, notification_id uuid, scenario_id uuid, scenario_type text, user_id uuid,
  activity_ref text, presentation text, title_key text, body_key text, priority integer, collapse_key text, attempt integer,
  due_at timestamptz, expires_at timestamptz, claimed_at timestamptz, all_devices boolean, devices json
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_sort = off
as $$
#variable_conflict use_column
declare
  v_rows tid[];
begin
  with recursive level as (
    -- the priorities that wait, highest first: one index probe each
    (select o.priority from herald.open_prompt as o where o.deadline is null order by o.priority desc limit 1)
    union all
    select (
      select o.priority from herald.open_prompt as o
      where o.deadline is null and o.priority < l.priority
      order by o.priority desc limit 1
    )
    from level as l
    where l.priority is not null
  ), picked as materialized (
    select q.place
    from level as l
    cross join lateral (
      select p.place
      from herald.open_prompt as o
      cross join lateral (
        select r.ctid as place
        from herald.prompt as r
        where r.prompt_id = o.prompt_id and r.status = 'ready' and r.not_before <= p_now
        for no key update skip locked
      ) as p
      where o.deadline is null and o.priority = l.priority and o.not_before <= p_now
      order by o.not_before
      limit p_limit
    ) as q
    limit p_limit
  )
  select array_agg(k.place) into v_rows
  from picked as k
  where not exists (select from herald.setting as g where g.paused_at is not null);
  if v_rows is null then
    -- Nothing is claimed: at most the daemon has evaluated touched people in this transaction. Should a crash of the server take
    -- that back, the touched rows are back as well, and it is done again; and the prompts that it made are on disk before a claim
    -- of them can be. So the commit need not wait for the disk, and no writer of a busy app queues behind its fsync.
    perform set_config('synchronous_commit', 'off', true);
  else
    return query select c.* from herald.claim_rows(p_owner, v_rows, p_lease, p_now) as c;
  end if;
end
$$;
comment on function herald.claim is
  'Claims up to p_limit ready prompts for p_owner until p_now + p_lease; one row per prompt with its decision, see herald.claim_rows.';
revoke all on function herald.claim from public;
grant execute on function herald.claim to herald_daemon;

-- Writes the outcomes of claimed prompts, element by element of parallel arrays, in one transaction: status, history,
-- notification. At most one outcome of a prompt in a call.
-- Outcomes: sent, failed, skipped (error = gate), unknown, retry (ready again at p_retry_at), release (nothing was sent: ready
-- again at p_retry_at, as if not claimed).
-- The epoch counts the claims of a prompt. An outcome of the row's own epoch counts once, so to repeat it changes nothing; it also
-- counts where the claim was swept to unknown meanwhile, because its owner was late. Of any other epoch only 'sent' counts, for a
-- push that was accepted must have its record: of an earlier one, and then no outcome of a later claim takes 'sent' back; and of a
-- later one, whose claim was made before the database was restored to an earlier state.
create or replace function herald.settle(
  p_prompt uuid[], p_epoch bigint[], p_outcome text[], p_error text[], p_at timestamptz[], p_retry_at timestamptz[],
  p_device uuid[], p_message_name text[], p_now timestamptz default now()
)
returns table (prompt_id uuid, applied boolean, status text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_rows tid[];
begin
  -- After the commit the caller forgets these outcomes, so a crash of the server must not take it back.
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  -- Locked first and read afterwards: what is read then is the last word, and stays where it is until the update.
  select array_agg(k.place) into v_rows
  from (
    select p.ctid as place
    from herald.prompt as p
    where p.prompt_id = any (p_prompt)
    order by p.prompt_id
    for no key update
  ) as k;
  return query
  with outcome as materialized (
    select o.*
    from unnest(p_prompt, p_epoch, p_outcome, p_error, p_at, p_retry_at, p_device, p_message_name)
      as o (prompt_id, epoch, outcome, error, at, retry_at, device_id, message_name)
  ), locked as materialized (
    select p.ctid as place, p.prompt_id, p.epoch, p.status, p.scenario_id, p.scenario_type, p.user_id, p.attempts, p.due_at,
      p.created_at, p.notification_id
    from herald.prompt as p
    where p.ctid = any (v_rows)
  ), judged as materialized (
    -- Joins two lists and no table, so that it is done with a hash. The planner takes a list for ten rows: with a table in the join
    -- it may compare each row with each.
    select
      o.*,
      l.place,
      l.status as was,
      l.attempts,
      case
        when o.epoch = l.epoch and l.status = 'sending' then
          case
            when l.epoch > 1 and o.outcome <> 'sent'
              and exists (select from herald.scenario_notification as n where n.id = l.notification_id) then 'sent'
            when o.outcome in ('retry', 'release') then 'ready'
            when o.outcome = 'unknown' and l.attempts < 3 and exists (
              select from herald.scenario as s
              where s.scenario_id = l.scenario_id and s.on_unknown = 'resend'
                and herald.expires_at(l.due_at, l.created_at, s.evaluated_from, s.started_at, s.expires_after) > p_now
            ) then 'ready'
            else o.outcome
          end
        when o.outcome = 'sent' and l.status in ('unknown', 'failed', 'ready', 'skipped', 'expired') then 'sent'
        -- its owner was late, and knows that it was not sent; ready again only where no other prompt of this person and type was
        -- opened since
        when o.outcome in ('failed', 'skipped') and o.epoch = l.epoch and l.status = 'unknown' then o.outcome
        when o.outcome in ('retry', 'release') and o.epoch = l.epoch and l.status = 'unknown' then
          case when exists (
            select from herald.open_prompt as x
            where x.user_id = l.user_id and x.scenario_type = l.scenario_type
          ) then 'failed' else 'ready' end
        when o.outcome = 'sent' and o.epoch < l.epoch and l.status = 'sending' then 'sending'
        when o.outcome = 'sent' and o.epoch > l.epoch and l.status = 'sending' then 'sent'
      end as becomes
    from outcome as o
    left join locked as l on l.prompt_id = o.prompt_id
  ), updated as (
    update herald.prompt as p
    set
      status = j.becomes,
      gate = case j.becomes when 'skipped' then j.error end,
      error_code = case when j.becomes in ('skipped', 'sent') or j.outcome = 'release' then null else j.error end,
      not_before = case when j.becomes = 'ready' then coalesce(j.retry_at, p_now + interval '10 seconds') else p.not_before end,
      attempts = p.attempts - (j.outcome = 'release')::integer,
      owner = case j.becomes when 'sending' then p.owner end,
      deadline = case j.becomes when 'sending' then p.deadline end,
      settled_at = case when j.becomes not in ('ready', 'sending') then p_now end
    from judged as j
    where p.ctid = j.place and j.becomes is not null
    returning p.prompt_id, j.outcome, j.error, j.at, j.device_id, j.message_name, p.scenario_id, p.scenario_type, p.user_id,
      p.activity_ref, p.idempotency_key, p.cooldown_window_start, p.notification_id, j.attempts
  ), noted as (
    insert into herald.scenario_notification (id, user_id, scenario_type, scenario_id, dispatched_at, idempotency_key,
      cooldown_window_start, prompt_id, activity_ref, device_id, message_name)
    select u.notification_id, u.user_id, u.scenario_type, u.scenario_id, u.at, u.idempotency_key,
      u.cooldown_window_start, u.prompt_id, u.activity_ref, u.device_id, u.message_name
    from updated as u
    where u.outcome = 'sent'
    on conflict do nothing
  ), told as (
    insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, dispatched_at, delivery_status, error_code, attempt)
    select u.prompt_id, u.scenario_id, u.user_id, u.at,
      case u.outcome when 'sent' then 'dispatched' when 'retry' then 'failed' else u.outcome end,
      u.error, u.attempts
    from updated as u
    where u.outcome <> 'release'
  )
  select j.prompt_id, j.becomes is not null, coalesce(j.becomes, j.was)
  from judged as j;
end
$$;
comment on function herald.settle is
  'Writes outcomes of claimed prompts in one transaction: status, history, notification; idempotent, and fenced by the epoch of the claim.';
revoke all on function herald.settle from public;
grant execute on function herald.settle to herald_daemon;

-- Revokes devices that FCM called invalid, only where the row is unchanged since the claim read it. Says which it revoked: where
-- several report the same device, one of them is told so.
create or replace function herald.revoke_devices(p_device uuid[], p_last_seen_at timestamptz[], p_reason text[], p_now timestamptz default now())
returns table (device_id uuid, reason text)
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  with target as materialized (
    select t.id, v.reason
    from unnest(p_device, p_last_seen_at, p_reason) as v (id, last_seen_at, reason)
    join herald.device_token as t on t.id = v.id and t.last_seen_at = v.last_seen_at
    where t.revoked_at is null
    order by t.id
    for no key update of t
  )
  update herald.device_token as t
  set revoked_at = p_now, revoked_reason = g.reason
  from (select distinct on (x.id) x.id, x.reason from target as x order by x.id) as g
  where t.id = g.id and t.revoked_at is null
  returning t.id, t.revoked_reason;
$$;
comment on function herald.revoke_devices is 'Revokes devices whose row is unchanged since it was read; returns those it revoked.';
revoke all on function herald.revoke_devices from public;
grant execute on function herald.revoke_devices to herald_daemon;

-- Ends claims whose owner is gone: they are past their deadline and the grace, and nobody knows whether FCM accepted. With
-- on_unknown = 'resend' they go out again (a second copy replaces the first on the device), at most three times in all; but where
-- an earlier copy turned out to be accepted meanwhile, the prompt is sent.
create or replace function herald.sweep(p_grace interval, p_now timestamptz default now())
returns table (prompt_id uuid, scenario_type text, status text)
language sql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  with lost as materialized (
    select p.prompt_id,
      case
        when p.epoch > 1 and exists (select from herald.scenario_notification as n where n.id = p.notification_id) then 'sent'
        when s.on_unknown = 'resend' and p.attempts < 3
          and herald.expires_at(p.due_at, p.created_at, s.evaluated_from, s.started_at, s.expires_after) > p_now then 'ready'
        else 'unknown'
      end as becomes
    from (
      select q.prompt_id
      from herald.open_prompt as q
      where q.deadline < p_now - p_grace
      order by q.prompt_id
      limit 10000
    ) as o
    cross join lateral (
      select r.prompt_id, r.epoch, r.notification_id, r.attempts, r.due_at, r.created_at, r.scenario_id
      from herald.prompt as r
      where r.prompt_id = o.prompt_id and r.status = 'sending' and r.deadline < p_now - p_grace
      for no key update skip locked
    ) as p
    join herald.scenario as s on s.scenario_id = p.scenario_id
  ), swept as (
    update herald.prompt as p
    set status = l.becomes, error_code = case when l.becomes <> 'sent' then 'OWNER_LOST' end, owner = null, deadline = null,
      not_before = case l.becomes when 'ready' then p_now else p.not_before end,
      settled_at = case when l.becomes <> 'ready' then p_now end
    from lost as l
    where p.prompt_id = l.prompt_id
    returning p.prompt_id, p.scenario_id, p.scenario_type, p.user_id, p.status, p.attempts
  ), told as (
    insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, dispatched_at, delivery_status, error_code, attempt)
    select s.prompt_id, s.scenario_id, s.user_id, p_now, 'unknown', 'OWNER_LOST', s.attempts
    from swept as s
    where s.status <> 'sent'
  )
  select s.prompt_id, s.scenario_type, s.status
  from swept as s
  where s.status <> 'sent';
$$;
comment on function herald.sweep is 'Turns claims past their deadline plus grace to unknown (or ready, with on_unknown = resend); one row each.';
revoke all on function herald.sweep from public;
grant execute on function herald.sweep to herald_daemon;
