"""The blocks of README.md, run as they are printed, in order, on a running demo; and the output that it shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.demo import Terminal, environment, scratch_directory
from tests.support.readme import Block, blocks, shown_output

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def demo() -> Iterator[Terminal]:
    """A demo that has told its story and waits."""
    with scratch_directory() as scratch:
        terminal = Terminal(scratch, PATH=os.defpath)
        try:
            terminal.read_until("Ctrl-C stops it")
            yield terminal
            terminal.type("\x03")
            assert terminal.end() == 0
        finally:
            terminal.kill()


def run(block: Block, demo: Terminal) -> None:
    if block.language == "sql":
        # One message, as psql -c sends it; a block may begin and commit by itself.
        with psycopg.connect(demo.exports["PGHERALD_DATABASE_URL"], autocommit=True) as connection:
            connection.execute(block.text.encode())
        return
    # A second terminal: nothing but what the demo says to paste there first.
    pasted = demo.to_paste + block.text
    settings = environment(Path("/tmp"), PATH=os.defpath)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", pasted], env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_every_block_works_as_printed_one_after_the_other(demo: Terminal) -> None:
    runnable = blocks("sql", "sh")
    assert len(runnable) > 15
    for block in runnable:
        try:
            run(block, demo)
        except (psycopg.Error, AssertionError) as error:
            pytest.fail(f"README.md, {block}: {error}\n{block.text}")


def test_the_output_shown_is_what_the_demo_says(demo: Terminal) -> None:
    def alike(line: str) -> str:
        """A line without what differs from run to run."""
        return re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?", "0", line)).rstrip()

    said = {alike(line) for line in demo.plain.splitlines()}
    shown = shown_output()
    assert len(shown) > 15
    assert [line for line in shown if alike(line) not in said] == []


def test_no_block_is_of_a_language_that_nobody_runs_or_reads() -> None:
    assert {block.language for block in blocks()} <= {"sql", "sh", "bash", "text"}
