"""From outcomes to records: the spool first where FCM accepted, then the database, for as long as it takes.

The dispatcher calls `Recorder.take` for every claimed prompt, exactly once. Outcomes that come while the spool is busy
share the next write to it, and go on to the database together: so batches grow with the load. A record that the
database did not take is owed: the log says so once, with all that a person needs to write it by hand, and `run` tries
it again and again until it is in. The push itself is never repeated here.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from pgherald.backoff import reconnect_delay
from pgherald.log import describe_exception, log
from pgherald.sessions import PASSING_ERRORS
from pgherald.spool import SpoolFailed
from pgherald.store import PLAIN, Settled, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import NoReturn

    from pgherald.frames import Entry
    from pgherald.log import Field
    from pgherald.metrics import Metrics
    from pgherald.model import DeviceId, PromptId, Revoked

BATCH_MAX: Final = 500
"""Outcomes written in one transaction at most."""


WRITE_PATIENCE: Final = 5.0
"""Seconds that the database still gets for a record when the work is cancelled. After that nothing is lost: what FCM
accepted is in the spool."""


class Ledger(Protocol):
    """Where outcomes are written: `pgherald.store.Store`. The answer tells of those alone that are not `PLAIN`."""

    async def settle(
        self, settlements: Sequence[Settlement], revoked: Sequence[Revoked] = ()
    ) -> tuple[Mapping[PromptId, Settled], Mapping[DeviceId, str]]: ...


class Journal(Protocol):
    """Where acceptances are kept until their record is in: `pgherald.spool.Spool`."""

    async def append(self, entries: Sequence[Entry]) -> None: ...

    async def done(self, ids: Iterable[PromptId]) -> None: ...


@dataclass(eq=False, slots=True)
class Outcome:
    """One settlement on its way to the database; `entry` is what the spool keeps of it, if FCM accepted.

    `tried`: the database was asked to write it, whatever came of that. `written`: it has.
    """

    settlement: Settlement
    scenario_type: str
    revoked: tuple[Revoked, ...] = ()
    entry: Entry | None = None
    written: bool = False
    tried: bool = False


@dataclass(eq=False, slots=True)
class Records:
    """Outcomes that go to the spool together; `finished` once each is in the database or owed."""

    outcomes: list[Outcome] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)


class Recorder:
    """Writes outcomes, in batches, and keeps what it owes."""

    def __init__(self, ledger: Ledger, journal: Journal, metrics: Metrics) -> None:
        self._ledger = ledger
        self._journal = journal
        self._metrics = metrics
        self._rng = Random()
        self._queue: list[Outcome] = []
        self._owed: list[Outcome] = []
        self._gathering: Records | None = None
        # one for each batch; kept here, or they might be garbage collected while they run
        self._tasks: set[asyncio.Task[None]] = set()
        self._spooling = anyio.Lock()  # held while the spool writes
        self._turn = anyio.Lock()  # held while a batch is written to the database
        self._owing = anyio.Event()
        self._unwritten = 0
        self._paying = 0  # how many were owed when `pay` began
        self._tell: Callable[[], None] | None = None
        self.finished_at = time.monotonic()  # when a batch was last in the database or owed
        self._unwritten_since = self.finished_at

    @property
    def unwritten(self) -> int:
        """Outcomes on their way to the spool and the database: neither in nor owed yet."""
        return self._unwritten

    def late(self, now: float) -> float:
        """For how many seconds, at this moment of time.monotonic(), outcomes have been unwritten and none of them has
        got any further; 0 without any."""
        return now - max(self._unwritten_since, self.finished_at) if self._unwritten > 0 else 0.0

    def when_finished(self, tell: Callable[[], None]) -> None:
        """Have `tell` called whenever fewer outcomes are unwritten."""
        self._tell = tell

    @property
    def owed(self) -> int:
        """Outcomes that the database did not take yet; those that `pay` is trying again just now count as well."""
        return max(len(self._owed), self._paying)

    def take(self, outcome: Outcome) -> Records:
        """Have one outcome written. Returns the batch that it is in: those that come while the spool is busy."""
        records = self._gathering
        if records is None:
            records = self._gathering = Records()
            task = asyncio.create_task(self._record(records))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        records.outcomes.append(outcome)
        if self._unwritten == 0:
            self._unwritten_since = time.monotonic()
        self._unwritten += 1
        return records

    async def record(self, outcome: Outcome) -> bool:
        """Write one outcome; True once it is in the database, False if it is owed and `run` goes on trying."""
        await self.take(outcome).finished.wait()
        return outcome.written

    async def _record(self, records: Records) -> None:
        try:
            await self._spool_and_write(records)
        finally:
            records.finished.set()
            self._unwritten -= len(records.outcomes)
            self.finished_at = time.monotonic()
            if self._tell is not None:
                self._tell()

    async def _spool_and_write(self, batch: Records) -> None:
        async with self._spooling:
            self._gathering = None  # outcomes that come from now on are in the next batch
            accepted = [outcome for outcome in batch.outcomes if outcome.entry is not None]
            try:
                await self._journal.append([outcome.entry for outcome in accepted if outcome.entry is not None])
            except Exception as error:  # noqa: BLE001 - whatever it was, they are not forgotten
                # That these pushes were accepted is now known only to this process: it goes on to write their records.
                reason = error.code if isinstance(error, SpoolFailed) else describe_exception(error)
                for outcome in accepted:
                    log.critical("spool_failed", **_details(outcome), reason=reason)
        self._queue += batch.outcomes
        async with self._turn:
            # `pay` may have taken some out of the queue meanwhile: those are tried, and if not written they are owed.
            while self._queue and any(not outcome.tried for outcome in batch.outcomes):
                await self._write_batch()

    async def replay(self, entries: Sequence[Entry]) -> None:
        """Write the records of acceptances that an earlier run left in the spool; returns when all are in or owed."""
        for start in range(0, len(entries), BATCH_MAX):
            self._queue += [Outcome(_accepted(entry), "", entry=entry) for entry in entries[start : start + BATCH_MAX]]
            async with self._turn:
                while self._queue:
                    await self._write_batch()

    async def run(self) -> NoReturn:
        """Pay what is owed, for ever."""
        failures = 0
        while True:
            if not self._owed:
                failures = 0
                self._owing = anyio.Event()
                await self._owing.wait()
            failures += 1
            await anyio.sleep(reconnect_delay(failures, self._rng))
            await self.pay()

    async def pay(self) -> None:
        """Try once more to write all that is owed."""
        async with self._turn:
            self._paying = len(self._owed)
            self._queue, self._owed = self._owed + self._queue, []
            try:
                while self._queue and not self._owed:
                    await self._write_batch()
            finally:
                self._owed += self._queue
                self._queue = []
                self._paying = 0

    async def _write_batch(self) -> None:
        """Write the first batch of the queue. Cancelled, it still waits a moment for the transaction that is under way,
        so that it is known what came of it."""
        batch, self._queue = _take(self._queue)
        writing = asyncio.create_task(self._write_or_owe(batch))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            with anyio.move_on_after(WRITE_PATIENCE, shield=True):
                await asyncio.wait([writing])
            writing.cancel()
            raise

    async def _write_or_owe(self, batch: Sequence[Outcome]) -> None:
        try:
            await self._write(batch)
        except (*PASSING_ERRORS, TimeoutError) as error:
            self._owe(batch, error)
        except Exception as error:  # noqa: BLE001 - whatever it was, what FCM accepted is not forgotten
            if len(batch) == 1:
                self._owe(batch, error)
                return
            # The database cannot take one of them, whatever is odd about it: it must not keep the others back.
            for outcome in batch:
                try:
                    await self._write([outcome])
                except Exception as own:  # noqa: BLE001
                    self._owe([outcome], own)

    async def _write(self, batch: Sequence[Outcome]) -> None:
        settled, gone = await self._ledger.settle(
            [outcome.settlement for outcome in batch], [each for outcome in batch for each in outcome.revoked]
        )
        for outcome in batch:
            again, outcome.tried, outcome.written = outcome.tried, True, True
            mine = settled.get(outcome.settlement.prompt_id, PLAIN) if settled else PLAIN
            # A second try finds it there already: the first COMMIT went through, and only its answer was lost.
            if mine.applied or (again and mine.status == outcome.settlement.outcome):
                self._count(outcome, mine)
            if outcome.entry is not None and mine.status is None:
                log.critical("record_orphaned", **_details(outcome))
        for reason in gone.values():
            self._metrics.tokens_revoked_total.inc(reason)
        await self._journal.done([outcome.entry.prompt_id for outcome in batch if outcome.entry is not None])

    def _count(self, outcome: Outcome, settled: Settled) -> None:
        said = outcome.settlement.outcome
        if said != "release" and outcome.scenario_type:
            self._metrics.prompts_total.inc(outcome.scenario_type, "failed" if said == "retry" else said)
        log.debug(
            "prompt_settled",
            prompt_id=outcome.settlement.prompt_id,
            outcome=said,
            status=settled.status,
            error_code=outcome.settlement.error,
        )

    def _owe(self, batch: Sequence[Outcome], error: BaseException) -> None:
        for outcome in batch:
            if not outcome.tried:
                outcome.tried = True
                say = log.critical if outcome.entry is not None else log.error
                say("record_failed", **_details(outcome), exception=describe_exception(error))
        self._owed += batch
        self._owing.set()


def _take(queue: list[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """The next batch, the oldest first, and the rest. A batch holds at most one outcome of each prompt."""
    batch: dict[PromptId, Outcome] = {}
    rest: list[Outcome] = []
    for outcome in queue:
        if len(batch) < BATCH_MAX and outcome.settlement.prompt_id not in batch:
            batch[outcome.settlement.prompt_id] = outcome
        else:
            rest.append(outcome)
    return list(batch.values()), rest


def _details(outcome: Outcome) -> dict[str, Field]:
    """What a person needs to write the record by hand."""
    settlement = outcome.settlement
    return {
        "prompt_id": settlement.prompt_id,
        "epoch": settlement.epoch,
        "notification_id": outcome.entry.notification_id if outcome.entry is not None else None,
        "outcome": settlement.outcome,
        "error_code": settlement.error,
        "message_name": settlement.message_name,
        "device_id": settlement.device_id,
        "dispatched_at": settlement.at,
    }


def _accepted(entry: Entry) -> Settlement:
    return Settlement(
        entry.prompt_id,
        entry.epoch,
        "sent",
        entry.dispatched_at,
        device_id=entry.device_id,
        message_name=entry.message_name,
    )
