-- For developers: decide on one push by hand. The same gates as an evaluation, the same promise.
-- Lock order: prompt, open prompt, history. It waits for whoever has a prompt of this person and type in hand, such as a
-- scheduled run: not for long, for it is called in a transaction of the application.

create or replace function herald.enqueue(
  p_scenario uuid, p_user uuid, p_activity_ref text, p_due_at timestamptz default now(),
  out prompt_id uuid, out gate text
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_scenario herald.scenario;
  v_now constant timestamptz := now();
  v_timeout constant text := current_setting('lock_timeout');
  v_not_before timestamptz;
  v_skipped boolean;
begin
  if p_user is null or coalesce(p_activity_ref, '') = '' or length(p_activity_ref) > 400 or p_due_at is null or not isfinite(p_due_at) then
    raise exception 'enqueue needs a user, an activity reference of 1 to 400 characters and a due time'
      using errcode = 'invalid_parameter_value',
            hint = 'select * from herald.enqueue(''<scenario_id>'', ''<user_id>'', ''order-17'')';
  end if;
  select s.* into v_scenario
  from herald.scenario as s
  where s.scenario_id = p_scenario;
  if not found then
    raise exception 'no scenario %', p_scenario
      using errcode = 'no_data_found', hint = 'select scenario_id, name from herald.scenario';
  end if;
  if v_scenario.mode = 'off' then
    gate := 'off';
    return;
  end if;
  select g.decision, g.not_before into gate, v_not_before
  from herald.gate(v_scenario, array[row(p_user, p_activity_ref, p_due_at)::herald.candidate], v_now) as g;
  if gate is null then
    gate := 'unknown_recipient';
    return;
  end if;
  if gate not in ('send', 'quiet_hours', 'no_device_token') then
    return;
  end if;
  v_skipped := gate = 'no_device_token';
  -- No SET clause: the caller's own time-out holds where it is shorter (0: none).
  if v_timeout = '0' or v_timeout::interval > interval '5 seconds' then
    perform set_config('lock_timeout', '5s', true);
  end if;
  begin
    insert into herald.prompt as p (scenario_id, scenario_type, user_id, activity_ref, due_at, evaluation_date, idempotency_key,
      cooldown_window_start, status, gate, not_before, priority, origin, settled_at)
    values (p_scenario, v_scenario.scenario_type, p_user, p_activity_ref, p_due_at, (v_now at time zone 'UTC')::date,
      herald.idempotency_key(p_user, v_scenario.scenario_type, (v_now at time zone 'UTC')::date),
      herald.cooldown_window_start(v_now, v_scenario.cooldown),
      case when v_skipped then 'skipped' else 'ready' end, nullif(enqueue.gate, 'send'),
      case when v_scenario.paused_at is not null then 'infinity' else v_not_before end,
      v_scenario.priority, 'enqueue', case when v_skipped then v_now end)
    on conflict do nothing
    returning p.prompt_id into prompt_id;
    if prompt_id is null then
      -- The row of an earlier try that ended without a push is armed again; anything else is somebody else's decision.
      update herald.prompt as p
      set status = case when v_skipped then 'skipped' else 'ready' end, gate = nullif(enqueue.gate, 'send'), due_at = p_due_at,
        not_before = case when v_scenario.paused_at is not null then 'infinity' else v_not_before end,
        priority = v_scenario.priority, error_code = null, settled_at = case when v_skipped then v_now end
      where p.user_id = p_user and p.scenario_id = p_scenario and p.activity_ref = p_activity_ref
        and p.status in ('failed', 'skipped', 'expired') and p.gate is distinct from 'discarded'
      returning p.prompt_id into prompt_id;
    end if;
  exception
    when unique_violation then
      -- another prompt of the type was opened at this very moment
      prompt_id := null;
    when lock_not_available then
      raise exception 'a prompt of type % for person % is in the hands of another transaction, such as a run', v_scenario.scenario_type, p_user
        using errcode = 'lock_not_available', hint = 'call herald.enqueue() again in a moment';
  end;
  perform set_config('lock_timeout', v_timeout, true);
  if prompt_id is null then
    gate := 'duplicate';
    return;
  end if;
  if v_skipped then
    insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, dispatched_at, delivery_status, error_code, attempt)
    values (prompt_id, p_scenario, p_user, v_now, 'skipped', gate, 0);
    prompt_id := null;
    return;
  end if;
  gate := nullif(gate, 'send');
  perform herald.ring();
end
$$;
comment on function herald.enqueue is
  'Decides on one push by hand: the prompt, or the gate that stopped it; with quiet_hours both, for the prompt is only deferred. 55P03 after 5 s (the session''s lock_timeout, if that is shorter) while another transaction, such as a run, has one of that person and type in hand.';
revoke all on function herald.enqueue from public;
grant execute on function herald.enqueue to herald_daemon, service_role;
