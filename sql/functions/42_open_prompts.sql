-- The queue: herald.open_prompt has a row for each prompt that is ready or sending. Triggers keep it so, in the very statement that
-- changes herald.prompt, whoever makes it. So herald.prompt needs no index that a claim or a settlement would have to touch.
-- Lock order: whoever writes here has the prompt locked already. So it waits only for a transaction that opens another prompt of the
-- same person and type at this very moment, and then fails with unique_violation.

-- A session makes the plan once, perhaps while the queue is empty, and uses it for few rows and for many. So each row is looked up
-- by the primary key, always (`offset 0`), and then changed by its ctid. A row that stays as it is is read, and not written.
create or replace function herald.keep_open_prompts()
returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  if tg_level = 'ROW' then
    -- The key in the queue has changed: the row of the old one goes. The trigger of the statement, which comes after this, makes
    -- the new one.
    delete from herald.open_prompt as o
    where o.user_id = old.user_id and o.scenario_type = old.scenario_type and o.prompt_id = old.prompt_id;
  elsif tg_op = 'UPDATE' then
    merge into herald.open_prompt as o
    using (
      select w.user_id, w.scenario_type, w.prompt_id, w.scenario_id, w.status, w.priority, w.not_before, w.deadline, k.place
      from changed as w
      left join lateral (
        select q.ctid as place
        from herald.open_prompt as q
        where q.user_id = w.user_id and q.scenario_type = w.scenario_type and q.prompt_id = w.prompt_id
        offset 0
      ) as k on true
    ) as c
    on o.ctid = c.place
    when matched and c.status not in ('ready', 'sending') then delete
    when matched and (o.scenario_id, o.priority, o.not_before, o.deadline)
      is distinct from (c.scenario_id, c.priority, c.not_before, case c.status when 'sending' then c.deadline end) then
      update set scenario_id = c.scenario_id, priority = c.priority, not_before = c.not_before,
        deadline = case c.status when 'sending' then c.deadline end
    when not matched and c.status in ('ready', 'sending') then
      insert (user_id, scenario_type, prompt_id, scenario_id, priority, not_before, deadline)
      values (c.user_id, c.scenario_type, c.prompt_id, c.scenario_id, c.priority, c.not_before,
        case c.status when 'sending' then c.deadline end);
  elsif tg_op = 'INSERT' then
    insert into herald.open_prompt (user_id, scenario_type, prompt_id, scenario_id, priority, not_before, deadline)
    select c.user_id, c.scenario_type, c.prompt_id, c.scenario_id, c.priority, c.not_before,
      case c.status when 'sending' then c.deadline end
    from changed as c
    where c.status in ('ready', 'sending');
  elsif tg_op = 'DELETE' then
    delete from herald.open_prompt as o
    using (
      select k.place
      from changed as w
      cross join lateral (
        select q.ctid as place
        from herald.open_prompt as q
        where q.user_id = w.user_id and q.scenario_type = w.scenario_type and q.prompt_id = w.prompt_id
        offset 0
      ) as k
      where w.status in ('ready', 'sending')
    ) as c
    where o.ctid = c.place;
  else
    -- no truncate here: its lock on a second table would be taken against the order of a claim
    delete from herald.open_prompt;
  end if;
  return null;
end
$$;
comment on function herald.keep_open_prompts is 'Trigger: herald.open_prompt has what is ready or sending, and nothing else.';
revoke all on function herald.keep_open_prompts from public;

-- For a queue that is wrong all the same, after triggers were disabled. Says how many rows it put right. Reads all prompts, and lets
-- nobody write any meanwhile. Of several open prompts of one person and type one stays open: one that is sending, else the oldest.
-- Of the others, one that is ready is skipped as a duplicate, and one that is sending ends as a sweep would end it; its owner may
-- still report what became of it.
create or replace function herald.mend_open_prompts()
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_closed bigint;
  v_gone bigint;
  v_rows bigint;
begin
  lock table herald.prompt in share row exclusive mode;
  with surplus as materialized (
    select
      o.prompt_id,
      case
        when o.status = 'ready' then 'skipped'
        when exists (select from herald.scenario_notification as n where n.id = o.notification_id) then 'sent'
        else 'unknown'
      end as becomes
    from (
      select p.prompt_id, p.status, p.notification_id,
        row_number() over (partition by p.user_id, p.scenario_type order by p.status = 'sending' desc, p.created_at, p.prompt_id) as place
      from herald.prompt as p
      where p.status in ('ready', 'sending')
    ) as o
    where o.place > 1
  ), closed as (
    update herald.prompt as p
    set status = s.becomes,
      gate = case s.becomes when 'skipped' then 'duplicate' end,
      error_code = case s.becomes when 'unknown' then 'OWNER_LOST' end,
      owner = null, deadline = null, settled_at = now()
    from surplus as s
    where p.prompt_id = s.prompt_id
    returning p.prompt_id, p.scenario_id, p.user_id, p.status, coalesce(p.gate, p.error_code) as reason, p.attempts
  ), told as (
    insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, dispatched_at, delivery_status, error_code, attempt)
    select c.prompt_id, c.scenario_id, c.user_id, now(), c.status, c.reason, c.attempts
    from closed as c
    where c.status <> 'sent'
  )
  select count(*) into v_closed
  from closed;
  delete from herald.open_prompt as o
  where not exists (
    select from herald.prompt as p
    where p.prompt_id = o.prompt_id and p.user_id = o.user_id and p.scenario_type = o.scenario_type and p.scenario_id = o.scenario_id
      and p.priority = o.priority and p.not_before = o.not_before
      and p.status = case when o.deadline is null then 'ready' else 'sending' end
      and (o.deadline is null or p.deadline = o.deadline)
  );
  get diagnostics v_gone = row_count;
  insert into herald.open_prompt (user_id, scenario_type, prompt_id, scenario_id, priority, not_before, deadline)
  select p.user_id, p.scenario_type, p.prompt_id, p.scenario_id, p.priority, p.not_before, case p.status when 'sending' then p.deadline end
  from herald.prompt as p
  where p.status in ('ready', 'sending')
    and not exists (select from herald.open_prompt as o where o.prompt_id = p.prompt_id);
  get diagnostics v_rows = row_count;
  return v_closed + greatest(v_gone, v_rows);
end
$$;
comment on function herald.mend_open_prompts is
  'Makes herald.open_prompt anew where it disagrees with herald.prompt, and leaves one prompt open per person and type; says how many rows it put right. Blocks all writing of prompts.';
revoke all on function herald.mend_open_prompts from public;

-- Not `or replace`, which locks the table against every run. Where one was missing, the queue may be wrong.
do $$
declare
  v_there constant name[] := array(select t.tgname from pg_trigger as t where t.tgrelid = 'herald.prompt'::regclass);
  v_events constant text[] := array[
    'insert', 'after insert on herald.prompt referencing new table as changed for each statement',
    'update', 'after update on herald.prompt referencing new table as changed for each statement',
    'rename', 'after update of prompt_id, user_id, scenario_type on herald.prompt for each row '
      'when ((old.prompt_id, old.user_id, old.scenario_type) is distinct from (new.prompt_id, new.user_id, new.scenario_type))',
    'delete', 'after delete on herald.prompt referencing old table as changed for each statement',
    'truncate', 'after truncate on herald.prompt for each statement'];
  v_made boolean := false;
begin
  for v_n in 1 .. cardinality(v_events) by 2
  loop
    if 'open_prompt_' || v_events[v_n] <> all (v_there) then
      execute format('create trigger %I %s execute function herald.keep_open_prompts()', 'open_prompt_' || v_events[v_n], v_events[v_n + 1]);
      v_made := true;
    end if;
  end loop;
  if v_made then
    perform herald.mend_open_prompts();
  end if;
end
$$;
