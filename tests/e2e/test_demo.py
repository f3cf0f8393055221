"""`pgherald demo` as people start it: what it says is so, it fails when it is not, and nothing stays behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.demo import DEMO, PATIENCE, Terminal, assert_nothing_is_left, environment, scratch_directory
from tests.support.stopwatch import kept_waiting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The story as a reader of the summary must find it: told here again, so that a change of the story is a decision.
ENDINGS = [
    ("a mentor quiet for 30 days", "inactivity", "pushed", "last activity 30 days"),
    ("a quiet mentor who opted out", "inactivity", "stopped", "opted_out: opted out of everything since"),
    ("a quiet mentor without a phone", "inactivity", "skipped", "no_device_token: no device was ever registered"),
    ("a quiet mentor with a dead token and a good one", "inactivity", "pushed", "last activity 30 days"),
    ("a quiet mentor with nothing but a dead token", "inactivity", "failed", "UNREGISTERED: android, revoked"),
    ("a quiet mentor where it is night", "inactivity", "waits", "quiet_hours: 21:00 to 08:00"),
    ("a quiet mentor on leave", "inactivity", "stopped", "inactive_recipient: not active"),
    ("a quiet mentor of the other chapter", "inactivity", "not due", "no scenario of type inactivity covers"),
    ("a mentor at the tenth activity", "milestone", "pushed", "10 activities; needs 1, 10, 50"),
    ("a mentor at the tenth activity", "milestone", "stopped", "cooldown: last push of this type"),
    ("a mentor after a worrying contact", "follow_up", "pushed", "with flag wellbeing_concern"),
    ("a mentor after a contact that went well", "follow_up", "not due", "without flag wellbeing_concern"),
    ("a mentor whose certificate runs out", "expiry", "pushed", "first_aid expires in"),
]


@pytest.fixture
def scratch() -> Iterator[Path]:
    with scratch_directory() as path:
        yield path


def endings_in(output: str) -> list[tuple[str, str, str, str]]:
    """The rows of the summary: who, scenario type, how it ended, why."""
    summary = output.partition("What happened to whom")[2].partition("Checked")[0]
    rows = re.findall(r"^  (\S.*?) {2,}(\w+) +(\w[\w ]*)\n((?: {6}\S.*\n)+)", summary, re.MULTILINE)
    return [(who, about, ending, " ".join(why.split())) for who, about, ending, why in rows]


def test_every_person_ends_as_told_and_the_sums_agree(scratch: Path) -> None:
    started, waited = time.monotonic(), kept_waiting()
    done = subprocess.run(
        [*DEMO, "--once"], env=environment(scratch), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    took = time.monotonic() - started - (kept_waiting() - waited)
    assert (done.returncode, done.stderr) == (0, "")
    told = " ".join(done.stdout.split())
    again = "; at most once a week; not between 21:00 and 08:00."
    assert f"Quiet mentors: Send 30 days after the last activity (or registration){again}" in told
    assert f"Milestones: Send at a person's 1st, 10th and 50th activity{again}" in told
    assert f"before a first-aid certificate expires, unless it is renewed{again}" in told
    assert f"Send 3 days after a first contact, if wellbeing was a concern{again}" in told
    found = endings_in(done.stdout)
    assert [row[:3] for row in found] == [row[:3] for row in ENDINGS]
    for (*_, why), (*_, begins) in zip(found, ENDINGS, strict=True):
        assert begins in why
    assert "  prompts   1 failed, 1 ready, 5 sent, 1 skipped\n" in done.stdout
    assert "  history   5 dispatched, 1 failed, 1 skipped\n" in done.stdout
    assert "  FCM       5 accepted; refused: 2 UNREGISTERED\n" in done.stdout
    assert "  records   5 notifications, 2 tokens revoked\n" in done.stdout
    assert done.stdout.count("  accepted, ios: ") == 1
    assert done.stdout.count("  accepted, android: ") == 4
    assert re.findall(r"^  (ok|NOT SO) ", done.stdout, re.MULTILINE) == ["ok"] * 6
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert_nothing_is_left(scratch)
    assert took < 30, "it should take ten seconds, if the machine has nothing else to do"


def tell_by(program: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that tells the story in its own way."""
    return subprocess.run(
        [sys.executable, "-c", program], env=environment(scratch), capture_output=True, text=True, check=False
    )


def test_a_story_that_does_not_come_true_ends_in_exit_code_1(scratch: Path) -> None:
    program = (
        "import dataclasses, sys\n"
        "from pgherald import demo\n"
        "from pgherald.demo import story\n"
        "first, *rest = story.STEPS\n"
        "wrong = tuple(story.End(end.person, story.Ending.PUSHED) for end in first.ends)\n"
        "story.STEPS = (dataclasses.replace(first, ends=wrong), *rest)\n"
        "sys.exit(demo.run(once=True))\n"
    )
    done = tell_by(program, scratch)
    assert (done.returncode, done.stderr) == (1, "")
    checked = " ".join(done.stdout.partition("Checked")[2].split())
    assert "NOT SO each of the 13 endings is as the story tells it" in checked
    assert "a quiet mentor who opted out: stopped opted_out" in checked
    assert "NOT SO 11 pushes told, 5 accepted by FCM, 5 notifications, 5 dispatched in the history" in checked
    assert_nothing_is_left(scratch)


def test_a_daemon_that_comes_late_tells_the_same_story(scratch: Path) -> None:
    """It looks at the people of the first step when time has passed for them, and well before the clock strikes."""
    program = (
        "import sys, threading\n"
        "import psycopg\n"
        "from pgherald import demo\n"
        "tell, demo._A_MOMENT = demo._tell, 1.5\n"
        "def late(step, stage, witness, screen):\n"
        "    if step.by_clock:\n"
        "        held = psycopg.connect(stage.dsn)\n"
        "        held.execute('lock table herald.setting in access exclusive mode')\n"
        "        threading.Timer(0.6, held.close).start()\n"
        "    return tell(step, stage, witness, screen)\n"
        "demo._tell = late\n"
        "sys.exit(demo.run(once=True))\n"
    )
    done = tell_by(program, scratch)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert_nothing_is_left(scratch)


def test_on_a_terminal_it_stays_until_ctrl_c_and_what_it_prints_can_be_pasted(scratch: Path) -> None:
    terminal = Terminal(scratch)
    terminal.read_until("Ctrl-C stops it")
    assert "\x1b[32m" in terminal.seen
    told = terminal.plain
    statements = told.partition("and in that psql")[2].partition("Ctrl-C")[0].partition("\n")[2]
    with psycopg.connect(terminal.exports["PGHERALD_DATABASE_URL"], autocommit=True) as connection:
        pasted = [connection.execute(part.encode()) for part in statements.split(";\n") if part.strip()]
    assert len(pasted) == 5
    assert told.count("accepted, android: a mentor quiet for 30 days") == 1
    settings = environment(scratch) | terminal.exports
    commands = re.findall(r"^pgherald (\S.*)$", told.partition("In another terminal")[2], re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        subprocess.run([*DEMO[:-1], *command.split()], env=settings, check=True, capture_output=True)
    fetch = "import sys, urllib.request as r; assert r.urlopen(sys.argv[1]).status == 200"
    addresses = re.findall(r"^curl (\S+)$", told, re.MULTILINE)
    assert len(addresses) == 2
    for address in addresses:
        subprocess.run([sys.executable, "-c", fetch, address], check=True)
    terminal.read_until("accepted, android: a mentor quiet for 30 days", 2)
    terminal.type("\x03")
    assert terminal.end() == 0, terminal.plain
    assert terminal.plain.count("accepted, android: a mentor quiet for 30 days") == 2
    assert_nothing_is_left(scratch)


def test_without_colour_where_none_is_wanted_and_within_eighty_columns(scratch: Path) -> None:
    terminal = Terminal(scratch, columns=80, NO_COLOR="1")
    terminal.read_until("It goes on running")
    terminal.type("\x03")
    assert terminal.end() == 0, terminal.plain
    assert "\x1b" not in terminal.seen
    told = terminal.seen.partition("It goes on running")[0]
    assert [line for line in told.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("moment", ["pgherald demo:", "Postgres 18 runs", "Its coordinators", "1  Time", "2  A mentor"])
def test_ctrl_c_at_any_moment_leaves_nothing(scratch: Path, moment: str) -> None:
    terminal = Terminal(scratch)
    terminal.read_until(moment)
    terminal.type("\x03\x03")
    assert terminal.end() in (130, -signal.SIGINT), terminal.plain
    assert "Traceback" not in terminal.seen
    assert_nothing_is_left(scratch)


@pytest.mark.parametrize("moment", ["Postgres 18 runs", "the daemon is ready"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_demo_leaves_nothing(scratch: Path, moment: str, number: signal.Signals) -> None:
    with subprocess.Popen([*DEMO], env=environment(scratch), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while moment not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(PATIENCE) == -number
    assert_nothing_is_left(scratch)
