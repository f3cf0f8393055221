"""Torn, flipped and foreign bytes in a spool: what can be read is replayed, and no loss goes unsaid."""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
import subprocess
import sys
import zlib
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgherald.errors import ConfigError
from pgherald.metrics import Metrics
from pgherald.model import PromptId
from pgherald.spool import Report, Spool
from tests.support.spools import crash, entry, events, numbers, open_and_crash, open_spool, segments, written

if TYPE_CHECKING:
    import io

    from pgherald.frames import Entry

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("logged")]


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


async def test_a_segment_of_another_user_is_not_damage_and_nothing_of_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a daemon that root ran leaves it: a chown brings it back, and until then nothing starts without it."""
    await written(tmp_path, [entry(1)])
    (name,) = segments(tmp_path)

    def denied(_path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        with pytest.raises(ConfigError, match=f"{name}.* chown it"):
            open_spool(tmp_path)
    assert segments(tmp_path) == [name]
    assert numbers(open_and_crash(tmp_path)) == [1]


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
from pgherald.metrics import Metrics
from pgherald.spool import Spool

async def main(state_dir, first):
    spool = Spool.open(state_dir, Metrics(), segment_bytes=3000, reserve_bytes=0)
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
