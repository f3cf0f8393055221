"""The map of the program: how a daemon is put together, started, kept and stopped.

Start: settings, credentials, the schema's version, the spool (one daemon each, replayed), LISTEN, drain, and only
then READY. An outer task group holds listener, exporter, scheduler, watchdog and OAuth; an inner one the work. Stop:
claim nothing more, let what is under way come to its end within a deadline, settle, close; the listener and the
exporter go last.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import anyio

from pgherald import exporter, schema
from pgherald.config import load_settings
from pgherald.dispatcher import DispatchConfig, PushNotificationDispatcher
from pgherald.exporter import Health
from pgherald.fcm import FcmClient, HttpxTransport
from pgherald.listener import Doorbell, Listener
from pgherald.log import configure, log
from pgherald.metrics import Metrics
from pgherald.oauth import OAuth, load_credentials
from pgherald.pacing import Pacing
from pgherald.recorder import Recorder
from pgherald.scheduler import Scheduler
from pgherald.spool import Spool
from pgherald.store import Locks, Store
from pgherald.systemd import Notifier, watchdog_interval
from pgherald.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgherald.config import Settings

DRAIN_DEADLINES: Final = 3.0
"""At a stop, what is under way may take so many send deadlines, and then the records a few seconds more."""

CONNECT_PATIENCE: Final = 10.0
"""Seconds that a start waits for a database that is just starting itself."""


def run(environ: Mapping[str, str]) -> int:
    """Run a daemon until SIGTERM or SIGINT; 0 after a clean stop. Raises ConfigError for what cannot work."""
    settings = load_settings(environ)
    configure(settings.log_level)
    anyio.run(_run, settings, environ)
    return 0


async def _run(settings: Settings, environ: Mapping[str, str]) -> None:
    notifier = Notifier.from_environ(environ)
    metrics = Metrics()
    health = Health()
    credentials, project = await anyio.to_thread.run_sync(
        load_credentials, settings.fcm_credentials, settings.fcm_project
    )
    await _check_schema(settings.database_url)
    config = DispatchConfig(
        owner=f"{socket.gethostname()}:{os.getpid()}",
        max_in_flight=settings.max_in_flight,
        send_deadline=settings.send_deadline,
    )
    pacing = Pacing(settings.max_rate)
    oauth = OAuth(credentials)
    bell = Doorbell()
    locks = Locks(settings.listen_url)
    async with AsyncExitStack() as stack:
        spool = await anyio.to_thread.run_sync(Spool.open, settings.state_dir, metrics)
        stack.push_async_callback(spool.close)
        store = await stack.enter_async_context(
            Store(settings.database_url, pooled=settings.listen_url != settings.database_url)
        )
        stack.push_async_callback(locks.aclose)
        transport = await stack.enter_async_context(HttpxTransport(settings.max_in_flight))
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
        async with anyio.create_task_group() as around:
            listen = await around.start(exporter.serve, settings.metrics_listen, metrics, health)
            log.info("starting", listen=str(listen), path=settings.state_dir, project=project, pid=os.getpid())
            around.start_soon(oauth.run)
            await recorder.replay(spool.replay())
            around.start_soon(recorder.run)
            around.start_soon(listener.run)
            around.start_soon(_feed_watchdog, notifier, environ)
            async with anyio.create_task_group() as work:
                work.start_soon(_stop_on_signal, worker, work.cancel_scope, notifier, config)
                with anyio.move_on_after(CONNECT_PATIENCE):
                    await listener.heard.wait()
                work.start_soon(scheduler.run)
                work.start_soon(_announce, worker, notifier, health)
                await worker.run()
                work.cancel_scope.cancel()
            with anyio.CancelScope(shield=True), anyio.move_on_after(config.send_deadline):
                await recorder.pay()
            around.cancel_scope.cancel()
        log.info("stopped", entries=spool.entries)


async def _check_schema(conninfo: str) -> None:
    """Refuse a database that this program cannot work with; one that is starting is waited for a little."""
    deadline = anyio.current_time() + CONNECT_PATIENCE
    while True:
        try:
            version = await anyio.to_thread.run_sync(schema.check_for_daemon, conninfo)
            break
        except schema.NotNow:
            if anyio.current_time() > deadline:
                raise
            await anyio.sleep(0.5)
    if version > schema.shipped_version():
        log.warning("schema_newer", version=str(version))


async def _announce(worker: Worker, notifier: Notifier, health: Health) -> None:
    """Ready once it has listened and there was nothing left to do."""
    await worker.drained.wait()
    health.set_ready()
    notifier.ready("sending")
    log.info("ready")


async def _stop_on_signal(worker: Worker, scope: anyio.CancelScope, notifier: Notifier, config: DispatchConfig) -> None:
    """The first signal stops the claiming and sets a deadline for what is under way; the second ends that at once."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            notifier.stopping("draining")
            worker.stop()
            scope.deadline = anyio.current_time() + config.send_deadline * DRAIN_DEADLINES
            break
        async for _ in signals:
            scope.cancel()
            return


async def _feed_watchdog(notifier: Notifier, environ: Mapping[str, str]) -> None:
    """Tell systemd that the event loop turns. A database that is away is no reason to be killed; a hung loop is."""
    interval = watchdog_interval(environ, os.getpid())
    if interval is None:
        return
    while True:
        notifier.watchdog()
        await anyio.sleep(interval)
