"""The commands about scenarios and those whom they reach: evaluate, preview, backtest, why, describe."""

from __future__ import annotations

import re
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from pgherald.commands.command import (
    AT,
    NO_SCENARIOS,
    SCENARIO,
    as_locale,
    as_moment,
    as_uuid,
    as_window,
    command,
    connected,
    say,
    scenario_id,
    terminal,
    whole,
)
from pgherald.errors import UsageError
from pgherald.screen import Colour, as_json, count, cut, listed, moment, short, span

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from pgherald.commands.command import Commands
    from pgherald.operate import Backtested, Check, Operations, Previewed, Run
    from pgherald.screen import Screen


DAYS_MAX: Final = 3660
"""A backtest goes over so many days at most."""


def add_parsers(commands: Commands) -> None:
    """Add these commands to the program's."""
    _add_evaluate(commands)
    _add_preview(commands)
    _add_backtest(commands)
    _add_why(commands)
    _add_describe(commands)


def _add_evaluate(commands: Commands) -> None:
    parser = command(
        commands,
        "evaluate",
        _evaluate,
        "run the scheduled evaluation once, by hand",
        "Runs herald.evaluate() now, as pg_cron or a daemon does each minute, and shows what it came to. Running it "
        "beside them is safe. The exit code is 1 if a scenario failed or was held.",
    )
    parser.add_argument("--scenario", help=f"one only: {SCENARIO}")
    parser.add_argument("--now", type=as_moment, metavar="MOMENT", help=f"as if it were then: {AT}")
    parser.add_argument("--dry-run", action="store_true", help="roll it all back: show what a run would do")


def _evaluate(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        scenario = scenario_id(operations, arguments)
        outbox = operations.outbox()
        if arguments.now is not None and arguments.now > outbox.now + timedelta(minutes=1) and not arguments.dry_run:
            raise UsageError(
                "--now lies in the future: the scenarios would count as evaluated until then, and nobody would be "
                "found due before. Look into the future with --dry-run, or with `pgherald preview --now`"
            )
        names = {each.scenario_id: each.name for each in operations.status("en", timedelta(hours=1))}
        runs = operations.evaluate(arguments.now, scenario, dry_run=arguments.dry_run)
    bad = any(run.error is not None for run in runs)
    if arguments.json:
        say(as_json({"dry_run": arguments.dry_run, "runs": runs}))
        return int(bad)
    to = terminal()
    if not runs:
        say("no scenario was evaluated: there is none that is not off, or another run is at it this moment")
        return 0
    rows = [
        (
            cut(_name(run, names), 30),
            run.candidates,
            run.prompts,
            span(run.duration.total_seconds()),
            listed({gate: n for gate, n in run.suppressed.items() if gate != "held"}),
        )
        for run in runs
    ]
    say(to.table(("SCENARIO", "DUE", "PROMPTS", "TIME", "NOT SENT AT ONCE"), rows, widest=_cut_at(4)))
    for run in runs:
        if run.error is not None:
            say(to.paint(to.wrap(f"{_name(run, names)}: {run.error}", 0, 2), Colour.RED))
    if arguments.dry_run:
        say("rolled back: nothing was written")
    return int(bad)


def _cut_at(column: int) -> int | None:
    """A terminal's lines are cut; whoever searches them in a pipe needs all of it."""
    return column if sys.stdout.isatty() else None


def _name(run: Run, names: dict[UUID, str]) -> str:
    return names.get(run.scenario_id, str(run.scenario_id))


def _add_definition(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help=SCENARIO)
    parser.add_argument(
        "--definition",
        metavar="FILE",
        help="a scenario that is not saved yet: its columns as a JSON object; - reads standard input",
    )


def _subject(operations: Operations, arguments: argparse.Namespace) -> tuple[UUID | dict[str, Any], str]:
    """What to look at, and what to call it: a saved scenario or a definition."""
    if (arguments.scenario is None) == (arguments.definition is None):
        raise UsageError("give either a SCENARIO or --definition FILE")
    if arguments.definition is None:
        scenario = operations.scenario(arguments.scenario)
        return scenario.scenario_id, scenario.name
    definition = _read_definition(arguments.definition)
    return definition, str(definition.get("name", "this definition"))


#: The escape of a NUL in a JSON text; a backslash before it may itself be escaped.
_NUL: Final = re.compile(rb"(?<!\\)(\\\\)*\\u0000")


def _read_definition(path: str) -> dict[str, Any]:
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise UsageError(f"--definition {path}: {reason}") from None
    try:
        definition = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"--definition {path}: not JSON ({error.msg}, line {error.lineno})") from None
    if not isinstance(definition, dict):
        raise UsageError(
            f'--definition {path}: not a JSON object; for example {{"scenario_type": "inactivity", "organisation_id": '
            '"<uuid>", "name": "quiet mentors", "params": {"days": 30}}'
        )
    if _NUL.search(content):
        raise UsageError(f"--definition {path}: a text in it has a \\u0000, which Postgres does not take: leave it out")
    return definition


def _add_preview(commands: Commands) -> None:
    parser = command(
        commands,
        "preview",
        _preview,
        "who would get it: saved or not, nothing is written",
        "Shows who became due within the window and what would become of each now: send, or the gate that stops it. "
        "The same candidates and the same gates as a run; nothing is written.",
    )
    _add_definition(parser)
    parser.add_argument(
        "--window", type=as_window, default="7 days", help="how far to look back, such as '12 hours' (default: 7 days)"
    )
    parser.add_argument("--now", type=as_moment, metavar="MOMENT", help=f"as if it were then: {AT}")
    parser.add_argument("--limit", type=whole(0, 1_000_000, "a number"), default=20, help="people listed (default: 20)")


def _preview(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        subject, name = _subject(operations, arguments)
        if not operations.is_interval(arguments.window):
            raise UsageError(f"--window '{arguments.window}' is no length of time; for example --window '7 days'")
        found = operations.preview(subject, arguments.now, arguments.window)
    if arguments.json:
        say(as_json(found))
        return 0
    say(_preview_text(name, found, arguments, terminal()))
    return 0


#: Gates whose names do not say it all.
_GATES: Final = {
    "duplicate": "decided on before, or another prompt of the type is open",
    "expired": "was due too long ago to be sent now",
    "no_longer_due": "was due within the window, and is not any more",
    "canary": "not among the people that this canary is sent to",
    "shadow": "would be sent, if the scenario did more than count",
    "quiet_hours": "sent when the person's quiet hours end",
}


def _preview_text(name: str, found: Sequence[Previewed], arguments: argparse.Namespace, to: Screen) -> str:
    decisions = Counter(each.decision for each in found)
    send = decisions.pop("send", 0)
    people = len({each.user_id for each in found if each.decision == "send"})
    lines = [to.paint(to.wrap(f"{name}: due within {arguments.window}: {len(found):,}"), Colour.BOLD)]
    lines.append(f"  {to.paint(count(send, 'push', 'pushes'), Colour.GREEN)} to {count(people, 'person', 'people')}")
    if decisions:
        lines.append(to.wrap(f"not, or not at once: {listed(decisions)}", 2, 4))
        lines += [to.wrap(f"{gate}: {words}", 4, 6) for gate, words in _GATES.items() if gate in decisions]
    if found and arguments.limit:
        # those it would reach first, then the latest
        shown = sorted(found, key=lambda each: (each.decision != "send", -each.due_at.timestamp()))[: arguments.limit]
        rows = [(moment(each.due_at), each.decision, each.user_id, each.activity_ref) for each in shown]
        lines += ["", to.table(("DUE (UTC)", "DECISION", "USER", "ABOUT"), rows, widest=_cut_at(3))]
        if len(found) > len(shown):
            lines.append(f"... and {len(found) - len(shown):,} more (--limit, --json)")
    return "\n".join(lines)


def _add_backtest(commands: Commands) -> None:
    parser = command(
        commands,
        "backtest",
        _backtest,
        "who would have got it: a scenario over the past",
        "Runs a scenario over the past and shows how many became due each day, how many pushes the cooldown would have "
        "let through, and who would have got most. Quiet hours, devices and caps are left aside; nothing is written.",
    )
    _add_definition(parser)
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--days", type=whole(1, DAYS_MAX, "a number"), help="days back (default: 28)")
    begin.add_argument("--from", dest="begin", type=as_moment, metavar="MOMENT", help=f"instead of --days: {AT}")
    parser.add_argument("--to", dest="end", type=as_moment, metavar="MOMENT", help="until then (default: now)")


def _backtest(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        subject, name = _subject(operations, arguments)
        end = arguments.end or operations.outbox().now
        try:
            begin = arguments.begin or end - timedelta(days=arguments.days or 28)
        except OverflowError:
            raise UsageError("--to lies too early for so many days before it: give a later one") from None
        if begin >= end:
            raise UsageError("--from must lie before --to")
        if end - begin > timedelta(days=DAYS_MAX):
            raise UsageError(f"--from lies more than {DAYS_MAX:,} days before the end: give a later one")
        rows = operations.backtest(subject, begin, end)
    if arguments.json:
        say(as_json(rows))
        return 0
    say(_backtest_text(name, begin, end, rows, terminal()))
    return 0


def _backtest_text(name: str, begin: datetime, end: datetime, rows: Sequence[Backtested], to: Screen) -> str:
    days = [row for row in rows if row.kind == "day" and row.day is not None]
    people = [row for row in rows if row.kind == "person" and row.sent]
    due, sent = sum(row.candidates for row in days), sum(row.sent for row in days)
    lines = [
        to.paint(to.wrap(f"{name}, {moment(begin)} to {moment(end)} UTC"), Colour.BOLD),
        f"  {count(due, 'candidate')}, {count(sent, 'push', 'pushes')}",
        "",
    ]
    if sent < due:
        why = "within the cooldown or the same UTC day, opted out, not active, or outside the canary"
        lines[1] += "\n" + to.wrap(f"no push for {due - sent:,}: {why}", 2, 4)
    step = 1 if len(days) <= 35 else 7 if len(days) <= 245 else 30
    bars = [days[at : at + step] for at in range(0, len(days), step)]
    most = max((sum(row.candidates for row in bar) for bar in bars), default=0)
    room = to.width - 30
    for bar in bars:
        bar_due, bar_sent = sum(row.candidates for row in bar), sum(row.sent for row in bar)
        full = round(room * bar_sent / most) if most else 0
        rest = (round(room * bar_due / most) if most else 0) - full
        drawn = to.paint("#" * full, Colour.GREEN) + "." * rest
        lines.append(f"  {bar[0].day}  {bar_due:>6,}  {bar_sent:>6,}  {drawn}".rstrip())
    lines.insert(
        3, f"  {'day' if step == 1 else f'{step} days'}".ljust(14) + "   DUE  PUSHES  # pushes, . due but not sent"
    )
    if people:
        lines += [
            "",
            to.table(("MOST OFTEN REACHED", "PUSHES", "DUE"), [(r.user_id, r.sent, r.candidates) for r in people[:5]]),
        ]
    return "\n".join(lines)


def _add_why(commands: Commands) -> None:
    parser = command(
        commands,
        "why",
        _why,
        "why a person did, or did not, get a push",
        "Every check of one person and one scenario type, with its numbers: due or not, opt-outs, cooldown, devices, "
        "and what became of the prompt if there was one.",
    )
    parser.add_argument("user", type=as_uuid, metavar="USER", help="the person's user_id")
    parser.add_argument("scenario_type", metavar="TYPE", help="the scenario type, such as inactivity")
    parser.add_argument("--now", type=as_moment, metavar="MOMENT", help=f"as of then: {AT}")


def _why(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        checks = operations.why(arguments.user, arguments.scenario_type, arguments.now)
    say(as_json(checks) if arguments.json else _why_text(checks, terminal()))
    return 0


def _why_text(checks: Sequence[Check], to: Screen) -> str:
    widest = max(len(check.check_name) for check in checks)
    lines = []
    for check in checks:
        if check.check_name == "scenario":
            lines.append("")
        mark = to.paint("yes", Colour.GREEN) if check.passed else to.paint("NO ", Colour.RED)
        head = f"{check.check_name.ljust(widest)}  "
        body = to.wrap(check.detail, len(head) + 5, len(head) + 5).lstrip()
        lines.append(f"{mark}  {head}{body}")
    return "\n".join(lines).strip("\n")


def _add_describe(commands: Commands) -> None:
    parser = command(
        commands,
        "describe",
        _describe,
        "scenarios in a sentence each, as a coordinator would say it",
        "Says what a scenario does in one sentence, in English or Norwegian; without SCENARIO all of them.",
    )
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help=SCENARIO)
    parser.add_argument("--locale", type=as_locale, default="en", help="en or nb (default: en)")


def _describe(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        only = scenario_id(operations, arguments)
        found = [
            each
            for each in operations.status(arguments.locale, timedelta(hours=1))
            if only is None or each.scenario_id == only
        ]
    if arguments.json:
        say(
            as_json(
                [
                    {
                        "scenario_id": each.scenario_id,
                        "name": each.name,
                        "scenario_type": each.scenario_type,
                        "sentence": each.sentence,
                    }
                    for each in found
                ]
            )
        )
        return 0
    to = terminal()
    if only is not None:
        say(to.wrap(found[0].sentence))
        return 0
    if not found:
        say(to.wrap(NO_SCENARIOS))
    for each in found:
        say(to.paint(to.wrap(f"{each.name} ({each.scenario_type}, {short(each.scenario_id)})"), Colour.BOLD))
        say(to.wrap(each.sentence, 2))
    return 0
