"""When the worker sleeps, when it stays awake, and how often it evaluates, over a database that only says what waits.

What it does with real work is in tests/e2e/test_daemon.py.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import anyio
import pytest

from pgherald import backoff
from pgherald.dispatcher import DispatchConfig
from pgherald.health import Health
from pgherald.listener import OFTEN, Doorbell, Wakeup
from pgherald.metrics import Metrics
from pgherald.model import DispatchSummary, ScenarioId
from pgherald.pacing import Pacing
from pgherald.store import CalledOff, Claimed, Waiting
from pgherald.worker import (
    FAILING_PAUSE_MAX,
    IDLE_PAUSE_STEP,
    LOOK_SECONDS,
    PAUSE_MAX,
    STAY_AWAKE_SECONDS,
    TOUCHED_MAX,
    Worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.anyio


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
                raise CalledOff
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

    def expect(self, count: int) -> None: ...

    async def give_back(self, prompts: Sequence[object]) -> None:
        assert not prompts
        await anyio.lowlevel.checkpoint()


class Backlog(Database):
    """Always more than a claim can take; claims are answered when told to. Also its slots, a third of which make a
    claim."""

    SLOTS = 9

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0
        self.most_taken = 0
        self.sent = 0
        self.given_back = 0
        self.unanswered: list[tuple[int, anyio.Event]] = []

    async def claim(self, *arguments: object, touched: int) -> Claimed:
        count = cast("int", arguments[1])
        answered = anyio.Event()
        self.unanswered.append((count, answered))
        await answered.wait()
        return Claimed(cast("Any", tuple(range(count))), ())

    async def wait_free(self) -> int:
        while self.taken >= self.SLOTS:  # noqa: ASYNC110 - a slot that comes free sets no event
            await anyio.sleep(0.001)
        return min(3, self.SLOTS - self.taken)

    def expect(self, count: int) -> None:
        self.taken += count
        self.most_taken = max(self.most_taken, self.taken)

    async def dispatch_prompts(self, prompts: Sequence[object]) -> DispatchSummary:
        await anyio.lowlevel.checkpoint()
        self.taken -= len(prompts)
        self.sent += len(prompts)
        return DispatchSummary(len(prompts), 0, 0)

    async def give_back(self, prompts: Sequence[object]) -> None:
        await anyio.lowlevel.checkpoint()
        self.given_back += len(prompts)

    async def answer(self) -> int:
        """Let the oldest claim be answered, and whatever follows from that happen; how many are unanswered then."""
        _, answered = self.unanswered.pop(0)
        answered.set()
        await turns()
        return len(self.unanswered)


async def turns() -> None:
    """Let happen what needs no more than its turns of the loop, however long the machine takes for each."""
    for _ in range(20):
        await anyio.sleep(0.001)


def worker(database: Database, bell: Doorbell, spool: SimpleNamespace | None = None) -> Worker:
    parts = spool or SimpleNamespace(failing=False, owed=0, unwritten=0, finished_at=0.0)
    slots = database if isinstance(database, Backlog) else Slots()
    arguments: Sequence[object] = (
        *(database, slots, parts, Pacing(1e6, ramp_seconds=0), parts, bell, database),
        *(Metrics("0"), Health(), DispatchConfig()),
    )
    return Worker(*cast("Any", arguments), poll_interval=60)


async def work_until(done: Callable[[], object], database: Database, bell: Doorbell | None = None) -> None:
    """Have a worker at work until something is so; what the database is asked for sets no event."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker(database, bell or Doorbell()).run)
        with anyio.fail_after(60):
            while not done():  # noqa: ASYNC110
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()


async def test_writers_that_all_ring_at_once_find_the_worker_awake_for_a_while() -> None:
    database, bell = Database(), Doorbell()
    for _ in range(OFTEN):
        bell.ring(Wakeup.NOTIFY)
    await work_until(lambda: database.slept, database, bell)
    assert database.slept[0] >= STAY_AWAKE_SECONDS


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
    assert database.claims == 4  # and as many evaluations, unless the machine took its time for one of them
    assert (database.slept, database.awake_since) == ([], None)


async def test_the_app_keeps_most_of_the_time_however_many_people_are_touched() -> None:
    database = Database(touched=True, seconds=0.02)
    await work_until(lambda: len(database.evaluations) >= 5, database)
    for (began, ended), (next_began, _) in zip(database.evaluations, database.evaluations[1:], strict=False):
        assert next_began - ended >= min(ended - began, PAUSE_MAX) * 0.99
    assert database.slept == []
    assert database.awake_since is not None


async def test_writes_that_make_nobody_due_are_looked_at_ever_less_often() -> None:
    database = Database(touched=True)
    await work_until(lambda: len(database.evaluations) >= 8, database)
    moments = [began for began, _ in database.evaluations]
    for number, (before, after) in enumerate(pairwise(moments)):
        assert after - before >= min(number * IDLE_PAUSE_STEP, LOOK_SECONDS) * 0.99


async def test_a_scenario_that_fails_again_and_again_is_tried_ever_less_often_until_it_works() -> None:
    class Failing(Database):
        async def claim(self, *arguments: object, touched: int) -> Claimed:
            claimed = await super().claim(*arguments, touched=touched)
            fails = touched > 0 and len(self.evaluations) <= 9
            return Claimed((), (), (ScenarioId(uuid4()),)) if fails else claimed

    database = Failing(touched=True)
    await work_until(lambda: len(database.evaluations) >= 12, database)
    gaps = [after - before for (before, _), (after, _) in pairwise(database.evaluations)]
    for number, gap in enumerate(gaps[:9], 1):
        assert gap >= min(IDLE_PAUSE_STEP * 2**number, FAILING_PAUSE_MAX) * 0.99
    assert min(gaps[9:]) < FAILING_PAUSE_MAX * 0.99


async def test_the_log_says_once_and_not_at_each_evaluation_that_a_scenario_fails_however_often_it_works_in_between(
    capfd: pytest.CaptureFixture[str],
) -> None:
    failing = ScenarioId(uuid4()), ScenarioId(uuid4())

    class Failing(Database):
        async def claim(self, *arguments: object, touched: int) -> Claimed:
            await super().claim(*arguments, touched=touched)
            return Claimed((), (), failing if touched > 0 and len(self.evaluations) % 2 else ())

    database = Failing(touched=True)
    await work_until(lambda: len(database.evaluations) >= 6, database)
    told = [line for line in capfd.readouterr().err.splitlines() if '"evaluation_failed"' in line]
    assert [json.loads(line)["scenario_id"] for line in told] == [str(each) for each in failing]


async def test_after_an_evaluation_that_hangs_claims_go_on_without_one() -> None:
    database = Database(touched=True, hangs=True)
    await work_until(lambda: database.claims >= 3, database)
    assert len(database.evaluations) == 1


async def test_after_an_evaluation_that_hangs_fewer_people_are_evaluated_at_once_until_it_ends_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgherald.worker.HANGING_PAUSE", 0.0)
    done: list[int] = []

    class Slow(Database):
        can = 60

        async def claim(self, *_: object, touched: int) -> Claimed:
            await anyio.lowlevel.checkpoint()
            if touched > self.can:
                raise CalledOff
            if touched > 0:
                done.append(touched)
            return Claimed((), ())

    database = Slow(touched=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker(database, Doorbell()).run)
        with anyio.fail_after(60):
            while sum(done) < 100:  # noqa: ASYNC110 - a claim sets no event
                await anyio.sleep(0.005)
            database.can = TOUCHED_MAX
            while done[-1] < TOUCHED_MAX:  # noqa: ASYNC110 - a claim sets no event
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()


async def test_a_claim_that_hangs_without_an_evaluation_is_a_database_that_is_away() -> None:
    asked = anyio.Event()

    class Locked(Database):
        async def claim(self, *_: object, touched: int) -> Claimed:
            raise CalledOff

        async def is_broken(self) -> bool:
            asked.set()
            return False

        async def waiting(self) -> Waiting:
            return Waiting(False, True, None, 1, datetime.now(UTC))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker(Locked(), Doorbell()).run)
        with anyio.fail_after(60):
            await asked.wait()
        tasks.cancel_scope.cancel()


async def test_under_a_backlog_a_claim_is_made_while_another_is_unanswered_and_no_slot_is_given_twice() -> None:
    database = Backlog()
    running = worker(database, Doorbell())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        await turns()
        assert len(database.unanswered) == 1  # whether there is more than that is not known yet
        for _ in range(6):
            assert await database.answer() == 2
        assert database.most_taken <= Backlog.SLOTS
        assert database.sent == 18
        running.stop()
        while database.unanswered:
            await database.answer()
    assert database.taken == 0
    assert database.sent == 24


async def test_what_the_second_claim_fails_for_is_told_as_if_it_were_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "RECONNECT_BASE", 60.0)  # no machine is so slow that the loop is back too early
    monkeypatch.setattr(backoff, "RECONNECT_CAP", 60.0)

    class Failing(Backlog):
        async def claim(self, *arguments: object, touched: int) -> Claimed:
            if len(self.unanswered) == 1:
                raise TimeoutError
            return await super().claim(*arguments, touched=touched)

    database = Failing()
    running = worker(database, Doorbell())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        await turns()
        await database.answer()
        assert await database.answer() == 0  # the loop backs off, as it does for a claim of its own
        assert database.taken == 0
        running.stop()


async def test_what_was_claimed_while_the_spool_failed_is_given_back_unsent() -> None:
    database, spool = Backlog(), SimpleNamespace(failing=False, owed=0, unwritten=0, finished_at=0.0)
    running = worker(database, Doorbell(), spool)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        await turns()
        assert await database.answer() == 2
        spool.failing = True
        while database.unanswered:
            await database.answer()
        running.stop()
    assert (database.sent, database.given_back, database.taken) == (3, 6, 0)


@pytest.mark.parametrize("why", ["stopped", "spool", "owed"])
async def test_a_slot_that_comes_free_too_late_is_claimed_nothing_for(why: str) -> None:
    database, spool = Backlog(), SimpleNamespace(failing=False, owed=0, unwritten=0, finished_at=0.0)
    database.taken = Backlog.SLOTS
    running = worker(database, Doorbell(), spool)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        await turns()
        if why == "stopped":
            running.stop()
        elif why == "spool":
            spool.failing = True
        else:
            spool.owed = DispatchConfig().max_in_flight + 1
        database.taken = 0
        await turns()
        assert all(count == 0 for count, _ in database.unanswered)
        running.stop()
        while database.unanswered:
            await database.answer()
    assert database.taken == 0


async def test_while_the_database_owes_an_answer_nobody_is_taken_to_hang() -> None:
    database, recorder = Backlog(), SimpleNamespace(failing=False, owed=0, unwritten=0, finished_at=0.0)
    running = worker(database, Doorbell(), recorder)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        await turns()
        assert await database.answer() == 2
        database.taken += Backlog.SLOTS  # whoever wants a slot waits
        assert await database.answer() == 1
        later = time.monotonic() + 600
        told = [running.hangs(later)]
        assert await database.answer() == 0
        recorder.unwritten = 1
        told.append(running.hangs(later))
        recorder.unwritten, recorder.finished_at = 0, later  # until then the time was the database's
        told += [running.hangs(later), running.hangs(later + 600)]
        tasks.cancel_scope.cancel()
    assert told == [False, False, False, True]


async def test_a_second_claim_that_gets_no_slot_back_is_taken_to_hang() -> None:
    class Stuck(Backlog):
        stuck = False
        short = False

        async def claim(self, *arguments: object, touched: int) -> Claimed:
            claimed = await super().claim(*arguments, touched=touched)
            return Claimed((), ()) if self.short and touched > 0 else claimed  # only the loop evaluates

        async def wait_free(self) -> int:
            if self.stuck:
                await anyio.sleep_forever()
            return await super().wait_free()

    database = Stuck()
    running = worker(database, Doorbell())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        await turns()
        assert await database.answer() == 2
        await anyio.sleep(0.2)  # the loop may evaluate again
        assert await database.answer() == 2
        assert await database.answer() == 2
        database.stuck = database.short = True
        while database.unanswered:
            await database.answer()
        now = time.monotonic()
        told = running.hangs(now), running.hangs(now + 600)
        tasks.cancel_scope.cancel()
    assert told == (False, True)
