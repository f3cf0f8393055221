"""What the daemon measures and decides by between its claims."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support.app import App, now

if TYPE_CHECKING:
    import psycopg

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


def test_when_it_was_evaluated_last_is_the_latest_scheduled_run_of_the_last_day(scenarios: App) -> None:
    db = scenarios.db
    assert last_evaluation(db) == (None,)
    at = now()
    runs = (
        "insert into herald.evaluation_run (scenario_id, source, started_at, evaluated, candidates, prompts, duration) "
        "select s.scenario_id, %s, %s, 'empty', 0, 0, '0' from herald.scenario as s order by s.name limit %s"
    )
    db.execute(runs, ("schedule", at - timedelta(days=2), 20))
    db.execute(runs, ("touched", at - SECOND, 20))
    assert last_evaluation(db) == (None,)
    db.execute(runs, ("schedule", at - timedelta(hours=2), 20))
    db.execute(runs, ("schedule", at - timedelta(hours=1), 3))
    assert last_evaluation(db) == (at - timedelta(hours=1),)


def test_a_look_does_not_read_the_runs_of_a_day(scenarios: App) -> None:
    scenarios.db.execute(
        "insert into herald.evaluation_run (scenario_id, source, started_at, evaluated, candidates, prompts, duration) "
        "select s.scenario_id, 'schedule', now() - n * interval '1 minute', 'empty', 0, 0, '0' "
        "from generate_series(1, 1400) as n cross join herald.scenario as s order by n desc"
    )
    scenarios.db.execute("vacuum analyze herald.evaluation_run")
    assert buffers(scenarios.db) < 250
