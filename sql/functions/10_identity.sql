-- Keys of a push, and who is calling. The keys are computed here for SQL and, alike, in pgherald.model.idempotency_key for Python.

-- Lower-case hex SHA-256 of user, U+001F, scenario type, U+001F, UTC date of the evaluation.
create or replace function herald.idempotency_key(p_user uuid, p_scenario_type text, p_evaluation_date date)
returns text
language sql immutable strict parallel safe
return encode(
  sha256(convert_to(p_user::text || chr(31) || p_scenario_type || chr(31) || to_char(p_evaluation_date, 'YYYY-MM-DD'), 'UTF8')),
  'hex'
);
comment on function herald.idempotency_key is 'The key of a decision: one push per person, scenario type and UTC date of evaluation.';
revoke all on function herald.idempotency_key from public;
grant execute on function herald.idempotency_key to herald_daemon, herald_reader, authenticated, service_role;

-- Windows tile the time since the epoch. Two sends at least a cooldown apart never share one, whatever the cooldown
-- was at the first: the window's start of the second is later than the first send. Without a cooldown: the instant.
create or replace function herald.cooldown_window_start(p_at timestamptz, p_cooldown interval)
returns timestamptz
language sql immutable strict parallel safe
return case
  when extract(epoch from p_cooldown) > 0
  then to_timestamp(floor(extract(epoch from p_at) / extract(epoch from p_cooldown)) * extract(epoch from p_cooldown))
  else p_at
end;
comment on function herald.cooldown_window_start is 'Start of the cooldown window that a moment lies in.';
revoke all on function herald.cooldown_window_start from public;

-- The person behind the JWT that the API verified (PostgREST and Supabase put its claims into request.jwt.claims).
-- Not parallel safe: before Postgres 17 a block that catches errors cannot run in a parallel query.
create or replace function herald.jwt_user_id()
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_claims jsonb;
begin
  begin
    v_claims := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
    if jsonb_typeof(v_claims) <> 'object' then
      raise invalid_text_representation;
    end if;
    return (v_claims ->> 'sub')::uuid;
  exception when data_exception then
    raise exception 'the claims of this request are malformed'
      using errcode = 'invalid_authorization_specification',
            hint = 'request.jwt.claims must be a JSON object whose "sub" is a uuid';
  end;
end
$$;
comment on function herald.jwt_user_id is 'The user_id in the claims of this request; null without claims; 28000 when they are malformed.';
revoke all on function herald.jwt_user_id from public;
grant execute on function herald.jwt_user_id to authenticated, service_role;

-- Staff see every chapter: the owner, the daemon, readers, the backend. Anybody else is a client, bound to the claims.
-- The setting "role" survives SECURITY DEFINER; session_user counts where no role was set.
create or replace function herald.is_staff()
returns boolean
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
return (
  select bool_or(pg_has_role(coalesce(nullif(current_setting('role', true), 'none'), session_user::text)::name, r.rolname, 'usage'))
  from pg_roles as r
  where r.rolname in ('herald_owner', 'herald_daemon', 'herald_reader', 'service_role')
);
comment on function herald.is_staff is 'Whether the caller may see every chapter (as opposed to a client bound to its claims).';
revoke all on function herald.is_staff from public;
