-- Until a DBA defines it over the tables of the app, nobody is there to be told anything.
select
  'view herald.source_recipient is still the empty one that migrate made' as problem,
  'create or replace view herald.source_recipient as select ... (user_id, organisation_id, chapter_id, locale, time_zone, is_active, registered_at) from your tables' as remedy
where not exists (select from herald.source_tables() as s where s.source = 'source_recipient');
