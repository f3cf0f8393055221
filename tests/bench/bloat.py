"""What a million prompts leave behind: waves through the outbox, retention after each, and the sizes of the tables.

`python -m tests.bench.bloat` takes a million prompts in ten waves through herald.claim and herald.settle (FCM is not
asked), lets retention delete each wave whole, and prints how large tables and indexes are once autovacuum has been.
No lasting bloat means: after the last wave they are about as large as after the second. The numbers go to
bench-results/bloat.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from pgherald import schema
from pgherald.embedded import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

RESULTS: Final = Path("bench-results/bloat.json")
TABLES: Final = ("prompt", "scenario_prompt_history", "scenario_notification")


def prepare(db: psycopg.Connection, people: int) -> UUID:
    """So many people, and one scenario that lets them all through."""
    row = db.execute(
        "insert into herald.scenario (scenario_type, organisation_id, name, params) "
        "values ('milestone', gen_random_uuid(), 'all', '{\"counts\": [1]}') returning scenario_id"
    ).fetchone()
    assert row is not None
    db.execute("create table public.person (user_id uuid primary key default gen_random_uuid(), n int unique)")
    db.execute("insert into public.person (n) select generate_series(1, %s)", (people,))
    db.execute("analyze public.person")
    db.execute(
        "create or replace view herald.source_recipient as select user_id, null::uuid as organisation_id, "
        "null::uuid as chapter_id, 'en'::text as locale, 'UTC'::text as time_zone, true as is_active, "
        "now() as registered_at from public.person"
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


def settle_down(db: psycopg.Connection, seconds: float = 60) -> None:
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


def measure(db: psycopg.Connection, waves: int, count: int, tell: Callable[[str], None]) -> list[dict[str, int]]:
    """The sizes after each wave."""
    scenario = prepare(db, count)
    found = []
    for number in range(1, waves + 1):
        began = time.monotonic()
        wave(db, scenario, count, number)
        settle_down(db)
        found.append(sizes(db))
        row = db.execute(
            "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = 'herald.prompt'::regclass"
        ).fetchone()
        assert row is not None
        megabytes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in found[-1].items())
        tell(
            f"wave {number}: {count} prompts in {time.monotonic() - began:.0f} s; {megabytes}; "
            f"HOT updates of prompts {row[1] / max(row[0], 1):.0%}"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waves", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    arguments = parser.parse_args()
    settings = {"autovacuum_naptime": "1s", "max_wal_size": "2GB", "synchronous_commit": "off"}
    with Cluster(settings=settings) as cluster:
        dsn = cluster.dsn()
        schema.migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as db:
            found = measure(
                db, arguments.waves, arguments.prompts // arguments.waves, lambda text: print(text, flush=True)
            )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"waves": arguments.waves, "prompts": arguments.prompts, "bytes": found}, indent=2))


if __name__ == "__main__":
    main()
