"""A spool on a disk that fails or is full: a real, full tmpfs, or a system call that is made to fail."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import pytest

from pgherald.metrics import Metrics
from pgherald.model import PromptId
from pgherald.spool import Spool, SpoolFailed
from tests.support.spools import crash, entry, events, is_failing, numbers, open_spool, segments, used, written

if TYPE_CHECKING:
    import io
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("logged")]


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
    assert caught.value.code != "FULL"
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
    with pytest.raises(SpoolFailed) as caught:
        await spool.append([entry(number)])
    assert caught.value.code == "FULL"
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
from pgherald.metrics import Metrics
from pgherald.spool import Spool, SpoolFailed

def entry(number):
    return Entry(UUID(int=number), 1, UUID(int=1), UUID(int=2), "projects/p/messages/1", datetime.now(UTC))

async def main(state_dir):
    spool = Spool.open(state_dir, Metrics(), segment_bytes=20_000, reserve_bytes=int(sys.argv[2]))
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
    spool = Spool.open(state_dir, Metrics(), reserve_bytes=0)
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
