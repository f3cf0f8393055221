"""The spool's disk full, failing, torn or flipped, and a second daemon on it."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fault.brakes import stuck_records
from tests.fault.conftest import needs
from tests.fault.invariants import Broken
from tests.fault.machine import fill, small_disk
from tests.fault.promise import with_control
from tests.fault.world import FRAME, program, spooled_prompts, wait_until

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.promise import Promise, Worlds
    from tests.fault.world import Daemon, World


def spooled(world: World, count: int, variant: str | None = None) -> Daemon:
    """A daemon that was killed with so many acceptances in its spool and none in the database."""
    daemon = world.daemon(variant=variant)
    spool_more(world, daemon, count)
    return daemon


def spool_more(world: World, daemon: Daemon, count: int) -> None:
    """Have it spool so many more, record none, and be killed."""
    before = len(world.spooled)
    with stuck_records(world):
        world.act(world.people(count))
        wait_until(lambda: len(world.note_spool(daemon) | world.spooled) == before + count, "all in the spool")
        world.kill(daemon)
        world.hang_up()


def people_of(world: World, prompts: set[UUID]) -> list[UUID]:
    return [
        row[0] for row in world.ask("select user_id from herald.prompt where prompt_id = any(%s)", (list(prompts),))
    ]


def test_a_second_daemon_on_a_spool_is_refused_with_78(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        first = world.daemon("first")
        second = world.daemon("second", start=False, state_dir=first.state_dir)
        second.start(ready=False)
        assert second.wait() == 78
        assert "in use by another pgherald" in second.log
        world.act(world.people(3))
        world.rest()
        promise(world, unknown=())


def test_control_without_the_lock_a_second_daemon_is_let_in(make_world: Worlds) -> None:
    with make_world() as world:
        world.scenario()
        first = world.daemon("first", variant="shares_the_spool")
        world.daemon("second", variant="shares_the_spool", state_dir=first.state_dir)


@pytest.mark.parametrize(
    ("cut", "variant"),
    [
        pytest.param(1, None, id="1"),
        pytest.param(20, None, id="20", marks=pytest.mark.thorough),
        pytest.param(150, None, id="150", marks=pytest.mark.thorough),
        pytest.param(20, "goes_on_after_the_tail", id="control", marks=pytest.mark.thorough),
    ],
)
def test_a_torn_tail_costs_its_own_entry_and_no_other(
    make_world: Worlds, promise: Promise, cut: int, variant: str | None
) -> None:
    with make_world() as world:
        world.scenario()
        daemon = spooled(world, 6, variant)
        (segment,) = (daemon.state_dir / "spool").glob("*.spool")
        whole = segment.read_bytes().rstrip(b"\0")
        segment.write_bytes(whole[:-cut])
        torn = world.spooled - spooled_prompts(daemon.state_dir)
        assert len(torn) == 1
        world.spooled -= torn
        world.restart(daemon)
        world.rest()
        # and what is spooled after it is as safe as ever
        spool_more(world, daemon, 3)
        world.restart(daemon)
        world.rest(spools=False)
        if variant is None:
            # that one was accepted, and nobody can know: unknown, and not sent again
            promise(world, unknown=people_of(world, torn))
        else:
            with pytest.raises(Broken, match="lost: "):
                promise(world, metrics=False)


@pytest.mark.parametrize(
    ("where", "variant", "found"),
    [
        pytest.param("name", None, "", id="in FCM's name"),
        pytest.param("length", None, "", id="in the length", marks=pytest.mark.thorough),
        pytest.param("name", "trusts_lengths", "never answered: ", id="name-control", marks=pytest.mark.thorough),
        pytest.param("length", "trusts_lengths", "lost: ", id="length-control", marks=pytest.mark.thorough),
    ],
)
def test_a_flipped_bit_costs_its_own_entry_and_is_told(
    make_world: Worlds, promise: Promise, where: str, variant: str | None, found: str
) -> None:
    with make_world() as world:
        world.scenario()
        daemon = spooled(world, 6, variant)
        (segment,) = (daemon.state_dir / "spool").glob("*.spool")
        data = bytearray(segment.read_bytes())
        frames = [match.start() for match in re.finditer(re.escape(FRAME), data)]
        assert len(frames) == 6
        data[frames[2] + 4 if where == "length" else data.index(b'","dispatched_at"', frames[2]) - 1] ^= 1
        segment.write_bytes(data)
        lost = world.spooled - spooled_prompts(daemon.state_dir)
        assert len(lost) == 1
        world.spooled -= lost
        world.restart(daemon)
        world.rest()
        if variant is None:
            assert len(daemon.events("spool_damaged")) == 1
            promise(world, unknown=people_of(world, lost))
            assert daemon.metric("pgherald_spool_damaged_total") == 1
            assert list((daemon.state_dir / "spool").glob("*.damaged"))
        else:
            with pytest.raises(Broken, match=found):
                promise(world, metrics=False)


def test_control_a_spool_that_is_not_read_loses_all(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        daemon = spooled(world, 6)
        daemon.command = program("replays_nothing")
        world.restart(daemon)
        world.rest(spools=False)
        with pytest.raises(Broken, match="lost: "):
            promise(world, metrics=False)


@with_control("never_stops_claiming")
def test_a_full_disk_under_the_spool_stops_the_claiming_and_loses_nothing(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, open_directory: Path, variant: str | None
) -> None:
    with small_disk(open_directory, 8) as disk, make_world() as world:
        world.scenario()
        slots = "10" if variant is None else "25"  # as many again may wait for their record: all forty, if it goes on
        daemon = world.daemon(state_dir=disk / "state", variant=variant, max_in_flight=slots)
        fcm.set_faults({"do": "latency", "seconds": 0.05})
        world.act(world.people(5))
        world.rest()
        with stuck_records(world):
            filler = fill(disk, 4096)
            world.act(world.people(40))
            if variant is not None:
                world.wait_for_pushes(45)  # whatever was accepted since is in memory only
                return
            world.wait_for_pushes(10)
            wait_until(lambda: "spool_failing" in daemon.get("/readyz")[1], "it says so")
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


@with_control("never_stops_claiming")
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
            wait_until(lambda: "spool_failing" in daemon.get("/readyz")[1], "it says so")
            time.sleep(1.5)
            assert world.pushes() == []  # it was known at the start, before anything was claimed
            os.kill(daemon.wait_for_event("starting")["pid"], signal.SIGTERM)  # strace keeps it to itself
            assert daemon.wait() == 0
            world.daemon("two")
            world.rest()
            promise(world, unknown=())
        else:
            world.wait_for_pushes(20)  # nothing of what was accepted was ever safe
