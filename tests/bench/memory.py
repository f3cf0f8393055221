"""What a daemon holds and does while it waits: resident memory beside a million prompts, statements and CPU when idle.

`make bench-memory`, or `python -m tests.bench.memory --prompts 100000 --seconds 20`. First with an empty outbox;
then with the prompts, paused, and after it was woken by a NOTIFY. DESIGN: under 100 MB, and no busy polling.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from tests.bench import ground

if TYPE_CHECKING:
    import psycopg


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
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    rows = []
    with (
        ground.running_server() as cluster,
        ground.running_sink() as sink,
        ground.connect(cluster) as db,
    ):
        ground.load_people(db, arguments.prompts)
        with ground.running_daemons(cluster, sink.endpoint(), sink.environment) as daemons:
            pid = daemons[0].pid
            rows.append(["nothing waits", *watch(db, pid, arguments.seconds)])
            db.execute("select herald.pause()")
            ground.script(db, ground.PROMPTS.format(prompts=arguments.prompts))
            db.execute("select pg_notify('herald', '')")
            rows.append([f"{arguments.prompts:,} prompts wait", *watch(db, pid, arguments.seconds)])
    head = ["", "RSS MB", "peak MB", "transactions a minute", "CPU"]
    print(ground.table(head, rows))
    ground.write("memory", [dict(zip(["case", *head[1:]], row, strict=True)) for row in rows])


if __name__ == "__main__":
    main()
