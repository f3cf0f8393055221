"""pgherald beside other queues on Postgres, in one go: a backlog of pushes drained, and single ones when all is idle.

`make bench-peers`, or `make bench-peers ARGS="--jobs 2000 --rounds 1"`. Everyone has the same server with its defaults
(synchronous_commit on), one process, and the same POST to the same nginx over TLS; pgherald with two daemons too, for a
process of Python uses one core, and of Node more than one. Rounds are interleaved. A peer's time is from its first push
to the moment at which its table says that all are done; pgherald's from its first claim to its last record. A peer
keeps the state of its job; pgherald checks the gates again, spools each acceptance with fsync, writes the record and
the history. firebase-admin has no queue at all, and h2load does nothing but the POST. What cannot be installed is
named, and the rest goes on.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.bench import drain, ground
from tests.bench.peers import contenders, install, limit, run, trickle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg

    from pgherald.embedded import Cluster
    from tests.bench.peers.run import Drained

HERALD: Final = {
    "pgherald, 100 in flight": drain.Case(100, 1, slow=False),
    "pgherald, 500 in flight": drain.Case(500, 1, slow=False),
    "pgherald, two daemons, 500 in flight each": drain.Case(500, 2, slow=False),
}
LIMIT: Final = "h2load, the POST alone"


def of_pgherald(cluster: Cluster, db: psycopg.Connection, sink: ground.Sink, case: drain.Case, jobs: int) -> Drained:
    found = drain.drain(cluster, db, sink, case, jobs)
    return run.Drained(found.rate, found.daemon_cpu, found.postgres_cpu, found.sink_cpu, found.peak_mb)


class Bench:
    """What was measured, by name, and why the rest could not be."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[Drained]] = {}
        self.taken: dict[str, list[float]] = {}
        self.missing: dict[str, str] = {}

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Do the work; when it cannot be done, say so loudly, and do not try that name again."""
        if name in self.missing:
            return
        try:
            work()
        except install.Unable as reason:
            self.missing[name] = str(reason)
            print(f"\n*** NOT MEASURED: {name}: {reason} ***\n", flush=True)

    def drain(self, name: str, measure: Callable[[], Drained]) -> None:
        def work() -> None:
            found = measure()
            self.rounds.setdefault(name, []).append(found)
            print(f"{name}: {found.rate:,.0f}/s", flush=True)

        self.attempt(name, work)

    def trickle(self, name: str, measure: Callable[[], list[float]]) -> None:
        self.attempt(name, lambda: self.taken.setdefault(name, []).extend(measure()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000, help="of each; the slow ones take a fifth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inserts", type=int, default=70, help="single ones of each, in each round; 0 for none")
    arguments = parser.parse_args()
    jobs, inserts = arguments.jobs, arguments.inserts
    bench = Bench()
    arrivals = trickle.Arrivals()
    with ground.running_server() as cluster, ground.running_sink() as sink, ground.connect(cluster) as db:
        for peer in contenders.PEERS:
            bench.attempt(peer.name, partial(run.prepare, cluster, peer))
        ground.load_people(db, max(jobs, inserts + trickle.WARM_UP))
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
            for name, case in HERALD.items():
                bench.drain(name, partial(of_pgherald, cluster, db, sink, case, jobs))
            for peer in contenders.PEERS:
                bench.drain(peer.name, partial(run.drain, cluster, peer, sink, int(jobs * peer.share)))
            bench.drain(LIMIT, partial(limit.drain, sink, jobs * 5))
            if inserts:
                for name, statement in trickle.OF_PGHERALD.items():
                    work = partial(trickle.of_pgherald, cluster, db, sink, arrivals, statement, inserts)
                    bench.trickle(name, work)
                for peer in contenders.PEERS:
                    if peer.trickles:
                        bench.trickle(peer.name, partial(trickle.of_peer, cluster, peer, sink, arrivals, inserts))
    show(bench, jobs)
    ground.write(
        "peers",
        {
            "drain": {name: [asdict(each) for each in found] for name, found in bench.rounds.items()},
            "trickle_ms": {name: [round(each, 3) for each in found] for name, found in bench.taken.items()},
            "missing": bench.missing,
            "versions": install.versions(),
        },
    )


def show(bench: Bench, jobs: int) -> None:
    def median(name: str, field: str) -> float:
        return ground.median([getattr(found, field) for found in bench.rounds[name]])

    best = max(median(name, "rate") for name in HERALD)
    rows: list[Sequence[str]] = [
        [
            name,
            f"{median(name, 'rate'):,.0f}",
            f"{median(name, 'rate') / best:.2f}",
            *(f"{median(name, field):.3f}" for field in ("cpu", "postgres_cpu", "sink_cpu")),
            f"{median(name, 'peak_mb'):.0f}",
        ]
        for name in bench.rounds
    ]
    rows += [[name, "not measured", *["-"] * 5] for name in bench.missing if name not in bench.rounds]
    count = max(map(len, bench.rounds.values()))
    print(f"\n{jobs:,} jobs, each one POST; medians of {count}; CPU seconds per 1,000\n")
    print(ground.table(["", "jobs/s", "to pgherald", "worker CPU", "Postgres", "sink", "peak MB"], rows))
    if bench.taken:
        cuts = {name: statistics.quantiles(found, n=100) for name, found in bench.taken.items()}
        first = next(iter(cuts.values()))
        rows = [[name, f"{cut[49]:.2f}", f"{cut[98]:.2f}", f"{cut[49] / first[49]:.2f}"] for name, cut in cuts.items()]
        count = max(map(len, bench.taken.values()))
        print(f"\n{count} single inserts into an idle system, commit to the request's arrival\n")
        print(ground.table(["milliseconds", "p50", "p99", "p50 to pgherald's"], rows))
    pinned = ", ".join(f"{name} {version}" for name, version in install.versions().items())
    print(f"\n{pinned}.")


if __name__ == "__main__":
    main()
