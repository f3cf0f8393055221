"""What goes on in the database: daemons that listen, the queue, the schedule, plans, and transactions left open.

Asked as the daemon's own login, and, what that may not see, by other eyes where there are some. Called by `database`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg

from pgherald.config import SCHEDULER, Scheduler
from pgherald.doctor.finding import Part, ok, problem, unseen, warning
from pgherald.doctor.session import ask
from pgherald.screen import count, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgherald.config import Settings
    from pgherald.doctor.finding import Finding

IDLE_WARNING: Final = 60.0
IDLE_PROBLEM: Final = 900.0
RUNNING_WARNING: Final = 3600.0
"""Seconds that a transaction may be open: idle, and at work."""

READY_PROBLEM: Final = 60.0
"""Seconds that a prompt may wait although it could be sent."""

UNCONFIRMED_PROBLEM: Final = 5.0
"""Seconds that a commit may wait for a synchronous standby."""

LATE: Final = 150.0
"""Seconds after which a scheduled run is missing; they come each minute."""

QUEUE_WARNING: Final = 0.1
QUEUE_PROBLEM: Final = 0.5
"""How full NOTIFY's queue may be; at 1 every commit that notifies fails."""

SCAN_ROWS: Final = 10_000
"""A table of fewer rows may be read whole."""

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

_UNCONFIRMED: Final = """select pg_catalog.count(*),
  pg_catalog.max(extract(epoch from pg_catalog.clock_timestamp() - a.query_start)::float8)
from pg_catalog.pg_stat_activity as a
where a.wait_event = 'SyncRep' and a.datname = pg_catalog.current_database()
  and a.query_start < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => %s)"""

_PREPARED: Final = """select p.gid, p.owner, extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::float8
from pg_catalog.pg_prepared_xacts as p
where p.database = pg_catalog.current_database() and p.prepared < pg_catalog.clock_timestamp() - interval '1 minute'
order by p.prepared"""

_ORPHANED_JOBS: Final = """select j.jobid, j.jobname, j.username
from cron.job as j
where not exists (select from pg_catalog.pg_roles as r where r.rolname = j.username)
order by j.jobid"""


def examine(settings: Settings, connection: psycopg.Connection, eyes: psycopg.Connection) -> Iterator[Finding]:
    """All of it; `eyes` may be the same connection."""
    yield from _daemons(connection)
    yield from _queue(connection)
    yield from _schedule(connection, eyes, settings)
    yield from _plans(connection)
    yield from _unconfirmed(eyes)
    yield from _prepared(eyes)
    yield from _transactions(eyes)


def _daemons(connection: psycopg.Connection) -> Iterator[Finding]:
    """The sessions of this login that listen: daemons elsewhere count too."""
    part, check = Part.SCHEDULE, "daemons"
    number = ask(connection, _LISTENERS)[0][0]
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
        row = ask(
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
        leader, cron, age = ask(
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
        jobs = ask(
            eyes,
            "select j.jobname, j.active, j.scheduled, extract(epoch from pg_catalog.now() - j.last_start)::float8 "
            "from herald.cron_jobs() as j",
        )
        orphaned = ask(eyes, _ORPHANED_JOBS) if jobs else []
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
        how = "evidently makes the scheduled runs" if recent and not leader else "is installed"
        yield unseen(
            part,
            check,
            f'pg_cron {how}, but "{eyes.info.user}" may not see its jobs',
            "pgherald doctor --dba-url ..., as the role that ran migrate",
        )
        return
    for name, active, scheduled, age in jobs:
        if name == "herald-evaluate" and active and scheduled and not recent and (age is None or age > LATE):
            at_work = (
                "pg_cron must be in shared_preload_libraries, cron.database_name must be this database; restart the "
                "server; its log says more"
            )
            if age is None:
                since, remedy = "never ran", f"ask again in a minute, if it was scheduled just now; else {at_work}"
            else:
                since, remedy = f"last ran {span(age)} ago: its launcher is not at work", at_work
            yield problem(part, check, f"pg_cron's job {name} is active, but {since}", remedy)
            return
    if all(active and scheduled for _, active, scheduled, _ in jobs) and not orphaned:
        yield ok(part, check, "pg_cron's jobs herald-evaluate and herald-maintain are there, active, and run")


def _plans(connection: psycopg.Connection) -> Iterator[Finding]:
    part, check = Part.LOAD, "plans"
    try:
        scans = ask(
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
    ((table,),) = ask(
        connection,
        "select c.oid from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace "
        "where pg_catalog.format('%%I.%%I', n.nspname, c.relname) = %s",
        relation,
    )
    found = ask(
        connection,
        "select distinct s.source from herald.source_tables() as s where s.relation = %s",
        table,
    )
    columns = {
        row[0]
        for row in ask(
            connection,
            "select a.attname from pg_catalog.pg_attribute as a "
            "where a.attrelid = %s and a.attnum > 0 and not a.attisdropped",
            table,
        )
    }
    there = {
        tuple(row[0])
        for row in ask(
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


def _unconfirmed(eyes: psycopg.Connection) -> Iterator[Finding]:
    """Commits that wait for a synchronous standby which is away."""
    ((waiting, longest),) = ask(eyes, _UNCONFIRMED, UNCONFIRMED_PROBLEM)
    if waiting:
        yield problem(
            Part.LOAD,
            "synchronous_standby",
            f"{count(waiting, 'commit')} {'waits' if waiting == 1 else 'wait'} for a synchronous standby, the oldest "
            f"for {span(longest)}: nothing is claimed and nothing recorded meanwhile",
            "bring the standbys of synchronous_standby_names back, or do without: alter system set "
            "synchronous_standby_names = ''; select pg_reload_conf()",
        )


def _prepared(eyes: psycopg.Connection) -> Iterator[Finding]:
    """Prepared transactions (of a two-phase commit) that nobody has ended."""
    for gid, owner, seconds in ask(eyes, _PREPARED):
        yield problem(
            Part.LOAD,
            "transactions",
            f'transaction "{gid}" of {owner} is prepared since {span(seconds)}: it holds vacuum back for ever',
            f"rollback prepared '{gid}' (or commit it), in this database",
        )


def _transactions(eyes: psycopg.Connection) -> Iterator[Finding]:
    """Transactions left open: they hold vacuum back, fill NOTIFY's queue, and keep the daemon polling."""
    part, check = Part.LOAD, "transactions"
    ((sees_all,),) = ask(eyes, "select pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')")
    bad = False
    sessions = ask(eyes, _SESSIONS)
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
