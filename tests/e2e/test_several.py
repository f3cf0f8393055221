"""Several daemons on one database, and a connection that dies without a word."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.fault.links import Link
from tests.support.daemon import Daemon, running_daemon, wait_asleep, wait_for
from tests.support.organisation import Organisation
from tests.support.postgres import DAEMON_LOGIN

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.postgres import Database

pytestmark = pytest.mark.parametrize("server", ["pg18"], indirect=True)

SENT = 'pgherald_prompts_total{scenario_type="milestone",outcome="sent"}'


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
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
    # FCM is what each of them waits for, and not this machine.
    emulator.set_faults({"do": "latency", "seconds": 0.1})
    scenario = organisation.scenario()
    people = organisation.mentors(900)
    with ExitStack() as stack:

        def start(name: str) -> Daemon:
            settings = {"PGHERALD_SCHEDULER": "internal"}
            return stack.enter_context(running_daemon(database.daemon_dsn, emulator, tmp_path / name, settings))

        daemons = [start("a")]
        before = wait_for(lambda: leader(organisation.db))  # the first one leads
        daemons += [start("b"), start("c")]
        wait_asleep(organisation.db)
        organisation.db.execute(
            "select herald.enqueue(%s, u, 'by-hand') from unnest(%s::uuid[]) as u", (scenario, people)
        )
        wait_for(lambda: len(organisation.notifications()) == 900)
        wait_for(lambda: sum(daemon.metric(SENT) for daemon in daemons) == 900)
        shares = [daemon.metric(SENT) for daemon in daemons]
        assert min(shares) >= 90, shares
        tokens = [message["token"] for message in emulator.messages()]
        assert len(tokens) == len(set(tokens)) == 900
        assert leader(organisation.db) == before
        daemons[0].kill()
        wait_for(lambda: leader(organisation.db) not in (None, before), 10)
        # Those that are left go on.
        organisation.enqueue(scenario, organisation.mentor("phone-after"))
        wait_for(lambda: len(organisation.notifications()) == 901)


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
            began = datetime.now(UTC)
            # By the daemon's own word: when a test that is starved itself comes to look says nothing about it.
            noticed = datetime.fromisoformat(daemon.wait_for_event("listener_lost")["ts"])
            assert noticed - began < timedelta(seconds=10)
            assert daemon.metric("pgherald_listener_up") == 0
            assert daemon.get("/readyz") == (200, '{"status":"degraded","reasons":["listener_down"]}\n')
            # Meanwhile the poll finds the work.
            scenario = organisation.scenario()
            organisation.enqueue(scenario, organisation.mentor("phone-1"))
            wait_for(lambda: len(organisation.notifications()) == 1)
            daemon.wait_for_metric('pgherald_wakeups_total{source="poll"}', lambda times: times >= 1)
            link.silent = False
            link.reset()
            daemon.wait_for_event("listening", count=2)
            assert daemon.metric("pgherald_listener_up") == 1
            daemon.wait_for_metric('pgherald_wakeups_total{source="reconnect"}', lambda times: times >= 2)
            assert daemon.get("/readyz")[1] == '{"status":"ready","reasons":[]}\n'
