"""Daemons that are stopped: by systemd, by the scheduler of the machine, by what blocks their loop."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.fault import naive
from tests.fault.invariants import Broken
from tests.fault.test_database import link_to
from tests.fault.test_kills import stuck_records
from tests.fault.world import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from uuid import UUID

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.invariants import Finding
    from tests.fault.world import World

    Worlds = Callable[..., AbstractContextManager[World]]
    Promise = Callable[..., Finding]


@pytest.mark.parametrize("accepted", [False, True], ids=["before FCM has it", "after FCM has it"])
def test_a_daemon_that_slept_through_its_lease_sends_nothing_and_reconciles(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, accepted: bool
) -> None:
    with make_world() as world:
        world.scenario()
        people = world.people(10)
        first = world.daemon("first")
        fcm.set_faults({"do": "latency", "seconds": 0.3})
        freeze(world, people, accepted, promise, spoiled=None)
        assert first.running


def freeze(world: World, people: list[UUID], accepted: bool, promise: Promise, *, spoiled: str | None) -> None:
    first = world.daemons["first"]
    world.act(people)
    if accepted:
        world.wait_for_pushes(len(people))
    else:
        wait_until(lambda: world.statuses().get("sending", 0) > 0, "claimed")
    first.send(signal.SIGSTOP)
    second = world.daemon("second")
    wait_until(lambda: not world.statuses().get("sending"), "given up by the other", 30)
    first.send(signal.SIGCONT)
    time.sleep(1)
    world.rest(time_passes=spoiled is None)
    if spoiled is not None:
        with pytest.raises(Broken, match="pushed twice"):
            promise(world, metrics=False)
        return
    promise(world)
    assert second.running


def test_control_a_frozen_owner_and_a_lease_that_is_reclaimed_push_twice(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess
) -> None:
    with make_world() as world:
        world.scenario()
        naive.spoil(world, "lease and reclaim")
        people = world.people(10)
        world.daemon("first")
        fcm.set_faults({"do": "latency", "seconds": 0.3})
        freeze(world, people, True, promise, spoiled="lease and reclaim")


@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm_with_fifty_in_flight(make_world: Worlds, promise: Promise, fcm: EmulatorProcess, signals: int) -> None:
    with make_world() as world:
        world.scenario()
        people = world.people(80)
        daemon = world.daemon(max_in_flight="50", send_deadline="2")
        fcm.set_faults({"do": "latency", "seconds": 0.7})
        world.act(people)
        wait_until(lambda: world.statuses().get("sending", 0) >= 50, "fifty in flight")
        daemon.send(signal.SIGTERM)
        if signals == 2:
            daemon.wait_for("stopping")
            daemon.send(signal.SIGTERM)
        assert daemon.process is not None
        assert daemon.process.wait(20) == 0
        after = world.statuses()
        assert "sending" not in after
        if signals == 1:
            assert after.get("sent", 0) >= 50
            assert "unknown" not in after
        fcm.set_faults()
        world.daemon("next")
        world.rest()
        # the second signal ends what is under way: nobody can know what became of that
        finding = promise(world, unknown=() if signals == 1 else None)
        assert finding.unknown <= 50


@pytest.mark.parametrize("variant", [None, "forgets_what_it_asked_for"], ids=["promise", "control"])
def test_a_claim_that_a_second_sigterm_finds_unanswered_is_given_back(
    make_world: Worlds, promise: Promise, variant: str | None
) -> None:
    with make_world(tcp=True) as world, link_to(world) as (link, dsn):
        world.scenario()
        people = world.people(10)
        daemon = world.daemon(dsn=dsn, variant=variant)
        with claims_held_up(world):
            world.act(people)
            wait_until(lambda: waits_for_advice(world), "a claim under way")
            link.hold()
        wait_until(lambda: world.statuses() == {"sending": len(people)}, "the claim's commit")
        for event in ("stopping", "stopping_at_once"):
            daemon.send(signal.SIGTERM)
            daemon.wait_for(event)
        link.let_go()
        assert daemon.process is not None
        assert daemon.process.wait(20) == 0
        assert world.pushes() == []
        if variant is None:
            assert world.statuses() == {"ready": len(people)}
        world.daemon("next")
        world.rest()
        if variant is None:
            promise(world, unknown=())
        else:
            with pytest.raises(Broken, match="unknown: "):
                promise(world, unknown=(), metrics=False)


@contextmanager
def claims_held_up(world: World) -> Iterator[None]:
    """While it lasts, a claim goes as far as its first row, and no further."""
    world.db.execute(HELD_UP.encode())
    with world.database.connect() as other:
        other.execute("select pg_advisory_lock(77)")
        yield
        other.execute("select pg_advisory_unlock(77)")


HELD_UP = """
create function public.hold_up() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock_shared(77);
  return new;
end
$$;
create trigger hold_up before update on herald.prompt for each row
  when (old.status = 'ready' and new.status = 'sending') execute function public.hold_up();
"""


def waits_for_advice(world: World) -> bool:
    return bool(
        world.ask(
            "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' "
            "and wait_event = 'advisory'"
        )
    )


def test_control_a_daemon_that_keeps_no_spool_is_found_out_when_the_records_are_late(
    make_world: Worlds, promise: Promise
) -> None:
    with make_world() as world:
        world.scenario()
        naive.spoil(world, "no sweep")
        daemon = world.daemon(variant="keeps_no_spool")
        with stuck_records(world):
            world.act(world.people(5))
            world.wait_for_pushes(5)
            world.kill(daemon)
        world.restart(daemon)
        with pytest.raises(TimeoutError):
            world.rest(6)
        with pytest.raises(Broken, match="lost: "):
            promise(world, metrics=False)


@pytest.mark.parametrize("variant", ["blocks_its_loop", "pings_from_a_thread"], ids=["promise", "control"])
def test_the_watchdog_stops_when_the_loop_is_blocked(make_world: Worlds, variant: str) -> None:
    with make_world() as world, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        path = world.directory / "notify"
        systemd.bind(str(path))
        systemd.settimeout(0.1)
        world.scenario()
        world.daemon(variant=variant, NOTIFY_SOCKET=str(path), WATCHDOG_USEC="400000")

        def pings(seconds: float) -> int:
            count, until = 0, time.monotonic() + seconds
            while time.monotonic() < until:
                try:
                    count += b"WATCHDOG=1" in systemd.recv(4096)
                except TimeoutError:
                    continue
            return count

        assert pings(2) >= 3
        world.act(world.people(1))
        world.wait_for_pushes(1)
        pings(0.5)
        assert (pings(2) == 0) == (variant == "blocks_its_loop")
