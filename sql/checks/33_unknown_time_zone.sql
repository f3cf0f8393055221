-- Quiet hours and daily caps of people whose time zone Postgres does not know are counted in UTC.
select
  format('time zone "%s" of %s is not known', z.time_zone, case z.recipients when 1 then 'one person' else z.recipients || ' people' end) as problem,
  format('correct it in the table behind herald.source_recipient: select user_id from herald.source_recipient where time_zone = %L', z.time_zone) as remedy
from herald.recipient_time_zones() as z
where not z.known
order by 1;
