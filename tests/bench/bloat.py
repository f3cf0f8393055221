"""What a million prompts leave behind: waves through the outbox, retention after each, and the sizes of the tables.

`make bench-bloat` takes a million prompts in ten waves through herald.claim and herald.settle (FCM is not asked), lets
retention delete each wave whole, and prints how large tables and indexes are once autovacuum has been. No lasting bloat
means: after the last wave they are about as large as after the earlier ones. It ends early, and says so, after the wave
in which `--minutes` are over.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Final

import psycopg

from pgherald import schema
from pgherald.embedded import Cluster
from tests.bench import ground

if TYPE_CHECKING:
    from uuid import UUID

TABLES: Final = ("prompt", "open_prompt", "scenario_prompt_history", "scenario_notification")


def prepare(db: psycopg.Connection, people: int) -> UUID:
    """So many people, and one scenario that lets them all through."""
    row = db.execute(
        "insert into herald.scenario (scenario_type, organisation_id, name, params) "
        "values ('milestone', %s, 'all', '{\"counts\": [1]}') returning scenario_id",
        (ground.ORGANISATION,),
    ).fetchone()
    assert row is not None
    db.execute("create table public.person (user_id uuid primary key default gen_random_uuid(), n int unique)")
    db.execute("insert into public.person (n) select generate_series(1, %s)", (people,))
    db.execute("analyze public.person")
    db.execute(
        f"create or replace view herald.source_recipient as select user_id, '{ground.ORGANISATION}'::uuid "
        "as organisation_id, null::uuid as chapter_id, 'en'::text as locale, 'UTC'::text as time_zone, "
        "true as is_active, now() as registered_at from public.person"
    )
    db.execute("grant select on public.person to herald_owner")
    scenario_id: UUID = row[0]
    return scenario_id


def wave(db: psycopg.Connection, scenario: UUID, count: int, number: int) -> None:
    """Insert so many prompts, claim and settle them all, and let retention take them away."""
    for start in range(0, count, 10_000):
        db.execute(
            "insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, idempotency_key) "
            "select %s, 'milestone', user_id, 'bench', encode(sha256(gen_random_uuid()::text::bytea), 'hex') "
            "from public.person where n > %s and n <= %s",
            (scenario, start, min(start + 10_000, count)),
        )
    done = 0
    while done < count:
        claimed = db.execute("select prompt_id, epoch from herald.claim('bench', 500, '1 minute')").fetchall()
        ids, epochs = [row[0] for row in claimed], [row[1] for row in claimed]
        assert ids, f"nothing to claim after {done} of {count}"
        db.execute(
            "select count(*) from herald.settle(%s::uuid[], %s::bigint[], array_fill('sent'::text, array[%s]), "
            "array_fill(null::text, array[%s]), array_fill(now(), array[%s]), "
            "array_fill(null::timestamptz, array[%s]), array_fill(null::uuid, array[%s]), "
            "array_fill(null::text, array[%s]))",
            (ids, epochs, *[len(ids)] * 6),
        )
        done += len(ids)
    while db.execute("select herald.maintain_batch(now() + interval '1000 days', 10000)").fetchone() == (True,):
        pass
    left = db.execute("select count(*) from herald.prompt").fetchone()
    assert left == (0,), f"wave {number} left {left} prompts"


def sizes(db: psycopg.Connection) -> dict[str, int]:
    """Bytes of each table with its indexes."""
    return dict(
        db.execute(
            "select t, pg_total_relation_size(('herald.' || t)::regclass) from unnest(%s::text[]) as t", (list(TABLES),)
        ).fetchall()
    )


def settle_down(db: psycopg.Connection, seconds: float = 20) -> None:
    """Wait until autovacuum has taken the dead rows away."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        db.execute("select pg_stat_clear_snapshot()")
        row = db.execute(
            "select coalesce(max(n_dead_tup), 0) from pg_stat_user_tables where schemaname = 'herald' "
            "and relname = any(%s)",
            (list(TABLES),),
        ).fetchone()
        if row is not None and row[0] < 5000:
            return
        time.sleep(0.5)


def measure(db: psycopg.Connection, waves: int, count: int, minutes: float) -> list[dict[str, float]]:
    """The sizes, and the seconds, after each wave."""
    scenario = prepare(db, count)
    found: list[dict[str, float]] = []
    ends = time.monotonic() + minutes * 60
    for number in range(1, waves + 1):
        began = time.monotonic()
        wave(db, scenario, count, number)
        taken = time.monotonic() - began
        settle_down(db)
        found.append({**sizes(db), "seconds": taken})
        print(f"wave {number}: {count} prompts in {taken:.0f} s", flush=True)
        if time.monotonic() > ends and number < waves:
            print(f"ended after {number} of {waves} waves: {minutes:g} minutes are over", flush=True)
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waves", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=1_000_000, help="of all waves")
    parser.add_argument("--minutes", type=float, default=5, help="of all waves, at most")
    arguments = parser.parse_args()
    settings = {"autovacuum_naptime": "1s", "max_wal_size": "2GB", "synchronous_commit": "off"}
    count = arguments.prompts // arguments.waves
    with Cluster(settings=settings) as cluster:
        schema.migrate(cluster.dsn())
        with psycopg.connect(cluster.dsn(), autocommit=True) as db:
            found = measure(db, arguments.waves, count, arguments.minutes)
    rows = [
        [f"{n}", f"{each['seconds']:.0f}", *(f"{each[name] / 1e6:.1f}" for name in TABLES)]
        for n, each in enumerate(found, start=1)
    ]
    print(f"\n{count:,} prompts a wave, claimed, settled and deleted; MB of each table with its indexes afterwards\n")
    print(ground.table(["wave", "seconds", *(f"`{name}`" for name in TABLES)], rows))
    ground.write("bloat", {"prompts_a_wave": count, "waves": found})


if __name__ == "__main__":
    main()
