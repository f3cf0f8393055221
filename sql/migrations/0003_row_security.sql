-- Row-level security: forced on every table, so that even the owner works through a policy. Runs as herald_owner.
-- compatible: yes
set local lock_timeout = '5s';

do $$
declare
  v_table text;
begin
  foreach v_table in array array['migration', 'shipped_function', 'setting', 'scenario_type', 'scenario', 'catch_up', 'message_text', 'phrase', 'opt_out',
    'touched_user', 'prompt', 'open_prompt', 'scenario_notification', 'scenario_prompt_history', 'device_token', 'evaluation_run']
  loop
    execute format('alter table herald.%I enable row level security', v_table);
    execute format('alter table herald.%I force row level security', v_table);
    execute format('create policy owner_all on herald.%I to herald_owner using (true) with check (true)', v_table);
  end loop;
end
$$;

-- Coordinators configure; the policies that say which rows are theirs are in functions/15_coordinators.sql. The database
-- chooses scenario_id: who could choose it would learn from the primary key which ids exist in other chapters.
-- Column by column: the right to read a whole table is one to its system columns too, and where a row lies (ctid) and who
-- wrote it (xmin) depends on what was written beside it for other chapters.
grant select (scenario_id, scenario_type, organisation_id, chapter_id, name, params, title_key, body_key, presentation, devices, cooldown,
  quiet_from, quiet_until, mode, canary_percent, priority, jitter, expires_after, on_unknown, max_prompts_per_run, evaluated_through,
  evaluated_from, started_at, paused_at, created_at) on herald.scenario to authenticated;
grant select on herald.scenario_type to authenticated;
grant delete on herald.scenario to authenticated;
grant insert (scenario_type, organisation_id, chapter_id, name, params, title_key, body_key, presentation, devices, cooldown,
  quiet_from, quiet_until, mode, canary_percent, priority, jitter, expires_after, on_unknown, max_prompts_per_run) on herald.scenario to authenticated;
grant update (scenario_type, organisation_id, chapter_id, name, params, title_key, body_key, presentation, devices, cooldown,
  quiet_from, quiet_until, mode, canary_percent, priority, jitter, expires_after, on_unknown, max_prompts_per_run) on herald.scenario to authenticated;
