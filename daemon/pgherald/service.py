"""The map of the program: how a daemon is put together, started, kept and stopped.

Start: settings, credentials, the schema's version, the spool (one daemon each, replayed), LISTEN, drain, and only
then READY. An outer task group holds listener, exporter, watchdog, OAuth and recorder; an inner one the work and the
schedule. Stop: claim nothing more, let what is under way come to its end within a deadline, settle, close; the listener
and the exporter go last. SIGHUP reads the settings and the credentials again: what can change at once does, and what
cannot is told.

The watchdog is fed from the event loop, and only while the worker moves: a database that is away is no reason to be
killed, a loop that hangs is.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import re
import signal
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from pgherald import access, exporter, schema
from pgherald.backoff import is_told
from pgherald.config import (
    FCM_CREDENTIALS,
    FCM_PROJECT,
    LISTEN_URL,
    LOG_LEVEL,
    MAX_RATE,
    METRICS_TLS_CERTIFICATE,
    METRICS_TLS_CLIENT_CA,
    METRICS_TLS_KEY,
    POLL_INTERVAL,
    PREFIX,
    SETTINGS,
    load_settings,
    read_settings_file,
)
from pgherald.dispatcher import DispatchConfig, PushNotificationDispatcher
from pgherald.errors import ConfigError
from pgherald.fcm import FcmClient
from pgherald.health import Health
from pgherald.listener import Doorbell, Listener
from pgherald.log import configure, describe_exception, log
from pgherald.metrics import Metrics
from pgherald.oauth import NoOAuthToken, OAuth, load_credentials
from pgherald.pacing import RAMP_SECONDS, Pacing
from pgherald.recorder import Recorder
from pgherald.scheduler import Scheduler
from pgherald.sessions import Locks
from pgherald.spool import Spool
from pgherald.store import Store
from pgherald.systemd import Notifier, watchdog_interval
from pgherald.tls import Guard, server_context
from pgherald.transport import HttpTransport
from pgherald.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from pgherald.config import Settings

DRAIN_DEADLINES: Final = 3.0
"""At a stop, what is under way may take so many send deadlines, and then the records a few seconds more."""

DRAIN_PATIENCE: Final = 20.0
"""Seconds that a start may drain what has waited before it says that it is ready; below systemd's time-out."""

CONNECT_PATIENCE: Final = 10.0
"""Seconds that a start by hand waits for a database that is not there."""

CONNECT_AGAIN: Final = 2.0
"""Seconds between two looks for it."""

REPORT_SECONDS: Final = 5.0
"""How often systemd is told how things are."""

GC_THRESHOLD: Final = 20_000
"""New containers between two looks for garbage: Python's own 700 are some twenty pushes."""

EXTENSION: Final = 30.0
"""Seconds by which a start that goes on (no database, a long spool or queue) puts off its time-out, again and again."""

RELOADABLE: Final = (
    *(FCM_CREDENTIALS, MAX_RATE, POLL_INTERVAL, LOG_LEVEL),
    *(METRICS_TLS_CERTIFICATE, METRICS_TLS_KEY, METRICS_TLS_CLIENT_CA),
)
"""What SIGHUP changes, and reads again where it is a file; every other setting needs a restart."""


def run(environ: Mapping[str, str], settings_file: Path | None = None) -> int:
    """Run a daemon until SIGTERM or SIGINT; 0 after a clean stop. Raises ConfigError for what cannot work.

    `settings_file` has more variables, which go before those of the environment; SIGHUP has it read again.
    """
    _hold_standard_files()
    faulthandler.enable(file=2)  # where each thread stood when the watchdog's SIGABRT came
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload

    def environment() -> dict[str, str]:
        return {**environ, **({} if settings_file is None else read_settings_file(settings_file))}

    settings = load_settings(environment())
    configure(settings.log_level)
    _lend_to_libraries(environment())
    # What there is now lives as long as the program; a push makes many small objects: look for garbage less often.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    anyio.run(_run, settings, environment, backend_options={"use_uvloop": True})
    return 0


def _hold_standard_files() -> None:
    """Open the files 0 to 2 where they are closed, so that none of ours gets such a number: libuv aborts when it closes
    one of them."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(file)


def _lend_to_libraries(environ: Mapping[str, str]) -> None:
    """Put what is not ours in the settings file (PGPASSFILE, SSL_CERT_FILE) where libpq and OpenSSL look for it."""
    os.environ.update({name: value for name, value in environ.items() if not name.startswith(PREFIX)})


async def _run(settings: Settings, environment: Callable[[], dict[str, str]]) -> None:
    environ = environment()
    notifier = Notifier.from_environ(environ)
    metrics = Metrics()
    health = Health()
    credentials, project = await anyio.to_thread.run_sync(
        load_credentials, settings.fcm_credentials, settings.fcm_project
    )
    guard = Guard(await anyio.to_thread.run_sync(server_context, settings))
    config = DispatchConfig(
        owner=f"{socket.gethostname()}:{os.getpid()}",
        max_in_flight=settings.max_in_flight,
        send_deadline=settings.send_deadline,
    )
    pacing = Pacing(settings.max_rate, ramp_seconds=0.0 if settings.sends_to_this_machine else RAMP_SECONDS)
    oauth = OAuth(credentials)
    bell = Doorbell()
    locks = Locks(settings.listen_url)
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        managed = bool(environ.get("NOTIFY_SOCKET"))
        if not await _unless_stopped(signals, notifier, partial(_check_database, settings, notifier, managed=managed)):
            log.info("stopped")
            return
        spool = await anyio.to_thread.run_sync(Spool.open, settings.state_dir, metrics)
        stack.push_async_callback(spool.close)
        store = await stack.enter_async_context(Store(settings.database_url, program=schema.shipped_version()))
        stack.push_async_callback(locks.aclose)
        transport = await stack.enter_async_context(HttpTransport(settings.max_in_flight))
        sender = FcmClient(transport, oauth, settings.fcm_endpoint, project)
        recorder = Recorder(store, spool, metrics)
        dispatcher = PushNotificationDispatcher(sender, recorder, pacing, metrics, config)
        worker = Worker(
            store,
            dispatcher,
            recorder,
            pacing,
            spool,
            bell,
            locks,
            metrics,
            health,
            config,
            poll_interval=settings.poll_interval,
        )
        listener = Listener(settings.listen_url, bell, metrics, health)
        scheduler = Scheduler(
            store,
            locks,
            bell,
            recorder,
            pacing,
            spool,
            oauth,
            metrics,
            health,
            config,
            settings.scheduler,
        )
        parts = _Parts(settings, project, notifier, metrics, health, pacing, oauth, worker, guard)
        async with anyio.create_task_group() as around:
            around.start_soon(_feed_watchdog, notifier, environ, parts)
            around.start_soon(_reload_on_signal, parts, environment)
            listen = await around.start(exporter.serve, settings.metrics_listen, metrics, health, guard)
            log.info("starting", listen=str(listen), path=settings.state_dir, project=project, pid=os.getpid())
            around.start_soon(oauth.run)
            await recorder.replay(spool.replay())
            around.start_soon(recorder.run)
            around.start_soon(listener.run)
            async with anyio.create_task_group() as work:
                work.start_soon(_stop_on_signal, signals, parts, work.cancel_scope, config)
                with anyio.move_on_after(CONNECT_PATIENCE):
                    await listener.heard.wait()
                work.start_soon(scheduler.run)
                work.start_soon(_announce, parts)
                await worker.run()
                work.cancel_scope.cancel()
            with anyio.CancelScope(shield=True), anyio.move_on_after(config.send_deadline):
                await recorder.pay()
            around.cancel_scope.cancel()
        log.info("stopped", entries=spool.entries)
    if worker.refusal is not None:
        raise worker.refusal


@dataclass(slots=True)
class _Parts:
    """What a reload changes and a report reads."""

    settings: Settings
    project: str
    notifier: Notifier
    metrics: Metrics
    health: Health
    pacing: Pacing
    oauth: OAuth
    worker: Worker
    guard: Guard
    stopping: bool = False

    def status(self) -> str:
        """One line for `systemctl status`."""
        now, metrics = self.health.snapshot(), self.metrics
        counts = ", ".join(
            f"{metrics.prompts_total.total(outcome):.0f} {outcome}" for outcome in ("sent", "failed", "unknown")
        )
        state = "draining" if self.stopping else "sending" if now.status == "ready" else str(now.status)
        reasons = [reason for reason in now.reasons if reason != "stopping"]
        why = f" ({', '.join(reasons)})" if reasons else ""
        return (
            f"{state}{why}: {counts} since start; {metrics.prompts.value('ready'):.0f} ready, "
            f"{metrics.in_flight.value():.0f} in flight, {metrics.spool_entries.value():.0f} in the spool; "
            f"the oldest waits {metrics.oldest_ready_seconds.value():.0f} s"
        )


async def _unless_stopped(
    signals: AsyncIterator[signal.Signals], notifier: Notifier, start: Callable[[], Awaitable[None]]
) -> bool:
    """Whether this part of a start came to its end, and no signal to stop before that: nothing has to drain yet."""
    stopped = False
    async with anyio.create_task_group() as group:

        async def stop() -> None:
            nonlocal stopped
            number = await anext(signals)
            stopped = True
            log.info("stopping", signal=signal.Signals(number).name)
            notifier.stopping()
            group.cancel_scope.cancel()

        group.start_soon(stop)
        await start()
        group.cancel_scope.cancel()
    return not stopped


async def _check_database(settings: Settings, notifier: Notifier, *, managed: bool) -> None:
    """Refuse connections that cannot work, of the listener too; those that are not there are waited for, or told."""
    await _check_schema(settings.database_url, notifier, managed=managed)
    if settings.listen_url != settings.database_url:
        try:
            await anyio.to_thread.run_sync(
                access.check_listening, settings.listen_url, settings.database_url, abandon_on_cancel=True
            )
        except access.NotNow as error:
            # Until it is back, polling finds the work.
            log.error("listener_unreachable", setting=LISTEN_URL.name, reason=error.reason)


async def _check_schema(conninfo: str, notifier: Notifier, *, managed: bool) -> None:
    """Refuse a database that this program cannot work with. One that is not there is waited for a little; under a
    service manager as long as it takes, for a machine that starts may have the daemon up before the database."""
    deadline = anyio.current_time() + CONNECT_PATIENCE
    failures = 0
    while True:
        try:
            version = await anyio.to_thread.run_sync(schema.check_for_daemon, conninfo, abandon_on_cancel=True)
            excess = await anyio.to_thread.run_sync(access.excess_rights, conninfo, abandon_on_cancel=True)
            break
        except access.NotNow as error:
            if not managed and anyio.current_time() > deadline:
                raise
            failures += 1
            if is_told(failures):
                log.warning("waiting_for_database", failures=failures, reason=error.reason)
            notifier.status(f"waiting for the database: {error}")
            notifier.extend_timeout(EXTENSION)
            await anyio.sleep(CONNECT_AGAIN)
    if version > schema.shipped_version():
        log.warning("schema_newer", version=str(version))
    for right in sorted(excess):
        log.warning("more_rights_than_needed", reason=right)


async def _announce(parts: _Parts) -> None:
    """Ready once it has listened and there was nothing left to do; a long backlog is worked off while it is ready."""
    with anyio.move_on_after(DRAIN_PATIENCE):
        await parts.worker.drained.wait()
    if parts.stopping:
        return
    parts.health.set_ready()
    parts.notifier.ready(parts.status())
    log.info("ready")


async def _stop_on_signal(
    signals: AsyncIterator[signal.Signals], parts: _Parts, scope: anyio.CancelScope, config: DispatchConfig
) -> None:
    """The first signal stops the claiming and sets a deadline for what is under way; the second ends that at once."""
    number = await anext(signals)
    parts.stopping = True
    parts.health.set_unready("stopping")
    log.info("stopping", signal=signal.Signals(number).name)
    parts.notifier.stopping(parts.status())
    parts.worker.stop()
    scope.deadline = anyio.current_time() + config.send_deadline * DRAIN_DEADLINES
    number = await anext(signals)
    log.warning("stopping_at_once", signal=signal.Signals(number).name)
    scope.cancel()


async def _feed_watchdog(notifier: Notifier, environ: Mapping[str, str], parts: _Parts) -> None:
    """Tell systemd that the event loop turns and the worker moves, that a start goes on, and how things are.

    A database that is away is no reason to be killed; a loop or a worker that hangs is, found so twice in a row: after
    the whole process was stopped for a while, this may look before the worker has had its turn.
    """
    interval = watchdog_interval(environ, os.getpid())
    looks = 0  # in a row at which it hung
    reported = float("-inf")
    while True:
        looks = looks + 1 if parts.worker.hangs(time.monotonic()) else 0
        if looks == 2:
            log.critical("worker_hangs")
        if looks < 2:
            if interval is not None:
                notifier.watchdog()
            if time.monotonic() - reported >= REPORT_SECONDS:
                reported = time.monotonic()
                if not parts.worker.drained.is_set():
                    notifier.extend_timeout(EXTENSION)
                notifier.status(parts.status())
        await anyio.sleep(REPORT_SECONDS if interval is None else min(interval, REPORT_SECONDS))


async def _reload_on_signal(parts: _Parts, environment: Callable[[], dict[str, str]]) -> None:
    """Read settings and credentials again at each SIGHUP."""
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            parts.notifier.reloading()
            try:
                await _reload(parts, environment)
            except ConfigError as error:
                # Its text is for a terminal; a log line names what is at fault: a file, settings, and what led to it.
                led_to_it = describe_exception(error.__context__ or error)
                log.error("reload_refused", reason=error.reason, path=error.path, exception=led_to_it)
                for name in sorted(set(re.findall(rf"^({PREFIX}[A-Z_]+):", str(error), re.MULTILINE))):
                    log.error("setting_refused", setting=name)
                parts.notifier.ready(f"reload refused, nothing was changed; {parts.status()}")
            else:
                parts.notifier.ready(parts.status())


async def _reload(parts: _Parts, environment: Callable[[], dict[str, str]]) -> None:
    """Put the settings in force that can change while running; name those that cannot, each time again."""
    environ = await anyio.to_thread.run_sync(environment)
    new = load_settings(environ)
    try:
        credentials, project = await anyio.to_thread.run_sync(load_credentials, new.fcm_credentials, new.fcm_project)
    except ConfigError as error:
        given = new.fcm_credentials
        error.reason = "default_credentials" if given is None else "credentials"
        # A relative one may be a secret in the wrong line.
        error.path = given if given is not None and given.is_absolute() else None
        raise
    try:
        parts.guard.context = await anyio.to_thread.run_sync(server_context, new)
    except ConfigError as error:
        error.reason = "metrics_tls"
        raise
    old = parts.settings
    changed = [each for each in SETTINGS if getattr(new, each.field) != getattr(old, each.field)]
    at_once = [each for each in changed if each in RELOADABLE]
    parts.settings = replace(old, **{each.field: getattr(new, each.field) for each in at_once})
    _lend_to_libraries(environ)
    configure(new.log_level)
    parts.pacing.set_max_rate(time.monotonic(), new.max_rate)
    parts.worker.set_poll_interval(new.poll_interval)
    waiting = {each.name for each in changed if each not in RELOADABLE}
    if project == parts.project:
        try:
            await parts.oauth.adopt(credentials)
        except NoOAuthToken as error:
            log.error("oauth_refresh_failed", reason=error.reason)
    else:
        waiting.add(FCM_PROJECT.name)
    for name in sorted(each.name for each in at_once):
        log.info("setting_changed", setting=name)
    for name in sorted(waiting):
        log.warning("setting_needs_restart", setting=name)
    log.info("reloaded", count=len(at_once))
