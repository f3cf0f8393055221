-- A scenario in a sentence that a coordinator understands. The sentence of a type is a template (scenario_type.description);
-- what all scenarios share (cooldown, quiet hours, what differs from the default) follows it here, in English and Norwegian.
--
-- Templates: {name} a value; {name:day|days} a number and its noun, with # where the number goes: {name:once|# times};
-- {name#} ordinals; [name:text|otherwise] the text if the parameter is set, and not false or 0. What a list repeats is said
-- once. Its numbers are joined with "and", ordinals rising, others falling ("30, 7 and 1 days"); words with "or", as they
-- stand. Words (activity types, flags, kinds) are looked up in herald.phrase.

create or replace function herald.phrase_of(p_word text, p_locale text)
returns text
language sql stable
set search_path = pg_catalog, pg_temp
return coalesce(
  (select p.phrase from herald.phrase as p where p.locale = p_locale and p.word = p_word),
  translate(p_word, '_', ' ')
);
comment on function herald.phrase_of is 'How a word is said: the phrase of that locale, else the word with spaces for underscores.';
revoke all on function herald.phrase_of from public;

create or replace function herald.listed(p_items text[], p_joiner text)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return case
  when cardinality(p_items) < 2 then p_items[1]
  else array_to_string(p_items[:cardinality(p_items) - 1], ', ') || ' ' || p_joiner || ' ' || p_items[cardinality(p_items)]
end;
comment on function herald.listed is 'Items as a person lists them: "30, 7 and 1".';
revoke all on function herald.listed from public;

create or replace function herald.ordinal(p_number text, p_locale text)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return p_number || case
  when p_locale = 'nb' then '.'
  when p_number ~ '1[123]$' then 'th'
  when p_number ~ '1$' then 'st'
  when p_number ~ '2$' then 'nd'
  when p_number ~ '3$' then 'rd'
  else 'th'
end;
comment on function herald.ordinal is 'A number as an ordinal: "1st", in Norwegian "1.".';
revoke all on function herald.ordinal from public;

-- One placeholder. p_forms: null for {name}, '#' for {name#}, 'one|many' for {name:one|many}.
create or replace function herald.said(p_value jsonb, p_forms text, p_locale text)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_values jsonb := case jsonb_typeof(p_value) when 'array' then p_value else jsonb_build_array(p_value) end;
  v_numbers constant boolean := not exists (select from jsonb_array_elements(v_values) as e where jsonb_typeof(e) <> 'number');
  v_items text[];
  v_form text;
  v_text text;
begin
  select array_agg(
    case when p_forms = '#' then herald.ordinal(e.value, p_locale) when v_numbers then e.value else herald.phrase_of(e.value, p_locale) end
    order by e.place
  ) into v_items
  from (
    select v.value,
      case when not v_numbers then min(v.place) when p_forms = '#' then v.value::numeric else -v.value::numeric end as place
    from jsonb_array_elements_text(v_values) with ordinality as v (value, place)
    group by v.value
  ) as e;
  v_form := herald.listed(v_items, case
    when v_numbers then case p_locale when 'nb' then 'og' else 'and' end
    else case p_locale when 'nb' then 'eller' else 'or' end
  end);
  if p_forms is null or p_forms = '#' then
    return v_form;
  end if;
  v_text := split_part(p_forms, '|', case when v_items = array['1'] then 1 else 2 end);
  return case when p_forms like '%#%' then replace(v_text, '#', v_form) else v_form || ' ' || v_text end;
end
$$;
comment on function herald.said is 'A parameter in words, by the forms of its placeholder.';
revoke all on function herald.said from public;

create or replace function herald.sentence(p_template text, p_params jsonb, p_locale text)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  c_option constant text := '\[(\w+):((?:[^][{}|]|\{[^{}]*\})*)(?:\|((?:[^][{}]|\{[^{}]*\})*))?\]';
  v_template text := p_template;
  v_found text[];
  v_value jsonb;
  v_text text := '';
begin
  -- First the options, in the template alone: what a parameter holds is never read as a template.
  loop
    v_found := regexp_match(v_template, '^(.*?)' || c_option || '(.*)$');
    exit when v_found is null;
    v_value := p_params -> v_found[2];
    v_template := v_found[1]
      || case when coalesce(v_value, 'null') in ('null', 'false', '0') then coalesce(v_found[4], '') else v_found[3] end
      || v_found[5];
  end loop;
  loop
    v_found := regexp_match(v_template, '^([^{]*)\{(\w+)(?::([^{}]*)|(#))?\}(.*)$');
    exit when v_found is null;
    v_text := v_text || v_found[1] || coalesce(herald.said(p_params -> v_found[2], coalesce(v_found[3], v_found[4]), p_locale), '');
    v_template := v_found[5];
  end loop;
  return v_text || v_template;
end
$$;
comment on function herald.sentence is 'A template filled with parameters, see the head of this file''s source: functions/80_describe.sql.';
revoke all on function herald.sentence from public;

-- Weeks where they fit evenly; else days, hours, minutes and seconds, as far as there are some.
create or replace function herald.span(p_duration interval, p_locale text)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return (
  select herald.listed(
    array(
      select case p_locale when 'nb' then replace(u.n::text, '.', ',') else u.n::text end
        || ' ' || split_part(case p_locale when 'nb' then u.nb else u.en end, '|', case u.n when 1 then 1 else 2 end)
      from (
        values
          (case when q.s % 604800 = 0 then div(q.s, 604800) else 0 end, 'week|weeks', 'uke|uker', 1),
          (case when q.s % 604800 = 0 then 0 else div(q.s, 86400) end, 'day|days', 'dag|dager', 2),
          (div(q.s % 86400, 3600), 'hour|hours', 'time|timer', 3),
          (div(q.s % 3600, 60), 'minute|minutes', 'minutt|minutter', 4),
          (trim_scale(q.s % 60), 'second|seconds', 'sekund|sekunder', 5)
      ) as u (n, en, nb, place)
      where u.n > 0
      order by u.place
    ),
    case p_locale when 'nb' then 'og' else 'and' end
  )
  from (select extract(epoch from p_duration) as s) as q
);
comment on function herald.span is 'A duration in words: "2 weeks", "1 day and 12 hours".';
revoke all on function herald.span from public;

-- A coordinator learns of their own chapters.
create or replace function herald.held_for_caller(p_scenario uuid)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return exists (
  select from herald.catch_up as c
  where c.scenario_id = p_scenario and c.held_at is not null
    and (herald.is_staff() or c.chapter_id in (select herald.my_chapters()))
);
comment on function herald.held_for_caller is 'Whether a scenario is held in a chapter that the caller may see.';
revoke all on function herald.held_for_caller from public;

-- What follows the sentence of the type: cooldown and quiet hours always, the rest where it is not the default.
create or replace function herald.conditions(p_scenario herald.scenario, p_locale text)
returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
  select coalesce(string_agg('; ' || case p_locale when 'nb' then c.nb else c.en end, '' order by c.place), '')
  from (
    select
      extract(epoch from p_scenario.cooldown) as cooldown,
      -- a push goes out a moment after it was due: one repeat after the cooldown, not at its end
      case when p_scenario.scenario_type = 'inactivity' then
        div(extract(epoch from p_scenario.cooldown), 86400 * (p_scenario.params ->> 'repeat_days')::numeric) + 1
      end as repeats,
      to_char(p_scenario.quiet_from, case extract(second from p_scenario.quiet_from) when 0 then 'HH24:MI' else 'HH24:MI:SS' end) as quiet_from,
      to_char(p_scenario.quiet_until, case extract(second from p_scenario.quiet_until) when 0 then 'HH24:MI' else 'HH24:MI:SS' end) as quiet_until
  ) as q
  cross join lateral (
    values
      -- however short the cooldown is, the idempotency key lets one a day pass
      (1, true,
        'at most once ' || concat_ws(' and once ',
          case q.cooldown
            when 3600 then 'an hour' when 86400 then 'a day' when 604800 then 'a week' else 'in ' || herald.span(p_scenario.cooldown, 'en') end,
          case when q.cooldown < 86400 then 'a day (UTC)' end),
        'høyst én gang ' || concat_ws(' og én gang ',
          case q.cooldown
            when 3600 then 'i timen' when 86400 then 'om dagen' when 604800 then 'i uken' else 'på ' || herald.span(p_scenario.cooldown, 'nb') end,
          case when q.cooldown < 86400 then 'om dagen (UTC)' end)),
      (2, q.repeats > 1,
        'in effect ' || case
          when (p_scenario.params ->> 'max_repeats')::numeric < q.repeats then 'once'
          else format('every %s days', q.repeats * (p_scenario.params ->> 'repeat_days')::numeric) end,
        'i praksis ' || case
          when (p_scenario.params ->> 'max_repeats')::numeric < q.repeats then 'én gang'
          else format('hver %s. dag', q.repeats * (p_scenario.params ->> 'repeat_days')::numeric) end),
      (3, p_scenario.quiet_from is not null,
        format('not between %s and %s', q.quiet_from, q.quiet_until),
        format('ikke mellom %s og %s', q.quiet_from, q.quiet_until)),
      (4, p_scenario.expires_after <> interval '3 days',
        format('at most %s late', herald.span(p_scenario.expires_after, 'en')),
        format('høyst %s forsinket', herald.span(p_scenario.expires_after, 'nb'))),
      (5, p_scenario.presentation = 'data', 'silently', 'uten lyd og varsel'),
      (6, p_scenario.devices = 'all', 'on all devices', 'på alle enheter'),
      (7, p_scenario.max_prompts_per_run is not null,
        format('held if it would reach more than %s at once', herald.said(to_jsonb(p_scenario.max_prompts_per_run), 'person|people', 'en')),
        format('holdes tilbake hvis den ville nå flere enn %s på én gang',
          herald.said(to_jsonb(p_scenario.max_prompts_per_run), 'person|personer', 'nb'))),
      (8, p_scenario.on_unknown = 'resend',
        'sent again if it is not certain that it arrived', 'sendes på nytt hvis det er uvisst om den kom fram'),
      (9, p_scenario.mode = 'canary',
        format('only to %s %% of the people', p_scenario.canary_percent),
        format('bare til %s %% av personene', p_scenario.canary_percent)),
      (10, p_scenario.mode = 'shadow', 'only counted, nothing is sent', 'telles bare, ingenting sendes'),
      (11, p_scenario.mode = 'off', 'switched off', 'slått av'),
      (12, p_scenario.paused_at is not null, 'paused', 'satt på pause'),
      (13, herald.held_for_caller(p_scenario.scenario_id),
        'held: a run would have reached too many people', 'holdt tilbake: en kjøring ville nådd for mange personer')
  ) as c (place, applies, en, nb)
  where c.applies
);
comment on function herald.conditions is 'What a scenario adds to the sentence of its type: cooldown, quiet hours, and what is not the default.';
revoke all on function herald.conditions from public;

create or replace function herald.described(p_scenario herald.scenario, p_locale text)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  -- 'nb_NO', as phones and older databases write it, is 'nb-NO'
  v_locale constant text := replace(p_locale, '_', '-');
  v_language text := lower(split_part(v_locale, '-', 1));
  v_description jsonb;
begin
  if v_locale is null or v_locale !~ '^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$' then
    raise exception 'this is not a locale'
      using errcode = 'invalid_parameter_value', hint = 'pass a language tag: ''en'' or ''nb''; others are answered in English';
  end if;
  select t.description into v_description
  from herald.scenario_type as t
  where t.scenario_type = p_scenario.scenario_type;
  -- One language for the whole: that of the request where all of it is known, else English.
  v_language := case when v_language in ('nb', 'nn', 'no') and v_description ? 'nb' then 'nb' else 'en' end;
  return herald.sentence(v_description ->> v_language, p_scenario.params, v_language) || herald.conditions(p_scenario, v_language);
end
$$;
comment on function herald.described is 'A scenario as a sentence: in Norwegian for nb, nn and no where its type has one, else in English.';
revoke all on function herald.described from public;

create or replace function herald.describe(p_scenario uuid, p_locale text default 'en')
returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
return herald.described(herald.scenario_for_caller(p_scenario), p_locale);
comment on function herald.describe is
  'A scenario as a sentence that a coordinator understands, in English (en) or Norwegian (nb); own chapters'' and organisation-wide ones only.';
revoke all on function herald.describe from public;
grant execute on function herald.describe to authenticated, service_role, herald_daemon, herald_reader;
