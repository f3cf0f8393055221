-- The event path: a watched table hands the people of changed rows over in the transaction that changed them, and
-- rings. Whatever goes wrong here is a warning; the app's write goes through.

create or replace function herald.touch()
returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- The plain column is the common case, and many times cheaper than looking it up in a JSON of the row.
  if tg_op = 'INSERT' and tg_argv[0] = 'user_id' then
    -- What an app does most, so with the least that stands between it and its commit: `distinct on` sorts, which for a
    -- single row costs half of what a hash does.
    insert into herald.touched_user (user_id)
    select distinct on (r.user_id) r.user_id from new_rows as r where r.user_id is not null;
  elsif tg_argv[0] = 'user_id' then
    if tg_op = 'UPDATE' then
      insert into herald.touched_user (user_id)
      select distinct r.user_id from new_rows as r where r.user_id is not null;
    end if;
    insert into herald.touched_user (user_id)
    select distinct r.user_id from old_rows as r where r.user_id is not null;
  else
    if tg_op <> 'DELETE' then
      insert into herald.touched_user (user_id)
      select distinct (to_jsonb(r) ->> tg_argv[0])::uuid from new_rows as r where to_jsonb(r) ->> tg_argv[0] is not null;
    end if;
    if tg_op <> 'INSERT' then
      insert into herald.touched_user (user_id)
      select distinct (to_jsonb(r) ->> tg_argv[0])::uuid from old_rows as r where to_jsonb(r) ->> tg_argv[0] is not null;
    end if;
  end if;
  -- As herald.ring() tests it, without the cost of that call while a daemon is awake.
  if pg_try_advisory_lock_shared(1751479908, 1) then
    perform pg_advisory_unlock_shared(1751479908, 1);
    perform herald.ring();
  end if;
  return null;
exception when others then
  raise warning 'pgherald could not note the change of % (%): the write goes on, the next scheduled run may miss it',
    tg_relid::regclass, sqlstate;
  return null;
end
$$;
comment on function herald.touch is 'Trigger of watched tables: notes the touched users and rings the doorbell; never fails the write.';
revoke all on function herald.touch from public;

-- Called by the owner of the app table, who is a member of herald_owner (whoever ran migrate is).
create or replace function herald.watch(p_table regclass, p_user_column name)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from pg_attribute as a
    where a.attrelid = p_table and a.attname = p_user_column and a.attnum > 0 and not a.attisdropped and a.atttypid = 'uuid'::regtype
  ) then
    raise exception 'table % has no column "%" of type uuid', p_table, p_user_column
      using errcode = 'undefined_column', hint = 'name the column that holds the person''s user_id';
  end if;
  perform herald.unwatch(p_table);
  execute format('create trigger herald_touch_insert after insert on %s referencing new table as new_rows '
    'for each statement execute function herald.touch(%L)', p_table, p_user_column);
  execute format('create trigger herald_touch_update after update on %s referencing old table as old_rows new table as new_rows '
    'for each statement execute function herald.touch(%L)', p_table, p_user_column);
  execute format('create trigger herald_touch_delete after delete on %s referencing old table as old_rows '
    'for each statement execute function herald.touch(%L)', p_table, p_user_column);
end
$$;
comment on function herald.watch is
  'Puts the three statement triggers on an app table; p_user_column (uuid) is the person. Takes a brief exclusive lock. Again: replaces them.';
revoke all on function herald.watch from public;

create or replace function herald.unwatch(p_table regclass)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_trigger name;
begin
  for v_trigger in
    select t.tgname
    from pg_trigger as t
    where t.tgrelid = p_table and not t.tgisinternal and t.tgfoid = 'herald.touch'::regproc
  loop
    execute format('drop trigger %I on %s', v_trigger, p_table);
  end loop;
end
$$;
comment on function herald.unwatch is 'Takes the triggers of herald.watch() off an app table.';
revoke all on function herald.unwatch from public;
