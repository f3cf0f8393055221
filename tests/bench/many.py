"""Several daemons on one Postgres, FCM 20 ms away: pushes a second, and what Postgres waited for meanwhile.

`make bench-many`, or `make bench-many ARGS="--prompts 2000 --rounds 1"`. They know nothing of each other but Postgres.
With few pushes in flight each daemon waits for FCM most of the time, so that more of them send more until the machine,
which all of this shares, is busy; "cores" says how busy. Below, what the daemons' backends were doing in samples taken
twenty times a second (no wait event means running), and which tables and indexes took the write-ahead log.
"""

from __future__ import annotations

import argparse
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.bench import drain, ground

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from pgherald.embedded import Cluster

LATENCY: Final = 0.02
EVERY: Final = 0.05
DAEMONS: Final = (1, 2, 4)

WAITS: Final = """
select coalesce(a.wait_event_type || ': ' || a.wait_event, 'running'),
  (select l.locktype || coalesce(' ' || l.relation::regclass::text, '') from pg_locks as l
   where l.pid = a.pid and not l.granted limit 1)
from pg_stat_activity as a
where a.usename = %s and a.state = 'active'
"""

# The checkpoint at the end of the loading is the last one: what came after it is the drain's.
WAL: Final = """
select coalesce(pg_filenode_relation(b.reltablespace, b.relfilenode)::regclass::text, '?') as relation,
  count(*) as changes, sum(b.block_data_length)::bigint as bytes, sum(b.block_fpi_length)::bigint as images
from pg_get_wal_block_info(
  (select redo_lsn from pg_control_checkpoint()), pg_current_wal_flush_lsn()) as b
where b.reldatabase = (select oid from pg_database where datname = current_database())
group by 1 order by 2 desc, 1
limit 12
"""


@dataclass(frozen=True, slots=True)
class Round:
    """`cores` are those busy with the daemons, Postgres and the sink."""

    rate: float
    cores: float
    postgres_cores: float


@contextmanager
def sampled(cluster: Cluster) -> Iterator[Counter[str]]:
    """What the daemons' backends waited for while the block ran."""
    found: Counter[str] = Counter()
    ended = threading.Event()

    def sample() -> None:
        with ground.connect(cluster) as db:
            while not ended.wait(EVERY):
                for waits, lock in db.execute(WAITS, (ground.DAEMON,)):
                    found[f"{waits} ({lock})" if lock else waits] += 1

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def measure(
    cluster: Cluster, db: psycopg.Connection, sink: ground.Sink, in_flight: int, daemons: int, prompts: int
) -> tuple[Round, Counter[str]]:
    """The more daemons, the more prompts, so that each round takes about as long."""
    with sampled(cluster) as waits:
        found = drain.drain(cluster, db, sink, drain.Case(in_flight, daemons, slow=True), prompts * daemons)
    used = found.daemon_cpu + found.postgres_cpu + found.sink_cpu
    return Round(found.rate, used * found.rate / 1000, found.postgres_cpu * found.rate / 1000), waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=6_000, help="for each daemon")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", default="25,200", help="of each daemon: each of these in turn")
    arguments = parser.parse_args()
    widths = [int(each) for each in arguments.in_flight.split(",")]
    cases = [(width, daemons) for width in widths for daemons in DAEMONS]
    rounds: dict[tuple[int, int], list[Round]] = {case: [] for case in cases}
    waits: dict[tuple[int, int], Counter[str]] = {case: Counter() for case in cases}
    wal: list[dict[str, Any]] = []
    with ground.running_server() as cluster, ground.running_sink(delay=LATENCY) as sink, ground.connect(cluster) as db:
        db.execute("create extension pg_walinspect")
        ground.load_people(db, arguments.prompts * max(DAEMONS))
        for number in range(arguments.rounds):
            for case in cases:
                width, daemons = case
                found, waited = measure(cluster, db, sink, width, daemons, arguments.prompts)
                rounds[case].append(found)
                waits[case] += waited
                print(f"round {number + 1}: {daemons} x {width} in flight: {found.rate:,.0f}/s", flush=True)
        pushes = arguments.prompts * cases[-1][1]
        columns = ("relation", "changes", "bytes", "images")
        wal = [dict(zip(columns, row, strict=True)) for row in db.execute(WAL.encode())]
    show(rounds, waits, arguments.rounds)
    print("\nwrite-ahead log of the last round: changes and bytes of each table and index, by the push\n")
    cells = [
        [
            f"`{each['relation']}`",
            *(f"{each[name] / pushes:.{places}f}" for name, places in zip(columns[1:], (2, 0, 0), strict=True)),
        ]
        for each in wal
    ]
    print(ground.table(["", "changes", "bytes", "page images"], cells))
    ground.write(
        "many",
        {
            f"{daemons} x {width}": {
                "rounds": [asdict(each) for each in rounds[width, daemons]],
                "waits": dict(waits[width, daemons].most_common()),
            }
            for width, daemons in cases
        }
        | {"wal": wal, "pushes": pushes},
    )


def show(rounds: dict[tuple[int, int], list[Round]], waits: dict[tuple[int, int], Counter[str]], count: int) -> None:
    rows = []
    for (width, daemons), found in rounds.items():
        rate = ground.median([each.rate for each in found])
        one = ground.median([each.rate for each in rounds[width, DAEMONS[0]]])
        waited = waits[width, daemons]
        share = [f"{name} {100 * times / waited.total():.0f} %" for name, times in waited.most_common(3)]
        rows.append(
            [
                f"{daemons} {'daemon' if daemons == 1 else 'daemons'}, {width} in flight each",
                f"{rate:,.0f}",
                f"{rate / one:.2f}",
                f"{ground.median([each.cores for each in found]):.2f}",
                f"{ground.median([each.postgres_cores for each in found]):.2f}",
                ", ".join(share),
            ]
        )
    print(f"\nFCM {LATENCY * 1000:.0f} ms away; medians of {count} rounds\n")
    print(ground.table(["", "pushes/s", "to one", "cores", "of them Postgres", "its backends"], rows))


if __name__ == "__main__":
    main()
