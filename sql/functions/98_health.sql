-- Facts for sql/checks, which doctor runs, be it as the daemon's own role: what the tables tell without a person in it, and
-- what needs more than a query.

create or replace function herald.shipped_functions()
returns table (signature text, shipped text, installed text, missing_grantees text[])
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    f.signature,
    f.fingerprint,
    -- under the search path of migrate: it decides how the types are written
    md5(pg_get_functiondef(p.oid)),
    array(
      select g.grantee
      from unnest(f.grantees) as g (grantee)
      where exists (select from pg_roles as r where r.rolname = g.grantee)
        and not has_function_privilege(g.grantee, p.oid, 'EXECUTE')
      order by 1
    )
  from herald.shipped_function as f
  left join pg_proc as p on p.oid = to_regprocedure(f.signature)
  order by f.signature;
$$;
comment on function herald.shipped_functions is
  'The functions that migrate left: their fingerprint then and now (null: gone), and our roles that lost the right to call them.';
revoke all on function herald.shipped_functions from public;
grant execute on function herald.shipped_functions to herald_daemon, herald_reader;

create or replace function herald.evaluators()
returns table (scenario_type text, purpose text, function_name text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select t.scenario_type, f.purpose, f.function_name
  from herald.scenario_type as t
  cross join lateral (values ('evaluator', t.evaluator), ('still_due', t.still_due), ('why', t.why)) as f (purpose, function_name)
  where f.function_name is not null
  order by t.scenario_type, f.purpose;
$$;
comment on function herald.evaluators is 'The functions that the scenario types name.';
revoke all on function herald.evaluators from public;
grant execute on function herald.evaluators to herald_daemon, herald_reader;

create or replace function herald.last_runs()
returns table (
  scenario_id uuid, name text, mode text, created_at timestamptz, held_at timestamptz, last_scheduled_at timestamptz, error_code text, failed_at timestamptz
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.scenario_id, s.name, s.mode, s.created_at, (select min(c.held_at) from herald.catch_up as c where c.scenario_id = s.scenario_id), l.started_at,
    nullif(left(f.error, 5), 'held:'),
    case when f.error not like 'held:%' then f.started_at end
  from herald.scenario as s
  left join lateral (
    select r.started_at
    from herald.evaluation_run as r
    where r.scenario_id = s.scenario_id and r.source = 'schedule'
    order by r.started_at desc
    limit 1
  ) as l on true
  left join lateral (
    select r.started_at, r.error
    from herald.evaluation_run as r
    where r.scenario_id = s.scenario_id
    order by r.started_at desc, r.run_id desc
    limit 1
  ) as f on true;
$$;
comment on function herald.last_runs is
  'Each scenario: when it was last evaluated on schedule, and the SQLSTATE of its last run if that failed (no text: it may hold a value).';
revoke all on function herald.last_runs from public;
grant execute on function herald.last_runs to herald_daemon, herald_reader;

create or replace function herald.stuck_prompts(p_grace interval)
returns table (owner text, prompts bigint, oldest_deadline timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.owner, count(*), min(p.deadline)
  from herald.open_prompt as o
  join herald.prompt as p on p.prompt_id = o.prompt_id
  where o.deadline < now() - p_grace
  group by p.owner;
$$;
comment on function herald.stuck_prompts is 'Prompts in sending whose deadline is past by more than the grace, by their owner: no daemon sweeps.';
revoke all on function herald.stuck_prompts from public;
grant execute on function herald.stuck_prompts to herald_daemon, herald_reader;

create or replace function herald.recipient_time_zones()
returns table (time_zone text, recipients bigint, known boolean)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  for time_zone, recipients in
    select r.time_zone, count(*)
    from herald.source_recipient as r
    where r.time_zone is not null
    group by r.time_zone
    order by r.time_zone
  loop
    begin
      known := now() at time zone time_zone is not null;
    exception when invalid_parameter_value then
      known := false;
    end;
    return next;
  end loop;
end
$$;
comment on function herald.recipient_time_zones is 'The time zones in herald.source_recipient, and whether Postgres knows them.';
revoke all on function herald.recipient_time_zones from public;
grant execute on function herald.recipient_time_zones to herald_daemon, herald_reader;

-- A view reads with its owner's rights, one with security_invoker with those of whoever reads it: so down to the tables.
create or replace function herald.source_tables()
returns table (source text, relation oid, reader oid, columns smallint[])
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive used as (
    select c.relname::text as source, c.oid as relation, c.relowner as reader, array[]::smallint[] as columns
    from pg_class as c
    where c.relnamespace = 'herald'::regnamespace and c.relkind = 'v'
      and c.relname in ('source_recipient', 'source_activity', 'source_expiry', 'source_coordinator')
    union
    select
      u.source,
      d.refobjid,
      case when 'security_invoker=true' = any (v.reloptions) or 'security_invoker=on' = any (v.reloptions) then u.reader else v.relowner end,
      d.columns
    from used as u
    join pg_class as v on v.oid = u.relation and v.relkind = 'v'
    join pg_rewrite as w on w.ev_class = v.oid
    cross join lateral (
      select p.refobjid, array_agg(distinct p.refobjsubid::smallint) filter (where p.refobjsubid > 0) as columns
      from pg_depend as p
      where p.classid = 'pg_rewrite'::regclass and p.objid = w.oid and p.refclassid = 'pg_class'::regclass and p.refobjid <> v.oid
      group by p.refobjid
    ) as d
  )
  select u.source, u.relation, u.reader, u.columns
  from used as u
  join pg_class as c on c.oid = u.relation
  where u.relation not in (
    select s.oid from pg_class as s
    where s.relnamespace = 'herald'::regnamespace and s.relname in ('source_recipient', 'source_activity', 'source_expiry', 'source_coordinator')
  );
$$;
comment on function herald.source_tables is
  'What the source views read, views in between included: with whose rights, and which columns.';
revoke all on function herald.source_tables from public;
grant execute on function herald.source_tables to herald_daemon, herald_reader;

-- cron.job shows a role its own jobs only. Not visible is not missing: no row then.
create or replace function herald.cron_jobs()
returns table (jobname text, username text, active boolean, scheduled boolean, last_status text, last_start timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- By oid: a name in a schema that one may not use is an error.
  if (
    select count(*)
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'cron' and c.relname in ('job', 'job_run_details')
      and has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT')
  ) < 2 then
    return;
  end if;
  return query execute $q$
    select n.jobname, j.username, coalesce(j.active, false), j.jobid is not null, r.status, r.start_time
    from (values ('herald-evaluate'), ('herald-maintain')) as n (jobname)
    left join (
      select k.* from cron.job as k where k.database = current_database()
    ) as j on j.jobname = n.jobname
    left join lateral (
      select d.status, d.start_time
      from cron.job_run_details as d
      where d.jobid = j.jobid and d.end_time is not null
      order by d.runid desc
      limit 1
    ) as r on true
  $q$;
end
$$;
comment on function herald.cron_jobs is
  'pgherald''s two pg_cron jobs as the caller may see them: scheduled at all, active, how the last finished run ended. No row without pg_cron.';
revoke all on function herald.cron_jobs from public;
grant execute on function herald.cron_jobs to herald_daemon, herald_reader;

-- Of the login, not of the role it put on: what it can take off, an intruder can too. What PUBLIC may do is not counted.
-- Whoever administers the server or this schema keeps its rights: the daemon is to have a login of its own.
create or replace function herald.excess_rights(p_role name default session_user)
returns table (problem text, remedy text, kind text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with login as (
    select r.oid, r.rolname, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolreplication,
      case when exists (
        select from pg_roles as a
        where (a.rolsuper or a.rolcreaterole or a.rolname = 'herald_owner')
          and pg_has_role(r.oid, a.oid, case when current_setting('server_version_num')::integer >= 160000 then 'SET' else 'MEMBER' end)
      ) then
        'create role pgherald login in role herald_daemon, named in PGHERALD_DATABASE_URL'
        || case when exists (
          select from pg_auth_members as m where m.member = r.oid and m.roleid = (select d.oid from pg_roles as d where d.rolname = 'herald_daemon')
        ) then format('; then revoke herald_daemon from %I', r.rolname) else '' end
      end as own_login
    from pg_roles as r
    where r.rolname = p_role
  )
  select format('role "%s" %s', l.rolname, a.what), coalesce(l.own_login, format('alter role %I no%s', l.rolname, a.kind)), a.kind
  from login as l
  cross join lateral (values
    (l.rolsuper, 'is a superuser', 'superuser'),
    (l.rolbypassrls and not l.rolsuper, 'bypasses row-level security', 'bypassrls'),
    (l.rolcreaterole and not l.rolsuper, 'may create roles', 'createrole'),
    (l.rolreplication and not l.rolsuper, 'may replicate', 'replication')
  ) as a (has, what, kind)
  where a.has
  union all
  select
    format('role "%s" may act as "%s"', l.rolname, r.rolname),
    coalesce(l.own_login, format('revoke %I from %I', r.rolname, l.rolname)),
    'member'
  from login as l
  cross join pg_roles as r
  where not l.rolsuper and r.oid <> l.oid and r.rolname <> 'herald_daemon'
    and (r.rolsuper or r.rolbypassrls or r.rolcreaterole
      or r.rolname in ('herald_owner', 'authenticated', 'service_role', 'pg_read_all_data', 'pg_write_all_data',
        'pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'))
    and pg_has_role(l.oid, r.oid, case when current_setting('server_version_num')::integer >= 160000 then 'SET' else 'MEMBER' end)
  union all
  select
    format('role "%s" has rights on %s table%s, %s among them', l.rolname, t.n, case when t.n > 1 then 's' end, t.example),
    coalesce(l.own_login, format('revoke all on %s from %I', t.example, l.rolname)),
    'tables'
  from login as l
  cross join lateral (
    select count(*) as n, min(format('%I.%I', n.nspname, c.relname)) as example
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f')
      and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
      and (
        exists (
          select from unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) as p (right_)
          where has_table_privilege(l.oid, c.oid, p.right_) and not has_table_privilege('public', c.oid, p.right_)
        ) or exists (
          select from unnest(array['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) as p (right_)
          where has_any_column_privilege(l.oid, c.oid, p.right_) and not has_any_column_privilege('public', c.oid, p.right_)
        )
      )
  ) as t
  where not l.rolsuper and t.n > 0;
$$;
comment on function herald.excess_rights is
  'What a role (the session''s own login) may do beyond calling the daemon''s functions, each with what mends it, and its kind: superuser, bypassrls, createrole, replication, member, tables. No row is how it should be.';
revoke all on function herald.excess_rights from public;
grant execute on function herald.excess_rights to herald_daemon, herald_reader;
