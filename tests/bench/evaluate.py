"""What evaluation costs: a minute's run of all four types, catching up an hour and a week, runs for touched users.

`make bench-evaluate`, or `make bench-evaluate ARGS="--sizes 100k"` for the small size alone. Loads people and
activities into a throw-away server: two years of activities, evenly spread, in one organisation, so that each candidate
is in scope. The clock of the scenarios then runs through them; every run is committed, as the scheduler does. Prints a
table with medians; the numbers go to bench-results/evaluate.json too.

DESIGN: a one-minute run over 1 M people and 20 M activities takes under 50 ms, and ten times the data at most 1.2 times
as long. Ten times the people also means ten times as many due in a minute; so that is compared with the ten minutes in
which as many become due over a tenth of the data: the difference is what the size of the tables costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg

from pgherald import schema
from pgherald.embedded import Cluster
from tests.bench import ground

if TYPE_CHECKING:
    from collections.abc import Sequence

ORGANISATION: Final = "00000000-0000-0000-0000-0000000000aa"
SIZES: Final = {"100k": (100_000, 2_000_000), "1m": (1_000_000, 20_000_000)}
DEBIAN_15: Final = Path("/usr/lib/postgresql/15/bin")
SERVER: Final = {
    "shared_buffers": "2GB",
    "maintenance_work_mem": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "effective_cache_size": "12GB",
    "random_page_cost": "1.1",
}
SCENARIOS: Final = {
    "inactivity": '{"days": 30, "repeat_days": 30, "max_repeats": 3}',
    "milestone": '{"counts": [1, 10, 50]}',
    "expiry": '{"days_before": [30, 7, 1]}',
    "follow_up": '{"activity_type": "contact", "after_days": 3, "if_flag": "wellbeing_concern"}',
}

LOAD: Final = """
select herald.unwatch(t)
from unnest(array['app.peer_mentor', 'app.activity', 'app.assignment', 'app.certification']::regclass[]) as t;
alter table app.activity drop constraint activity_pkey, drop constraint activity_user_id_fkey;
drop index app.activity_occurred, app.activity_user_occurred;
insert into app.organisation (id, name) values ('{organisation}', 'bench');
insert into app.chapter (organisation_id, name)
select '{organisation}', 'chapter ' || n from generate_series(1, 50) as n;
insert into app.peer_mentor (user_id, chapter_id, registered_at)
select ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, c.ids[1 + n % 50],
  timestamptz '{end}' - random() * interval '730 days'
from generate_series(1, {people}) as n, (select array_agg(id) as ids from app.chapter) as c;
insert into app.certification (user_id, kind, expires_at)
select m.user_id, 'first_aid', timestamptz '{end}' + (random() - 0.2) * interval '730 days' from app.peer_mentor as m;
insert into herald.device_token (user_id, token, platform)
select m.user_id, 'token-' || m.user_id, 'android' from app.peer_mentor as m;
insert into herald.scenario_notification (user_id, scenario_type, dispatched_at, idempotency_key, cooldown_window_start)
select m.user_id, t.name, timestamptz '{end}' - interval '200 days', md5(m.user_id::text || t.name) || md5(t.name),
  timestamptz '{end}' - interval '200 days'
from app.peer_mentor as m, unnest(array['inactivity', 'milestone']) as t (name);
insert into app.activity (user_id, activity_type, occurred_at, flags)
select ('00000000-0000-4000-8000-' || lpad(to_hex(1 + (random() * ({people} - 1))::bigint), 12, '0'))::uuid,
  case when n % 3 = 0 then 'contact' else 'visit' end, timestamptz '{end}' - random() * interval '730 days',
  case when n % 50 = 0 then array['wellbeing_concern'] else array[]::text[] end
from generate_series(1, {activities}) as n;
create index activity_occurred on app.activity (occurred_at);
create index activity_user_occurred on app.activity (user_id, occurred_at);
alter table app.activity add primary key (id);
"""


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table. Times in milliseconds."""

    name: str
    runs: int
    median_ms: float
    worst_ms: float
    candidates: int
    prompts: int


def load(db: psycopg.Connection, people: int, activities: int, end: datetime) -> None:
    for statement in LOAD.format(
        organisation=ORGANISATION, people=people, activities=activities, end=end.isoformat()
    ).split(";\n"):
        if statement.strip():
            db.execute(statement)
    db.execute("vacuum analyze")
    for table in ("app.peer_mentor", "app.activity", "app.assignment", "app.certification"):
        db.execute("select herald.watch(%s, 'user_id')", (table,))


def timed(name: str, db: psycopg.Connection, calls: Sequence[tuple[LiteralString, tuple[object, ...]]]) -> Measure:
    """Run each call once, committed; its rows end in candidates, prompts, suppressed, duration, error."""
    times, candidates, prompts = [], 0, 0
    for query, values in calls:
        began = time.perf_counter()
        rows = db.execute(query, values).fetchall()
        times.append((time.perf_counter() - began) * 1000)
        for _, found, made, _, _, error in rows:
            if error is not None:
                raise SystemExit(f"{name}: {error}")
            candidates += found
            prompts += made
    return Measure(name, len(times), statistics.median(times), max(times), candidates, prompts)


def measure(db: psycopg.Connection, end: datetime) -> list[Measure]:
    start = end - timedelta(days=60)
    for scenario_type, params in SCENARIOS.items():
        db.execute(
            "insert into herald.scenario (scenario_type, organisation_id, name, params, evaluated_through) "
            "values (%s, %s, %s, %s, %s)",
            (scenario_type, ORGANISATION, scenario_type, params, start),
        )
    # As if they had run for long.
    db.execute("update herald.scenario set started_at = %s", (start - timedelta(days=30),))
    run = "select * from herald.evaluate(%s)"
    touched = "select * from herald.evaluate_touched(%s, %s)"
    now = start

    def runs(count: int, step: timedelta) -> list[tuple[LiteralString, tuple[object, ...]]]:
        nonlocal now
        calls: list[tuple[LiteralString, tuple[object, ...]]] = []
        for _ in range(count):
            now += step
            calls.append((run, (now,)))
        return calls

    timed("warm-up", db, runs(10, timedelta(minutes=1)))
    found = [
        timed("one minute, all four types", db, runs(60, timedelta(minutes=1))),
        timed("ten minutes", db, runs(30, timedelta(minutes=10))),
        timed("an hour's catch-up", db, runs(5, timedelta(hours=1))),
    ]
    # A week is measured with the prompts of three days; older ones expire.
    found.append(timed("a week's catch-up", db, runs(1, timedelta(days=7))))
    db.execute("vacuum analyze herald.prompt, herald.scenario_prompt_history, herald.scenario")
    for count in (1, 1_000, 10_000):
        calls: list[tuple[LiteralString, tuple[object, ...]]] = [(touched, (count, now))] * 5
        for number in range(5):
            db.execute(
                "insert into herald.touched_user (user_id) select m.user_id from app.peer_mentor as m "
                "order by md5(m.user_id::text || %s) limit %s",
                (str(number), count),
            )
        found.append(timed(f"{count:,} touched users".replace(",", " "), db, calls))
    return found


def plans(db: psycopg.Connection, end: datetime) -> dict[str, str]:
    """How each evaluator finds who became due in one minute."""
    found = {}
    for scenario_type in SCENARIOS:
        rows = db.execute(
            "explain (analyze, buffers, costs off, timing off, summary off) "
            f"select d.* from herald.scenario as s, herald.due_{scenario_type}(s, tstzrange(%s, %s, '(]')) as d "
            "where s.scenario_type = %s",
            (end - timedelta(minutes=1), end, scenario_type),
        )
        found[scenario_type] = "\n".join(line for (line,) in rows)
    return found


def bench(size: str, binaries: Path | None) -> dict[str, Any]:
    people, activities = SIZES[size]
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    with Cluster(binaries=binaries, settings=SERVER) as cluster:
        with psycopg.connect(cluster.dsn(), autocommit=True) as admin:
            admin.execute("create database bench")
        schema.migrate(cluster.dsn("bench"), with_reference=True)
        with psycopg.connect(cluster.dsn("bench"), autocommit=True) as db:
            began = time.perf_counter()
            print(
                f"loading {people:,} people and {activities:,} activities into PostgreSQL {cluster.major_version}",
                flush=True,
            )
            load(db, people, activities, end)
            print(f"loaded in {time.perf_counter() - began:.0f} s", flush=True)
            measures = measure(db, end)
            explained = plans(db, end - timedelta(days=30))
    return {
        "size": size,
        "people": people,
        "activities": activities,
        "server": cluster.major_version,
        "measures": [asdict(m) for m in measures],
        "plans": explained,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            f"{m['name']}, {result['people']:,} people, {result['activities']:,} activities",
            m["runs"],
            *(f"{m[name]:,.1f}" for name in ("median_ms", "worst_ms")),
            *(f"{m[name]:,}" for name in ("candidates", "prompts")),
        ]
        for result in results
        for m in result["measures"]
    ]
    return ground.table(["", "runs", "median ms", "worst ms", "candidates", "prompts"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100k,1m", help="of: " + ", ".join(SIZES))
    parser.add_argument("--explain", action="store_true", help="print the plans of the four evaluators")
    parser.add_argument("--server", choices=("18", "15"), default="18", help="embedded 18, or Debian's 15")
    arguments = parser.parse_args()
    unknown = set(arguments.sizes.split(",")) - set(SIZES)
    if unknown:
        parser.error(f"unknown size: {', '.join(sorted(unknown))}")
    results = [bench(size, DEBIAN_15 if arguments.server == "15" else None) for size in arguments.sizes.split(",")]
    print(table(results))
    median = {(r["size"], m["name"]): m["median_ms"] for r in results for m in r["measures"]}
    large, small = median.get(("1m", "one minute, all four types")), median.get(("100k", "ten minutes"))
    if large and small:
        print(f"\na one-minute run over 1 M people: {large:.1f} ms (wanted: under 50)")
        print(f"as many due, over ten times the data: {large / small:.2f} times as long (wanted: at most 1.2)")
    for result in results:
        for name, plan in result["plans"].items() if arguments.explain else ():
            print(f"\n{name}, one minute, {result['people']:,} people\n\n```\n{plan}\n```")
    ground.write("evaluate", results)


if __name__ == "__main__":
    main()
