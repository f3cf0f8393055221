"""Through a pooler: Debian's pgbouncer in transaction mode in front of the database, as on Supabase's port 6543."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgherald.emulator.client import emulator_process
from tests.support.daemon import running_daemon, wait_for
from tests.support.organisation import Organisation
from tests.support.postgres import DAEMON_LOGIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.postgres import Database

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="no pgbouncer on this machine")


@dataclass(frozen=True, slots=True)
class Pooler:
    """A pgbouncer; `dsn` leads through it, as the daemon's role."""

    dsn: str


@contextmanager
def pgbouncer(database: Database, directory: Path, mode: str) -> Iterator[Pooler]:
    """Run one with few server connections, so that they do change hands."""
    assert PGBOUNCER is not None
    place = conninfo_to_dict(database.dsn_as(DAEMON_LOGIN, tcp=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    server = " ".join(f"{key}={place[key]}" for key in ("host", "port", "dbname", "user", "password"))
    config = directory / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n{database.name} = {server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"unix_socket_dir =\nauth_type = any\npool_mode = {mode}\ndefault_pool_size = 4\nmax_client_conn = 100\n"
    )
    os.chmod(config, 0o644)
    log = directory / "pgbouncer.log"
    command = [PGBOUNCER, "--quiet", str(config)]
    if os.geteuid() == 0:  # it refuses to be root
        command[1:1] = ["--user=nobody"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    dsn = make_conninfo("", host="127.0.0.1", port=port, dbname=database.name, user=DAEMON_LOGIN)
    try:

        def answers() -> bool:
            try:
                with psycopg.connect(dsn, connect_timeout=2):
                    return True
            except psycopg.OperationalError:
                return False

        wait_for(answers, 20, log.read_text)
        yield Pooler(dsn)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def organisation(db: psycopg.Connection, emulator: EmulatorProcess) -> Organisation:
    emulator.clear()
    return Organisation(db)


def test_the_pool_goes_through_pgbouncer_while_the_listener_does_not(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path, open_directory: Path
) -> None:
    scenario = organisation.scenario()
    people = organisation.mentors(600)
    with pgbouncer(database, open_directory, "transaction") as pooler:
        settings = {
            "PGHERALD_LISTEN_URL": database.dsn_as(DAEMON_LOGIN, tcp=True),
            "PGHERALD_POLL_INTERVAL": "60",
            "PGHERALD_SCHEDULER": "internal",
        }
        with (
            running_daemon(pooler.dsn, emulator, tmp_path / "a", settings) as first,
            running_daemon(pooler.dsn, emulator, tmp_path / "b", settings) as second,
        ):
            for start in range(0, 600, 50):  # beside each other, in many transactions, and rung each time
                organisation.db.execute(
                    "select herald.enqueue(%s, u, 'by-hand') from unnest(%s::uuid[]) as u",
                    (scenario, people[start : start + 50]),
                )
            wait_for(lambda: len(organisation.notifications()) == 600, 60)
            for daemon in (first, second):
                assert daemon.get("/readyz") == (200, '{"status":"ready","reasons":[]}\n')
                assert daemon.metric("pgherald_listener_up") == 1
                assert daemon.events("database_away") == []
            assert first.metric('pgherald_wakeups_total{source="notify"}') >= 1
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
    with pgbouncer(database, open_directory, "transaction") as pooler:
        settings = {"PGHERALD_POLL_INTERVAL": "0.3", "PGHERALD_SCHEDULER": "internal"}
        with running_daemon(pooler.dsn, emulator, tmp_path, settings) as daemon:
            said = daemon.wait_for_event("listener_behind_pooler")
            assert (said["level"], said["setting"]) == ("error", "PGHERALD_LISTEN_URL")
            assert daemon.get("/readyz") == (200, '{"status":"degraded","reasons":["listener_behind_pooler"]}\n')
            assert daemon.metric("pgherald_listener_up") == 0
            scenario = organisation.scenario()
            for _ in range(20):
                organisation.enqueue(scenario, organisation.mentor(f"phone-{_}"))
            organisation.activity(organisation.mentor("active"))  # by the trigger
            wait_for(lambda: len(organisation.notifications()) == 21)
            assert daemon.metric('pgherald_wakeups_total{source="notify"}') == 0
            # No lock is left behind in a connection that the pooler keeps.
            locks = organisation.db.execute("select from pg_locks where locktype = 'advisory' and classid = 1751479908")
            assert locks.fetchall() == []
            # The schedule is run all the same.
            wait_for(lambda: daemon.metric("pgherald_last_evaluation_timestamp_seconds") > 0)
            assert daemon.events("database_away") == []


def test_a_pooler_that_gives_sessions_is_as_good_as_none(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path, open_directory: Path
) -> None:
    with pgbouncer(database, open_directory, "session") as pooler:
        settings = {
            "PGHERALD_DATABASE_URL": database.daemon_dsn,
            "PGHERALD_LISTEN_URL": pooler.dsn,
            "PGHERALD_POLL_INTERVAL": "60",
        }
        with running_daemon(pooler.dsn, emulator, tmp_path, settings) as daemon:
            daemon.wait_for_event("listening")
            organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
            wait_for(lambda: len(organisation.notifications()) == 1)
            assert daemon.metric('pgherald_wakeups_total{source="notify"}') >= 1
            assert daemon.get("/readyz")[1] == '{"status":"ready","reasons":[]}\n'
