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


def runs(db: psycopg.Connection, seen: str | None) -> tuple[str, list[bool]]:
    """What is seen now, and whether each run that was not seen before failed."""
    row = db.execute("select seen, runs from herald.daemon_state(%s)", (seen,)).fetchone()
    assert row is not None
    return row[0], [run["failed"] for run in row[1]]


def test_a_run_that_was_held_is_none_that_failed(app: App) -> None:
    app.scenario("milestone", {"counts": [1]}, max_prompts_per_run=1)
    seen, _ = runs(app.db, None)
    for person in app.people(2):
        app.activity(person, now())
    (held,) = app.evaluate_touched(now())
    assert held.error is not None
    assert held.error.startswith("held:")
    assert runs(app.db, seen)[1] == [False]


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
    seen, told = runs(db, seen)
    assert told == [first != "schedule"]
    seen, told = runs(db, seen)
    assert told == []
    early.commit()
    seen, told = runs(db, seen)
    assert told == [first == "schedule"]
    assert runs(db, seen)[1] == []


def test_a_run_within_a_savepoint_is_told_once(app: App, database: Database) -> None:
    app.scenario("milestone", {"counts": [1]})
    seen, _ = runs(app.db, None)
    early = database.connect()
    early.autocommit = False
    early.execute("savepoint here")
    early.execute("select * from herald.evaluate()")
    early.execute("release here")
    seen, told = runs(app.db, seen)
    assert told == []
    early.commit()
    seen, told = runs(app.db, seen)
    assert told == [False]
    assert runs(app.db, seen)[1] == []


def test_a_run_that_is_taken_back_is_not_told_and_holds_nothing_up(app: App, database: Database) -> None:
    app.scenario("milestone", {"counts": [1]})
    seen, _ = runs(app.db, None)
    early = database.connect()
    early.autocommit = False
    early.execute("select * from herald.evaluate()")
    early.rollback()
    app.evaluate(now())
    seen, told = runs(app.db, seen)
    assert told == [False]
    assert runs(app.db, seen)[1] == []


def test_a_phone_that_registers_holds_no_run_up(app: App, database: Database) -> None:
    person = app.person()
    app.scenario("milestone", {"counts": [1]})
    seen, _ = runs(app.db, None)
    phones = database.connect()
    phones.autocommit = False
    phones.execute("select set_config('request.jwt.claims', %s, true)", (json.dumps({"sub": str(person)}),))
    for n in range(8):
        phones.execute("select herald.register_device_token(%s, 'android')", (f"a-token-{n}",))
    app.evaluate(now())
    assert runs(app.db, seen)[1] == [False]


def test_after_a_restore_to_an_earlier_time_runs_are_told_again_from_the_next_look_on(app: App) -> None:
    app.scenario("milestone", {"counts": [1]})
    app.evaluate(now())
    seen, told = runs(app.db, "9000000000:9000000000:")
    assert told == []
    app.evaluate(now())
    assert runs(app.db, seen)[1] == [False]


def test_runs_of_another_server_that_a_dump_brought_are_not_told(app: App) -> None:
    app.scenario("milestone", {"counts": [1]})
    seen, _ = runs(app.db, None)
    app.evaluate(now())
    app.db.execute("update herald.evaluation_run set written_in = '9000000000'")
    assert runs(app.db, seen)[1] == []


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
