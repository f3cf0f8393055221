-- Small texts that several functions print.

create or replace function herald.duration_text(p_duration interval)
returns text
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
return (
  select case
    when q.s < 60 then format('%s %s', q.s, case q.s when 1 then 'second' else 'seconds' end)
    when q.s < 3600 then format('%s %s', q.s / 60, case q.s / 60 when 1 then 'minute' else 'minutes' end)
    when q.s < 86400 then format('%s %s %s %s', q.s / 3600, case q.s / 3600 when 1 then 'hour' else 'hours' end,
      q.s % 3600 / 60, case q.s % 3600 / 60 when 1 then 'minute' else 'minutes' end)
    else format('%s %s %s %s', q.s / 86400, case q.s / 86400 when 1 then 'day' else 'days' end,
      q.s % 86400 / 3600, case q.s % 86400 / 3600 when 1 then 'hour' else 'hours' end)
  end
  from (select floor(abs(extract(epoch from p_duration)))::bigint as s) as q
);
comment on function herald.duration_text is 'A duration in its two largest units: "29 days 23 hours".';
revoke all on function herald.duration_text from public;

-- An unknown time zone counts as UTC, as it does for the quiet hours.
create or replace function herald.moment_text(p_at timestamptz, p_time_zone text)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return to_char(p_at at time zone coalesce(p_time_zone, 'UTC'), 'YYYY-MM-DD HH24:MI ') || coalesce(p_time_zone, 'UTC');
exception when invalid_parameter_value then
  return to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"');
end
$$;
comment on function herald.moment_text is 'A moment by the clock of a time zone: "2026-02-07 10:00 Europe/Oslo".';
revoke all on function herald.moment_text from public;
