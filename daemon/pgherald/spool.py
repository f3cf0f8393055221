"""Remembers, on a local disk, which pushes FCM accepted, until the database has their record. Used by the dispatcher.

An entry is ids, a message name and a time: no token, no text. `append` returns once the entries would survive a power
cut; appends that come in while the disk is busy share the next write and the next fdatasync. `done` only marks: a
segment file goes when all of its entries are done, and entries that are replayed although they were done are settled
once more, which changes nothing.

On disk: `spool/` in the state directory, mode 0700, with a lock file (flock, held as long as the process lives), a
reserve (space that is given up when the disk is full, so that what is in flight at that moment is still written), and
numbered segments. A segment is a sequence of frames, and a frame is

    4 bytes  ff 48 53 01, which no UTF-8 text contains: where to go on reading after a damaged place
    4 bytes  length of the payload, little-endian
    4 bytes  CRC-32 of the payload
    4 bytes  CRC-32 of the 12 bytes before
    payload  JSON, UTF-8

A frame cut off at the end of a segment is what a crash during an append leaves: nobody was told that it is safe, so it
is dropped and counted. Anything else unreadable is damage: reported, read past, and the segment is kept as `*.damaged`
once its readable entries are done.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import threading
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import anyio
import orjson
from anyio.to_thread import run_sync

from pgherald.config import STATE_DIR
from pgherald.errors import ConfigError, HeraldError
from pgherald.log import describe_exception, log
from pgherald.model import DeviceId, NotificationId, PromptId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from pgherald.metrics import Metrics

MAX_BYTES: Final = 256 * 2**20
SEGMENT_BYTES: Final = 4 * 2**20
RESERVE_BYTES: Final = 4 * 2**20

_MAGIC: Final = b"\xffHS\x01"
_HEAD: Final = struct.Struct("<4sII")
_HEAD_BYTES: Final = _HEAD.size + 4
_MOST_PAYLOAD: Final = 65_536
_SEGMENT: Final = re.compile(r"([0-9]{16})\.spool(\.damaged)?")
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


class SpoolFailed(HeraldError):
    """The disk did not take the entries: they are not safe, and nothing more should be sent until `probe` succeeds."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class SpoolFull(SpoolFailed):
    """The spool has reached its size limit, because the database has not taken records for long."""


class Entry(NamedTuple):
    """One push that FCM accepted. `dispatched_at` is in UTC."""

    prompt_id: PromptId
    epoch: int
    notification_id: NotificationId
    device_id: DeviceId
    message_name: str
    dispatched_at: datetime


@dataclass(frozen=True, slots=True)
class Damage:
    """A place in a segment that cannot be read: `size` bytes at `offset`."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Report:
    """What opening the spool found: entries to replay, bytes that a crash had cut off, and damage."""

    entries: int
    torn_bytes: int
    damage: tuple[Damage, ...]


def _frame(entry: Entry) -> bytes:
    name = entry.message_name[:1024]
    if not name.isascii():  # FCM's word, so of any content; nothing of it may keep the entry from being written
        name = name.encode("utf-8", "replace").decode()
    content: dict[str, Any] = {
        "v": 1,
        "prompt_id": entry.prompt_id,
        "epoch": entry.epoch,
        "notification_id": entry.notification_id,
        "device_id": entry.device_id,
        "message_name": name,
        "dispatched_at": entry.dispatched_at,
    }
    payload = orjson.dumps(content, option=orjson.OPT_NAIVE_UTC)
    head = _HEAD.pack(_MAGIC, len(payload), zlib.crc32(payload))
    return head + zlib.crc32(head).to_bytes(4, "little") + payload


def _entry(payload: bytes) -> Entry | None:
    """The entry of an intact payload, or None if another version of the program wrote it."""
    try:
        content = orjson.loads(payload)
        if content["v"] != 1:
            return None
        entry = Entry(
            prompt_id=PromptId(UUID(content["prompt_id"])),
            epoch=int(content["epoch"]),
            notification_id=NotificationId(UUID(content["notification_id"])),
            device_id=DeviceId(UUID(content["device_id"])),
            message_name=str(content["message_name"]),
            dispatched_at=datetime.fromisoformat(content["dispatched_at"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return entry if entry.dispatched_at.tzinfo is not None else None


def _payload_at(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the payload of an intact frame at this place begins and ends, or None if there is no such frame."""
    start = at + _HEAD_BYTES
    if not data.startswith(_MAGIC, at) or start > len(data):
        return None
    _, length, checksum = _HEAD.unpack_from(data, at)
    if zlib.crc32(data[at : at + _HEAD.size]) != int.from_bytes(data[at + _HEAD.size : start], "little"):
        return None
    end = start + length
    if length > _MOST_PAYLOAD or end > len(data) or zlib.crc32(data[start:end]) != checksum:
        return None
    return start, end


def _is_torn(rest: bytes) -> bool:
    """Whether the end of a segment, in which no frame is intact, looks like one that was being written in a crash.

    Either its bytes stop before the frame does, or the file had grown already and the missing bytes are zeros.
    """
    there = rest.rstrip(b"\0")
    if len(there) < _HEAD_BYTES:
        if len(rest) >= _HEAD_BYTES and _head_is_intact(rest):
            return True  # the header's checksum ends in zero bytes
        return _MAGIC.startswith(there[: len(_MAGIC)])
    if not _head_is_intact(rest):
        return False
    length: int = _HEAD.unpack_from(rest)[1]
    # JSON does not end in a zero byte, so a payload that does was not written to its end.
    return len(there) < _HEAD_BYTES + length


def _head_is_intact(data: bytes) -> bool:
    head, checksum = data[: _HEAD.size], data[_HEAD.size : _HEAD_BYTES]
    return data.startswith(_MAGIC) and zlib.crc32(head) == int.from_bytes(checksum, "little")


@dataclass(frozen=True, slots=True)
class _Content:
    """What a segment's bytes hold: entries, the size of a cut-off end, and (offset, size) of damaged places."""

    entries: list[Entry]
    torn: int
    damaged: list[tuple[int, int]]


def _read(data: bytes) -> _Content:
    content, at, torn = _Content([], 0, []), 0, 0
    while at < len(data):
        place = _payload_at(data, at)
        if place is not None:
            entry = _entry(data[place[0] : place[1]])
            if entry is None:
                content.damaged.append((at, place[1] - at))
            else:
                content.entries.append(entry)
            at = place[1]
            continue
        further = data.find(_MAGIC, at + 1)
        while further >= 0 and _payload_at(data, further) is None:
            further = data.find(_MAGIC, further + 1)
        end = further if further >= 0 else len(data)
        if further < 0 and _is_torn(data[at:]):
            torn = end - at
        else:
            content.damaged.append((at, end - at))
        at = end
    return _Content(content.entries, torn, content.damaged)


@dataclass(eq=False, slots=True)
class _Segment:
    """One file. `live` counts the entries in it that are not done; `size` is what is known to be safe in it.

    A `stuck` one could not be deleted, which is tried again when the disk is probed.
    """

    path: Path
    size: int = 0
    live: int = 0
    damaged: bool = False
    stuck: bool = False


class _Disk:
    """The files, and nothing else. Every method blocks; the ones that write wait for each other."""

    def __init__(self, state_dir: Path, max_bytes: int, segment_bytes: int, reserve_bytes: int) -> None:
        self.directory = state_dir / "spool"
        self.max_bytes = max_bytes
        self.segment_bytes = segment_bytes
        self.reserve_bytes = reserve_bytes
        self.segments: list[_Segment] = []
        self.size = 0
        self.active: _Segment | None = None
        self.reserve_is_spent = False
        self._active_fd = -1
        self._next = 1
        self._lock_fd = -1
        self._directory_fd = -1
        self._mutex = threading.RLock()

    # What raises ConfigError: a place that will not work however often it is tried.

    def open(self) -> None:
        """Make the directory if need be, and take the lock."""
        try:
            _make_directory(self.directory.parent)
            _make_directory(self.directory)
            if self.directory.stat().st_mode & 0o077:
                self.directory.chmod(0o700)
            self._directory_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            self._lock_fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            self.close()
            raise ConfigError(self._unusable(error)) from None
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder()
            self.close()
            raise ConfigError(
                f"the spool {self.directory} is in use by another pgherald ({holder}): stop that one, "
                f"or give this one a directory of its own in {STATE_DIR.name}"
            ) from None
        except OSError as error:
            self.close()
            raise ConfigError(self._unusable(error)) from None
        with suppress(OSError):  # only for the message above; a full disk is no reason not to start
            os.ftruncate(self._lock_fd, 0)
            os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def _holder(self) -> str:
        try:
            pid = os.pread(self._lock_fd, 32, 0).strip()
        except OSError:
            pid = b""
        return f"pid {pid.decode()}" if re.fullmatch(rb"[0-9]+", pid) else "pid unknown"

    def _unusable(self, error: OSError) -> str:
        return (
            f"the spool {self.directory} cannot be used ({describe_exception(error)}): accepted pushes are kept there, "
            f"so {STATE_DIR.name} must name a directory on a local disk that this user may write"
        )

    def check_writable(self) -> None:
        """Prove that files can be written. Raises ConfigError where that is not for lack of space or a broken disk."""
        try:
            self.probe()
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                self.close()
                raise ConfigError(self._unusable(error)) from None
            raise

    def load(self) -> tuple[list[tuple[_Segment, list[Entry]]], int, list[Damage]]:
        """Read every segment: their entries, how many bytes were cut off, what is damaged. None is appended to."""
        found, torn, damage = [], 0, []
        for name in sorted(os.listdir(self.directory)):
            match = _SEGMENT.fullmatch(name)
            if match is None:
                continue
            self._next = max(self._next, int(match[1]) + 1)
            if match[2]:
                continue
            path = self.directory / name
            segment = _Segment(path, size=path.stat().st_size)
            try:
                content = _read(path.read_bytes())
            except OSError:
                content = _Content([], 0, [(0, segment.size)])
            segment.live, segment.damaged = len(content.entries), bool(content.damaged)
            torn += content.torn
            damage += [Damage(path, offset, size) for offset, size in content.damaged]
            self.segments.append(segment)
            self.size += segment.size
            found.append((segment, content.entries))
        return found, torn, damage

    # What raises OSError: a disk that may work again.

    def write(self, data: bytes) -> _Segment:
        """Make these frames safe, all in one segment. With no space left, the reserve is given up for them."""
        with self._mutex:
            try:
                return self._write(data)
            except OSError as error:
                if error.errno not in _NO_SPACE or not self._spend_reserve():
                    raise
            return self._write(data)

    def _write(self, data: bytes) -> _Segment:
        segment = self.active
        if segment is not None and os.fstat(self._active_fd).st_nlink == 0:
            log.error("spool_segment_vanished", path=segment.path, entries=segment.live)
            self.seal()
        elif segment is not None and segment.size >= self.segment_bytes:
            self.seal()
        segment = self.active
        is_new = segment is None
        if segment is None:
            segment = self._create()
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._active_fd, left) :]
            os.fdatasync(self._active_fd)
            if is_new:
                os.fsync(self._directory_fd)
        except OSError:
            # What a failed fdatasync leaves in the page cache is anybody's guess, so this file is never synced again.
            self.seal()
            if is_new:
                self.remove([segment])
            raise
        segment.size += len(data)
        self.size += len(data)
        return segment

    def _create(self) -> _Segment:
        segment = _Segment(self.directory / f"{self._next:016d}.spool")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._active_fd = os.open(segment.path.name, flags, 0o600, dir_fd=self._directory_fd)
        self._next += 1
        self.active = segment
        self.segments.append(segment)
        return segment

    def seal(self) -> None:
        """Append no more to the current segment."""
        if self._active_fd >= 0:
            with suppress(OSError):
                os.close(self._active_fd)
        self._active_fd, self.active = -1, None

    def remove(self, segments: Sequence[_Segment]) -> None:
        """Delete segments, keeping damaged ones aside; never raises, a segment that cannot be deleted is stuck."""
        with self._mutex:
            for segment in segments:
                if segment is self.active:
                    self.seal()
                try:
                    self._remove(segment)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    segment.stuck = True
                    log.warning("spool_segment_stuck", path=segment.path, exception=describe_exception(error))
                    continue
                self.segments.remove(segment)
                self.size -= segment.size
            with suppress(OSError):  # one that comes back after a crash is replayed once more, and nothing changes
                os.fsync(self._directory_fd)

    def _remove(self, segment: _Segment) -> None:
        here, name = self._directory_fd, segment.path.name
        if segment.damaged:
            os.rename(name, f"{name}.damaged", src_dir_fd=here, dst_dir_fd=here)
        else:
            os.unlink(name, dir_fd=here)

    def _spend_reserve(self) -> bool:
        try:
            os.unlink("reserve", dir_fd=self._directory_fd)
        except OSError:
            return False
        self.reserve_is_spent = True
        return True

    def probe(self) -> None:
        """Write and sync a file, and have the reserve in place."""
        with self._mutex, self._scratch("probe", os.O_TRUNC) as fd:
            if os.write(fd, b"\0" * 4096) < 4096:
                raise OSError(errno.ENOSPC, "cut short")
            os.fdatasync(fd)
            os.unlink("probe", dir_fd=self._directory_fd)
            if self.reserve_bytes:
                with self._scratch("reserve", 0) as reserve:
                    os.posix_fallocate(reserve, 0, self.reserve_bytes)
            self.reserve_is_spent = False

    @contextmanager
    def _scratch(self, name: str, flags: int) -> Iterator[int]:
        """A file by this name, which goes again if what is done with it fails."""
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | flags, 0o600, dir_fd=self._directory_fd)
        try:
            yield fd
        except OSError:
            with suppress(OSError):
                os.unlink(name, dir_fd=self._directory_fd)
            raise
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go of everything, the lock last."""
        with self._mutex:
            self.seal()
            for fd in (self._directory_fd, self._lock_fd):
                if fd >= 0:
                    os.close(fd)
            self._directory_fd = self._lock_fd = -1


def _make_directory(path: Path) -> None:
    """This directory and those above it, so that a crash does not take them away again."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in missing:
        with suppress(PermissionError):  # one that may be written in but not read
            fd = os.open(each.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


@dataclass(eq=False, slots=True)
class _Batch:
    """Appends that share one write; `segment` is set if it worked, `failure` otherwise."""

    frames: list[bytes] = field(default_factory=list)
    ids: list[PromptId] = field(default_factory=list)
    finished: anyio.Event = field(default_factory=anyio.Event)
    segment: _Segment | None = None
    failure: SpoolFailed | None = None


class Spool:
    """The spool of one daemon. `report` says what opening it found."""

    def __init__(self, disk: _Disk, metrics: Metrics | None) -> None:
        self._disk = disk
        self._metrics = metrics
        self._turn = anyio.Lock()
        self._thread = anyio.CapacityLimiter(1)
        self._batch: _Batch | None = None
        self._broken: str | None = None
        self._closed = False
        self._found: dict[PromptId, list[Entry]] = {}
        self._live: dict[PromptId, list[_Segment]] = {}
        self._entries = 0
        self.report = Report(0, 0, ())

    @classmethod
    def open(
        cls,
        state_dir: Path,
        metrics: Metrics | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> Spool:
        """Take `spool/` in the state directory for this process and read what is in it. Blocks; for start-up.

        Raises ConfigError where the directory cannot be used or another process holds it. A full or broken disk is no
        reason not to start: the spool is `failing` then, and what it holds can still be replayed.
        """
        disk = _Disk(state_dir, max_bytes, segment_bytes, reserve_bytes)
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
        if self._metrics is not None:
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
        frames = [_frame(entry) for entry in entries]
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
            raise type(failure)(str(failure), failure.code)

    async def _commit(self, batch: _Batch) -> None:
        data = b"".join(batch.frames)
        where = self._disk.directory
        if self._closed:
            batch.failure = SpoolFailed(f"the spool {where} is closed", "CLOSED")
            return
        if self._disk.size + len(data) > self._disk.max_bytes:
            limit = self._disk.max_bytes
            batch.failure = SpoolFull(f"the spool {where} is full ({limit} bytes): is the database reachable?", "FULL")
            log.critical("spool_full", path=where, entries=self._entries, bytes=self._disk.size)
            return
        try:
            segment = await run_sync(self._disk.write, data, limiter=self._thread)
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

    def _disposable(self) -> list[_Segment]:
        """Segments with nothing live; of the one that is being written only once it is worth it."""
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
            await run_sync(self._disk.remove, segments, limiter=self._thread)
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
                await run_sync(self._disk.probe, limiter=self._thread)
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
                    await run_sync(self._disk.remove, done, limiter=self._thread)
                    self._closed = True
                    self._disk.close()

    def _fail(self, code: str) -> None:
        if self._broken is None:
            log.critical("spool_failed", path=self._disk.directory, error_code=code, entries=self._entries)
        self._broken = code
        self._measure()

    def _measure(self) -> None:
        if self._metrics is not None:
            self._metrics.spool_entries.set(self._entries)
            self._metrics.spool_failing.set(self.failing)
