"""What `pgherald.transport` expects of a connection, and what those of HTTP/1.1 and HTTP/2 have in common."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pgherald.fcm import Fields, Response
    from pgherald.model import Code

HEAD_MAX: Final = 16_384
"""Bytes of an answer's head at most; FCM's have about 500."""


class Connection(Protocol):
    """One connection to one server."""

    @property
    def room(self) -> int:
        """How many more requests it takes now."""
        ...

    def is_old(self) -> bool:
        """Whether it has been idle for longer than one is kept."""
        ...

    def is_fresh(self) -> bool:
        """Whether it may be used again: not old, and if it was idle, not a word of the server, least of all bye."""
        ...

    async def exchange(self, url: str, fields: Fields, body: bytes, deadline: float) -> Response | Code | None:
        """POST, and wait for the answer until the deadline. A code says why there is none, while nobody knows what
        became of the request; None, that for certain the server did not take it. Cancelled, CancelledUnsent if nothing
        had left."""
        ...

    def abort(self) -> None:
        """Close at once; whoever waits for an answer has been told, or does not wait any more."""
        ...


class NotAnAnswer(Exception):
    """What arrives is not HTTP, or not of the kind that FCM answers."""


class Expiring(Protocol):
    """Something with a deadline."""

    def expire(self) -> None:
        """The deadline is here. A process that was stopped may find only now what had come before it."""
        ...


class Deadlines:
    """One timer for the deadlines of all requests under way: one for each took longer than to parse the answer."""

    def __init__(self) -> None:
        self._deadlines: dict[Expiring, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = float("inf")

    def add(self, what: Expiring, deadline: float) -> None:
        """Have it expire then (time.monotonic()), unless it is discarded before."""
        self._deadlines[what] = deadline
        if deadline < self._looks_at:
            self._look_at(deadline)

    def discard(self, what: Expiring) -> None:
        self._deadlines.pop(what, None)

    def _look_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = moment
        self._timer = asyncio.get_running_loop().call_later(max(moment - time.monotonic(), 0.0), self._look)

    def _look(self) -> None:
        """Expire what is over, and look again when the next may be."""
        now = time.monotonic()
        for what in [each for each, deadline in self._deadlines.items() if deadline <= now]:
            self.discard(what)
            what.expire()
        self._timer, self._looks_at = None, float("inf")
        if self._deadlines:
            self._look_at(min(self._deadlines.values()))
