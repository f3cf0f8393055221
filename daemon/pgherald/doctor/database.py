"""The database, and the way to it: connections, LISTEN, schema, rights, schedule, plans, transactions, clock.

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
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg
from psycopg import sql

from pgherald import schema
from pgherald.config import DATABASE_URL, LISTEN_URL, SCHEDULER, Scheduler
from pgherald.doctor.finding import Part, ok, problem, unseen, warning
from pgherald.doctor.servers import bugs_of
from pgherald.doctor.shipped import Installed, differing
from pgherald.errors import ConfigError
from pgherald.screen import count, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgherald.config import Settings
    from pgherald.doctor.finding import Finding

NOTIFY_PATIENCE: Final = 3.0
"""Seconds to wait for a NOTIFY to come back; it takes a millisecond where it does."""

OFFSET_WARNING: Final = 2.0
OFFSET_PROBLEM: Final = 60.0
"""Seconds that the database's clock may differ from this machine's."""

IDLE_WARNING: Final = 60.0
IDLE_PROBLEM: Final = 900.0
RUNNING_WARNING: Final = 3600.0
"""Seconds that a transaction may be open: idle, and at work."""

READY_PROBLEM: Final = 60.0
"""Seconds that a prompt may wait although it could be sent."""

LATE: Final = 150.0
"""Seconds after which a scheduled run is missing; they come each minute."""

QUEUE_WARNING: Final = 0.1
QUEUE_PROBLEM: Final = 0.5
"""How full NOTIFY's queue may be; at 1 every commit that notifies fails."""

SCAN_ROWS: Final = 10_000
"""A table of fewer rows may be read whole."""

#: Findings of these checks are untidy or generous, not broken.
_WARNINGS: Final = frozenset(
    {"16_role_rights", "21_missing_comment", "22_unindexed_foreign_key", "33_unknown_time_zone", "43_held_scenario"}
)

_FACTS: Final = """select
  pg_catalog.current_setting('server_version_num')::integer, pg_catalog.current_setting('server_version'),
  pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') = 'on',
  pg_catalog.current_database(), session_user::text, pg_catalog.pg_backend_pid()"""

_FUNCTIONS: Final = """select p.proname, p.prosrc, p.prosecdef
from pg_catalog.pg_proc as p
where p.pronamespace = 'herald'::pg_catalog.regnamespace"""

_SESSIONS: Final = """select a.pid, a.usename, a.application_name, a.state,
  extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::float8
from pg_catalog.pg_stat_activity as a
where a.backend_type = 'client backend' and a.xact_start is not null and a.pid <> pg_catalog.pg_backend_pid()
  and a.datname = pg_catalog.current_database()
order by a.xact_start
limit 20"""

_LISTENERS: Final = """select pg_catalog.count(*)
from pg_catalog.pg_stat_activity as a
where a.application_name = 'pgherald listener' and a.datname = pg_catalog.current_database()"""

_PREPARED: Final = """select p.gid, p.owner, extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::float8
from pg_catalog.pg_prepared_xacts as p
where p.database = pg_catalog.current_database() and p.prepared < pg_catalog.clock_timestamp() - interval '1 minute'
order by p.prepared"""

_ORPHANED_JOBS: Final = """select j.jobid, j.jobname, j.username
from cron.job as j
where not exists (select from pg_catalog.pg_roles as r where r.rolname = j.username)
order by j.jobid"""


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


def examine(settings: Settings, dba_url: str | None) -> Iterator[Finding]:
    """All of it, as far as there is a connection."""
    part = Part.CONNECTION
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(_connect(settings.database_url))
            server = _server(connection)
        except ConfigError as error:
            yield problem(part, "connection", str(error), "the rest of the database could not be looked at")
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
        version = list(_schema_version(settings))
        yield from version
        if any(each.remedy is not None and each.check == "schema" for each in version):
            return
        eyes = connection
        if dba_url is not None:
            try:
                eyes = stack.enter_context(_connect(dba_url))
            except ConfigError as error:
                reason = str(error).replace(DATABASE_URL.name, "--dba-url")
                yield problem(part, "dba_connection", reason, "correct --dba-url, or leave it out")
        yield from _functions(connection)
        yield from _login(connection, server)
        yield from _checks(eyes)
        yield from _daemons(connection)
        yield from _queue(connection)
        yield from _schedule(connection, eyes, settings)
        yield from _plans(connection)
        yield from _transactions(eyes)


def _connect(conninfo: str) -> psycopg.Connection:
    connection = schema.connect(conninfo)
    connection.autocommit = True
    connection.prepare_threshold = None
    return connection


def _server(connection: psycopg.Connection) -> _Server:
    try:
        row = connection.execute(_FACTS).fetchone()
    except psycopg.Error as error:
        raise ConfigError(f"{DATABASE_URL.name}: connected, but the server answers {type(error).__name__}") from None
    assert row is not None
    return _Server(*row)


def _rows(connection: psycopg.Connection, statement: LiteralString, *values: Any) -> list[tuple[Any, ...]]:
    """Ask in a read-only transaction, under a path on which every unqualified name is Postgres's own."""
    with connection.transaction():
        connection.execute("set transaction read only")
        connection.execute("set local search_path = pg_catalog, pg_temp")
        connection.execute("set local statement_timeout = '15s'")
        return connection.execute(statement, values or None).fetchall()


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


def _listen(settings: Settings, notifier: psycopg.Connection) -> Iterator[Finding]:
    """Whether a NOTIFY from one connection comes back on the listening one."""
    part, check = Part.CONNECTION, "listen"
    name = LISTEN_URL.name if settings.listen_url != settings.database_url else DATABASE_URL.name
    channel = sql.Identifier(f"herald_doctor_{secrets.token_hex(8)}")
    try:
        with _connect(settings.listen_url) as listener:
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


def _schema_version(settings: Settings) -> Iterator[Finding]:
    part, check = Part.SCHEMA, "schema"
    try:
        version = schema.check_for_daemon(settings.database_url)
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
    missing, other = differing(Installed(*row) for row in _rows(connection, _FUNCTIONS))
    try:
        drifted = {
            row[0].partition("(")[0].rpartition(".")[2]
            for row in _rows(
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
    try:
        found = _rows(connection, "select e.problem, e.remedy from herald.excess_rights() as e")
    except psycopg.Error:
        return  # a missing function or right is told by others
    for what, remedy in found:
        yield warning(part, "login_rights", f"{what}, which the daemon does not need", remedy)
    if not found:
        yield ok(part, "login_rights", f'"{server.login}" may call the daemon\'s functions, and nothing beyond')


def _checks(eyes: psycopg.Connection) -> Iterator[Finding]:
    for name, query in schema.checks():
        check, part = f"checks/{name}", _part_of(name)
        try:
            rows = _rows(eyes, query)
        except psycopg.errors.InsufficientPrivilege:
            yield unseen(
                part, check, f'{_words(name)}: "{eyes.info.user}" may not look', "pgherald doctor --dba-url ..."
            )
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


# Schedule and queue.


def _daemons(connection: psycopg.Connection) -> Iterator[Finding]:
    """The sessions of this login that listen: daemons elsewhere count too."""
    part, check = Part.SCHEDULE, "daemons"
    number = _rows(connection, _LISTENERS)[0][0]
    if number:
        yield ok(part, check, f"{count(number, 'daemon')} {'listens' if number == 1 else 'listen'}")
        return
    yield warning(
        part,
        check,
        f'no daemon that logs in as "{connection.info.user}" is connected: nothing is sent',
        "systemctl start pgherald; or pgherald run",
    )


def _queue(connection: psycopg.Connection) -> Iterator[Finding]:
    part = Part.SCHEDULE
    try:
        row = _rows(
            connection,
            "select o.prompts, o.oldest_ready_seconds, o.paused_at is not null, o.notify_queue_usage "
            "from herald.outbox_status() as o",
        )[0]
    except psycopg.Error as error:
        yield problem(part, "queue", f"the queue cannot be read ({type(error).__name__})", "pgherald migrate")
        return
    prompts, oldest, paused, usage = row
    if paused:
        yield warning(part, "paused", "everything is paused: nothing is sent", "pgherald resume")
    elif oldest > READY_PROBLEM:
        yield problem(
            part,
            "queue",
            f"{count(prompts['ready'], 'prompt')} wait, the oldest for {span(oldest)}: no daemon claims them, or FCM "
            "holds it up",
            "systemctl status pgherald; journalctl -u pgherald; or start one: pgherald run",
        )
    else:
        yield ok(part, "queue", f"nothing waits longer than it should ({count(prompts['ready'], 'prompt')} ready)")
    if prompts["unknown"]:
        yield warning(
            part,
            "unknown",
            f"{count(prompts['unknown'], 'prompt')} may or may not have been sent: FCM's answer was lost",
            "pgherald unknown list",
        )
    if usage > QUEUE_WARNING:
        say = problem if usage > QUEUE_PROBLEM else warning
        yield say(
            part,
            "notify_queue",
            f"NOTIFY's queue is {usage:.0%} full: some session listens and does not read, or idles in a transaction",
            "select pid, usename, application_name, state, xact_start from pg_stat_activity order by xact_start; then "
            "select pg_terminate_backend(pid) on the culprit",
        )


def _schedule(connection: psycopg.Connection, eyes: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    part, check = Part.SCHEDULE, "schedule"
    try:
        leader, cron, age = _rows(
            connection,
            "select o.leader, o.cron, extract(epoch from o.now - o.last_scheduled_at)::float8 "
            "from herald.outbox_status() as o",
        )[0]
    except psycopg.Error:
        return
    recent = age is not None and age <= LATE
    if cron:
        yield from _cron(eyes, recent=recent, leader=leader)
    elif settings.scheduler is Scheduler.OFF and not recent:
        yield problem(
            part,
            check,
            f"there is no pg_cron in this database, and {SCHEDULER.name} is off: nobody makes scheduled runs",
            f"{SCHEDULER.name}=auto, or create extension pg_cron and pgherald migrate",
        )
    elif leader:
        yield ok(part, check, "a daemon makes the scheduled runs")
    elif settings.scheduler is not Scheduler.OFF:
        yield ok(part, check, "without pg_cron a daemon makes the scheduled runs, once one runs")
    if recent:
        yield ok(part, "last_run", f"the last scheduled run was {span(max(age, 0.0))} ago")


def _cron(eyes: psycopg.Connection, *, recent: bool, leader: bool) -> Iterator[Finding]:
    """pg_cron as these eyes may see it; its findings about the two jobs themselves are those of sql/checks."""
    part, check = Part.SCHEDULE, "pg_cron"
    try:
        jobs = _rows(
            eyes,
            "select j.jobname, j.active, j.scheduled, extract(epoch from pg_catalog.now() - j.last_start)::float8 "
            "from herald.cron_jobs() as j",
        )
        orphaned = _rows(eyes, _ORPHANED_JOBS) if jobs else []
    except psycopg.Error:
        jobs, orphaned = [], []
    for number, name, role in orphaned:
        yield problem(
            part,
            check,
            f'pg_cron\'s job {name or number} belongs to role "{role}", which does not exist: it can stop all jobs',
            f"select cron.unschedule({number}); then pgherald migrate",
        )
    if not jobs:
        how = "evidently makes the scheduled runs" if recent and not leader else "is installed; whether it works"
        yield unseen(
            part,
            check,
            f'pg_cron {how}, but "{eyes.info.user}" may not see its jobs',
            "pgherald doctor --dba-url ..., as the role that ran migrate",
        )
        return
    for name, active, scheduled, age in jobs:
        if name == "herald-evaluate" and active and scheduled and not recent and (age is None or age > LATE):
            since = "never ran" if age is None else f"last ran {span(age)} ago"
            yield problem(
                part,
                check,
                f"pg_cron's job {name} is active, but {since}: its launcher is not at work",
                "pg_cron must be in shared_preload_libraries, cron.database_name must be this database; restart the "
                "server; its log says more",
            )
            return
    if all(active and scheduled for _, active, scheduled, _ in jobs) and not orphaned:
        yield ok(part, check, "pg_cron's jobs herald-evaluate and herald-maintain are there, active, and run")


# Plans and transactions.


def _plans(connection: psycopg.Connection) -> Iterator[Finding]:
    part, check = Part.LOAD, "plans"
    try:
        scans = _rows(
            connection,
            "select s.relation, s.relation_rows, pg_catalog.string_agg(distinct s.scenario_type, ', '), "
            "pg_catalog.bool_or(s.run = 'scheduled'), pg_catalog.bool_or(s.run = 'touched') "
            "from herald.sequential_scans(%s) as s group by s.relation, s.relation_rows order by s.relation",
            SCAN_ROWS,
        )
    except psycopg.Error as error:
        yield problem(part, check, f"the plans cannot be looked at ({type(error).__name__})", "pgherald migrate")
        return
    for relation, rows, types, scheduled, touched in scans:
        if relation is None:
            yield problem(
                part,
                check,
                f"the evaluator of {types} fails before it runs",
                "pgherald evaluate --dry-run (shows the error of each scenario)",
            )
            continue
        runs = " and ".join(
            word for word, is_so in (("each scheduled run", scheduled), ("each changed person", touched)) if is_so
        )
        yield warning(
            part,
            check,
            f"{relation} ({rows:,} rows) is read whole for {runs} of {types}: an index is missing, or statistics are",
            _wanted(connection, relation),
        )
    if not scans:
        yield ok(part, check, "the evaluators reach the app's tables by indexes")


#: What an evaluator looks for in the tables behind a source view.
_WANTED: Final = {
    "source_activity": (("occurred_at",), ("user_id", "occurred_at")),
    "source_expiry": (("expires_at",), ("user_id",)),
    "source_recipient": (("user_id",), ("registered_at",)),
}


def _wanted(connection: psycopg.Connection, relation: str) -> str:
    """The statements that would help a table: the indexes for its part that it does not have, or fresh statistics."""
    # not by ::regclass, for which this login would need a right on the table's schema
    ((table,),) = _rows(
        connection,
        "select c.oid from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace "
        "where pg_catalog.format('%%I.%%I', n.nspname, c.relname) = %s",
        relation,
    )
    found = _rows(
        connection,
        "select distinct s.source from herald.source_tables() as s where s.relation = %s",
        table,
    )
    columns = {
        row[0]
        for row in _rows(
            connection,
            "select a.attname from pg_catalog.pg_attribute as a "
            "where a.attrelid = %s and a.attnum > 0 and not a.attisdropped",
            table,
        )
    }
    there = {
        tuple(row[0])
        for row in _rows(
            connection,
            "select array(select a.attname "
            "from pg_catalog.unnest(i.indkey::smallint[]) with ordinality as k (number, place) "
            "join pg_catalog.pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.number order by k.place) "
            "from pg_catalog.pg_index as i where i.indrelid = %s and i.indisvalid and i.indpred is null",
            table,
        )
    }
    statements = []
    for (source,) in found:
        for wanted in _WANTED.get(source, ()):
            if any(index[: len(wanted)] == wanted for index in there):
                continue
            named = ", ".join(
                column if column in columns else f"<the column behind {source}.{column}>" for column in wanted
            )
            statements.append(f"create index concurrently on {relation} ({named})")
    return "; ".join([*statements, f"analyze {relation}"])


def _transactions(eyes: psycopg.Connection) -> Iterator[Finding]:
    """What holds vacuum back, fills NOTIFY's queue, and keeps the daemon polling."""
    part, check = Part.LOAD, "transactions"
    for gid, owner, seconds in _rows(eyes, _PREPARED):
        yield problem(
            part,
            check,
            f'transaction "{gid}" of {owner} is prepared since {span(seconds)}: it holds vacuum back for ever',
            f"rollback prepared '{gid}' (or commit it), in this database",
        )
    sees_all = _rows(
        eyes,
        "select pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')",
    )[0][0]
    bad = False
    sessions = _rows(eyes, _SESSIONS)
    for pid, user, name, state, seconds in sessions:
        idle = str(state).startswith("idle in transaction")
        if seconds <= (IDLE_WARNING if idle else RUNNING_WARNING):
            continue
        bad = True
        say = problem if idle and seconds > IDLE_PROBLEM else warning
        who = f"{user}{f' ({name})' if name else ''}, pid {pid}"
        yield say(
            part,
            check,
            f"a transaction of {who} is open for {span(seconds)}, {state}: it holds vacuum back, and the outbox grows",
            f'select pg_terminate_backend({pid}); against the next one: alter role "{user}" set '
            "idle_in_transaction_session_timeout = '5min'"
            if idle
            else f"let it end, or: select pg_cancel_backend({pid})",
        )
    if not sees_all:
        yield unseen(
            part,
            check,
            f'"{eyes.info.user}" sees the transactions of its own sessions only',
            f'grant pg_read_all_stats to "{eyes.info.user}"; or pgherald doctor --dba-url ...',
        )
    elif not bad:
        oldest = f"the oldest transaction is {span(max(sessions[0][4], 0.0))} old" if sessions else "none is open"
        yield ok(part, check, f"no transaction is open for long ({oldest})")
