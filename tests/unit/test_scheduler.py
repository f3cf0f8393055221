"""The clockwork of a daemon, on a clock as fast as can be: pg_cron's silence, retention, and what it reports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel
import psycopg
import pytest

from pgherald import scheduler
from pgherald.config import LogLevel
from pgherald.config import Scheduler as Mode
from pgherald.dispatcher import DispatchConfig
from pgherald.health import Health, Status
from pgherald.listener import Doorbell
from pgherald.metrics import Metrics
from pgherald.model import Code, Platform
from pgherald.outcome import Effect, Rejected, Unsure
from pgherald.pacing import Pacing
from pgherald.scheduler import Scheduler
from pgherald.store import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pgherald.log import Log

pytestmark = pytest.mark.anyio

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
FORBIDDEN = Rejected(Code.PERMISSION_DENIED, True, None, Effect.CIRCUIT)


class Database:
    """Also the clock: it begins at 0 and goes on by a second each time that all tasks of the scheduler sleep."""

    def __init__(self, *, cron: bool) -> None:
        self.cron = cron
        self.cron_from = float("inf")  # pg_cron's runs
        self.seconds = 0.0
        self.runs: list[float] = []
        self.last: datetime | None = None
        self.rows_to_delete = 0
        self.maintained: list[float] = []
        self.paused = False
        self.silent = anyio.Event()  # while it does not answer
        self.silent.set()
        self.refuses_to_delete = False
        self.turns = 0  # that the answer about the state takes
        self.turns_of_run = 0
        self.commits_after = 0  # of these

    @property
    def now(self) -> datetime:
        return MIDNIGHT + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        minute = self.seconds // 60
        self.seconds += seconds / 4
        if self.seconds >= self.cron_from and self.seconds // 60 > minute:
            self.last = self.now
        await anyio.lowlevel.checkpoint()

    async def has_cron(self) -> bool:
        return self.cron

    async def lead(self) -> bool:
        return True

    async def evaluate(self) -> tuple[datetime, list[object]]:
        self.runs.append(self.seconds)
        now = self.now
        for turn in range(self.turns_of_run + 1):
            if turn == self.commits_after:
                self.last = now
            await anyio.lowlevel.checkpoint()
        return now, []

    async def maintain(self) -> bool:
        self.maintained.append(self.seconds)
        if self.refuses_to_delete:
            raise psycopg.errors.QueryCanceled
        self.rows_to_delete -= 1
        return self.rows_to_delete > 0

    async def sweep(self, _: timedelta) -> list[object]:
        await self.silent.wait()
        return []

    async def invariants(self) -> dict[str, int]:
        return {}

    async def state(self, seen: str | None) -> State:
        state = State(1, {}, 0.0, self.paused, 0, self.last, seen or "", (), (), 0.0, self.now)
        for _ in range(self.turns):
            await anyio.lowlevel.checkpoint()
        return state


async def run(
    database: Database,
    seconds: float,
    *,
    pacing: Pacing | None = None,
    health: Health | None = None,
    owed: int = 0,
    late: float = 0.0,
    probe: Callable[[], Awaitable[bool]] | None = None,
) -> None:
    """The scheduler for so long; with a spool that fails where there is a probe."""
    parts: Any = SimpleNamespace(
        failing=probe is not None, probe=probe, expiry_timestamp=0.0, owed=owed, late=lambda _: late
    )
    arguments = (
        *(database, database, Doorbell(), parts, pacing or Pacing(100.0), parts, parts),
        *(Metrics("0"), health or Health(), DispatchConfig(), Mode.AUTO),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Scheduler(*cast("Any", arguments)).run)
        until = database.seconds + seconds
        while database.seconds < until:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the scheduler live by a database's clock."""

    def live_by(database: Database) -> Database:
        monkeypatch.setattr(scheduler, "time", SimpleNamespace(monotonic=lambda: database.seconds))
        names = SimpleNamespace(create_task_group=anyio.create_task_group, sleep=database.sleep)
        monkeypatch.setattr(scheduler, "anyio", names)
        return database

    return live_by


async def test_a_pg_cron_that_falls_silent_is_stood_in_for_each_minute(
    at: Any, capfd: pytest.CaptureFixture[str], process_log: Log
) -> None:
    process_log.set_up(LogLevel.INFO, None, strict=True)
    database = at(Database(cron=True))
    await run(database, 600)
    assert database.runs[0] == pytest.approx(scheduler.CRON_SILENCE, abs=2)
    gaps = [later - earlier for earlier, later in zip(database.runs, database.runs[1:], strict=False)]
    assert gaps == pytest.approx([60.0] * 7, abs=2)
    assert capfd.readouterr().err.count('"cron_silent"') == 1


async def test_a_pg_cron_that_is_back_is_left_alone(at: Any) -> None:
    database = at(Database(cron=True))
    database.cron_from = 400
    await run(database, 1000)
    assert 3 <= len(database.runs) <= 6
    assert database.runs[-1] < 500


@pytest.mark.parametrize(("commits_after", "turns_of_run"), [(0, 5), (0, 20), (5, 5), (5, 20), (20, 20)])
async def test_while_its_own_runs_and_its_measures_overlap_none_is_taken_for_pg_crons(
    at: Any, commits_after: int, turns_of_run: int
) -> None:
    database = at(Database(cron=True))
    database.turns, database.turns_of_run, database.commits_after = 10, turns_of_run, commits_after
    await run(database, 1200)
    gaps = [later - earlier for earlier, later in zip(database.runs, database.runs[1:], strict=False)]
    assert len(gaps) > 10
    assert max(gaps) <= 65


async def test_old_rows_that_cannot_be_deleted_are_told_and_left_alone_for_a_while(
    at: Any, capfd: pytest.CaptureFixture[str], process_log: Log
) -> None:
    process_log.set_up(LogLevel.INFO, None, strict=True)
    database = at(Database(cron=False))
    database.rows_to_delete, database.refuses_to_delete = 3, True
    await run(database, 5000)
    assert 2 <= len(database.maintained) <= 3
    assert capfd.readouterr().err.count('"maintenance_failed"') == len(database.maintained)
    database.refuses_to_delete = False
    await run(database, 4000)
    assert database.rows_to_delete == 0


async def test_while_old_rows_are_deleted_the_schedule_is_kept(at: Any) -> None:
    database = at(Database(cron=False))
    database.rows_to_delete = 600
    await run(database, 4400)
    assert len(database.maintained) == 600
    assert 3600 <= database.maintained[0] < database.maintained[-1] < 4400
    gaps = [later - earlier for earlier, later in zip(database.runs, database.runs[1:], strict=False)]
    assert max(gaps) <= 62


async def test_what_keeps_pushes_from_being_sent_makes_the_daemon_not_ready_and_is_told_once(
    at: Any, capfd: pytest.CaptureFixture[str], process_log: Log
) -> None:
    process_log.set_up(LogLevel.INFO, None, strict=True)
    database, pacing, health = at(Database(cron=False)), Pacing(100.0), Health()
    health.set_ready()
    await run(database, 10, pacing=pacing, health=health)
    assert health.snapshot().status is Status.READY
    pacing.on_answer(FORBIDDEN, Platform.ANDROID, database.seconds)
    for _ in range(10):
        pacing.on_answer(Unsure(Code.TIMEOUT), Platform.ANDROID, database.seconds)
    database.paused = True
    await run(database, 10, pacing=pacing, health=health)
    assert health.snapshot().status is Status.NOT_READY
    assert set(health.snapshot().reasons) == {"breaker_permission", "breaker_no_answer", "paused"}
    said = [line for line in capfd.readouterr().err.splitlines() if '"breaker_opened"' in line]
    assert [("permission" in line, "no_answer" in line) for line in said] == [(True, False), (False, True)]


async def test_a_database_that_does_not_answer_makes_the_daemon_not_ready_until_it_does(at: Any) -> None:
    database, health = at(Database(cron=False)), Health()
    health.set_ready()
    told: list[tuple[str, ...]] = []
    async with anyio.create_task_group() as tasks:
        database.silent = anyio.Event()
        tasks.start_soon(lambda: run(database, 60, health=health))
        while database.seconds < 30:
            await anyio.lowlevel.checkpoint()
        told.append(health.snapshot().reasons)
        database.silent.set()
        while database.seconds < 40:
            await anyio.lowlevel.checkpoint()
        told.append(health.snapshot().reasons)
    assert told == [("database_silent",), ()]


async def test_a_disk_that_does_not_answer_keeps_nobody_from_asking_the_database(at: Any) -> None:
    database, health = at(Database(cron=False)), Health()
    health.set_ready()

    async def silence() -> bool:
        await anyio.Event().wait()
        return False

    await run(database, 30, health=health, probe=silence)
    assert health.snapshot().reasons == ("spool_failing",)


async def test_too_many_records_owed_or_one_that_is_late_make_the_daemon_not_ready(at: Any) -> None:
    database, health = at(Database(cron=False)), Health()
    health.set_ready()
    await run(database, 5, health=health, owed=DispatchConfig().max_in_flight)
    assert health.snapshot().reasons == ()
    await run(database, 5, health=health, owed=DispatchConfig().max_in_flight + 1)
    assert health.snapshot().status is Status.NOT_READY
    assert health.snapshot().reasons == ("records_owed",)
    await run(database, 5, health=health, late=scheduler.SILENCE_SECONDS + 1)
    assert health.snapshot().status is Status.NOT_READY
    assert health.snapshot().reasons == ("records_late",)


async def test_a_bad_apns_key_makes_it_no_worse_than_degraded(at: Any) -> None:
    database, pacing, health = at(Database(cron=False)), Pacing(100.0), Health()
    health.set_ready()
    pacing.on_answer(Rejected(Code.THIRD_PARTY_AUTH_ERROR, True, None, Effect.PAUSE_IOS), Platform.IOS, 0.0)
    await run(database, 5, pacing=pacing, health=health)
    assert health.snapshot().status is Status.DEGRADED
    assert health.snapshot().reasons == ("breaker_apns_auth",)
