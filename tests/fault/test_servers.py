"""Postgres crashing, read-only, without connections, with its disk full, or behind a dead link."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgherald.embedded import Cluster
from tests.fault import naive_sql
from tests.fault.brakes import stuck_records
from tests.fault.conftest import needs, needs_root
from tests.fault.crowd import crowd
from tests.fault.invariants import Broken
from tests.fault.links import Link, link_to
from tests.fault.machine import fill, is_alive, namespace, run, small_disk
from tests.fault.promise import with_control
from tests.fault.world import FULL, wait_until
from tests.support.postgres import DAEMON_LOGIN, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.promise import Promise, Worlds
    from tests.fault.world import Daemon, World


CRASHES = (5, 5.0, 40.0) if FULL else (2, 0.5, 2.0)
"""How often the server crashes, and after how many seconds at least and at most."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "asynchronous",
    [
        pytest.param(False, id="as it is", marks=pytest.mark.thorough),
        pytest.param(True, id="synchronous_commit off"),
    ],
)
def test_a_postgres_that_crashes_again_and_again(
    make_world: Worlds, promise: Promise, own_server: Server, fcm: EmulatorProcess, asynchronous: bool
) -> None:
    count, least, most = (2, 5.0, 15.0) if FULL and asynchronous else CRASHES
    seed = 3 + asynchronous
    rng = random.Random(seed)
    pauses = [rng.uniform(least, most) for _ in range(count)]
    with make_world(own_server) as world:
        world.scenario()
        if asynchronous:
            world.db.execute(f"alter database {world.database.name} set synchronous_commit = off".encode())
        daemons = [world.daemon("one"), world.daemon("two")]
        # more than two daemons can have accepted in the meantime, so that each crash finds some under way
        fcm.set_faults({"do": "latency", "seconds": [0.1, 0.4]}, seed=seed)
        people = world.people(round(50 * sum(pauses)))
        with crowd(world, people, sum(pauses)):
            for pause in pauses:
                time.sleep(pause)
                own_server.cluster.stop("immediate")
                world.crashes += 1
                began = time.monotonic()
                own_server.cluster.start()
                wait_until(lambda: all(each.metric("pgherald_listener_up") == 1 for each in daemons), "listening")
                world.recoveries.append(time.monotonic() - began)
        if asynchronous:
            # what the application itself did not get to disk is not ours to answer for
            kept = {row[0] for row in world.ask("select user_id from app.activity")}
            world.acted = [each for each in world.acted if each in kept]
        world.rest(180)
        # a claim whose answer went down with the server was never sent, and nobody can know: unknown
        finding = promise(world, seed=seed)
        assert finding.unknown_accepted == 0
        assert finding.unknown < finding.prompts // 2


def test_control_claims_that_a_crash_takes_back_are_found_out(
    make_world: Worlds, promise: Promise, own_server: Server, fcm: EmulatorProcess
) -> None:
    with make_world(own_server) as world:
        world.scenario()
        naive_sql.spoil(world.db, "claims are not on disk")
        people = world.people(10)
        world.db.execute("select pg_current_wal_flush_lsn()")
        world.db.execute(f"alter database {world.database.name} set synchronous_commit = off".encode())
        fcm.set_faults({"do": "latency", "seconds": 0.05})
        world.daemon()
        own_server.cluster.settings["wal_writer_delay"] = "10000"
        try:
            own_server.cluster.stop()
            own_server.cluster.start()
            world.daemons["one"].wait_for_event("listening", count=2)
            world.act(people)
            world.wait_for_pushes(1)
            own_server.cluster.stop("immediate")
        finally:
            del own_server.cluster.settings["wal_writer_delay"]
            own_server.cluster.start()
        kept = {row[0] for row in world.ask("select user_id from app.activity")}
        world.acted = [each for each in world.acted if each in kept]
        world.rest(spools=False)
        with pytest.raises(Broken, match=r"no prompt|pushed twice"):
            promise(world, metrics=False)


def check_late_records(world: World, daemon: Daemon, promise: Promise, variant: str | None) -> None:
    """All that FCM accepted meanwhile is recorded; or, for the control, found to be missing."""
    if variant is None:
        world.rest()
        wait_until(lambda: world.statuses() == {"sent": len(world.acted)}, "late records")
        promise(world, unknown=())
    else:
        assert daemon.events("record_dropped")
        world.rest(spools=False)
        with pytest.raises(Broken, match="lost: "):
            promise(world, metrics=False)


@with_control("gives_up_on_records")
def test_a_read_only_server_keeps_records_waiting_and_takes_them_later(
    make_world: Worlds, promise: Promise, own_server: Server, fcm: EmulatorProcess, variant: str | None
) -> None:
    with make_world(own_server, deadline=10.0) as world:
        world.scenario()
        people = world.people(10)
        daemon = world.daemon(variant=variant)
        fcm.set_faults({"do": "latency", "seconds": 4})  # longer than it takes every session to hear of the setting
        world.act(people)
        world.wait_for_pushes(len(people))
        with read_only(own_server):
            daemon.wait_for_event("record_failed" if variant is None else "record_dropped")
            wait_until(lambda: len(world.note_spool(daemon)) == len(people), "all in the spool")
        check_late_records(world, daemon, promise, variant)


@contextmanager
def read_only(server: Server) -> Iterator[None]:
    """While it lasts, no new transaction may write."""
    with server.admin() as admin:
        admin.execute("alter system set default_transaction_read_only = on")
        admin.execute("select pg_reload_conf()")
        try:
            yield
        finally:
            admin.execute("set default_transaction_read_only = off")
            admin.execute("alter system reset default_transaction_read_only")
            admin.execute("select pg_reload_conf()")


@with_control("gives_up_on_records")
def test_a_server_without_a_free_connection_gets_its_records_later(
    make_world: Worlds, promise: Promise, own_server: Server, variant: str | None
) -> None:
    with make_world(own_server) as world:
        world.scenario()
        daemon = world.daemon(variant=variant)
        with crowded(world) as drive_out:
            with stuck_records(world):
                world.act(world.people(10))
                wait_until(lambda: len(world.note_spool(daemon)) == 10, "all in the spool")
                drive_out()
                daemon.wait_for_event("record_failed" if variant is None else "record_dropped")
            wait_until(lambda: "listener_down" in daemon.get("/readyz")[1], "it says so")
        check_late_records(world, daemon, promise, variant)


@contextmanager
def crowded(world: World) -> Iterator[Callable[[], None]]:
    """While it lasts, others have every connection but those of the daemon; once called, they have those too."""
    hogs: list[psycopg.Connection] = []

    def push_in() -> None:
        with suppress(psycopg.OperationalError):
            while True:
                hogs.append(psycopg.connect(world.database.migrator_dsn))

    def drive_out() -> None:
        while not world.ask(FULL_HOUSE, (DAEMON_LOGIN,))[0][0]:
            world.ask(
                "select pg_terminate_backend(pid, 1000) from pg_stat_activity where usename = %s", (DAEMON_LOGIN,)
            )
            push_in()

    try:
        push_in()
        yield drive_out
    finally:
        for hog in hogs:
            hog.close()


FULL_HOUSE = """
select count(*) = current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
from pg_stat_activity
where backend_type = 'client backend' and usename <> %s
"""
"""Whether others than this role have all connections that there are for those without privileges."""


@with_control("gives_up_on_records")
def test_a_pool_without_a_connection_gets_its_records_later(
    make_world: Worlds, promise: Promise, own_server: Server, variant: str | None
) -> None:
    with make_world(own_server) as world, own_server.admin() as admin:
        world.scenario()
        daemon = world.daemon(variant=variant)
        try:
            with stuck_records(world):
                world.act(world.people(10))
                wait_until(lambda: len(world.note_spool(daemon)) == 10, "all in the spool")
                # it keeps what it has outside the pool, and gets nothing new
                admin.execute(f"alter role {DAEMON_LOGIN} connection limit 0".encode())
                world.ask("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgherald'")
                daemon.wait_for_event("record_failed" if variant is None else "record_dropped")
            wait_until(lambda: "PoolTimeout" in daemon.log, "it waits for a connection in vain")
            wait_until(lambda: "database_away" in daemon.get("/readyz")[1], "it says so")
        finally:
            admin.execute(f"alter role {DAEMON_LOGIN} connection limit -1".encode())
        check_late_records(world, daemon, promise, variant)


@with_control("gives_up_on_records")
def test_a_full_disk_under_postgres_loses_no_record(
    make_world: Worlds, promise: Promise, open_directory: Path, variant: str | None
) -> None:
    with small_disk(open_directory, 400) as disk:
        settings = {"max_wal_size": "64MB", "min_wal_size": "32MB", "shared_buffers": "16MB"}
        with running_on(disk, settings) as server, make_world(server) as world:
            world.scenario()
            people = world.people(10)
            daemon = world.daemon(variant=variant)
            with stuck_records(world):
                world.act(people)
                wait_until(lambda: len(world.note_spool(daemon)) == len(people), "all in the spool")
                filler = fill(disk)
                use_up_the_log(world)
                daemon.wait_for_event("record_failed" if variant is None else "record_dropped")
            filler.unlink()
            bring_back(server)
            check_late_records(world, daemon, promise, variant)


def bring_back(server: Server) -> None:
    """Start the server where it has ended; where it is about to, or starts again by itself, wait for that."""

    def answers() -> bool:
        if server.cluster.pid is None or not is_alive(server.cluster.pid):
            server.cluster.start()
        try:
            with server.admin() as admin:
                return admin.execute("select not pg_is_in_recovery()").fetchone() == (True,)
        except psycopg.OperationalError:
            return False

    wait_until(answers, "the server answers")


def use_up_the_log(world: World) -> None:
    """Write nothing but WAL until there is no room for another segment of it, which no Postgres survives."""
    with suppress(psycopg.OperationalError):
        for _ in range(1000):
            world.db.execute("select pg_logical_emit_message(true, 'fault', repeat('x', 1000000))")
        raise AssertionError("it goes on and on")


@contextmanager
def running_on(disk: Path, settings: dict[str, str]) -> Iterator[Server]:
    with Cluster(settings={"max_connections": "50", **settings}, scratch=disk) as cluster:
        server = Server("pg18_full", cluster)
        with server.template():
            yield server


@pytest.mark.thorough
@pytest.mark.parametrize("variant", [None, "has_no_pulse"], ids=["promise", "control"])
def test_a_black_hole_on_the_database_link_is_noticed_within_ten_seconds(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, variant: str | None
) -> None:
    needs_root("a black hole on the database link")
    needs("ip", "a black hole on the database link")
    name = f"pgh{os.getpid() % 10000}"
    with (
        make_world(tcp=True) as world,
        namespace(name),
        link_to(world, "10.213.7.1") as (_, dsn),
        Link("127.0.0.1", int(fcm.endpoint.rpartition(":")[2]), "10.213.7.1"),
    ):
        world.scenario()
        # FCM is out of reach in there, which is no matter: this is about the database
        daemon = world.daemon(
            dsn=dsn, variant=variant, wrapper=("ip", "netns", "exec", name), metrics_listen="10.213.7.2:9477"
        )
        time.sleep(1)
        began = time.time()
        run("ip", "link", "set", f"{name}a", "down")
        if variant is not None:
            time.sleep(11)
            assert daemon.events("listener_lost") == []
            return
        lost = daemon.wait_for_event("listener_lost")
        assert datetime.fromisoformat(lost["ts"]).timestamp() - began < 10
        run("ip", "link", "set", f"{name}a", "up")
        daemon.wait_for_event("listening", count=2)
        wait_until(lambda: "database_away" not in daemon.get("/readyz")[1], "working again")
        world.act(world.people(2))
        wait_until(lambda: len(daemon.events("prompt_settled")) > 0, "claimed and tried")
        assert daemon.stop() == 0
        world.daemon("outside")
        world.rest(time_passes=True)
        promise(world, unknown=())


def test_the_server_asks_within_seconds_whether_a_silent_daemon_is_still_there(make_world: Worlds) -> None:
    needs("ss", "the timers of the server's sockets")
    with make_world(tcp=True) as world:
        world.scenario()
        daemon = world.daemon(scheduler="internal")
        daemon.wait_for_event("listening")
        world.act(world.people(1))
        world.wait_for_pushes(1)
        sessions = dict(
            world.ask("select application_name, client_port from pg_stat_activity where usename = %s", [DAEMON_LOGIN])
        )
        assert sessions.keys() == {"pgherald", "pgherald listener", "pgherald locks"}
        for port in sessions.values():
            wait_until(partial(asks_within_five_seconds, port), "the server minds who is silent")


def asks_within_five_seconds(client_port: int) -> bool:
    """Whether the server is going to; not while it waits for word of what it has just sent."""
    command = ["ss", "--tcp", "--numeric", "--options", "--no-header", f"dport = :{client_port}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.search(r"timer:\(keepalive,(?:5sec|[0-4](?:sec|\.\d+ms)|\d+ms),", told) is not None
