"""Naive variants, each with one of the usual mistakes: what the checks of tests/fault must find.

`python -m tests.fault.naive NAME` runs the daemon with that mistake; those in the database's functions are in
tests/fault/naive_sql.py. Nothing here is ever shipped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import google.auth.transport.requests

from pgherald import (
    dispatcher,
    fcm,
    frames,
    listener,
    oauth,
    recorder,
    segments,
    service,
    sessions,
    spool,
    store,
    transport,
    worker,
)
from pgherald.config import load_settings
from pgherald.log import describe_exception, log
from pgherald.message import build_message
from pgherald.model import Code, DispatchSummary, Unknown
from pgherald.outcome import Rejected, Unsure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pgherald.frames import Entry
    from pgherald.model import DispatchResult, Prompt, PromptId
    from pgherald.outcome import Answer
    from pgherald.recorder import Outcome


def retries_on_doubt() -> None:
    """A push whose answer was lost is sent again at once, as any HTTP client with retries does."""
    send = fcm.FcmClient.send

    async def stubborn(self: fcm.FcmClient, message: bytes, deadline: float) -> Answer:
        for _ in range(3):
            answer = await send(self, message, time.monotonic() + (deadline - time.monotonic()))
            if not isinstance(answer, Unsure):
                return answer
            deadline = time.monotonic() + 2
        return answer

    fcm.FcmClient.send = stubborn  # type: ignore[method-assign]


def doubts_everything() -> None:
    """Whatever is not a yes may have been one."""
    send = fcm.FcmClient.send

    async def doubt(self: fcm.FcmClient, message: bytes, deadline: float) -> Answer:
        answer = await send(self, message, deadline)
        return Unsure(answer.code) if isinstance(answer, Rejected) else answer

    fcm.FcmClient.send = doubt  # type: ignore[method-assign]


def knows_no_deadline() -> None:
    """Time-outs are for each read and write, as in most HTTP clients, and none is for the whole."""
    post = transport.HttpTransport.post

    async def patient(
        self: transport.HttpTransport, url: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> fcm.Response:
        return await post(self, url, headers, body, deadline + 3600)

    transport.HttpTransport.post = patient  # type: ignore[method-assign]


def knows_no_lease() -> None:
    """What was claimed is sent, however long ago that was."""
    dispatch = dispatcher.PushNotificationDispatcher.dispatch

    async def late(self: dispatcher.PushNotificationDispatcher, payload: Prompt) -> DispatchResult:
        return await dispatch(self, payload._replace(claimed_mono=time.monotonic()))

    dispatcher.PushNotificationDispatcher.dispatch = late  # type: ignore[method-assign]


def brings_its_token() -> None:
    """No mistake: an access token made elsewhere, for a machine whose clock Google would not take."""

    held = foreign_token()

    async def token(self: oauth.OAuth) -> str:
        return held

    oauth.OAuth.token = token  # type: ignore[method-assign]


def foreign_token() -> str:
    """Ask for one in a process whose clock is right."""
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "FAKETIME")}
    command = [sys.executable, "-m", "tests.fault.naive", "token"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def print_token() -> None:
    """The access token of the credentials in the environment."""
    settings = load_settings(os.environ)
    credentials, _ = oauth.load_credentials(settings.fcm_credentials, settings.fcm_project)
    credentials.refresh(google.auth.transport.requests.Request())  # type: ignore[no-untyped-call]
    sys.stdout.write(credentials.token or "")


def keeps_no_spool() -> None:
    """What FCM accepted is in memory until the database has it."""

    async def forget(_self: spool.Spool, _entries: Sequence[Entry]) -> None:
        return None

    spool.Spool.append = forget  # type: ignore[assignment,method-assign]


def replays_nothing() -> None:
    """The spool is written, and never read."""
    spool.Spool.replay = lambda _self: []  # type: ignore[assignment,method-assign]


def takes_its_word_back() -> None:
    """An acceptance counts as recorded before it is: the entry goes when the settle begins."""
    write = recorder.Recorder._write  # noqa: SLF001

    async def early(self: recorder.Recorder, batch: Sequence[Outcome]) -> None:
        await self._journal.done([each.entry.prompt_id for each in batch if each.entry is not None])
        await write(self, batch)

    recorder.Recorder._write = early  # type: ignore[method-assign]  # noqa: SLF001


def gives_up_on_records() -> None:
    """A record that the database did not take at once is logged and dropped."""

    def drop(self: recorder.Recorder, batch: Sequence[Outcome], error: BaseException) -> None:
        for outcome in batch:
            outcome.tried = True
        log.error("record_dropped", count=len(batch), exception=describe_exception(error))

    async def done(self: spool.Spool, ids: Iterable[PromptId]) -> None:
        return None

    recorder.Recorder._owe = drop  # type: ignore[method-assign]  # noqa: SLF001
    replays_nothing()


def resends_when_unrecorded() -> None:
    """A push whose record failed is put back into the queue: the usual "at least once"."""
    owe = recorder.Recorder._owe  # noqa: SLF001

    def put_back(self: recorder.Recorder, batch: Sequence[Outcome], error: BaseException) -> None:
        for outcome in batch:
            settlement = outcome.settlement
            outcome.settlement = type(settlement)(
                settlement.prompt_id, settlement.epoch, "retry", settlement.at, "DATABASE", settlement.at
            )
        owe(self, batch, error)

    recorder.Recorder._owe = put_back  # type: ignore[method-assign]  # noqa: SLF001


def never_stops_claiming() -> None:
    """A spool that fails is logged, and the sending goes on."""
    spool.Spool.failing = property(lambda _self: False)  # type: ignore[assignment,method-assign]


def shares_the_spool() -> None:
    """No lock: two daemons may work on one spool."""
    segments.fcntl.flock = lambda *_: None  # type: ignore[attr-defined]


def logs_what_it_sends() -> None:
    """The message goes to the log, for debugging."""
    send = fcm.FcmClient.send

    async def chatty(self: fcm.FcmClient, message: bytes, deadline: float) -> Answer:
        sys.stderr.write(f"sending {message.decode()}\n")
        return await send(self, message, deadline)

    fcm.FcmClient.send = chatty  # type: ignore[method-assign]


def has_no_pulse() -> None:
    """The listener waits for a notification as long as it takes, and proves nothing in between."""
    listener.HEARTBEAT = 3600.0  # type: ignore[misc]
    sessions.KEEPALIVES = {}  # type: ignore[misc]
    store.KEEPALIVES = {}  # type: ignore[attr-defined]


def pings_from_a_thread() -> None:
    """The watchdog is fed by a thread of its own, which goes on whatever the event loop does."""

    async def feed(notifier: Any, environ: Any, *_: Any) -> None:
        def for_ever() -> None:
            while True:
                notifier.watchdog()
                time.sleep(0.1)

        threading.Thread(target=for_ever, daemon=True).start()

    service._feed_watchdog = feed  # type: ignore[assignment]  # noqa: SLF001
    blocks_its_loop()


def blocks_its_loop() -> None:
    """No mistake of the watchdog's, but something that blocks the loop for good as soon as the daemon has sent."""
    send = fcm.FcmClient.send

    async def block(self: fcm.FcmClient, message: bytes, deadline: float) -> Answer:
        await send(self, message, deadline)
        sys.stderr.write("the loop is blocked\n")
        time.sleep(3600)  # noqa: ASYNC251 - this is the fault
        raise AssertionError

    fcm.FcmClient.send = block  # type: ignore[method-assign]


def forgets_what_it_asked_for() -> None:
    """A claim whose answer does not come before the end is left to itself."""

    async def claim(self: worker.Worker, count: int, touched: int) -> store.Claimed:
        return await self._store.claim(self._config.owner, count, self._config.lease, touched=touched)

    worker.Worker._claim = claim  # type: ignore[method-assign]  # noqa: SLF001


def ends_at_once() -> None:
    """SIGTERM ends the process, whatever is under way."""

    async def end(*_: object) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _number in signals:
                os._exit(0)

    service._stop_on_signal = end  # type: ignore[assignment]  # noqa: SLF001


def doubts_what_never_left() -> None:
    """Whatever a stop interrupts may have been sent."""
    dispatcher.CancelledUnsent = ZeroDivisionError  # type: ignore[attr-defined,assignment]


def takes_back_what_left() -> None:
    """What a stop interrupts goes back into the queue, sent or not."""
    outcome = dispatcher.PushNotificationDispatcher._outcome  # noqa: SLF001

    def back(self: dispatcher.PushNotificationDispatcher, prompt: Prompt, result: DispatchResult) -> Outcome:
        if isinstance(result, Unknown):
            return dispatcher.release(prompt)
        return outcome(self, prompt, result)

    dispatcher.PushNotificationDispatcher._outcome = back  # type: ignore[method-assign]  # noqa: SLF001


def never_waits() -> None:
    """What cannot be had now is asked for again at once."""
    worker.FIRST_WAIT = 0.0  # type: ignore[misc]
    worker.reconnect_delay = lambda *_: 0.0  # type: ignore[attr-defined]
    described = store.make_conninfo  # type: ignore[attr-defined]
    store.make_conninfo = partial(described, options="-c lock_timeout=1ms")  # type: ignore[attr-defined]


def listens_once() -> None:
    """A listener whose session ended was a listener."""
    listener.reconnect_delay = lambda *_: 3600.0  # type: ignore[attr-defined]


def trusts_its_clock() -> None:
    """Records say when this machine thinks that it was."""
    brings_its_token()
    dispatcher.database_time = lambda prompt: datetime.now(UTC)


def takes_no_connection_for_doubt() -> None:
    """An exception is an exception: whatever went wrong on the way, the push may have arrived."""
    post = transport.HttpTransport.post

    async def doubt(
        self: transport.HttpTransport, url: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> fcm.Response:
        try:
            return await post(self, url, headers, body, deadline)
        except fcm.NotSent:
            raise fcm.Unsure(Code.CONNECTION_LOST) from None

    transport.HttpTransport.post = doubt  # type: ignore[method-assign]


def never_gives_up() -> None:
    """A push that is worth sending is worth sending late."""
    outcome = dispatcher.PushNotificationDispatcher._outcome  # noqa: SLF001

    def for_ever(self: dispatcher.PushNotificationDispatcher, prompt: Prompt, result: DispatchResult) -> Outcome:
        later = prompt._replace(expires_at=prompt.expires_at + timedelta(days=1))
        return outcome(self, later, result)

    dispatcher.PushNotificationDispatcher._outcome = for_ever  # type: ignore[method-assign]  # noqa: SLF001


def believes_the_payload() -> None:
    """What a notification says is what is to be done, so that nobody has to look into the tables."""
    senders: list[fcm.FcmClient] = []
    made = fcm.FcmClient.__init__

    def remember(self: fcm.FcmClient, *arguments: Any) -> None:
        made(self, *arguments)
        senders.append(self)

    async def obey(self: sessions.ListenSession, seconds: float) -> bool:
        async for note in self._connection.notifies(timeout=seconds, stop_after=1):
            if note.payload.startswith("{"):
                await senders[0].send(note.payload.encode(), time.monotonic() + 1)
            return True
        return False

    fcm.FcmClient.__init__ = remember  # type: ignore[method-assign,assignment]
    sessions.ListenSession.notified = obey  # type: ignore[method-assign]


def one_exception_ends_the_batch() -> None:
    """All messages of a batch are made first; one that cannot be made ends it."""
    dispatch_prompts = dispatcher.PushNotificationDispatcher.dispatch_prompts

    async def together(self: dispatcher.PushNotificationDispatcher, prompts: Sequence[Prompt]) -> DispatchSummary:
        try:
            for prompt in prompts:
                for device in prompt.devices:
                    build_message(prompt, device, ttl_seconds=60, expires_at=prompt.expires_at)
        except ValueError:
            return DispatchSummary(0, len(prompts), 0)
        return await dispatch_prompts(self, prompts)

    dispatcher.PushNotificationDispatcher.dispatch_prompts = together  # type: ignore[method-assign]


def trusts_lengths() -> None:
    """The spool is read by the lengths that stand in it, as far as they make sense."""

    def read(data: bytes) -> Any:
        entries, at = [], 0
        while (start := at + frames._HEAD_BYTES) <= len(data):  # noqa: SLF001
            end = start + int.from_bytes(data[at + 4 : at + 8], "little")
            entry = frames._entry(data[start:end])  # noqa: SLF001
            if entry is None:
                break
            entries.append(entry)
            at = end
        return frames.Content(entries, max(0, len(data) - at), [])

    frames.read = read


def goes_on_after_the_tail() -> None:
    """As `trusts_lengths`, and what is new is written behind whatever the last run left."""
    trusts_lengths()
    load = segments.Disk.load

    def reopen(self: Any) -> Any:
        found = load(self)
        if self.segments:
            self.active = self.segments[-1]
            self._active_fd = os.open(self.active.path, os.O_WRONLY | os.O_APPEND)
        return found

    segments.Disk.load = reopen  # type: ignore[method-assign]


VARIANTS: Final[dict[str, Callable[[], None]]] = {
    each.__name__: each
    for each in (
        retries_on_doubt,
        doubts_everything,
        knows_no_deadline,
        knows_no_lease,
        brings_its_token,
        keeps_no_spool,
        replays_nothing,
        takes_its_word_back,
        gives_up_on_records,
        resends_when_unrecorded,
        never_stops_claiming,
        shares_the_spool,
        logs_what_it_sends,
        has_no_pulse,
        pings_from_a_thread,
        blocks_its_loop,
        forgets_what_it_asked_for,
        ends_at_once,
        takes_back_what_left,
        doubts_what_never_left,
        never_waits,
        listens_once,
        trusts_its_clock,
        takes_no_connection_for_doubt,
        never_gives_up,
        believes_the_payload,
        one_exception_ends_the_batch,
        trusts_lengths,
        goes_on_after_the_tail,
    )
}


def main() -> int:
    """Run the daemon with one mistake."""
    if sys.argv[1] == "token":
        print_token()
        return 0
    VARIANTS[sys.argv[1]]()
    return service.run(os.environ)


if __name__ == "__main__":
    sys.exit(main())
