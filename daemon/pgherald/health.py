"""Whether pushes are being sent, and why not: told by the parts of the daemon, read by `exporter` and `service`.

Pure; used on the event loop alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique


@unique
class Status(StrEnum):
    """Whether pushes are being sent."""

    READY = "ready"
    DEGRADED = "degraded"
    NOT_READY = "not ready"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at one moment; the reasons are constant words, in the order in which they arose."""

    status: Status
    reasons: tuple[str, ...]


class Health:
    """What keeps the daemon from sending, and what only makes it worse; each part of it adds and clears its own.

    Begins with the reason `starting`, which `set_ready` clears. Reasons are constant words (`database_away`,
    `spool_failing`), never a value.
    """

    def __init__(self) -> None:
        self._blocked: dict[str, None] = {"starting": None}
        self._degraded: dict[str, None] = {}

    def set_ready(self) -> None:
        """Start-up is over."""
        self.clear("starting")

    def set_unready(self, reason: str) -> None:
        """Nothing is sent, for this reason."""
        self._degraded.pop(reason, None)
        self._blocked[reason] = None

    def set_degraded(self, reason: str) -> None:
        """Pushes are sent, but worse than they should be, for this reason."""
        self._blocked.pop(reason, None)
        self._degraded[reason] = None

    def clear(self, reason: str) -> None:
        """This reason is gone."""
        self._blocked.pop(reason, None)
        self._degraded.pop(reason, None)

    def snapshot(self) -> Snapshot:
        """How things are now."""
        if self._blocked:
            return Snapshot(Status.NOT_READY, (*self._blocked, *self._degraded))
        return Snapshot(Status.DEGRADED if self._degraded else Status.READY, tuple(self._degraded))
