"""Daemons that die: at each system call of one dispatch, and at random under load."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest

from pgherald.oauth import FORCED_PAUSE
from pgherald.sessions import AWAKE
from tests.fault import naive_sql
from tests.fault.brakes import stuck_records
from tests.fault.conftest import lacks, needs
from tests.fault.crowd import crowd
from tests.fault.invariants import Broken
from tests.fault.world import FULL, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.promise import Promise, Worlds
    from tests.fault.world import Daemon, World


SEEDS: Final = range(1, 21) if FULL else range(1, 3)
CALLS: Final = "!getpid"
"""Which system calls are crash points; uvloop asks for its own process id again and again, which nobody else sees."""

EVERY: Final = 1 if FULL else 10


def threads(daemon: Daemon, which: str) -> list[int]:
    """The event loop's thread, or all the `others`: who writes the spool, and who signs for an access token."""
    loop, *others = sorted(int(each) for each in os.listdir(f"/proc/{daemon.pid}/task"))
    return [loop] if which == "loop" else others


class Tracer:
    """strace on some threads: writes their system calls down, or kills the process at the `at`-th of any of them."""

    def __init__(self, threads: list[int], log: Path, at: int | None = None) -> None:
        inject = [] if at is None else ["-e", f"inject={CALLS}:signal=SIGKILL:when={at}"]
        self._log = log
        self._errors = log.with_suffix(".err").open("wb")
        targets = [part for thread in threads for part in ("-p", str(thread))]
        self.process = subprocess.Popen(
            ["strace", "-s", "200", "-o", str(log), "-e", f"trace={CALLS}", *inject, *targets],
            stderr=self._errors,
            stdin=subprocess.DEVNULL,
        )
        path = log.with_suffix(".err")
        wait_until(
            lambda: path.read_bytes().count(b"attached") >= len(threads) or self.process.poll() is not None,
            "strace attached",
        )
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

    def calls(self) -> int:
        """How many system calls the busiest of the threads made, of the event loop's those until the batch was done."""
        made: Counter[str] = Counter()
        for line in self._log.read_text(errors="replace").splitlines():
            if match := re.match(r"(?:(\d+) +)?[a-z_0-9]+\(", line):
                made[match[1]] += 1
            if "batch_dispatched" in line:
                return made[match[1]] if match else 0
        return max(made.values(), default=0)


def one_dispatch(world: World, daemon: Daemon, *, token: bool = False) -> None:
    """One person acts, and the daemon is done with it or dead. `token`: FCM takes the access token no more, so that the
    daemon has to fetch another one."""
    (person,) = world.people(1)
    before = len(daemon.events("batch_dispatched"))
    if token:
        world.fcm.revoke_access_tokens()
    world.act([person])
    wait_until(
        lambda: not daemon.running or len(daemon.events("batch_dispatched")) > before, "the dispatch or the death"
    )


def fall_asleep(world: World) -> None:
    """Return once the daemon does nothing but wait to be woken: it has let go of the lock that it holds awake."""
    wait_until(
        lambda: (
            not world.ask(
                "select from pg_locks where locktype = 'advisory' and classid = %s and objid = %s "
                "and database = (select oid from pg_database where datname = current_database())",
                AWAKE,
            )
        ),
        "asleep",
    )


def crash_points(
    world: World, which: str, *, token: bool = False, every: int = EVERY, variant: str | None = None
) -> int:
    """Kill a daemon at each system call from its wake-up to the end of the dispatch; start it again on its spool."""
    daemon = world.daemon(poll_interval="30", variant=variant)
    log = world.directory / f"trace-{which}"
    fetched = [0]

    def trace(at: int | None = None) -> Tracer:
        one_dispatch(world, daemon)  # so that all threads are there, and connections are warm
        fall_asleep(world)
        if token and daemon.lives == fetched[-1]:
            time.sleep(FORCED_PAUSE)  # sooner after the last one this process would not fetch another
        fetched.append(daemon.lives)
        tracer = Tracer(threads(daemon, which), log, at)
        one_dispatch(world, daemon, token=token)
        return tracer

    calls = []
    for _ in range(2):
        tracer = trace()
        tracer.stop()
        calls.append(tracer.calls())
    every = max(1, min(every, min(calls) // 3))
    points = range(1 + random.Random(which).randrange(every), min(calls) + 1, every)
    done = 0
    for at in points:
        if not daemon.running:
            world.restart(daemon)
        tracer = trace(at)
        with suppress(subprocess.TimeoutExpired):
            daemon.process.wait(0.3)
        if daemon.running:
            tracer.stop()  # this time it took fewer calls
            continue
        world.kill(daemon)
        tracer.stop()
        done += 1
    if not daemon.running:
        world.restart(daemon)
    world.rest(time_passes=True)
    assert done >= max(1, len(points) // 3), f"{done} of {len(points)}"
    return done


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("token", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["", "with a new token"])
@pytest.mark.parametrize("which", ["loop", "others"])
def test_a_kill_at_any_system_call_of_a_dispatch_pushes_nothing_twice_and_loses_no_record(
    make_world: Worlds, promise: Promise, which: str, token: bool
) -> None:
    needs("strace", "a kill at an exact system call")
    with make_world() as world:
        world.scenario()
        points = crash_points(world, which, token=token)
        finding = promise(world, points=points)
        assert finding.unknown <= points


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_control_a_kill_at_any_system_call_finds_the_usual_queue_out(make_world: Worlds, promise: Promise) -> None:
    needs("strace", "a kill at an exact system call")
    with make_world() as world:
        world.scenario()
        naive_sql.spoil(world.db, "lease and reclaim")
        crash_points(world, "loop", every=4, variant="keeps_no_spool")
        with pytest.raises(Broken, match="pushed twice"):
            promise(world, metrics=False)


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


def storm(
    world: World, fcm: EmulatorProcess, seed: int, *, count: int, seconds: float, variant: str | None = None
) -> None:
    """SIGKILL one of three daemons at random every 150 to 500 ms while people act, and start it again on its spool."""
    rng = random.Random(seed)
    fcm.set_faults({"do": "latency", "seconds": [0.005, 0.05]}, seed=seed)  # so that there are pushes under way
    people = world.people(count)
    running = [world.daemon(f"d{number}", variant=variant, start=False) for number in range(3)]
    for each in running:
        each.start(ready=False)
    for each in running:
        each.wait_for_event("ready")
    restarts: list[threading.Thread] = []
    with crowd(world, people, seconds) as acting:
        while acting.is_alive():
            time.sleep(rng.uniform(0.15, 0.5))
            victim = rng.choice(running)
            if victim.killed or not victim.running:
                continue
            world.kill(victim)
            restart = threading.Thread(target=again, args=(victim,), daemon=True)
            restart.start()
            restarts.append(restart)
    for restart in restarts:
        restart.join(180)
    fcm.set_faults()
    world.rest(180)


def again(victim: Daemon) -> None:
    victim.start(ready=False)
    with suppress(AssertionError, TimeoutError):
        victim.wait_for_event("starting")
        victim.killed = False


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_kills_of_three_daemons_push_nothing_twice_and_lose_nothing(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, seed: int, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("pg15" if seed % 5 == 0 else "pg18")
    with make_world(server) as world:
        world.scenario()
        storm(world, fcm, seed, count=10_000 if FULL else 1500, seconds=10 if FULL else 5)
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
        storm(world, fcm, 1, count=1500, seconds=6)
        with pytest.raises(Broken) as broken:
            promise(world, metrics=False)
        found = " ".join(broken.value.violations)
        assert re.search("pushed twice" if spoiled == "lease and reclaim" else "never accepted|never answered", found)
