"""How fast a backlog goes out: ready prompts to an nginx over TLS, each claimed, spooled, recorded, in the history.

`make bench-drain`, or `python -m tests.bench.drain --prompts 20000 --rounds 1`. The time is from the first claim to the
last record, by the database's clock; CPU is of the daemons, of Postgres and of the sink. Rounds are interleaved.
DESIGN: 15,000 a second without latency, 10,000 with.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from tests.bench import ground

if TYPE_CHECKING:
    import psycopg

    from pgherald.embedded import Cluster

PATIENCE: Final = 180.0


@dataclass(frozen=True, slots=True)
class Case:
    in_flight: int
    daemons: int
    slow: bool

    @property
    def name(self) -> str:
        daemons = "1 daemon" if self.daemons == 1 else f"{self.daemons} daemons"
        return f"{daemons}, {self.in_flight} in flight each, latency {'50 ms' if self.slow else 'none'}"


@dataclass(frozen=True, slots=True)
class Drain:
    """One round. CPU in seconds per 1,000 pushes."""

    rate: float
    daemon_cpu: float
    postgres_cpu: float
    sink_cpu: float
    peak_mb: float
    again: int


CASES: Final = (
    Case(100, 1, slow=False),
    Case(500, 1, slow=False),
    Case(100, 2, slow=False),
    Case(500, 2, slow=False),
    Case(500, 1, slow=True),
    Case(1000, 1, slow=True),
    Case(500, 2, slow=True),
)


def drain(cluster: Cluster, db: psycopg.Connection, sink: ground.Sink, case: Case, prompts: int) -> Drain:
    """Start the daemons, put the prompts in, ring, and wait until all are sent."""
    ground.script(db, ground.PROMPTS.format(prompts=0))
    with ground.running_daemons(
        cluster,
        sink.endpoint(slow=case.slow),
        sink.environment,
        case.daemons,
        max_in_flight=case.in_flight,
        poll_interval=600,
    ) as daemons:
        ground.script(db, ground.PROMPTS.format(prompts=prompts))
        pids = [daemon.pid for daemon in daemons]
        postmaster = cluster.pid or 0
        before = [ground.cpu_seconds(each) for each in (pids, ground.family(postmaster), ground.family(sink.pid))]
        db.execute("select pg_notify('herald', '')")
        deadline = time.monotonic() + PATIENCE
        while _left(db):
            if time.monotonic() > deadline:
                raise SystemExit(f"{case.name}: not drained after {PATIENCE:.0f} s")
            time.sleep(0.25)
        after = [ground.cpu_seconds(each) for each in (pids, ground.family(postmaster), ground.family(sink.pid))]
        peak = max(ground.peak_mb(pid) for pid in pids)
    row = db.execute(
        "select count(*) filter (where status = 'sent'), "
        "extract(epoch from max(settled_at) - min(claimed_at))::float8, "
        "(select count(*) from herald.scenario_notification), "
        "(select count(*) from herald.scenario_prompt_history where delivery_status = 'dispatched'), "
        "sum(attempts) - count(*) from herald.prompt"
    ).fetchone()
    assert row is not None
    sent, seconds, records, told, again = row
    if not sent == records == told == prompts:
        raise SystemExit(f"{case.name}: {prompts} prompts, {sent} sent, {records} records, {told} in the history")
    daemon, postgres, of_sink = [(b - a) * 1000 / prompts for a, b in zip(before, after, strict=True)]
    return Drain(prompts / seconds, daemon, postgres, of_sink, peak, int(again))


def _left(db: psycopg.Connection) -> bool:
    row = db.execute("select exists (select from herald.prompt where status in ('ready', 'sending'))").fetchone()
    return row is not None and bool(row[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="", help="numbers, from 0: " + "; ".join(case.name for case in CASES))
    arguments = parser.parse_args()
    cases = [CASES[int(number)] for number in arguments.cases.split(",")] if arguments.cases else list(CASES)
    rounds: dict[Case, list[Drain]] = {case: [] for case in cases}
    with ground.running_server() as cluster, ground.running_sink() as sink, ground.connect(cluster) as db:
        ground.load_people(db, arguments.prompts)
        for number in range(arguments.rounds):
            for case in cases:
                found = drain(cluster, db, sink, case, arguments.prompts)
                rounds[case].append(found)
                print(f"round {number + 1}: {case.name}: {found.rate:,.0f}/s, {found.again} tried again", flush=True)
    rows = [
        [
            case.name,
            *(
                f"{ground.median([getattr(found, field) for found in rounds[case]]):,.{digits}f}"
                for field, digits in (
                    ("rate", 0),
                    ("daemon_cpu", 3),
                    ("postgres_cpu", 3),
                    ("sink_cpu", 3),
                    ("peak_mb", 0),
                )
            ),
            f"{ground.median([f.rate for f in rounds[case]]) / ground.median([f.rate for f in rounds[cases[0]]]):.2f}",
        ]
        for case in cases
    ]
    print(f"\n{arguments.prompts:,} prompts, medians of {arguments.rounds}; CPU seconds per 1,000 pushes\n")
    print(ground.table(["", "pushes/s", "daemon", "Postgres", "sink", "peak MB", "ratio"], rows))
    ground.write("drain", {case.name: [asdict(found) for found in rounds[case]] for case in cases})


if __name__ == "__main__":
    main()
