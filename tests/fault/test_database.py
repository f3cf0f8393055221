"""The database away, silent about a COMMIT, locked, or ending sessions: records come late, pushes never twice."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.fault import naive_sql
from tests.fault.brakes import commits_held_up, deadlocks, is_held_up, locked, stuck_records
from tests.fault.crowd import crowd
from tests.fault.invariants import Broken
from tests.fault.links import link_to
from tests.fault.machine import cpu_seconds
from tests.fault.promise import with_control
from tests.fault.world import FULL, wait_until
from tests.support.postgres import DAEMON_LOGIN

if TYPE_CHECKING:
    from uuid import UUID

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.links import Link
    from tests.fault.promise import Promise, Worlds
    from tests.fault.world import Daemon, World


def spooled_without_a_database(world: World, link: Link, daemon: Daemon, people: list[UUID]) -> None:
    """The database goes before it has taken the record of any of ten pushes, and the daemon's spool has them all."""
    with stuck_records(world):
        world.act(people)
        wait_until(lambda: len(world.note_spool(daemon)) == len(people), "all in the spool")
        link.cut()
        world.hang_up()


@pytest.mark.parametrize(
    ("killed", "variant"),
    [
        pytest.param(False, None, id="alive-promise"),
        pytest.param(False, "gives_up_on_records", id="alive-control", marks=pytest.mark.thorough),
        pytest.param(True, None, id="killed-promise"),
        pytest.param(True, "gives_up_on_records", id="killed-control"),
    ],
)
def test_a_database_that_goes_right_after_the_200_gets_its_records_later(
    make_world: Worlds, promise: Promise, killed: bool, variant: str | None
) -> None:
    with make_world(tcp=True, deadline=8.0) as world, link_to(world) as (link, dsn):
        world.scenario()
        people = world.people(10)
        daemon = world.daemon(dsn=dsn, variant=variant)
        spooled_without_a_database(world, link, daemon, people)
        if killed:
            world.kill(daemon)
        else:
            wait_until(lambda: "database_away" in daemon.get("/readyz")[1], "it says so")
            daemon.wait_for_event("record_failed" if variant is None else "record_dropped")
        link.mend()
        if killed:
            world.restart(daemon)
        if variant is None:
            world.rest()
            wait_until(lambda: world.statuses() == {"sent": len(people)}, "late records")
            promise(world, unknown=())
        else:
            world.rest(spools=False)
            with pytest.raises(Broken, match="lost: "):
                promise(world, metrics=False)


@with_control("gives_up_on_records")
def test_a_late_owner_turns_unknown_into_sent(make_world: Worlds, promise: Promise, variant: str | None) -> None:
    with make_world(tcp=True) as world, link_to(world) as (link, dsn):
        world.scenario()
        people = world.people(10)
        first = world.daemon("first", dsn=dsn, variant=variant)
        spooled_without_a_database(world, link, first, people)
        second = world.daemon("second")
        wait_until(lambda: world.statuses() == {"unknown": len(people)}, "given up by the other")
        second.wait_for_event("prompt_unknown", count=len(people))
        assert len(second.events("prompt_unknown")) == len(people)
        link.mend()
        if variant is None:
            wait_until(lambda: world.statuses() == {"sent": len(people)}, "reconciled")
            world.rest()
            finding = promise(world, unknown=())
            assert finding.pushes == len(people)
        else:
            first.wait_for_event("record_dropped")
            wait_until(lambda: "database_away" not in first.get("/readyz")[1], "working again")
            with pytest.raises(Broken, match="lost: "):
                promise(world, metrics=False)


@with_control("resends_when_unrecorded")
def test_a_commit_whose_answer_is_lost_is_neither_doubled_nor_dropped(
    make_world: Worlds, promise: Promise, variant: str | None
) -> None:
    with make_world(tcp=True) as world, link_to(world) as (link, dsn):
        world.scenario(cooldown="0 seconds")  # whose gate would hide a second push
        if variant is not None:
            naive_sql.spoil(world.db, "what is settled is settled again")
        people = world.people(10)
        daemon = world.daemon(dsn=dsn, variant=variant)
        with commits_held_up(world):
            world.act(people)
            world.wait_for_pushes(len(people))
            wait_until(lambda: is_held_up(world), "a commit under way")
            link.hold()
        wait_until(lambda: world.statuses().get("sent", 0) > 0, "the commit")
        link.reset()
        link.let_go()
        world.rest()
        daemon.wait_for_event("record_failed")
        if variant is None:
            promise(world, unknown=())
            assert world.statuses() == {"sent": len(people)}
            # recorded once, and counted once
            counted = 'pgherald_prompts_total{scenario_type="milestone",outcome="sent"}'
            wait_until(lambda: daemon.metric(counted) == len(people), "all are counted")
        else:
            world.wait_for_pushes(len(people) + 1)
            world.rest()
            with pytest.raises(Broken, match="pushed twice"):
                promise(world, metrics=False)


@with_control("resends_when_unrecorded")
def test_deadlocks_and_serialization_errors_cost_time_only(
    make_world: Worlds, promise: Promise, variant: str | None
) -> None:
    with make_world() as world:
        world.scenario()
        people = world.people(60)
        deadlocks(world)
        world.daemon(variant=variant)
        world.act(people)
        if variant is None:
            world.rest()
            promise(world, unknown=())
            assert world.statuses() == {"sent": len(people)}
        else:
            world.wait_for_pushes(len(people) + 1)
            with suppress(TimeoutError):
                world.rest(15)
            with pytest.raises(Broken, match="pushed twice"):
                promise(world, metrics=False)


@pytest.mark.thorough
@pytest.mark.parametrize("variant", [None, "never_waits"], ids=["promise", "control"])
def test_a_lock_on_the_outbox_is_waited_for_without_a_busy_loop(
    make_world: Worlds, promise: Promise, variant: str | None
) -> None:
    with make_world() as world:
        world.scenario()
        if variant is not None:
            naive_sql.spoil(world.db, "locks are not waited for")
        daemon = world.daemon(variant=variant)
        world.act(world.people(5))
        world.rest()
        with locked(world, "herald.prompt"):
            world.act(world.people(20))
            time.sleep(0.5)
            spent = cpu_of_waiting(daemon)
        assert (spent < CPU_OF_WAITING) == (variant is None), spent
        if variant is None:
            world.rest()
            promise(world, unknown=())
            assert world.statuses() == {"sent": 25}


def test_a_database_that_takes_no_records_leaves_few_pushes_without_one(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon(max_in_flight="10")
        with stuck_records(world):
            world.act(world.people(500))
            world.wait_for_pushes(20)
            wait_until(lambda: daemon.metric("pgherald_in_flight") == 0, "none under way")
            time.sleep(1)
            assert len(world.pushes()) == 20  # ten wait for their record, and ten more have the slots
        world.rest()
        promise(world)
        assert world.statuses() == {"sent": 500}


CPU_OF_WAITING = 0.25
"""Seconds of CPU that a daemon may take while it can do nothing for three."""


def cpu_of_waiting(daemon: Daemon) -> float:
    before = cpu_seconds(daemon.pid)
    time.sleep(3)
    return cpu_seconds(daemon.pid) - before


@pytest.mark.parametrize(
    ("how", "variant"),
    [
        pytest.param("paused", None, id="paused"),
        pytest.param("locked", None, id="locked", marks=pytest.mark.thorough),
        pytest.param("locked", "never_waits", id="locked-control", marks=pytest.mark.thorough),
    ],
)
def test_what_is_ready_and_cannot_be_claimed_is_no_reason_to_spin(
    make_world: Worlds, promise: Promise, how: str, variant: str | None
) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon(variant=variant)
        world.db.execute("update herald.setting set paused_at = now()")
        world.act(world.people(5))
        wait_until(lambda: world.statuses() == {"ready": 5}, "five ready")
        with world.database.connect() as other:
            other.autocommit = False
            if how == "locked":
                other.execute("select from herald.prompt for update")
                world.db.execute("update herald.setting set paused_at = null")
            time.sleep(0.5)
            spent = cpu_of_waiting(daemon)
        assert (spent < CPU_OF_WAITING) == (variant is None), spent
        world.db.execute("update herald.setting set paused_at = null")
        world.rest()
        promise(world, unknown=())


@pytest.mark.timeout(300)
@with_control("resends_when_unrecorded")
def test_sessions_terminated_at_random_lose_nothing(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, variant: str | None
) -> None:
    seconds = 20 if FULL and variant is None else 6
    with make_world() as world:
        world.scenario()
        daemon = world.daemon(variant=variant)
        rng = random.Random(7)
        people = world.people(60 * seconds)
        fcm.set_faults({"do": "latency", "seconds": [0.02, 0.2]}, seed=7)
        with crowd(world, people, seconds) as acting, world.database.connect() as admin:
            while acting.is_alive():
                ended = admin.execute(
                    "select pid, pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                    "and usename = %s and random() < %s",
                    (DAEMON_LOGIN, rng.choice([0.3, 1.0])),
                ).fetchall()
                world.ended_sessions |= {row[0] for row in ended}
                time.sleep(rng.uniform(0.1, 0.4))
        world.rest()
        if variant is not None:
            with pytest.raises(Broken, match="pushed twice"):
                promise(world, metrics=False)
            return
        # a claim whose session ended after its commit and before its answer is nobody's: unknown, and not a push
        finding = promise(world)
        assert finding.unknown_accepted == 0
        assert finding.unknown < finding.prompts // 2
        wait_until(lambda: daemon.metric("pgherald_listener_reconnects_total") >= 1, "it came back at least once")
        wait_until(lambda: daemon.metric("pgherald_listener_up") == 1, "listening again")


@with_control("listens_once")
def test_a_terminated_listener_is_back_at_once_and_hears(
    make_world: Worlds, promise: Promise, variant: str | None
) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon(poll_interval="3600", variant=variant)
        for number in range(3 if variant is None else 1):
            world.ask(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgherald listener'"
            )
            if variant is None:
                daemon.wait_for_event("listening", count=number + 2)
            else:
                wait_until(lambda: daemon.metric("pgherald_listener_up") == 0, "the end of its session")
        world.act(world.people(3))
        if variant is None:
            world.rest()
            promise(world, unknown=())
        else:
            with pytest.raises(TimeoutError):
                world.rest(10)
