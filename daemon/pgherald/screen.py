"""How the commands talk to a person: tables, ages, numbers with their nouns, and a little colour on a terminal.

Pure: text in, text out; the commands print it. Eighty columns are enough for all of it, a wider terminal is used up to
`WIDTH_MAX`. What a program is to read goes through `as_json` instead.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from datetime import UTC, datetime, timedelta
from enum import StrEnum, unique
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

WIDTH: Final = 80
WIDTH_MAX: Final = 110

#: What a terminal obeys, or puts into another order, but ends of lines and the colours of `Colour`.
_OBEYED: Final = re.compile(r"(?!\x1b\[(?:[012]|3[123])m)[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@unique
class Colour(StrEnum):
    """SGR codes; the words are understood without them."""

    RED = "31"
    GREEN = "32"
    YELLOW = "33"
    DIM = "2"
    BOLD = "1"


class Screen:
    """A terminal, or what stands in its place: `width` columns, with colour or without."""

    def __init__(self, width: int = WIDTH, *, colour: bool = False) -> None:
        self.width = max(60, min(width, WIDTH_MAX))
        self._colour = colour

    def paint(self, text: str, colour: Colour) -> str:
        """The text in a colour, where there is colour."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and text else text

    def wrap(self, text: str, indent: int = 0, hanging: int | None = None) -> str:
        """The text broken into lines; `hanging` is the indent of the second line and on. Nothing is cut."""
        return textwrap.fill(
            text,
            self.width,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent if hanging is None else hanging),
            break_long_words=False,
            break_on_hyphens=False,
        )

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[object]], *, widest: int | None = None) -> str:
        """Columns under their heads: numbers to the right, the column `widest` cut so that a line fits."""
        cells = [["" if cell is None else visible(str(cell)).replace("\n", r"\u000a") for cell in row] for row in rows]
        widths = [max(len(head), *(columns(row[at]) for row in cells), 0) for at, head in enumerate(heads)]
        if widest is not None:
            rest = sum(widths) - widths[widest] + 2 * (len(heads) - 1)
            widths[widest] = max(len(heads[widest]), min(widths[widest], self.width - rest))
        right = [all(isinstance(row[at], int | float) for row in rows) for at in range(len(heads))]
        lines = [self.paint(_line(heads, widths, right), Colour.BOLD)]
        lines += [_line(row, widths, right) for row in cells]
        return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    return "  ".join(
        fit(cell, width, flush=flush) for cell, width, flush in zip(cells, widths, right, strict=True)
    ).rstrip()


def visible(text: str) -> str:
    """The text with escapes for what a terminal would obey, which mean the same in JSON: time zones, ids and names are
    an app's, or anybody's."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def columns(text: str) -> int:
    """How many columns of a terminal it takes: two a wide character (CJK, most emoji), none an accent on top of one."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def fit(text: str, width: int, *, flush: bool) -> str:
    """The text in so many columns: cut, or filled up with spaces (before it, if it is to be flush right)."""
    text = cut(text, width)
    spaces = " " * (width - columns(text))
    return spaces + text if flush else text + spaces


def cut(text: str, width: int) -> str:
    """The text, or as much of it as fits, with the mark that there was more."""
    if columns(text) <= width:
        return text
    while text and columns(text) > width - 3:
        text = text[:-1]
    return f"{text}..."


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 prompt`, `2 prompts`, `1,200 prompts`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(counts: Mapping[str, int]) -> str:
    """`3 opted_out, 1 cooldown`: the largest first; empty without any."""
    found = sorted(((number, name) for name, number in counts.items() if number), key=lambda each: (-each[0], each[1]))
    return ", ".join(f"{number:,} {name}" for number, name in found)


def span(seconds: float) -> str:
    """A length of time in one unit: `340 ms`, `12 s`, `3 min`, `5 h`, `2 days`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:.0f} days"


def ago(moment: datetime | None, now: datetime) -> str:
    """`12 s ago`, `in 5 h`, `never`."""
    if moment is None:
        return "never"
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def moment(at: datetime | None) -> str:
    """A moment to the minute, in UTC."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def short(identifier: UUID) -> str:
    """As much of an id as a person types."""
    return str(identifier)[:8]


def as_json(content: object) -> str:
    """One line of JSON; durations in seconds."""
    return orjson.dumps(content, default=_plain, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError
