"""The spool's disk full, failing, torn or flipped, and a second daemon on it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fault.brakes import stuck_records
from tests.fault.conftest import needs
from tests.fault.invariants import Broken
from tests.fault.machine import fill, small_disk
from tests.fault.world import spooled_prompts, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.invariants import Finding
    from tests.fault.world import Daemon, World

    Worlds = Callable[..., AbstractContextManager[World]]
    Promise = Callable[..., Finding]


def spooled(world: World, count: int) -> Daemon:
    """A daemon that was killed with so many acceptances in its spool and none in the database."""
    daemon = world.daemon()
    with stuck_records(world):
        world.act(world.people(count))
        world.wait_for_pushes(count)
        wait_until(lambda: len(world.note_spool(daemon)) == count, "all in the spool")
        world.kill(daemon)
        world.hang_up()
    return daemon


def test_a_second_daemon_on_a_spool_is_refused_with_78(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        first = world.daemon("first")
        second = world.daemon("second", start=False, state_dir=first.state_dir)
        second.start(ready=False)
        assert second.wait() == 78
        assert "in use by another pgherald" in second.text
        world.act(world.people(3))
        world.rest()
        promise(world, unknown=())


def test_control_without_the_lock_a_second_daemon_is_let_in(make_world: Worlds) -> None:
    with make_world() as world:
        world.scenario()
        first = world.daemon("first", variant="shares_the_spool")
        world.daemon("second", variant="shares_the_spool", state_dir=first.state_dir)


@pytest.mark.parametrize("cut", [1, *(pytest.param(cut, marks=pytest.mark.thorough) for cut in (20, 150))])
def test_a_torn_tail_costs_its_own_entry_and_no_other(make_world: Worlds, promise: Promise, cut: int) -> None:
    with make_world() as world:
        world.scenario()
        daemon = spooled(world, 6)
        (segment,) = (daemon.state_dir / "spool").glob("*.spool")
        whole = segment.read_bytes().rstrip(b"\0")
        segment.write_bytes(whole[:-cut])
        torn = world.spooled - spooled_prompts(daemon.state_dir)
        assert len(torn) == 1
        world.spooled -= torn
        world.restart(daemon)
        world.rest()
        # that one was accepted, and nobody can know: unknown, and not sent again
        people = [
            row[0] for row in world.ask("select user_id from herald.prompt where prompt_id = any(%s)", (list(torn),))
        ]
        promise(world, unknown=people)


@pytest.mark.parametrize("at", [0.3, pytest.param(0.6, marks=pytest.mark.thorough)])
def test_a_flipped_bit_costs_its_own_entry_and_is_told(make_world: Worlds, promise: Promise, at: float) -> None:
    with make_world() as world:
        world.scenario()
        daemon = spooled(world, 6)
        (segment,) = (daemon.state_dir / "spool").glob("*.spool")
        data = bytearray(segment.read_bytes())
        data[int(len(data) * at)] ^= 0x10
        segment.write_bytes(data)
        lost = world.spooled - spooled_prompts(daemon.state_dir)
        assert len(lost) == 1
        world.spooled -= lost
        world.restart(daemon)
        assert len(daemon.events("spool_damaged")) == 1
        world.rest()
        people = [
            row[0] for row in world.ask("select user_id from herald.prompt where prompt_id = any(%s)", (list(lost),))
        ]
        promise(world, unknown=people)
        assert daemon.metric("pgherald_spool_damaged_total") == 1
        assert list((daemon.state_dir / "spool").glob("*.damaged"))


def test_control_a_spool_that_is_not_read_loses_all(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        daemon = spooled(world, 6)
        daemon.variant = "replays_nothing"
        world.restart(daemon)
        world.rest(spools=False)
        with pytest.raises(Broken, match="lost: "):
            promise(world, metrics=False)


def test_a_full_disk_under_the_spool_stops_the_claiming_and_loses_nothing(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, open_directory: Path
) -> None:
    with small_disk(open_directory, 8) as disk, make_world() as world:
        world.scenario()
        daemon = world.daemon(state_dir=disk / "state")
        fcm.set_faults({"do": "latency", "seconds": 0.05})
        world.act(world.people(5))
        world.rest()
        with stuck_records(world):
            filler = fill(disk, 4096)
            world.act(world.people(40))
            world.wait_for_pushes(10)
            wait_until(lambda: "spool_failing" in daemon.page("/readyz"), "it says so")
            assert daemon.metric("pgherald_spool_failing") == 1
            wait_until(lambda: daemon.metric("pgherald_in_flight") == 0, "what was claimed has been sent")
            sent = len(world.pushes())
            time.sleep(1)
            assert len(world.pushes()) == sent
            world.note_spool(daemon)
        filler.unlink()
        world.rest()
        # the database took the records of what the disk did not
        promise(world, unknown=())
        assert world.statuses() == {"sent": 45}


@pytest.mark.parametrize(
    "variant",
    [pytest.param(None, id="promise"), pytest.param("never_stops_claiming", id="control", marks=pytest.mark.thorough)],
)
def test_a_disk_that_fails_under_the_spool_stops_the_claiming(
    make_world: Worlds, promise: Promise, variant: str | None
) -> None:
    needs("strace", "a disk that fails")
    with make_world() as world:
        world.scenario()
        failing = (
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fdatasync",
            "-e",
            "inject=fdatasync:error=EIO",
        )
        daemon = world.daemon(wrapper=failing, variant=variant)
        world.act(world.people(20))
        if variant is None:
            wait_until(lambda: "spool_failing" in daemon.page("/readyz"), "it says so")
            time.sleep(1.5)
            assert world.pushes() == []  # it was known at the start, before anything was claimed
            os.kill(daemon.wait_for("starting")["pid"], signal.SIGTERM)  # strace keeps it to itself
            assert daemon.wait() == 0
            world.daemon("two")
            world.rest()
            promise(world, unknown=())
        else:
            world.wait_for_pushes(20)  # nothing of what was accepted was ever safe
