"""The loop: evaluate touched people, claim ready prompts, hand them to the dispatcher; with nothing to do, sleep.

Touched people are those whose rows an app has changed (`herald.touched_user`). One statement evaluates them and claims.
While there are more ready prompts than one claim can take, a helper task claims beside the loop: so something is being
sent while the database works on the next claim.

While awake, the worker holds an advisory lock. The triggers of watched tables test it, and ring (NOTIFY) only if nobody
holds it: so the writers of a busy app do not queue for NOTIFY's cluster-wide lock. A trigger tests before its
transaction commits. So after the worker has let the lock go, a transaction that saw it held may still commit without
ringing; the worker polls, ever more slowly, until each of those has ended. Run by the service.
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

from pgherald.backoff import Told, is_told, reconnect_delay
from pgherald.listener import Wakeup
from pgherald.log import describe_exception, log
from pgherald.sessions import STORE_ERRORS
from pgherald.store import CLAIM_PATIENCE, CalledOff, Claimed, SchemaBroke

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Sequence

    from pgherald.dispatcher import DispatchConfig, PushNotificationDispatcher
    from pgherald.health import Health
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

PAUSE_FACTOR: Final = 3.0
"""The pause after an evaluation is so many times as long as it took. So even the busiest app spends a quarter of one
core on evaluations at most, and somebody who is touched twice during the pause is evaluated once."""

PAUSE_MAX: Final = 0.5
"""Seconds that this pause lasts at most."""

HANGING_PAUSE: Final = 60.0
"""Seconds of the pause after an evaluation that did not end and was called off; the next is of a tenth as many rows.
Ready prompts go out meanwhile."""

IDLE_PAUSE_STEP: Final = 0.01
"""Seconds by which the pause grows with each evaluation in a row that led to no push, up to `LOOK_SECONDS`. An
evaluation has a price however few people it is for: in an app that seldom makes anybody due, many writes share it."""

FAILING_PAUSE_MAX: Final = 2.0
"""Seconds of the pause at most while a scenario fails and nothing is to be sent; it doubles with each evaluation.
People whom a scheduled run has in hand stay touched, and every failure is written down."""

STAY_AWAKE_SECONDS: Final = 0.25
"""A worker that was woken by many writes falls asleep after so many seconds without work."""

LOOK_SECONDS: Final = 0.05
"""Seconds between two looks for work until then."""

FIRST_WAIT: Final = 0.02
"""Seconds of the first wait after the lock was let go, while older transactions are still running; then doubling."""

BACK_OFF_MAX: Final = 1.0
"""Seconds at most between two tries to claim prompts that are ready and that no claim gets."""

CLAIM_MAX: Final = 500
"""Prompts claimed in one transaction at most."""

STOP_PATIENCE: Final = 2.0
"""Seconds that the database has to answer a claim when the work is cancelled."""

HANG_SECONDS: Final = 10.0
"""The worker is taken to hang when it is late by this, beyond the time that it meant to wait."""


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
        # Moments here are those of time.monotonic().
        self._horizon = 0  # transactions with a lower id may have changed rows without ringing; 0: all have ended
        self._evaluates_at = 0.0  # not sooner
        self._empty_claims = 0  # in a row
        self._touched_max = TOUCHED_MAX  # rows that the next evaluation takes: as many as end in time
        self._idle_evaluations = 0  # in a row, since the last sleep, that led to no push
        self._failed_evaluations = 0  # of these, in a row, in which a scenario failed
        # Scenarios that fail: where others have people to push to, or each change of an app wakes the worker, there is
        # no pause that would keep the lines apart.
        self._told = Told()
        self._waits: list[tuple[float, float]] = []  # under way: since when, and for how long
        self._unanswered = 0  # claims that the database has not answered yet
        self._answered_at = float("-inf")  # when it last answered one
        self._allowing = anyio.Lock(fast_acquire=True)
        self._helper_ended: anyio.Event | None = None  # there is one while the helper is at work
        self._helper_error: Exception | None = None
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
        """Whether, at this moment of time.monotonic(), it should have moved on long ago.

        Waiting for the database or the disk is no hanging, however long it takes; nor is waiting for a slot meanwhile.
        """
        if self._unanswered > 0 or self._recorder.unwritten > 0:
            return False
        moved_at = max(self._answered_at, self._recorder.finished_at)
        return any(now > max(since, moved_at) + seconds + HANG_SECONDS for since, seconds in self._waits)

    @contextmanager
    def _moving_within(self, seconds: float) -> Iterator[None]:
        """A wait of the worker that is meant to end within these seconds: see `hangs`."""
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
                    await self._run_helper(batches, wanted=busy)
                    waiting = None if busy else await self._store.waiting()
                    failures = 0
                    self._health.clear("database_away")
                    if waiting is not None and self._is_kept_from(waiting):
                        self.drained.set()
                        await self._back_off()
                    elif waiting is None or self._has_work(waiting):
                        await self._locks.stay_awake()
                        await self._wait_to_evaluate(waiting)
                    else:
                        self.drained.set()
                        await self._sleep(waiting)
                except SchemaBroke as error:
                    self._refuse(error)
                except (*STORE_ERRORS, TimeoutError) as error:
                    # It may be that a function is gone, because the schema was migrated to a newer version.
                    if await self._store.is_broken():
                        self._refuse(SchemaBroke())
                        continue
                    failures += 1
                    self._health.set_unready("database_away")
                    if is_told(failures):
                        log.warning("database_away", failures=failures, exception=describe_exception(error))
                    with self._moving_within(delay := reconnect_delay(failures, self._rng)):
                        await self._bell.wait(delay)

    def _refuse(self, error: SchemaBroke) -> None:
        """The schema is too new for this program: claim nothing more, as after `stop`."""
        log.critical("schema_broke")
        self.refusal = error
        self._stopping = True

    async def _turn(self, batches: anyio.abc.TaskGroup) -> bool:
        """Evaluate and claim once; True if the claim was full, so that there surely is more to claim."""
        allowed = await self._allowance()
        return await self._send_claimed(self._evaluate_and_claim(allowed), allowed, batches)

    async def _run_helper(self, batches: anyio.abc.TaskGroup, *, wanted: bool) -> None:
        """Have a helper claim beside this loop; where none is `wanted`, wait for the end of the one that does. Raises
        what went wrong in it."""
        if self._helper_ended is not None and not wanted:
            await self._helper_ended.wait()
        error, self._helper_error = self._helper_error, None
        if error is not None:
            raise error
        if self._helper_ended is None and wanted and not self._stopping:
            self._helper_ended = anyio.Event()
            batches.start_soon(self._help, batches, self._helper_ended)

    async def _help(self, batches: anyio.abc.TaskGroup, ended: anyio.Event) -> None:
        """Claim as long as claims are full. The helper does not evaluate: that is for the loop alone."""
        try:
            while not self._stopping and (allowed := await self._allowance()):
                claim = self._claim(allowed, 0)
                if not await self._send_claimed(claim, allowed, batches):
                    return
        except (*STORE_ERRORS, TimeoutError, SchemaBroke) as error:
            self._helper_error = error
        finally:
            self._helper_ended = None
            ended.set()

    async def _send_claimed(self, claim: Awaitable[Claimed], allowed: int, batches: anyio.abc.TaskGroup) -> bool:
        """Send what a claim brings; True if the claim was full: as many prompts as it was `allowed`."""
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
        self._empty_claims = 0 if claimed.prompts or claimed.decided else self._empty_claims + 1
        for decided in claimed.decided:
            if decided.decision in ("skipped", "expired"):
                self._metrics.prompts_total.inc(decided.scenario_type, decided.decision)
        if claimed.prompts and self._spool.failing:  # it began to fail after the claim was sent off
            self._dispatcher.expect(-len(claimed.prompts))
            batches.start_soon(self._dispatcher.give_back, claimed.prompts)
        elif claimed.prompts:
            batches.start_soon(self._dispatch, claimed.prompts)
            # First its task begins, then the tasks of its prompts: so they send before the database is asked again.
            for _ in range(2):
                await anyio.lowlevel.checkpoint()
        return len(claimed.prompts) + len(claimed.decided) == allowed

    async def _allowance(self) -> int:
        """How many prompts may be claimed now. Waits until there is a slot for one, and takes the slots of all."""
        if not self._may_claim():
            return 0
        async with self._allowing:
            # A slot is free again once its send is answered or given up: at the latest when the lease ends.
            with self._moving_within(self._config.lease.total_seconds() + self._config.send_deadline):
                wanted = min(await self._dispatcher.wait_free(), CLAIM_MAX)
            if self._stopping or not self._may_claim():  # it may be otherwise by now
                return 0
            allowed = self._pacing.allowance(time.monotonic(), wanted)
            self._dispatcher.expect(allowed)
        return allowed

    async def _evaluate_and_claim(self, allowed: int) -> Claimed:
        """Evaluate touched people, unless that was done just now, and then claim so many prompts."""
        began = time.monotonic()
        evaluates = began >= self._evaluates_at
        if not evaluates and allowed == 0:
            return Claimed((), ())
        try:
            claimed = await self._claim(allowed, self._touched_max if evaluates else 0)
        except CalledOff:
            if not evaluates:
                raise
            log.error("evaluation_hangs", seconds=round(time.monotonic() - began, 1), source="touched")
            self._evaluates_at = time.monotonic() + HANGING_PAUSE
            self._touched_max = max(self._touched_max // 10, 1)
            return Claimed((), ())
        for scenario_id in claimed.broken:
            if self._told.is_due(scenario_id, time.monotonic()):
                log.error("evaluation_failed", scenario_id=scenario_id, source="touched")
        if evaluates:
            ended = time.monotonic()
            if ended - began < CLAIM_PATIENCE / 4:
                self._touched_max = min(2 * self._touched_max, TOUCHED_MAX)
            self._evaluates_at = ended + self._pause_after(ended - began, claimed)
        return claimed

    def _pause_after(self, seconds: float, claimed: Claimed) -> float:
        """The pause after an evaluation that took so many seconds, together with this claim."""
        pause = max(PAUSE_FACTOR * seconds, min(IDLE_PAUSE_STEP * self._idle_evaluations, LOOK_SECONDS))
        self._idle_evaluations = 0 if claimed.prompts else self._idle_evaluations + 1
        self._failed_evaluations = self._failed_evaluations + 1 if claimed.broken and not claimed.prompts else 0
        failing_pause = IDLE_PAUSE_STEP * 2.0 ** min(self._failed_evaluations, 10) if self._failed_evaluations else 0.0
        return max(min(pause, PAUSE_MAX), min(failing_pause, FAILING_PAUSE_MAX))

    async def _claim(self, count: int, touched: int) -> Claimed:
        """Claim up to `count` prompts, after evaluating up to `touched` touched rows.

        When it is cancelled it waits a moment for the answer, and gives the claimed prompts back: nothing of them was
        sent, but without this nobody would know, and they would end unknown.
        """
        config = self._config
        claim = asyncio.ensure_future(self._store.claim(config.owner, count, config.lease, touched=touched))
        try:
            return await asyncio.shield(claim)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(STOP_PATIENCE, shield=True), suppress(*STORE_ERRORS, SchemaBroke, TimeoutError):
                await self._dispatcher.give_back((await claim).prompts)
            raise

    async def _wait_to_evaluate(self, waiting: Waiting | None) -> None:
        """When there is nothing to do but to evaluate, wait until that may be done again. Not for long: nobody rings
        while the worker is awake, so it has to look for other work by itself."""
        pause = min(self._evaluates_at - time.monotonic(), PAUSE_MAX)
        if waiting is not None and (not waiting.ready or self._empty_claims > 0) and pause > 0:
            with self._moving_within(pause):
                await self._bell.wait(pause)

    def _may_claim(self) -> bool:
        """Whether there is room for the records of more pushes: not while the spool fails, nor while many records are
        owed to the database (see `pgherald.recorder`)."""
        return not self._spool.failing and self._recorder.owed <= self._config.max_in_flight

    def _has_work(self, waiting: Waiting) -> bool:
        return waiting.touched or (waiting.ready and self._may_claim() and self._pacing.ready_in(time.monotonic()) <= 0)

    def _is_kept_from(self, waiting: Waiting) -> bool:
        """Whether prompts are ready and yet claims stay empty: all is paused, or another session has the rows locked.
        One empty claim is no sign of that: another daemon may have been faster."""
        return self._empty_claims > 1 and waiting.ready and not waiting.touched and self._has_work(waiting)

    async def _back_off(self) -> None:
        """Asleep, wait for that to end: ever longer, up to a second."""
        await self._fall_asleep()
        delay = min(FIRST_WAIT * 2.0 ** min(self._empty_claims - 2, 10), BACK_OFF_MAX, self._poll_interval)
        with self._moving_within(delay):
            await self._bell.wait(delay)

    async def _fall_asleep(self) -> bool:
        """Let go of the lock that keeps writers from ringing; True if it was held until now.

        Transactions that saw it held did not ring, and some may commit later. `_horizon` remembers which those may be:
        until they have ended the loop polls, whatever wakes it in between.
        """
        self._idle_evaluations = self._failed_evaluations = 0
        horizon = await self._locks.fall_asleep()
        if horizon is not None:
            self._horizon = horizon
        return horizon is not None

    async def _sleep(self, waiting: Waiting) -> None:
        """Sleep until there may be work; whatever ends the sleep, the loop then looks for it."""
        if self._bell.rings_often(STAY_AWAKE_SECONDS) and await self._stay_awake():
            return
        if await self._fall_asleep():
            waiting = await self._store.waiting()
        between_polls = FIRST_WAIT
        while not self._has_work(waiting) and not self._stopping:
            if waiting.oldest_running >= self._horizon:
                self._horizon = 0
            patience = min(self._poll_interval, between_polls) if self._horizon else self._poll_interval
            wait = min(patience, self._until_due(waiting))
            with self._moving_within(wait):
                source = await self._bell.wait(wait)
            if source is not Wakeup.POLL or wait >= self._poll_interval:
                self._metrics.wakeups_total.inc(source)
                return
            between_polls *= 2
            waiting = await self._store.waiting()

    async def _stay_awake(self) -> bool:
        """Stay awake for a moment, looking for work now and then; True if there was some. If it fell asleep at once,
        all writers of a busy app would ring again, and queue for NOTIFY's lock."""
        await self._locks.stay_awake()
        until = time.monotonic() + STAY_AWAKE_SECONDS
        while time.monotonic() < until and not self._stopping:
            with self._moving_within(LOOK_SECONDS):
                source = await self._bell.wait(LOOK_SECONDS)
            if self._has_work(await self._store.waiting()):
                self._metrics.wakeups_total.inc(source)
                return True
        return False

    def _until_due(self, waiting: Waiting) -> float:
        """Seconds until the next prompt may be claimed, by its `not_before` and by the sending rate."""
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
