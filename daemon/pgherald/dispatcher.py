"""From a claimed prompt to its outcome: at most one accepted push each, many at once, and a record of every one.

`PushNotificationDispatcher` is what the daemon runs on, and what a program of one's own may use with dependencies of
its own: `dispatch` sends one prompt and says what became of it, `dispatch_prompts` sends a batch and writes the
records, `evaluate_and_dispatch` decides for one person first. A prompt that comes in here has been claimed, and the
claim committed, before; nothing here decides who is due, and no transaction is open while FCM is asked.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Final, Protocol, assert_never

import anyio

from pgherald.backoff import Told, retry_delay
from pgherald.fcm import CancelledUnsent
from pgherald.frames import Entry
from pgherald.log import log, token_tag
from pgherald.message import MessageError, UnsendableToken, build_message
from pgherald.model import (
    Code,
    DispatchResult,
    DispatchSummary,
    Failed,
    NoToken,
    Revoked,
    Sent,
    TokenRevoked,
    Unknown,
)
from pgherald.outcome import Accepted, Rejected, TokenInvalid, Unsure
from pgherald.recorder import WRITE_PATIENCE, Outcome
from pgherald.store import Settlement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pgherald.metrics import Metrics
    from pgherald.model import Device, Prompt, PromptId, UserId
    from pgherald.outcome import Answer
    from pgherald.pacing import Pacing
    from pgherald.recorder import Recorder, Records
    from pgherald.store import Claimed

LEASE_DEADLINES: Final = 4.0
"""A claim is good for so many send deadlines: a first send, and a few more devices or a fresh OAuth token after it."""

GATHER_SECONDS: Final = 0.02
"""How long a claim may wait for more slots, although some are free already: so that it is not for one prompt alone."""

NO_DEVICE_TOKEN: Final = "no_device_token"

_OK: Final = Code.OK  # Python 3.11 calls a function to look it up


class Sender(Protocol):
    """The way to FCM: `pgherald.fcm.FcmClient`."""

    async def send(self, message: bytes, deadline: float) -> Answer:
        """Send once, before `deadline` (time.monotonic()); never raises but for cancellation, which is CancelledUnsent
        if nothing had left."""
        ...


class Claims(Protocol):
    """What `evaluate_and_dispatch` asks of the database: `pgherald.store.Store`."""

    async def evaluate_person(self, user_id: UserId, scenario_type: str) -> list[PromptId]: ...

    async def claim_prompts(self, owner: str, prompts: Sequence[PromptId], lease: timedelta) -> Claimed: ...


@dataclass(frozen=True, slots=True)
class DispatchConfig:
    """Times in seconds. `owner` names who claims, in `herald.prompt.owner`."""

    owner: str = "pgherald"
    max_in_flight: int = 10
    send_deadline: float = 3.0

    @property
    def lease(self) -> timedelta:
        """How long a claim is good for; nothing is sent after it."""
        return timedelta(seconds=self.send_deadline * LEASE_DEADLINES)


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What `dispatch_prompts` and `evaluate_and_dispatch` work with."""

    claims: Claims
    dispatcher: PushNotificationDispatcher


async def dispatch_prompts(prompts: Sequence[Prompt], deps: Dependencies) -> DispatchSummary:
    """Send claimed prompts and write their records; see `PushNotificationDispatcher.dispatch_prompts`."""
    return await deps.dispatcher.dispatch_prompts(prompts)


async def evaluate_and_dispatch(
    user_id: UserId, scenario_type: str, config: DispatchConfig, deps: Dependencies
) -> DispatchSummary:
    """Evaluate the scenarios of one type for one person now, and send what is due: zeros when nothing is."""
    prompts = await deps.claims.evaluate_person(user_id, scenario_type)
    if not prompts:
        return DispatchSummary(0, 0, 0)
    claimed = await deps.claims.claim_prompts(config.owner, prompts, config.lease)
    return await dispatch_prompts(claimed.prompts, deps)


class PushNotificationDispatcher:
    """Sends claimed prompts, at most `config.max_in_flight` at once, over all calls together."""

    def __init__(
        self,
        sender: Sender,
        recorder: Recorder,
        pacing: Pacing,
        metrics: Metrics,
        config: DispatchConfig,
    ) -> None:
        self._sender = sender
        self._recorder = recorder
        self._pacing = pacing
        self._metrics = metrics
        self._config = config
        self._rng = Random()
        self._lease_seconds = config.lease.total_seconds()
        self._slots = anyio.Semaphore(config.max_in_flight, fast_acquire=True)
        self._expected = 0
        self._under_way = 0
        self._wanted = 0  # free slots that somebody waits for; 0: nobody
        self._freed = anyio.Event()
        self._told = Told()  # of refusals, by scenario and code: it may be all of its pushes
        recorder.when_finished(self._tell_free)

    def expect(self, count: int) -> None:
        """Keep slots for so many prompts that are being claimed, until `dispatch_prompts` is called with them. If
        negative: so many of them do not come."""
        self._expected += count
        if count < 0:
            self._tell_free()

    async def wait_free(self) -> int:
        """How many prompts may be claimed so that each has a slot at once; waits until it is one at least.

        At first it waits a moment for a quarter of all slots, so that under load claims come in batches.
        """
        with anyio.move_on_after(GATHER_SECONDS):
            await self._wait_free(max(1, self._config.max_in_flight // 4))
        await self._wait_free(1)
        return self._free()

    async def _wait_free(self, count: int) -> None:
        self._wanted = count
        try:
            while self._free() < count:
                self._freed = anyio.Event()
                await self._freed.wait()
        finally:
            self._wanted = 0

    def _tell_free(self) -> None:
        if 0 < self._wanted <= self._free():
            self._freed.set()

    def _free(self) -> int:
        """Slots that are free. Outcomes without their record take slots too, as far as there are more of them than
        slots: so a disk or a database that stalls stops the sending of what could not be recorded."""
        slots = self._config.max_in_flight
        return slots - self._expected - self._under_way - max(0, self._recorder.unwritten - slots)

    async def dispatch_prompts(self, prompts: Sequence[Prompt]) -> DispatchSummary:
        """Send a batch and write its records: one failure never stops the rest, and nothing is raised but cancellation.

        Cancelled, it gives back the prompts that have not left yet; one that may have left is unknown.
        """
        if not prompts:
            return DispatchSummary(0, 0, 0)
        self._expected = max(0, self._expected - len(prompts))
        self._under_way += len(prompts)
        summary = _Summary()
        # A plain asyncio task for each prompt: one of anyio costs more than all else that is done for a push. All of
        # them end in here.
        start = asyncio.get_running_loop().create_task
        tasks = [start(self._dispatch_and_record(prompt, summary)) for prompt in prompts]
        try:
            await asyncio.wait(tasks)
            await summary.written()
        except BaseException:
            with anyio.CancelScope(shield=True):
                # A task that is cancelled before it began runs no code of its own, so its prompt would have no outcome.
                await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            with anyio.move_on_after(WRITE_PATIENCE, shield=True):
                await summary.written()
            raise
        return summary.counts()

    async def give_back(self, prompts: Sequence[Prompt]) -> None:
        """Make claimed prompts ready again for which nothing was sent; returns when that is written or owed."""
        async with anyio.create_task_group() as tasks:
            for prompt in prompts:
                tasks.start_soon(self._recorder.record, release(prompt))

    async def dispatch(self, payload: Prompt) -> DispatchResult:
        """Send one prompt, to the person's latest device or to all; nothing is written but metrics.

        A device that FCM calls invalid is named in `revoked` of the result and the next one tried.
        """
        if not payload.devices:
            return NoToken()
        revoked: list[Revoked] = []
        accepted: Sent | None = None
        doubt: Unknown | None = None
        failure: Failed | None = None
        for number, device in enumerate(payload.devices):
            if number > 0:
                self._pacing.charge(time.monotonic(), 1)  # the worker's allowance was for one device
            try:
                answer = await self._ask(payload, device)
            except CancelledUnsent:
                if accepted is not None or doubt is not None:
                    raise asyncio.CancelledError from None  # it has not left to this device, but to another it may have
                raise
            match answer:
                case Accepted(name):
                    accepted = accepted or Sent(name, device.device_id)
                case Unsure(code):
                    doubt = doubt or Unknown(code)
                case Rejected(code, transient, retry_after, _):
                    if not transient:
                        self._tell_refused(payload, code)
                    failure = failure or Failed(code, transient, retry_after)
                case TokenInvalid(code):
                    if self._pacing.may_revoke(time.monotonic(), code):
                        revoked.append(Revoked(device, code))
                        continue
                    failure = failure or Failed(code, transient=True)
                case _:
                    assert_never(answer)
            if not payload.all_devices:
                break
        gone = tuple(revoked)
        if accepted is not None:
            return Sent(accepted.message_name, accepted.device_id, gone)
        if doubt is not None:
            return Unknown(doubt.error_code, gone)
        if failure is not None:
            return Failed(failure.error_code, failure.transient, failure.retry_after, gone)
        return TokenRevoked(gone[-1].error_code, gone)

    def _tell_refused(self, prompt: Prompt, code: Code) -> None:
        """Our message, project or endpoint is wrong, so only a person can mend that."""
        if self._told.is_due((prompt.scenario_id, code), time.monotonic()):
            log.error(
                "push_refused",
                prompt_id=prompt.prompt_id,
                scenario_id=prompt.scenario_id,
                scenario_type=prompt.scenario_type,
                error_code=code,
            )

    async def _ask(self, prompt: Prompt, device: Device) -> Answer:
        """One request for one device, if there is still time for it and its platform is not paused."""
        now = time.monotonic()
        if device.platform not in self._pacing.platforms(now):
            return Rejected(Code.THIRD_PARTY_AUTH_ERROR, transient=True)
        passed = now - prompt.claimed_mono
        expires_in = (prompt.expires_at - prompt.claimed_at).total_seconds() - passed
        try:
            message = build_message(prompt, device, ttl_seconds=int(expires_in), expires_at=prompt.expires_at)
        except UnsendableToken:
            return TokenInvalid(Code.INVALID_ARGUMENT)
        except MessageError:
            return Rejected(Code.INVALID_ARGUMENT, transient=False)
        if passed + self._config.send_deadline > self._lease_seconds:
            # This process stood still for a while: another daemon may have swept the claim, so nothing may be sent now.
            return Rejected(Code.LEASE_EXPIRED, transient=True)
        self._metrics.in_flight.inc()
        try:
            answer = await self._sender.send(message, now + self._config.send_deadline)
        finally:
            self._metrics.in_flight.inc(by=-1)
        after = time.monotonic()
        self._metrics.send_seconds.observe(after - now)
        self._metrics.fcm_responses_total.inc(_OK if isinstance(answer, Accepted) else answer.code)
        self._pacing.on_answer(answer, device.platform, after)
        if isinstance(answer, TokenInvalid):
            log.debug("token_invalid", device_id=device.device_id, token_tag=token_tag(device.token.reveal()))
        return answer

    async def _dispatch_and_record(self, prompt: Prompt, summary: _Summary) -> None:
        """One prompt: wait for a slot, dispatch, hand the outcome to the recorder. The one broad except is here."""
        started = False
        result: DispatchResult
        try:
            if self._slots.value > 0:
                self._slots.acquire_nowait()
            else:
                await self._slots.acquire()
            started = True
            try:
                result = await self.dispatch(prompt)
            finally:
                self._slots.release()
        except asyncio.CancelledError as error:
            # A prompt that has not left is given back; one that may have left is unknown.
            started = started and not isinstance(error, CancelledUnsent)
            result = Unknown(Code.CONNECTION_LOST)
        except Exception as error:  # noqa: BLE001 - whatever it was, this prompt ends here and the others go on
            started = True
            log.crash(error, "dispatch_crashed", prompt_id=prompt.prompt_id)
            result = Unknown(Code.OTHER)
        self._under_way -= 1
        self._tell_free()
        outcome = self._outcome(prompt, result) if started else release(prompt)
        summary.add(result, self._recorder.take(outcome))

    def _outcome(self, prompt: Prompt, result: DispatchResult) -> Outcome:
        """What to write for a result; times are the database's clock, whatever this machine's says."""
        at = database_time(prompt)
        match result:
            case Sent(name, device_id, revoked):
                self._metrics.due_to_sent_seconds.observe((at - prompt.due_at).total_seconds())
                return Outcome(
                    Settlement(prompt.prompt_id, prompt.epoch, "sent", at, device_id=device_id, message_name=name),
                    prompt.scenario_type,
                    revoked,
                    Entry(prompt.prompt_id, prompt.epoch, prompt.notification_id, device_id, name, at),
                )
            case NoToken():
                settlement = Settlement(prompt.prompt_id, prompt.epoch, "skipped", at, NO_DEVICE_TOKEN)
                return Outcome(settlement, prompt.scenario_type)
            case TokenRevoked(code, revoked):
                settlement = Settlement(prompt.prompt_id, prompt.epoch, "failed", at, code)
                return Outcome(settlement, prompt.scenario_type, revoked)
            case Failed(code, transient, retry_after, revoked):
                retry_at = at + timedelta(seconds=retry_delay(prompt.attempt, retry_after, rng=self._rng))
                again = transient and retry_at < prompt.expires_at
                settlement = Settlement(
                    prompt.prompt_id,
                    prompt.epoch,
                    "retry" if again else "failed",
                    at,
                    code,
                    retry_at if again else None,
                )
                return Outcome(settlement, prompt.scenario_type, revoked)
            case Unknown(code, revoked):
                log.warning(
                    "prompt_unknown", prompt_id=prompt.prompt_id, scenario_type=prompt.scenario_type, reason=code
                )
                settlement = Settlement(prompt.prompt_id, prompt.epoch, "unknown", at, code)
                return Outcome(settlement, prompt.scenario_type, revoked)
            case _:
                assert_never(result)


def release(prompt: Prompt) -> Outcome:
    """The outcome of a prompt for which nothing was sent: ready again at once, as if it had not been claimed."""
    at = database_time(prompt)
    return Outcome(Settlement(prompt.prompt_id, prompt.epoch, "release", at, retry_at=at), prompt.scenario_type)


def database_time(prompt: Prompt) -> datetime:
    """Now by the database's clock: its time at the claim, plus what this machine's monotonic clock counted since."""
    return prompt.claimed_at + timedelta(seconds=time.monotonic() - prompt.claimed_mono)


class _Summary:
    """What came of a batch so far; `records` are the recorder's batches that its outcomes are in."""

    __slots__ = ("dispatched", "failed", "records", "skipped")

    def __init__(self) -> None:
        self.dispatched = self.failed = self.skipped = 0
        self.records: set[Records] = set()

    def add(self, result: DispatchResult, records: Records) -> None:
        """One more has ended."""
        match result:
            case Sent():
                self.dispatched += 1
            case NoToken():
                self.skipped += 1
            case TokenRevoked() | Failed() | Unknown():
                self.failed += 1
            case _:
                assert_never(result)
        self.records.add(records)

    async def written(self) -> None:
        """Wait until each is in the database or owed."""
        for records in self.records:
            await records.finished.wait()

    def counts(self) -> DispatchSummary:
        return DispatchSummary(self.dispatched, self.failed, self.skipped)
