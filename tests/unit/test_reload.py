"""What a reload and the watchdog rest on, without a process: the settings file, the rate, a worker that hangs."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

from pgherald import worker as module
from pgherald.config import parse_environment_file, read_settings_file
from pgherald.dispatcher import DispatchConfig
from pgherald.errors import ConfigError
from pgherald.health import Health
from pgherald.listener import Doorbell
from pgherald.metrics import Metrics
from pgherald.pacing import Pacing
from pgherald.store import Claimed
from pgherald.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FILE = Path("/etc/pgherald/pgherald.env")


def test_a_settings_file_is_read_as_systemd_reads_it() -> None:
    text = (
        "# a comment\n; another\n\n  PGHERALD_LOG_LEVEL=debug  \n"
        "A=\"two words\"\nB='#x y'\nC=\nD=postgresql://u@h/d?a=b%40c\n"
    )
    assert parse_environment_file(text, FILE) == {
        "PGHERALD_LOG_LEVEL": "debug",
        "A": "two words",
        "B": "#x y",
        "C": "",
        "D": "postgresql://u@h/d?a=b%40c",
    }


@pytest.mark.parametrize("line", ["secret", "export A=secret", "A='secret", 'A="x" secret', "A=secret\\", "1A=secret"])
def test_a_line_that_is_no_setting_is_refused_by_its_number_and_never_repeated(line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_environment_file(f"A=1\n{line}\n", FILE)
    assert f"the settings file {FILE} has lines that are not NAME=value: 2;" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file or directory"), (b"A=\xff\n", "it is not UTF-8 text")]
)
def test_a_settings_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "pgherald.env"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_settings_file(path)
    assert str(refused.value) == f"cannot read the settings file {path}: {said}"


def test_another_rate_holds_at_once_and_leaves_pauses_alone() -> None:
    pacing = Pacing(10_000, ramp_seconds=0)
    assert pacing.allowance(0.0, 5000) == 1000
    pacing.set_max_rate(0.0, 20)
    assert pacing.allowance(1.0, 5000) == 2
    pacing.set_max_rate(1.0, 5000)
    assert pacing.allowance(2.0, 5000) == 500


def worker(bell: Doorbell, dispatcher: object, database: Callable[[], Awaitable[None]]) -> Worker:
    """A worker on a database that answers when `database` does, and has work."""

    class Store:
        async def claim(self, *_: object, touched: int) -> Claimed:
            assert touched > 0
            await database()
            return Claimed((), ())

        async def is_broken(self) -> bool:
            return False

    parts = SimpleNamespace(failing=False, owed=0, unwritten=0, finished_at=0.0)
    arguments = (Store(), dispatcher, parts, Pacing(100), parts, bell, None, Metrics("0"), Health(), DispatchConfig())
    return Worker(*cast("Any", arguments), poll_interval=60)


class Stuck:
    """A dispatcher whose slots never come free."""

    async def wait_free(self) -> int:
        await anyio.sleep_forever()
        raise AssertionError


class Free:
    """A dispatcher with slots, and nothing to give back."""

    async def wait_free(self) -> int:
        await anyio.lowlevel.checkpoint()
        return 10

    def expect(self, count: int) -> None: ...

    async def give_back(self, prompts: object) -> None:
        raise AssertionError(prompts)


async def _run_for_a_moment(found: Worker) -> tuple[bool, bool]:
    """Whether it is taken to hang at once, and ten minutes later."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.run)
        await anyio.wait_all_tasks_blocked()
        now = time.monotonic()
        told = found.hangs(now), found.hangs(now + 600)
        tasks.cancel_scope.cancel()
    return told


def test_a_worker_that_gets_no_slot_back_is_taken_to_hang() -> None:
    async def scenario() -> tuple[bool, bool]:
        return await _run_for_a_moment(worker(Doorbell(), Stuck(), anyio.lowlevel.checkpoint))

    assert anyio.run(scenario) == (False, True)


def test_a_worker_that_waits_for_the_database_is_not() -> None:
    async def scenario() -> tuple[bool, bool]:
        return await _run_for_a_moment(worker(Doorbell(), Free(), anyio.sleep_forever))

    assert anyio.run(scenario) == (False, False)


def test_a_worker_that_sleeps_by_its_poll_interval_is_not() -> None:
    found = worker(Doorbell(), Stuck(), anyio.lowlevel.checkpoint)
    now = time.monotonic()
    with found._moving_within(3600):  # noqa: SLF001 - the wait itself needs a whole database
        assert not found.hangs(now + 3600)
        assert found.hangs(now + 3600 + module.HANG_SECONDS + 5)
    assert not found.hangs(now + 10_000)
