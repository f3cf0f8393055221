-- Chapters that are behind in a scenario: a run failed there, was held, or found too many candidates at once. (Held: it would
-- have made more than max_prompts_per_run prompts, and waits for `pgherald resume`.) Each such chapter has a row in
-- herald.catch_up, which says from when on the scenario has to be evaluated again for it. So what happens in one chapter
-- changes neither what a run does for another, nor what the coordinators of another can read: the row of the scenario, which
-- several may read, says only that it was evaluated, and herald.catch_up is closed to clients.
-- Lock order: scenario row, then herald.catch_up.

-- Locks the row of the scenario. A scheduled run has it locked from before it reads herald.catch_up until it has deleted what
-- it read: so it never deletes a row that was changed in between.
create or replace function herald.fall_behind(p_scenario herald.scenario, p_chapter uuid, p_from timestamptz, p_held_at timestamptz default null)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform from herald.scenario as s where s.scenario_id = p_scenario.scenario_id for no key update;
  insert into herald.catch_up as c (scenario_id, chapter_id, evaluated_through, catch_up_from, held_at)
  values (p_scenario.scenario_id, p_chapter, p_scenario.evaluated_through, p_from, p_held_at)
  on conflict on constraint catch_up_once do update
  set evaluated_through = least(c.evaluated_through, excluded.evaluated_through),
    catch_up_from = least(c.catch_up_from, excluded.catch_up_from),
    held_at = coalesce(c.held_at, excluded.held_at);
end
$$;
comment on function herald.fall_behind is 'Notes that the next scheduled run starts from p_from in this chapter, and whether it is held there.';
revoke all on function herald.fall_behind from public;

-- After a scheduled run for p_chapters that got as far as p_through. Those that this very run held (p_held) stay as they are.
-- The others are up to date if it got to p_now, and their rows go; else they are behind from p_through on.
create or replace function herald.caught_up(p_scenario herald.scenario, p_chapters uuid[], p_held uuid[], p_through timestamptz, p_now timestamptz)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_through >= p_now then
    delete from herald.catch_up as c
    where c.scenario_id = p_scenario.scenario_id
      and exists (select from unnest(p_chapters) as k (id) where k.id is not distinct from c.chapter_id)
      and not exists (select from unnest(p_held) as k (id) where k.id is not distinct from c.chapter_id);
  else
    insert into herald.catch_up as c (scenario_id, chapter_id, evaluated_through, catch_up_from)
    select p_scenario.scenario_id, k.id, p_through, p_through
    from unnest(p_chapters) as k (id)
    where not exists (select from unnest(p_held) as h (id) where h.id is not distinct from k.id)
    on conflict on constraint catch_up_once do update
    set evaluated_through = p_through, catch_up_from = p_through, held_at = null;
  end if;
end
$$;
comment on function herald.caught_up is 'Notes that these chapters, but for those held, were evaluated up to p_through: no longer behind when that is p_now.';
revoke all on function herald.caught_up from public;

-- max_prompts_per_run is the limit of one run. Held is each chapter that is over it by itself; and where the others are over it
-- together, all of those. A chapter that was released (`pgherald resume`) is left out, until a run has caught up there, however
-- many prompts that makes.
-- Runs for touched users are many and small, so those of a minute count as one (p_made): each prompt in the chapter of its
-- person.
create or replace function herald.hold(
  p_scenario herald.scenario, p_candidates herald.candidate[], p_from timestamptz, p_made bigint, p_touched boolean, p_now timestamptz,
  out candidates herald.candidate[], out chapters uuid[], out wanted bigint
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_over record;
begin
  candidates := p_candidates;
  chapters := '{}';
  wanted := 0;
  for v_over in
    with person as (
      -- whom this run would make a prompt for, and whom the runs for touched users of the last minute did
      select g.user_id, 1 as wanted
      from herald.gate(p_scenario, p_candidates, p_now) as g
      where g.decision in ('send', 'quiet_hours')
      union all
      select p.user_id, 0
      from herald.prompt as p
      where p_touched and p_made > 0 and p.scenario_id = p_scenario.scenario_id
        and p.created_at > p_now - interval '1 minute' and p.created_at <= p_now
        and p.created_at in (
          select e.started_at
          from herald.evaluation_run as e
          where e.scenario_id = p_scenario.scenario_id and e.source = 'touched' and e.started_at > p_now - interval '1 minute'
        )
    ), chapter as (
      select r.chapter_id, sum(q.wanted) as wanted, count(*) as prompts
      from person as q
      cross join lateral (
        select v.chapter_id from herald.source_recipient as v where v.user_id = q.user_id offset 0
      ) as r
      group by r.chapter_id
    ), bound as materialized (
      select k.chapter_id, k.wanted, k.prompts, k.prompts > p_scenario.max_prompts_per_run as alone
      from chapter as k
      left join herald.catch_up as c on c.scenario_id = p_scenario.scenario_id and c.chapter_id is not distinct from k.chapter_id
      where c.hold_released is not true
    )
    select b.chapter_id, b.wanted as n
    from bound as b
    where b.wanted > 0
      and (b.alone or (
        select sum(o.prompts) + case when p_touched then 0 else p_made end
        from bound as o
        where not o.alone
      ) > p_scenario.max_prompts_per_run)
  loop
    perform herald.fall_behind(p_scenario, v_over.chapter_id, p_from, p_now);
    chapters := array_append(chapters, v_over.chapter_id);
    wanted := wanted + v_over.n;
  end loop;
  if wanted > 0 then
    candidates := array(
      select row(c.user_id, c.activity_ref, c.due_at)::herald.candidate
      from unnest(p_candidates) as c
      where not exists (
        select from herald.source_recipient as r
        where r.user_id = c.user_id
          and exists (select from unnest(chapters) as k (id) where k.id is not distinct from r.chapter_id)
      )
    );
  end if;
end
$$;
comment on function herald.hold is
  'Holds the chapters in which, or in all of which together, more than max_prompts_per_run prompts would be made: the candidates of the others, the chapters held, and how many prompts they wanted. p_made: prompts that this run made before, of chapters that were not released.';
revoke all on function herald.hold from public;

create or replace function herald.not_held(p_scenario herald.scenario, p_users uuid[])
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_users is null or not exists (
    select from herald.catch_up as c where c.scenario_id = p_scenario.scenario_id and c.held_at is not null
  ) then
    return p_users;
  end if;
  return array(
    select u.user_id
    from unnest(p_users) as u (user_id)
    where not exists (
      select from herald.source_recipient as r
      join herald.catch_up as c on c.chapter_id is not distinct from r.chapter_id
      where r.user_id = u.user_id and c.scenario_id = p_scenario.scenario_id and c.held_at is not null
    )
  );
end
$$;
comment on function herald.not_held is 'Those of these people in whose chapter the scenario is not held.';
revoke all on function herald.not_held from public;

-- p_chapters null: those of all chapters that are not behind, and candidates who are no recipients (which the gate counts).
create or replace function herald.candidates_in(p_scenario herald.scenario, p_chapters uuid[], p_candidates herald.candidate[])
returns herald.candidate[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_candidates = '{}' or (
    p_chapters is null and not exists (select from herald.catch_up as c where c.scenario_id = p_scenario.scenario_id)
  ) then
    return p_candidates;
  end if;
  return array(
    select row(c.user_id, c.activity_ref, c.due_at)::herald.candidate
    from unnest(p_candidates) as c
    left join lateral (
      select v.user_id, v.chapter_id from herald.source_recipient as v where v.user_id = c.user_id offset 0
    ) as r on true
    where case
      when p_chapters is not null then
        r.user_id is not null and exists (select from unnest(p_chapters) as k (id) where k.id is not distinct from r.chapter_id)
      else r.user_id is null or not exists (
        select from herald.catch_up as b
        where b.scenario_id = p_scenario.scenario_id and b.chapter_id is not distinct from r.chapter_id
      )
    end
  );
end
$$;
comment on function herald.candidates_in is 'Those of the candidates that belong to these chapters; null: to all that are not behind.';
revoke all on function herald.candidates_in from public;

create or replace function herald.people_in(p_scenario herald.scenario, p_chapters uuid[])
returns table (chapter_id uuid, people uuid[])
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select r.chapter_id, array_agg(r.user_id)
  from herald.source_recipient as r
  where p_chapters is null
    and r.organisation_id = p_scenario.organisation_id and (p_scenario.chapter_id is null or r.chapter_id = p_scenario.chapter_id)
    and not exists (
      select from herald.catch_up as c
      where c.scenario_id = p_scenario.scenario_id and c.chapter_id is not distinct from r.chapter_id
    )
  group by r.chapter_id
  union all
  select k.id, array(
    select r.user_id
    from herald.source_recipient as r
    where r.organisation_id = p_scenario.organisation_id and (p_scenario.chapter_id is null or r.chapter_id = p_scenario.chapter_id)
      and r.chapter_id is not distinct from k.id
  )
  from unnest(p_chapters) as k (id);
$$;
comment on function herald.people_in is 'The people of a scenario''s scope by chapter, of these chapters; null: of all that are not behind.';
revoke all on function herald.people_in from public;

create or replace function herald.counted_together(p_one jsonb, p_other jsonb)
returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
return case
  when p_one = '{}' then p_other
  when p_other = '{}' then p_one
  else (
    select jsonb_object_agg(t.gate, t.n)
    from (
      select k.key as gate, sum(k.value::bigint)::bigint as n
      from (select * from jsonb_each_text(p_one) union all select * from jsonb_each_text(p_other)) as k
      group by k.key
    ) as t
  )
end;
comment on function herald.counted_together is 'Two counts by gate, added up.';
revoke all on function herald.counted_together from public;
