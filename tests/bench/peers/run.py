"""One peer at work: its database, its worker process, a backlog drained, and what that took."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import quote

import psycopg

from tests.bench import ground
from tests.bench.peers.install import Unable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgherald.embedded import Cluster
    from tests.bench.peers.contenders import Peer

PATIENCE: Final = 180.0
TOKEN: Final = "ya29." + "x" * 200
PATH: Final = "/v1/projects/bench/messages:send"


@dataclass(frozen=True, slots=True)
class Drained:
    """CPU in seconds per 1,000 pushes; of all is with Postgres and the sink."""

    rate: float
    cpu: float
    postgres_cpu: float
    sink_cpu: float
    peak_mb: float


class Worker:
    """A worker process of a peer, and the words it says."""

    def __init__(self, process: subprocess.Popen[str], said: IO[str]) -> None:
        self.process = process
        self._said = said

    def hear(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Its next line. Raises Unable when there is none."""
        readable, _, _ = select.select([self._said], [], [], patience)
        line = self._said.readline() if readable else ""
        if not line:
            raise Unable(f"its worker said nothing more for {patience:.0f} s, or ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()


def dsn(cluster: Cluster, database: str) -> str:
    """As a URL, which all of them take, over the same socket as pgherald."""
    found = psycopg.conninfo.conninfo_to_dict(cluster.dsn(database))
    user, host = quote(str(found.get("user", "postgres"))), quote(str(found["host"]), safe="")
    return f"postgresql://{user}@/{database}?host={host}&port={found['port']}"


def database_of(peer: Peer) -> str:
    return "peer_" + peer.script.partition(".")[0]


def prepare(cluster: Cluster, peer: Peer) -> None:
    """Install it, and make its template database, unless they are there. Raises Unable."""
    peer.command()
    template = f"{database_of(peer)}_template"
    with psycopg.connect(cluster.dsn(), autocommit=True) as admin:
        if admin.execute("select 1 from pg_database where datname = %s", (template,)).fetchone():
            return
        admin.execute(f"create database {template}")
        for command in peer.install_commands():
            environment = _environment(cluster, template, {})
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                admin.execute(f"drop database {template} with (force)")
                raise Unable(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _environment(cluster: Cluster, database: str, bench: dict[str, Any]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PGHERALD_", "PG", "NODE_"))}
    found = psycopg.conninfo.conninfo_to_dict(cluster.dsn(database))
    libpq = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password"}
    given = {name: str(found[key]) for name, key in libpq.items() if found.get(key)}
    told = {
        "dsn": dsn(cluster, database),
        "url": "http://127.0.0.1:9",
        "certificate": "",
        "token": TOKEN,
        "inFlight": 1,
        "jobs": 0,
    }
    return {
        **kept,
        **given,
        "PGDATABASE": database,
        "BENCH": json.dumps({**told, "options": {}, **bench}),
    }


@contextmanager
def fresh_database(cluster: Cluster, peer: Peer) -> Iterator[psycopg.Connection]:
    """Its database, as after its installation; a connection to it."""
    name = database_of(peer)
    with psycopg.connect(cluster.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database if exists {name} with (force)")
        admin.execute(f"create database {name} template {name}_template")
        try:
            with psycopg.connect(cluster.dsn(name), autocommit=True) as db:
                yield db
        finally:
            admin.execute(f"drop database if exists {name} with (force)")


@contextmanager
def running_worker(cluster: Cluster, peer: Peer, sink: ground.Sink, url: str, jobs: int) -> Iterator[Worker]:
    """Its process, connected and about to begin; stopped with the block. A URL without TLS needs no certificate."""
    bench = {
        "url": url,
        "certificate": str(sink.certificate) if url.startswith("https:") else "",
        "inFlight": peer.in_flight,
        "jobs": jobs,
        "options": dict(peer.options),
    }
    complaints = sink.directory / "worker.log"
    with complaints.open("w") as log:
        process = subprocess.Popen(
            peer.command(),
            env={**_environment(cluster, database_of(peer), bench), **sink.environment},
            cwd=Path.cwd(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    try:
        worker = Worker(process, process.stdout)
        worker.hear(30)
        yield worker
    except Unable as reason:
        raise Unable(f"{reason}\n{complaints.read_text()[-3000:]}") from reason
    finally:
        process.kill()
        process.communicate()


def drain(cluster: Cluster, peer: Peer, sink: ground.Sink, jobs: int) -> Drained:
    """Put the jobs in, let the worker begin, and wait until each is recorded as done."""
    with fresh_database(cluster, peer) as db:
        if peer.queue is not None:
            db.execute(peer.queue.fill, (jobs,))
            db.execute(f"vacuum analyze {peer.queue.tables}")
            db.execute("checkpoint")
        with running_worker(cluster, peer, sink, sink.endpoint() + PATH, jobs) as worker:
            families = [worker.process.pid], ground.family(cluster.pid or 0), ground.family(sink.pid)
            before = [ground.cpu_seconds(each) for each in families]
            worker.go()
            said = worker.hear()
            deadline = time.monotonic() + PATIENCE
            while peer.queue is not None and _left(db, peer.queue.left):
                if time.monotonic() > deadline:
                    raise Unable(f"not drained after {PATIENCE:.0f} s")
                time.sleep(0.005)
            ended = time.monotonic_ns() if peer.queue is not None else said["last"]
            families = families[0], ground.family(cluster.pid or 0), families[2]
            after = [ground.cpu_seconds(each) for each in families]
            peak = ground.peak_mb(worker.process.pid)
    own, postgres, of_sink = [(b - a) * 1000 / jobs for a, b in zip(before, after, strict=True)]
    return Drained(jobs * 1e9 / (ended - said["first"]), own, postgres, of_sink, peak)


def _left(db: psycopg.Connection, query: str) -> bool:
    row = db.execute(query).fetchone()
    return row is not None and bool(row[0])
