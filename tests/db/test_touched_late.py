"""Who is handed over while an event-driven run has already begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from tests.support.app import App

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
