"""README.md says what the program has: settings, metrics, commands, files. `--update-expected` writes its tables."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pgherald.config import SETTINGS
from pgherald.metrics import METRICS
from tests.support.readme import README, blocks, replace_section, section

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def settings_table() -> str:
    return table(
        ["variable", "default", "what it is"],
        (
            [f"`{setting.name}`", setting.default, f"{setting.meaning}. It may be {setting.accepts}."]
            for setting in SETTINGS
        ),
    )


def metrics_table() -> str:
    def name(metric: str, labels: Iterable[str]) -> str:
        return f"`{metric}" + (f"{{{','.join(labels)}}}" if labels else "") + "`"

    return table(
        ["metric", "type", "what it is"],
        ([name(metric.name, metric.labels), metric.kind, metric.help] for metric in METRICS),
    )


@pytest.mark.parametrize(("name", "expected"), [("settings", settings_table()), ("metrics", metrics_table())])
def test_the_tables_are_those_of_the_program(name: str, expected: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-expected"):
        replace_section(name, expected)
    assert section(name) == expected, f"to write it anew: pytest {__file__} --update-expected"


def test_every_setting_and_metric_is_there_once() -> None:
    text = section("settings") + section("metrics")
    for name in [*(setting.name for setting in SETTINGS), *(metric.name for metric in METRICS)]:
        assert len(re.findall(rf"^\| `{name}\W", text, re.MULTILINE)) == 1, name


def test_every_command_is_told_of_and_no_other() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "pgherald.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    listed = said.partition("commands:")[2].partition("settings")[0]
    commands = set(re.findall(r"^    ([a-z][a-z-]+)(?:  | *$)", listed, re.MULTILINE))
    assert {"run", "demo", "doctor", "fcm-emulator"} <= commands
    text = README.read_text("utf-8")
    told = set(re.findall(r"pgherald ([a-z][a-z-]+)", "\n".join(re.findall(r"`[^`\n]+`", text))))
    told |= {word for block in blocks("sh", "bash") for word in re.findall(r"pgherald ([a-z][a-z-]+)", block.text)}
    assert told - {"pgherald", "demo"} == commands - {"demo"}


def test_every_make_target_that_is_told_of_exists() -> None:
    makefile = (README.parent / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    benches = README.parent / "tests" / "bench"
    targets |= {f"bench-{path.stem}" for path in benches.glob("*.py") if "__main__" in path.read_text("utf-8")}
    targets |= {f"bench-{path.parent.name}" for path in benches.glob("*/__main__.py")}
    told = set(re.findall(r"make ([a-z-]+)", "\n".join(re.findall(r"`[^`\n]+`", README.read_text("utf-8")))))
    assert {"demo", "test"} <= told <= targets


def test_every_file_that_is_told_of_exists() -> None:
    text = README.read_text("utf-8")
    told = re.findall(r"`((?:sql|systemd|tests|daemon)/[\w./-]+)`", text)
    assert len(told) > 10
    assert [path for path in told if not (README.parent / path).exists()] == []


def test_every_link_within_the_page_leads_somewhere() -> None:
    text = README.read_text("utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([\w-]+)\)", text)
    assert len(links) > 10
    assert [link for link in links if link not in anchors] == []
