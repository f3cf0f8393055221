"""What systemd is told: ready, reloading, stopping, still alive, and a status line. sd_notify(3), nothing else.

Outside of systemd (no NOTIFY_SOCKET) every call does nothing. No call raises: a daemon does not stop because nobody
listens. Called by the service.
"""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_PATIENCE: Final = 1.0  # seconds that a message of the life cycle may wait for room in systemd's queue


class Notifier:
    """Sends datagrams to one socket; True means that systemd has the message."""

    def __init__(self, address: str | None) -> None:
        self._address = address or ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Notifier:
        """The notifier that systemd asked for, or one that does nothing."""
        return cls(environ.get("NOTIFY_SOCKET"))

    def ready(self, status: str = "") -> bool:
        """Started, or done with reloading: spool replayed, listening, drained."""
        return self._send(["READY=1", *_status(status)], _PATIENCE)

    def reloading(self) -> bool:
        """A reload has begun; `ready()` ends it. systemd matches the two by this clock."""
        return self._send(
            ["RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"], _PATIENCE
        )

    def stopping(self, status: str = "") -> bool:
        """Shutdown has begun."""
        return self._send(["STOPPING=1", *_status(status)], _PATIENCE)

    def extend_timeout(self, seconds: float) -> bool:
        """Starting or stopping goes on and needs this long from now, as for a long replay of the spool."""
        return self._send([f"EXTEND_TIMEOUT_USEC={max(0, int(seconds * 1_000_000))}"], _PATIENCE)

    def status(self, text: str) -> bool:
        """One line for `systemctl status`: the caller's own words and numbers, never a value of somebody's data."""
        return self._send(_status(text), 0)

    def watchdog(self) -> bool:
        """Still alive."""
        return self._send(["WATCHDOG=1"], 0)

    def _send(self, lines: list[str], patience: float) -> bool:
        # An @ stands for the NUL byte that begins an abstract address. Anything else (vsock:) is not for this machine.
        if not lines or not self._address.startswith(("/", "@")):
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(patience)
                out.connect(address)
                return out.send("\n".join(lines).encode("utf-8", "replace")) > 0
        except (OSError, ValueError):  # nobody there, its queue full, or an address that is none
            return False


def _status(text: str) -> list[str]:
    line = re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip()
    return [f"STATUS={line}"] if line else []


def watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    """How often to send `watchdog()`, in seconds: half of what WatchdogSec allows, or None if this process need not.

    WATCHDOG_PID tells which process the watchdog is for; a child that inherited the environment is not meant.
    """
    allowed = environ.get("WATCHDOG_USEC", "")
    meant = environ.get("WATCHDOG_PID", "")
    if re.fullmatch(r"[0-9]{1,18}", allowed) is None or int(allowed) == 0 or meant not in ("", str(pid)):
        return None
    return int(allowed) / 2_000_000
