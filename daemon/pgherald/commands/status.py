"""`pgherald status`: every scenario in its sentence and its numbers, the queue, and whether scheduled runs come."""

from __future__ import annotations

import sys
import time
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, Final

from pgherald.commands.command import (
    NO_SCENARIOS,
    as_locale,
    as_seconds,
    command,
    connected,
    say,
    settings_of,
    terminal,
    whole,
)
from pgherald.config import Scheduler
from pgherald.screen import Colour, ago, as_json, columns, count, cut, listed, short, span

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from pgherald.commands.command import Commands
    from pgherald.config import Settings
    from pgherald.operate import OutboxStatus, ScenarioStatus
    from pgherald.screen import Screen

RUN_EVERY: Final = timedelta(minutes=1)
"""How often scheduled runs come, from pg_cron or from a daemon."""

LATE: Final = timedelta(seconds=150)
"""A scheduled run that much after the last one is missing."""


def add_parsers(commands: Commands) -> None:
    """Add the command to the program's."""
    parser = command(
        commands,
        "status",
        _status,
        "scenarios in words and numbers, the queue, the schedule",
        "Shows each scenario with its sentence, mode, last run, and what came of it; what waits in the outbox; and "
        "whether scheduled runs come. An answer, not an alarm: the exit code is 0 whatever it shows (`pgherald doctor` "
        "judges).",
    )
    parser.add_argument("--hours", type=whole(1, 8760, "a number"), default=24, help="count this many (default: 24)")
    parser.add_argument(
        "--locale", type=as_locale, default="en", help="language of the sentences: en or nb (default: en)"
    )
    parser.add_argument(
        "--watch",
        type=as_seconds,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="show it again every so often (default: 2) until Ctrl-C; with --json one line each",
    )


def _status(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    since = timedelta(hours=arguments.hours)
    with connected(arguments) as operations:
        while True:
            # The one that says what time it is comes second, so that no run is of the future.
            scenarios, outbox = operations.status(arguments.locale, since), operations.outbox()
            if arguments.json:
                say(as_json(_status_document(outbox, scenarios, settings, arguments.hours)))
            else:
                text = _status_text(outbox, scenarios, settings, arguments.hours, operations.database, terminal())
                if arguments.watch and sys.stdout.isatty():
                    sys.stdout.write("\x1b[H\x1b[2J")
                say(text)
            if not arguments.watch:
                return 0
            if not arguments.json and not sys.stdout.isatty():
                say("")
            try:
                time.sleep(arguments.watch)
            except KeyboardInterrupt:
                return 0


def _who_runs(outbox: OutboxStatus, settings: Settings) -> str | None:
    """Who makes the scheduled runs, as far as can be seen from here; None: nobody."""
    if outbox.leader:
        return "a daemon"
    if outbox.cron:
        return "pg_cron"
    return None if settings.scheduler is Scheduler.OFF else "a daemon, once one runs"


def _next_run(outbox: OutboxStatus) -> datetime | None:
    return None if outbox.last_scheduled_at is None else outbox.last_scheduled_at + RUN_EVERY


def _is_late(outbox: OutboxStatus) -> bool:
    return outbox.last_scheduled_at is not None and outbox.now - outbox.last_scheduled_at > LATE


def _soon(outbox: OutboxStatus) -> str:
    """When the next scheduled run is to be expected."""
    following = _next_run(outbox)
    if following is None:
        return "within a minute" if outbox.leader or outbox.cron else "as soon as somebody makes them"
    if _is_late(outbox):
        return "overdue"
    return "now" if following <= outbox.now else ago(following, outbox.now)


def _status_document(
    outbox: OutboxStatus, scenarios: Sequence[ScenarioStatus], settings: Settings, hours: int
) -> dict[str, Any]:
    return {
        "now": outbox.now,
        "schema_version": outbox.schema_version,
        "paused_at": outbox.paused_at,
        "queue": {
            "prompts": outbox.prompts,
            "oldest_ready_seconds": outbox.oldest_ready_seconds,
            "next_not_before": outbox.next_not_before,
            "touched": outbox.touched,
            "notify_queue_usage": outbox.notify_queue_usage,
        },
        "schedule": {
            "last_run_at": outbox.last_scheduled_at,
            "next_run_at": _next_run(outbox),
            "late": _is_late(outbox),
            "pg_cron": outbox.cron,
            "daemon_leads": outbox.leader,
            "by": _who_runs(outbox, settings),
        },
        "hours": hours,
        "scenarios": scenarios,
    }


def _status_text(
    outbox: OutboxStatus,
    scenarios: Sequence[ScenarioStatus],
    settings: Settings,
    hours: int,
    database: str,
    to: Screen,
) -> str:
    lines = [
        to.paint(f"pgherald in database {database}, {outbox.now.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC", Colour.BOLD),
        "",
        *_queue_lines(outbox, sum(each.waiting for each in scenarios if each.paused_at), to),
        *_schedule_lines(outbox, settings, any(each.mode != "off" for each in scenarios), to),
        "",
    ]
    if not scenarios:
        lines.append(to.wrap(NO_SCENARIOS))
        return "\n".join(lines)
    lines.append(to.paint(f"Scenarios (numbers of the last {count(hours, 'hour')})", Colour.BOLD))
    for scenario in scenarios:
        lines += ["", *_scenario_lines(scenario, outbox, to)]
    return "\n".join(lines)


def _queue_lines(outbox: OutboxStatus, paused: int, to: Screen) -> Iterator[str]:
    numbers = outbox.prompts
    notes = []
    if outbox.oldest_ready_seconds > 0:
        notes.append(f"the oldest for {span(outbox.oldest_ready_seconds)}")
    elif outbox.next_not_before is not None and outbox.paused_at is None:
        notes.append(f"the next {ago(outbox.next_not_before, outbox.now)}")
    if paused:
        notes.append(f"{paused:,} of paused scenarios")
    note = f" ({', '.join(notes)})" if notes else ""
    yield f"Queue     {numbers.get('ready', 0):,} ready{note}, {numbers.get('sending', 0):,} sending"
    attention = [
        to.paint(f"{numbers[status]:,} {status} (pgherald {status} list)", Colour.YELLOW)
        for status in ("failed", "unknown")
        if numbers.get(status)
    ]
    if attention:
        yield f"          {', '.join(attention)}"
    if outbox.paused_at is not None:
        text = f"PAUSED since {ago(outbox.paused_at, outbox.now)}: nothing is sent until `pgherald resume`"
        yield f"          {to.paint(text, Colour.RED)}"


def _schedule_lines(outbox: OutboxStatus, settings: Settings, to_run: bool, to: Screen) -> Iterator[str]:
    who = _who_runs(outbox, settings)
    following = _next_run(outbox)
    if not to_run:
        yield f"Schedule  nothing to run; by {who or 'nobody'}"
    elif following is None:
        text = "no scheduled run within the last day"
        yield f"Schedule  {to.paint(text, Colour.RED)}; by {who or 'nobody'}"
    elif _is_late(outbox):
        text = f"LATE: the last run was {ago(outbox.last_scheduled_at, outbox.now)}"
        yield f"Schedule  {to.paint(text, Colour.RED)}; they should come each minute by {who or 'nobody'}"
    else:
        last = ago(outbox.last_scheduled_at, outbox.now)
        yield f"Schedule  last run {last}, next {_soon(outbox)}; by {who or 'hand'}"


def _scenario_lines(scenario: ScenarioStatus, outbox: OutboxStatus, to: Screen) -> Iterator[str]:
    brief = short(scenario.scenario_id)
    mode = f"{scenario.canary_percent} % canary" if scenario.mode == "canary" else scenario.mode
    label = f"{scenario.scenario_type}, {mode}, {brief}"
    name = cut(scenario.name, to.width - len(label) - 2)
    yield f"{to.paint(name, Colour.BOLD)}{label.rjust(to.width - columns(name))}"
    yield to.wrap(scenario.sentence, 2)
    numbers = [f"due {scenario.due:,}", f"sent {scenario.sent:,}", f"waiting {scenario.waiting:,}"]
    numbers += [f"{what} {n:,}" for what, n in (("failed", scenario.failed), ("unknown", scenario.unknown)) if n]
    if scenario.mode == "off":
        runs = "no runs"
    else:
        last = "no run yet" if scenario.last_run_at is None else f"last run {ago(scenario.last_run_at, outbox.now)}"
        runs = f"{last}, next {_soon(outbox)}"
    yield to.wrap(f"{runs}; {', '.join(numbers)}", 2, 4)
    gates = {gate: n for gate, n in scenario.suppressed.items() if gate != "quiet_hours"}
    if listed(gates):
        yield to.wrap(f"not sent: {listed(gates)}", 2, 4)
    if waits := scenario.suppressed.get("quiet_hours"):
        yield to.wrap(f"deferred to the end of the quiet hours: {waits:,}", 2, 4)
    if scenario.paused_at is not None:
        yield to.paint(
            f"  PAUSED since {ago(scenario.paused_at, outbox.now)}: pgherald resume {brief}",
            Colour.YELLOW,
        )
    if scenario.held_at is not None:
        text = (
            f"HELD since {ago(scenario.held_at, outbox.now)}: a run would have made "
            f"{count(scenario.held_prompts or 0, 'prompt')}. Look: pgherald preview {brief}; "
            f"let it: pgherald resume {brief}"
        )
        yield to.paint(to.wrap(text, 2, 4), Colour.YELLOW)
    if scenario.error_code is not None:
        text = f"FAILED with SQLSTATE {scenario.error_code}: pgherald evaluate --dry-run --scenario {brief}"
        yield to.paint(to.wrap(text, 2, 4), Colour.RED)
