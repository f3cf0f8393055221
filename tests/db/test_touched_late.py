"""Who is handed over while an event-driven run has already begun, or a scheduled one takes long."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.app import App, now

if TYPE_CHECKING:
    from tests.support.postgres import Database


def test_who_acts_after_the_run_began_and_before_it_takes_the_touched_is_due_at_once(
    database: Database, db: psycopg.Connection
) -> None:
    app = App(db).create()
    app.scenario("milestone", {"counts": [1]}, title_key="t", body_key="b")
    person = app.person()
    db.execute("delete from herald.touched_user")
    with psycopg.connect(database.daemon_dsn) as run:
        run.execute("select 1")  # its transaction has begun, and with it its now()
        db.execute("insert into app.activity (user_id, activity_type) values (%s, 'contact')", (person,))
        rows = run.execute("select prompts from herald.evaluate_touched()").fetchall()
    assert rows == [(1,)]


@pytest.mark.parametrize("fails", [False, True], ids=["of a prompt", "of a scenario that fails"])
def test_a_scheduled_run_that_is_not_over_delays_those_whom_it_has_in_hand_and_nobody_else(
    database: Database, db: psycopg.Connection, fails: bool
) -> None:
    """The daemon claims in the statement that evaluates: an error would keep all prompts from being sent."""
    app = App(db).create()
    at = now()
    quiet, busy = app.people(2)
    app.activity(quiet, at - timedelta(days=31))
    db.execute("delete from herald.touched_user")
    inactivity = app.scenario("inactivity", {"days": 30}, evaluated_through=at - timedelta(days=2), priority=1)
    app.scenario("milestone", {"counts": [1]})
    db.execute("alter function herald.evaluate_touched set lock_timeout = '50ms'")
    if fails:
        db.execute("update herald.scenario_type set evaluator = 'herald.gone' where scenario_type = 'inactivity'")
    with psycopg.connect(database.dsn) as scheduled:
        scheduled.execute("select * from herald.evaluate(%s)", (at,))
        db.execute("insert into herald.touched_user values (%s)", (quiet,))
        app.activity(busy, now())
        runs = {run.scenario_id: run for run in app.evaluate_touched(now())}
        assert runs.pop(inactivity).error is not None
        assert [(run.prompts, run.error) for run in runs.values()] == [(1, None)]
        assert (quiet,) in db.execute("select user_id from herald.touched_user").fetchall()
    again = [run.error for run in app.evaluate_touched(now()) if run.scenario_id == inactivity]
    assert [error is not None for error in again] == [fails] * len(again)
    assert db.execute("select user_id from herald.touched_user").fetchall() == []
    assert db.execute("select count(*) from herald.catch_up").fetchone() == (int(fails),)
    assert {p.user_id for p in app.prompts()} == ({busy} if fails else {quiet, busy})
