"""What a push costs the database itself: CPU time of one backend that claims and settles, in microseconds a prompt.

`make bench-outbox`, or `python -m tests.bench.outbox --prompts 50000 --batches 125,500`. No daemon and no HTTP: a
backlog is claimed and settled as sent, batch by batch over one connection, by the calls that the daemon makes.
`--waiting` lets many more prompts wait behind those; `--binaries` takes another Postgres (/usr/lib/postgresql/15/bin).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from pgherald.store import Settlement, Store
from tests.bench import ground

if TYPE_CHECKING:
    import psycopg

    from pgherald.embedded import Cluster

LEASE: Final = timedelta(seconds=30)
BACKEND: Final = "select pid from pg_stat_activity where application_name = 'pgherald' and datname = current_database()"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a row: microseconds of CPU to claim and to settle it, wall time of both, bytes of WAL. The slowest claim, in
    milliseconds of CPU."""

    batch: int
    claim: float
    settle: float
    wall: float
    wal: float
    slowest_claim: float


def cpu_ns(pid: int) -> int:
    """What a process ran, by the scheduler's own account."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def wal_bytes(db: psycopg.Connection) -> int:
    row = db.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


async def work(cluster: Cluster, db: psycopg.Connection, batch: int, prompts: int, stop_after: int) -> Cost:
    """Claim and settle until `stop_after` prompts are sent."""
    ground.script(db, ground.PROMPTS.format(prompts=0))
    async with Store(cluster.dsn(ground.DATABASE, ground.DAEMON), size=1) as store:
        for _ in range(8):  # the session's plans are made while the outbox is empty, as a daemon's are
            claimed = await store.claim("bench", batch, LEASE)
            await store.settle([])
        ground.script(db, ground.PROMPTS.format(prompts=prompts))
        row = db.execute(BACKEND).fetchone()
        assert row is not None
        pid = int(row[0])
        claim = settle = done = 0
        slowest = 0
        wal = wal_bytes(db)
        began = time.monotonic()
        while done < stop_after:
            at_first = cpu_ns(pid)
            claimed = await store.claim("bench", batch, LEASE)
            in_between = cpu_ns(pid)
            if not claimed.prompts:
                raise SystemExit(f"nothing left after {done}; decided otherwise: {len(claimed.decided)}")
            now = datetime.now(UTC)
            settlements = [
                Settlement(
                    each.prompt_id,
                    each.epoch,
                    "sent",
                    now,
                    device_id=each.devices[0].device_id,
                    message_name="projects/bench/messages/0:1500415314455276%31bd1c9631bd1c96",
                )
                for each in claimed.prompts
            ]
            await store.settle(settlements)
            at_last = cpu_ns(pid)
            claim += in_between - at_first
            settle += at_last - in_between
            slowest = max(slowest, in_between - at_first)
            done += len(settlements)
        wall = time.monotonic() - began
        wal = wal_bytes(db) - wal
    return Cost(batch, claim / done / 1e3, settle / done / 1e3, wall * 1e6 / done, wal / done, slowest / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50_000)
    parser.add_argument("--waiting", type=int, default=0, help="so many more that are never reached")
    parser.add_argument("--batches", default="125,500")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binaries", type=Path, default=None)
    arguments = parser.parse_args()
    total = arguments.prompts + arguments.waiting
    found: dict[int, list[Cost]] = {int(batch): [] for batch in arguments.batches.split(",")}
    with ground.running_server(arguments.binaries) as cluster, ground.connect(cluster) as db:
        ground.load_people(db, total)
        for _ in range(arguments.rounds):
            for batch, costs in found.items():
                costs.append(anyio.run(work, cluster, db, batch, total, arguments.prompts))
        version = cluster.major_version
    fields = ("claim", "settle", "wall", "wal", "slowest_claim")
    rows = [
        [batch, *(f"{ground.median([getattr(cost, field) for cost in costs]):,.1f}" for field in fields)]
        for batch, costs in found.items()
    ]
    print(
        f"PostgreSQL {version}, {arguments.prompts:,} prompts, {arguments.waiting:,} more waiting; medians of "
        f"{arguments.rounds}; microseconds a row\n"
    )
    head = ["batch", "claim, CPU", "settle, CPU", "both, wall", "WAL bytes", "slowest claim, ms"]
    print(ground.table(head, rows))
    ground.write("outbox", {str(batch): [asdict(cost) for cost in costs] for batch, costs in found.items()})


if __name__ == "__main__":
    main()
