"""Through a pooler: Debian's pgbouncer in transaction mode in front of the database, as on Supabase's port 6543."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from pgherald import access
from tests.support.daemon import running_daemon, wait_asleep, wait_for
from tests.support.organisation import Organisation
from tests.support.pooler import needs_pgbouncer, pgbouncer
from tests.support.postgres import DAEMON_LOGIN

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.postgres import Database

pytestmark = needs_pgbouncer

NOTIFIED = 'pgherald_wakeups_total{source="notify"}'


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


def test_the_pool_goes_through_pgbouncer_while_the_listener_does_not(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path, open_directory: Path
) -> None:
    scenario = organisation.scenario()
    people = organisation.mentors(600)
    with pgbouncer(database, open_directory, "transaction") as pooled:
        settings = {
            "PGHERALD_LISTEN_URL": database.dsn_as(DAEMON_LOGIN, tcp=True),
            "PGHERALD_POLL_INTERVAL": "3600",
            "PGHERALD_SCHEDULER": "internal",
        }
        with (
            running_daemon(pooled, emulator, tmp_path / "a", settings) as first,
            running_daemon(pooled, emulator, tmp_path / "b", settings) as second,
        ):
            wait_asleep(organisation.db)
            for start in range(0, 600, 50):  # beside each other, in many transactions, and rung each time
                organisation.db.execute(
                    "select herald.enqueue(%s, u, 'by-hand') from unnest(%s::uuid[]) as u",
                    (scenario, people[start : start + 50]),
                )
            wait_for(lambda: len(organisation.notifications()) == 600)
            for daemon in (first, second):
                assert daemon.get("/readyz") == (200, '{"status":"ready","reasons":[]}\n')
                assert daemon.metric("pgherald_listener_up") == 1
                assert daemon.events("database_away") == []
            first.wait_for_metric(NOTIFIED, lambda times: times >= 1)
            through = organisation.db.execute(
                "select count(*) from pg_stat_activity "
                "where datname = current_database() and application_name = 'pgherald'"
            ).fetchone()
            assert through is not None
            assert through[0] <= 4, "the pool went past pgbouncer"
        tokens = [message["token"] for message in emulator.messages()]
        assert len(tokens) == len(set(tokens)) == 600


def test_listen_through_pgbouncer_is_found_out_said_and_replaced_by_polling(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path, open_directory: Path
) -> None:
    with pgbouncer(database, open_directory, "transaction") as pooled:
        settings = {"PGHERALD_POLL_INTERVAL": "0.3", "PGHERALD_SCHEDULER": "internal"}
        with running_daemon(pooled, emulator, tmp_path, settings) as daemon:
            said = daemon.wait_for_event("listener_behind_pooler")
            assert (said["level"], said["setting"]) == ("error", "PGHERALD_LISTEN_URL")
            assert daemon.get("/readyz") == (200, '{"status":"degraded","reasons":["listener_behind_pooler"]}\n')
            assert daemon.metric("pgherald_listener_up") == 0
            scenario = organisation.scenario()
            for number in range(20):
                organisation.enqueue(scenario, organisation.mentor(f"phone-{number}"))
            organisation.activity(organisation.mentor("active"))  # by the trigger
            wait_for(lambda: len(organisation.notifications()) == 21)
            assert daemon.metric(NOTIFIED) == 0
            # No lock is left behind in a connection that the pooler keeps.
            locks = organisation.db.execute("select from pg_locks where locktype = 'advisory' and classid = 1751479908")
            assert locks.fetchall() == []
            # The schedule is run all the same.
            daemon.wait_for_metric("pgherald_last_evaluation_timestamp_seconds", lambda at: at > 0)
            assert daemon.events("database_away") == []


def test_a_pooler_that_gives_sessions_is_as_good_as_none(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path, open_directory: Path
) -> None:
    with pgbouncer(database, open_directory, "session") as pooled:
        settings = {
            "PGHERALD_DATABASE_URL": database.daemon_dsn,
            "PGHERALD_LISTEN_URL": pooled,
            "PGHERALD_POLL_INTERVAL": "3600",
        }
        with running_daemon(pooled, emulator, tmp_path, settings) as daemon:
            daemon.wait_for_event("listening")
            scenario, person = organisation.scenario(), organisation.mentor("phone-1")
            wait_asleep(organisation.db)
            organisation.enqueue(scenario, person)
            wait_for(lambda: len(organisation.notifications()) == 1)
            daemon.wait_for_metric(NOTIFIED, lambda times: times >= 1)
            assert daemon.get("/readyz")[1] == '{"status":"ready","reasons":[]}\n'


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_a_pooler_that_is_full_is_waited_for_as_a_server_is(database: Database, open_directory: Path) -> None:
    with pgbouncer(database, open_directory, "session") as pooled, ExitStack() as others:

        def fill() -> None:
            for _ in range(200):
                others.enter_context(access.connect(pooled))

        with pytest.raises(access.NotNow, match="the pooler before it, has no connection left"):
            fill()
