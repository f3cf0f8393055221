"""The files of the spool, and nothing else: segments that are appended to, synced, deleted. Used by `pgherald.spool`.

On disk: `spool/` in the state directory, mode 0700, with a lock file (flock, held as long as the process lives), a
reserve (space that is given up when the disk is full, so that what is in flight at that moment is still written), and
numbered segments, of the frames that `pgherald.frames` describes. One with damaged places is kept as `*.damaged` once
its readable entries are done.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pgherald import frames
from pgherald.config import STATE_DIR
from pgherald.errors import ConfigError
from pgherald.log import describe_exception, log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pgherald.frames import Entry

_SEGMENT: Final = re.compile(r"([0-9]{16})\.spool(\.damaged)?")
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Damage:
    """A place in a segment that cannot be read: `size` bytes at `offset`."""

    path: Path
    offset: int
    size: int


@dataclass(eq=False, slots=True)
class Segment:
    """One file. `live` counts the entries in it that are not done; `size` is what is known to be safe in it.

    A `stuck` one could not be deleted, which is tried again when the disk is probed.
    """

    path: Path
    size: int = 0
    live: int = 0
    damaged: bool = False
    stuck: bool = False


class Disk:
    """The files, and nothing else. Every method blocks; the ones that write wait for each other."""

    def __init__(self, state_dir: Path, max_bytes: int, segment_bytes: int, reserve_bytes: int) -> None:
        self.directory = state_dir / "spool"
        self.max_bytes = max_bytes
        self.segment_bytes = segment_bytes
        self.reserve_bytes = reserve_bytes
        self.segments: list[Segment] = []
        self.size = 0
        self.active: Segment | None = None
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

    def load(self) -> tuple[list[tuple[Segment, list[Entry]]], int, list[Damage]]:
        """Read every segment: their entries, how many bytes were cut off, what is damaged. None is appended to.

        Raises ConfigError for one that this user may not read: what it holds is whole, and must not be left out.
        """
        found, torn, damage = [], 0, []
        for name in sorted(os.listdir(self.directory)):
            match = _SEGMENT.fullmatch(name)
            if match is None:
                continue
            self._next = max(self._next, int(match[1]) + 1)
            if match[2]:
                continue
            path = self.directory / name
            segment = Segment(path, size=path.stat().st_size)
            try:
                content = frames.read(path.read_bytes())
            except PermissionError as error:
                self.close()
                raise ConfigError(
                    f"{path} cannot be read ({describe_exception(error)}), and holds accepted pushes: chown it to the "
                    "user that pgherald runs as; perhaps it was run by root once"
                ) from None
            except OSError:
                content = frames.Content([], 0, [(0, segment.size)])
            segment.live, segment.damaged = len(content.entries), bool(content.damaged)
            torn += content.torn
            damage += [Damage(path, offset, size) for offset, size in content.damaged]
            self.segments.append(segment)
            self.size += segment.size
            found.append((segment, content.entries))
        return found, torn, damage

    # What raises OSError: a disk that may work again.

    def write(self, data: bytes) -> Segment:
        """Make these frames safe, all in one segment. With no space left, the reserve is given up for them."""
        with self._mutex:
            try:
                return self._write(data)
            except OSError as error:
                if error.errno not in _NO_SPACE or not self._spend_reserve():
                    raise
            return self._write(data)

    def _write(self, data: bytes) -> Segment:
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

    def _create(self) -> Segment:
        segment = Segment(self.directory / f"{self._next:016d}.spool")
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

    def remove(self, segments: Sequence[Segment]) -> None:
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

    def _remove(self, segment: Segment) -> None:
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
