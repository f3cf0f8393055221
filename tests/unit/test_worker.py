"""When the worker sleeps, when it stays awake, and how often it evaluates, over a database that only says what waits.

What it does with real work is in tests/e2e/test_daemon.py.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

from pgherald.dispatcher import DispatchConfig
from pgherald.exporter import Health
from pgherald.listener import PEAL, Doorbell, Wakeup
from pgherald.metrics import Metrics
from pgherald.pacing import Pacing
from pgherald.store import Claimed, EvaluationHangs, Waiting
from pgherald.worker import BARREN_STEP, BREATH_MAX, LINGER, NAP, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Database:
    """Nothing is ever ready; people are touched for as long as `touched` says, and each evaluation takes `seconds`."""

    def __init__(self, *, touched: bool = False, seconds: float = 0.0, hangs: bool = False) -> None:
        self.touched = touched
        self.seconds = seconds
        self.hangs = hangs
        self.claims = 0
        self.evaluations: list[tuple[float, float]] = []
        self.awake_since: float | None = None
        self.slept: list[float] = []

    async def claim(self, *_: object, touched: int) -> Claimed:
        if touched > 0:
            began = time.monotonic()
            await anyio.sleep(self.seconds)
            self.evaluations.append((began, time.monotonic()))
            if self.hangs:
                raise EvaluationHangs
        self.claims += 1
        return Claimed((), ())

    async def waiting(self) -> Waiting:
        return Waiting(self.touched, False, None, 1, datetime.now(UTC))

    async def is_broken(self) -> bool:
        return False

    async def stay_awake(self) -> None:
        self.awake_since = self.awake_since or time.monotonic()

    async def fall_asleep(self) -> int | None:
        if self.awake_since is None:
            return None
        self.slept.append(time.monotonic() - self.awake_since)
        self.awake_since = None
        return 1


class Slots:
    """All free, always."""

    async def wait_free(self) -> int:
        await anyio.lowlevel.checkpoint()
        return 10

    async def give_back(self, prompts: Sequence[object]) -> None:
        assert not prompts
        await anyio.lowlevel.checkpoint()


def worker(database: Database, bell: Doorbell) -> Worker:
    parts = SimpleNamespace(failing=False, owed=0)
    arguments: Sequence[object] = (
        *(database, Slots(), parts, Pacing(1e6, ramp_seconds=0), parts, bell, database),
        *(Metrics("0"), Health(), DispatchConfig()),
    )
    return Worker(*cast("Any", arguments), poll_interval=60)


async def test_writers_that_all_ring_at_once_find_the_worker_awake_for_a_while() -> None:
    database, bell = Database(), Doorbell()
    for _ in range(PEAL):
        bell.ring(Wakeup.NOTIFY)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker(database, bell).run)
        with anyio.fail_after(60):
            while not database.slept:  # noqa: ASYNC110 - falling asleep sets no event
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    assert database.slept[0] >= LINGER


async def test_a_single_ring_keeps_nobody_awake() -> None:
    database, bell = Database(), Doorbell()
    running = worker(database, bell)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        for _ in range(3):
            await anyio.wait_all_tasks_blocked()
            bell.ring(Wakeup.NOTIFY)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert len(database.evaluations) == 4
    assert (database.slept, database.awake_since) == ([], None)


async def test_the_app_keeps_most_of_the_time_however_many_people_are_touched() -> None:
    database = Database(touched=True, seconds=0.02)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker(database, Doorbell()).run)
        with anyio.fail_after(60):
            while len(database.evaluations) < 5:  # noqa: ASYNC110 - an evaluation sets no event
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    for (began, ended), (next_began, _) in zip(database.evaluations, database.evaluations[1:], strict=False):
        assert next_began - ended >= min(ended - began, BREATH_MAX) * 0.99
    assert database.slept == []
    assert database.awake_since is not None


async def test_writes_that_make_nobody_due_are_looked_at_ever_less_often() -> None:
    database = Database(touched=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker(database, Doorbell()).run)
        with anyio.fail_after(60):
            while len(database.evaluations) < 8:  # noqa: ASYNC110 - an evaluation sets no event
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    moments = [began for began, _ in database.evaluations]
    for number, (before, after) in enumerate(pairwise(moments)):
        assert after - before >= min(number * BARREN_STEP, NAP) * 0.99


async def test_after_an_evaluation_that_hangs_claims_go_on_without_one() -> None:
    database = Database(touched=True, hangs=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker(database, Doorbell()).run)
        with anyio.fail_after(60):
            while database.claims < 3:  # noqa: ASYNC110 - a claim sets no event
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    assert len(database.evaluations) == 1
