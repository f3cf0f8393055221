"""The roles: made by a migrator that is no superuser, on a plain cluster and on one laid out as Supabase's.

What each may do is in tests/expected/privileges.txt.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgherald import schema
from pgherald.errors import ConfigError
from tests.support import readme
from tests.support.postgres import DAEMON_LOGIN, DEBIAN_15, MIGRATOR, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.postgres import Database, Server

EXPECTED = Path(__file__).parents[1] / "expected" / "privileges.txt"

HEADER = """\
# What everybody but herald_owner may do in schema herald after `pgherald migrate`: role, object, rights; nothing
# else is granted. Then the functions that run with their owner's rights, all of them with a pinned search path.
# Written by `make expected`, read by reviewers, compared by tests/db/test_roles.py.
"""

# Supabase's: the bootstrap superuser is supabase_admin, and `postgres` is what customers get. Here the bootstrap
# superuser is postgres, so the customer's role has another name.
CUSTOMER = "customer"
SUPABASE = f"""
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;
create role {CUSTOMER} login nosuperuser createrole createdb replication bypassrls;
grant anon, authenticated, service_role to {CUSTOMER};
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
create role supabase_auth_admin nologin;
"""
SUPABASE_DATABASE = f"""
grant all on schema public to {CUSTOMER};
grant usage on schema public to anon, authenticated, service_role;
create schema extensions;
grant usage on schema extensions to anon, authenticated, service_role, {CUSTOMER};
create schema auth authorization supabase_auth_admin;
grant usage on schema auth to anon, authenticated, service_role, {CUSTOMER};
create function auth.uid() returns uuid language sql stable as $$
  select nullif(current_setting('request.jwt.claims', true)::jsonb ->> 'sub', '')::uuid
$$;
alter role {CUSTOMER} set search_path = "$user", public, extensions;
set role {CUSTOMER};
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges grant all on tables to anon, authenticated, service_role;
alter default privileges grant execute on functions to anon, authenticated, service_role;
reset role;
"""

PRIVILEGES = """
with role as (
  select r.oid, r.rolname from pg_roles as r
  where r.rolname in ('anon', 'authenticated', 'service_role', 'herald_daemon', 'herald_reader')
  union all select 0, 'PUBLIC'
), granted as (
  select 'schema herald' as object, a.grantee, a.privilege_type, 1 as kind
  from pg_namespace as n cross join aclexplode(n.nspacl) as a where n.nspname = 'herald'
  union all
  select case c.relkind when 'v' then 'view ' when 'r' then 'table ' when 'S' then 'sequence ' else '' end || c.relname,
    a.grantee, a.privilege_type, 2
  from pg_class as c cross join aclexplode(c.relacl) as a where c.relnamespace = 'herald'::regnamespace
  union all
  select 'table ' || c.relname || ' (' || string_agg(t.attname, ', ' order by t.attnum) || ')',
    a.grantee, a.privilege_type, 3
  from pg_class as c join pg_attribute as t on t.attrelid = c.oid cross join aclexplode(t.attacl) as a
  where c.relnamespace = 'herald'::regnamespace
  group by c.relname, a.grantee, a.privilege_type
  union all
  select 'type ' || t.typname, a.grantee, a.privilege_type, 4
  from pg_type as t cross join aclexplode(coalesce(t.typacl, acldefault('T', t.typowner))) as a
  where t.typnamespace = 'herald'::regnamespace and t.typelem = 0 and t.typrelid not in (
    select c.oid from pg_class as c where c.relkind <> 'c')
  union all
  select 'function ' || p.oid::regprocedure::text, a.grantee, a.privilege_type, 5
  from pg_proc as p cross join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
  where p.pronamespace = 'herald'::regnamespace
)
select r.rolname, g.object, lower(string_agg(g.privilege_type, ', ' order by g.privilege_type))
from granted as g join role as r on r.oid = g.grantee
group by r.rolname, g.kind, g.object
order by r.rolname collate "C", g.kind, g.object collate "C"
"""

DEFINERS = """
select p.oid::regprocedure::text
from pg_proc as p where p.pronamespace = 'herald'::regnamespace and p.prosecdef
order by p.oid::regprocedure::text collate "C"
"""


def privileges(database: Database) -> str:
    connection = database.connect()
    lines = [" | ".join(row) for row in connection.execute(PRIVILEGES)]
    definers = [f"security definer | {name}" for (name,) in connection.execute(DEFINERS)]
    return HEADER + "\n".join(lines) + "\n\n" + "\n".join(definers) + "\n"


@contextmanager
def new_cluster(version: str, request: pytest.FixtureRequest) -> Iterator[tuple[Server, psycopg.Connection]]:
    """A cluster without any role of pgherald's."""
    if version == "15":
        request.getfixturevalue("pg15")
    binaries = DEBIAN_15 if version == "15" else None
    with running_server(f"new{version}", binaries=binaries) as server, server.admin() as admin:
        yield server, admin


def rights_of(dsn: str) -> list[tuple[str, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(PRIVILEGES).fetchall() + connection.execute(DEFINERS).fetchall()


def assert_owned_and_closed(dsn: str) -> None:
    """Everything in the schema belongs to herald_owner, which is nobody special; the checks find nothing."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        others = connection.execute(
            "select c.relname from pg_class as c where c.relnamespace = 'herald'::regnamespace "
            "and c.relowner <> 'herald_owner'::regrole "
            "union all select p.proname from pg_proc as p where p.pronamespace = 'herald'::regnamespace "
            "and p.proowner <> 'herald_owner'::regrole "
            "union all select n.nspname from pg_namespace as n where n.nspname = 'herald' "
            "and n.nspowner <> 'herald_owner'::regrole"
        )
        assert others.fetchall() == []
        special = connection.execute(
            "select rolname from pg_roles where rolname in ('herald_owner', 'herald_daemon', 'herald_reader') "
            "and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolcanlogin or rolreplication)"
        )
        assert special.fetchall() == []
        found = {name: connection.execute(query.encode()).fetchall() for name, query in schema.checks()}
        assert {name: rows for name, rows in found.items() if rows} == {}


def test_privileges_are_the_expected_ones(database: Database, request: pytest.FixtureRequest) -> None:
    found = privileges(database)
    if request.config.getoption("--update-expected"):
        EXPECTED.write_text(found)
    assert found.splitlines() == EXPECTED.read_text().splitlines(), "if this is meant: make expected, and commit it"


@pytest.mark.parametrize("version", ["18", "15"])
def test_a_plain_cluster_is_migrated_by_a_role_with_createrole(version: str, request: pytest.FixtureRequest) -> None:
    with new_cluster(version, request) as (server, admin):
        admin.execute(f"create role {MIGRATOR} login createrole")
        admin.execute(f"create database app owner {MIGRATOR}")
        schema.migrate(server.cluster.dsn("app", MIGRATOR), with_reference=True)
        assert_owned_and_closed(server.cluster.dsn("app"))
        members = admin.execute(
            "select distinct member::regrole::text from pg_auth_members where roleid = 'herald_owner'::regrole"
        )
        assert members.fetchall() == [(MIGRATOR,)]


@pytest.mark.parametrize("version", ["18", "15"])
def test_a_database_laid_out_as_supabase_gets_the_same_rights_as_a_plain_one(
    version: str, request: pytest.FixtureRequest
) -> None:
    with new_cluster(version, request) as (server, admin):
        admin.execute(SUPABASE)
        for database in ("app", "plain"):
            admin.execute(f"create database {database} owner {CUSTOMER}")
        with psycopg.connect(server.cluster.dsn("app"), autocommit=True) as connection:
            connection.execute(SUPABASE_DATABASE)
        for database in ("app", "plain"):
            schema.migrate(server.cluster.dsn(database, CUSTOMER), with_reference=True)
        assert_owned_and_closed(server.cluster.dsn("app"))
        assert rights_of(server.cluster.dsn("app")) == rights_of(server.cluster.dsn("plain"))
        with psycopg.connect(server.cluster.dsn("app", "authenticator"), autocommit=True) as person:
            person.execute("""set role authenticated; set request.jwt.claims = '{"sub": "%s"}'""" % ("1" * 32))
            person.execute("select herald.register_device_token('token', 'ios')")
            assert person.execute("select auth.uid() = herald.jwt_user_id()").fetchone() == (True,)
            person.execute("set role anon")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                person.execute("select herald.register_device_token('token', 'ios')")


def test_a_second_migrating_role_is_told_what_it_needs(request: pytest.FixtureRequest) -> None:
    with new_cluster("18", request) as (server, admin):
        for role in (MIGRATOR, "other"):
            admin.execute(f"create role {role} login createrole")
            admin.execute(f"create database db_{role} owner {role}")
        schema.migrate(server.cluster.dsn(f"db_{MIGRATOR}", MIGRATOR))
        with pytest.raises(ConfigError) as raised:
            schema.migrate(server.cluster.dsn("db_other", "other"))
        message, hint = str(raised.value).split("\n")
        assert 'role "other" may not act as "herald_owner", which exists in this cluster already' in message
        remedy = "As migrator, or a superuser: grant herald_owner to other"
        assert hint.strip() == remedy
        with psycopg.connect(server.cluster.dsn("postgres", MIGRATOR), autocommit=True) as first:
            first.execute(remedy.split(": ")[1].encode())
        schema.migrate(server.cluster.dsn("db_other", "other"))
        assert_owned_and_closed_but_for_sources(server.cluster.dsn("db_other"))


def test_the_grant_after_a_restore_on_16_or_later_lets_the_migrating_role_work_and_makes_it_no_daemon(
    request: pytest.FixtureRequest,
) -> None:
    (grant,) = (block.text for block in readme.blocks("text") if block.text.startswith("grant herald_owner"))
    with new_cluster("18", request) as (server, admin):
        admin.execute(f"create role {MIGRATOR} login createrole")
        admin.execute(f"create database app owner {MIGRATOR}")
        schema.migrate(server.cluster.dsn("app", MIGRATOR), with_reference=True)
        # as `pg_dumpall` of a 15, where no role came with its ADMIN option, leaves them
        admin.execute(f"revoke herald_owner, herald_daemon, herald_reader from {MIGRATOR} cascade")
        admin.execute(f"grant herald_owner to {MIGRATOR}; create role {DAEMON_LOGIN} login")
        admin.execute(grant.encode())
        schema.migrate(server.cluster.dsn("app", MIGRATOR))
        assert_owned_and_closed(server.cluster.dsn("app"))
        with psycopg.connect(server.cluster.dsn("app", MIGRATOR), autocommit=True) as migrator:
            migrator.execute(f"grant herald_daemon to {DAEMON_LOGIN}")
            migrator.execute("drop schema herald cascade; drop owned by herald_owner")
            migrator.execute("drop role herald_owner, herald_daemon, herald_reader")


def assert_owned_and_closed_but_for_sources(dsn: str) -> None:
    with pytest.raises(AssertionError, match="30_source_undefined"):
        assert_owned_and_closed(dsn)


REFUSED = {
    "no role may be made": (
        "create role {role} login",
        'role "herald_owner" does not exist, and "{role}" may not create it',
        "alter role {role} createrole",
    ),
    "the owner is a superuser": (
        "create role {role} login createrole; create role herald_owner superuser",
        'role "herald_owner" can log in, is a superuser or bypasses row-level security',
        "alter role herald_owner nologin nosuperuser nobypassrls",
    ),
    "the owner bypasses row-level security": (
        "create role {role} login createrole; create role herald_owner bypassrls",
        'role "herald_owner" can log in, is a superuser or bypasses row-level security',
        "alter role herald_owner nologin nosuperuser nobypassrls",
    ),
    "the owner logs in": (
        "create role {role} login createrole; create role herald_owner login",
        'role "herald_owner" can log in, is a superuser or bypasses row-level security',
        "alter role herald_owner nologin nosuperuser nobypassrls",
    ),
}


@pytest.mark.parametrize("version", ["18", "15"])
def test_what_migrate_cannot_mend_it_explains_with_the_remedy(version: str, request: pytest.FixtureRequest) -> None:
    with new_cluster(version, request) as (server, admin):
        admin.execute("create database app")
        for prepare, message, remedy in REFUSED.values():
            admin.execute(prepare.format(role="weak").encode())
            admin.execute("alter database app owner to weak")
            with pytest.raises(ConfigError) as raised:
                schema.migrate(server.cluster.dsn("app", "weak"))
            assert message.format(role="weak") in str(raised.value)
            assert remedy.format(role="weak") in str(raised.value)
            admin.execute("alter database app owner to postgres; drop role weak; drop role if exists herald_owner")
        admin.execute("create role weak login createrole; create role stranger")
        with pytest.raises(ConfigError, match="grant create on database app to weak"):
            schema.migrate(server.cluster.dsn("app", "weak"))
        admin.execute("alter database app owner to weak")
        with psycopg.connect(server.cluster.dsn("app"), autocommit=True) as connection:
            connection.execute("create schema herald authorization stranger")
        with pytest.raises(ConfigError, match='schema "herald" belongs to role "stranger"'):
            schema.migrate(server.cluster.dsn("app", "weak"))


@pytest.mark.parametrize("version", ["18", "15"])
def test_a_migrating_role_that_inherits_nothing_works_or_is_told(version: str, request: pytest.FixtureRequest) -> None:
    with new_cluster(version, request) as (server, admin):
        admin.execute("create role careful login createrole noinherit")
        admin.execute("create database app owner careful")
        dsn = server.cluster.dsn("app", "careful")
        if version == "15":
            with pytest.raises(ConfigError, match="alter role careful inherit"):
                schema.migrate(dsn)
            admin.execute("alter role careful inherit")
        schema.migrate(dsn, with_reference=True)
        assert_owned_and_closed(server.cluster.dsn("app"))


def test_the_daemons_login_may_call_its_functions_and_nothing_else(database: Database) -> None:
    daemon = database.connect(DAEMON_LOGIN)
    assert daemon.execute("select * from herald.excess_rights()").fetchall() == []
    relations = daemon.execute(
        "select oid::regclass::text from pg_class where relnamespace in ('herald'::regnamespace, 'app'::regnamespace) "
        "and relkind in ('r', 'v', 'S')"
    ).fetchall()
    assert len(relations) > 20
    for (relation,) in relations:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            daemon.execute(f"select * from {relation}".encode())
    for forbidden in (
        "select herald.run(null, null, null, null)",
        "select * from herald.gate(null, null, null)",
        "select herald.register_scenario_type('x', 'herald.touch', '{}', '{}')",
        "call herald.maintain()",
        "set role herald_owner",
        "create table herald.mine (a int)",
        "create function herald.mine() returns int language sql return 1",
    ):
        with pytest.raises(
            (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName)
        ) as raised:
            daemon.execute(forbidden.encode())
        assert raised.type is psycopg.errors.InsufficientPrivilege, forbidden


EXCESS = {
    "alter role {login} superuser": 'role "{login}" is a superuser',
    "alter role {login} bypassrls": 'role "{login}" bypasses row-level security',
    "alter role {login} createrole": 'role "{login}" may create roles',
    "alter role {login} replication": 'role "{login}" may replicate',
    "grant herald_owner to {login}": 'role "{login}" may act as "herald_owner"',
    "grant service_role to {login}": 'role "{login}" may act as "service_role"',
    "grant pg_read_all_data to {login}": 'role "{login}" may act as "pg_read_all_data"',
    "grant select on herald.prompt to {login}": 'role "{login}" has rights on 1 table, herald.prompt among them',
    "grant update (name) on app.chapter to {login}": 'role "{login}" has rights on 1 table, app.chapter among them',
    "grant insert on app.activity to herald_daemon": 'role "{login}" has rights on 1 table, app.activity among them',
}


# Whoever may do so is a person's or the installation's login, which is not to lose what it is for.
ADMINISTERS = ("alter role {login} superuser", "alter role {login} createrole", "grant herald_owner to {login}")


@pytest.mark.parametrize("too_much", EXCESS)
def test_whatever_the_daemon_is_given_too_much_is_named_with_what_takes_it_away(
    database: Database, too_much: str
) -> None:
    admin = database.connect()
    login = f"login_{database.name}"
    admin.execute(f"create role {login} login in role herald_daemon".encode())
    try:
        admin.execute(too_much.format(login=login).encode())
        found = admin.execute("select problem, remedy from herald.excess_rights(%s)", (login,)).fetchall()
        assert EXCESS[too_much].format(login=login) in [problem for problem, _ in found]
        with psycopg.connect(database.server.cluster.dsn(database.name, login), autocommit=True) as daemon:
            assert daemon.execute("select problem, remedy from herald.excess_rights()").fetchall() == found
        check = dict(schema.checks())["16_role_rights"].encode()
        assert set(found) <= set(admin.execute(check).fetchall())
        if too_much in ADMINISTERS:
            return
        for _, remedy in found:
            admin.execute(remedy.replace(f"from {login}", f"from {login}, herald_daemon").encode())
        if "service_role" not in too_much and "pg_read" not in too_much:
            assert admin.execute("select * from herald.excess_rights(%s)", (login,)).fetchall() == []
    finally:
        admin.execute(f"drop owned by {login}; drop role {login}".encode())


@pytest.mark.parametrize("too_much", ADMINISTERS)
def test_a_login_that_administers_loses_nothing_and_the_daemon_is_to_have_its_own(
    database: Database, too_much: str
) -> None:
    admin = database.connect()
    login = f"login_{database.name}"
    own = "create role pgherald login in role herald_daemon, named in PGHERALD_DATABASE_URL"
    admin.execute(f"create role {login} login bypassrls; grant select on app.activity to {login}".encode())
    try:
        admin.execute(too_much.format(login=login).encode())
        found = admin.execute("select problem, remedy from herald.excess_rights(%s)", (login,)).fetchall()
        assert {remedy for _, remedy in found} == {own}
        admin.execute(f"grant herald_daemon to {login}".encode())
        found = admin.execute("select problem, remedy from herald.excess_rights(%s)", (login,)).fetchall()
        assert {remedy for _, remedy in found} == {f"{own}; then revoke herald_daemon from {login}"}
    finally:
        admin.execute(f"drop owned by {login}; drop role {login}".encode())


def test_only_the_migrating_role_can_call_the_internals(database: Database) -> None:
    internals = database.connect().execute(
        "select p.oid, p.oid::regprocedure::text from pg_proc as p where p.pronamespace = 'herald'::regnamespace "
        "and cardinality(array(select a.grantee from aclexplode(p.proacl) as a where a.grantee <> p.proowner)) = 0"
    )
    found: dict[int, str] = dict(internals.fetchall())
    assert {"herald.touch()", "herald.ring()", "herald.maintain(timestamp with time zone,integer)"} <= set(
        found.values()
    )
    may = database.connect().execute(
        "select distinct r.rolname from pg_roles as r cross join unnest(%s::oid[]) as f (oid) "
        "where has_function_privilege(r.oid, f.oid, 'execute') and not r.rolsuper",
        (list(found),),
    )
    assert sorted(name for (name,) in may) == ["herald_owner", MIGRATOR]


def test_readers_read_statistics_and_nothing_else(database: Database) -> None:
    reader = database.connect("herald_reader")
    views = reader.execute(
        "select oid::regclass::text from pg_class "
        "where relnamespace = 'herald'::regnamespace and relname like '%statistics'"
    ).fetchall()
    assert len(views) == 4
    for (view,) in views:
        reader.execute(f"select * from {view}".encode()).fetchall()
    for table in ("herald.prompt", "herald.device_token", "herald.scenario", "herald.source_recipient"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(f"select * from {table}".encode())
