"""Spools in directories of a test: entries by number, a crash, and what is in the files."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pgherald.frames import Entry
from pgherald.metrics import Metrics
from pgherald.model import DeviceId, NotificationId, PromptId
from pgherald.spool import Spool

if TYPE_CHECKING:
    import io
    from collections.abc import Sequence
    from pathlib import Path


def events(logged: io.StringIO) -> list[str]:
    return [json.loads(line)["event"] for line in logged.getvalue().splitlines()]


def entry(number: int, *, epoch: int = 1, name: str = "projects/p/messages/0:15%31bd", device: int = 7) -> Entry:
    return Entry(
        PromptId(UUID(int=number)),
        epoch,
        NotificationId(UUID(int=number + 10**6)),
        DeviceId(UUID(int=device)),
        name,
        datetime(2026, 1, 31, 12, tzinfo=UTC) + timedelta(microseconds=100_000 + number),
    )


def numbers(entries: Sequence[Entry]) -> list[int]:
    return [each.prompt_id.int for each in entries]


def open_spool(state_dir: Path, **limits: Any) -> Spool:
    return Spool.open(state_dir, Metrics(), **{"reserve_bytes": 0, **limits})


def is_failing(spool: Spool) -> bool:
    """`spool.failing`, which mypy takes for a constant."""
    return spool.failing


def crash(spool: Spool) -> None:
    """Let go of the files as the kernel does for a process that dies; nothing is written or deleted."""
    spool._disk.close()  # noqa: SLF001 - no part of the program dies on purpose


def segments(state_dir: Path) -> list[str]:
    return sorted(name for name in os.listdir(state_dir / "spool") if "spool" in name)


def used(state_dir: Path) -> int:
    return sum((state_dir / "spool" / name).stat().st_size for name in segments(state_dir))


async def written(state_dir: Path, entries: Sequence[Entry]) -> bytes:
    """The bytes of one segment that holds these entries, which is left in the state directory."""
    spool = open_spool(state_dir)
    await spool.append(entries)
    crash(spool)
    (name,) = segments(state_dir)
    return (state_dir / "spool" / name).read_bytes()


def open_and_crash(state_dir: Path) -> list[Entry]:
    spool = open_spool(state_dir)
    crash(spool)
    return spool.replay()
