"""The schema in the database: what this program ships, what is installed, and the way from one to the other.

`sql/` is laid out so that a DBA can read it: roles.sql, then numbered migrations (whatever holds data, applied once),
then functions and scenarios (`create or replace`, applied whole every time), then pg_cron's jobs. `migrate` does all of
it in one transaction under an advisory lock. Called by the commands `migrate` and `doctor`, by `run` for the version check,
and by tests; nothing here runs while prompts are sent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from typing import LiteralString, cast

import psycopg
from psycopg import sql

from pgherald.errors import ConfigError, HeraldError

#: Advisory lock (classid, objid) that one migrate at a time holds; classid is the program's own.
LOCK = (1751479908, 3)

#: The oldest server whose features the schema uses (`unique nulls not distinct`).
OLDEST_SERVER = 150000

#: How often a migrate starts again after another database's migrate changed the same cluster-wide role at that moment.
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of sql/migrations. `compatible`: a daemon that does not know it may go on."""

    version: int
    name: str
    compatible: bool
    text: str

    @property
    def checksum(self) -> str:
        """Hex SHA-256 of the text; a released migration never changes."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Report:
    """What a migrate did, or with `dry_run` would do."""

    applied: tuple[str, ...]
    version: int
    cron: bool
    reference: bool
    dry_run: bool
    warnings: tuple[str, ...] = field(default=())


def _sql() -> Traversable:
    return resources.files("pgherald") / "sql"


def _files(folder: str) -> Iterator[tuple[str, str]]:
    for file in sorted((_sql() / folder).iterdir(), key=lambda f: f.name):
        if file.name.endswith(".sql"):
            yield f"{folder}/{file.name}", file.read_text()


def migrations() -> tuple[Migration, ...]:
    """The migrations that this program ships, in order."""
    found = []
    for path, text in _files("migrations"):
        match = re.fullmatch(r"migrations/(\d{4})_([a-z0-9_]+)\.sql", path)
        header = re.search(r"^-- compatible: (yes|no)$", text, re.MULTILINE)
        if match is None or header is None:
            raise HeraldError(f"sql/{path}: name it NNNN_what.sql and say '-- compatible: yes' or 'no' in its header")
        found.append(Migration(int(match[1]), match[2], header[1] == "yes", text))
    return tuple(found)


def checks() -> tuple[tuple[str, str], ...]:
    """The health checks: (name, query). No rows = healthy."""
    return tuple((path.removeprefix("checks/").removesuffix(".sql"), text) for path, text in _files("checks"))


def shipped_version() -> int:
    """The schema version that this program was made for."""
    return migrations()[-1].version


def dump_sql(*, with_reference: bool = False) -> str:
    """A script for psql that does what `migrate` does on an empty database, for a DBA who runs it by hand."""
    parts = [
        "-- pgherald: made by `pgherald migrate --dump-sql`. Run with: psql -v ON_ERROR_STOP=1 --single-transaction -f FILE",
        f"select pg_catalog.pg_advisory_xact_lock({LOCK[0]}, {LOCK[1]});",
        (_sql() / "roles.sql").read_text(),
        "set local role herald_owner;",
    ]
    for migration in migrations():
        parts.append(f"-- migration {migration.version:04} {migration.name}\n{migration.text}")
    for migration in migrations():
        parts.append(_record(migration).as_string() + ";")
    for folder in ("functions", "scenarios"):
        parts.extend(f"-- {path}\n{text}" for path, text in _files(folder))
    parts.append(_FINGERPRINTS + ";")
    parts.append("reset role;")
    if with_reference:
        parts.append((_sql() / "reference/app.sql").read_text())
    parts.append("-- where the extension pg_cron is installed, run sql/cron.sql too:\n" + _commented(_cron_sql()))
    return "\n\n".join(parts) + "\n"


def migrate(conninfo: str, *, with_reference: bool = False, dry_run: bool = False) -> Report:
    """Brings the schema to this program's version: all or nothing, repeatable, one at a time.

    Raises ConfigError where it cannot work (unreachable, too old a server, a schema newer than the program, a migration that
    was changed after it was applied, missing rights).
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with connect(conninfo) as connection:
                return _migrate(connection, with_reference=with_reference, dry_run=dry_run)
        except (psycopg.errors.InternalError_, psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected) as error:
            # Roles belong to the cluster: another database's migrate touched one at this moment ("tuple concurrently updated").
            if attempt == _ATTEMPTS:
                raise ConfigError(_explain(error)) from None
        except psycopg.errors.LockNotAvailable as error:
            raise HeraldError(
                f"{_explain(error)}\n  Another session holds a lock that the migration waited 5 s for. Nothing was changed; try again in a quiet moment."
            ) from None
        except psycopg.Error as error:
            raise ConfigError(_explain(error)) from None
    raise AssertionError("unreachable")


def connect(conninfo: str) -> psycopg.Connection:
    """A connection for a command; ConfigError, without the DSN in it, when there is none to be had."""
    try:
        return psycopg.connect(conninfo, application_name="pgherald", connect_timeout=10, fallback_application_name=None)
    except (psycopg.OperationalError, psycopg.ProgrammingError, UnicodeError) as error:
        raise ConfigError(unreachable(conninfo, error)) from None


def unreachable(conninfo: str, error: BaseException) -> str:
    """Why there is no connection, without a password or a DSN in it: host, port, database, and the server's own reason."""
    try:
        place = psycopg.conninfo.conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        return "PGHERALD_DATABASE_URL: not a connection string; for example postgresql://pgherald@db.example.org:5432/app"
    reason = next(
        (hint for pattern, hint in _REASONS if re.search(pattern, str(error), re.IGNORECASE | re.DOTALL)),
        "look into the server's log",
    )
    where = f"host {place.get('host') or 'local socket'}, port {place.get('port') or 5432}, database {place.get('dbname') or 'of the user name'}"
    return f"PGHERALD_DATABASE_URL: no connection to Postgres ({where}): {reason}"


#: What libpq's text says, without what it quotes.
_REASONS = (
    (r"password authentication failed|no password supplied", "the password is wrong or missing"),
    (r'database ".*" does not exist', "there is no such database"),
    (r'role ".*" does not exist', "there is no such role"),
    (r"no pg_hba.conf entry", "the server's pg_hba.conf does not let this client in"),
    (r"connection refused|no such file or directory", "nothing listens there; is the server running?"),
    (r"could not translate host name|name or service not known", "the host name is unknown"),
    (r"timeout|timed out", "no answer in time; a firewall, or a wrong host?"),
    (r"too many (connections|clients)|remaining connection slots", "the server has no connection left"),
    (r"ssl|certificate", "TLS failed; check sslmode and the certificates"),
    (r"starting up|shutting down|recovery mode", "the server is starting or stopping"),
)


def installed_version(connection: psycopg.Connection) -> int | None:
    """The schema version in the database; None when pgherald is not installed there."""
    if connection.execute("select to_regclass('herald.migration')").fetchone() == (None,):
        return None
    row = connection.execute("select max(version) from herald.migration").fetchone()
    return cast("int | None", row[0]) if row else None


def _migrate(connection: psycopg.Connection, *, with_reference: bool, dry_run: bool) -> Report:
    if connection.info.server_version < OLDEST_SERVER:
        raise ConfigError(
            f"the server is Postgres {connection.info.server_version // 10000}; pgherald needs 15 or later (18 and 15 are tested)"
        )
    connection.execute("set local lock_timeout = '60s'")
    connection.execute("select pg_catalog.pg_advisory_xact_lock(%s, %s)", LOCK)
    connection.execute("set local lock_timeout = '5s'")
    connection.execute("set local client_min_messages = 'warning'")
    known = migrations()
    warnings = []
    _run(connection, "roles.sql", (_sql() / "roles.sql").read_text())
    connection.execute("set local role herald_owner")
    installed = installed_version(connection)
    applied: dict[int, str] = {}
    if installed is not None:
        applied = dict(connection.execute("select version, checksum from herald.migration").fetchall())
        _refuse_foreign(known, applied)
    todo = [m for m in known if m.version not in applied]
    for migration in todo:
        _run(connection, f"migrations/{migration.version:04}_{migration.name}.sql", migration.text)
        connection.execute(_record(migration))
    for folder in ("functions", "scenarios"):
        for path, text in _files(folder):
            _run(connection, path, text)
    connection.execute(cast("LiteralString", _FINGERPRINTS))
    connection.execute("reset role")
    if with_reference:
        _run(connection, "reference/app.sql", (_sql() / "reference/app.sql").read_text())
    cron = _schedule(connection, warnings)
    if dry_run:
        connection.rollback()
    else:
        connection.commit()
    return Report(
        applied=tuple(f"{m.version:04}_{m.name}" for m in todo),
        version=known[-1].version,
        cron=cron,
        reference=with_reference,
        dry_run=dry_run,
        warnings=tuple(warnings),
    )


def _refuse_foreign(known: tuple[Migration, ...], applied: dict[int, str]) -> None:
    newest = max(applied, default=0)
    if newest > known[-1].version:
        raise ConfigError(
            f"the schema in the database is version {newest}, newer than this program's {known[-1].version}: upgrade pgherald"
        )
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise ConfigError(
                f"migration {migration.version:04}_{migration.name} was applied with another text than this program ships: "
                "install the release that the database was migrated with, then the next one"
            )


def _record(migration: Migration) -> sql.Composed:
    return sql.SQL("insert into herald.migration (version, name, checksum, compatible) values ({}, {}, {}, {})").format(
        migration.version, migration.name, migration.checksum, migration.compatible
    )


#: Remembers every function as it is now, and drops none: functions that are no longer shipped are dropped by the migration
#: that retires them.
_FINGERPRINTS = """with gone as (delete from herald.shipped_function)
insert into herald.shipped_function (signature, fingerprint)
select p.oid::pg_catalog.regprocedure::text, pg_catalog.md5(pg_catalog.pg_get_functiondef(p.oid))
from pg_catalog.pg_proc as p
where p.pronamespace = 'herald'::pg_catalog.regnamespace
  and (p.proname, p.prosrc) is not null
on conflict (signature) do update set fingerprint = excluded.fingerprint"""


def _schedule(connection: psycopg.Connection, warnings: list[str]) -> bool:
    """Schedules the jobs where pg_cron lives in this database; else says so."""
    if not connection.execute("select from pg_catalog.pg_extension where extname = 'pg_cron'").fetchall():
        warnings.append(
            "pg_cron is not installed in this database: the daemon runs the schedule itself (PGHERALD_SCHEDULER=auto)"
        )
        return False
    try:
        with connection.transaction():
            _run(connection, "cron.sql", _cron_sql())
    except psycopg.errors.InsufficientPrivilege:
        warnings.append(
            "pg_cron is installed, but this role may not schedule jobs: grant usage on schema cron to it, then migrate again"
        )
        return False
    return True


def _cron_sql() -> str:
    return (_sql() / "cron.sql").read_text()


def _run(connection: psycopg.Connection, path: str, text: str) -> None:
    try:
        connection.execute(cast("LiteralString", text))
    except psycopg.Error as error:
        error.add_note(f"sql/{path}")
        raise


def _explain(error: psycopg.Error) -> str:
    """The server's message (a migration holds no values of people), its hint, and the file it came from."""
    where = "; ".join(getattr(error, "__notes__", ()))
    lines = [f"migrate stopped{f' in {where}' if where else ''}, nothing was changed: {error.diag.message_primary or type(error).__name__}"]
    if error.diag.message_hint:
        lines.append(f"  {error.diag.message_hint}")
    return "\n".join(lines)


def _commented(text: str) -> str:
    return "\n".join(f"-- {line}" for line in text.splitlines())
