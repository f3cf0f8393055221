-- follow_up: `after_days` after an activity of `activity_type` (with `first_only`, the person's first of that type), if
-- it carries the flag `if_flag`. A day is 24 hours, whatever the clocks do.
-- Found through an index on (occurred_at), or for p_users through (user_id, occurred_at), by which the first of its type is
-- told. `offset 0` keeps the planner to that.
create or replace function herald.due_follow_up(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null)
returns setof herald.candidate
language sql stable
as $$
  with done as (
    select v.user_id, v.activity_id, v.activity_type, v.occurred_at, v.flags
    from herald.source_activity as v
    where p_users is null
      and v.occurred_at > lower(p_window) - make_interval(hours => 24 * (p_scenario.params ->> 'after_days')::integer)
      and v.occurred_at <= upper(p_window) - make_interval(hours => 24 * (p_scenario.params ->> 'after_days')::integer)
    union all
    select a.user_id, a.activity_id, a.activity_type, a.occurred_at, a.flags
    from unnest(p_users) as u (user_id)
    cross join lateral (
      select v.user_id, v.activity_id, v.activity_type, v.occurred_at, v.flags
      from herald.source_activity as v
      where v.user_id = u.user_id
        and v.occurred_at > lower(p_window) - make_interval(hours => 24 * (p_scenario.params ->> 'after_days')::integer)
        and v.occurred_at <= upper(p_window) - make_interval(hours => 24 * (p_scenario.params ->> 'after_days')::integer)
      offset 0
    ) as a
  )
  select a.user_id, a.activity_id, a.occurred_at + make_interval(hours => 24 * (p_scenario.params ->> 'after_days')::integer)
  from done as a
  cross join lateral (
    select v.organisation_id, v.chapter_id
    from herald.source_recipient as v
    where v.user_id = a.user_id
    offset 0
  ) as r
  where a.activity_type = p_scenario.params ->> 'activity_type'
    and (not p_scenario.params ? 'if_flag' or p_scenario.params ->> 'if_flag' = any (a.flags))
    and r.organisation_id = p_scenario.organisation_id
    and (p_scenario.chapter_id is null or r.chapter_id = p_scenario.chapter_id)
    and (
      not coalesce((p_scenario.params ->> 'first_only')::boolean, false)
      or not exists (
        select from herald.source_activity as e
        where e.user_id = a.user_id and e.activity_type = a.activity_type
          and e.occurred_at <= a.occurred_at and (e.occurred_at, e.activity_id) < (a.occurred_at, a.activity_id)
        offset 0
      )
    );
$$;
comment on function herald.due_follow_up is
  'Evaluator of follow_up: activity_type, after_days, first_only, if_flag. activity_ref: the activity id.';
revoke all on function herald.due_follow_up from public;

create or replace function herald.why_follow_up(p_scenario herald.scenario, p_user uuid, p_now timestamptz)
returns text
language sql stable
as $$
  select coalesce(
    (
      select format('%s %s %s ago%s; needs %s', case when f.first_only then 'first' else 'last' end, a.activity_type,
        herald.duration_text(p_now - a.occurred_at),
        case
          when not p_scenario.params ? 'if_flag' then ''
          when p_scenario.params ->> 'if_flag' = any (a.flags) then format(', with flag %s', p_scenario.params ->> 'if_flag')
          else format(', without flag %s', p_scenario.params ->> 'if_flag')
        end,
        f.after)
      from herald.source_activity as a
      where a.user_id = p_user and a.activity_type = p_scenario.params ->> 'activity_type' and a.occurred_at <= p_now
        and a.occurred_at > '-infinity'
      order by case when f.first_only then a.occurred_at end, a.occurred_at desc
      limit 1
    ),
    format('no %s yet; needs one%s', p_scenario.params ->> 'activity_type',
      case when p_scenario.params -> 'after_days' <> '0' then ' ' || f.after || ' ago' end)
  )
  from (
    select coalesce((p_scenario.params ->> 'first_only')::boolean, false) as first_only,
      herald.said(p_scenario.params -> 'after_days', 'day|days', 'en') as after
  ) as f;
$$;
comment on function herald.why_follow_up is 'The numbers of one person, for herald.explain().';
revoke all on function herald.why_follow_up from public;

select herald.register_scenario_type('follow_up', 'herald.due_follow_up'::regproc,
  '{
    "en": "Send [after_days:{after_days:day|days}|right] after [first_only:a first|each] {activity_type}[if_flag:, if {if_flag}]",
    "nb": "Send [after_days:{after_days:dag|dager}|rett] etter [first_only:første {activity_type}|{activity_type}, hver gang][if_flag:, hvis {if_flag}]"
  }',
  '{
    "type": "object",
    "properties": {
      "activity_type": {"type": "string"},
      "after_days": {"type": "integer", "minimum": 0, "maximum": 36500},
      "first_only": {"type": "boolean"},
      "if_flag": {"type": "string"}
    },
    "required": ["activity_type", "after_days"],
    "examples": [{"activity_type": "contact", "after_days": 3, "first_only": true, "if_flag": "wellbeing_concern"}]
  }',
  null, 'herald.why_follow_up'::regproc);
