-- The doorbell: a NOTIFY with a constant payload, a hint and never data. A commit that notifies takes one cluster-wide
-- lock, so it is rung only while the daemon sleeps: awake, it holds the advisory lock (classid 1751479908, objid 1).

create or replace function herald.ring()
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Nobody awake holds the lock. Tested before the commit, so the daemon goes on polling for a while after it let the
  -- lock go, until every transaction that may have seen it held has ended.
  if pg_try_advisory_lock_shared(1751479908, 1) then
    perform pg_advisory_unlock_shared(1751479908, 1);
    -- A full queue would fail the commit of whoever rings; the daemon's poll serves instead.
    if pg_notification_queue_usage() < 0.5 then
      perform pg_notify('herald', '');
    end if;
  end if;
end
$$;
comment on function herald.ring is 'Wakes the listening daemons when this transaction commits, unless one is awake.';
revoke all on function herald.ring from public;
