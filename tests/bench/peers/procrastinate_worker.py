"""procrastinate: one worker in one process, psycopg and uvloop; `options` are those of run_worker_async()."""

from __future__ import annotations

import asyncio

import uvloop
from procrastinate import App, PsycopgConnector

from tests.bench.peers.push import Pusher
from tests.bench.peers.talk import Bench, ready, until_over

BENCH = Bench.given()
POOL = 20
app = App(connector=PsycopgConnector(conninfo=BENCH.dsn, min_size=POOL, max_size=POOL))


async def main() -> None:
    pusher = Pusher.open(BENCH)

    async def push(**job: str) -> None:
        await pusher.push(job)

    app.task(name="push")(push)
    async with app.open_async():
        ready()
        await until_over(asyncio.ensure_future(app.run_worker_async(install_signal_handlers=False, **BENCH.options)))


if __name__ == "__main__":
    uvloop.run(main())
