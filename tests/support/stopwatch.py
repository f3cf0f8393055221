"""How long something took, told apart from how long the machine did not let it run."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_TICK: Final = 0.005
_PRESSURE: Final = Path("/proc/pressure/cpu")


class Stopwatch:
    """`wall` is what a clock on the wall says, `seconds` leaves out when this process stood still for want of a
    processor: a thread that only sleeps notices that it was woken late. Both can be read while it runs."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ended: float | None = None
        self._still = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = time.monotonic()
        self._over.set()
        self._thread.join()

    @property
    def wall(self) -> float:
        return (self._ended or time.monotonic()) - self._began

    @property
    def seconds(self) -> float:
        return self.wall - self._still

    def _tick(self) -> None:
        before = time.monotonic()
        while not self._over.wait(_TICK):
            now = time.monotonic()
            self._still += max(0.0, now - before - 2 * _TICK)
            before = now


def kept_waiting() -> float:
    """Seconds, since the machine started, in which some process waited for a processor; 0 where nobody counts them."""
    try:
        some = _PRESSURE.read_text().splitlines()[0]
    except OSError:
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6
