-- expiry: an item (certificate, assignment) expires in one of `days_before`; not when a later one of the same kind is
-- there. Whether it is past by the time of sending is for still_due. A day is 24 hours, whatever the clocks do.
-- Found through an index on (expires_at), or for p_users through (user_id), by which the renewal is looked for. `offset 0`
-- keeps the planner to that: whose items they are is asked for alone, or all that expire then would be read for each person.
create or replace function herald.due_expiry(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null)
returns setof herald.candidate
language sql stable
as $$
  with day as materialized (
    select distinct d.value
    from jsonb_array_elements_text(p_scenario.params -> 'days_before') as d
  ), item as (
    select e.user_id, e.item_id, e.kind, e.expires_at, d.value as days
    from day as d
    cross join lateral (
      select v.user_id, v.item_id, v.kind, v.expires_at
      from herald.source_expiry as v
      where p_users is null
        and v.expires_at > lower(p_window) + make_interval(hours => 24 * d.value::integer)
        and v.expires_at <= upper(p_window) + make_interval(hours => 24 * d.value::integer)
      offset 0
    ) as e
    union all
    select e.user_id, e.item_id, e.kind, e.expires_at, d.value
    from unnest(p_users) as u (user_id)
    cross join lateral (
      select v.user_id, v.item_id, v.kind, v.expires_at
      from herald.source_expiry as v
      where v.user_id = u.user_id
      offset 0
    ) as e
    join day as d
      on e.expires_at > lower(p_window) + make_interval(hours => 24 * d.value::integer)
      and e.expires_at <= upper(p_window) + make_interval(hours => 24 * d.value::integer)
  )
  select i.user_id, i.item_id || '#' || i.days, i.expires_at - make_interval(hours => 24 * i.days::integer)
  from item as i
  cross join lateral (
    select v.organisation_id, v.chapter_id
    from herald.source_recipient as v
    where v.user_id = i.user_id
    offset 0
  ) as r
  where (not p_scenario.params ? 'kinds' or p_scenario.params -> 'kinds' ? i.kind)
    and r.organisation_id = p_scenario.organisation_id
    and (p_scenario.chapter_id is null or r.chapter_id = p_scenario.chapter_id)
    and not exists (
      select from herald.source_expiry as l
      where l.user_id = i.user_id and l.kind = i.kind and l.expires_at > i.expires_at
      offset 0
    );
$$;
comment on function herald.due_expiry is 'Evaluator of expiry: days_before, kinds. activity_ref: id of the item and "#days".';
revoke all on function herald.due_expiry from public;

create or replace function herald.still_due_expiry(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamptz)
returns setof herald.candidate
language sql stable
as $$
  select c.user_id, c.activity_ref, c.due_at
  from unnest(p_candidates) as c
  where coalesce(c.due_at + make_interval(hours => 24 * substring(c.activity_ref from '#(\d{1,5})$')::integer) > p_now, true);
$$;
comment on function herald.still_due_expiry is 'Those whose item is not past; a reference without "#days", given by hand, is not for this to judge.';
revoke all on function herald.still_due_expiry from public;

create or replace function herald.why_expiry(p_scenario herald.scenario, p_user uuid, p_now timestamptz)
returns text
language sql stable
as $$
  select coalesce(
    string_agg(
      format('%s expires in %s', e.kind, herald.duration_text(e.expires_at - p_now))
        || case when exists (
          select from herald.source_expiry as l
          where l.user_id = e.user_id and l.kind = e.kind and l.expires_at > e.expires_at
        ) then ', renewed' else '' end,
      '; ' order by e.expires_at
    ),
    'nothing expires'
  ) || format('; needs %s before', herald.said(p_scenario.params -> 'days_before', 'day|days', 'en'))
  from herald.source_expiry as e
  where e.user_id = p_user and e.expires_at > p_now and e.expires_at < 'infinity'
    and (not p_scenario.params ? 'kinds' or p_scenario.params -> 'kinds' ? e.kind);
$$;
comment on function herald.why_expiry is 'The numbers of one person, for herald.explain().';
revoke all on function herald.why_expiry from public;

select herald.register_scenario_type('expiry', 'herald.due_expiry'::regproc,
  '{
    "en": "Send {days_before:day|days} before [kinds:{kinds}|something] expires, unless it is renewed",
    "nb": "Send {days_before:dag|dager} før [kinds:{kinds}|noe] utløper, hvis det ikke er fornyet"
  }',
  '{
    "type": "object",
    "properties": {
      "days_before": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 36500}, "minItems": 1},
      "kinds": {"type": "array", "items": {"type": "string"}, "minItems": 1}
    },
    "required": ["days_before"],
    "examples": [{"days_before": [30, 7, 1]}]
  }',
  'herald.still_due_expiry'::regproc, 'herald.why_expiry'::regproc);
