"""No queue of anybody's, but a yardstick: the least that sends jobs of a table, as fast as Python does it here.

Claims 500, posts them, marks them done in batches and writes one row for each; LISTENs for single ones. psycopg,
uvloop, and pyreqwest (HTTP in Rust). No gates, no spool, nothing that would hold when something breaks.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import psycopg
import uvloop
from psycopg import AsyncConnection
from pyreqwest.client import ClientBuilder

from tests.bench.peers.talk import Bench, message, ready, say, until_over

if TYPE_CHECKING:
    from pyreqwest.client import Client

SCHEMA: Final = """
create schema bare;
create table bare.job (
  job_id bigint generated always as identity primary key,
  payload jsonb not null,
  status text not null default 'ready'
);
create index job_ready on bare.job (job_id) where status = 'ready';
create table bare.delivery (job_id bigint primary key, name text not null, sent_at timestamptz not null default now());
"""
CLAIM: Final = """with free as materialized (
  select job_id from bare.job where status = 'ready' order by job_id for update skip locked limit 500
)
update bare.job as j set status = 'sending' from free as f where j.job_id = f.job_id returning j.job_id, j.payload"""
DONE: Final = """with done as (
  update bare.job set status = 'done' where job_id = any (%s::bigint[])
)
insert into bare.delivery (job_id, name)
select u.job_id, u.name from unnest(%s::bigint[], %s::text[]) as u (job_id, name)"""
NAP: Final = 0.002
"""Seconds in which answers gather for one statement, once one is in."""


class Worker:
    def __init__(self, bench: Bench, client: Client, claims: AsyncConnection, marks: AsyncConnection) -> None:
        self.bench, self.client, self.claims, self.marks = bench, client, claims, marks
        self.slots = asyncio.Semaphore(bench.in_flight)
        self.headers = {"authorization": f"Bearer {bench.token}", "content-type": "application/json"}
        self.answers: list[tuple[int, str]] = []
        self.some = asyncio.Event()
        self.first = self.answered = 0

    async def push(self, job_id: int, job: dict[str, str]) -> None:
        body = json.dumps(message(job)).encode()
        request = self.client.post(self.bench.url).headers(self.headers).body_bytes(body).build()
        answer = await (await request.send()).json()
        self.answers.append((job_id, answer["name"]))
        self.slots.release()
        self.some.set()
        self.answered += 1
        if self.answered == self.bench.jobs:
            say(first=self.first, last=time.monotonic_ns())

    async def mark(self) -> None:
        while True:
            await self.some.wait()
            await asyncio.sleep(NAP)
            self.some.clear()
            answers, self.answers = self.answers, []
            done = [job_id for job_id, _ in answers]
            await self.marks.execute(DONE, (done, done, [name for _, name in answers]))

    async def work(self) -> None:
        await self.claims.execute("listen bare")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.mark())
            while True:
                claimed = await (await self.claims.execute(CLAIM)).fetchall()
                self.first = self.first or time.monotonic_ns()
                for job_id, job in claimed:
                    await self.slots.acquire()
                    tasks.create_task(self.push(job_id, job))
                if not claimed:
                    async for _ in self.claims.notifies(timeout=1, stop_after=1):
                        pass


async def main() -> None:
    bench = Bench.given()
    if sys.argv[1:] == ["install"]:
        with psycopg.connect(bench.dsn) as db:
            db.execute(SCHEMA)
        return
    settings: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0}
    claims, marks = [await AsyncConnection.connect(bench.dsn, **settings) for _ in range(2)]
    # The sink's certificate signs itself, which rustls takes for no server's.
    client = ClientBuilder().danger_accept_invalid_certs(True).build()
    ready()
    await until_over(asyncio.ensure_future(Worker(bench, client, claims, marks).work()))


if __name__ == "__main__":
    uvloop.run(main())
