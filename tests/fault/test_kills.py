"""Daemons that die: at each system call of one dispatch, and at random under load."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest

from tests.fault import naive_sql
from tests.fault.brakes import stuck_records
from tests.fault.conftest import lacks, needs
from tests.fault.invariants import Broken
from tests.fault.world import FULL, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.invariants import Finding
    from tests.fault.world import Daemon, World

    Worlds = Callable[..., AbstractContextManager[World]]
    Promise = Callable[..., Finding]

SEEDS: Final = range(1, 21) if FULL else range(1, 3)
EVERY: Final = 1 if FULL else 10


def threads(daemon: Daemon) -> list[int]:
    return sorted(int(each) for each in os.listdir(f"/proc/{daemon.pid}/task"))


class Tracer:
    """strace on one thread: counts its system calls into a file, or kills the process at the `at`-th of them."""

    def __init__(self, thread: int, log: Path, at: int | None = None) -> None:
        inject = [] if at is None else ["-e", f"inject=all:signal=SIGKILL:when={at}"]
        self._errors = log.with_suffix(".err").open("wb")
        self.process = subprocess.Popen(
            ["strace", "-o", str(log), "-e", "trace=all", *inject, "-p", str(thread)],
            stderr=self._errors,
            stdin=subprocess.DEVNULL,
        )
        path = log.with_suffix(".err")
        wait_until(lambda: b"attached" in path.read_bytes() or self.process.poll() is not None, "strace attached")
        if b"attached" not in path.read_bytes():
            text = path.read_text()
            self.stop()
            if "not permitted" in text:
                lacks("a kill at an exact system call: tracing is not permitted")
            raise AssertionError(text)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self._errors.close()


def one_dispatch(world: World, daemon: Daemon) -> None:
    """One person acts, and the daemon is done with it or dead."""
    (person,) = world.people(1)
    before = len(daemon.events("batch_dispatched"))
    world.act([person])
    wait_until(
        lambda: not daemon.running or len(daemon.events("batch_dispatched")) > before, "the dispatch or the death"
    )


def crash_points(
    world: World, *, kinds: tuple[int, ...] = (0, 1), every: int = EVERY, variant: str | None = None
) -> int:
    """Kill a daemon at each system call from its wake-up to the end of the dispatch; start it again on its spool.

    `kinds`: the event loop's thread (0), the thread that writes the spool (1)."""
    daemon = world.daemon(variant=variant, poll_interval="30")
    done = 0
    for kind in kinds:
        one_dispatch(world, daemon)  # so that the spool's thread is there, and connections are warm
        log = world.directory / f"trace-{kind}"
        tracer = Tracer(threads(daemon)[kind], log)
        one_dispatch(world, daemon)
        tracer.stop()
        calls = sum(1 for line in log.read_text().splitlines() if re.match(r"[a-z_0-9]+\(", line))
        for at in range(1 + random.Random(kind).randrange(every), calls + 1, every):
            if not daemon.running:
                world.restart(daemon)
            one_dispatch(world, daemon)
            tracer = Tracer(threads(daemon)[kind], log, at)
            one_dispatch(world, daemon)
            with suppress(subprocess.TimeoutExpired):
                daemon.process and daemon.process.wait(0.3)
            if daemon.running:
                tracer.stop()  # this time it took fewer calls
                continue
            world.kill(daemon)
            tracer.stop()
            done += 1
    if not daemon.running:
        world.restart(daemon)
    world.rest()
    return done


@pytest.mark.timeout(3000)
def test_a_kill_at_any_system_call_of_a_dispatch_pushes_nothing_twice_and_loses_no_record(
    make_world: Worlds, promise: Promise
) -> None:
    needs("strace", "a kill at an exact system call")
    with make_world() as world:
        world.scenario()
        points = crash_points(world)
        assert points >= (60 if FULL else 4)
        finding = promise(world, points=points)
        assert finding.unknown <= points


@pytest.mark.timeout(600)
def test_control_a_spool_that_is_not_read_is_found_out_by_the_crash_points(
    make_world: Worlds, promise: Promise
) -> None:
    needs("strace", "a kill at an exact system call")
    with make_world() as world:
        world.scenario()
        world.daemon(variant="replays_nothing")
        # the records are kept back by a lock, so that a crash falls between the spool and the record
        with stuck_records(world):
            world.act(world.people(3))
            wait_until(lambda: world.note_spool(world.daemons["one"]) != set(), "an entry in the spool")
            world.kill(world.daemons["one"])
            world.hang_up()
        world.restart(world.daemons["one"])
        world.rest(spools=False)
        with pytest.raises(Broken, match="lost: "):
            promise(world, metrics=False)


def test_a_kill_between_the_spool_and_the_record_loses_nothing(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon()
        people = world.people(8)
        with stuck_records(world):
            world.act(people)
            world.wait_for_pushes(len(people))
            wait_until(lambda: len(world.note_spool(daemon)) == len(people), "all in the spool")
            world.kill(daemon)
            world.hang_up()
        world.restart(daemon)
        world.rest()
        promise(world, unknown=())
        assert world.statuses() == {"sent": len(people)}


def storm(world: World, seed: int, *, count: int, daemons: int = 3, seconds: float, variant: str | None = None) -> None:
    """SIGKILL a daemon at random every 150 to 500 ms while people act, and start it again on its spool."""
    rng = random.Random(seed)
    people = world.people(count)
    running = [world.daemon(f"d{number}", variant=variant, start=False) for number in range(daemons)]
    for each in running:
        each.start(ready=False)
    for each in running:
        each.wait_for("ready")
    acting = threading.Thread(target=trickle, args=(world, people, rng.random()), daemon=True)
    acting.start()
    until = time.monotonic() + seconds
    restarts: list[threading.Thread] = []
    while time.monotonic() < until:
        time.sleep(rng.uniform(0.15, 0.5))
        victim = rng.choice(running)
        if victim.killed or not victim.running:
            continue
        world.kill(victim)
        restart = threading.Thread(target=again, args=(world, victim), daemon=True)
        restart.start()
        restarts.append(restart)
    acting.join()
    for restart in restarts:
        restart.join(180)
    world.rest(180)


def again(world: World, victim: Daemon) -> None:
    victim.start(ready=False)
    with suppress(AssertionError, TimeoutError):
        victim.wait_for("starting")
        victim.killed = False


def trickle(world: World, people: list[object], _seed: float) -> None:
    """They act in bursts, on a connection of their own."""
    with world.database.connect() as own:
        for start in range(0, len(people), 250):
            own.execute(
                "insert into app.activity (user_id, activity_type) select u, 'contact' from unnest(%s::uuid[]) as u",
                (people[start : start + 250],),
            )
            time.sleep(0.05)
    world.acted += people  # type: ignore[arg-type]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_kills_of_three_daemons_push_nothing_twice_and_lose_nothing(
    make_world: Worlds, promise: Promise, seed: int, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("pg15" if seed % 5 == 0 else "pg18")
    with make_world(server) as world:
        world.scenario()
        storm(world, seed, count=10_000 if FULL else 1500, seconds=12 if FULL else 5)
        promise(world, seed=seed)


@pytest.mark.parametrize(
    "spoiled",
    ["lease and reclaim", pytest.param("record what was only claimed", marks=pytest.mark.thorough)],
)
def test_control_random_kills_find_the_usual_queue_out(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, spoiled: str
) -> None:
    with make_world() as world:
        world.scenario()
        naive_sql.spoil(world.db, spoiled)
        fcm.set_faults({"do": "latency", "seconds": 0.05})
        storm(world, 1, count=1500, seconds=6)
        with pytest.raises(
            Broken, match="pushed twice" if spoiled == "lease and reclaim" else "never accepted|no history"
        ):
            promise(world, metrics=False)
