"""`pgherald doctor` on schema, rights and triggers: what is broken is named, and mended by the remedy that it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgherald import schema
from pgherald.doctor import shipped
from tests.support.command import Command
from tests.support.doctor import findings, on_18, problems, warnings
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    import psycopg

    from tests.support.postgres import Database


@on_18
def test_a_database_without_the_schema_is_told_to_migrate(doctor: Command, empty_database: Database) -> None:
    what, remedy = problems(Command({**doctor.settings, "PGHERALD_DATABASE_URL": empty_database.dsn}))["schema"]
    assert "pgherald is not installed in this database" in what
    assert remedy == "pgherald migrate"


@on_18
def test_a_login_without_the_daemon_s_role_is_told_the_grant(doctor: Command, database: Database) -> None:
    stranger = Command({**doctor.settings, "PGHERALD_DATABASE_URL": database.dsn_as("authenticator")})
    what, remedy = problems(stranger)["schema"]
    assert 'the role "authenticator" may not use pgherald' in what
    assert remedy == 'grant herald_daemon to "authenticator"'


@on_18
def test_a_login_that_may_look_but_not_claim_is_a_problem_and_the_rest_is_examined(
    doctor: Command, db: psycopg.Connection, database: Database
) -> None:
    login = f"login_{database.name}"
    db.execute(f"create role {login} login in role herald_reader".encode())
    try:
        dsn = database.server.cluster.dsn(database.name, login)
        reader = Command({**doctor.settings, "PGHERALD_DATABASE_URL": dsn})
        answer = reader("doctor", "--json")
        what, remedy = findings(answer, "problem")["login_rights"]
        assert f'the role "{login}" may not use pgherald' in what
        assert "schema_version" in findings(answer, "ok")
        db.execute(remedy)
        assert problems(reader) == {}
    finally:
        db.execute(f"drop role {login}".encode())


@on_18
def test_a_table_that_the_source_views_may_not_read_is_not_laid_to_the_login(
    doctor: Command, db: psycopg.Connection
) -> None:
    organisation = Organisation(db)
    scenario, mentor = organisation.scenario(), organisation.mentor()
    db.execute("revoke select on app.peer_mentor from herald_owner")
    for arguments in (("why", mentor, "milestone"), ("preview", scenario)):
        answer = doctor(*arguments)
        assert answer.code == 78
        assert "herald_owner" in answer.err
        assert "permission denied for table peer_mentor: see `pgherald doctor`" in answer.err
        assert "herald_daemon" not in answer.err
    answer = doctor("doctor", "--json")
    what, remedy = findings(answer, "unseen")["checks/33_unknown_time_zone"]
    assert what == 'unknown time zone: "herald_owner" may not look'
    assert remedy == "grant herald_owner what the source views read"
    assert "checks/31_source_rights" in findings(answer, "problem")


@on_18
def test_a_login_that_may_call_the_functions_one_by_one_needs_no_role(
    doctor: Command, db: psycopg.Connection, database: Database
) -> None:
    login = f"login_{database.name}"
    db.execute(f"create role {login} login; grant usage on schema herald to {login}".encode())
    db.execute(f"grant execute on all functions in schema herald to {login}".encode())
    try:
        dsn = database.server.cluster.dsn(database.name, login)
        assert schema.check_for_daemon(dsn) == schema.shipped_version()
        answer = Command({**doctor.settings, "PGHERALD_DATABASE_URL": dsn})("doctor", "--json")
        assert "login_rights" not in findings(answer, "problem")
    finally:
        db.execute(f"drop owned by {login}; drop role {login}".encode())


def test_a_replaced_function_is_seen_though_nobody_migrated(doctor: Command, db: psycopg.Connection) -> None:
    db.execute(
        "create or replace function herald.cooldown_window_start(p_at timestamptz, p_cooldown interval) "
        "returns timestamptz language sql immutable strict parallel safe return p_at"
    )
    what, remedy = problems(doctor)["checks/20_function_drift"]
    assert "herald.cooldown_window_start" in what
    assert "is not the one that migrate left" in what
    assert remedy == "pgherald migrate"


@on_18
def test_functions_of_another_release_are_seen_by_the_program_s_own_files(
    doctor: Command, db: psycopg.Connection
) -> None:
    """Whoever migrated with another release left what that one calls sound."""
    db.execute(
        "create or replace function herald.touched_from(p_scenario herald.scenario, p_now timestamptz) "
        "returns timestamptz language plpgsql stable as 'begin return p_now; end'"
    )
    body = db.execute("select pg_get_functiondef('herald.ring()'::regprocedure)").fetchone()
    assert body is not None
    db.execute(str(body[0]).replace("0.5", "0.6"))
    db.execute("alter table herald.shipped_function disable row level security")
    db.execute(
        "update herald.shipped_function set fingerprint = md5(pg_get_functiondef(signature::regprocedure)) "
        "where signature in ('herald.ring()')"
    )
    db.execute("alter table herald.shipped_function enable row level security")
    what, remedy = problems(doctor)["functions"]
    assert what == "the schema has ring of another release"
    assert remedy == "pgherald migrate (of this program)"


def test_every_function_of_the_files_is_read(db: psycopg.Connection) -> None:
    found = {each.name for each in shipped.shipped()}
    there = {
        row[0]
        for row in db.execute("select proname from pg_proc where pronamespace = 'herald'::regnamespace").fetchall()
    }
    assert found == there
    assert sum(bool(each.body) for each in shipped.shipped()) > len(found) / 2


@on_18
def test_a_dropped_trigger_is_found_and_its_remedy_mends_it(
    doctor: Command, database: Database, db: psycopg.Connection
) -> None:
    db.execute("drop trigger herald_touch_insert on app.activity")
    what, remedy = problems(doctor)["checks/25_missing_trigger"]
    assert "app.activity" in what
    database.connect("migrator").execute(remedy)
    assert problems(doctor) == {}
    db.execute("alter table app.activity disable trigger herald_touch_update")
    what, remedy = problems(doctor)["checks/24_disabled_trigger"]
    db.execute(remedy)
    assert problems(doctor) == {}


@on_18
def test_a_source_that_nobody_watches_is_late_and_no_problem(
    doctor: Command, database: Database, db: psycopg.Connection
) -> None:
    db.execute("select herald.unwatch('app.peer_mentor')")
    assert problems(doctor) == {}
    what, remedy = warnings(doctor)["checks/26_unwatched_source"]
    assert "its changes wait for the scheduled run" in what
    database.connect("migrator").execute(remedy)
    assert "checks/26_unwatched_source" not in warnings(doctor)


@on_18
def test_a_revoked_grant_is_found_and_its_remedy_mends_it(doctor: Command, db: psycopg.Connection) -> None:
    db.execute("revoke execute on function herald.sweep from herald_daemon")
    what, remedy = problems(doctor)["checks/14_missing_grant"]
    assert "herald.sweep" in what
    db.execute(remedy)
    assert problems(doctor) == {}


@on_18
def test_row_level_security_switched_off_is_found_and_its_remedy_mends_it(
    doctor: Command, db: psycopg.Connection
) -> None:
    db.execute("alter table herald.device_token disable row level security")
    what, remedy = problems(doctor)["checks/12_row_security"]
    assert "herald.device_token" in what
    db.execute(remedy)
    assert problems(doctor) == {}


@on_18
def test_more_rights_than_the_daemon_needs_are_a_warning(
    doctor: Command, database: Database, db: psycopg.Connection
) -> None:
    db.execute("grant select on app.peer_mentor to herald_daemon_login")
    what, remedy = warnings(doctor)["login_rights"]
    assert "app.peer_mentor" in what
    db.execute(remedy)
    assert "login_rights" not in warnings(doctor)
    found = warnings(Command({**doctor.settings, "PGHERALD_DATABASE_URL": database.dsn}))
    what, remedy = found["login_rights"]
    assert "is a superuser" in what
    assert remedy == "create role pgherald login in role herald_daemon, named in PGHERALD_DATABASE_URL"
