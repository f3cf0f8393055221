"""How the demo looks: lines that fit the terminal, in colour where there is one and NO_COLOR does not forbid it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from enum import StrEnum, unique
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDEST: Final = 120
"""Longer lines are hard to read."""

_LABEL: Final = 9
_TIME: Final = 12


@unique
class Style(StrEnum):
    """What a piece of text is, as the numbers of ANSI's SGR sequences."""

    PLAIN = ""
    HEADING = "1"
    FAINT = "2"
    GOOD = "32"
    BAD = "1;31"
    COPING = "33"
    NAME = "36"


class Screen:
    """Writes to stdout."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self._coloured = self.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int:
        """Columns to write in; asked each time, a window may be resized."""
        return min(WIDEST, shutil.get_terminal_size((100, 24)).columns)

    def line(self, text: str = "", style: Style = Style.PLAIN) -> None:
        """One line as it is, however long."""
        self._write(self._styled(text, style))

    def paragraph(self, text: str, style: Style = Style.PLAIN, *, indent: int = 0, hang: int = 0) -> None:
        """Text broken into lines; all but the first are `hang` columns further in."""
        for line in self._broken(text, self.width - 1, indent, indent + hang):
            self.line(line, style)

    def event(self, when: str, label: str, text: str, style: Style) -> None:
        """What happened when, and who says so."""
        first, *rest = self._broken(text, self.width - 1 - _TIME - _LABEL - 3, 0, 2)
        self._write(
            f"{self._styled(f'{when:>{_TIME}}', Style.FAINT)}  {self._styled(f'{label:<{_LABEL}}', style)} {first}"
        )
        for line in rest:
            self._write(" " * (_TIME + _LABEL + 3) + line)

    def table(self, rows: Iterable[tuple[str, str, str, Style, str]]) -> None:
        """Rows of who, what about, how it ended (in its style), and underneath why."""
        all_rows = list(rows)
        widths = [max(len(row[column]) for row in all_rows) for column in range(2)]
        for who, about, ending, style, why in all_rows:
            self._write(f"  {who:<{widths[0]}}  {about:<{widths[1]}}  {self._styled(ending, style)}")
            self.paragraph(why, Style.FAINT, indent=6)

    def _broken(self, text: str, width: int, indent: int, hang: int) -> list[str]:
        # An SQL literal with a space in it, and an interval above all, reads better in one piece.
        kept = re.sub(r"'[^'\n]*'", lambda it: it[0].replace(" ", "\0") if len(it[0]) < 24 else it[0], text)
        lines: list[str] = []
        for part in kept.split("\n"):
            lines += textwrap.wrap(
                part,
                max(width, 20),
                initial_indent=" " * indent,
                subsequent_indent=" " * hang,
                break_long_words=False,
                break_on_hyphens=False,
            )
        return [line.replace("\0", " ") for line in lines]

    def _styled(self, text: str, style: Style) -> str:
        return f"\033[{style}m{text}\033[0m" if self._coloured and style else text

    def _write(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
