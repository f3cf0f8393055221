"""Examines everything between a changed row and a push, and says of each thing what mends it.

`examine` goes along the way: `database` (the connections, LISTEN, the schema and its checks, the database's clock) and
in it `flow` (daemons, queue, schedule, plans, transactions), `host` (the state directory, the metrics' certificate),
`push` (the credentials, the access token, FCM itself and its clock). `servers` is the table of Postgres's own bugs,
`shipped` reads the functions that the program's files have, `session` is how a database is asked. Nothing is changed
and nobody gets anything. Called by the command `doctor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgherald.doctor import database, host, push
from pgherald.doctor.finding import Part, State
from pgherald.screen import Colour, count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgherald.config import Settings
    from pgherald.doctor.finding import Finding
    from pgherald.screen import Screen

__all__ = ["State", "document", "examine", "report"]

_COLOURS = {
    State.OK: Colour.GREEN,
    State.WARNING: Colour.YELLOW,
    State.PROBLEM: Colour.RED,
    State.UNSEEN: Colour.DIM,
}


def examine(settings: Settings, dba_url: str | None = None) -> list[Finding]:
    """Look at everything; `dba_url` is a second pair of eyes for what the daemon's own login may not see."""
    return [*database.examine(settings, dba_url), *host.examine(settings), *push.examine(settings)]


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings for a program."""
    return {
        "problems": _number(findings, State.PROBLEM),
        "warnings": _number(findings, State.WARNING),
        "unseen": _number(findings, State.UNSEEN),
        "findings": [
            {
                "part": each.part.name.lower(),
                "check": each.check,
                "state": each.state,
                "what": each.what,
                "remedy": each.remedy,
            }
            for each in findings
        ],
    }


def report(findings: Sequence[Finding], to: Screen, *, verbose: bool) -> str:
    """The findings for a person; without `verbose`, the checks of the schema that found nothing are one line."""
    lines = []
    for part in Part:
        mine = [each for each in findings if each.part is part]
        if not mine:
            continue
        lines.append(to.paint(part.value, Colour.BOLD))
        good = [each for each in mine if each.state is State.OK and each.check.startswith("checks/")]
        for each in mine:
            if each in good and not verbose:
                continue
            mark = to.paint(each.state.value.ljust(8), _COLOURS[each.state])
            lines.append(f"  {mark} {to.wrap(each.what, 11, 11).lstrip()}")
            if each.remedy is not None:
                lines.append(f"{' ' * 11}-> {each.remedy}")  # in one piece, to be copied
        if good and not verbose:
            mark = to.paint("ok".ljust(8), Colour.GREEN)
            lines.append(f"  {mark} {count(len(good), 'check')} of sql/checks found nothing (-v names them)")
        lines.append("")
    lines.append(_verdict(findings, to))
    return "\n".join(lines)


def _verdict(findings: Sequence[Finding], to: Screen) -> str:
    bad, doubtful, hidden = (_number(findings, each) for each in (State.PROBLEM, State.WARNING, State.UNSEEN))
    if not bad and not doubtful:
        text = to.paint("all is well", Colour.GREEN)
    else:
        numbers = [count(bad, "problem")] if bad else []
        numbers += [count(doubtful, "warning")] if doubtful else []
        text = to.paint(", ".join(numbers), Colour.RED if bad else Colour.YELLOW)
    return text if not hidden else f"{text}; {count(hidden, 'thing')} this login may not see"


def _number(findings: Sequence[Finding], state: State) -> int:
    return sum(each.state is state for each in findings)
