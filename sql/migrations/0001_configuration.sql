-- What people configure: scenario types, scenarios, texts, settings. Runs as herald_owner.
-- compatible: yes
set local lock_timeout = '5s';

comment on schema herald is 'pgherald: who is due a push, what was decided, what was sent';
-- The global form: the form "in schema" would revoke nothing (PUBLIC's EXECUTE is a global default).
alter default privileges revoke execute on functions from public;
alter default privileges revoke usage on types from public;
grant usage on schema herald to herald_daemon, herald_reader, authenticated, service_role;

create table herald.migration (
  version integer primary key,
  name text not null,
  checksum text not null,
  compatible boolean not null,
  applied_at timestamptz not null default now()
);
comment on table herald.migration is
  'One row per migration applied. compatible: a daemon that does not know it yet may go on.';

create table herald.shipped_function (
  signature text primary key,
  fingerprint text not null,
  grantees text[] not null
);
comment on table herald.shipped_function is
  'The functions as `pgherald migrate` left them, and who of our roles may call them: checks compare that with what is there now.';

create table herald.setting (
  only_row boolean primary key default true constraint setting_only_row check (only_row),
  daily_cap integer constraint setting_daily_cap check (daily_cap > 0),
  paused_at timestamptz,
  prompt_retention interval not null default '90 days' constraint setting_prompt_retention check (prompt_retention between interval '1 day' and interval '36500 days'),
  history_retention interval not null default '400 days' constraint setting_history_retention check (history_retention between interval '1 day' and interval '36500 days'),
  notification_retention interval not null default '800 days' constraint setting_notification_retention check (notification_retention between interval '1 day' and interval '36500 days'),
  run_retention interval not null default '30 days' constraint setting_run_retention check (run_retention between interval '1 day' and interval '36500 days'),
  token_retention interval not null default '270 days' constraint setting_token_retention check (token_retention between interval '1 day' and interval '36500 days')
);
comment on table herald.setting is 'One row: what holds for all scenarios.';
comment on column herald.setting.daily_cap is 'Most pushes a person gets on one day of their own time zone, over all scenarios; null: no cap.';
comment on column herald.setting.paused_at is 'Since when nothing at all is claimed; null: running.';
comment on column herald.setting.token_retention is 'A device token unseen for longer is deleted; FCM itself drops them after 270 days.';
insert into herald.setting default values;

create table herald.scenario_type (
  scenario_type text primary key constraint scenario_type_name check (scenario_type ~ '^[a-z][a-z0-9_]{0,39}$'),
  evaluator text not null,
  still_due text,
  why text,
  description jsonb not null constraint scenario_type_description check (jsonb_typeof(description) = 'object'),
  params_schema jsonb not null constraint scenario_type_params_schema check (jsonb_typeof(params_schema) = 'object'),
  registered_at timestamptz not null default now()
);
comment on table herald.scenario_type is
  'Kinds of due condition, built in or registered with herald.register_scenario_type().';
comment on column herald.scenario_type.evaluator is
  'Schema-qualified function (herald.scenario, tstzrange, uuid[]) returns setof herald.candidate. Text, not regproc: pg_upgrade refuses that.';
comment on column herald.scenario_type.still_due is
  'Optional function (herald.scenario, herald.candidate[], timestamptz) returns setof herald.candidate: those that still hold at that time.';
comment on column herald.scenario_type.why is
  'Optional function (herald.scenario, uuid, timestamptz) returns text: the numbers of one person, for herald.explain().';
comment on column herald.scenario_type.description is 'Sentence templates by locale, for herald.describe(): {"en": "...", "nb": "..."}.';
comment on column herald.scenario_type.params_schema is 'JSON Schema (a subset, see herald.params_problem) of scenario.params.';

create table herald.scenario (
  scenario_id uuid primary key default gen_random_uuid(),
  scenario_type text not null references herald.scenario_type,
  organisation_id uuid not null,
  chapter_id uuid,
  name text not null constraint scenario_name check (length(name) between 1 and 200),
  params jsonb not null default '{}' constraint scenario_params check (jsonb_typeof(params) = 'object'),
  title_key text not null constraint scenario_title_key check (title_key ~ '^[A-Za-z0-9_.-]{1,100}$'),
  body_key text not null constraint scenario_body_key check (body_key ~ '^[A-Za-z0-9_.-]{1,100}$'),
  presentation text not null default 'alert' constraint scenario_presentation check (presentation in ('alert', 'data')),
  devices text not null default 'latest' constraint scenario_devices check (devices in ('latest', 'all')),
  cooldown interval not null default '7 days' constraint scenario_cooldown check (cooldown between interval '0' and interval '36500 days'
    and least(extract(year from cooldown), extract(month from cooldown), extract(day from cooldown), extract(hour from cooldown)) >= 0),
  quiet_from time,
  quiet_until time,
  mode text not null default 'on' constraint scenario_mode check (mode in ('off', 'shadow', 'canary', 'on')),
  canary_percent integer constraint scenario_canary_percent check (canary_percent between 0 and 100),
  priority integer not null default 0,
  jitter interval not null default '0' constraint scenario_jitter check (jitter between interval '0' and interval '1 hour'),
  expires_after interval not null default '3 days' constraint scenario_expires_after check (expires_after > interval '0' and expires_after <= interval '36500 days'
    and least(extract(year from expires_after), extract(month from expires_after), extract(day from expires_after), extract(hour from expires_after)) >= 0),
  on_unknown text not null default 'drop' constraint scenario_on_unknown check (on_unknown in ('drop', 'resend')),
  max_prompts_per_run integer constraint scenario_max_prompts_per_run check (max_prompts_per_run > 0),
  evaluated_through timestamptz not null default now(),
  evaluated_from timestamptz not null default now(),
  started_at timestamptz not null default now(),
  paused_at timestamptz,
  created_at timestamptz not null default now(),
  constraint scenario_quiet_pair check ((quiet_from is null) = (quiet_until is null) and quiet_from <> quiet_until),
  constraint scenario_canary check (mode <> 'canary' or canary_percent is not null)
);
comment on table herald.scenario is 'One configured rule of a scenario type, for an organisation or one of its chapters.';
comment on column herald.scenario.chapter_id is 'Null: the whole organisation.';
comment on column herald.scenario.title_key is 'Key of the localised title in the app and in herald.message_text; never a text.';
comment on column herald.scenario.body_key is 'Key of the localised body in the app and in herald.message_text; never a text.';
comment on column herald.scenario.cooldown is 'A person gets a push of this scenario type at most once in this time; exactly this long ago passes.';
comment on column herald.scenario.quiet_from is 'Start of the quiet hours in the time zone of the person; may lie after quiet_until (over midnight).';
comment on column herald.scenario.mode is 'off: not evaluated; shadow: evaluated and counted, nothing sent; canary: canary_percent of the people; on.';
comment on column herald.scenario.priority is 'Higher goes first. Above 0, a data message is sent with Android priority HIGH.';
comment on column herald.scenario.jitter is 'A prompt of a scheduled run waits a random part of this, up to one hour, to stay clear of FCM''s busiest minutes.';
comment on column herald.scenario.expires_after is 'A prompt is not sent later than this after it was due (or after the scenario was started or set back).';
comment on column herald.scenario.on_unknown is 'drop: never send again when FCM''s answer was lost; resend: send again, a second copy replaces the first on the device.';
comment on column herald.scenario.max_prompts_per_run is 'A run that would make more prompts is held until `pgherald resume`, in the chapter that is over it alone, else in all; null: no limit.';
comment on column herald.scenario.evaluated_through is 'The last scheduled run looked up to here, also where it failed or was held: see herald.catch_up. Set it back to reach people who were due before.';
comment on column herald.scenario.evaluated_from is 'Nothing due at or before this is ever sent: kept by a trigger, moved back with evaluated_through.';
comment on column herald.scenario.started_at is 'When the scenario was created, enabled again, or set back: expires_after counts from here for what was due before.';
comment on column herald.scenario.paused_at is 'Since when its prompts wait; null: running. Evaluation goes on.';
create index scenario_scenario_type on herald.scenario (scenario_type);
create index scenario_scope on herald.scenario (organisation_id, chapter_id);
create index scenario_chapter on herald.scenario (chapter_id);

create table herald.catch_up (
  scenario_id uuid not null references herald.scenario on delete cascade,
  chapter_id uuid,
  evaluated_through timestamptz not null,
  catch_up_from timestamptz not null,
  held_at timestamptz,
  hold_released boolean not null default false,
  constraint catch_up_once unique nulls not distinct (scenario_id, chapter_id)
);
comment on table herald.catch_up is
  'A chapter in which a scenario is behind: a run failed there, was held, or found too much. Gone once it has caught up. Apart from herald.scenario, which coordinators of other chapters read.';
comment on column herald.catch_up.chapter_id is 'Null: people without a chapter.';
comment on column herald.catch_up.evaluated_through is 'Scheduled runs have handled everything due up to here in this chapter.';
comment on column herald.catch_up.catch_up_from is 'The next scheduled run starts from here in this chapter: earlier than evaluated_through when a run for touched users failed or was held.';
comment on column herald.catch_up.held_at is 'Since when max_prompts_per_run holds it; null: not held.';
comment on column herald.catch_up.hold_released is 'By `pgherald resume`: the next run may exceed max_prompts_per_run.';

create table herald.message_text (
  text_key text not null constraint message_text_key check (text_key ~ '^[A-Za-z0-9_.-]{1,100}$'),
  locale text not null constraint message_text_locale check (locale ~ '^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$'),
  text text not null,
  primary key (text_key, locale)
);
comment on table herald.message_text is
  'Localised texts by key, which phones read through herald.notification_content(); they are never sent to FCM.';

create table herald.phrase (
  locale text not null,
  word text not null,
  phrase text not null,
  primary key (locale, word)
);
comment on table herald.phrase is
  'How herald.describe() says an activity type, flag or kind: (''en'', ''wellbeing_concern'', ''wellbeing was a concern'').';

create table herald.opt_out (
  user_id uuid not null,
  scenario_type text references herald.scenario_type,
  opted_out_at timestamptz not null default now(),
  constraint opt_out_once unique nulls not distinct (user_id, scenario_type)
);
comment on table herald.opt_out is 'Who does not want pushes: of one scenario type, or (null) any.';
create index opt_out_scenario_type on herald.opt_out (scenario_type);
