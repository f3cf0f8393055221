"""Who is handed over while a run for touched users has already begun, or a scheduled one takes long."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.app import App, now

if TYPE_CHECKING:
    from datetime import datetime

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


def _set_back(app: App, at: datetime, **scenarios: int) -> None:
    """Scenarios that make whoever was active for the first time 31 days ago due now: so many of each type."""
    params: dict[str, dict[str, Any]] = {
        "inactivity": {"days": 30},
        "milestone": {"counts": [1]},
        "follow_up": {"activity_type": "contact", "after_days": 31},
    }
    for scenario_type, count in scenarios.items():
        for _ in range(count):
            app.scenario(
                scenario_type,
                params[scenario_type],
                expires_after=timedelta(days=60),
                evaluated_through=at - timedelta(days=40),
            )


def test_a_scheduled_run_that_is_not_over_delays_its_chapter_in_a_scenario_not_the_others(
    database: Database, db: psycopg.Connection
) -> None:
    app = App(db).create()
    at = now()
    quiet, elsewhere = app.person(), app.person(chapter=app.another_chapter())
    app.activity(quiet, at - timedelta(days=31))
    _set_back(app, at, milestone=1)
    db.execute("alter function herald.evaluate_touched set lock_timeout = '50ms'")
    with psycopg.connect(database.dsn) as scheduled:
        scheduled.execute("select * from herald.evaluate(%s)", (at,))
        app.activity(elsewhere, now())
        (run,) = app.evaluate_touched(now())
        assert run.prompts == 1
        assert (run.error or "").startswith("55P03")
        assert db.execute("select user_id from herald.touched_user").fetchall() == [(quiet,)]
    assert app.evaluate_touched(now()) == []
    assert {p.user_id for p in app.prompts()} == {quiet, elsewhere}


def test_locks_are_waited_for_once_however_many_scenarios_and_chapters_need_them(
    database: Database, db: psycopg.Connection
) -> None:
    """The daemon gives a run for touched users 15 seconds, and then sets them aside for a minute."""
    app = App(db).create()
    at = now()
    for person in (app.person(), app.person(chapter=app.another_chapter())):
        app.activity(person, at - timedelta(days=31))
    _set_back(app, at, inactivity=2, milestone=2, follow_up=2)
    db.execute("alter function herald.evaluate_touched set lock_timeout = '500ms'")
    with psycopg.connect(database.dsn) as scheduled:
        scheduled.execute("select * from herald.evaluate(%s)", (at,))
        runs = app.evaluate_touched(now())
    assert [(run.error or "")[:5] for run in runs] == ["55P03"] * 6
    assert timedelta(seconds=0.5) <= sum((run.duration for run in runs), timedelta()) < timedelta(seconds=2.5)


def test_who_stays_touched_stays_so_once_however_many_scenarios_fail_and_however_long(
    database: Database, db: psycopg.Connection
) -> None:
    app = App(db).create()
    people = app.people(3)
    _set_back(app, now(), milestone=3)
    db.execute("update herald.scenario_type set evaluator = 'herald.gone' where scenario_type = 'milestone'")
    db.execute("delete from herald.touched_user")
    db.execute("insert into herald.touched_user select unnest(%s::uuid[])", (people,))
    with psycopg.connect(database.dsn) as scheduled:
        scheduled.execute("select * from herald.evaluate()")
        for _ in range(3):
            assert len(app.evaluate_touched(now())) == 3
            left = db.execute("select user_id from herald.touched_user").fetchall()
            assert sorted(left) == sorted((person,) for person in people)


def test_a_prompt_that_an_application_holds_open_is_left_to_the_scheduled_run_and_waited_for_no_more(
    database: Database, db: psycopg.Connection
) -> None:
    app = App(db).create()
    at = now()
    held = app.person()
    _set_back(app, at, milestone=1)
    (scenario,) = db.execute("select scenario_id from herald.scenario").fetchone() or ()
    db.execute("alter function herald.evaluate_touched set lock_timeout = '50ms'")
    with psycopg.connect(database.dsn) as application:
        application.execute("select * from herald.enqueue(%s, %s, 'by hand')", (scenario, held))
        app.activity(held, at)
        (run,) = app.evaluate_touched(now())
        assert (run.error or "").startswith("55P03")
        assert db.execute("select user_id from herald.touched_user").fetchall() == []
        application.rollback()
    app.evaluate(now())
    assert {p.activity_ref for p in app.prompts()} == {"1"}
