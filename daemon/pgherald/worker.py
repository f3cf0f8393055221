"""The loop: evaluate who was touched, claim what is ready, hand it to the dispatcher; else sleep until woken.

While there is more than one claim can take, a second one is made beside it, so that something is being sent while the
database works on the next.

Awake, the worker holds an advisory lock that the triggers of watched tables test, so that writers of a busy app never
queue for NOTIFY's cluster-wide lock. The test comes before the writer's commit: having let the lock go, the worker
goes on polling, ever more slowly, until every transaction that may have seen it held has ended. Run by the service.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Final

import anyio
import anyio.abc
import anyio.lowlevel

from pgherald.backoff import reconnect_delay
from pgherald.listener import Wakeup
from pgherald.log import describe_exception, log
from pgherald.sessions import STORE_ERRORS
from pgherald.store import CLAIM_PATIENCE, SCHEMA_BROKE, CalledOff, Claimed, SchemaBroke

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Sequence

    from pgherald.dispatcher import DispatchConfig, PushNotificationDispatcher
    from pgherald.exporter import Health
    from pgherald.listener import Doorbell
    from pgherald.metrics import Metrics
    from pgherald.model import Prompt
    from pgherald.pacing import Pacing
    from pgherald.recorder import Recorder
    from pgherald.sessions import Locks
    from pgherald.spool import Spool
    from pgherald.store import Store, Waiting

TOUCHED_MAX: Final = 5000
"""Touched rows evaluated in one transaction: a tenth of a second or so."""

BREATH: Final = 3.0
"""The pause between two evaluations, in times of what the last one took: so even the busiest app pays with a quarter of
one core at most, and whoever was touched twice meanwhile is evaluated once."""

BREATH_MAX: Final = 0.5
"""Seconds that this pause lasts at most."""

HANGING_PAUSE: Final = 60.0
"""The pause after an evaluation that did not end: what is ready goes out meanwhile."""

BARREN_STEP: Final = 0.01
"""Seconds by which this pause grows with each evaluation in a row after which nothing was to be sent, up to `NAP`: what
an evaluation costs whoever it is for is then shared by many writes of an app that hardly ever makes somebody due."""

FAILING_MAX: Final = 2.0
"""Seconds that it lasts at most while a scenario fails and nothing is to be sent, doubling: those whom a scheduled run
has in hand stay touched, and each time is told and written down."""

LINGER: Final = 0.25
"""Seconds without work after which a worker falls asleep that an app's many writes have woken."""

NAP: Final = 0.05
"""Seconds between two looks for work meanwhile."""

FIRST_DOZE: Final = 0.02
"""Seconds of the first wait after the lock was let go, while older transactions are still running; doubling."""

BACK_OFF_MAX: Final = 1.0
"""Seconds between two tries to claim what is ready and cannot be had."""

CLAIM_MAX: Final = 500
"""Prompts claimed in one transaction at most."""

STOP_PATIENCE: Final = 2.0
"""Seconds that a claim may still take to be answered when the work is cancelled."""

HANG_SECONDS: Final = 10.0
"""Beyond the time that it meant to wait, the worker may be late by this before it is taken to hang."""


class Worker:
    """Finds work and hands it out, until told to stop."""

    def __init__(
        self,
        store: Store,
        dispatcher: PushNotificationDispatcher,
        recorder: Recorder,
        pacing: Pacing,
        spool: Spool,
        bell: Doorbell,
        locks: Locks,
        metrics: Metrics,
        health: Health,
        config: DispatchConfig,
        *,
        poll_interval: float,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._pacing = pacing
        self._spool = spool
        self._bell = bell
        self._locks = locks
        self._metrics = metrics
        self._health = health
        self._config = config
        self._poll_interval = poll_interval
        self._rng = Random()
        self._stopping = False
        self._horizon = 0  # transactions below it may have changed rows without ringing; 0 once all have ended
        self._evaluates_at = 0.0  # not sooner, by time.monotonic()
        self._fruitless = 0  # claims in a row that found nothing
        self._barren = 0  # evaluations in a row, without sleep, after which nothing was to be sent
        self._failing = 0  # of these, in a row, in which a scenario failed
        self._waits: list[tuple[float, float]] = []  # under way: since when, by time.monotonic(), and for how long
        self._unanswered = 0  # claims
        self._answered_at = float("-inf")  # the last of them, by time.monotonic()
        self._allowing = anyio.Lock(fast_acquire=True)
        self._help_ended: anyio.Event | None = None  # while somebody helps to claim
        self._help_failed: Exception | None = None
        self.refusal: SchemaBroke | None = None  # set when it stopped because it cannot work with the schema any more
        self.drained = anyio.Event()  # set once there was nothing left to do for the first time

    def stop(self) -> None:
        """Claim nothing more; what is under way goes on."""
        self._stopping = True
        self._bell.ring(Wakeup.NOTIFY)

    def set_poll_interval(self, seconds: float) -> None:
        """From the next wait on."""
        self._poll_interval = seconds
        self._bell.ring(Wakeup.POLL)

    def hangs(self, now: float) -> bool:
        """Whether at this moment of time.monotonic() it should have moved on long ago. For the database or the disk it
        waits as long as it takes, and so does whoever waits for a slot meanwhile: that is never its own fault."""
        if self._unanswered > 0 or self._recorder.unwritten > 0:
            return False
        moved_at = max(self._answered_at, self._recorder.finished_at)
        return any(now > max(since, moved_at) + seconds + HANG_SECONDS for since, seconds in self._waits)

    @contextmanager
    def _moving_within(self, seconds: float) -> Iterator[None]:
        wait = time.monotonic(), seconds
        self._waits.append(wait)
        try:
            yield
        finally:
            self._waits.remove(wait)

    async def run(self) -> None:
        """Work until `stop`; returns when all that was claimed is settled or owed."""
        failures = 0
        async with anyio.create_task_group() as batches:
            while not self._stopping:
                try:
                    busy = await self._turn(batches)
                    await self._call_help(batches, wanted=busy)
                    waiting = None if busy else await self._store.waiting()
                    failures = 0
                    self._health.clear("database_away")
                    if waiting is not None and self._is_kept_from(waiting):
                        self.drained.set()
                        await self._back_off()
                    elif waiting is None or self._has_work(waiting):
                        await self._locks.stay_awake()
                        await self._breathe(waiting)
                    else:
                        self.drained.set()
                        await self._rest(waiting)
                except SchemaBroke as error:
                    self._refuse(error)
                except (*STORE_ERRORS, TimeoutError) as error:
                    # A function that is gone may mean that the schema has moved on.
                    if await self._store.is_broken():
                        self._refuse(SchemaBroke(SCHEMA_BROKE))
                        continue
                    failures += 1
                    self._health.set_unready("database_away")
                    if failures in (1, 5) or failures % 30 == 0:
                        log.warning("database_away", failures=failures, exception=describe_exception(error))
                    with self._moving_within(delay := reconnect_delay(failures, self._rng)):
                        await self._bell.wait(delay)

    def _refuse(self, error: SchemaBroke) -> None:
        """Claim nothing more, as for `stop`."""
        log.critical("schema_broke")
        self.refusal = error
        self._stopping = True

    async def _turn(self, batches: anyio.abc.TaskGroup) -> bool:
        """Evaluate and claim once; True if as much was claimed as could be, so that there is surely more."""
        allowed = await self._allowance()
        return await self._hand_out(self._ask(allowed), allowed, batches)

    async def _call_help(self, batches: anyio.abc.TaskGroup, *, wanted: bool) -> None:
        """Have somebody claim beside this loop, or, where nobody is wanted, wait for the one who does. What went wrong
        there is raised here."""
        if self._help_ended is not None and not wanted:
            await self._help_ended.wait()
        failure, self._help_failed = self._help_failed, None
        if failure is not None:
            raise failure
        if self._help_ended is None and wanted and not self._stopping:
            self._help_ended = anyio.Event()
            batches.start_soon(self._help, batches, self._help_ended)

    async def _help(self, batches: anyio.abc.TaskGroup, ended: anyio.Event) -> None:
        """Claim as long as there is surely more; evaluations are left to the loop."""
        try:
            while not self._stopping and (allowed := await self._allowance()):
                claim = self._claim(allowed, 0)
                if not await self._hand_out(claim, allowed, batches):
                    return
        except (*STORE_ERRORS, TimeoutError, SchemaBroke) as error:
            self._help_failed = error
        finally:
            self._help_ended = None
            ended.set()

    async def _hand_out(self, claim: Awaitable[Claimed], allowed: int, batches: anyio.abc.TaskGroup) -> bool:
        """Send what a claim brings; True if that is as much as was allowed."""
        self._unanswered += 1
        try:
            claimed = await claim
        except BaseException:
            self._dispatcher.expect(-allowed)
            raise
        finally:
            self._unanswered -= 1
            self._answered_at = time.monotonic()
        self._dispatcher.expect(len(claimed.prompts) - allowed)
        if allowed == 0:
            return False
        self._pacing.give_back(time.monotonic(), allowed - len(claimed.prompts))
        self._fruitless = 0 if claimed.prompts or claimed.decided else self._fruitless + 1
        for decided in claimed.decided:
            if decided.decision in ("skipped", "expired"):
                self._metrics.prompts_total.inc(decided.scenario_type, decided.decision)
        if claimed.prompts and self._spool.failing:  # since the claim was sent off: what FCM accepts could not be kept
            self._dispatcher.expect(-len(claimed.prompts))
            batches.start_soon(self._dispatcher.give_back, claimed.prompts)
        elif claimed.prompts:
            batches.start_soon(self._dispatch, claimed.prompts)
            # its task begins, then the tasks of its prompts: they send before the database is asked again
            for _ in range(2):
                await anyio.lowlevel.checkpoint()
        return len(claimed.prompts) + len(claimed.decided) == allowed

    async def _allowance(self) -> int:
        """How many prompts may be claimed now, whose slots are taken with that; waits until there is one."""
        if not self._may_claim():
            return 0
        async with self._allowing:
            # A slot is taken until its send is answered or given up, which the lease bounds.
            with self._moving_within(self._config.lease.total_seconds() + self._config.send_deadline):
                wanted = min(await self._dispatcher.wait_free(), CLAIM_MAX)
            if self._stopping or not self._may_claim():  # a spool may have failed for what was sent meanwhile
                return 0
            allowed = self._pacing.allowance(time.monotonic(), wanted)
            self._dispatcher.expect(allowed)
        return allowed

    async def _ask(self, allowed: int) -> Claimed:
        """Claim so many prompts, and before that evaluate touched people, unless that was done just now."""
        began = time.monotonic()
        evaluates = began >= self._evaluates_at
        if not evaluates and allowed == 0:
            return Claimed((), ())
        try:
            claimed = await self._claim(allowed, TOUCHED_MAX if evaluates else 0)
        except CalledOff:
            if not evaluates:
                raise
            log.error("evaluation_hangs", seconds=CLAIM_PATIENCE, source="touched")
            self._evaluates_at = time.monotonic() + HANGING_PAUSE
            return Claimed((), ())
        for scenario_id in claimed.broken:
            log.error("evaluation_failed", scenario_id=scenario_id, source="touched")
        if evaluates:
            ended = time.monotonic()
            pause = max(BREATH * (ended - began), min(BARREN_STEP * self._barren, NAP))
            self._barren = 0 if claimed.prompts else self._barren + 1
            self._failing = self._failing + 1 if claimed.broken and not claimed.prompts else 0
            rest = BARREN_STEP * 2.0 ** min(self._failing, 10) if self._failing else 0.0
            self._evaluates_at = ended + max(min(pause, BREATH_MAX), min(rest, FAILING_MAX))
        return claimed

    async def _claim(self, count: int, touched: int) -> Claimed:
        """Claim. Cancelled, it waits a moment for the answer and gives back what it claimed: nothing of that was sent,
        and yet nobody could know."""
        config = self._config
        claim = asyncio.ensure_future(self._store.claim(config.owner, count, config.lease, touched=touched))
        try:
            return await asyncio.shield(claim)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(STOP_PATIENCE, shield=True), suppress(*STORE_ERRORS, SchemaBroke, TimeoutError):
                await self._dispatcher.give_back((await claim).prompts)
            raise

    async def _breathe(self, waiting: Waiting | None) -> None:
        """When there is nothing but touched people, wait until they may be evaluated, or for a look at what else there
        is: nobody rings while this is awake."""
        pause = min(self._evaluates_at - time.monotonic(), BREATH_MAX)
        if waiting is not None and (not waiting.ready or self._fruitless > 0) and pause > 0:
            with self._moving_within(pause):
                await self._bell.wait(pause)

    def _may_claim(self) -> bool:
        """Whether what is accepted could be kept: a spool that fails, or too much that is owed, stops the claiming."""
        return not self._spool.failing and self._recorder.owed <= self._config.max_in_flight

    def _has_work(self, waiting: Waiting) -> bool:
        return waiting.touched or (waiting.ready and self._may_claim() and self._pacing.ready_in(time.monotonic()) <= 0)

    def _is_kept_from(self, waiting: Waiting) -> bool:
        """Whether what is ready cannot be had: all is paused, or somebody holds the rows. Once is no sign of it."""
        return self._fruitless > 1 and waiting.ready and not waiting.touched and self._has_work(waiting)

    async def _back_off(self) -> None:
        """Wait for that to end, ever longer up to a second."""
        await self._fall_asleep()
        delay = min(FIRST_DOZE * 2.0 ** min(self._fruitless - 2, 10), BACK_OFF_MAX, self._poll_interval)
        with self._moving_within(delay):
            await self._bell.wait(delay)

    async def _fall_asleep(self) -> bool:
        """Let the lock go that keeps writers from ringing; True if it was held until now. Whoever saw it held did not
        ring, and may commit only later: they are awaited, whatever wakes this loop in between."""
        self._barren = self._failing = 0
        horizon = await self._locks.fall_asleep()
        if horizon is not None:
            self._horizon = horizon
        return horizon is not None

    async def _rest(self, waiting: Waiting) -> None:
        """Sleep until there may be work; every way out of here is followed by a look for it."""
        if self._bell.pealed(LINGER) and await self._linger():
            return
        if await self._fall_asleep():
            waiting = await self._store.waiting()
        doze = FIRST_DOZE
        while not self._has_work(waiting) and not self._stopping:
            if waiting.oldest_running >= self._horizon:
                self._horizon = 0
            patience = min(self._poll_interval, doze) if self._horizon else self._poll_interval
            wait = min(patience, self._until_due(waiting))
            with self._moving_within(wait):
                source = await self._bell.wait(wait)
            if source is not Wakeup.POLL or wait >= self._poll_interval:
                self._metrics.wakeups_total.inc(source)
                return
            doze *= 2
            waiting = await self._store.waiting()

    async def _linger(self) -> bool:
        """Stay awake for a moment, looking now and then; True if there was work. A busy app's writers would all ring
        again at once, and queue for each other to do so."""
        await self._locks.stay_awake()
        until = time.monotonic() + LINGER
        while time.monotonic() < until and not self._stopping:
            with self._moving_within(NAP):
                source = await self._bell.wait(NAP)
            if self._has_work(await self._store.waiting()):
                self._metrics.wakeups_total.inc(source)
                return True
        return False

    def _until_due(self, waiting: Waiting) -> float:
        """Seconds until the next prompt may be claimed, as far as the database or the rate says."""
        seconds = float("inf")
        if waiting.ready and self._may_claim():
            seconds = max(0.001, self._pacing.ready_in(time.monotonic()))
        if waiting.next_not_before is not None:
            seconds = min(seconds, max(0.001, (waiting.next_not_before - waiting.now) / timedelta(seconds=1)))
        return seconds

    async def _dispatch(self, prompts: Sequence[Prompt]) -> None:
        """Send one batch and say how it went."""
        started = time.monotonic()
        summary = await self._dispatcher.dispatch_prompts(prompts)
        log.info(
            "batch_dispatched",
            claimed=len(prompts),
            dispatched=summary.dispatched,
            failed=summary.failed,
            skipped=summary.skipped,
            seconds=round(time.monotonic() - started, 4),
        )
