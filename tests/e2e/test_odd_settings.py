"""The daemon and the commands where the database has settings that nobody expects: they work, and nothing is lost."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support.daemon import running_daemon, wait_for
from tests.support.doctor import problems
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from pathlib import Path

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.command import Command
    from tests.support.postgres import Database

TROUBLES = ("record_failed", "database_away", "listener_lost")


def put_on(database: Database, **settings: str) -> None:
    """Settings of all sessions of the database from now on."""
    with database.server.admin() as admin:
        for name, value in settings.items():
            admin.execute(f"alter database {database.name} set {name} = '{value}'")


def test_an_outcome_is_written_where_arrays_have_no_nulls(
    database: Database, db: psycopg.Connection, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    organisation = Organisation(db)
    put_on(database, array_nulls="off")
    with running_daemon(database.daemon_dsn, emulator, tmp_path) as daemon:
        organisation.scenario()
        person = organisation.mentor("phone-1")
        organisation.activity(person)
        wait_for(lambda: organisation.histories() == [(person, "dispatched", None, 1)])
        assert [each for name in TROUBLES for each in daemon.events(name)] == []


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_the_daemon_works_at_read_committed_whatever_the_database_has_set(
    isolation: str, database: Database, db: psycopg.Connection, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    organisation = Organisation(db)
    put_on(database, default_transaction_isolation=isolation)
    with running_daemon(database.daemon_dsn, emulator, tmp_path) as daemon, psycopg.connect(database.dsn) as other:
        daemon.wait_for_metric("pgherald_oauth_expiry_timestamp_seconds", lambda at: at > 0)
        organisation.scenario()
        person = organisation.mentor("phone-1")
        emulator.process.send_signal(signal.SIGSTOP)
        try:
            organisation.activity(person)
            wait_for(lambda: organisation.prompts().get(person) == ("sending", None))
            other.execute("update herald.prompt set priority = priority")
        finally:
            emulator.process.send_signal(signal.SIGCONT)
        # Its outcome waits for that transaction, and at any higher level would fail once it commits.
        wait_for(
            lambda: db.execute("select 1 from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0").fetchone()
        )
        other.commit()
        wait_for(lambda: len(organisation.notifications()) == 1)
        assert [each for name in TROUBLES for each in daemon.events(name)] == []


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "SJIS", "LATIN1"])
def test_text_is_text_in_any_client_encoding(
    encoding: str,
    database: Database,
    db: psycopg.Connection,
    pgherald: Command,
    emulator: EmulatorProcess,
    tmp_path: Path,
) -> None:
    organisation = Organisation(db)
    put_on(database, client_encoding=encoding)
    scenario_id = organisation.scenario(name="Påminnelse \U0001f514")
    with running_daemon(database.daemon_dsn, emulator, tmp_path) as daemon:
        organisation.enqueue(scenario_id, organisation.mentor("phone-1"), "Ærend-1")
        wait_for(lambda: len(organisation.notifications()) == 1)
        assert [each for name in TROUBLES for each in daemon.events(name)] == []
    assert [each["name"] for each in pgherald("status", "--json").json["scenarios"]] == ["Påminnelse \U0001f514"]
    migrated = pgherald("migrate", "--dry-run", PGHERALD_DATABASE_URL=database.migrator_dsn)
    assert (migrated.code, migrated.err) == (0, "")


def test_doctor_says_that_no_trigger_fires_where_the_database_replays_rows(database: Database, doctor: Command) -> None:
    put_on(database, session_replication_role="replica")
    what, remedy = problems(doctor)["checks/24_disabled_trigger"]
    assert what.startswith("session_replication_role is replica: no trigger fires")
    assert remedy.startswith(f"alter database {database.name} reset session_replication_role;")


@pytest.mark.parametrize("command", ["migrate", "pause"])
def test_who_may_only_read_is_told_of_the_setting_as_well_as_of_a_standby(
    command: str, database: Database, pgherald: Command
) -> None:
    put_on(database, default_transaction_read_only="on")
    answer = pgherald(command, PGHERALD_DATABASE_URL=database.migrator_dsn)
    assert answer.code == 78
    assert "is this a standby, then name the primary in PGHERALD_DATABASE_URL" in answer.err
    assert "or is default_transaction_read_only on" in answer.err


def test_a_login_that_acts_as_another_role_is_told_of_that_one(database: Database, pgherald: Command) -> None:
    acting = make_conninfo(database.dsn, options="-c role=anon")
    answer = pgherald("status", PGHERALD_DATABASE_URL=acting)
    assert answer.code == 78
    assert 'the role "anon", as which "postgres" acts (alter role ... set role), may not use' in answer.err
    assert 'grant herald_daemon to "anon"' in answer.err
