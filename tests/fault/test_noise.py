"""What others do to it: forged wake-ups, rows that nobody would write, evaluations all at once."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.fault import naive_sql
from tests.fault.invariants import Broken
from tests.fault.machine import cpu_seconds
from tests.fault.world import FULL, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.invariants import Finding
    from tests.fault.world import World

    Worlds = Callable[..., AbstractContextManager[World]]
    Promise = Callable[..., Finding]


def test_forged_wake_ups_by_the_megabyte_cost_little_and_change_nothing(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon()
        stop = threading.Event()
        sent = [0]

        def shout() -> None:
            with world.database.connect("anon") as anyone:
                began = time.monotonic()
                while not stop.is_set():
                    anyone.execute(
                        "select pg_notify('herald', repeat('x', 7900) || n) from generate_series(1, 10) as n"
                    )
                    sent[0] += 79_000
                    time.sleep(max(0.0, began + sent[0] / 1_000_000 - time.monotonic()))

        noise = threading.Thread(target=shout)
        noise.start()
        before = cpu_seconds(daemon.pid)
        people = world.people(300)
        for at in range(0, 300, 30):
            world.act(people[at : at + 30])
            time.sleep(0.2)
        world.rest()
        spent = cpu_seconds(daemon.pid) - before
        wait_until(lambda: sent[0] > 500_000, "half a megabyte of noise")
        stop.set()
        noise.join()
        promise(world, unknown=())
        assert world.statuses() == {"sent": 300}
        assert daemon.metric("pgherald_notify_queue_usage_ratio") < 0.1
        assert spent < 60


POISON = {
    "a token that cannot be in a header or a line": ("device_token", "token = 'odd' || chr(13) || chr(10) || 'x: y'"),
    "a token of two thousand characters": ("device_token", "token = 'odd' || repeat('x', 1990)"),
    "a token with characters of every kind": (
        "device_token",
        "token = 'odd' || chr(8232) || chr(65279) || chr(128169)",
    ),
    "due since ever": ("prompt", "due_at = '-infinity'"),
    "due before Christ": ("prompt", "due_at = '4000-01-01 BC'"),
    "not before the year 20000": ("prompt", "not_before = '20000-01-01'"),
    "seen at the end of time": ("device_token", "last_seen_at = 'infinity'"),
    "an activity of four hundred odd characters": ("prompt", "activity_ref = repeat(chr(128169), 400)"),
}


def test_poison_prompts_never_block_the_others(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        world.db.execute("alter table herald.device_token drop constraint device_token_form")
        poisoned = world.people(len(POISON))
        others = world.people(100)
        world.db.execute("update herald.setting set paused_at = now()")
        world.act([*poisoned, *others])
        daemon = world.daemon(start=False)
        daemon.start(ready=False)
        wait_until(lambda: world.statuses().get("ready") == len(poisoned) + 100, "all ready")
        for person, (table, change) in zip(poisoned, POISON.values(), strict=True):
            world.db.execute(f"update herald.{table} set {change} where user_id = %s".encode(), (person,))
        world.db.execute("update herald.setting set paused_at = null")
        daemon.wait_for("ready")
        wait_until(lambda: world.statuses().get("sent", 0) >= 100, "the others are sent")
        world.db.execute(
            "update herald.prompt set status = 'expired', gate = 'expired' where not_before > '9999-01-01'"
        )
        world.rest()
        promise(world, unknown=())
        done = dict(world.ask("select user_id, status from herald.prompt where user_id = any(%s)", (others,)))
        assert set(done.values()) == {"sent"}


@pytest.mark.parametrize("spoiled", [False, True], ids=["promise", "control"])
def test_fifty_evaluations_at_once_decide_once(make_world: Worlds, promise: Promise, spoiled: bool) -> None:
    count, people_count = (50, 400) if FULL else (16, 150)
    with make_world() as world:
        world.scenario()
        people = world.people(people_count)
        world.act(people)
        world.db.execute("delete from herald.touched_user")
        if spoiled:
            for name in ("prompt_idempotency_key", "prompt_once"):
                world.db.execute(f"alter table herald.prompt drop constraint {name}".encode())
            world.db.execute("drop index herald.prompt_open")
            # and each run looks at all of the time, whoever else does
            naive_sql.spoil(world.db, "each run looks at everything")
        starting = threading.Barrier(count)

        def evaluate() -> None:
            with psycopg.connect(world.database.daemon_dsn, autocommit=True) as own:
                starting.wait()
                for _ in range(3):
                    own.execute("select * from herald.evaluate()")

        threads = [threading.Thread(target=evaluate) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (rows,) = world.ask("select count(*)::int from herald.prompt")[0]
        if spoiled:
            assert rows > people_count
            return
        assert rows == people_count
        (errors,) = world.ask("select count(*) from herald.evaluation_run where error is not null")[0]
        assert errors == 0
        world.daemon()
        world.rest()
        promise(world, unknown=())
        assert world.statuses() == {"sent": people_count}


@pytest.mark.parametrize("variant", [None, "logs_what_it_sends"], ids=["promise", "control"])
def test_no_secret_shows_anywhere_at_debug_level(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, variant: str | None
) -> None:
    with make_world(tcp=True) as world:
        world.scenario()
        listening = world.database.connect()
        listening.execute("listen herald")
        daemon = world.daemon(variant=variant)
        odd = {
            f"odd-{code.lower()}-": {"do": "status", "code": code}
            for code in (
                "UNREGISTERED",
                "SENDER_ID_MISMATCH",
                "INVALID_ARGUMENT",
                "INVALID_TOKEN",
                "UNAVAILABLE",
                "NOT_FOUND",
            )
        }
        fcm.set_faults(*(fault | {"token_prefix": prefix} for prefix, fault in odd.items()), seed=1)
        for prefix in odd:
            world.act(world.people(1, prefix=prefix))
            time.sleep(0.05)
        world.act(world.people(20))
        wait_until(lambda: world.statuses().get("sent", 0) >= 20, "sent")
        world.ask("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgherald%%'", ())
        fcm.set_faults()
        world.rest(time_passes=True)
        world.payloads += [note.payload for note in listening.notifies(timeout=0.5)]
        assert world.payloads, "nobody rang"
        assert set(world.payloads) == {""}
        if variant is None:
            promise(world)
        else:
            with pytest.raises(Broken, match="canary: device token"):
                promise(world, metrics=False)
        assert daemon.running


def test_what_failed_is_armed_again_once_and_never_doubled(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess
) -> None:
    with make_world() as world:
        world.scenario()
        world.daemon()
        people = world.people(6, prefix="odd-arg-")
        fcm.set_faults({"do": "status", "code": "INVALID_ARGUMENT", "token_prefix": "odd-arg-"})
        world.act(people)
        world.rest()
        assert world.statuses() == {"failed": 6}
        promise(world, unknown=())
        fcm.set_faults()
        world.ask("update herald.scenario set evaluated_through = now() - interval '1 hour' returning 1")
        for _ in range(2):
            world.ask("select * from herald.evaluate()")
        world.rest()
        promise(world, unknown=())
        assert world.statuses() == {"sent": 6}


@pytest.mark.thorough
def test_retries_end_at_expires_after(make_world: Worlds, promise: Promise, fcm: EmulatorProcess) -> None:
    with make_world() as world:
        world.scenario(expires_after="12 seconds")
        daemon = world.daemon()
        fcm.set_faults({"do": "status", "code": "UNAVAILABLE"})
        world.act(world.people(5))
        wait_until(lambda: len(kinds := set(world.statuses())) > 0 and kinds <= {"failed", "expired"}, "given up")
        promise(world, unknown=())
        tries = daemon.metric('pgherald_fcm_responses_total{code="UNAVAILABLE"}')
        assert 5 <= tries <= 10
        assert world.pushes() == []
