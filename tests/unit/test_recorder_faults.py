"""The recorder where the database is late, forgets its answer, or no longer knows the prompt."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio
import psycopg
import pytest

from pgherald.dispatcher import GATHER_SECONDS, DispatchConfig, PushNotificationDispatcher
from pgherald.frames import Entry
from pgherald.metrics import Metrics
from pgherald.model import DeviceId, NotificationId, PromptId
from pgherald.recorder import Outcome, Recorder
from pgherald.spool import Spool
from pgherald.store import Settled, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from pgherald.model import Revoked

NOW = datetime(2026, 1, 31, tzinfo=UTC)
SERIES = ("milestone", "sent")


class Ledger:
    """Takes what it is given; `failures` calls come to nothing, `forgotten` ones do their work and do not say so."""

    def __init__(self, *, failures: int = 0, forgotten: int = 0, knows: bool = True) -> None:
        self.failures, self.forgotten, self.knows = failures, forgotten, knows
        self.calls: list[list[Settlement]] = []
        self.statuses: dict[PromptId, str] = {}

    async def settle(
        self, settlements: Sequence[Settlement], revoked: Sequence[Revoked] = ()
    ) -> tuple[Mapping[PromptId, Settled], Mapping[DeviceId, str]]:
        await anyio.lowlevel.checkpoint()
        self.calls.append(list(settlements))
        if self.failures:
            self.failures -= 1
            raise psycopg.OperationalError
        answer = {}
        for each in settlements:
            applied = self.statuses.get(each.prompt_id) != each.outcome
            self.statuses[each.prompt_id] = each.outcome
            answer[each.prompt_id] = Settled(applied, each.outcome) if self.knows else Settled(False, None)
        if self.forgotten:
            self.forgotten -= 1
            raise psycopg.OperationalError
        return answer, {}


class Journal:
    def __init__(self) -> None:
        self.entries: set[PromptId] = set()

    async def append(self, entries: Sequence[Entry]) -> None:
        self.entries |= {each.prompt_id for each in entries}

    async def done(self, ids: Iterable[PromptId]) -> None:
        self.entries -= set(ids)


def outcome(prompt: UUID, said: str, epoch: int = 1) -> Outcome:
    prompt_id = PromptId(prompt)
    entry = Entry(prompt_id, epoch, NotificationId(uuid4()), DeviceId(uuid4()), "projects/p/messages/1", NOW)
    return Outcome(Settlement(prompt_id, epoch, said, NOW), "milestone", entry=entry if said == "sent" else None)


@pytest.mark.anyio
async def test_two_outcomes_of_one_prompt_never_share_a_transaction() -> None:
    prompt = uuid4()
    ledger, journal = Ledger(failures=1), Journal()
    recorder = Recorder(ledger, journal, Metrics())
    assert not await recorder.record(outcome(prompt, "sent", 1))  # owed: the database was away
    ledger.failures = 1
    assert not await recorder.record(outcome(prompt, "failed", 2))
    await recorder.pay()
    assert [[each.outcome for each in call] for call in ledger.calls[2:]] == [["sent"], ["failed"]]
    assert journal.entries == set()
    assert recorder.owed == 0


@pytest.mark.anyio
async def test_a_commit_whose_answer_was_lost_is_counted_once() -> None:
    metrics, journal = Metrics(), Journal()
    recorder = Recorder(Ledger(forgotten=1), journal, metrics)
    assert not await recorder.record(outcome(uuid4(), "sent"))
    assert len(journal.entries) == 1
    await recorder.pay()
    assert metrics.prompts_total.value(*SERIES) == 1
    assert journal.entries == set()


@pytest.mark.anyio
async def test_a_spool_without_a_thread_fails_until_there_is_one_and_what_it_could_not_take_is_told_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    metrics = Metrics()
    spool = Spool.open(tmp_path, metrics)
    recorder, accepted = Recorder(Ledger(), spool, metrics), outcome(uuid4(), "sent")
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert await recorder.record(accepted)
    assert not await spool.probe()
    monkeypatch.undo()
    assert metrics.prompts_total.value(*SERIES) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if '"event":"spool_failed"' in line]
    assert [str(accepted.settlement.prompt_id) in line for line in said] == [False, True]
    assert all("EAGAIN" in line for line in said)
    assert await spool.probe()
    await spool.close()


@pytest.mark.anyio
async def test_an_acceptance_of_a_prompt_that_is_gone_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(Ledger(knows=False), Journal(), Metrics())
    await recorder.record(outcome(uuid4(), "sent"))
    assert '"event":"record_orphaned"' in capsys.readouterr().err


@pytest.mark.anyio
async def test_a_replay_writes_every_copy_of_a_prompt_before_it_returns() -> None:
    prompt = uuid4()
    copies = [outcome(prompt, "sent", epoch).entry for epoch in (1, 2)]
    ledger, journal = Ledger(), Journal()
    await Recorder(ledger, journal, Metrics()).replay([each for each in copies if each is not None])
    assert [[each.epoch for each in call] for call in ledger.calls] == [[1], [2]]


@pytest.mark.anyio
async def test_what_is_being_paid_is_owed_until_it_is_in() -> None:
    owed = []

    class Looking(Ledger):
        async def settle(self, *arguments: Any) -> Any:
            owed.append(recorder.owed)
            return await super().settle(*arguments)

    recorder = Recorder(Looking(failures=2), Journal(), Metrics())
    await recorder.record(outcome(uuid4(), "sent"))
    await recorder.pay()
    assert recorder.owed == 1
    await recorder.pay()
    assert recorder.owed == 0
    assert owed == [0, 1, 1]


@pytest.mark.anyio
async def test_a_record_that_is_under_way_is_written_though_the_work_is_cancelled() -> None:
    scope, journal = anyio.CancelScope(), Journal()

    class Late(Ledger):
        async def settle(self, *arguments: Any) -> Any:
            if len(self.calls) == 1:
                scope.cancel()
                await anyio.sleep(0.02)
            return await super().settle(*arguments)

    recorder = Recorder(Late(failures=1), journal, Metrics())
    await recorder.record(outcome(uuid4(), "sent"))
    assert recorder.owed == 1
    with scope:
        await recorder.pay()
    assert scope.cancelled_caught
    assert (recorder.owed, journal.entries) == (0, set())


@pytest.mark.anyio
async def test_outcomes_that_wait_for_their_record_take_slots_and_give_them_back() -> None:
    answers = anyio.Event()

    class Late(Ledger):
        async def settle(self, *arguments: Any) -> Any:
            await answers.wait()
            return await super().settle(*arguments)

    recorder = Recorder(Late(), Journal(), Metrics())
    parts: Any = SimpleNamespace()
    config = DispatchConfig(max_in_flight=2)
    dispatcher = PushNotificationDispatcher(parts, recorder, parts, Metrics(), config)
    before = recorder.finished_at
    for _ in range(4):
        recorder.take(outcome(uuid4(), "sent"))
    free: list[int] = []

    async def wait() -> None:
        free.append(await dispatcher.wait_free())

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(3 * GATHER_SECONDS)
            assert free == []
            assert recorder.late(time.monotonic() + 20) == pytest.approx(20, abs=10)
            answers.set()
    assert free == [2]
    assert recorder.finished_at > before
    assert recorder.late(time.monotonic() + 20) == 0
    recorder.finished_at -= 1000  # long idle
    answers = anyio.Event()
    records = recorder.take(outcome(uuid4(), "sent"))
    assert recorder.late(time.monotonic()) < 10
    answers.set()
    await records.finished.wait()
