"""What the spool promises: an acceptance that `append` took is there after any crash, and it has one owner."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio
import pytest

from pgherald.errors import ConfigError
from pgherald.model import PromptId
from pgherald.spool import Report, SpoolFailed
from tests.support.spools import crash, entry, numbers, open_and_crash, open_spool, segments, used, written

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("logged")]


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
    busy, free = threading.Event(), threading.Event()

    def slow(_fd: int) -> None:
        busy.set()
        assert free.wait(60)

    monkeypatch.setattr(os, "fdatasync", slow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(spool.append, [entry(1)])
        await anyio.to_thread.run_sync(busy.wait)
        free.set()  # by the loop, or not at all
    crash(spool)


# Whose it is


HOLDER = """
import sys, time
from pathlib import Path
from pgherald.metrics import Metrics
from pgherald.spool import Spool
spool = Spool.open(Path(sys.argv[1]), Metrics())
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
