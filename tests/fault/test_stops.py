"""Daemons that are stopped: by systemd, by the scheduler of the machine, by what blocks their loop."""

from __future__ import annotations

import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.fault import naive_sql
from tests.fault.brakes import claims_held_up, is_held_up, stuck_records
from tests.fault.invariants import Broken
from tests.fault.links import link_to
from tests.fault.promise import with_control
from tests.fault.world import wait_until

if TYPE_CHECKING:
    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.promise import Promise, Worlds
    from tests.fault.world import Daemon, World


@with_control("knows_no_lease")
def test_a_daemon_stopped_before_it_sends_does_not_send_late(
    make_world: Worlds, promise: Promise, variant: str | None
) -> None:
    """It wakes up with a claim in its hands that others have given up."""
    with make_world(tcp=True) as world, link_to(world) as (link, dsn):
        world.scenario()
        if variant is not None:
            naive_sql.spoil(world.db, "lease and reclaim")
        people = world.people(10)
        first = world.daemon("first", dsn=dsn, variant=variant)
        with claims_held_up(world):
            world.act(people)
            wait_until(lambda: is_held_up(world), "a claim under way")
            link.hold()
        wait_until(lambda: world.statuses() == {"sending": len(people)}, "the claim's commit")
        first.send(signal.SIGSTOP)
        world.lost_touch |= first.owners
        link.let_go()
        second = world.daemon("second")
        wait_until(lambda: not world.statuses().get("sending"), "given up by the other")
        if variant is None:
            assert world.statuses() == {"unknown": len(people)}
        else:
            world.wait_for_pushes(len(people))
        first.send(signal.SIGCONT)
        if variant is None:
            wait_until(lambda: not world.statuses().get("unknown"), "the owner's word that it sent nothing")
            world.rest(time_passes=True)
            promise(world, unknown=())
            assert world.statuses() == {"sent": len(people)}
        else:
            world.wait_for_pushes(2 * len(people))
            with pytest.raises(Broken, match="pushed twice"):
                promise(world, metrics=False)
        assert first.running
        assert second.running


@pytest.mark.parametrize("spoiled", [False, True], ids=["promise", "control"])
def test_a_daemon_stopped_before_it_hears_the_answer_records_it_late(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, spoiled: bool
) -> None:
    with make_world() as world:
        world.scenario()
        if spoiled:
            naive_sql.spoil(world.db, "lease and reclaim")
        people = world.people(10)
        first = world.daemon("first")
        fcm.set_faults({"do": "latency", "seconds": 1.2})
        world.act(people)
        world.wait_for_pushes(len(people))
        first.send(signal.SIGSTOP)
        world.lost_touch |= first.owners
        second = world.daemon("second")
        wait_until(lambda: not world.statuses().get("sending"), "given up by the other")
        first.send(signal.SIGCONT)
        if spoiled:
            world.wait_for_pushes(len(people) + 1)
            world.rest()
            with pytest.raises(Broken, match="pushed twice"):
                promise(world, metrics=False)
            return
        wait_until(lambda: world.statuses() == {"sent": len(people)}, "late records")
        world.rest()
        promise(world, unknown=())
        assert first.running
        assert second.running


@pytest.mark.thorough
@pytest.mark.parametrize("variant", [None, "ends_at_once"], ids=["promise", "control"])
def test_sigterm_with_fifty_in_flight_lets_them_end(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, variant: str | None
) -> None:
    with make_world() as world:
        daemon = fifty_in_flight(world, fcm, variant)
        daemon.send(signal.SIGTERM)
        assert daemon.wait() == 0
        if variant is None:
            after = world.statuses()
            assert after.get("sent", 0) >= 50
            assert set(after) <= {"sent", "ready"}
        else:
            world.dead |= daemon.owners
        fcm.set_faults()
        world.daemon("next")
        world.rest()
        if variant is None:
            promise(world, unknown=())
        else:
            with pytest.raises(Broken, match="unknown: "):
                promise(world, unknown=(), metrics=False)


@with_control("takes_back_what_left")
def test_sigterm_twice_with_fifty_in_flight_ends_them_in_doubt(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, variant: str | None
) -> None:
    with make_world() as world:
        daemon = fifty_in_flight(world, fcm, variant)
        under_way = len(world.pushes())
        world.lost_touch |= daemon.owners
        for event in ("stopping", "stopping_at_once"):
            daemon.send(signal.SIGTERM)
            daemon.wait_for_event(event)
        assert daemon.wait() == 0
        assert set(world.statuses()) <= {"unknown", "ready", "sent"}
        fcm.set_faults()
        world.daemon("next")
        world.rest()
        if variant is None:
            finding = promise(world)
            # what had left is unknown, and only that: the rest was given back, and sent by the other
            assert finding.unknown == finding.unknown_accepted >= under_way
            assert world.statuses() == {"unknown": finding.unknown, "sent": 80 - finding.unknown}
        else:
            with pytest.raises(Broken, match="pushed twice"):
                promise(world, metrics=False)


def fifty_in_flight(world: World, fcm: EmulatorProcess, variant: str | None) -> Daemon:
    """A daemon that waits for fifty answers, which are on their way, and has thirty more before it."""
    world.scenario()
    people = world.people(80)
    daemon = world.daemon(max_in_flight="50", send_deadline="10", variant=variant)
    fcm.set_faults({"do": "latency", "seconds": 4})
    world.act(people)
    world.wait_for_pushes(50)
    assert len(world.pushes()) == 50
    return daemon


def test_sigterm_twice_ends_it_though_the_database_takes_no_records(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon()
        with stuck_records(world):
            world.act(world.people(5))
            wait_until(lambda: daemon.metric("pgherald_spool_entries") == 5, "all in the spool")
            for event in ("stopping", "stopping_at_once"):
                daemon.send(signal.SIGTERM)
                daemon.wait_for_event(event)
            assert daemon.wait() == 0
        world.restart(daemon)
        world.rest()
        promise(world, unknown=())
        assert world.statuses() == {"sent": 5}


@with_control("forgets_what_it_asked_for")
def test_a_claim_that_a_second_sigterm_finds_unanswered_is_given_back(
    make_world: Worlds, promise: Promise, variant: str | None
) -> None:
    with make_world(tcp=True) as world, link_to(world) as (link, dsn):
        world.scenario()
        people = world.people(10)
        daemon = world.daemon(dsn=dsn, variant=variant)
        with claims_held_up(world):
            world.act(people)
            wait_until(lambda: is_held_up(world), "a claim under way")
            link.hold()
        wait_until(lambda: world.statuses() == {"sending": len(people)}, "the claim's commit")
        for event in ("stopping", "stopping_at_once"):
            daemon.send(signal.SIGTERM)
            daemon.wait_for_event(event)
        link.let_go()
        assert daemon.wait() == 0
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


@with_control("doubts_what_never_left")
@pytest.mark.parametrize("lacking", ["token", pytest.param("connection", marks=pytest.mark.thorough)])
def test_what_a_second_sigterm_finds_unsent_is_given_back(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, lacking: str, variant: str | None
) -> None:
    with make_world() as world, socket.create_server(("127.0.0.1", 0)) as deaf:
        world.scenario()
        people = world.people(10)
        elsewhere = {}
        if lacking == "token":
            fcm.set_faults({"do": "silent", "on": "token"})
        else:  # its kernel takes the connection, and nobody ever says a word of TLS
            elsewhere = {"fcm_endpoint": f"https://127.0.0.1:{deaf.getsockname()[1]}"}
        daemon = world.daemon(start=False, send_deadline="60", variant=variant, **elsewhere)  # type: ignore[arg-type]
        world.act(people)
        daemon.start(ready=False)
        wait_until(lambda: daemon.metric("pgherald_in_flight") == len(people), "all waiting")
        for event in ("stopping", "stopping_at_once"):
            daemon.send(signal.SIGTERM)
            daemon.wait_for_event(event)
        assert daemon.wait() == 0
        fcm.set_faults()
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


@pytest.mark.thorough
def test_control_a_daemon_that_keeps_no_spool_is_found_out_when_the_records_are_late(
    make_world: Worlds, promise: Promise
) -> None:
    with make_world() as world:
        world.scenario()
        naive_sql.spoil(world.db, "no sweep")
        daemon = world.daemon(variant="keeps_no_spool")
        with stuck_records(world):
            world.act(world.people(5))
            world.wait_for_pushes(5)
            world.kill(daemon)
            world.hang_up()
        world.restart(daemon)
        with pytest.raises(TimeoutError):
            world.rest(6)
        with pytest.raises(Broken, match="lost: "):
            promise(world, metrics=False)


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param("blocks_its_loop", id="promise"),
        pytest.param("pings_from_a_thread", id="control", marks=pytest.mark.thorough),
    ],
)
def test_the_watchdog_stops_when_the_loop_is_blocked(make_world: Worlds, variant: str) -> None:
    with make_world() as world, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        path = world.directory / "notify"
        systemd.bind(str(path))
        systemd.settimeout(0.1)
        world.scenario()
        daemon = world.daemon(variant=variant, NOTIFY_SOCKET=str(path), WATCHDOG_USEC="400000")

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
        wait_until(lambda: "the loop is blocked" in daemon.log, "the loop is blocked")
        while pings(0.1) and variant == "blocks_its_loop":
            pass  # what was said before
        assert (pings(2) == 0) == (variant == "blocks_its_loop")
