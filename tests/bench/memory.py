"""What a daemon holds and does while it waits, and while it sends: resident memory beside a million prompts.

`make bench-memory`, or `make bench-memory ARGS="--prompts 100000 --seconds 10 --minutes 0.5"`; `--minutes 10` for the
full drain. First with an empty outbox; then with the prompts, paused, and after it was woken by a NOTIFY; then while
they are sent, for so many minutes, at a rate that makes them last (PGHERALD_MAX_RATE), its memory taken every second.
DESIGN: under 100 MB, flat, and no busy polling.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Final

from tests.bench import ground

if TYPE_CHECKING:
    import psycopg

IN_FLIGHT: Final = 500
PARTS: Final = 4
"""The drain is told in so many parts; between the first and the last, memory may not have grown."""


def transactions(db: psycopg.Connection) -> int:
    """How many transactions of this database have ended; asking is one of them."""
    db.execute("select pg_stat_clear_snapshot()")
    row = db.execute(
        "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def watch(db: psycopg.Connection, pid: int, seconds: float) -> list[str]:
    """Memory now; transactions a minute and CPU over a while."""
    time.sleep(2)
    began, cpu = transactions(db), ground.cpu_seconds([pid])
    time.sleep(seconds)
    ended = transactions(db) - 4  # of which these are ours: two a call
    used = ground.cpu_seconds([pid]) - cpu
    return [
        f"{ground.peak_mb(pid, 'VmRSS'):.0f}",
        f"{ground.peak_mb(pid):.0f}",
        f"{max(ended - began, 0) * 60 / seconds:.0f}",
        f"{used * 100 / seconds:.2f} %",
        "",
    ]


def drain(db: psycopg.Connection, pid: int, seconds: float) -> tuple[list[list[str]], list[float]]:
    """A line for each part of the drain, and memory second by second."""
    rows: list[list[str]] = []
    every: list[float] = []
    left = _left(db)
    for number in range(PARTS):
        began, cpu = time.monotonic(), ground.cpu_seconds([pid])
        mine: list[float] = []
        while (passed := time.monotonic() - began) < seconds / PARTS and (mine or left):
            time.sleep(1)
            mine.append(ground.peak_mb(pid, "VmRSS"))
        if not mine:
            break
        before, left = left, _left(db)
        used = ground.cpu_seconds([pid]) - cpu
        rows.append(
            [
                f"sending, part {number + 1} of {PARTS}",
                f"{statistics.median(mine):.0f}",
                f"{max(mine):.0f}",
                "",
                f"{used * 100 / passed:.0f} %",
                f"{(before - left) / passed:,.0f}",
            ]
        )
        every += mine
    return rows, every


def _left(db: psycopg.Connection) -> int:
    row = db.execute("select count(*) from herald.prompt where status = 'ready'").fetchone()
    assert row is not None
    return int(row[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20, help="of each time at rest")
    parser.add_argument("--minutes", type=float, default=2, help="of sending")
    arguments = parser.parse_args()
    rows = []
    with (
        ground.running_server() as cluster,
        ground.running_sink() as sink,
        ground.connect(cluster) as db,
    ):
        ground.load_people(db, arguments.prompts)
        db.execute("select herald.pause()")
        seconds = arguments.minutes * 60
        rate = arguments.prompts / seconds
        with ground.running_daemons(
            cluster, sink.endpoint(), sink.environment, max_in_flight=IN_FLIGHT, max_rate=f"{rate:.0f}"
        ) as daemons:
            pid = daemons[0].pid
            rows.append(["nothing waits", *watch(db, pid, arguments.seconds)])
            ground.script(db, ground.PROMPTS.format(prompts=arguments.prompts))
            db.execute("select pg_notify('herald', '')")
            rows.append([f"{arguments.prompts:,} prompts wait", *watch(db, pid, arguments.seconds)])
            db.execute("select herald.resume()")
            sending, every = drain(db, pid, seconds)
            rows += sending
    head = ["", "RSS MB", "peak MB", "transactions a minute", "CPU", "pushes/s"]
    print(f"one daemon, {IN_FLIGHT} in flight, at most {rate:,.0f} pushes a second\n")
    print(ground.table(head, rows))
    ground.write(
        "memory", {"rows": [dict(zip(["case", *head[1:]], row, strict=True)) for row in rows], "rss_mb": every}
    )


if __name__ == "__main__":
    main()
