"""pgqueuer: one queue manager in one process, asyncpg and uvloop; `options` are those of its run()."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.models import Job  # noqa: TC002 - pgqueuer reads the annotation

from tests.bench.peers.push import Pusher
from tests.bench.peers.talk import Bench, ready, until_over


async def main() -> None:
    bench = Bench.given()
    pusher = Pusher.open(bench)
    queue = PgQueuer.from_asyncpg_connection(await asyncpg.connect(bench.dsn))

    async def push(job: Job) -> None:
        await pusher.push(json.loads(job.payload or b""))

    queue.entrypoint("push")(push)
    ready()
    await until_over(asyncio.ensure_future(queue.run(**bench.options)))


if __name__ == "__main__":
    uvloop.run(main())
