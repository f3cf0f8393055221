-- The reference app (schema app): a small peer-support organisation, as the demo and the tests use it. Loaded by
-- `pgherald migrate --with-reference`, as the migrating role, which owns it. A real app looks different; what pgherald
-- needs of it is in the views at the end.
create schema if not exists app;

create table if not exists app.organisation (
  id uuid primary key default gen_random_uuid(),
  name text not null
);
create table if not exists app.chapter (
  id uuid primary key default gen_random_uuid(),
  organisation_id uuid not null references app.organisation,
  name text not null
);
create index if not exists chapter_organisation on app.chapter (organisation_id);
create table if not exists app.peer_mentor (
  user_id uuid primary key default gen_random_uuid(),
  chapter_id uuid not null references app.chapter,
  locale text not null default 'en',
  time_zone text not null default 'Europe/Oslo',
  status text not null default 'active' constraint peer_mentor_status check (status in ('active', 'paused', 'left')),
  registered_at timestamptz not null default now()
);
create index if not exists peer_mentor_chapter on app.peer_mentor (chapter_id);
create index if not exists peer_mentor_registered on app.peer_mentor (registered_at);
create table if not exists app.coordinator (
  user_id uuid not null,
  chapter_id uuid not null references app.chapter,
  primary key (user_id, chapter_id)
);
create index if not exists coordinator_chapter on app.coordinator (chapter_id);
create table if not exists app.activity (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references app.peer_mentor,
  activity_type text not null,
  occurred_at timestamptz not null default now(),
  flags text[] not null default '{}'
);
create index if not exists activity_occurred on app.activity (occurred_at);
create index if not exists activity_user_occurred on app.activity (user_id, occurred_at);
create table if not exists app.assignment (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references app.peer_mentor,
  status text not null default 'active',
  starts_at timestamptz not null default now(),
  ends_at timestamptz
);
create index if not exists assignment_user on app.assignment (user_id);
create index if not exists assignment_ends on app.assignment (ends_at);
create table if not exists app.certification (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references app.peer_mentor,
  kind text not null,
  issued_at timestamptz not null default now(),
  expires_at timestamptz not null
);
create index if not exists certification_user on app.certification (user_id);
create index if not exists certification_expires on app.certification (expires_at);

-- The views read with the rights of herald_owner. With row-level security on your own tables, give it a policy too.
grant usage on schema app to herald_owner;
grant select on app.organisation, app.chapter, app.peer_mentor, app.coordinator, app.activity, app.assignment, app.certification
  to herald_owner;

create or replace view herald.source_recipient as
select m.user_id, c.organisation_id, m.chapter_id, m.locale, m.time_zone, m.status = 'active' as is_active, m.registered_at
from app.peer_mentor as m
join app.chapter as c on c.id = m.chapter_id;

create or replace view herald.source_activity as
select a.id::text as activity_id, a.user_id, a.activity_type, a.occurred_at, a.flags
from app.activity as a;

create or replace view herald.source_expiry as
select c.id::text as item_id, c.user_id, c.kind, c.expires_at
from app.certification as c
union all
select a.id::text, a.user_id, 'assignment', a.ends_at
from app.assignment as a
where a.status = 'active' and a.ends_at is not null;

create or replace view herald.source_coordinator as
select c.user_id, c.chapter_id
from app.coordinator as c;

select herald.watch('app.peer_mentor', 'user_id');
select herald.watch('app.activity', 'user_id');
select herald.watch('app.assignment', 'user_id');
select herald.watch('app.certification', 'user_id');

insert into herald.phrase (locale, word, phrase) values
  ('en', 'wellbeing_concern', 'wellbeing was a concern'),
  ('nb', 'wellbeing_concern', 'det var bekymring for trivselen'),
  ('nb', 'contact', 'kontakt'),
  ('en', 'first_aid', 'a first-aid certificate'),
  ('nb', 'first_aid', 'et førstehjelpskurs'),
  ('en', 'assignment', 'an assignment'),
  ('nb', 'assignment', 'et oppdrag')
on conflict (locale, word) do nothing;
