"""LISTEN on a connection of its own, and the doorbell that wakes the worker.

A notification only rings the bell, so the socket is read without waiting for anybody. Every few seconds a heartbeat
asks the server whether this very session still listens: that finds half-open connections, poolers and failovers alike.
While the connection is lost the worker finds its work by polling. Run by the service.
"""

from __future__ import annotations

import time
from collections import deque
from enum import StrEnum, unique
from random import Random
from typing import TYPE_CHECKING, Final

import anyio

from pgherald.backoff import is_told, reconnect_delay
from pgherald.log import describe_exception, log
from pgherald.sessions import POOLER_PATIENCE, STORE_ERRORS, ListenSession, NoSession

if TYPE_CHECKING:
    from typing import NoReturn

    from pgherald.health import Health
    from pgherald.metrics import Metrics

CHANNEL: Final = "herald"

HEARTBEAT: Final = 4.0
"""Seconds between two proofs that the session still listens; a dead one is noticed in twice that."""


@unique
class Wakeup(StrEnum):
    """Why the worker looks for work."""

    NOTIFY = "notify"
    POLL = "poll"
    RECONNECT = "reconnect"


OFTEN: Final = 10
OFTEN_SECONDS: Final = 0.05
"""So many rings within so many seconds come from a busy app; fewer may be a write now and then."""


class Doorbell:
    """Rung from anywhere on the event loop, heard by the one worker; several rings are one."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._source: Wakeup | None = None
        self._rung: deque[float] = deque([float("-inf")] * OFTEN, maxlen=OFTEN)  # when, the last ones

    def ring(self, source: Wakeup) -> None:
        """Wake the worker, now or as soon as it waits."""
        self._rung.append(time.monotonic())
        self._source = self._source or source
        self._event.set()

    def rings_often(self, seconds: float) -> bool:
        """Whether it rang often, as for a busy app, and the last time not more than so many seconds ago."""
        return self._rung[-1] - self._rung[0] <= OFTEN_SECONDS and time.monotonic() - self._rung[-1] <= seconds

    async def wait(self, seconds: float) -> Wakeup:
        """Sleep until rung, or for `seconds`; says which."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        source, self._source = self._source, None
        self._event = anyio.Event()
        return source or Wakeup.POLL


class Listener:
    """Keeps one session listening, for ever."""

    def __init__(self, conninfo: str, bell: Doorbell, metrics: Metrics, health: Health) -> None:
        self._conninfo = conninfo
        self._bell = bell
        self._metrics = metrics
        self._health = health
        self._rng = Random()
        self.heard = anyio.Event()  # set once it listens for the first time, or knows that it cannot

    async def run(self) -> NoReturn:
        """Connect, LISTEN, ring the bell, wait for notifications; again after each loss.

        It rings before it is notified, because what was sent before it listened is lost; the work that this told of is
        in the tables.
        """
        failures = 0
        while True:
            try:
                async with ListenSession.open(self._conninfo, CHANNEL) as session:
                    failures = 0
                    self._metrics.listener_up.set(1)
                    self._health.clear("listener_down")
                    self._health.clear("listener_behind_pooler")
                    log.info("listening", channel=CHANNEL, pid=session.pid)
                    self.heard.set()
                    self._bell.ring(Wakeup.RECONNECT)
                    while True:
                        if await session.notified(HEARTBEAT):
                            self._bell.ring(Wakeup.NOTIFY)
            except NoSession as error:
                self._metrics.listener_up.set(0)
                self._health.clear("listener_down")
                self._health.set_degraded("listener_behind_pooler")
                log.error("listener_behind_pooler", setting="PGHERALD_LISTEN_URL", exception=describe_exception(error))
                self.heard.set()
                await anyio.sleep(POOLER_PATIENCE)
            except (*STORE_ERRORS, TimeoutError, OSError) as error:
                failures += 1
                self._metrics.listener_up.set(0)
                if failures == 1:
                    self._metrics.listener_reconnects_total.inc()
                self._health.set_degraded("listener_down")
                if is_told(failures):
                    log.warning("listener_lost", failures=failures, exception=describe_exception(error))
            await anyio.sleep(reconnect_delay(max(failures, 1), self._rng))
