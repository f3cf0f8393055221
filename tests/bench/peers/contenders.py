"""Who is measured, and how each is set up: its documented way to run fast, found best among those tried on two cores.

Each has a database of its own on the same server as pgherald, and its jobs hold all that a push needs. `LEFT` asks
whether a job is not yet recorded as done.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.bench.peers import install

if TYPE_CHECKING:
    from collections.abc import Mapping

PAYLOAD: Final = """jsonb_build_object(
  'token', 'cXyZ' || repeat(md5(n::text), 4), 'notification_id', gen_random_uuid(), 'scenario_type', 'milestone',
  'tag', encode(sha256(n::text::bytea), 'hex'))"""
"""What a job holds; n is its number."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Where a peer keeps its jobs, in SQL. `fill` takes a number of jobs; `one` is a single job as an app adds it."""

    fill: str
    one: str
    left: str
    tables: str


@dataclass(frozen=True, slots=True)
class Peer:
    """`in_flight` are its connections to the sink, `options` those of its worker; `share` of the jobs is enough for a
    slow one. Without a queue it only sends. `trickles`: it listens, so it is measured with single jobs too."""

    name: str
    script: str
    queue: Queue | None
    options: Mapping[str, Any] = field(default_factory=dict)
    in_flight: int = 100
    share: float = 1.0
    trickles: bool = False

    def command(self) -> list[str]:
        """Raises install.Unable."""
        if self.script.endswith(".mjs"):
            node, place = install.node()
            return [node, str(place / self.script)]
        python = sys.executable if self.queue is None else install.python()
        return [python, "-m", f"tests.bench.peers.{self.script}"]

    def install_commands(self) -> list[list[str]]:
        """What makes its schema in an empty database. Raises install.Unable."""
        match self.script:
            case "pgqueuer_worker":
                return [[install.python(), "-m", "pgqueuer", what] for what in ("install", "autovac")]
            case "procrastinate_worker":
                app = "--app=tests.bench.peers.procrastinate_worker.app"
                return [[install.python(), "-m", "procrastinate", app, "schema", "--apply"]]
            case _ if self.queue is None:
                return []
            case _:
                return [[*self.command(), "install"]]


BARE: Final = Queue(
    fill=f"insert into bare.job (payload) select {PAYLOAD} from generate_series(1, %s) as n",
    one=f"with made as (insert into bare.job (payload) select {PAYLOAD} from (select %s::int as n) as each) "
    "select pg_notify('bare', '')",
    left="select exists (select from bare.job where status <> 'done')",
    tables="bare.job, bare.delivery",
)
GRAPHILE: Final = Queue(
    fill=f"select graphile_worker.add_job('push', {PAYLOAD}::json) from generate_series(1, %s) as n",
    one=f"select graphile_worker.add_job('push', {PAYLOAD}::json) from (select %s::int as n) as each",
    left="select exists (select from graphile_worker._private_jobs)",
    tables="graphile_worker._private_jobs",
)
BOSS: Final = Queue(
    fill=f"insert into pgboss.job (name, data, policy) select 'push', {PAYLOAD}, 'standard' "
    "from generate_series(1, %s) as n",
    one=f"""with made as (
  insert into pgboss.job (name, data, policy) select 'push', {PAYLOAD}, 'standard' from (select %s::int as n) as each
  returning id
)
select pg_notify('pgboss_' || left(encode(sha224('pgboss'::bytea), 'hex'), 24), 'push') from made""",
    left="select exists (select from pgboss.job where name = 'push' and state < 'completed')",
    tables="pgboss.job_common",
)
PGQUEUER: Final = Queue(
    fill=f"insert into pgqueuer (priority, entrypoint, payload, status) "
    f"select 0, 'push', convert_to({PAYLOAD}::text, 'utf8'), 'queued' from generate_series(1, %s) as n",
    one=f"insert into pgqueuer (priority, entrypoint, payload, status) "
    f"select 0, 'push', convert_to({PAYLOAD}::text, 'utf8'), 'queued' from (select %s::int as n) as each",
    left="select exists (select from pgqueuer)",
    tables="pgqueuer, pgqueuer_log",
)
PROCRASTINATE: Final = Queue(
    fill=f"select procrastinate_defer_jobs_v1(array_agg(row('default', 'push', 0, null, null, {PAYLOAD}, null)"
    "::procrastinate_job_to_defer_v1)) from generate_series(1, %s) as n",
    one=f"select procrastinate_defer_jobs_v1(array[row('default', 'push', 0, null, null, {PAYLOAD}, null)"
    "::procrastinate_job_to_defer_v1]) from (select %s::int as n) as each",
    left="select exists (select from procrastinate_jobs where status in ('todo', 'doing'))",
    tables="procrastinate_jobs",
)

PEERS: Final = (
    Peer(
        "graphile-worker, tuned",
        "graphile.mjs",
        GRAPHILE,
        {
            "concurrentJobs": 100,
            "maxPoolSize": 10,
            "localQueue": {"size": 500, "refetchDelay": {"durationMs": 10}},
            "completeJobBatchDelay": 0,
            "failJobBatchDelay": 0,
        },
        in_flight=32,
        trickles=True,
    ),
    Peer(
        "graphile-worker, default, 24 at once",
        "graphile.mjs",
        GRAPHILE,
        {"concurrentJobs": 24, "maxPoolSize": 25},
        in_flight=24,
    ),
    Peer(
        "pg-boss",
        "pgboss.mjs",
        BOSS,
        {"batchSize": 1000, "localConcurrency": 4, "burstWhenBatchFull": True},
        in_flight=32,
        trickles=True,
    ),
    Peer("pgqueuer", "pgqueuer_worker", PGQUEUER, {"batch_size": 100, "max_concurrent_tasks": 200}, trickles=True),
    Peer("procrastinate", "procrastinate_worker", PROCRASTINATE, {"concurrency": 30}, share=0.2, trickles=True),
    Peer("a bare loop, no queue of anybody's", "bare_worker", BARE, in_flight=500, trickles=True),
    Peer("firebase-admin, no queue", "firebase_worker", None, share=0.2),
)
