"""The fixtures that tests share: two real servers, and a database for each test.

`server` is pg18 (embedded, everywhere) and pg15 (Debian's) in turn, so a test that takes `database` or `db`
runs on both; `@pytest.mark.parametrize("server", ["pg18"], indirect=True)` runs it on one. What is to be known about
the objects is in tests/support/postgres.py.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from pgherald.config import LogLevel
from pgherald.log import Log, log
from tests.support.certificates import Authority
from tests.support.postgres import (
    CRON_DATABASE,
    DEBIAN_15,
    WITH_CRON,
    Database,
    Server,
    postgres_15_problem,
    running_server,
)
from tests.support.raw_server import certificate

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

# A shared machine is slow now and then: what a test may take is for pytest-timeout to say.
hypothesis.settings.register_profile(
    "pgherald", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("pgherald")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-expected",
        action="store_true",
        help="write the files in tests/expected instead of comparing with them",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slowest: begun last, they would run alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name loudly, together, what was not tested: every skip here is something that this machine lacks."""
    lacking: dict[str, list[str]] = {}
    for report in terminalreporter.getreports("skipped"):
        assert isinstance(report.longrepr, tuple)
        reason = report.longrepr[2].removeprefix("Skipped: ")
        lacking.setdefault(reason, []).append(report.nodeid.partition("::")[0])
    if lacking:
        terminalreporter.section("NOT TESTED on this machine", sep="!", red=True, bold=True)
    for reason, files in sorted(lacking.items()):
        terminalreporter.line(f"{reason}: {len(files)} skipped, in {', '.join(sorted(set(files)))}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """CI is Debian as root, where everything can be installed: what was not tested there fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.getreports("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """For a server that runs as another user, when root runs the tests: pytest's own directories are closed to it.

    Its name is short enough for that of a socket.
    """
    directory = Path(tempfile.mkdtemp(prefix="pgherald-"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def process_log() -> Iterator[Log]:
    """The process-wide log, for a test that sets it up as the daemon does; everything is put back afterwards."""
    handlers, strict = logging.getLogger().handlers[:], log.strict
    hooks = warnings.showwarning, sys.excepthook, threading.excepthook, sys.unraisablehook
    pool, pool_level = logging.getLogger("psycopg.pool"), logging.getLogger("psycopg.pool").level
    yield log
    pool.setLevel(pool_level)
    warnings.showwarning, sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.getLogger().handlers[:] = handlers
    log.set_up(LogLevel.INFO, None, strict=strict)


@pytest.fixture(scope="session")
def pg18() -> Iterator[Server]:
    """PostgreSQL 18, embedded."""
    with running_server("pg18") as server, server.template():
        yield server


@pytest.fixture(scope="session")
def pg15() -> Iterator[Server]:
    """PostgreSQL 15, Debian's."""
    _require_postgres_15()
    with running_server("pg15", binaries=DEBIAN_15) as server, server.template():
        yield server


@pytest.fixture(scope="session")
def pg15_cron() -> Iterator[Server]:
    """PostgreSQL 15 with pg_cron loaded: of its own, because its launcher looks for `cron_database` every second."""
    _require_postgres_15()
    with running_server("pg15_cron", binaries=DEBIAN_15, settings=WITH_CRON) as server, server.template():
        yield server


@pytest.fixture(scope="session", params=["pg18", "pg15"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found


@pytest.fixture
def anyio_backend() -> str:
    """What tests marked `anyio` run on: the daemon's own, asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for servers on loopback, with its key."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that signs servers and their clients."""
    return Authority.make(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One whose certificates get nobody in."""
    return Authority.make(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """A migrated database, with the reference app, for this test alone."""
    with server.database() as database:
        yield database


@pytest.fixture
def empty_database(server: Server) -> Iterator[Database]:
    """A database that was never migrated, owned by the migrator."""
    with server.database(empty=True) as database:
        yield database


@pytest.fixture
def db(database: Database) -> psycopg.Connection:
    """A superuser's autocommit connection to `database`."""
    return database.connect()


@pytest.fixture
def cron_database(pg15_cron: Server) -> Iterator[Database]:
    """A migrated database in which pg_cron works: the one its launcher is bound to."""
    with pg15_cron.database(name=CRON_DATABASE) as database:
        superuser = database.connect()
        superuser.execute("create extension pg_cron")
        superuser.execute("grant usage on schema cron to migrator")
        yield database


def _require_postgres_15() -> None:
    problem = postgres_15_problem()
    if problem is not None:
        pytest.skip(f"no PostgreSQL 15: {problem}")
