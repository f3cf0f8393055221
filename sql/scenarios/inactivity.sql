-- inactivity: the last activity, or with none the registration, lies `days` back; again every `repeat_days`.
-- A person became due at `t` when no activity fell between the base (that last activity) and `t`: what came after does
-- not change who was due then, so a backtest tells the truth and a window may be cut anywhere. Whether they were active
-- since is for still_due. A day is 24 hours here, whatever the clocks do.
-- Found through an index on (occurred_at), or for p_users through (user_id, occurred_at), by which each hit is checked.
-- `offset 0` keeps the planner from turning a look-up for a few people into a hash of everybody.
create or replace function herald.due_inactivity(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null)
returns setof herald.candidate
language sql stable
as $$
  with step as materialized (
    select
      k.k,
      make_interval(hours => 24 * ((p_scenario.params ->> 'days')::integer + k.k * coalesce((p_scenario.params ->> 'repeat_days')::integer, 0))) as lag
    from generate_series(0, case when p_scenario.params ? 'repeat_days' then (
      -- no further back than the oldest moment there is
      select least(
        coalesce((p_scenario.params ->> 'max_repeats')::integer, 100000),
        greatest(ceil((extract(epoch from upper(p_window)) - extract(epoch from least(o.activity, o.registration)))
          / 86400 / (p_scenario.params ->> 'repeat_days')::integer), 0)
      )::integer
      from (
        select
          (select a.occurred_at from herald.source_activity as a where a.occurred_at > '-infinity' order by a.occurred_at limit 1) as activity,
          (select r.registered_at from herald.source_recipient as r where r.registered_at > '-infinity' order by r.registered_at limit 1) as registration
        where p_users is null
        offset 0
      ) as o
    ) else 0 end) as k (k)
  ), base as (
    select a.user_id, a.activity_id, a.occurred_at as at, s.k, s.lag
    from step as s
    cross join lateral (
      select v.user_id, v.activity_id, v.occurred_at
      from herald.source_activity as v
      where p_users is null and v.occurred_at > lower(p_window) - s.lag and v.occurred_at <= upper(p_window) - s.lag
      offset 0
    ) as a
    union all
    select r.user_id, null, r.registered_at, s.k, s.lag
    from step as s
    cross join lateral (
      select v.user_id, v.registered_at
      from herald.source_recipient as v
      where p_users is null and v.registered_at > lower(p_window) - s.lag and v.registered_at <= upper(p_window) - s.lag
      offset 0
    ) as r
    union all
    -- For p_users alone: the repeats of a moment that fall into the window are found by division. So no row of anybody else is read,
    -- which could fail; and an odd moment of long ago does not cost a step for each repeat since.
    select p.user_id, p.activity_id, p.at, k.k, make_interval(hours => 24 * (y.days + k.k * coalesce(y.every, 0)))
    from (
      select
        (p_scenario.params ->> 'days')::integer as days,
        (p_scenario.params ->> 'repeat_days')::integer as every,
        case when p_scenario.params ? 'repeat_days' then coalesce((p_scenario.params ->> 'max_repeats')::integer, 100000) else 0 end as most,
        -- in seconds
        extract(epoch from lower(p_window)) - 86400::numeric * (p_scenario.params ->> 'days')::integer as first_base,
        extract(epoch from upper(p_window)) - 86400::numeric * (p_scenario.params ->> 'days')::integer as last_base,
        86400::numeric * (p_scenario.params ->> 'repeat_days')::integer as between_repeats
      offset 0
    ) as y
    cross join unnest(p_users) as u (user_id)
    cross join lateral (
      select v.user_id, v.activity_id, v.occurred_at as at
      from herald.source_activity as v
      where v.user_id = u.user_id
        and v.occurred_at > case
          when y.days + y.most::bigint * coalesce(y.every, 0) > 100000 then '-infinity'
          else lower(p_window) - make_interval(hours => 24 * (y.days + y.most * coalesce(y.every, 0)))
        end
        and v.occurred_at <= upper(p_window) - make_interval(hours => 24 * y.days)
      union all
      select v.user_id, null, v.registered_at
      from herald.source_recipient as v
      where v.user_id = u.user_id
        and v.registered_at > '-infinity' and v.registered_at <= upper(p_window) - make_interval(hours => 24 * y.days)
      offset 0
    ) as p
    -- one more than needed at the lower end; without repeats, the first time alone
    cross join lateral generate_series(
      greatest(div(y.first_base - extract(epoch from p.at), y.between_repeats), 0)::integer,
      least(div(y.last_base - extract(epoch from p.at), y.between_repeats), y.most)::integer
    ) as k (k)
    where p.at + make_interval(hours => 24 * (y.days + k.k * coalesce(y.every, 0))) > lower(p_window)
      and p.at + make_interval(hours => 24 * (y.days + k.k * coalesce(y.every, 0))) <= upper(p_window)
  )
  select b.user_id, coalesce(b.activity_id, 'registered') || case when b.k > 0 then '#' || b.k else '' end, b.at + b.lag
  from base as b
  cross join lateral (
    select v.organisation_id, v.chapter_id
    from herald.source_recipient as v
    where v.user_id = b.user_id
    offset 0
  ) as r
  where r.organisation_id = p_scenario.organisation_id
    and (p_scenario.chapter_id is null or r.chapter_id = p_scenario.chapter_id)
    and not exists (
      select from herald.source_activity as l
      where l.user_id = b.user_id
        and l.occurred_at <= b.at + b.lag
        and l.occurred_at >= case when b.activity_id is null then '-infinity' else b.at end
        and (b.activity_id is null or (l.occurred_at, l.activity_id) > (b.at, b.activity_id))
      offset 0
    );
$$;
comment on function herald.due_inactivity is
  'Evaluator of inactivity: days, repeat_days, max_repeats. activity_ref: id of the last activity, or "registered"; "#k" for the k-th repeat.';
revoke all on function herald.due_inactivity from public;

create or replace function herald.still_due_inactivity(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamptz)
returns setof herald.candidate
language sql stable
as $$
  select c.user_id, c.activity_ref, c.due_at
  from unnest(p_candidates) as c
  where not exists (
    select from herald.source_activity as a
    where a.user_id = c.user_id and a.occurred_at > c.due_at and a.occurred_at <= p_now
    offset 0
  );
$$;
comment on function herald.still_due_inactivity is 'Those who were not active since they became due.';
revoke all on function herald.still_due_inactivity from public;

create or replace function herald.why_inactivity(p_scenario herald.scenario, p_user uuid, p_now timestamptz)
returns text
language sql stable
as $$
  select case
    when l.at is null then 'no activity and no registration is known'
    else format('last %s %s ago; needs %s%s', l.what, herald.duration_text(p_now - l.at),
      herald.said(p_scenario.params -> 'days', 'day|days', 'en'),
      coalesce(', then every ' || herald.said(p_scenario.params -> 'repeat_days', 'day|# days', 'en'), ''))
  end
  from (select) as one
  left join lateral (
    (select 'activity' as what, a.occurred_at as at
    from herald.source_activity as a
    where a.user_id = p_user and a.occurred_at <= p_now and a.occurred_at > '-infinity'
    order by a.occurred_at desc
    limit 1)
    union all
    select 'sign of life, the registration,', r.registered_at
    from herald.source_recipient as r
    where r.user_id = p_user and r.registered_at <= p_now and r.registered_at > '-infinity'
    limit 1
  ) as l on true;
$$;
comment on function herald.why_inactivity is 'The numbers of one person, for herald.explain().';
revoke all on function herald.why_inactivity from public;

select herald.register_scenario_type('inactivity', 'herald.due_inactivity'::regproc,
  '{
    "en": "Send {days:day|days} after the last activity (or registration)[repeat_days:, then again every {repeat_days:day|# days}][max_repeats:, at most {max_repeats:once|# times} more]",
    "nb": "Send {days:dag|dager} etter siste aktivitet (eller registrering)[repeat_days:, deretter igjen hver {repeat_days:dag|#. dag}][max_repeats:, høyst {max_repeats:én gang|# ganger} til]"
  }',
  '{
    "type": "object",
    "properties": {
      "days": {"type": "integer", "minimum": 1, "maximum": 36500},
      "repeat_days": {"type": "integer", "minimum": 1, "maximum": 36500},
      "max_repeats": {"type": "integer", "minimum": 1, "maximum": 10000}
    },
    "required": ["days"],
    "dependentRequired": {"max_repeats": ["repeat_days"]},
    "examples": [{"days": 30, "repeat_days": 30, "max_repeats": 3}]
  }',
  'herald.still_due_inactivity'::regproc, 'herald.why_inactivity'::regproc);
