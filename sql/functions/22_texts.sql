-- Small texts that several functions print.

create or replace function herald.duration_text(p_duration interval)
returns text
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
return (
  select case
    when q.s < 60 then format('%s seconds', q.s)
    when q.s < 3600 then format('%s minutes', q.s / 60)
    when q.s < 86400 then format('%s hours %s minutes', q.s / 3600, q.s % 3600 / 60)
    else format('%s days %s hours', q.s / 86400, q.s % 86400 / 3600)
  end
  from (select floor(abs(extract(epoch from p_duration)))::bigint as s) as q
);
comment on function herald.duration_text is 'A duration in its two largest units: "29 days 23 hours".';
revoke all on function herald.duration_text from public;
