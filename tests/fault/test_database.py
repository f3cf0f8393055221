"""The database away, slow, full, read-only, or silent about a COMMIT: records come late, pushes never twice."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgherald.embedded import Cluster
from tests.fault import naive
from tests.fault.conftest import lacks, needs, needs_root
from tests.fault.invariants import Broken
from tests.fault.links import Link
from tests.fault.world import FULL, wait_until
from tests.support.postgres import DAEMON_LOGIN, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.invariants import Finding
    from tests.fault.world import World

    Worlds = Callable[..., AbstractContextManager[World]]
    Promise = Callable[..., Finding]


SLOW: Final = {"do": "latency", "seconds": 1.2}
"""An FCM that leaves the time to do harm while its answers are on their way."""


@contextmanager
def link_to(world: World, listen: str = "127.0.0.1") -> Iterator[tuple[Link, str]]:
    """A road to the database that can be cut, and the DSN that takes it."""
    port = world.database.server.cluster.port
    with Link("127.0.0.1", port, listen) as link:
        dsn = make_conninfo(world.database.dsn_as(DAEMON_LOGIN, tcp=True), host=listen, port=link.port)
        yield link, dsn


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
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, killed: bool, variant: str | None
) -> None:
    with make_world(tcp=True) as world, link_to(world) as (link, dsn):
        world.scenario()
        people = world.people(10)
        daemon = world.daemon(dsn=dsn, variant=variant)
        fcm.set_faults(SLOW)
        world.act(people)
        wait_until(lambda: daemon.metric("pgherald_in_flight") == len(people), "all under way")
        link.cut()
        world.wait_for_pushes(len(people))
        wait_until(lambda: len(world.note_spool(daemon)) == len(people), "all in the spool")
        if killed:
            world.kill(daemon)
        else:
            wait_until(lambda: "database_away" in daemon.page("/readyz"), "it says so")
            if variant is None:
                daemon.wait_for("record_failed")
            else:
                time.sleep(7)  # longer than a connection is waited for
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


def test_a_late_owner_turns_unknown_into_sent(make_world: Worlds, promise: Promise, fcm: EmulatorProcess) -> None:
    with make_world(tcp=True) as world, link_to(world) as (link, dsn):
        world.scenario()
        people = world.people(10)
        first = world.daemon("first", dsn=dsn)
        fcm.set_faults(SLOW)
        world.act(people)
        wait_until(lambda: first.metric("pgherald_in_flight") == len(people), "all under way")
        link.cut()
        wait_until(lambda: len(world.note_spool(first)) == len(people), "all in the spool")
        second = world.daemon("second")
        wait_until(lambda: world.statuses() == {"unknown": len(people)}, "given up by the other")
        second.wait_for("prompt_unknown", count=len(people))
        assert len(second.events("prompt_unknown")) == len(people)
        link.mend()
        wait_until(lambda: world.statuses() == {"sent": len(people)}, "reconciled")
        world.rest()
        finding = promise(world, unknown=())
        assert finding.pushes == len(people)


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(None, id="promise"),
        pytest.param("resends_when_unrecorded", id="control", marks=pytest.mark.thorough),
    ],
)
def test_a_commit_whose_answer_is_lost_is_neither_doubled_nor_dropped(
    make_world: Worlds, promise: Promise, variant: str | None
) -> None:
    with make_world(tcp=True) as world, link_to(world) as (link, dsn):
        world.scenario()
        people = world.people(30)
        world.daemon(dsn=dsn, variant=variant)
        link.commits_to_lose = 3
        if variant is not None:
            # this one never comes to the database, so that the mistake has something to repeat
            world.db.execute(DEADLOCKS.encode())
        world.act(people)
        if variant is None:
            wait_until(lambda: link.commits_lost > 0, "a lost commit")
            world.rest()
            promise(world, unknown=())
            assert world.statuses() == {"sent": len(people)}
        else:
            with suppress(TimeoutError):
                world.rest(15)
            with pytest.raises(Broken, match="pushed twice"):
                promise(world, metrics=False)


DEADLOCKS = """
create sequence public.tries;
grant usage on sequence public.tries to public;
create function public.fail_now_and_then() returns trigger language plpgsql as $$
begin
  -- Not an evaluation, which would be made up for by the next scheduled one.
  if current_query() !~ 'evaluate' and nextval('public.tries') % 3 = 0 then
    raise exception 'injected' using errcode = case when random() < 0.5 then '40P01' else '40001' end;
  end if;
  return null;
end
$$;
create trigger fail_now_and_then after update on herald.prompt
  for each statement execute function public.fail_now_and_then();
"""


def test_deadlocks_and_serialization_errors_cost_time_only(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        people = world.people(60)
        world.db.execute(DEADLOCKS.encode())
        world.daemon()
        world.act(people)
        world.rest()
        promise(world, unknown=())
        assert world.statuses() == {"sent": len(people)}


@pytest.mark.thorough
def test_a_lock_on_the_outbox_is_waited_for_without_a_busy_loop(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon()
        other = world.database.connect()
        other.autocommit = False
        world.act(world.people(5))
        world.rest()
        other.execute("lock table herald.prompt in access exclusive mode")
        world.act(world.people(20))
        before = cpu_seconds(daemon.pid)
        time.sleep(3)
        assert cpu_seconds(daemon.pid) - before < 1.0
        other.rollback()
        world.rest()
        promise(world, unknown=())
        assert world.statuses() == {"sent": 25}


@pytest.mark.parametrize("how", ["paused", pytest.param("locked", marks=pytest.mark.thorough)])
def test_what_is_ready_and_cannot_be_claimed_is_no_reason_to_spin(
    make_world: Worlds, promise: Promise, how: str
) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon()
        people = world.people(5)
        if how == "paused":
            world.db.execute("update herald.setting set paused_at = now()")
        other = world.database.connect()
        other.autocommit = False
        if how == "locked":
            world.db.execute("update herald.setting set paused_at = now()")
        world.act(people)
        wait_until(lambda: world.statuses() == {"ready": 5}, "five ready")
        if how == "locked":
            other.execute("select from herald.prompt for update")
            world.db.execute("update herald.setting set paused_at = null")
        time.sleep(0.5)
        before = cpu_seconds(daemon.pid)
        time.sleep(3)
        spent = cpu_seconds(daemon.pid) - before
        assert spent < 0.6, f"{spent:.2f} s of CPU in 3 s of waiting"
        other.rollback()
        world.db.execute("update herald.setting set paused_at = null")
        world.rest()
        promise(world, unknown=())


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_sessions_terminated_at_random_lose_nothing(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon()
        rng = random.Random(7)
        people = world.people(2000 if FULL else 500)

        def act() -> None:
            for at in range(0, len(people), 50):
                world.act(people[at : at + 50])
                time.sleep(0.1)

        acting = threading.Thread(target=act)
        acting.start()
        with world.database.connect() as admin:
            while acting.is_alive():
                ended = admin.execute(
                    "select pid, pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                    "and usename = %s and random() < %s",
                    (DAEMON_LOGIN, rng.choice([0.3, 1.0])),
                ).fetchall()
                world.ended_sessions |= {row[0] for row in ended}
                time.sleep(rng.uniform(0.1, 0.4))
        acting.join()
        world.rest()
        # A claim whose session died after its commit and before its answer is nobody's: unknown, and not a push.
        finding = promise(world)
        assert finding.unknown <= finding.prompts // 10
        wait_until(lambda: daemon.metric("pgherald_listener_reconnects_total") >= 1, "it came back at least once")
        wait_until(lambda: daemon.metric("pgherald_listener_up") == 1, "it listens")


def test_a_terminated_listener_is_back_at_once_and_hears(make_world: Worlds, promise: Promise) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon(poll_interval="3600")
        for number in range(3):
            world.ask(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgherald listener'"
            )
            daemon.wait_for("listening", count=number + 2)
        world.act(world.people(3))
        world.rest()
        promise(world, unknown=())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "asynchronous",
    [
        pytest.param(False, id="as it is", marks=pytest.mark.thorough),
        pytest.param(True, id="synchronous_commit off"),
    ],
)
def test_a_postgres_that_crashes_again_and_again(
    make_world: Worlds, promise: Promise, own_server: Server, asynchronous: bool
) -> None:
    rng = random.Random(3)
    with make_world(own_server) as world:
        world.scenario()
        if asynchronous:
            world.db.execute(f"alter database {world.database.name} set synchronous_commit = off".encode())
        world.daemon("one")
        world.daemon("two")
        people = world.people(3000 if FULL else 400)
        for at in range(0, len(people), 100):
            world.act(people[at : at + 100])
            time.sleep(rng.uniform(0.05, 0.3))
            if at % (400 if not FULL else 300) == 0:
                time.sleep(rng.uniform(5, 12) if FULL and not asynchronous else 0.05)
                own_server.cluster.stop("immediate")
                world.crashes += 1
                began = time.monotonic()
                own_server.cluster.start()
                wait_until(lambda: world.statuses() is not None, "the server is back")
                wait_until(lambda: world.daemons["one"].metric("pgherald_listener_up") == 1, "listening again")
                world.recoveries.append(time.monotonic() - began)
        if asynchronous:
            # what the application itself did not get to disk is not ours to answer for
            kept = {row[0] for row in world.ask("select user_id from app.activity")}
            world.acted = [each for each in world.acted if each in kept]
        world.rest(120)
        finding = promise(world)
        assert finding.unknown < finding.prompts // 3


def test_control_claims_that_a_crash_takes_back_are_found_out(
    make_world: Worlds, promise: Promise, own_server: Server, fcm: EmulatorProcess
) -> None:
    with make_world(own_server) as world:
        world.scenario()
        naive.spoil(world, "claims are not on disk")
        people = world.people(10)
        world.db.execute("select pg_current_wal_flush_lsn()")
        world.db.execute(f"alter database {world.database.name} set synchronous_commit = off".encode())
        fcm.set_faults({"do": "latency", "seconds": 0.05})
        world.daemon()
        own_server.cluster.settings["wal_writer_delay"] = "10000"
        try:
            own_server.cluster.stop()
            own_server.cluster.start()
            world.daemons["one"].wait_for("listening", count=2)
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


def test_a_read_only_server_keeps_records_waiting_and_takes_them_later(
    make_world: Worlds, promise: Promise, own_server: Server, fcm: EmulatorProcess
) -> None:
    with make_world(own_server) as world:
        world.scenario()
        people = world.people(10)
        daemon = world.daemon()
        fcm.set_faults(SLOW)
        world.act(people)
        wait_until(lambda: daemon.metric("pgherald_in_flight") == len(people), "all under way")
        with own_server.admin() as admin:
            admin.execute("alter system set default_transaction_read_only = on")
            admin.execute("select pg_reload_conf()")
            wait_until(lambda: len(daemon.events("record_failed")) > 0, "a record that was refused")
            admin.execute("set default_transaction_read_only = off")
            admin.execute("alter system reset default_transaction_read_only")
            admin.execute("select pg_reload_conf()")
        world.rest()
        wait_until(lambda: world.statuses() == {"sent": len(people)}, "late records")
        promise(world, unknown=())


def test_no_connections_left_is_waited_out(make_world: Worlds, promise: Promise, own_server: Server) -> None:
    with make_world(own_server) as world:
        world.scenario()
        daemon = world.daemon()
        world.act(world.people(5))
        world.rest()
        hogs: list[psycopg.Connection] = []
        with suppress(psycopg.OperationalError):
            while True:
                hogs.append(psycopg.connect(world.database.migrator_dsn))
        world.ask(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where usename = %s and datname = current_database()",
            (DAEMON_LOGIN,),
        )
        with suppress(psycopg.OperationalError):
            while True:
                hogs.append(psycopg.connect(world.database.migrator_dsn))
        world.act(world.people(5))
        wait_until(lambda: "listener_down" in daemon.page("/readyz"), "it says so")
        for hog in hogs:
            hog.close()
        world.rest()
        promise(world, unknown_at_most=world.acted)
        assert world.statuses() == {"sent": 10}


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
        lost = daemon.wait_for("listener_lost")
        assert datetime.fromisoformat(lost["ts"]).timestamp() - began < 10.5
        run("ip", "link", "set", f"{name}a", "up")
        daemon.wait_for("listening", count=2)
        wait_until(lambda: "database_away" not in daemon.page("/readyz"), "working again")
        world.act(world.people(2))
        wait_until(lambda: len(daemon.events("prompt_settled")) > 0, "claimed and tried")
        assert daemon.stop() == 0
        world.daemon("outside")
        world.rest(time_passes=True)
        promise(world, unknown=())


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lacks(f"{' '.join(command[:3])}: {done.stderr.strip()}")


@contextmanager
def namespace(name: str) -> Iterator[None]:
    """A network of its own, joined to this one by a cable that can be pulled."""
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        run("ip", "addr", "add", "10.213.7.1/24", "dev", f"{name}a")
        run("ip", "link", "set", f"{name}a", "up")
        run("ip", "netns", "exec", name, "ip", "addr", "add", "10.213.7.2/24", "dev", f"{name}b")
        run("ip", "netns", "exec", name, "ip", "link", "set", f"{name}b", "up")
        run("ip", "netns", "exec", name, "ip", "link", "set", "lo", "up")
        yield
    finally:
        subprocess.run(["ip", "link", "del", f"{name}a"], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    """A file system that is soon full."""
    needs_root("a disk that is full")
    directory.chmod(0o755)
    run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(directory))
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], capture_output=True, check=False)


def test_a_full_disk_under_postgres_loses_no_record(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, open_directory: Path
) -> None:
    with small_disk(open_directory, 400) as disk:
        settings = {"max_wal_size": "64MB", "min_wal_size": "32MB", "shared_buffers": "16MB"}
        with running_on(disk, settings) as server, make_world(server) as world:
            world.scenario()
            people = world.people(40)
            daemon = world.daemon()
            fcm.set_faults({"do": "latency", "seconds": 0.3})
            world.act(people)
            world.wait_for_pushes(1)
            filler = disk / "filler"
            with suppress(OSError), filler.open("wb") as out:
                while True:
                    out.write(b"\0" * 65536)
                    out.flush()
            with suppress(psycopg.Error):
                # more WAL than there is room for
                world.db.execute(
                    "create table public.bulk as select repeat('x', 1000) as x from generate_series(1, 100000)"
                )
            time.sleep(2)
            world.note_spool(daemon)
            filler.unlink()
            if server.cluster.pid is None or not alive(server.cluster.pid):
                server.cluster.start()
            world.rest(120, time_passes=True)
            promise(world)


@contextmanager
def running_on(disk: Path, settings: dict[str, str]) -> Iterator[Server]:
    with Cluster(settings={"max_connections": "50", **settings}, scratch=disk) as cluster:
        server = Server("pg18_full", cluster)
        with server.template():
            yield server


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
