"""The recorder: what is accepted is spooled before it is written, in batches, and nobody waits for ever."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import psycopg

from pgherald.config import LogLevel
from pgherald.frames import Entry
from pgherald.metrics import Metrics
from pgherald.model import DeviceId, NotificationId, PromptId
from pgherald.recorder import Outcome, Recorder
from pgherald.store import Settled, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pytest

    from pgherald.log import Log
    from pgherald.model import Revoked


class FakeJournal:
    """Keeps the sizes of its writes."""

    def __init__(self) -> None:
        self.safe: set[PromptId] = set()
        self.writes: list[int] = []

    async def append(self, entries: Sequence[Entry]) -> None:
        await anyio.sleep(0.01)
        self.writes.append(len(entries))
        self.safe |= {entry.prompt_id for entry in entries}

    async def done(self, ids: Iterable[PromptId]) -> None:
        self.safe -= set(ids)


class FakeLedger:
    """Takes settlements, unless it is away; remembers those that came before the journal had them."""

    def __init__(self, journal: FakeJournal) -> None:
        self.journal = journal
        self.away = False
        self.odd = False
        self.batches: list[int] = []
        self.too_early: list[PromptId] = []

    async def settle(
        self, settlements: Sequence[Settlement], revoked: Sequence[Revoked] = ()
    ) -> tuple[Mapping[PromptId, Settled], Mapping[DeviceId, str]]:
        await anyio.sleep(0.01)
        if self.away:
            raise psycopg.OperationalError
        if self.odd:
            raise RuntimeError
        self.batches.append(len(settlements))
        self.too_early += [s.prompt_id for s in settlements if s.prompt_id not in self.journal.safe]
        return {s.prompt_id: Settled(True, s.outcome) for s in settlements}, {}


def accepted() -> Outcome:
    prompt, device, at = PromptId(uuid4()), DeviceId(uuid4()), datetime.now(UTC)
    settlement = Settlement(prompt, 1, "sent", at, device_id=device, message_name="projects/p/messages/1")
    return Outcome(
        settlement,
        "milestone",
        entry=Entry(prompt, 1, NotificationId(uuid4()), device, "projects/p/messages/1", at),
    )


def make() -> tuple[Recorder, FakeLedger, FakeJournal]:
    journal = FakeJournal()
    ledger = FakeLedger(journal)
    return Recorder(ledger, journal, Metrics()), ledger, journal


async def record_all(recorder: Recorder, outcomes: Sequence[Outcome]) -> None:
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for outcome in outcomes:
                tasks.start_soon(recorder.record, outcome)


def test_what_comes_together_is_spooled_and_written_together_and_never_written_first() -> None:
    recorder, ledger, journal = make()
    outcomes = [accepted() for _ in range(200)]

    anyio.run(record_all, recorder, outcomes)

    assert all(outcome.written for outcome in outcomes)
    assert sum(journal.writes) == sum(ledger.batches) == 200
    assert len(journal.writes) <= 3
    assert ledger.too_early == []
    assert journal.safe == set()


def test_an_error_that_nobody_expects_is_told_with_the_details_and_the_record_is_owed(
    capfd: pytest.CaptureFixture[str], process_log: Log
) -> None:
    process_log.set_up(LogLevel.INFO, None, strict=True)
    recorder, ledger, journal = make()
    ledger.odd = True
    outcomes = [accepted() for _ in range(3)]

    async def scenario() -> None:
        await record_all(recorder, outcomes)
        assert recorder.owed == 3
        ledger.odd = False
        await recorder.pay()

    anyio.run(scenario)

    said = [line for line in capfd.readouterr().err.splitlines() if '"record_failed"' in line]
    for outcome in outcomes:
        (line,) = [line for line in said if str(outcome.settlement.prompt_id) in line]
        assert '"level":"critical"' in line
        assert "RuntimeError" in line
    assert all(outcome.written for outcome in outcomes)
    assert journal.safe == set()


def test_while_the_database_is_away_the_spool_goes_on_and_everybody_gets_an_answer() -> None:
    recorder, ledger, journal = make()
    ledger.away = True
    outcomes = [accepted() for _ in range(50)]

    async def scenario() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(record_all, recorder, outcomes)
            for _ in range(10):  # paying takes the queue out from under those who wait to write it
                await anyio.sleep(0.005)
                tasks.start_soon(recorder.pay)
        assert recorder.owed == 50
        assert len(journal.safe) == 50
        ledger.away = False
        await recorder.pay()

    anyio.run(scenario)

    assert recorder.owed == 0
    assert all(outcome.written for outcome in outcomes)
    assert journal.safe == set()
