"""What the daemon measures and decides by between its claims."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.support.app import App, now

if TYPE_CHECKING:
    import psycopg

    from tests.support.postgres import Database

SECOND = timedelta(seconds=1)


@pytest.fixture
def scenarios(app: App) -> App:
    app.db.execute(
        "insert into herald.scenario (scenario_type, organisation_id, name, params) "
        "select 'inactivity', %s, 'scenario ' || n, '{\"days\": 30}' from generate_series(1, 20) as n",
        (app.organisation,),
    )
    return app


def last_evaluation(db: psycopg.Connection) -> tuple[object, ...] | None:
    return db.execute("select last_evaluation_at from herald.daemon_state()").fetchone()


def buffers(db: psycopg.Connection) -> int:
    """The pages that one look reads, once its plans are made."""
    for _ in range(2):
        row = db.execute("explain (analyze, buffers, format json) select * from herald.daemon_state()").fetchone()
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return int(plan[0]["Plan"]["Shared Hit Blocks"]) + int(plan[0]["Plan"]["Shared Read Blocks"])


def runs(db: psycopg.Connection, after: int | None) -> tuple[int, list[bool]]:
    """The watermark, and whether each run since the last one failed."""
    row = db.execute("select last_run, runs from herald.daemon_state(%s)", (after,)).fetchone()
    assert row is not None
    return row[0], [run["failed"] for run in row[1]]


@pytest.mark.parametrize("first", ["schedule", "touched"])
def test_each_run_is_told_once_in_whatever_order_they_commit(app: App, database: Database, first: str) -> None:
    """The one that began first is committed last; the scheduled one fails."""
    db = app.db
    app.scenario("milestone", {"counts": [1]})
    app.scenario("inactivity", {"days": 30}, organisation_id=UUID(int=7))
    db.execute("update herald.scenario_type set evaluator = 'herald.gone' where scenario_type = 'inactivity'")
    scheduled = "select * from herald.evaluate(p_scenario => (select scenario_id from herald.scenario where name = %s))"
    touched = "select * from herald.evaluate_touched()"
    app.evaluate(now())
    seen, told = runs(db, None)
    assert told == []
    early = database.connect()
    early.autocommit = False

    if first == "schedule":
        early.execute(scheduled, ("inactivity",))
        app.activity(app.person(), now())
        db.execute(touched)
    else:
        app.activity(app.person(), now())
        early.execute(touched)
        db.execute(scheduled, ("inactivity",))
    while_open, told = runs(db, seen)
    assert (while_open, told) == (seen, [])
    early.commit()
    after, told = runs(db, while_open)
    assert sorted(told) == [False, True]
    assert (after,) == db.execute("select max(run_id) from herald.evaluation_run").fetchone()
    assert runs(db, after) == (after, [])


def test_a_run_that_is_taken_back_holds_nothing_up(app: App, database: Database) -> None:
    app.scenario("milestone", {"counts": [1]})
    app.evaluate(now())
    seen, _ = runs(app.db, None)
    early = database.connect()
    early.autocommit = False
    early.execute("select * from herald.evaluate()")
    early.rollback()
    app.evaluate(now())
    assert runs(app.db, seen) == (seen + 2, [False])


def test_a_watermark_of_before_a_restore_starts_over(app: App) -> None:
    app.scenario("milestone", {"counts": [1]})
    app.evaluate(now())
    assert runs(app.db, 1_000_000) == (1, [])


def test_ids_beyond_32_bits_are_told_alike(app: App, database: Database) -> None:
    app.scenario("milestone", {"counts": [1]})
    app.db.execute("alter table herald.evaluation_run alter run_id restart with 4294967295")
    app.evaluate(now())
    seen, _ = runs(app.db, None)
    assert seen == 4294967295
    early = database.connect()
    early.autocommit = False
    early.execute("select * from herald.evaluate()")
    assert runs(app.db, seen) == (seen, [])
    early.commit()
    assert runs(app.db, seen) == (seen + 1, [False])


def test_when_it_was_evaluated_last_is_the_latest_scheduled_run_of_the_last_day(scenarios: App) -> None:
    db = scenarios.db
    assert last_evaluation(db) == (None,)
    at = now()
    made = (
        "insert into herald.evaluation_run (scenario_id, source, started_at, evaluated, candidates, prompts, duration) "
        "select s.scenario_id, %s, %s, 'empty', 0, 0, '0' from herald.scenario as s order by s.name limit %s"
    )
    db.execute(made, ("schedule", at - timedelta(days=2), 20))
    db.execute(made, ("touched", at - SECOND, 20))
    assert last_evaluation(db) == (None,)
    db.execute(made, ("schedule", at - timedelta(hours=2), 20))
    db.execute(made, ("schedule", at - timedelta(hours=1), 3))
    assert last_evaluation(db) == (at - timedelta(hours=1),)


def test_a_look_does_not_read_the_runs_of_a_day(scenarios: App) -> None:
    scenarios.db.execute(
        "insert into herald.evaluation_run (scenario_id, source, started_at, evaluated, candidates, prompts, duration) "
        "select s.scenario_id, 'schedule', now() - n * interval '1 minute', 'empty', 0, 0, '0' "
        "from generate_series(1, 1400) as n cross join herald.scenario as s order by n desc"
    )
    scenarios.db.execute("vacuum analyze herald.evaluation_run")
    assert buffers(scenarios.db) < 250
