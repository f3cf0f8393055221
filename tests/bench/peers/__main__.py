"""pgherald beside other queues on Postgres, in one go: a backlog of pushes drained, and single ones when all is idle.

`make bench-peers`, or `make bench-peers ARGS="--jobs 2000 --rounds 1"`. Everyone has the same server with its defaults
(synchronous_commit on), one process, and the same POST to the same nginx over TLS; rounds are interleaved. A peer's
time is from its first push to the moment at which its table says that all are done; pgherald's from its first claim to
its last record. A peer keeps the state of its job; pgherald checks the gates again, spools each acceptance with fsync,
writes the record and the history. firebase-admin has no queue at all, and h2load does nothing but the POST. What cannot
be installed is named, and the rest goes on.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from tests.bench import drain, ground
from tests.bench.peers import contenders, install, limit, run, trickle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg

    from pgherald.embedded import Cluster
    from tests.bench.peers.contenders import Peer
    from tests.bench.peers.run import Drained

HERALD: Final = "pgherald, {} in flight"
LIMIT: Final = "h2load, the POST alone"


def of_pgherald(cluster: Cluster, db: psycopg.Connection, sink: ground.Sink, in_flight: int, jobs: int) -> Drained:
    found = drain.drain(cluster, db, sink, drain.Case(in_flight, 1, slow=False), jobs)
    return run.Drained(found.rate, found.daemon_cpu, found.postgres_cpu, found.sink_cpu, found.peak_mb)


def prepared(cluster: Cluster) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run here, and why the others cannot, loudly."""
    able, missing = [], {}
    for peer in contenders.PEERS:
        try:
            run.prepare(cluster, peer)
            able.append(peer)
        except install.Missing as reason:
            missing[peer.name] = str(reason)
            print(f"\n*** NOT MEASURED: {peer.name}: {reason} ***\n", flush=True)
    return able, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000, help="of each; the slow ones take a fifth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inserts", type=int, default=100, help="single ones of each, in each round; 0 for none")
    arguments = parser.parse_args()
    jobs, inserts = arguments.jobs, arguments.inserts
    rounds: dict[str, list[Drained]] = {}
    taken: dict[str, list[float]] = {}
    with ground.running_server() as cluster, ground.running_sink() as sink, ground.connect(cluster) as db:
        able, missing = prepared(cluster)
        ground.load_people(db, max(jobs, inserts + trickle.WARM_UP))
        drains: list[tuple[str, Callable[[], Drained]]] = [
            *((HERALD.format(n), lambda n=n: of_pgherald(cluster, db, sink, n, jobs)) for n in (100, 500)),
            *((peer.name, lambda peer=peer: run.drain(cluster, peer, sink, int(jobs * peer.share))) for peer in able),
            (LIMIT, lambda: limit.drain(sink, jobs * 5)),
        ]
        arrivals = trickle.Arrivals()
        for number in range(arguments.rounds):
            for name, measure in drains:
                if name in missing:
                    continue
                try:
                    found = measure()
                except install.Missing as reason:
                    missing[name] = str(reason)
                    print(f"\n*** NOT MEASURED: {name}: {reason} ***\n", flush=True)
                    continue
                rounds.setdefault(name, []).append(found)
                print(f"round {number + 1}: {name}: {found.rate:,.0f}/s", flush=True)
            if inserts:
                for name, statement in trickle.OF_PGHERALD.items():
                    times = trickle.of_pgherald(cluster, db, sink, arrivals, statement, inserts)
                    taken.setdefault(name, []).extend(times)
                for peer in able:
                    if peer.trickles:
                        times = trickle.of_peer(cluster, peer, sink, arrivals, inserts)
                        taken.setdefault(peer.name, []).extend(times)
    show(rounds, taken, missing, jobs)
    ground.write(
        "peers",
        {
            "drain": {name: [asdict(each) for each in found] for name, found in rounds.items()},
            "trickle_ms": {name: [round(each, 3) for each in found] for name, found in taken.items()},
            "missing": missing,
            "versions": install.versions(),
        },
    )


def show(rounds: dict[str, list[Drained]], taken: dict[str, list[float]], missing: dict[str, str], jobs: int) -> None:
    def median(name: str, field: str) -> float:
        return ground.median([getattr(found, field) for found in rounds[name]])

    best = max(median(HERALD.format(n), "rate") for n in (100, 500))
    rows: list[Sequence[str]] = [
        [
            name,
            f"{median(name, 'rate'):,.0f}",
            f"{median(name, 'rate') / best:.2f}",
            *(f"{median(name, field):.3f}" for field in ("cpu", "postgres_cpu", "sink_cpu")),
            f"{median(name, 'peak_mb'):.0f}",
        ]
        for name in rounds
    ]
    rows += [[name, "not installed", *["-"] * 5] for name in missing]
    print(
        f"\n{jobs:,} jobs, each one POST; medians of {max(map(len, rounds.values()))} rounds; CPU seconds per 1,000\n"
    )
    print(ground.table(["", "jobs/s", "to pgherald", "worker CPU", "Postgres", "sink", "peak MB"], rows))
    if taken:
        cuts = {name: statistics.quantiles(found, n=100) for name, found in taken.items()}
        first = next(iter(cuts.values()))
        rows = [[name, f"{cut[49]:.2f}", f"{cut[98]:.2f}", f"{cut[49] / first[49]:.2f}"] for name, cut in cuts.items()]
        count = len(next(iter(taken.values())))
        print(f"\n{count} single inserts into an idle system, commit to the request's arrival\n")
        print(ground.table(["milliseconds", "p50", "p99", "p50 to pgherald's"], rows))


if __name__ == "__main__":
    main()
