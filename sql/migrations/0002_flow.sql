-- What flows: touched users -> prompts -> notifications and history; the devices; the runs. Runs as herald_owner.
-- compatible: yes
set local lock_timeout = '5s';

create type herald.candidate as (user_id uuid, activity_ref text, due_at timestamptz);
comment on type herald.candidate is 'A row that an evaluator returns: who is due, about what, since when.';
grant usage on type herald.candidate to herald_daemon, herald_reader, authenticated, service_role;

-- Written by the app's own transactions, so as cheap as a table can be: no index, no sequence. The daemon takes
-- rows by ctid and leaves the table empty; autovacuum keeps it short.
create table herald.touched_user (
  user_id uuid not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_threshold = 1000000, autovacuum_vacuum_cost_delay = 0);
comment on table herald.touched_user is
  'People whose rows an app transaction changed, handed over in that same transaction; taken by herald.evaluate_touched().';

-- A prompt is updated twice in its life: claimed and settled. No index, nor an index's condition, names a column that these
-- change, so both updates are HOT: they write the row and no index entry. What waits or is on its way is found through
-- herald.open_prompt instead; what failed or is not known, by columns that stay null on the way.
-- Both its ids begin with their time (version 7, in milliseconds): what is made, claimed and settled together lies together
-- in their indexes. They need not be hard to guess; collapse_key is.
create table herald.prompt (
  prompt_id uuid primary key
    default ((lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0') || '7' || substr(gen_random_uuid()::text, 16))::uuid),
  scenario_id uuid not null references herald.scenario,
  scenario_type text not null,
  user_id uuid not null,
  activity_ref text not null,
  due_at timestamptz not null default now(),
  evaluation_date date not null default (now() at time zone 'UTC')::date,
  idempotency_key text collate "C" not null,
  cooldown_window_start timestamptz,
  status text not null default 'ready'
    constraint prompt_status check (status in ('ready', 'sending', 'sent', 'failed', 'unknown', 'skipped', 'expired')),
  not_before timestamptz not null default now(),
  priority integer not null default 0,
  attempts integer not null default 0,
  epoch bigint not null default 0,
  owner text,
  claimed_at timestamptz,
  deadline timestamptz,
  gate text,
  error_code text,
  origin text not null default 'evaluation' constraint prompt_origin check (origin in ('evaluation', 'enqueue')),
  notification_id uuid not null
    default ((lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0') || '7' || substr(gen_random_uuid()::text, 16))::uuid),
  collapse_key text not null default replace(gen_random_uuid()::text, '-', ''),
  created_at timestamptz not null default now(),
  settled_at timestamptz,
  failed_at timestamptz generated always as (case when status = 'failed' then coalesce(settled_at, created_at) end) stored,
  unknown_at timestamptz generated always as (case when status = 'unknown' then coalesce(claimed_at, created_at) end) stored,
  constraint prompt_idempotency_key unique (idempotency_key),
  constraint prompt_once unique (user_id, scenario_id, activity_ref),
  constraint prompt_sending check (status <> 'sending' or (owner is not null and deadline is not null and claimed_at is not null)),
  constraint prompt_activity_ref check (length(activity_ref) between 1 and 400),
  constraint prompt_collapse_key check (octet_length(collapse_key) between 1 and 64)
) with (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 1);
comment on table herald.prompt is 'The outbox: one row per decision to push.';
comment on column herald.prompt.idempotency_key is 'SHA-256 of user, scenario type and evaluation date: herald.idempotency_key().';
comment on column herald.prompt.cooldown_window_start is 'Start of the cooldown window of the claim; with user and type unique among notifications.';
comment on column herald.prompt.not_before is 'Not claimed earlier: quiet hours, retry, jitter; infinity while its scenario is paused.';
comment on column herald.prompt.epoch is 'Counts the claims: an outcome of an earlier claim is told by its lower epoch.';
comment on column herald.prompt.deadline is 'The owner sends nothing after this; past it, and a grace, the prompt becomes unknown.';
comment on column herald.prompt.gate is 'Why it was skipped or deferred.';
comment on column herald.prompt.notification_id is 'The id its notification will have; it is in the push.';
comment on column herald.prompt.collapse_key is 'The same on the device for every copy of this prompt, and not guessable.';
comment on column herald.prompt.failed_at is 'When it failed (where nobody says: when it was made); null unless it has. For an index that claims and settles need not touch.';
comment on column herald.prompt.unknown_at is 'Of an unknown prompt, when it was claimed (where nobody says: made); null of any other.';
create index prompt_unknown on herald.prompt (user_id, scenario_type, unknown_at) where unknown_at is not null;
create index prompt_failed on herald.prompt (failed_at) where failed_at is not null;
create index prompt_scenario on herald.prompt (scenario_id);
create index prompt_created on herald.prompt using brin (created_at);

-- The queue: narrow, for each row lives in three indexes for the seconds or hours that its prompt is open. No foreign key:
-- triggers on herald.prompt keep it, in the statement that changes the prompt.
create table herald.open_prompt (
  user_id uuid not null,
  scenario_type text not null,
  prompt_id uuid not null,
  scenario_id uuid not null,
  priority integer not null,
  not_before timestamptz not null,
  deadline timestamptz,
  constraint prompt_open primary key (user_id, scenario_type)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1,
        autovacuum_vacuum_cost_delay = 0);
comment on table herald.open_prompt is
  'The prompts that are ready or sending, to find them by: kept by triggers on herald.prompt, and written by nothing else.';
comment on column herald.open_prompt.deadline is 'Null: ready, else sending.';
comment on constraint prompt_open on herald.open_prompt is
  'One open prompt per person and scenario type: two daemons can never race past the cooldown.';
create index prompt_ready on herald.open_prompt (priority, not_before) where deadline is null;
create index prompt_sending on herald.open_prompt (deadline) where deadline is not null;

create table herald.scenario_notification (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null,
  scenario_type text not null,
  scenario_id uuid,
  dispatched_at timestamptz not null,
  idempotency_key text collate "C" not null,
  cooldown_window_start timestamptz not null,
  prompt_id uuid,
  activity_ref text,
  device_id uuid,
  message_name text,
  opened_at timestamptz,
  constraint scenario_notification_idempotency_key unique (idempotency_key),
  constraint scenario_notification_cooldown unique (user_id, scenario_type, cooldown_window_start)
);
comment on table herald.scenario_notification is 'The record that FCM accepted a push: exactly one row per push.';
comment on column herald.scenario_notification.message_name is 'FCM''s name of the message, for a question to its support.';
create index scenario_notification_dispatched on herald.scenario_notification using brin (dispatched_at);

create table herald.scenario_prompt_history (
  history_id bigint generated always as identity primary key,
  prompt_id uuid not null,
  scenario_id uuid not null,
  peer_mentor_id uuid not null,
  dispatched_at timestamptz not null default now(),
  delivery_status text not null
    constraint scenario_prompt_history_status check (delivery_status in ('dispatched', 'failed', 'skipped', 'unknown')),
  error_code text,
  attempt integer not null default 1
);
comment on table herald.scenario_prompt_history is
  'What became of each prompt, attempt by attempt: ids and statuses, never a text, never a token.';
create index scenario_prompt_history_person on herald.scenario_prompt_history (peer_mentor_id, dispatched_at);
create index scenario_prompt_history_dispatched on herald.scenario_prompt_history using brin (dispatched_at);

create table herald.device_token (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null,
  token text not null constraint device_token_form check (length(token) between 1 and 2000 and token !~ '[[:cntrl:][:space:]]'),
  platform text not null constraint device_token_platform check (platform in ('ios', 'android', 'web')),
  kind text not null default 'token' constraint device_token_kind check (kind in ('token', 'fid')),
  registered_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now(),
  revoked_at timestamptz,
  revoked_reason text,
  constraint device_token_token unique (token),
  constraint device_token_revoked check (revoked_at is not null or revoked_reason is null)
);
comment on table herald.device_token is 'Addresses for FCM. Closed to clients: phones use herald.register_device_token().';
comment on column herald.device_token.kind is 'token: a registration token; fid: a Firebase installation id.';
create index device_token_live on herald.device_token (user_id, platform) where revoked_at is null;
create index device_token_gone on herald.device_token (user_id) where revoked_at is not null;

create table herald.evaluation_run (
  run_id bigint generated always as identity primary key,
  scenario_id uuid not null references herald.scenario on delete cascade,
  source text not null default 'schedule' constraint evaluation_run_source check (source in ('schedule', 'touched')),
  started_at timestamptz not null,
  evaluated tstzrange not null,
  candidates integer not null,
  prompts integer not null,
  suppressed jsonb not null default '{}',
  error text,
  duration interval not null,
  written_in xid8 not null default pg_current_xact_id()
);
comment on table herald.evaluation_run is
  'One row per scenario and run: all scheduled ones, and those for touched users that found somebody or failed (in the same way: once a minute).';
comment on column herald.evaluation_run.suppressed is 'Candidates by gate. Those of quiet_hours have a prompt all the same, deferred.';
comment on column herald.evaluation_run.written_in is
  'The transaction that wrote it. Runs are not committed in the order of run_id: who counts them tells by this which are new.';
create index evaluation_run_scenario on herald.evaluation_run (scenario_id, started_at);
create index evaluation_run_started on herald.evaluation_run using brin (started_at);
create index evaluation_run_written on herald.evaluation_run (written_in);

-- The views through which pgherald sees the app. A DBA redefines them (create or replace view, same columns);
-- migrate never touches them again.
create view herald.source_recipient as
select null::uuid as user_id, null::uuid as organisation_id, null::uuid as chapter_id, null::text as locale,
  null::text as time_zone, null::boolean as is_active, null::timestamptz as registered_at
where false;
comment on view herald.source_recipient is 'Who may get a push. Redefine over the tables of your app; one row per user_id.';
create view herald.source_activity as
select null::text as activity_id, null::uuid as user_id, null::text as activity_type, null::timestamptz as occurred_at,
  null::text[] as flags
where false;
comment on view herald.source_activity is
  'What people did. Redefine over the tables of your app; indexes wanted on (occurred_at) and (user_id, occurred_at).';
create view herald.source_expiry as
select null::text as item_id, null::uuid as user_id, null::text as kind, null::timestamptz as expires_at
where false;
comment on view herald.source_expiry is
  'What runs out: certificates, assignments. Redefine over the tables of your app; indexes wanted on (expires_at) and (user_id).';
create view herald.source_coordinator as
select null::uuid as user_id, null::uuid as chapter_id
where false;
comment on view herald.source_coordinator is 'Who configures scenarios of which chapter. Redefine over the tables of your app.';
