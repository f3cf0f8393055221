"""What others do to it: forged wake-ups, rows that nobody would write, evaluations all at once."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest

from tests.fault import naive_sql
from tests.fault.crowd import crowd
from tests.fault.invariants import Broken
from tests.fault.machine import cpu_seconds
from tests.fault.promise import with_control
from tests.fault.world import FULL, wait_until

if TYPE_CHECKING:
    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.promise import Promise, Worlds
    from tests.fault.world import World


@with_control("believes_the_payload")
def test_forged_wake_ups_by_the_megabyte_cost_little_and_change_nothing(
    make_world: Worlds, promise: Promise, variant: str | None
) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon(variant=variant)
        noise = Noise(world)
        noise.start()
        before, began = cpu_seconds(daemon.pid), time.monotonic()
        people = world.people(300)
        with crowd(world, people, 3):
            pass
        wait_until(lambda: noise.sent > 3_000_000, "three megabytes of noise")
        took, spent = time.monotonic() - began, cpu_seconds(daemon.pid) - before
        noise.stop()
        world.rest()
        if variant is not None:
            with pytest.raises(Broken, match="no prompt: "):
                promise(world, metrics=False)
            return
        promise(world, unknown=())
        assert world.statuses() == {"sent": 300}
        assert daemon.metric("pgherald_notify_queue_usage_ratio") < 0.1
        assert spent < took / 2, f"{spent:.1f} s of CPU in {took:.1f} s"


class Noise(threading.Thread):
    """A role without any right rings, at a megabyte a second, with payloads that look like orders."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self._world = world
        self._over = threading.Event()
        self.sent = 0

    def run(self) -> None:
        order = {
            "message": {
                "token": f"odd-forged-{self._world.database.name}",
                "data": {"notification_id": str(uuid4()), "scenario_type": "milestone"},
            }
        }
        payload = json.dumps(order).ljust(7900)
        with self._world.database.connect("anon") as anyone:
            began = time.monotonic()
            while not self._over.is_set():
                # ten that differ, or the server would pass on one
                anyone.execute(
                    "select pg_notify('herald', %s || repeat(' ', n)) from generate_series(1, 10) as n", (payload,)
                )
                self.sent += 79_055
                self._over.wait(max(0.0, began + self.sent / 1_000_000 - time.monotonic()))

    def stop(self) -> None:
        self._over.set()
        self.join()


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


TEXTS = {
    "a title key of five thousand characters": ("title_key", "repeat('x', 5000)"),
    "no title key": ("title_key", "null"),
}


@with_control("one_exception_ends_the_batch")
def test_poison_prompts_never_block_the_others(make_world: Worlds, promise: Promise, variant: str | None) -> None:
    with make_world() as world:
        world.scenario(params='{"counts": [1], "activity_types": ["contact"]}')
        world.db.execute("alter table herald.device_token drop constraint device_token_form")
        world.db.execute(
            "alter table herald.scenario drop constraint scenario_title_key, alter title_key drop not null"
        )
        poisoned, untitled, others = world.people(len(POISON)), world.people(len(TEXTS)), world.people(100)
        world.db.execute("update herald.setting set paused_at = now()")
        world.act([*poisoned, *others])
        for number, (person, (column, value)) in enumerate(zip(untitled, TEXTS.values(), strict=True)):
            scenario = world.scenario(params=json.dumps({"counts": [1], "activity_types": [f"odd {number}"]}))
            world.db.execute("alter table herald.scenario disable trigger user")
            world.db.execute(
                f"update herald.scenario set {column} = {value} where scenario_id = %s".encode(), (scenario,)
            )
            world.db.execute("alter table herald.scenario enable trigger user")
            world.ask(
                "insert into app.activity (user_id, activity_type) values (%s, %s) returning 1",
                (person, f"odd {number}"),
            )
        daemon = world.daemon(start=False, variant=variant, max_in_flight="200")
        daemon.start(ready=False)
        wait_until(lambda: world.statuses().get("ready") == len(poisoned) + len(untitled) + 100, "all ready")
        for person, (table, change) in zip(poisoned, POISON.values(), strict=True):
            world.db.execute(f"update herald.{table} set {change} where user_id = %s".encode(), (person,))
        world.db.execute("update herald.setting set paused_at = null")
        if variant is not None:
            world.db.execute("update herald.prompt set not_before = now() where not_before > '9999-01-01'")
            daemon.wait_for_event("batch_dispatched")
            world.rest()
            with pytest.raises(Broken, match="unknown: "):
                promise(world, unknown=(), metrics=False)
            return
        daemon.wait_for_event("ready")
        wait_until(lambda: world.statuses().get("sent", 0) >= 100, "the others are sent")
        world.db.execute(
            "update herald.prompt set status = 'expired', gate = 'expired' where not_before > '9999-01-01'"
        )
        world.rest()
        promise(world, unknown=())
        done = dict(world.ask("select user_id, status from herald.prompt where user_id = any(%s)", (others,)))
        assert set(done.values()) == {"sent"}
        assert world.ask("select status from herald.prompt where user_id = %s", (untitled[0],)) == [("failed",)]


def _waiting_for_locks(world: World) -> int:
    (count,) = world.ask(
        "select count(*)::int from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )[0]
    return int(count)


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
            world.db.execute("alter table herald.open_prompt drop constraint prompt_open")
            # and each run looks at all of the time, whoever else does
            naive_sql.spoil(world.db, "each run looks at everything")
        starting = threading.Barrier(count)

        def evaluate() -> None:
            with psycopg.connect(world.database.daemon_dsn, autocommit=True) as own:
                starting.wait()
                for _ in range(3):
                    own.execute("select * from herald.evaluate()")

        threads = [threading.Thread(target=evaluate) for _ in range(count)]
        with world.database.connect() as other, other.transaction():
            if spoiled:  # two have decided before either commits
                other.execute("lock table herald.evaluation_run in exclusive mode")
            for thread in threads:
                thread.start()
            if spoiled:
                wait_until(lambda: _waiting_for_locks(world) >= 2, "two runs at once")
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


@pytest.mark.parametrize(
    "spoiled", [pytest.param(False, id="promise"), pytest.param(True, id="control", marks=pytest.mark.thorough)]
)
def test_what_failed_is_armed_again_once_and_never_doubled(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, spoiled: bool
) -> None:
    with make_world() as world:
        world.scenario(cooldown="0 seconds")
        if spoiled:
            naive_sql.spoil(world.db, "what was sent is armed again")
        world.daemon()
        people = world.people(6, prefix="odd-arg-")
        fcm.set_faults({"do": "status", "code": "INVALID_ARGUMENT", "token_prefix": "odd-arg-"})
        world.act(people)
        world.rest()
        assert world.statuses() == {"failed": 6}
        promise(world, unknown=())
        fcm.set_faults()
        for _ in range(3):
            world.ask("update herald.scenario set evaluated_through = now() - interval '1 hour' returning 1")
            for _ in range(2):
                world.ask("select * from herald.evaluate()")
            world.rest()
            assert world.statuses() == {"sent": 6}
        if spoiled:
            with pytest.raises(Broken, match="pushed twice"):
                promise(world, metrics=False)
        else:
            promise(world, unknown=())


@pytest.mark.thorough
@pytest.mark.parametrize("variant", [None, "never_gives_up"], ids=["promise", "control"])
def test_retries_end_at_expires_after(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, variant: str | None
) -> None:
    with make_world() as world:
        world.scenario(expires_after="12 seconds")
        if variant is not None:
            naive_sql.spoil(world.db, "nothing expires")
        daemon = world.daemon(variant=variant)
        fcm.set_faults({"do": "status", "code": "UNAVAILABLE"})
        world.act(world.people(5))
        if variant is None:
            wait_until(lambda: len(kinds := set(world.statuses())) > 0 and kinds <= {"failed", "expired"}, "given up")
            tries = daemon.metric('pgherald_fcm_responses_total{code="UNAVAILABLE"}')
            assert 5 <= tries <= 10
        else:
            wait_until(lambda: len(world.statuses()) > 0, "prompts")
            (seconds,) = world.ask(
                "select extract(epoch from max(due_at) + interval '25 s' - now())::float8 from herald.prompt"
            )[0]
            time.sleep(max(0.0, seconds))
        fcm.set_faults()
        world.rest(time_passes=True)
        if variant is None:
            promise(world, unknown=())
            assert world.pushes() == []
        else:
            with pytest.raises(Broken, match="late: "):
                promise(world, metrics=False)
