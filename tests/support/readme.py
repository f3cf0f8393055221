"""README.md as data: its tables, its blocks that can be run, and what it shows of the demo's output."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

README: Final = Path(__file__).parents[2] / "README.md"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, the line it begins on, and its text."""

    language: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}"


def blocks(*languages: str) -> list[Block]:
    """The blocks of these languages, in order."""
    text = README.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(it[1], text.count("\n", 0, it.start(2)) + 1, it[2]) for it in found if not languages or it[1] in languages
    ]


def section(name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- /name -->`."""
    found = re.search(
        rf"^<!-- {name} -->\n(.*?)^<!-- /{name} -->$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"README.md has no section {name}"
    return found[1]


def replace_section(name: str, content: str) -> None:
    """Write what stands there anew."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, _, rest = README.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    README.write_text(before + begin + content + end + after, encoding="utf-8")


def shown_output() -> list[str]:
    """The lines of the demo's output that README shows."""
    text = README.read_text("utf-8")
    found = re.findall(r"^<!-- output of the demo [^\n]*-->\n```text\n(.*?)^```\n<!-- /output -->$", text, re.M | re.S)
    return [line for part in found for line in part.splitlines() if line.strip()]
