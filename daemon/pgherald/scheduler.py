"""What happens by the clock: scheduled evaluation where pg_cron does not do it, the sweep, retention, and measuring.

Every daemon sweeps and measures; the schedule itself is run by one of them, whoever holds its advisory lock, so it
moves within seconds when that daemon dies. Run by the service.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import anyio

from pgherald.config import Scheduler as Mode
from pgherald.listener import Wakeup
from pgherald.log import describe_exception, log
from pgherald.sessions import STORE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import NoReturn

    from pgherald.dispatcher import DispatchConfig
    from pgherald.health import Health
    from pgherald.listener import Doorbell
    from pgherald.metrics import Metrics
    from pgherald.oauth import OAuth
    from pgherald.pacing import Pacing
    from pgherald.recorder import Recorder
    from pgherald.sessions import Locks
    from pgherald.spool import Spool
    from pgherald.store import State, Store

EVALUATE_SECONDS: Final = 60.0
"""How often all scenarios are evaluated, as pg_cron's job does."""

CRON_SILENCE: Final = 150.0
"""Seconds without a scheduled run after which pg_cron is taken to be gone, and the daemon runs the schedule itself."""

SWEEP_SECONDS: Final = 2.5
MEASURE_SECONDS: Final = 5.0
INVARIANT_SECONDS: Final = 60.0
MAINTAIN_SECONDS: Final = 86_400.0
MAINTAIN_AGAIN_SECONDS: Final = 600.0
"""Seconds until a batch that the database would not delete is tried again: it may have worked for minutes in vain."""

SILENCE_SECONDS: Final = 20.0
"""Seconds without an answer of the database, or of the disk to the spool, after which /readyz says that nothing is
sent. A connection that breaks is noticed in half of that; a server that only says nothing is waited for."""

PARTIAL_BREAKERS: Final = frozenset({"apns_auth", "sender_mismatch"})
"""Those that do not hold back every push."""


@dataclass(slots=True)
class _Clock:
    """When a recurring duty is next due, by the monotonic clock."""

    period: float
    due: float = 0.0

    def strikes(self, now: float) -> bool:
        """Whether it is due now; if so, it is due again after a period."""
        if now < self.due:
            return False
        self.due = now + self.period
        return True


class Scheduler:
    """The clockwork of one daemon."""

    def __init__(
        self,
        store: Store,
        locks: Locks,
        bell: Doorbell,
        recorder: Recorder,
        pacing: Pacing,
        spool: Spool,
        oauth: OAuth,
        metrics: Metrics,
        health: Health,
        config: DispatchConfig,
        mode: Mode,
    ) -> None:
        self._store = store
        self._locks = locks
        self._bell = bell
        self._recorder = recorder
        self._pacing = pacing
        self._spool = spool
        self._oauth = oauth
        self._metrics = metrics
        self._health = health
        self._config = config
        self._mode = mode
        self._cron: bool | None = None
        self._seen: str | None = None
        self._schema_version: int | None = None
        self._own_run: datetime | None = None  # the last scheduled run of this daemon
        self._cron_ran = time.monotonic()  # somebody else's, as far as is known; at first it is trusted
        self._stands_in = False  # for pg_cron, which is silent
        self._evaluate = _Clock(EVALUATE_SECONDS)
        self._sweep = _Clock(SWEEP_SECONDS)
        self._measure = _Clock(MEASURE_SECONDS)
        self._check = _Clock(INVARIANT_SECONDS)
        self._maintain = _Clock(MAINTAIN_SECONDS, time.monotonic() + MAINTAIN_SECONDS / 24)
        self._maintaining = False
        self._evaluating = False
        self._answered_at = time.monotonic()  # when the database last answered what every daemon asks it

    async def run(self) -> NoReturn:
        """Do each duty when it is due, for ever; what the database would not let through is tried the next time.

        Four tasks, so that no duty waits for one that takes long: the schedule, because an evaluation may; what every
        daemon asks of the database; what is measured without the database, which may not answer; probes of the disk.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._every_second, self._keep_schedule)
            tasks.start_soon(self._every_second, self._measure_here)
            tasks.start_soon(self._every_second, self._probe_spool)
            await self._every_second(self._keep_house)
        raise AssertionError("none of them ends")

    async def _every_second(self, duties: Callable[[float], Awaitable[None]]) -> NoReturn:
        while True:
            try:
                await duties(time.monotonic())
            except (*STORE_ERRORS, TimeoutError) as error:
                log.debug("duty_put_off", exception=describe_exception(error))
            await anyio.sleep(1.0)

    async def _keep_house(self, now: float) -> None:
        """What every daemon does: sweep, measure, check the invariants."""
        for clock, duty in (
            (self._sweep, self._sweep_lost),
            (self._measure, self._take_measure),
            (self._check, self._check_invariants),
        ):
            if clock.strikes(now):
                await duty()
                self._answered_at = time.monotonic()

    async def _probe_spool(self, _: float) -> None:
        if self._spool.failing and await self._spool.probe():
            self._bell.ring(Wakeup.POLL)

    async def _keep_schedule(self, now: float) -> None:
        """What one daemon does, for all: scheduled runs and retention."""
        if await self._is_mine():
            if self._evaluate.strikes(now):
                if self._cron and not self._stands_in:
                    log.warning("cron_silent", seconds=CRON_SILENCE)
                    self._stands_in = True
                await self._evaluate_all()
            self._maintaining = self._maintaining or self._maintain.strikes(now)
            if self._maintaining:
                await self._maintain_tables()

    async def _is_mine(self) -> bool:
        """Whether this daemon runs the schedule now."""
        match self._mode:
            case Mode.OFF:
                return False
            case Mode.AUTO if await self._cron_works():
                return False
            case _:
                return await self._locks.lead()

    async def _cron_works(self) -> bool:
        """Whether pg_cron is there and not silent. Its tables are not for this role; the runs it makes are evidence."""
        if self._cron is None:
            self._cron = await self._store.has_cron()
            log.info("scheduler_chosen", scheduler="pg_cron" if self._cron else "internal")
        if not self._cron:
            return False
        works = time.monotonic() - self._cron_ran < CRON_SILENCE
        self._stands_in = self._stands_in and not works
        return works

    async def _evaluate_all(self) -> None:
        self._evaluating = True
        began = time.monotonic()
        try:
            self._own_run, runs = await self._store.evaluate()
        except TimeoutError:
            log.error("evaluation_hangs", seconds=round(time.monotonic() - began, 1), source="schedule")
            return
        finally:
            self._evaluating = False
        for run in runs:
            if run.held:
                log.error("scenario_held", scenario_id=run.scenario_id)
            if run.failed:
                log.error("evaluation_failed", scenario_id=run.scenario_id, source="schedule")
        if any(run.prompts for run in runs):
            self._bell.ring(Wakeup.POLL)
        log.debug("evaluated", count=len(runs), prompts=sum(run.prompts for run in runs))

    async def _sweep_lost(self) -> None:
        for prompt_id, scenario_type, status in await self._store.sweep(timedelta(seconds=self._config.send_deadline)):
            self._metrics.prompts_total.inc(scenario_type, "unknown")
            log.error(
                "prompt_unknown", prompt_id=prompt_id, scenario_type=scenario_type, status=status, reason="owner_lost"
            )
            if status == "ready":
                self._bell.ring(Wakeup.POLL)

    async def _maintain_tables(self) -> None:
        """One batch: evaluations come in between."""
        try:
            self._maintaining = await self._store.maintain()
        except (*STORE_ERRORS, TimeoutError) as error:
            self._maintaining = False
            self._maintain.due = time.monotonic() + MAINTAIN_AGAIN_SECONDS
            log.warning("maintenance_failed", exception=describe_exception(error))
            return
        if not self._maintaining:
            log.info("maintained")

    async def _take_measure(self) -> None:
        own_run = self._own_run
        state = await self._store.state(self._seen)
        for name in state.scenario_types:
            self._metrics.know_scenario_type(name)
        for run in state.runs:
            self._count_run(run)
        self._seen = state.seen
        if self._schema_version not in (None, state.schema_version):
            log.warning("schema_changed", version=str(state.schema_version))
            self._bell.ring(Wakeup.POLL)  # the worker's next claim finds out whether it may
        self._schema_version = state.schema_version
        last = state.last_evaluation_at
        # Not if it was this daemon's own run: that may have ended since the state was asked for, or have committed with
        # its answer still on the way.
        if last is not None and last not in (own_run, self._own_run) and not self._evaluating:
            self._cron_ran = max(self._cron_ran, time.monotonic() - (state.now - last).total_seconds())
        self._tell(state)

    async def _check_invariants(self) -> None:
        for invariant, violations in (await self._store.invariants()).items():
            self._metrics.know_invariant(invariant)
            if violations > self._metrics.invariant_violations.value(invariant):
                log.error("invariant_violated", invariant=invariant, count=violations)
            self._metrics.invariant_violations.set(violations, invariant)

    def _count_run(self, run: Mapping[str, Any]) -> None:
        scenario_type = run["scenario_type"]
        self._metrics.evaluation_seconds.observe(float(run["seconds"]), scenario_type)
        for gate, count in run["suppressed"].items():
            self._metrics.suppressed_total.inc(scenario_type, gate, by=count)
        if run["failed"]:
            self._metrics.evaluation_errors_total.inc(scenario_type)

    def _tell(self, state: State) -> None:
        for status, count in state.prompts.items():
            self._metrics.prompts.set(count, status)
        self._metrics.oldest_ready_seconds.set(state.oldest_ready_seconds)
        self._metrics.paused.set(float(state.paused))
        self._report("paused", state.paused)
        self._metrics.scenarios_held.set(state.held)
        self._metrics.notify_queue_usage_ratio.set(state.notify_queue_usage)
        if state.last_evaluation_at is not None:
            self._metrics.last_evaluation_timestamp_seconds.set(state.last_evaluation_at.timestamp())

    async def _measure_here(self, now: float) -> None:
        """What this process knows without the database."""
        self._report("spool_failing", self._spool.failing)
        self._report("records_owed", self._recorder.owed > self._config.max_in_flight)
        self._report("records_late", self._recorder.late(now) > SILENCE_SECONDS)
        self._report("database_silent", now - self._answered_at > SILENCE_SECONDS)
        self._metrics.oauth_expiry_timestamp_seconds.set(self._oauth.expiry_timestamp)
        for breaker, is_open in self._pacing.breakers(now).items():
            if is_open != bool(self._metrics.breaker_open.value(breaker)):
                if is_open:
                    log.error("breaker_opened", breaker=breaker)
                else:
                    log.info("breaker_closed", breaker=breaker)
            self._metrics.breaker_open.set(float(is_open), breaker)
            self._report(f"breaker_{breaker}", is_open, blocks=breaker not in PARTIAL_BREAKERS)

    def _report(self, reason: str, holds: bool, *, blocks: bool = True) -> None:
        """Have the health say that this keeps pushes from being sent, or does not any more."""
        if not holds:
            self._health.clear(reason)
        elif blocks:
            self._health.set_unready(reason)
        else:
            self._health.set_degraded(reason)
