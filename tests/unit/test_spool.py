"""What the spool promises: an acceptance that `append` took is there after any crash, and nothing is lost unsaid.

The disks here are real; where one has to fail it is a full tmpfs, or the system call is made to fail.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import zlib
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgherald.config import LogLevel
from pgherald.errors import ConfigError
from pgherald.frames import Entry
from pgherald.log import log
from pgherald.metrics import Metrics
from pgherald.model import DeviceId, NotificationId, PromptId
from pgherald.spool import Report, Spool, SpoolFailed, SpoolFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def logged() -> Iterator[io.StringIO]:
    """What is said while the test runs; a misuse of the log is an error."""
    out, strict = io.StringIO(), log.strict
    log.set_up(LogLevel.DEBUG, out, strict=True)
    yield out
    log.set_up(LogLevel.INFO, None, strict=strict)


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
    return Spool.open(state_dir, **{"reserve_bytes": 0, **limits})


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


class Reader:
    """Reads any bytes as the one segment of a spool."""

    def __init__(self, base: Path) -> None:
        self._numbers = count()
        self._base = base
        self.frames = 0  # of the last read, copies included

    async def read(self, data: bytes) -> tuple[list[Entry], Report, Path]:
        state_dir = self._base / f"read{next(self._numbers)}"
        (state_dir / "spool").mkdir(parents=True)
        (state_dir / "spool" / "0000000000000001.spool").write_bytes(data)
        spool = open_spool(state_dir)
        self.frames = spool.entries
        crash(spool)
        return spool.replay(), spool.report, state_dir


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(os, "fdatasync", lambda _fd: None)  # thousands of spools, none of which has to last
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    return Reader(tmp_path)


# What is kept


async def test_what_was_appended_is_replayed_after_a_crash_in_order_and_unchanged(tmp_path: Path) -> None:
    entries = [entry(1), entry(2, name='projects/p/messages/é\u2028\0"\\'), entry(3, epoch=2**40)]
    spool = open_spool(tmp_path)
    assert spool.replay() == []
    await spool.append(entries[:1])
    await spool.append(entries[1:])
    assert spool.entries == 3
    crash(spool)
    spool = open_spool(tmp_path)
    assert spool.replay() == entries
    assert (spool.entries, spool.report) == (3, Report(3, 0, ()))
    crash(spool)


async def test_what_is_done_is_not_replayed_again_and_takes_no_room(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    await spool.append([entry(1), entry(2)])
    await spool.done([PromptId(UUID(int=1)), PromptId(uuid4())])
    assert spool.entries == 1
    await spool.close()
    spool = open_spool(tmp_path)
    assert 2 in numbers(spool.replay())
    await spool.done(each.prompt_id for each in spool.replay())
    assert (spool.replay(), spool.entries) == ([], 0)
    await spool.close()
    assert segments(tmp_path) == []
    spool = open_spool(tmp_path)
    assert spool.replay() == []
    crash(spool)


async def test_all_devices_of_a_prompt_are_done_together_and_replayed_apart(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    both = [entry(1, device=1), entry(1, device=2)]
    await spool.append(both[:1])
    await spool.append(both)
    crash(spool)
    spool = open_spool(tmp_path)
    assert spool.replay() == both
    await spool.done([both[0].prompt_id])
    assert spool.entries == 0
    await spool.close()
    assert segments(tmp_path) == []


@pytest.mark.parametrize("name", ["\ud800", "x" * 100_000, ""])
async def test_no_name_that_fcm_can_give_keeps_an_acceptance_from_being_written(tmp_path: Path, name: str) -> None:
    spool = open_spool(tmp_path)
    await spool.append([entry(1, name=name), entry(2)])
    crash(spool)
    spool = open_spool(tmp_path)
    assert numbers(spool.replay()) == [1, 2]
    crash(spool)


async def test_the_files_hold_ids_and_nothing_else_and_are_the_owners_alone(tmp_path: Path) -> None:
    state_dir = tmp_path / "a" / "b"
    data = await written(state_dir, [entry(1)])
    payload = json.loads(data[16:])
    assert set(payload) == {"v", "prompt_id", "epoch", "notification_id", "device_id", "message_name", "dispatched_at"}
    assert stat.S_IMODE((state_dir / "spool").stat().st_mode) == 0o700
    for path in (state_dir / "spool").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_directory_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o755)
    spool = open_spool(tmp_path)
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    crash(spool)


async def test_segments_rotate_by_size_and_go_when_all_in_them_is_done(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, segment_bytes=1000)
    for number in range(40):
        await spool.append([entry(number)])
    assert len(segments(tmp_path)) == 10
    await spool.done([PromptId(UUID(int=number)) for number in range(20)])
    assert len(segments(tmp_path)) == 5
    await spool.done([PromptId(UUID(int=number)) for number in range(21, 40)])
    assert len(segments(tmp_path)) == 1
    crash(spool)
    spool = open_spool(tmp_path)
    assert 20 in numbers(spool.replay())
    await spool.append([entry(99)])  # numbers are not used twice
    assert len(segments(tmp_path)) == 2
    crash(spool)


async def test_a_steady_flow_that_is_settled_leaves_the_directory_small(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, segment_bytes=16_000)
    for number in range(500):
        await spool.append([entry(number)])
        await spool.done([PromptId(UUID(int=number))])
    assert used(tmp_path) < 2000
    assert spool.entries == 0
    crash(spool)


async def test_an_empty_append_does_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    await spool.append([])
    assert segments(tmp_path) == []
    crash(spool)


# When it is safe


class PowerCut:
    """Knows what would be on the disk if the power went now: files as of their last fdatasync, under names as of the
    directory's last fsync. A file system may keep more than that, and never less."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, syncs_files: bool = True, syncs_names: bool = True) -> None:
        self.inodes: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        fdatasync, fsync = os.fdatasync, os.fsync

        def data(fd: int) -> None:
            fdatasync(fd)
            if syncs_files:
                self.inodes[os.fstat(fd).st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

        def directory(fd: int) -> None:
            fsync(fd)
            if syncs_names:
                self.names = {each.name: each.inode() for each in os.scandir(fd)}

        monkeypatch.setattr(os, "fdatasync", data)
        monkeypatch.setattr(os, "fsync", directory)

    def left(self, base: Path) -> list[int]:
        """The entries that a start after the power cut would replay."""
        state_dir = base / f"cut{uuid4()}"
        (state_dir / "spool").mkdir(parents=True)
        for name, inode in self.names.items():
            (state_dir / "spool" / name).write_bytes(self.inodes.get(inode, b""))
        with pytest.MonkeyPatch.context() as without:
            without.setattr(os, "fdatasync", lambda _fd: None)
            without.setattr(os, "fsync", lambda _fd: None)
            spool = open_spool(state_dir)
            crash(spool)
        return numbers(spool.replay())


async def append_and_cut(cut: PowerCut, base: Path) -> None:
    spool = open_spool(base / "state", segment_bytes=600)
    for number in range(8):
        await spool.append([entry(number)])
        assert set(range(number + 1)) <= set(cut.left(base))
    crash(spool)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux' /proc")
async def test_an_append_that_returned_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await append_and_cut(PowerCut(monkeypatch), tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux' /proc")
@pytest.mark.parametrize("naive", [{"syncs_files": False}, {"syncs_names": False}])
async def test_the_power_cut_would_find_a_missing_sync(
    naive: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError):
        await append_and_cut(PowerCut(monkeypatch, **naive), tmp_path)


async def test_appends_that_come_while_the_disk_is_busy_share_one_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path)
    busy, free, syncs, returned = threading.Event(), threading.Event(), [0], []
    fdatasync = os.fdatasync

    def slow(fd: int) -> None:
        syncs[0] += 1
        busy.set()
        assert free.wait(60)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)

    async def append(number: int) -> None:
        await spool.append([entry(number)])
        returned.append(number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append, 0)
        await anyio.to_thread.run_sync(busy.wait)
        for number in range(1, 100):
            tasks.start_soon(append, number)
        await anyio.wait_all_tasks_blocked()
        assert returned == []  # nothing is safe before it is synced
        free.set()
    assert sorted(returned) == list(range(100))
    assert syncs == [2]
    crash(spool)
    assert sorted(numbers(open_and_crash(tmp_path))) == list(range(100))


def open_and_crash(state_dir: Path) -> list[Entry]:
    spool = open_spool(state_dir)
    crash(spool)
    return spool.replay()


async def test_an_append_that_has_begun_is_written_even_if_its_caller_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path)
    busy, free = threading.Event(), threading.Event()
    fdatasync = os.fdatasync

    def slow(fd: int) -> None:
        busy.set()
        assert free.wait(60)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(spool.append, [entry(number)])
        await anyio.to_thread.run_sync(busy.wait)
        for number in range(10, 20):
            tasks.start_soon(spool.append, [entry(number)])
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        free.set()
    assert spool.entries == 20
    await spool.close()
    assert numbers(open_and_crash(tmp_path)) == list(range(20))


async def test_the_event_loop_turns_while_the_disk_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path)
    ready = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _fd: ready.wait(60))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(spool.append, [entry(1)])
        for _ in range(20):
            await anyio.sleep(0.001)
        ready.set()
    crash(spool)


# Crashes and damage


async def test_a_segment_cut_off_at_any_byte_gives_every_entry_before_the_cut(tmp_path: Path, reader: Reader) -> None:
    entries = [entry(number) for number in range(3)]
    data = await written(tmp_path, entries)
    assert len(data) % 3 == 0
    for length in range(len(data) + 1):
        found, report, state_dir = await reader.read(data[:length])
        whole = length // (len(data) // 3)
        assert found == entries[:whole]
        assert report == Report(whole, length - whole * (len(data) // 3), ())
        assert len(segments(state_dir)) == (1 if whole else 0)


async def test_a_file_that_had_grown_before_its_bytes_came_is_torn_and_not_damaged(
    tmp_path: Path, reader: Reader
) -> None:
    entries = [entry(number) for number in range(2)]
    data = await written(tmp_path, entries)
    half = len(data) // 2
    for length in range(half, len(data)):
        found, report, _ = await reader.read(data[:length] + bytes(len(data) - length + 4096))
        assert found == entries[:1]
        assert (report.torn_bytes, report.damage) == (len(data) - half + 4096, ())


async def test_a_flipped_bit_anywhere_costs_one_entry_and_is_reported(tmp_path: Path, reader: Reader) -> None:
    entries = [entry(number) for number in range(3)]
    data = await written(tmp_path, entries)
    size = len(data) // 3
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << random.randrange(8)
        found, report, state_dir = await reader.read(bytes(flipped))
        hit = at // size
        assert found == entries[:hit] + entries[hit + 1 :]
        assert [(each.offset, each.size) for each in report.damage] == [(hit * size, size)]
        assert report.torn_bytes == 0
        assert report.damage[0].path == state_dir / "spool" / "0000000000000001.spool"


@given(
    cuts=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900), st.binary(max_size=40)), max_size=4),
    copies=st.integers(0, 2),
)
@example(cuts=[(0, 900, b"\xffHS\x01" * 10)], copies=1)
@example(cuts=[(5, 5, b"\xffHS\x01\xff\xff\xff\xff")], copies=1)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200)
async def test_whatever_happens_to_the_bytes_no_entry_is_made_up_and_no_loss_is_unsaid(
    tmp_path_factory: pytest.TempPathFactory, reader: Reader, cuts: list[tuple[int, int, bytes]], copies: int
) -> None:
    entries = [entry(number) for number in range(3)]
    whole = await written(tmp_path_factory.mktemp("spool"), entries)
    data, size = bytearray(whole * copies), len(whole) // 3
    for begin, length, instead in cuts:
        data[begin : begin + length] = instead
    found, report, _ = await reader.read(bytes(data))
    assert set(found) <= set(entries)
    unread = report.torn_bytes + sum(each.size for each in report.damage)
    assert reader.frames * size + unread == len(data)


async def test_garbage_alone_is_damage_and_kept(reader: Reader, logged: io.StringIO) -> None:
    found, report, state_dir = await reader.read(b"this was never a segment, and is longer than a header")
    assert (found, len(report.damage)) == ([], 1)
    assert segments(state_dir) == ["0000000000000001.spool.damaged"]
    assert "spool_damaged" in events(logged)


async def test_a_damaged_segment_is_kept_aside_once_its_readable_entries_are_done(
    tmp_path: Path, logged: io.StringIO
) -> None:
    data = bytearray(await written(tmp_path, [entry(1), entry(2), entry(3)]))
    data[len(data) // 2] ^= 255
    (tmp_path / "spool" / segments(tmp_path)[0]).write_bytes(data)
    for _ in range(2):  # a crash before they are done loses nothing
        metrics = Metrics()
        spool = Spool.open(tmp_path, metrics, reserve_bytes=0)
        assert numbers(spool.replay()) == [1, 3]
        assert (len(spool.report.damage), metrics.spool_damaged_total.value()) == (1, 1)
        crash(spool)
    spool = open_spool(tmp_path)
    await spool.done([PromptId(UUID(int=1)), PromptId(UUID(int=3))])
    assert segments(tmp_path) == ["0000000000000001.spool.damaged"]
    assert (tmp_path / "spool" / segments(tmp_path)[0]).read_bytes() == data
    await spool.append([entry(4)])
    crash(spool)
    spool = open_spool(tmp_path)
    assert (numbers(spool.replay()), spool.report.damage) == ([4], ())
    assert segments(tmp_path) == ["0000000000000001.spool.damaged", "0000000000000002.spool"]
    crash(spool)
    assert events(logged).count("spool_damaged") == 3


async def test_an_intact_entry_that_a_newer_version_wrote_is_kept_aside_and_reported(reader: Reader) -> None:
    for content in (b'{"v":2}', b"[]", b"{", b'{"v":1,"prompt_id":3}', b"", b'{"v":1,"dispatched_at":"2026-01-31"}'):
        head = struct.pack("<4sII", b"\xffHS\x01", len(content), zlib.crc32(content))
        frame = head + struct.pack("<I", zlib.crc32(head)) + content
        found, report, state_dir = await reader.read(frame)
        assert (found, len(report.damage)) == ([], 1)
        assert segments(state_dir) == ["0000000000000001.spool.damaged"]


async def test_a_segment_that_the_disk_cannot_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await written(tmp_path, [entry(1)])

    def broken(_path: Path) -> bytes:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    spool = open_spool(tmp_path)
    assert len(spool.report.damage) == 1
    crash(spool)


async def test_files_that_are_not_the_spools_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "README").write_text("x")
    (tmp_path / "spool" / "1.spool").write_text("x")
    spool = open_spool(tmp_path)
    await spool.close()
    assert {"README", "1.spool"} <= set(os.listdir(tmp_path / "spool"))


WRITER = """
import sys, anyio
from datetime import datetime, UTC
from pathlib import Path
from uuid import UUID
from pgherald.frames import Entry
from pgherald.spool import Spool

async def main(state_dir, first):
    spool = Spool.open(state_dir, segment_bytes=3000, reserve_bytes=0)
    print("replay", *(each.prompt_id.int for each in spool.replay()), flush=True)

    async def write(number):
        while True:
            entry = Entry(UUID(int=number), 1, UUID(int=1), UUID(int=2), "projects/p/messages/1", datetime.now(UTC))
            await spool.append([entry])
            print("safe", number, flush=True)
            if number % 3 == 0:
                print("done", number, flush=True)
                await spool.done([UUID(int=number)])
            number += 5

    async with anyio.create_task_group() as tasks:
        for k in range(5):
            tasks.start_soon(write, first + k)

anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
"""


def test_every_entry_that_a_killed_process_called_safe_is_there_at_the_next_start(tmp_path: Path) -> None:
    safe: set[int] = set()
    done: set[int] = set()
    replayed: set[int] = set()
    for turn in range(6):
        first = 1 + max(safe, default=0) + 100
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(first)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as child:
            assert child.stdout is not None
            wanted = random.randrange(1, 300)
            for line in child.stdout:
                word, *rest = line.split()
                if word == "replay":
                    replayed = set(map(int, rest))
                    assert safe - done <= replayed, f"lost by the crash before start {turn}"
                elif rest and line.endswith("\n"):
                    (safe if word == "safe" else done).add(int(rest[0]))
                wanted -= 1
                if wanted == 0:
                    child.send_signal(signal.SIGKILL)
    found = set(numbers(open_and_crash(tmp_path)))
    assert len(safe) > 10
    assert safe - done <= found


# Disks that fail


class Failing:
    """Makes one system call fail while `error` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        self.error: int | None = None
        real = getattr(os, call)

        def maybe(*args: Any, **kwargs: Any) -> Any:
            if self.error is not None:
                raise OSError(self.error, "planted")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, maybe)


@pytest.mark.parametrize("call", ["write", "fdatasync", "open"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS])
async def test_a_disk_that_fails_is_said_so_and_stays_failing_until_it_works_again(
    call: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: io.StringIO
) -> None:
    metrics = Metrics()
    spool = Spool.open(tmp_path, metrics, reserve_bytes=0, segment_bytes=600)
    await spool.append([entry(number) for number in range(3)])
    assert not is_failing(spool)
    disk = Failing(monkeypatch, call)
    disk.error = error
    with pytest.raises(SpoolFailed, match=errno.errorcode[error]) as caught:
        await spool.append([entry(10)])
    assert not isinstance(caught.value, SpoolFull)
    assert spool.failing
    assert not await spool.probe()
    assert (spool.entries, metrics.spool_failing.value()) == (3, 1)
    disk.error = None
    assert spool.failing  # until it is known to work
    await spool.append([entry(11)])
    assert spool.failing
    assert await spool.probe()
    assert not is_failing(spool)
    assert metrics.spool_failing.value() == 0
    assert events(logged).count("spool_failed") == 1
    assert events(logged).count("spool_recovered") == 1
    await spool.append([entry(12)])
    crash(spool)
    found = open_spool(tmp_path)
    assert {0, 1, 2, 11, 12} <= set(numbers(found.replay())) <= {0, 1, 2, 10, 11, 12}
    assert found.report.damage == ()
    crash(found)


async def test_everyone_who_shares_a_failed_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path)
    disk = Failing(monkeypatch, "fdatasync")
    disk.error = errno.EIO
    told = []

    async def append(number: int) -> None:
        with pytest.raises(SpoolFailed):
            await spool.append([entry(number)])
        told.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(append, number)
    assert len(told) == 20
    assert segments(tmp_path) == []
    crash(spool)


async def test_a_file_whose_sync_failed_is_never_synced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path)
    await spool.append([entry(1)])
    disk = Failing(monkeypatch, "fdatasync")
    disk.error = errno.EIO
    with pytest.raises(SpoolFailed):
        await spool.append([entry(2)])
    disk.error = None
    await spool.append([entry(3)])
    assert segments(tmp_path) == ["0000000000000001.spool", "0000000000000002.spool"]
    crash(spool)


async def test_a_full_spool_takes_no_more_until_records_are_in_and_says_so_in_time(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, max_bytes=16_000, segment_bytes=2000)
    number = 0
    while not spool.failing:
        await spool.append([entry(number)])
        number += 1
    assert 15_000 <= used(tmp_path) < 15_600
    assert not await spool.probe()
    while used(tmp_path) + 300 < 16_000:  # what was in flight still finds room
        await spool.append([entry(number)])
        number += 1
    with pytest.raises(SpoolFull):
        await spool.append([entry(number)])
    assert used(tmp_path) <= 16_000
    await spool.done([PromptId(UUID(int=each)) for each in range(number)])
    assert not is_failing(spool)
    await spool.append([entry(number)])
    await spool.close()


async def test_a_segment_that_cannot_be_deleted_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: io.StringIO
) -> None:
    spool = open_spool(tmp_path, segment_bytes=100)
    for number in range(3):
        await spool.append([entry(number)])
    disk = Failing(monkeypatch, "unlink")
    disk.error = errno.EROFS
    for number in range(3):
        await spool.done([PromptId(UUID(int=number))])
    await spool.done([])
    assert len(segments(tmp_path)) == 3
    assert events(logged).count("spool_segment_stuck") == 3
    disk.error = None
    assert await spool.probe()
    assert segments(tmp_path) == []
    crash(spool)


async def test_a_spool_whose_files_were_deleted_writes_new_ones(tmp_path: Path, logged: io.StringIO) -> None:
    spool = open_spool(tmp_path)
    await spool.append([entry(1)])
    (tmp_path / "spool" / segments(tmp_path)[0]).unlink()
    await spool.append([entry(2)])
    assert "spool_segment_vanished" in events(logged)
    shutil.rmtree(tmp_path / "spool")
    with pytest.raises(SpoolFailed):
        await spool.append([entry(3)])
    await spool.done([PromptId(UUID(int=1)), PromptId(UUID(int=2))])
    assert not await spool.probe()
    crash(spool)


async def test_a_disk_that_is_full_at_start_is_no_reason_not_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(tmp_path, [entry(1)])
    disk = Failing(monkeypatch, "write")
    disk.error = errno.ENOSPC
    spool = open_spool(tmp_path)
    assert spool.failing
    assert numbers(spool.replay()) == [1]
    disk.error = None
    assert await spool.probe()
    crash(spool)


FULL_DISK = """
import anyio, os, sys
from datetime import datetime, UTC
from pathlib import Path
from uuid import UUID
from pgherald.frames import Entry
from pgherald.spool import Spool, SpoolFailed, SpoolFull

def entry(number):
    return Entry(UUID(int=number), 1, UUID(int=1), UUID(int=2), "projects/p/messages/1", datetime.now(UTC))

async def main(state_dir):
    spool = Spool.open(state_dir, segment_bytes=20_000, reserve_bytes=int(sys.argv[2]))
    assert not spool.failing
    filler, safe, in_reserve = state_dir / "filler", [], 0
    await spool.append([entry(0)])
    safe.append(0)
    with filler.open("wb") as file:
        try:
            while True:
                os.write(file.fileno(), bytes(4096))
        except OSError:
            pass
    for number in range(1, 100_000):
        try:
            await spool.append([entry(number)])
        except SpoolFailed as error:
            assert not isinstance(error, SpoolFull)
            assert error.code == "OSError[ENOSPC]", error.code
            break
        safe.append(number)
        in_reserve += spool.failing
    assert spool.failing
    assert not await spool.probe()
    filler.unlink()
    assert await spool.probe()
    await spool.append([entry(200_000)])
    safe.append(200_000)
    spool._disk.close()
    spool = Spool.open(state_dir, reserve_bytes=0)
    found = {each.prompt_id.int for each in spool.replay()}
    assert set(safe) <= found, set(safe) - found
    assert spool.report.damage == ()
    print("safe", len(safe), "in_reserve", in_reserve)

anyio.run(main, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("reserve", [0, 131_072])
def test_a_full_disk_loses_nothing_that_was_called_safe_and_the_reserve_takes_what_was_in_flight(
    reserve: int, tmp_path: Path
) -> None:
    script = 'mount -t tmpfs -o size=512k tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL_DISK, str(reserve)]
    if os.geteuid() != 0 or subprocess.run([*command[:2], "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("NOT TESTED on a full disk: needs root, to mount a small tmpfs in a mount namespace of its own")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, safe, _, in_reserve = done.stdout.split()
    assert int(safe) >= 2
    assert (int(in_reserve) > 400) == (reserve > 0)


# Whose it is


HOLDER = """
import sys, time
from pathlib import Path
from pgherald.spool import Spool
spool = Spool.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_daemon_on_the_same_spool_refuses_to_start_and_names_the_first(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(ConfigError) as caught:
            open_spool(tmp_path)
        assert f"in use by another pgherald (pid {child.pid})" in str(caught.value)
        assert "PGHERALD_STATE_DIR" in str(caught.value)
        assert caught.value.exit_code == 78
        child.stdin.close()
        child.wait()
    spool = open_spool(tmp_path)  # however the first one ended
    with pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
        open_spool(tmp_path)
    crash(spool)


async def test_closing_lets_another_one_open_it(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    await spool.append([entry(1)])
    await spool.close()
    await spool.close()
    with pytest.raises(SpoolFailed, match="closed"):
        await spool.append([entry(2)])
    await spool.done([PromptId(UUID(int=1))])
    assert not await spool.probe()
    assert numbers(open_and_crash(tmp_path)) == [1]


def file_in_place(path: Path) -> Path:
    (path / "state").write_text("x")
    return path / "state"


def spool_is_a_file(path: Path) -> Path:
    (path / "spool").write_text("x")
    return path


def not_ours(path: Path) -> Path:
    path.chmod(0o555)
    return path / "state"


def spool_not_ours(path: Path) -> Path:
    (path / "spool").mkdir(mode=0o555)
    return path


@pytest.mark.parametrize("make", [file_in_place, spool_is_a_file, not_ours, spool_not_ours])
def test_a_place_that_cannot_be_used_is_a_configuration_error_that_names_it(make: Callable[[Path], Path]) -> None:
    base = Path(subprocess.run(["mktemp", "-d"], capture_output=True, check=True, text=True).stdout.strip())
    base.chmod(0o755)
    me = os.geteuid()
    try:
        state_dir = make(base)
        if me == 0:
            os.seteuid(65534)  # root may write anywhere
        with pytest.raises(ConfigError) as caught:
            open_spool(state_dir)
    finally:
        os.seteuid(me)
        shutil.rmtree(base)
    assert str(caught.value).startswith(f"the spool {state_dir / 'spool'} cannot be used (")
    assert "PGHERALD_STATE_DIR must name a directory" in str(caught.value)


def test_a_file_system_without_locks_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(ConfigError, match="ENOLCK"):
        open_spool(tmp_path)


def test_it_can_be_opened_before_there_is_an_event_loop(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)

    async def use() -> None:
        await spool.append([entry(1)])
        await spool.done([PromptId(UUID(int=1))])
        await spool.close()

    anyio.run(use)
    assert segments(tmp_path) == []


async def test_it_can_be_opened_in_a_worker_thread(tmp_path: Path) -> None:
    spool = await anyio.to_thread.run_sync(open_spool, tmp_path)
    await spool.append([entry(1)])
    await spool.close()
