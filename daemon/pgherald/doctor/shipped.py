"""The functions as this program's files have them, to hold against what is in a database.

The files are read as text, so that this needs no right but the catalog's and trusts nothing that is installed. What
`migrate` left behind compared with what is there now is a check of its own (sql/checks).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pgherald import schema

if TYPE_CHECKING:
    from collections.abc import Iterable

_CREATE: Final = re.compile(r"^create or replace (?:function|procedure) herald\.", re.MULTILINE)
_BODY: Final = re.compile(r"\bas \$(\w*)\$(.*?)\$\1\$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Installed:
    """A function of schema herald as pg_proc has it; `body` is empty for one in SQL-standard form."""

    name: str
    body: str
    definer: bool


def shipped() -> list[Installed]:
    """The functions in the files, those of one name one after the other."""
    return [each for _, text in schema.functions() for each in _functions(text)]


def _functions(text: str) -> list[Installed]:
    found = []
    for statement in _CREATE.split(text)[1:]:
        head, _, _ = statement.partition("\ncomment on ")
        body = _BODY.search(head)
        attributes = head[: body.start()] if body else head
        found.append(Installed(head.partition("(")[0], body[2] if body else "", " security definer" in attributes))
    return found


def differing(installed: Iterable[Installed]) -> tuple[list[str], list[str]]:
    """The names of functions that this program ships and the database lacks, and of those that it has otherwise."""
    there: dict[str, set[Installed]] = {}
    for each in installed:
        there.setdefault(each.name, set()).add(each)
    missing, other = set(), set()
    for each in shipped():
        if each.name not in there:
            missing.add(each.name)
        elif each not in there[each.name]:
            other.add(each.name)
    return sorted(missing), sorted(other)
