"""The fixtures keep their word: what the other tests rely on without looking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.postgres import AUTHENTICATOR, DAEMON_LOGIN, MIGRATOR, wait_until_blocked

if TYPE_CHECKING:
    from tests.support.postgres import Database, Server


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_a_database_of_its_own(database: Database, db: psycopg.Connection, turn: int) -> None:
    found = db.execute("select to_regclass('public.left_behind'), to_regclass('herald.prompt')::text").fetchone()
    assert found == (None, "herald.prompt")
    db.execute("create table public.left_behind as select %s as turn", (turn,))
    assert database.server.cluster.major_version == {"pg15": 15, "pg18": 18}[database.server.name]


def test_no_role_but_the_superuser_has_more_rights_than_it_needs(db: psycopg.Connection) -> None:
    rights = {
        role: (superuser, bypass, create_role, inherits, member_of)
        for role, superuser, bypass, create_role, inherits, member_of in db.execute(
            """
            select r.rolname, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolinherit,
              array(
                select m.roleid::regrole::text from pg_catalog.pg_auth_members as m where m.member = r.oid order by 1
              )
            from pg_catalog.pg_roles as r
            """
        )
    }
    assert rights[MIGRATOR][:3] == (False, False, True)
    assert rights[DAEMON_LOGIN] == (False, False, False, True, ["herald_daemon"])
    assert rights[AUTHENTICATOR] == (False, False, False, False, ["anon", "authenticated", "service_role"])


def test_roles_are_put_on_over_the_socket_and_over_tcp(database: Database) -> None:
    for role in ("postgres", MIGRATOR, DAEMON_LOGIN, "anon", "authenticated", "service_role", "herald_reader"):
        for tcp in (False, True):
            with psycopg.connect(database.dsn_as(role, tcp=tcp)) as connection:
                assert connection.execute("select current_user").fetchone() == (role,)
                assert connection.info.host == ("127.0.0.1" if tcp else str(database.server.cluster.socket_directory))


def test_a_person_is_who_the_claims_say(database: Database) -> None:
    person = database.connect_as_person("00000000-0000-0000-0000-000000000001")
    found = person.execute("select current_user, current_setting('request.jwt.claims')::json ->> 'sub'").fetchone()
    assert found == ("authenticated", "00000000-0000-0000-0000-000000000001")


def test_the_log_tells_which_statements_came(database: Database, server: Server) -> None:
    database.log_statements()
    with server.captured_log() as log:
        database.connect(application_name="teller").execute("select 'heard'")
    assert [line for line in log.lines_of(database) if "/teller" in line and "select 'heard'" in line]


def test_a_blocked_backend_is_waited_for_and_an_idle_one_is_not_mistaken(database: Database) -> None:
    first, second, observer = database.connect(), database.connect(), database.connect()
    second_pid = second.info.backend_pid
    with pytest.raises(AssertionError, match="was not blocked"):
        wait_until_blocked(observer, second_pid, seconds=0.05)
    first.execute("begin")
    first.execute("lock table herald.prompt")
    second.pgconn.send_query(b"select count(*) from herald.prompt")
    wait_until_blocked(observer, second_pid)
    first.execute("rollback")


def test_pg_cron_is_at_work_in_its_database(cron_database: Database) -> None:
    found = cron_database.connect().execute("select extname from pg_extension where extname = 'pg_cron'").fetchone()
    assert found == ("pg_cron",)
