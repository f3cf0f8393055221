"""Several daemons on one database, and a connection that dies without a word."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgherald.emulator.client import emulator_process
from tests.fault.links import Link
from tests.support.daemon import running_daemon, wait_for
from tests.support.organisation import Organisation
from tests.support.postgres import DAEMON_LOGIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psycopg

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.postgres import Database

pytestmark = pytest.mark.parametrize("server", ["pg18"], indirect=True)

SENT = 'pgherald_prompts_total{scenario_type="milestone",outcome="sent"}'


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def organisation(db: psycopg.Connection, emulator: EmulatorProcess) -> Organisation:
    emulator.clear()
    return Organisation(db)


def leader(db: psycopg.Connection) -> int | None:
    """The backend that holds the schedule's lock."""
    row = db.execute(
        "select pid from pg_locks where locktype = 'advisory' and classid = 1751479908 and objid = 2 and granted "
        "and database = (select oid from pg_database where datname = current_database())"
    ).fetchone()
    return None if row is None else int(row[0])


def test_three_daemons_share_the_work_and_the_schedule_moves_when_its_daemon_dies(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    emulator.set_faults({"do": "latency", "seconds": 0.02})
    scenario = organisation.scenario()
    people = organisation.mentors(900)
    with ExitStack() as stack:
        daemons = [
            stack.enter_context(
                running_daemon(database.daemon_dsn, emulator, tmp_path / name, {"PGHERALD_SCHEDULER": "internal"})
            )
            for name in "abc"
        ]
        organisation.db.execute(
            "select herald.enqueue(%s, u, 'by-hand') from unnest(%s::uuid[]) as u", (scenario, people)
        )
        wait_for(lambda: len(organisation.notifications()) == 900, 60)
        shares = [daemon.metric(SENT) for daemon in daemons]
        assert sum(shares) == 900
        assert min(shares) >= 90, shares
        tokens = [message["token"] for message in emulator.messages()]
        assert len(tokens) == len(set(tokens)) == 900
        before = wait_for(lambda: leader(organisation.db))
        daemons[0].kill()  # the first one leads
        began = time.monotonic()
        wait_for(lambda: leader(organisation.db) not in (None, before), 10)
        assert time.monotonic() - began < 10
        # Those that are left go on.
        organisation.enqueue(scenario, organisation.mentor("phone-after"))
        wait_for(lambda: len(organisation.notifications()) == 901)
    emulator.set_faults()


def test_a_connection_that_falls_silent_is_noticed_within_ten_seconds(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    place = conninfo_to_dict(database.dsn_as(DAEMON_LOGIN, tcp=True))
    with Link(str(place["host"]), int(str(place["port"]))) as link:
        settings = {
            "PGHERALD_LISTEN_URL": make_conninfo("", **(place | {"host": "127.0.0.1", "port": link.port})),
            "PGHERALD_POLL_INTERVAL": "0.3",
        }
        with running_daemon(database.daemon_dsn, emulator, tmp_path, settings) as daemon:
            assert daemon.metric("pgherald_listener_up") == 1
            link.silent = True
            began = time.monotonic()
            wait_for(lambda: daemon.metric("pgherald_listener_up") == 0, 20)
            assert time.monotonic() - began < 10
            assert daemon.get("/readyz") == (200, '{"status":"degraded","reasons":["listener_down"]}\n')
            # Meanwhile the poll finds the work.
            scenario = organisation.scenario()
            organisation.enqueue(scenario, organisation.mentor("phone-1"))
            wait_for(lambda: len(organisation.notifications()) == 1)
            assert daemon.metric('pgherald_wakeups_total{source="poll"}') >= 1
            link.silent = False
            link.reset()
            daemon.wait_for_event("listening", count=2, seconds=40)
            assert daemon.metric("pgherald_listener_up") == 1
            assert daemon.metric('pgherald_wakeups_total{source="reconnect"}') >= 1
            assert daemon.get("/readyz")[1] == '{"status":"ready","reasons":[]}\n'
