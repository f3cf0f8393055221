"""What row-level security costs a coordinator: 200,000 scenarios in 400 chapters, on PostgreSQL 18 and 15.

`make bench-rls`, or `python -m tests.bench.rls`. Each statement as a coordinator of one chapter, beside the same
without row-level security, and beside policies as they are often written: membership without an array, and a function
per row (given up after three seconds). Medians in milliseconds, and whether the plan reads the whole table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Final

import psycopg

from tests.bench import ground
from tests.support.postgres import DEBIAN_15, postgres_15_problem, running_server

ROWS: Final = 200_000
CHAPTERS: Final = 400
ORGANISATION: Final = "00000000-0000-4000-8000-000000000000"
CHAPTER: Final = "00000000-0000-4000-8000-000000000001"
ONE: Final = "00000000-0000-4000-8000-000000005000"
COORDINATOR: Final = "00000000-0000-4000-8000-0000000000c0"
TIMES: Final = 15
SECONDS: Final = 3  # for one statement, and for all repetitions of it

LOAD: Final = f"""
alter table herald.scenario disable trigger check_scenario;
insert into app.organisation values ('{ORGANISATION}', 'bench');
insert into app.chapter select ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, '{ORGANISATION}', n
from generate_series(1, {CHAPTERS}) as n;
insert into app.peer_mentor (chapter_id) select id from app.chapter;
insert into app.coordinator values ('{COORDINATOR}', '{CHAPTER}');
insert into herald.scenario (scenario_type, organisation_id, chapter_id, name, title_key, body_key)
select 'inactivity', '{ORGANISATION}', ('00000000-0000-4000-8000-' || lpad(to_hex(1 + n % {CHAPTERS}), 12, '0'))::uuid,
  'scenario ' || n, 't', 'b'
from generate_series(1, {ROWS}) as n;
insert into herald.scenario (scenario_id, scenario_type, organisation_id, chapter_id, name, title_key, body_key)
values ('{ONE}', 'inactivity', '{ORGANISATION}', '{CHAPTER}', 'one', 't', 'b');
insert into herald.scenario (scenario_type, organisation_id, name, title_key, body_key)
select 'inactivity', '{ORGANISATION}', 'for all ' || n, 't', 'b' from generate_series(1, 10) as n;
alter table herald.scenario enable trigger check_scenario;
vacuum analyze herald.scenario;
"""

STATEMENTS: Final = {
    "count": "select count(*) from herald.scenario",
    "a page": "select * from herald.scenario order by name limit 20",
    "one by id": f"select * from herald.scenario where scenario_id = '{ONE}'",
    "update of its own": f"update herald.scenario set name = name where chapter_id = '{CHAPTER}'",
}

POLICIES: Final = {
    "shipped": None,
    "membership without an array": "chapter_id in (select herald.my_chapters()) "
    "or (chapter_id is null and organisation_id in (select herald.my_organisations()))",
    "a function per row": "herald.may_read(organisation_id, chapter_id)",
}


def measure(db: psycopg.Connection, role: str | None) -> dict[str, tuple[float, bool]]:
    found = {}
    for name, statement in STATEMENTS.items():
        taken: list[float] = []
        with db.transaction(force_rollback=True):
            if role is not None:
                db.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{COORDINATOR}"}}',))
                db.execute(f"set local role {role}")
            plan = "\n".join(row[0] for row in db.execute(f"explain {statement}"))
            db.execute(f"set local statement_timeout = '{SECONDS}s'")
            try:
                while len(taken) < TIMES and sum(taken) < SECONDS * 1000:
                    began = time.perf_counter()
                    db.execute(statement)
                    taken.append((time.perf_counter() - began) * 1000)
            except psycopg.errors.QueryCanceled:
                taken = [SECONDS * 1000.0]
        found[name] = (round(statistics.median(taken), 2), "Seq Scan on scenario" in plan)
    return found


def bench(db: psycopg.Connection) -> dict[str, dict[str, tuple[float, bool]]]:
    for statement in LOAD.split(";\n"):
        if statement.strip():
            db.execute(statement)
    found = {"without (all rows)": measure(db, None)}
    for name, policy in POLICIES.items():
        if policy is not None:
            db.execute(f"alter policy coordinator_read on herald.scenario using ({policy})")
            db.execute("grant execute on all functions in schema herald to authenticated")
        found[name] = measure(db, "authenticated")
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    results = {}
    for server_name, binaries in (("pg18", None), ("pg15", DEBIAN_15)):
        if binaries is not None and postgres_15_problem() is not None:
            continue
        with running_server(server_name, binaries=binaries) as server, server.template(), server.database() as database:
            results[server_name] = bench(database.connect())
    rows = [
        [f"{server}: {name}", *(f"{ms:.2f}{' *' if whole else ''}" for ms, whole in times.values())]
        for server, found in results.items()
        for name, times in found.items()
    ]
    print(f"{ROWS:,} scenarios in {CHAPTERS} chapters; median milliseconds (* reads the whole table)\n")
    print(ground.table(["", *STATEMENTS], rows))
    ground.write("rls", results)


if __name__ == "__main__":
    main()
