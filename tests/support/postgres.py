"""The servers and databases that tests run on: real ones, throw-away, a database for each test.

A `Server` is one cluster with a migrated template; a `Database` is a copy of that template for one test. The fixtures
over them are in tests/conftest.py. Databases are made and dropped by pytest-postgresql's janitor. Its executor is not
used: it runs the server as the caller, which Postgres refuses when that is root, as in CI; it leaves the server behind
when pytest is killed; and it must find an installed one. `pgherald.embedded.Cluster` does each.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pytest_postgresql.janitor import DatabaseJanitor

from pgherald import schema
from pgherald.embedded import SUPERUSER, Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

DEBIAN_15: Final = Path("/usr/lib/postgresql/15/bin")
DEBIAN_15_EXTENSIONS: Final = Path("/usr/share/postgresql/15/extension")
CRON_DATABASE: Final = "herald_cron"

MIGRATOR: Final = "migrator"
DAEMON_LOGIN: Final = "herald_daemon_login"
# As PostgREST has it: it may become one of the roles of the API, and inherits nothing.
AUTHENTICATOR: Final = "authenticator"
LOGIN_ROLES: Final = (SUPERUSER, MIGRATOR, DAEMON_LOGIN, AUTHENTICATOR)
API_ROLES: Final = ("anon", "authenticated", "service_role")

# For `running_server`: pg_cron's launcher works in one database, named when the server starts.
WITH_CRON: Final = {
    "shared_preload_libraries": "pg_cron",
    "cron.database_name": CRON_DATABASE,
    "cron.use_background_workers": "on",
}

_SETTINGS: Final = {"max_connections": "200", "max_wal_size": "256MB", "log_lock_waits": "on"}
_TEMPLATE: Final = "herald_template"
_MEMORY: Final = Path("/dev/shm")
_MEMORY_NEEDED: Final = 4 << 30


class _Janitor(DatabaseJanitor):
    """One that waits for sessions to go: Postgres itself gives those that were terminated five seconds for it."""

    def init(self) -> None:
        _when_unused(super().init)

    def drop(self) -> None:
        _when_unused(super().drop)


@dataclass(frozen=True, slots=True)
class Server:
    """A running cluster. `name` is what tests are parametrised with: pg18 or pg15."""

    name: str
    cluster: Cluster
    _names: itertools.count[int] = field(default_factory=itertools.count, repr=False)

    @property
    def version(self) -> int:
        return self.cluster.major_version

    @contextmanager
    def admin(self) -> Iterator[psycopg.Connection]:
        """A superuser's autocommit connection to the database `postgres`."""
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as connection:
            yield connection

    @contextmanager
    def captured_log(self) -> Iterator[CapturedLog]:
        """What the server logs inside the block (`.text`); `Database.log_statements` makes it log statements."""
        yield CapturedLog(self.cluster.log_file, self.cluster.log_file.stat().st_size)

    @contextmanager
    def template(self) -> Iterator[None]:
        """Make the roles and the template that `database` copies: migrated once, as a role that is no superuser."""
        with self.admin() as admin:
            admin.execute(sql.SQL("create role {} login createrole createdb").format(sql.Identifier(MIGRATOR)))
            admin.execute(sql.SQL("create role {} login noinherit").format(sql.Identifier(AUTHENTICATOR)))
            with self._janitor(_TEMPLATE, as_template=True) as template:
                _own(admin, template.dbname)
                schema.migrate(self.cluster.dsn(_TEMPLATE, MIGRATOR), with_reference=True)
                admin.execute(
                    sql.SQL("create role {} login in role herald_daemon").format(sql.Identifier(DAEMON_LOGIN))
                )
                for role in API_ROLES:
                    admin.execute(sql.SQL("grant {} to {}").format(sql.Identifier(role), sql.Identifier(AUTHENTICATOR)))
                # TCP asks for a password; each has the superuser's, so that a DSN over TCP is easy to build.
                for role in LOGIN_ROLES:
                    admin.execute(
                        sql.SQL("alter role {} password {}").format(
                            sql.Identifier(role), sql.Literal(self.cluster.password)
                        )
                    )
                yield

    @contextmanager
    def database(self, *, name: str | None = None, empty: bool = False) -> Iterator[Database]:
        """A database of one's own, owned by the migrator: a copy of the template, or one never migrated."""
        name = name or f"test_{next(self._names)}"
        with self._janitor(name, template_dbname=None if empty else _TEMPLATE):
            with self.admin() as admin:
                _own(admin, name)
            with Database(self, name) as database:
                yield database

    def _janitor(self, name: str, *, template_dbname: str | None = None, as_template: bool = False) -> DatabaseJanitor:
        return _Janitor(
            user=SUPERUSER,
            host=str(self.cluster.socket_directory),
            port=self.cluster.port,
            dbname=name,
            template_dbname=template_dbname,
            as_template=as_template,
        )


@dataclass(slots=True)
class Database:
    """One test's database. The connections it gives are closed with it."""

    server: Server
    name: str
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def dsn(self) -> str:
        """The superuser's."""
        return self.dsn_as(SUPERUSER)

    @property
    def migrator_dsn(self) -> str:
        """Of the role that owns the database and runs migrations: CREATEROLE, no superuser."""
        return self.dsn_as(MIGRATOR)

    @property
    def daemon_dsn(self) -> str:
        """Of the login role that the daemon uses: a member of herald_daemon and nothing else."""
        return self.dsn_as(DAEMON_LOGIN)

    def dsn_as(self, role: str, *, tcp: bool = False) -> str:
        """A DSN whose sessions act as `role`; roles that cannot log in are put on as PostgREST or a superuser would."""
        if role in LOGIN_ROLES:
            return self.server.cluster.dsn(self.name, role, tcp=tcp)
        login = AUTHENTICATOR if role in API_ROLES else SUPERUSER
        return make_conninfo(self.server.cluster.dsn(self.name, login, tcp=tcp), options=f"-c role={role}")

    def connect(self, role: str = SUPERUSER, **parameters: Any) -> psycopg.Connection:
        """A new autocommit connection that acts as `role`; `parameters` are libpq's (`application_name`, `options`)."""
        connection = psycopg.connect(self.dsn_as(role), autocommit=True, **parameters)
        self._open.callback(connection.close)  # not its own __exit__: a test may leave a statement under way
        return connection

    def connect_as_person(self, user_id: UUID | str) -> psycopg.Connection:
        """A connection as the API makes it for a person's JWT: the role, and the claims with `sub` = user_id."""
        connection = self.connect("authenticated")
        connection.execute(
            "select set_config('request.jwt.claims', %s, false)",
            (json.dumps({"sub": str(user_id), "role": "authenticated"}),),
        )
        return connection

    def log_statements(self) -> None:
        """Have new sessions of this database log their statements; see `Server.captured_log`."""
        with self.server.admin() as admin:
            admin.execute(sql.SQL("alter database {} set log_statement = 'all'").format(sql.Identifier(self.name)))


@dataclass(frozen=True, slots=True)
class CapturedLog:
    """The part of a server's log that was written since this was made."""

    path: Path
    start: int

    @property
    def text(self) -> str:
        with self.path.open("rb") as log:
            log.seek(self.start)
            return log.read().decode(errors="replace")

    def lines_of(self, database: Database) -> list[str]:
        """The first lines of the entries that sessions of `database` wrote."""
        return [line for line in self.text.splitlines() if f"@{database.name}/" in line]


def postgres_15_problem() -> str | None:
    """Why there is no Postgres 15 with pg_cron and plpgsql_check to test on; None when there is."""
    missing = [
        what
        for what, where in {
            "postgresql-15": DEBIAN_15 / "postgres",
            "postgresql-15-cron": DEBIAN_15_EXTENSIONS / "pg_cron.control",
            "postgresql-15-plpgsql-check": DEBIAN_15_EXTENSIONS / "plpgsql_check.control",
        }.items()
        if not where.exists()
    ]
    return f"missing here: {', '.join(missing)} (Debian's packages)" if missing else None


@contextmanager
def running_server(
    name: str, *, binaries: Path | None = None, settings: dict[str, str] | None = None
) -> Iterator[Server]:
    """Start a server for tests; stopped and removed when the block ends, or pytest does. No template yet."""
    with Cluster(binaries=binaries, settings=_SETTINGS | (settings or {}), scratch=_scratch()) as cluster:
        yield Server(name, cluster)


def wait_until_blocked(observer: psycopg.Connection, pid: int, *, seconds: float = 60) -> None:
    """Return once the backend `pid` waits for another one's lock; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        row = observer.execute("select cardinality(pg_blocking_pids(%s))", (pid,)).fetchone()
        if row is not None and row[0]:
            return
        time.sleep(0.005)
    raise AssertionError(f"backend {pid} was not blocked by any other within {seconds} s")


def _when_unused(change: Callable[[], None]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return change()
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise


def _own(admin: psycopg.Connection, database: str) -> None:
    admin.execute(sql.SQL("alter database {} owner to {}").format(sql.Identifier(database), sql.Identifier(MIGRATOR)))


def _scratch() -> Path | None:
    """Memory, where there is plenty: a database a test is then made in 10 ms rather than 100."""
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _MEMORY_NEEDED:
        return _MEMORY
    return None
