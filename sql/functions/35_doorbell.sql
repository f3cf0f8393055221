-- The doorbell: a NOTIFY with a constant payload, a hint and never data. A commit that notifies takes one cluster-wide
-- lock, so it is rung only while the daemon sleeps: awake, it holds the advisory lock (classid 1751479908, objid 1).

create or replace function herald.ring()
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- A full queue would fail the commit of whoever rings; the daemon's poll serves instead.
  if pg_notification_queue_usage() < 0.5 then
    perform pg_notify('herald', '');
  end if;
end
$$;
comment on function herald.ring is 'Wakes the listening daemons when this transaction commits.';
revoke all on function herald.ring from public;
