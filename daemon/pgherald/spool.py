"""Remembers, on a local disk, which pushes FCM accepted, until the database has their record. Used by the recorder.

An entry is ids, a message name and a time: no token, no text. `append` returns once the entries would survive a power
cut; appends that come in while the disk is busy share the next write and the next fdatasync. `done` only marks: a
segment file goes when all of its entries are done, and entries that are replayed although they were done are settled
once more, which changes nothing. `pgherald.segments` has the files, `pgherald.frames` what is in them.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

import anyio
from anyio.to_thread import run_sync

from pgherald.errors import HeraldError
from pgherald.frames import frame
from pgherald.log import describe_exception, log
from pgherald.segments import Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pgherald.frames import Entry
    from pgherald.metrics import Metrics
    from pgherald.model import PromptId
    from pgherald.segments import Damage, Segment

T = TypeVar("T")
P = TypeVarTuple("P")

MAX_BYTES: Final = 256 * 2**20
SEGMENT_BYTES: Final = 4 * 2**20
RESERVE_BYTES: Final = 4 * 2**20


class SpoolFailed(HeraldError):
    """The entries are not safe, and nothing more should be sent until `probe` succeeds: the disk did not take them, or
    (`code` FULL) the spool has reached its size limit, because the database has not taken records for long."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Report:
    """What opening the spool found: entries to replay, bytes that a crash had cut off, and damage."""

    entries: int
    torn_bytes: int
    damage: tuple[Damage, ...]


@dataclass(eq=False, slots=True)
class _Batch:
    """Appends that share one write; `segment` is set if it worked, `failure` otherwise."""

    frames: list[bytes] = field(default_factory=list)
    ids: list[PromptId] = field(default_factory=list)
    finished: anyio.Event = field(default_factory=anyio.Event)
    segment: Segment | None = None
    failure: SpoolFailed | None = None


class Spool:
    """The spool of one daemon. `report` says what opening it found."""

    def __init__(self, disk: Disk, metrics: Metrics) -> None:
        self._disk = disk
        self._metrics = metrics
        self._turn = anyio.Lock()
        self._thread = anyio.CapacityLimiter(1)
        self._batch: _Batch | None = None
        self._broken: str | None = None
        self._closed = False
        self._found: dict[PromptId, list[Entry]] = {}
        self._live: dict[PromptId, list[Segment]] = {}
        self._entries = 0
        self.report = Report(0, 0, ())

    @classmethod
    def open(
        cls,
        state_dir: Path,
        metrics: Metrics,
        *,
        max_bytes: int = MAX_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> Spool:
        """Take `spool/` in the state directory for this process and read what is in it. Blocks; for start-up.

        Raises ConfigError where the directory cannot be used or another process holds it. A full or broken disk is no
        reason not to start: the spool is `failing` then, and what it holds can still be replayed.
        """
        disk = Disk(state_dir, max_bytes, segment_bytes, reserve_bytes)
        disk.open()
        spool = cls(disk, metrics)
        try:
            disk.check_writable()
        except OSError as error:
            spool._fail(describe_exception(error))
        spool._load()
        return spool

    def _load(self) -> None:
        found, torn, damage = self._disk.load()
        for segment, entries in found:
            for entry in entries:
                known = self._found.setdefault(entry.prompt_id, [])
                if entry not in known:
                    known.append(entry)
                self._live.setdefault(entry.prompt_id, []).append(segment)
                self._entries += 1
        self._disk.remove([segment for segment in self._disk.segments if not segment.live])
        self.report = Report(len(self.replay()), torn, tuple(damage))
        for each in damage:
            log.error("spool_damaged", path=each.path, offset=each.offset, bytes=each.size)
        log.info("spool_opened", path=self._disk.directory, entries=self.report.entries, dropped=torn)
        self._metrics.spool_damaged_total.inc(by=len(damage))
        self._measure()

    @property
    def entries(self) -> int:
        """How many accepted pushes are not known to be in the database."""
        return self._entries

    @property
    def failing(self) -> bool:
        """Whether nothing more should be claimed: the disk does not take entries, or the spool is nearly full.

        It says so before the limit is reached, so that there is room for the pushes that are in flight.
        """
        return self._broken is not None or self._disk.size > self._disk.max_bytes // 16 * 15

    def replay(self) -> list[Entry]:
        """The entries that were found at start and are not done yet, oldest first, each once."""
        return [entry for entries in self._found.values() for entry in entries]

    async def append(self, entries: Sequence[Entry]) -> None:
        """Make these entries safe; returns when a crash cannot take them away any more. Raises SpoolFailed.

        Once begun it is not cancelled: the pushes were accepted, whatever else is going on.
        """
        if not entries:
            return
        frames = [frame(entry) for entry in entries]
        leads = self._batch is None
        batch = self._batch = self._batch or _Batch()
        batch.frames += frames
        batch.ids += [entry.prompt_id for entry in entries]
        with anyio.CancelScope(shield=True):
            if leads:
                try:
                    async with self._turn:
                        self._batch = None  # later appends make up the next one
                        await self._commit(batch)
                finally:
                    batch.finished.set()
            else:
                await batch.finished.wait()
        if batch.segment is None:
            failure = batch.failure or SpoolFailed(f"the spool {self._disk.directory} failed", "INTERNAL")
            raise SpoolFailed(str(failure), failure.code)  # one exception for each caller that waits

    async def _commit(self, batch: _Batch) -> None:
        data = b"".join(batch.frames)
        where = self._disk.directory
        if self._closed:
            batch.failure = SpoolFailed(f"the spool {where} is closed", "CLOSED")
            return
        if self._disk.size + len(data) > self._disk.max_bytes:
            limit = self._disk.max_bytes
            batch.failure = SpoolFailed(
                f"the spool {where} is full ({limit} bytes): is the database reachable?", "FULL"
            )
            log.critical("spool_full", path=where, entries=self._entries, bytes=self._disk.size)
            return
        try:
            segment = await self._on_thread(self._disk.write, data)
        except OSError as error:
            code = describe_exception(error)
            self._fail(code)
            batch.failure = SpoolFailed(f"the spool {where} cannot be written ({code}): free or repair the disk", code)
            await self._collect()
            return
        for prompt_id in batch.ids:
            self._live.setdefault(prompt_id, []).append(segment)
        segment.live += len(batch.ids)
        self._entries += len(batch.ids)
        batch.segment = segment
        if self._disk.reserve_is_spent:
            self._fail(errno.errorcode[errno.ENOSPC])
        self._measure()

    async def done(self, ids: Iterable[PromptId]) -> None:
        """These prompts are settled: their entries are of no more use. Unknown ones are fine."""
        for prompt_id in ids:
            if self._found:
                self._found.pop(prompt_id, None)
            for segment in self._live.pop(prompt_id, ()):
                segment.live -= 1
                self._entries -= 1
        self._measure()
        if self._disposable():
            async with self._turn:
                await self._collect()

    def _disposable(self) -> list[Segment]:
        """Segments whose entries are all done. The one that is being written counts only once it has grown a little: to
        delete a file and begin another costs more than a few entries on the disk."""
        disk = self._disk
        return [
            segment
            for segment in disk.segments
            if not segment.live
            and not segment.stuck
            and (segment is not disk.active or segment.size >= disk.segment_bytes // 16)
        ]

    async def _collect(self) -> None:
        """Delete what is disposable. The caller has the turn."""
        segments = self._disposable()
        if segments and not self._closed:
            with suppress(OSError):  # there is no thread for it now: the next time, then
                await self._on_thread(self._disk.remove, segments)
            self._measure()

    async def probe(self) -> bool:
        """Find out whether the disk takes entries; True if the spool is not failing (any more)."""
        async with self._turn:
            if self._closed:
                return False
            for segment in self._disk.segments:
                segment.stuck = False
            await self._collect()
            try:
                await self._on_thread(self._disk.probe)
            except OSError as error:
                self._fail(describe_exception(error))
            else:
                if self._broken is not None:
                    log.info("spool_recovered", path=self._disk.directory, entries=self._entries)
                self._broken = None
                self._measure()
            return not self.failing

    async def close(self) -> None:
        """Delete what is done and let go of the lock. What is not done is there for the next start."""
        with anyio.CancelScope(shield=True):
            async with self._turn:
                if not self._closed:
                    done = [segment for segment in self._disk.segments if not segment.live]
                    with suppress(OSError):
                        await self._on_thread(self._disk.remove, done)
                    self._closed = True
                    self._disk.close()

    async def _on_thread(self, step: Callable[[*P], T], *arguments: *P) -> T:
        """Have the disk do this. OSError also where the system has no thread for it."""
        try:
            return await run_sync(step, *arguments, limiter=self._thread)
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error

    def _fail(self, code: str) -> None:
        if self._broken is None:
            log.critical("spool_failed", path=self._disk.directory, error_code=code, entries=self._entries)
        self._broken = code
        self._measure()

    def _measure(self) -> None:
        self._metrics.spool_entries.set(self._entries)
        self._metrics.spool_failing.set(self.failing)
