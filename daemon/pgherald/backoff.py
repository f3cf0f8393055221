"""How long to wait before the next try: of a push, and of a broken connection; and which of those the log tells of.

Pure; the caller brings the randomness. Not here: pausing the whole daemon, which is `pgherald.pacing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable
    from random import Random

RETRY_BASE: Final = 10.0
"""Seconds before the first retry at the least: FCM asks for no retry sooner than that."""

RETRY_CAP: Final = 3600.0
"""Seconds before any retry at the most: a prompt that lives for days is still tried every hour."""

TELL_SECONDS: Final = 60.0
"""At most so often does the log tell of one thing that goes wrong with each push, evaluation or client."""

RECONNECT_BASE: Final = 0.1
RECONNECT_CAP: Final = 10.0

_DOUBLINGS_MAX: Final = 30  # beyond every cap, and far from what a float can hold


def retry_delay(attempt: int, retry_after: float | None, *, rng: Random) -> float:
    """Seconds until a push may be tried again, after its `attempt`-th try (from 1) was refused.

    Full jitter between ten seconds and a ceiling that doubles with every try (20 s, 40 s, 80 s ...), never above an
    hour. A `retry_after` (seconds) is honoured, up to that hour, with up to ten seconds on top so that those who were
    told the same moment do not all come back in it.
    """
    doublings = min(max(attempt, 1), _DOUBLINGS_MAX)
    delay = rng.uniform(RETRY_BASE, min(RETRY_CAP, RETRY_BASE * 2.0**doublings))
    if retry_after is not None:
        delay = max(delay, retry_after + rng.uniform(0.0, RETRY_BASE))
    return min(delay, RETRY_CAP)


def reconnect_delay(failures: int, rng: Random) -> float:
    """Seconds until a connection is tried again after `failures` failures in a row (from 1): 0.1 s doubling to 10 s.

    Between half of that and all of it, so that many daemons do not knock together once the database is back.
    """
    ceiling = min(RECONNECT_CAP, RECONNECT_BASE * 2.0 ** min(max(failures - 1, 0), _DOUBLINGS_MAX))
    return rng.uniform(ceiling / 2, ceiling)


def is_told(failures: int) -> bool:
    """Whether the log tells of a failure, by its number in a row (from 1): of the first, the fifth, each thirtieth."""
    return failures in (1, 5) or failures % 30 == 0


class Told:
    """When the log was told of what; so that it is not told of the same again within `TELL_SECONDS`."""

    def __init__(self) -> None:
        self._at: dict[Hashable, float] = {}

    def is_due(self, what: Hashable, now: float) -> bool:
        """Whether to tell of this now, a moment of time.monotonic(); then it counts as told."""
        due = now - self._at.get(what, float("-inf")) >= TELL_SECONDS
        if due:
            self._at[what] = now
        return due
