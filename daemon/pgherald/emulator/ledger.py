"""What the emulator accepted and how often it answered what: the truth that a test compares the records with.

An acceptance is written down (file first, then memory) before a byte of its answer goes out, so that it is known even
if the emulator is killed between the two.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import anyio
import orjson

from pgherald.errors import HeraldError

if TYPE_CHECKING:
    import datetime
    from pathlib import Path

    from pgherald.emulator.messages import Target


@dataclass(frozen=True, slots=True)
class Accepted:
    """One accepted push. `content` is the message as received, as compact JSON; `received_at` is UTC, ISO 8601."""

    seq: int
    id: str
    name: str
    received_at: str
    project: str
    token: str | None
    http_version: str
    content: bytes

    @property
    def message(self) -> Any:
        return orjson.loads(self.content)

    def as_json(self) -> bytes:
        head = orjson.dumps(
            {
                "seq": self.seq,
                "id": self.id,
                "name": self.name,
                "received_at": self.received_at,
                "project": self.project,
                "token": self.token,
                "http_version": self.http_version,
            }
        )
        return head[:-1] + b',"message":' + self.content + b"}"


class Ledger:
    """The accepted messages, the newest `keep` of them in memory, all of them in the file if there is one."""

    def __init__(self, log: Path | None = None, keep: int = 200_000) -> None:
        self.accepted = 0
        self.validated = 0
        self.access_tokens = 0
        self.rejected: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._kept: deque[Accepted] = deque(maxlen=keep)
        self._seq = 0
        self._file = _open_for_append(log) if log is not None else None
        self._more: anyio.Event | None = None  # while somebody waits for the next

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)

    @property
    def messages(self) -> list[Accepted]:
        return list(self._kept)

    def accept(
        self, project: str, target: Target, message: dict[str, Any], http_version: str, now: datetime.datetime
    ) -> Accepted:
        """Writes one down and names it as FCM does. Raises OSError, and accepts nothing, if the file takes no more."""
        seq = self._seq + 1
        micros = int(now.timestamp() * 1_000_000)
        message_id = f"0:{micros}%{seq:016x}"
        entry = Accepted(
            seq,
            message_id,
            f"projects/{project}/messages/{message_id}",
            now.isoformat(),
            project,
            target.value if target.is_device else None,
            http_version,
            bytes(memoryview(orjson.dumps(message))),  # a copy: orjson's own result keeps its 4 kB buffer
        )
        if self._file is not None:
            line = entry.as_json() + b"\n"
            if os.write(self._file, line) != len(line):
                raise OSError("the log took only part of an entry")
        self._seq = seq
        self.accepted += 1
        self._kept.append(entry)
        if self._more is not None:
            self._more.set()
            self._more = None
        return entry

    def since(self, seq: int, limit: int) -> list[Accepted]:
        """The first `limit` entries after `seq`, oldest first."""
        first = self._kept[0].seq if self._kept else 0
        start = max(0, seq + 1 - first)
        return list(islice(self._kept, start, start + limit))

    def clear(self) -> None:
        """Forgets messages and counts; `seq` goes on, and the file keeps what it has."""
        self._kept.clear()
        self.accepted = self.validated = self.access_tokens = 0
        self.rejected.clear()
        self.faults.clear()

    async def wait_for(self, count: int) -> None:
        """Returns once `count` messages have been accepted since the start or the last clear."""
        while self.accepted < count:
            more = self._more = self._more or anyio.Event()
            await more.wait()

    def counters(self) -> dict[str, Any]:
        """How often what was answered; `rejected` by code, `faults` by kind, whatever else became of those requests."""
        return {
            "accepted": self.accepted,
            "validated": self.validated,
            "access_tokens": self.access_tokens,
            "rejected": dict(self.rejected),
            "faults": dict(self.faults),
        }


def _open_for_append(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise HeraldError(f"{path} cannot be written ({error.strerror}): choose another --log file") from error
