"""Rows that change after an evaluation or commit late, and evaluations that run at the same time."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg

from tests.support.app import App, Run, now, only
from tests.support.postgres import wait_until_blocked

if TYPE_CHECKING:
    from tests.support.postgres import Database

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


# Rows that change after the fact.


def test_a_prompt_that_waits_is_withdrawn_when_its_reason_is_gone(app: App) -> None:
    at = now()
    quiet = {"quiet_from": (at - timedelta(hours=2)).time(), "quiet_until": (at + timedelta(hours=2)).time()}
    deleted, corrected, active = app.people(3, time_zone="UTC")
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY, **quiet)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, **quiet)
    first, second = app.activity(deleted, at - MINUTE), app.activity(corrected, at - MINUTE)
    app.activity(active, at - 30 * DAY)
    assert sum(run.prompts for run in app.evaluate(at)) == 3
    app.db.execute("delete from app.activity where id = %s", (first,))
    app.db.execute("update app.activity set occurred_at = now() - interval '1 year' where id = %s", (second,))
    app.activity(active, at)
    app.evaluate_touched(at + SECOND)
    assert {(p.user_id, p.status, p.gate) for p in app.prompts()} >= {
        (deleted, "skipped", "no_longer_due"),
        (corrected, "skipped", "no_longer_due"),
        (active, "skipped", "no_longer_due"),
    }
    history = app.db.execute("select delivery_status, error_code from herald.scenario_prompt_history").fetchall()
    assert history == [("skipped", "no_longer_due")] * 3


def test_a_prompt_that_is_withdrawn_names_the_gate_that_its_person_met(app: App) -> None:
    at = now()
    gone, opted_out = app.people(2)
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY)
    for person in (gone, opted_out):
        app.activity(person, at - MINUTE)
    app.evaluate(at)
    app.db.execute("insert into herald.opt_out (user_id) values (%s)", (opted_out,))
    app.db.execute("update app.peer_mentor set status = case when user_id = %s then 'left' else status end", (gone,))
    app.evaluate_touched(at + SECOND)
    expected = {(gone, "skipped", "inactive_recipient"), (opted_out, "skipped", "opted_out")}
    assert {(p.user_id, p.status, p.gate) for p in app.prompts()} == expected
    history = "select peer_mentor_id, delivery_status, error_code from herald.scenario_prompt_history"
    assert set(app.db.execute(history).fetchall()) == expected


def test_a_prompt_whose_reason_still_holds_is_not_withdrawn(app: App) -> None:
    at = now()
    person = app.person()
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY, expires_after="1 day")
    activity = app.activity(person, at - MINUTE)
    app.evaluate(at)
    app.db.execute("update app.activity set flags = '{urgent}' where id = %s", (activity,))
    app.evaluate_touched(at + SECOND)
    assert [p.status for p in app.prompts()] == ["ready"]


def test_what_a_developer_enqueued_is_not_withdrawn(app: App) -> None:
    person = app.person()
    scenario = app.scenario("milestone", {"counts": [1]}, evaluated_through=now() - DAY)
    app.db.execute("select * from herald.enqueue(%s, %s, 'by hand')", (scenario, person))
    app.db.execute("insert into herald.touched_user (user_id) values (%s)", (person,))
    app.evaluate_touched(now() + SECOND)
    assert [(p.activity_ref, p.status) for p in app.prompts()] == [("by hand", "ready")]


def test_a_row_dated_back_within_the_time_to_send_is_sent_and_an_older_one_is_not(app: App) -> None:
    at = now()
    recent, old = app.people(2)
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - 30 * DAY)
    app.db.execute("update herald.scenario set started_at = now() - interval '30 days'")
    app.evaluate(at)
    app.activity(recent, at - 2 * DAY)
    app.activity(old, at - 4 * DAY)
    app.evaluate_touched(at + SECOND)
    assert [p.user_id for p in app.prompts()] == [recent]


def test_a_transaction_that_commits_late_is_not_missed(app: App, database: Database) -> None:
    person = app.person()
    app.scenario("milestone", {"counts": [1]})
    late = database.connect()
    with late.transaction():
        App(late).activity(person, now())
        assert only(app.evaluate(now() + MINUTE)).candidates == 0
        assert app.evaluate_touched(now() + MINUTE) == []
    assert only(app.evaluate_touched(now() + MINUTE)).prompts == 1


def test_a_hundred_thousand_rows_in_one_insert_are_all_looked_at(app: App) -> None:
    at = now()
    people = app.people(1000)
    app.scenario("milestone", {"counts": [100]}, evaluated_through=at - DAY)
    app.db.execute("delete from herald.touched_user")
    app.db.execute(
        "insert into app.activity (user_id, activity_type, occurred_at) "
        "select u, 'contact', %s from unnest(%s::uuid[]) as u, generate_series(1, 100)",
        (at - MINUTE, people),
    )
    # Handed over once a person, not once a row.
    assert app.db.execute("select count(*) from herald.touched_user").fetchone() == (1000,)
    assert only(app.evaluate_touched(at)).prompts == 1000


# At the same time.


def test_two_scheduled_runs_at_once_make_one_prompt(app: App, database: Database) -> None:
    at = now()
    app.activity(app.person(), at - 30 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY)
    other = database.connect()
    with other.transaction():
        assert only(App(other).evaluate(at)).prompts == 1
        assert app.evaluate(at) == []  # left to the other
    assert only(app.evaluate(at + SECOND)).prompts == 0
    assert len(app.prompts()) == 1


def test_two_touched_runs_at_once_make_one_prompt(app: App, database: Database) -> None:
    at = now()
    person = app.person()
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY)
    app.activity(person, at)
    first, second = database.connect(), database.connect()
    found: list[list[Run]] = []
    with first.transaction():
        assert only(App(first).evaluate_touched(at)).prompts == 1
        app.db.execute("insert into herald.touched_user (user_id) values (%s)", (person,))
        thread = threading.Thread(target=lambda: found.append(App(second).evaluate_touched(at)))
        thread.start()
        wait_until_blocked(app.db, second.info.backend_pid)
    thread.join(timeout=60)
    assert len(found) == 1
    run = only(found[0])
    assert (run.prompts, run.suppressed, run.error) == (0, {"duplicate": 1}, None)
    assert len(app.prompts()) == 1


def test_fifty_evaluations_at_once_make_each_prompt_once(app: App, database: Database) -> None:
    at = now()
    for person in app.people(20):
        app.activity(person, at - 30 * DAY)
    for _ in range(3):
        app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY)
    # Who waits for another's transaction longer than this gives up, and is told so: here only for want of a processor.
    for function in ("herald.evaluate", "herald.evaluate_touched"):
        app.db.execute(f"alter function {function} set lock_timeout = '60s'")
    connections = [database.connect() for _ in range(50)]
    barrier = threading.Barrier(len(connections))
    errors: list[object] = []

    def evaluate(number: int, connection: psycopg.Connection) -> None:
        barrier.wait(timeout=60)
        try:
            mine = App(connection)
            runs = mine.evaluate_touched(at, limit=5) if number % 5 == 0 else mine.evaluate(at)
            errors.extend(run.error for run in runs if run.error)
        except psycopg.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=evaluate, args=item) for item in enumerate(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    assert len(app.prompts()) == len({p.user_id for p in app.prompts()}) == 20


def test_a_transaction_that_holds_a_prompt_open_delays_one_scenario_not_all(app: App, database: Database) -> None:
    at = now()
    blocked, free = app.people(2)
    app.activity(blocked, at - 30 * DAY)
    app.certificate(free, at + DAY)
    busy = app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, priority=1)
    other = app.scenario("expiry", {"days_before": [1]}, evaluated_through=at - DAY)
    application = database.connect()
    with application.transaction():
        application.execute("select * from herald.enqueue(%s, %s, 'by hand')", (busy, blocked))
        runs = {run.scenario_id: run for run in app.evaluate(at)}
    assert (runs[busy].error or "").startswith("55P03")
    assert runs[other].prompts == 1
