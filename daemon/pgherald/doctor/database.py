"""The database, and the way to it: connections, LISTEN, schema, rights, clock; what goes on in it is for `flow`.

Everything is asked as the daemon's own login, so what is found is what the daemon meets; what only others may see is
asked through `--dba-url` where it is given, and else said to be unseen. The checks of the schema are the files of
sql/checks. Nothing is written: what is asked is asked in read-only transactions, but for a LISTEN and a NOTIFY on a
channel that nobody else listens to.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from pgherald import access, schema
from pgherald.config import DATABASE_URL, LISTEN_URL
from pgherald.doctor import flow
from pgherald.doctor.finding import Part, ok, problem, unseen, warning
from pgherald.doctor.servers import bugs_of
from pgherald.doctor.session import ask
from pgherald.doctor.shipped import Installed, differing
from pgherald.errors import ConfigError
from pgherald.screen import span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgherald.config import Settings
    from pgherald.doctor.finding import Finding

NOTIFY_PATIENCE: Final = 3.0
"""Seconds to wait for a NOTIFY to come back; it takes a millisecond where it does."""

OFFSET_WARNING: Final = 2.0
OFFSET_PROBLEM: Final = 60.0
"""Seconds that the database's clock may differ from this machine's."""

#: Findings of these checks are untidy, generous or late, not broken.
_WARNINGS: Final = frozenset(
    {
        "16_role_rights",
        "21_missing_comment",
        "22_unindexed_foreign_key",
        "26_unwatched_source",
        "33_unknown_time_zone",
        "43_held_scenario",
    }
)

_FACTS: Final = """select
  pg_catalog.current_setting('server_version_num')::integer, pg_catalog.current_setting('server_version'),
  pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') = 'on',
  pg_catalog.current_database(), session_user::text, pg_catalog.pg_backend_pid(),
  array(
    select s.name || ' = ' || pg_catalog.current_setting(s.name)
    from pg_catalog.pg_settings as s
    where s.name in ('statement_timeout', 'transaction_timeout') and s.setting::integer between 1 and 59999
    order by 1
  )"""

_NO_CONNECTION: Final = "correct PGHERALD_DATABASE_URL, or start the server"
_FULL: Final = (
    "end what idles (as a superuser: select pid, usename, application_name, state_change from pg_stat_activity where "
    "state = 'idle' order by 4), or raise the limit: max_connections, or that of alter role or alter database"
)

_FUNCTIONS: Final = """select p.proname, p.prosrc, p.prosecdef
from pg_catalog.pg_proc as p
where p.pronamespace = 'herald'::pg_catalog.regnamespace"""


@dataclass(frozen=True, slots=True)
class _Server:
    """What a connection said about itself."""

    version: int
    version_text: str
    in_recovery: bool
    read_only: bool
    database: str
    login: str
    pid: int
    hurried: list[str]
    """Settings of less than a minute, as far as a run or a claim may take where much is due."""


def examine(settings: Settings, dba_url: str | None) -> Iterator[Finding]:
    """All of it, as far as there is a connection."""
    try:
        yield from _examine(settings, dba_url)
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        yield problem(
            Part.CONNECTION,
            "connection",
            f"the connection was lost while this was looked at ({type(error).__name__})",
            "pgherald doctor, once more; the server's log says why it ended the session",
        )


def _examine(settings: Settings, dba_url: str | None) -> Iterator[Finding]:
    part = Part.CONNECTION
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(access.connect(settings.database_url, autocommit=True))
            server = _server(connection)
        except access.Unreadable as error:
            what, _, remedy = str(error).rpartition(": ")
            yield problem(part, "connection", f"{what} (what lies behind this could not be looked at)", remedy)
            return
        except ConfigError as error:
            what = f"{error} (what lies behind this could not be looked at)"
            yield problem(part, "connection", what, _FULL if error.reason == "full" else _NO_CONNECTION)
            return
        yield ok(
            part,
            "connection",
            f'database {server.database}, as "{server.login}", on PostgreSQL {server.version_text.split(" ")[0]}'
            + (" (through a pooler)" if server.pid != connection.info.backend_pid else ""),
        )
        yield from _server_findings(server)
        yield from _listen(settings, connection)
        yield from _clock(connection)
        version = list(_schema_version(connection))
        yield from version
        if any(each.remedy is not None and each.check == "schema" for each in version):
            return
        eyes = connection
        if dba_url is not None:
            try:
                eyes = stack.enter_context(access.connect(dba_url, autocommit=True))
            except ConfigError as error:
                reason = str(error).replace(DATABASE_URL.name, "--dba-url")
                yield problem(part, "dba_connection", reason, "correct --dba-url, or leave it out")
        yield from _functions(connection)
        yield from _login(connection, server)
        yield from _checks(eyes)
        yield from flow.examine(settings, connection, eyes)


def _server(connection: psycopg.Connection) -> _Server:
    try:
        row = connection.execute(_FACTS).fetchone()
    except psycopg.Error as error:
        raise ConfigError(f"{DATABASE_URL.name}: connected, but the server answers {type(error).__name__}") from None
    assert row is not None
    return _Server(*row)


# The connection.


def _server_findings(server: _Server) -> Iterator[Finding]:
    part = Part.CONNECTION
    if server.version < schema.OLDEST_SERVER:
        yield problem(
            part, "server_version", f"PostgreSQL {server.version_text} is too old", "upgrade it to 15 or later"
        )
    bugs = bugs_of(server.version)
    major = server.version // 10_000
    for bug in bugs:
        newest = bug.fixed_in[major]
        say = problem if bug.serious else warning
        yield say(
            part,
            "server_version",
            f"PostgreSQL {server.version_text.split(' ')[0]} has a known bug: {bug.what}",
            f"update to {major}.{newest} or later (a minor update: new binaries and a restart)",
        )
    if not bugs:
        yield ok(part, "server_version", f"no bug known to matter here in {server.version_text.split(' ')[0]}")
    if server.in_recovery:
        yield problem(
            part,
            "primary",
            "this server is a standby: it takes no writes and no LISTEN",
            f"name the primary in {DATABASE_URL.name}; with several hosts add target_session_attrs=read-write",
        )
    elif server.read_only:
        yield problem(
            part,
            "primary",
            "transactions of this login are read-only",
            f'alter role "{server.login}" set default_transaction_read_only = off',
        )
    for limit in server.hurried:
        yield warning(
            part,
            "timeouts",
            f"{limit} for this login: a run or a claim that needs longer is cut off, and the next one too",
            f'alter role "{server.login}" set {limit.partition(" ")[0]} = 0',
        )


def _listen(settings: Settings, notifier: psycopg.Connection) -> Iterator[Finding]:
    """Whether a NOTIFY from one connection comes back on the listening one."""
    part, check = Part.CONNECTION, "listen"
    name = LISTEN_URL.name if settings.listen_url != settings.database_url else DATABASE_URL.name
    channel = sql.Identifier(f"herald_doctor_{secrets.token_hex(8)}")
    try:
        with access.connect(settings.listen_url, autocommit=True) as listener:
            listener.execute(sql.SQL("listen {}").format(channel))
            row = listener.execute("select pg_catalog.pg_backend_pid(), pg_catalog.current_database()").fetchone()
            pooled = row is not None and row[0] != listener.info.backend_pid
            if row is not None and row[1] != notifier.info.dbname and not pooled and name == LISTEN_URL.name:
                here = _server(notifier).database
                if row[1] != here:
                    yield problem(
                        part,
                        check,
                        f"{name} leads to database {row[1]}, the other one to {here}: a NOTIFY stays in its database",
                        f"name the same database in {DATABASE_URL.name} and {LISTEN_URL.name}",
                    )
                    return
            notifier.execute(sql.SQL("notify {}").format(channel))
            heard = any(True for _ in listener.notifies(timeout=NOTIFY_PATIENCE, stop_after=1))
    except ConfigError as error:
        yield problem(part, check, str(error).replace(DATABASE_URL.name, name), f"correct {name}")
        return
    except psycopg.Error as error:
        yield problem(
            part, check, f"LISTEN is refused ({type(error).__name__}) by {name}", f"correct {LISTEN_URL.name}"
        )
        return
    if heard:
        way = ", through a pooler in session mode" if pooled else ""
        yield ok(part, check, f"a NOTIFY comes back on the listening connection{way}")
    elif pooled:
        yield problem(
            part,
            check,
            f"a NOTIFY does not come back: {name} leads through a pooler (pgbouncer, Supavisor) in transaction mode, "
            "in which LISTEN and session locks are lost. Pushes come only as often as the daemon polls",
            f"set {LISTEN_URL.name} to a direct connection, or to the pooler's port for session mode",
        )
    else:
        yield problem(
            part,
            check,
            "a NOTIFY does not come back on the listening connection: do both URLs lead to the same server?",
            f"set {LISTEN_URL.name} to a direct connection to the primary",
        )


def _clock(connection: psycopg.Connection) -> Iterator[Finding]:
    """The database's clock against this machine's, the best of three tries."""
    best: tuple[float, float] | None = None
    for _ in range(3):
        before, began = datetime.now(UTC), time.monotonic()
        row = connection.execute("select pg_catalog.clock_timestamp()").fetchone()
        took = time.monotonic() - began
        assert row is not None
        offset = (row[0] - before).total_seconds() - took / 2
        if best is None or took < best[0]:
            best = (took, offset)
    assert best is not None
    offset = best[1]
    if abs(offset) <= OFFSET_WARNING:
        yield ok(Part.CONNECTION, "database_clock", "the database and this machine agree on the time")
        return
    say = problem if abs(offset) > OFFSET_PROBLEM else warning
    yield say(
        Part.CONNECTION,
        "database_clock",
        f"the database's clock is {span(abs(offset))} {'ahead of' if offset > 0 else 'behind'} this machine's: one of "
        "them is wrong. Who is due goes by the database's; Google's access tokens by this one's",
        "timedatectl set-ntp true, on the machine whose clock is wrong (`date -u` on both; FCM's is compared below)",
    )


# The schema.


def _schema_version(connection: psycopg.Connection) -> Iterator[Finding]:
    part, check = Part.SCHEMA, "schema"
    try:
        version = schema.check_version(connection)
    except ConfigError as error:
        what, remedy = _schema_remedy(str(error))
        yield problem(part, check, f"{what} (what lies behind this could not be looked at)", remedy)
        return
    if version > schema.shipped_version():
        yield warning(
            part,
            "schema_version",
            f"the schema is version {version}, newer than this program's {schema.shipped_version()}, and compatible",
            "upgrade pgherald on this machine",
        )
    else:
        yield ok(part, "schema_version", f"schema version {version}, as this program needs it")


def _schema_remedy(said: str) -> tuple[str, str]:
    """What is wrong with the schema, and the command in the message apart."""
    what, _, remedy = said.rpartition(": ")
    return what, remedy.removeprefix("run ").replace(" on it", "").strip("`")


def _functions(connection: psycopg.Connection) -> Iterator[Finding]:
    """The functions against this program's files; those that changed since migrate are told by sql/checks."""
    part, check = Part.SCHEMA, "functions"
    missing, other = differing(Installed(*row) for row in ask(connection, _FUNCTIONS))
    try:
        drifted = {
            row[0].partition("(")[0].rpartition(".")[2]
            for row in ask(
                connection,
                "select f.signature from herald.shipped_functions() as f where f.installed is distinct from f.shipped",
            )
        }
    except psycopg.Error:
        drifted = set()
    missing, other = ([name for name in names if name not in drifted] for names in (missing, other))
    if missing or other:
        words = [f"lacks {', '.join(missing)}"] if missing else []
        words += [f"has {', '.join(other)} of another release"] if other else []
        yield problem(part, check, f"the schema {' and '.join(words)}", "pgherald migrate (of this program)")
    elif drifted:
        yield ok(part, check, "the other functions are those that this program ships")
    else:
        yield ok(part, check, "the functions are those that this program ships")


def _login(connection: psycopg.Connection, server: _Server) -> Iterator[Finding]:
    part = Part.SCHEMA
    able = access.may_claim(connection)
    if not able:
        yield problem(part, "login_rights", *access.no_right(connection))
    try:
        found = ask(connection, "select e.problem, e.remedy from herald.excess_rights() as e")
    except psycopg.Error:
        return  # a missing function or right is told by others
    for what, remedy in found:
        yield warning(part, "login_rights", f"{what}, which the daemon does not need", remedy)
    if able and not found:
        yield ok(part, "login_rights", f'"{server.login}" may call the daemon\'s functions, and nothing beyond')


def _checks(eyes: psycopg.Connection) -> Iterator[Finding]:
    for name, query in schema.checks():
        check, part = f"checks/{name}", _part_of(name)
        try:
            rows = ask(eyes, query)
        except psycopg.errors.InsufficientPrivilege as error:
            if access.within(error):
                who, remedy = "herald_owner", "grant herald_owner what the source views read"
            else:
                who, remedy = eyes.info.user, "pgherald doctor --dba-url ..."
            yield unseen(part, check, f'{_words(name)}: "{who}" may not look', remedy)
            continue
        except psycopg.Error as error:
            yield problem(
                part, check, f"{_words(name)}: the check fails with {type(error).__name__}", "pgherald migrate"
            )
            continue
        say = warning if name in _WARNINGS else problem
        for row in rows:
            yield say(part, check, row[0], row[1])
        if not rows:
            yield ok(part, check, f"{_words(name)}: none")


def _part_of(name: str) -> Part:
    return Part.SCHEDULE if name.startswith("4") else Part.SCHEMA


def _words(name: str) -> str:
    return name.partition("_")[2].replace("_", " ")
