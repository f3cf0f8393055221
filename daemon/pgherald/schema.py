"""The schema in the database: what this program ships, what is installed, and the way from one to the other.

`sql/` is laid out so that a DBA can read it: roles.sql, then numbered migrations (whatever holds data, applied once),
then functions and scenarios (`create or replace`, applied whole every time), then pg_cron's jobs. `migrate` does all of
it in one transaction under an advisory lock. Called by the commands `migrate`, `demo` and `doctor`, by `run` for the
version check, and by tests; nothing here runs while prompts are sent.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, LiteralString

import psycopg
from psycopg import sql

from pgherald import access
from pgherald.errors import ConfigError, HeraldError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

#: Advisory lock (classid, objid) that one migrate at a time holds; classid is the program's own.
LOCK = (1751479908, 3)

#: The oldest server whose features the schema uses (`unique nulls not distinct`).
OLDEST_SERVER = 150000

#: How often a migrate starts again after another database's migrate changed the same cluster-wide role at that moment.
_ATTEMPTS = 20

#: What a role or a database may have set otherwise, and this program's files rely on. The path: every name in the files
#: that is not qualified is Postgres's own, whatever objects of the same name the database holds.
_SESSION = """set local search_path = pg_catalog, pg_temp;
set local client_min_messages = 'warning';
set local check_function_bodies = on;
set local intervalstyle = 'postgres';
set local row_security = on;
set local statement_timeout = 0;
set local lock_timeout = '5s';"""


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
    """What a migrate did, or with `dry_run` would do. `dropped`: functions of an earlier release, by signature."""

    applied: tuple[str, ...]
    dropped: tuple[str, ...]
    version: int
    cron: bool
    reference: bool
    dry_run: bool
    warnings: tuple[str, ...]


def _sql() -> Traversable:
    return resources.files("pgherald") / "sql"


def _text(path: str) -> str:
    return (_sql() / path).read_text(encoding="utf-8")


def _files(folder: str) -> Iterator[tuple[str, str]]:
    for file in sorted((_sql() / folder).iterdir(), key=lambda f: f.name):
        if file.name.endswith(".sql"):
            yield f"{folder}/{file.name}", file.read_text(encoding="utf-8")


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


def functions() -> Iterator[tuple[str, str]]:
    """The files that are applied whole each time, in that order: (path, text)."""
    yield from _files("functions")
    yield from _files("scenarios")


def shipped_version() -> int:
    """The schema version that this program was made for."""
    return migrations()[-1].version


def dump_sql(*, with_reference: bool = False) -> str:
    """A script that does what `migrate` does on an empty database, for a DBA who runs it by hand."""
    parts = [
        "-- pgherald: made by `pgherald migrate --dump-sql`, for a database without pgherald. All or nothing.",
        "-- Run it as a role with CREATEROLE: psql -X -v ON_ERROR_STOP=1 -f FILE",
        "set client_encoding = 'UTF8';\nbegin isolation level read committed;",
        f"select pg_catalog.pg_advisory_xact_lock({LOCK[0]}, {LOCK[1]});",
        _SESSION,
        _text("roles.sql"),
        "set local role herald_owner;",
    ]
    parts.extend(f"-- migration {m.version:04} {m.name}\n{m.text}" for m in migrations())
    parts.extend(f"{_record(m).as_string()};" for m in migrations())
    parts.extend(f"-- {path}\n{text}" for path, text in functions())
    parts.append(f"{_REMEMBER_SHIPPED};")
    parts.append("reset role;")
    if with_reference:
        parts.append(_text("reference/app.sql"))
    parts.append("commit;")
    parts.append("-- where the extension pg_cron is installed, run sql/cron.sql too:\n" + _commented(_text("cron.sql")))
    return "\n\n".join(parts) + "\n"


def migrate(conninfo: str, *, with_reference: bool = False, dry_run: bool = False) -> Report:
    """Brings the schema to this program's version: all or nothing, repeatable, one at a time.

    Raises ConfigError where it cannot work (unreachable, too old a server, a schema newer than the program, a migration
    that was changed after it was applied, missing rights), HeraldError where another try may do.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with access.connect(conninfo) as connection:
                return _migrate(connection, with_reference=with_reference, dry_run=dry_run)
        except (
            psycopg.errors.InternalError_,
            psycopg.errors.UniqueViolation,
            psycopg.errors.DeadlockDetected,
        ) as error:
            # Roles belong to the cluster: another database's migrate touched one ("tuple concurrently updated").
            if attempt == _ATTEMPTS:
                raise ConfigError(_explain(error)) from None
            time.sleep(random.uniform(0.02, 0.2))
        except psycopg.errors.LockNotAvailable as error:
            raise HeraldError(
                f"{_explain(error)}\n  Another session holds a lock that migrate waited for: try again when it is quiet"
            ) from None
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if error.sqlstate is not None and not error.sqlstate.startswith("57P"):
                raise ConfigError(_explain(error)) from None
            raise HeraldError(
                "migrate stopped: the connection to Postgres was lost. Unless it was lost at the very end, nothing was "
                "changed; to run migrate again is harmless."
            ) from None
        except psycopg.Error as error:
            raise ConfigError(_explain(error)) from None
    raise AssertionError("unreachable")


def check_for_daemon(conninfo: str) -> int:
    """Refuse a database that a daemon of this version cannot work with; returns the schema's version.

    Raises ConfigError: no connection, no right to the daemon's functions, and what `check_version` refuses; NotNow for
    what may be otherwise in a moment.
    """
    with access.connect(conninfo) as connection:
        version = check_version(connection)
        if not access.may_claim(connection):
            raise ConfigError(": ".join(access.no_right(connection)))
    return version


def check_version(connection: psycopg.Connection) -> int:
    """Refuse a schema that this version does not work with; returns the schema's version.

    Raises ConfigError: no schema, no right to use it, an older schema, or a newer one that broke with this program. A
    newer one whose migrations are all compatible is fine.
    """
    shipped = shipped_version()
    try:
        row = connection.execute("select version, breaking from herald.schema_version(%s)", (shipped,)).fetchone()
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction):
        raise ConfigError(
            "pgherald is not installed in this database, or by a far older release: run `pgherald migrate` on it"
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigError(": ".join(access.refused(connection, error))) from None
    except psycopg.Error as error:
        name = type(error).__name__
        raise access.NotNow(f"the database would not tell its version: {name}", reason=name) from None
    version, breaking = row if row else (0, False)
    if version < shipped:
        raise ConfigError(
            f"the schema in the database is version {version}, older than this program's {shipped}: "
            "run `pgherald migrate`"
        )
    if breaking:
        raise ConfigError(
            f"the schema in the database is version {version}, which this program (made for {shipped}) does not know: "
            "upgrade pgherald"
        )
    return int(version)


def _migrate(connection: psycopg.Connection, *, with_reference: bool, dry_run: bool) -> Report:
    if connection.info.server_version < OLDEST_SERVER:
        raise ConfigError(
            f"the server is Postgres {connection.info.server_version // 10000}; "
            "pgherald needs 15 or later (18 and 15 are tested)"
        )
    # Whoever waited for the lock must then see what the one before did.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    connection.execute("set local lock_timeout = '60s'")
    connection.execute("select pg_catalog.pg_advisory_xact_lock(%s, %s)", LOCK)
    connection.execute(_SESSION)
    known = migrations()
    warnings: list[str] = []
    _run(connection, "roles.sql", _text("roles.sql"))
    connection.execute("set local role herald_owner")
    applied: dict[int, str] = {}
    if connection.execute("select to_regclass('herald.migration')").fetchone() != (None,):
        applied = dict(connection.execute("select version, checksum from herald.migration").fetchall())
        _refuse_foreign(known, applied)
    todo = [m for m in known if m.version not in applied]
    for migration in todo:
        _run(connection, f"migrations/{migration.version:04}_{migration.name}.sql", migration.text)
        connection.execute(_record(migration))
    for path, text in functions():
        _run(connection, path, text)
    dropped = _drop_retired(connection, warnings)
    connection.execute(_REMEMBER_SHIPPED)
    warnings.extend(_foreign_functions(connection))
    connection.execute("reset role")
    if with_reference:
        _run(connection, "reference/app.sql", _text("reference/app.sql"))
    cron = _schedule(connection, warnings)
    if dry_run:
        connection.rollback()
    else:
        connection.commit()
    return Report(
        applied=tuple(f"{m.version:04}_{m.name}" for m in todo),
        dropped=dropped,
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
            f"the schema in the database is version {newest}, newer than this program's {known[-1].version}: "
            "upgrade pgherald"
        )
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise ConfigError(
                f"migration {migration.version:04}_{migration.name} was applied with another text than this program "
                "ships: install the release that the database was migrated with, then the next one"
            )


def _record(migration: Migration) -> sql.Composed:
    return sql.SQL("insert into herald.migration (version, name, checksum, compatible) values ({}, {}, {}, {})").format(
        migration.version, migration.name, migration.checksum, migration.compatible
    )


#: The functions that this transaction created or replaced are those of the files: remembered with who may call them.
_REMEMBER_SHIPPED: LiteralString = """delete from herald.shipped_function;
insert into herald.shipped_function (signature, fingerprint, grantees)
select
  p.oid::pg_catalog.regprocedure::text,
  pg_catalog.md5(pg_catalog.pg_get_functiondef(p.oid)),
  array(
    select a.grantee::pg_catalog.regrole::text
    from pg_catalog.aclexplode(p.proacl) as a
    where a.grantee in (
      select r.oid
      from pg_catalog.pg_roles as r
      where r.rolname in ('herald_daemon', 'herald_reader', 'authenticated', 'service_role')
    )
    order by 1
  )
from pg_catalog.pg_proc as p
where p.pronamespace = 'herald'::pg_catalog.regnamespace and p.xmin = pg_catalog.pg_current_xact_id()::pg_catalog.xid"""


def _drop_retired(connection: psycopg.Connection, warnings: list[str]) -> tuple[str, ...]:
    """Drops what an earlier release shipped and this one does not; what others made in the schema stays."""
    retired = connection.execute(
        "select s.signature from herald.shipped_function as s "
        "join pg_catalog.pg_proc as p on p.oid = pg_catalog.to_regprocedure(s.signature) "
        "where p.xmin <> pg_catalog.pg_current_xact_id()::pg_catalog.xid order by s.signature"
    ).fetchall()
    dropped = []
    for (signature,) in retired:
        try:
            with connection.transaction():
                connection.execute(f"drop routine {signature}")
        except psycopg.errors.DependentObjectsStillExist as error:
            warnings.append(
                f"{signature} is no longer part of pgherald, but stays: {error.diag.message_detail}. "
                f"Change that, then: drop routine {signature}"
            )
        else:
            dropped.append(signature)
    return tuple(dropped)


def _foreign_functions(connection: psycopg.Connection) -> Iterator[str]:
    """Names the functions in the schema that pgherald did not make and no scenario type uses."""
    found = connection.execute(
        "select p.oid::pg_catalog.regprocedure::text from pg_catalog.pg_proc as p "
        "join pg_catalog.pg_namespace as n on n.oid = p.pronamespace "
        "where n.nspname = 'herald' and p.xmin <> pg_catalog.pg_current_xact_id()::pg_catalog.xid and not exists ("
        "select from herald.scenario_type as t "
        "where pg_catalog.format('%I.%I', n.nspname, p.proname) in (t.evaluator, t.still_due, t.why)) order by 1"
    ).fetchall()
    for (signature,) in found:
        yield f"{signature} is not part of pgherald: left as it is; a schema of its own would be a safer place"


def _schedule(connection: psycopg.Connection, warnings: list[str]) -> bool:
    """Schedules the jobs where pg_cron lives in this database; else says so."""
    if not connection.execute("select from pg_catalog.pg_extension where extname = 'pg_cron'").fetchall():
        warnings.append(
            "pg_cron is not installed in this database: the daemon runs the schedule itself (PGHERALD_SCHEDULER=auto)"
        )
        return False
    try:
        with connection.transaction():
            _run(connection, "cron.sql", _text("cron.sql"))
    except psycopg.errors.InsufficientPrivilege:
        warnings.append(
            "pg_cron is installed, but this role may not schedule jobs: "
            "as a superuser, grant usage on schema cron to it, then migrate again"
        )
        return False
    return True


def _run(connection: psycopg.Connection, path: str, text: str) -> None:
    try:
        connection.execute(text)
    except psycopg.Error as error:
        error.add_note(f"sql/{path}")
        raise


def _explain(error: psycopg.Error) -> str:
    """The server's message (a migration holds no values of people), its hint, and the file it came from."""
    where = "; ".join(getattr(error, "__notes__", ()))
    what = error.diag.message_primary or type(error).__name__
    lines = [f"migrate stopped{f' in {where}' if where else ''}, nothing was changed: {what}"]
    if error.diag.message_hint:
        lines.append(f"  {error.diag.message_hint}")
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        lines.append(
            "  It only reads: is this a standby, then name the primary in PGHERALD_DATABASE_URL; "
            "or is default_transaction_read_only on, for this role or database?"
        )
    return "\n".join(lines)


def _commented(text: str) -> str:
    return "\n".join(f"-- {line}" for line in text.splitlines())
