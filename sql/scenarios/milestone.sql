-- milestone: the person's number of activities reaches one of `counts`; due when the activity that reached it occurred.
-- Found through an index on (occurred_at): who was active in the window; then, for each count, the count-th activity
-- of that person through (user_id, occurred_at). `offset 0` keeps the planner to that.
create or replace function herald.due_milestone(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null)
returns setof herald.candidate
language sql stable
as $$
  with active as materialized (
    select distinct a.user_id
    from herald.source_activity as a
    where p_users is null and a.occurred_at > lower(p_window) and a.occurred_at <= upper(p_window)
      and (not p_scenario.params ? 'activity_types' or p_scenario.params -> 'activity_types' ? a.activity_type)
    union all
    select u.user_id
    from unnest(p_users) as u (user_id)
    where exists (
      select from herald.source_activity as a
      where a.user_id = u.user_id and a.occurred_at > lower(p_window) and a.occurred_at <= upper(p_window)
        and (not p_scenario.params ? 'activity_types' or p_scenario.params -> 'activity_types' ? a.activity_type)
      offset 0
    )
  ), target as materialized (
    select c.value
    from jsonb_array_elements_text(p_scenario.params -> 'counts') as c
  )
  select w.user_id, c.value, n.occurred_at
  from active as w
  cross join lateral (
    select v.organisation_id, v.chapter_id
    from herald.source_recipient as v
    where v.user_id = w.user_id
    offset 0
  ) as r
  cross join target as c
  cross join lateral (
    select a.occurred_at
    from herald.source_activity as a
    where a.user_id = w.user_id
      and (not p_scenario.params ? 'activity_types' or p_scenario.params -> 'activity_types' ? a.activity_type)
    order by a.occurred_at
    offset c.value::integer - 1
    limit 1
  ) as n
  where r.organisation_id = p_scenario.organisation_id
    and (p_scenario.chapter_id is null or r.chapter_id = p_scenario.chapter_id)
    and n.occurred_at > lower(p_window) and n.occurred_at <= upper(p_window);
$$;
comment on function herald.due_milestone is 'Evaluator of milestone: counts, activity_types. activity_ref: the count.';
revoke all on function herald.due_milestone from public;

create or replace function herald.why_milestone(p_scenario herald.scenario, p_user uuid, p_now timestamptz)
returns text
language sql stable
as $$
  select format('%s%s; needs %s', count(*) || case when count(*) = 1 then ' activity' else ' activities' end,
    ' (' || herald.said(p_scenario.params -> 'activity_types', null, 'en') || ')',
    (
      select string_agg(c.value, ', ' order by c.value::integer)
      from jsonb_array_elements_text(p_scenario.params -> 'counts') as c
    ))
  from herald.source_activity as a
  where a.user_id = p_user and a.occurred_at <= p_now
    and (not p_scenario.params ? 'activity_types' or p_scenario.params -> 'activity_types' ? a.activity_type);
$$;
comment on function herald.why_milestone is 'The numbers of one person, for herald.explain().';
revoke all on function herald.why_milestone from public;

select herald.register_scenario_type('milestone', 'herald.due_milestone'::regproc,
  '{
    "en": "Send at a person''s {counts#} [activity_types:{activity_types}|activity]",
    "nb": "Send ved en persons {counts#} [activity_types:{activity_types}|aktivitet]"
  }',
  '{
    "type": "object",
    "properties": {
      "counts": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 1000000}, "minItems": 1, "rising": true},
      "activity_types": {"type": "array", "items": {"type": "string"}, "minItems": 1}
    },
    "required": ["counts"],
    "examples": [{"counts": [1, 10, 50]}]
  }',
  null, 'herald.why_milestone'::regproc);
