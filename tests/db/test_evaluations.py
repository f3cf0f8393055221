"""Runs of evaluations: held, caught up, stopped by no other, and the same by both ways in."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.support.app import App, now, only
from tests.support.histories import PARAMS, Case, cases, load

if TYPE_CHECKING:
    from tests.support.postgres import Database

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


# Too many at once.


def test_a_run_that_would_exceed_its_limit_writes_nothing_and_waits_to_be_released(app: App) -> None:
    at = now()
    for person in app.people(4):
        app.activity(person, at - 30 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, max_prompts_per_run=3)
    for moment in (at, at + MINUTE):
        run = only(app.evaluate(moment))
        assert (run.candidates, run.prompts, run.suppressed) == (4, 0, {"held": 4})
        assert run.error is not None
        assert run.error.startswith("held: 4 prompts would exceed max_prompts_per_run = 3; look at pgherald preview")
    assert app.prompts() == []
    assert app.db.execute("select held_at, evaluated_through, catch_up_from from herald.catch_up").fetchall() == [
        (at, at - DAY, at - DAY)
    ]

    app.db.execute("select * from herald.resume((select scenario_id from herald.scenario))")
    assert only(app.evaluate(at + 2 * MINUTE)).prompts == 4
    assert app.db.execute("select from herald.catch_up").fetchall() == []


def test_exactly_as_many_as_allowed_pass(app: App) -> None:
    at = now()
    for person in app.people(3):
        app.activity(person, at - 30 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, max_prompts_per_run=3)
    assert only(app.evaluate(at)).prompts == 3


def test_a_catch_up_counts_as_one_run_however_long_it_was(app: App) -> None:
    at = now()
    for days in range(8):
        app.activity(app.person(), at - (30 + days) * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - 10 * DAY, max_prompts_per_run=7)
    assert only(app.evaluate(at)).suppressed == {"held": 8}
    assert app.prompts() == []


def test_a_flood_of_single_changes_is_held_too_and_made_up_for(app: App) -> None:
    at = now()
    people = app.people(6)
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY, max_prompts_per_run=5)
    app.db.execute("delete from herald.touched_user")
    made = []
    for person in people:
        app.activity(person, at)
        made += [(run.prompts, run.suppressed) for run in app.evaluate_touched(at + SECOND, limit=1)]
    assert made == [(1, {})] * 5 + [(0, {"held": 1})]
    # The scheduled run looks back to where the hold began: one more is within its limit.
    run = only(app.evaluate(at + MINUTE))
    assert (run.prompts, run.error) == (1, None)
    assert {p.user_id for p in app.prompts()} == set(people)


def test_touched_runs_far_apart_are_not_added_up(app: App) -> None:
    at = now()
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY, max_prompts_per_run=1)
    for number, person in enumerate(app.people(3)):
        app.activity(person, at + number * 2 * MINUTE)
        app.evaluate_touched(at + number * 2 * MINUTE)
    assert Counter(p.status for p in app.prompts()) == {"ready": 3}


# What falls due at one moment.


@pytest.mark.parametrize("minutes", [0, 10])
def test_prompts_of_one_moment_are_spread_over_the_jitter_and_without_one_wait_for_nothing(
    app: App, minutes: int
) -> None:
    at = now()
    for person in app.people(30):
        app.activity(person, at - 30 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - MINUTE, jitter=minutes * MINUTE)
    assert only(app.evaluate(at)).prompts == 30
    waits = [prompt.not_before - prompt.due_at for prompt in app.prompts()]
    assert all(timedelta(0) <= wait <= minutes * MINUTE for wait in waits)
    assert len(set(waits)) > 1 or minutes == 0


def test_what_a_person_just_did_is_answered_without_jitter(app: App) -> None:
    app.scenario("milestone", {"counts": [1]}, jitter="10 minutes")
    for person in app.people(10):
        app.activity(person, now())
    assert only(app.evaluate_touched(now())).prompts == 10
    assert all(prompt.not_before <= now() for prompt in app.prompts())


# Missed time.


def test_an_hour_without_runs_is_caught_up(app: App) -> None:
    start = now() - timedelta(hours=1)
    people = app.people(4)
    for number, person in enumerate(people):
        app.activity(person, start - 30 * DAY + number * 15 * MINUTE + SECOND)
    app.scenario("inactivity", {"days": 30}, evaluated_through=start)
    run = only(app.evaluate(now()))
    assert (run.candidates, run.prompts, run.suppressed) == (4, 4, {})


def test_after_a_week_without_runs_what_is_too_old_expires_and_the_rest_is_sent(app: App) -> None:
    at = now()
    people = app.people(7)
    for days, person in enumerate(people):
        app.activity(person, at - 30 * DAY - days * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - 7 * DAY)
    app.db.execute("update herald.scenario set started_at = now() - interval '30 days'")
    run = only(app.evaluate(at))
    assert (run.candidates, run.prompts, run.suppressed) == (7, 3, {"expired": 4})
    assert [p.status for p in sorted(app.prompts(), key=lambda p: p.due_at)] == ["expired"] * 4 + ["ready"] * 3


def test_after_a_week_the_latest_of_a_persons_moments_is_sent_not_one_that_expired(app: App) -> None:
    at = now()
    person = app.person()
    item = app.certificate(person, at + DAY - MINUTE)
    app.scenario("expiry", {"days_before": [7, 5, 1]}, evaluated_through=at - 7 * DAY)
    app.db.execute("update herald.scenario set started_at = now() - interval '30 days'")
    run = only(app.evaluate(at))
    assert (run.candidates, run.prompts, run.suppressed) == (3, 1, {"duplicate": 2})
    assert [(p.activity_ref, p.status) for p in app.prompts()] == [(f"{item}#1", "ready")]


def test_what_is_past_by_the_time_of_a_late_run_is_not_announced(app: App) -> None:
    at = now()
    app.certificate(app.person(), at - SECOND)
    app.certificate(app.person(), at + SECOND)
    app.scenario("expiry", {"days_before": [1]}, evaluated_through=at - 5 * DAY)
    run = only(app.evaluate(at))
    assert (run.candidates, run.prompts, run.suppressed) == (2, 1, {"no_longer_due": 1})


def test_what_expired_takes_the_days_push_from_nobody(app: App) -> None:
    morning = now().replace(hour=8)
    person = app.person()
    app.scenario(
        "follow_up", {"activity_type": "contact", "after_days": 3}, cooldown="0", evaluated_through=morning - 6 * DAY
    )
    app.db.execute("update herald.scenario set started_at = now() - interval '30 days'")
    app.activity(person, morning - 7 * DAY, "contact")
    app.activity(person, morning - 3 * DAY + MINUTE, "contact")
    assert only(app.evaluate(morning)).suppressed == {"expired": 1}
    assert only(app.evaluate(morning + 2 * MINUTE)).prompts == 1
    assert Counter(p.status for p in app.prompts()) == {"expired": 1, "ready": 1}


def test_a_scenario_set_back_a_century_catches_up_in_one_run(app: App) -> None:
    app.activity(app.person(), now() - 400 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=datetime(1926, 1, 1, tzinfo=UTC))
    run = only(app.evaluate(now()))
    assert (run.prompts, run.error) == (1, None)
    assert run.duration < timedelta(seconds=5)


# Others never suffer.

BROKEN: dict[str, tuple[str, str]] = {
    "raises": ("begin raise exception 'no such view'; end", "P0001: no such view"),
    "divides": ("begin perform 1 / 0; end", "22012: division by zero"),
    "null_user": (
        "begin return query select null::uuid, 'x', upper(p_window); end",
        "22000: the evaluator of null_user returned a null user_id",
    ),
    "no_ref": (
        "begin return query select gen_random_uuid(), '', upper(p_window); end",
        "22000: the evaluator of no_ref returned an empty activity_ref",
    ),
    "long_ref": (
        "begin return query select gen_random_uuid(), repeat('x', 401), upper(p_window); end",
        "22000: the evaluator of long_ref returned an activity_ref of more than 400 characters",
    ),
    "outside": (
        "begin return query select gen_random_uuid(), 'x', lower(p_window); end",
        "22000: the evaluator of outside returned a due_at outside the window",
    ),
    "millions": (
        "begin return query select gen_random_uuid(), 'x', upper(p_window) from generate_series(1, 1100000); end",
        "54000: the evaluator of millions returned more than 1000000 candidates",
    ),
    "writes": (
        "begin insert into herald.touched_user values (gen_random_uuid()); end",
        "0A000: INSERT is not allowed in a non-volatile function",
    ),
}


def register(db: psycopg.Connection, name: str, body: str, params_schema: object = None) -> None:
    db.execute(
        f"create or replace function public.due_{name}(p_scenario herald.scenario, p_window tstzrange, "
        f"p_users uuid[] default null) returns setof herald.candidate language plpgsql stable as $$ {body} $$"
    )
    db.execute(
        "select herald.register_scenario_type(%s, %s::regproc, %s, %s)",
        (
            name,
            f"public.due_{name}",
            Jsonb({"en": "Send"}),
            Jsonb(params_schema or {"type": "object", "properties": {}}),
        ),
    )


def test_an_evaluator_that_misbehaves_fails_alone_and_says_how(app: App) -> None:
    at = now()
    app.activity(app.person(), at - 30 * DAY)
    good = app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, priority=-1)
    names = {}
    for name, (body, _) in BROKEN.items():
        register(app.db, name, body)
        names[app.scenario(name, {}, evaluated_through=at - DAY)] = name
    runs = {run.scenario_id: run for run in app.evaluate(at)}
    assert {name: runs[scenario].error for scenario, name in names.items()} == {
        name: message for name, (_, message) in BROKEN.items()
    }
    assert (runs[good].prompts, runs[good].error) == (1, None)
    # Told in the table too, and tried again from where it was.
    told = app.db.execute("select count(*) from herald.evaluation_run where error is not null").fetchone()
    assert told == (len(BROKEN),)
    stayed = app.db.execute("select count(*) from herald.catch_up where evaluated_through = %s", (at - DAY,)).fetchone()
    assert stayed == (len(BROKEN),)


def test_people_nobody_knows_are_counted_and_get_nothing(app: App) -> None:
    at = now()
    register(
        app.db,
        "strangers",
        "begin return query select gen_random_uuid(), 'x', upper(p_window) from generate_series(1, 5); end",
    )
    app.scenario("strangers", {}, evaluated_through=at - MINUTE)
    run = only(app.evaluate(at))
    assert (run.candidates, run.prompts, run.suppressed) == (5, 0, {"unknown_recipient": 5})
    assert app.prompts() == []


def test_a_candidate_given_twice_is_one(app: App) -> None:
    at = now()
    person = app.person()
    register(
        app.db,
        "twice",
        f"begin return query select '{person}'::uuid, 'x', upper(p_window) from generate_series(1, 2); end",
    )
    app.scenario("twice", {}, evaluated_through=at - MINUTE)
    assert only(app.evaluate(at)).prompts == 1


def test_a_touched_run_that_failed_is_made_up_for_by_the_scheduled_one(app: App) -> None:
    at = now()
    person = app.person()
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY)
    app.evaluate(at)
    # Back-dated, so that no scheduled run looks there again by itself.
    app.activity(person, at - timedelta(hours=2))
    app.db.execute("alter table herald.prompt add constraint broken check (false) not valid")
    run = only(app.evaluate_touched(at + SECOND))
    assert run.error is not None
    app.db.execute("alter table herald.prompt drop constraint broken")
    assert only(app.evaluate(at + MINUTE)).prompts == 1
    assert app.db.execute("select from herald.catch_up").fetchall() == []


def test_a_touched_run_that_fails_on_and_on_is_written_down_once_a_minute(app: App) -> None:
    at = now()
    person = app.person()
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY)
    app.activity(person, at)
    app.db.execute("alter table herald.prompt add constraint broken check (false) not valid")

    def failed_after(seconds: int) -> list[float]:
        """Runs that fail so late after the first; which of them are written down by then."""
        app.db.execute("insert into herald.touched_user (user_id) values (%s)", (person,))
        assert only(app.evaluate_touched(at + seconds * SECOND)).error is not None, "the daemon is told of each"
        rows = app.db.execute("select started_at from herald.evaluation_run where error is not null order by 1")
        return [(started_at - at).total_seconds() for (started_at,) in rows]

    assert failed_after(0) == [0]
    assert failed_after(1) == [0]
    assert failed_after(59) == [0]
    assert failed_after(60) == [0, 60]
    assert failed_after(61) == [0, 60]
    app.db.execute("alter table herald.prompt drop constraint broken")
    app.db.execute("alter table herald.prompt add check (1 / (length(activity_ref) - 1) = 0) not valid")
    assert failed_after(62) == [0, 60, 62], "in another way"


def test_an_unknown_scenario_is_an_error(app: App) -> None:
    with pytest.raises(psycopg.errors.NoDataFound, match="no scenario"):
        app.evaluate(now(), uuid4())


def test_a_run_rings_once_however_many_scenarios_found_somebody(app: App, database: Database) -> None:
    listener = database.connect()
    listener.execute("listen herald")
    at = now()
    app.activity(app.person(), at - 30 * DAY)
    for _ in range(3):
        app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, cooldown="0")
    assert set(rung(app.db, listener)) <= {""}
    app.evaluate(at)
    app.evaluate(at + MINUTE)
    assert rung(app.db, listener) == [""]


def test_a_run_rings_also_while_a_daemon_is_awake_for_the_others_sleep(app: App, database: Database) -> None:
    listener = database.connect()
    listener.execute("listen herald")
    listener.execute("select pg_advisory_lock(1751479908, 1)")
    at = now()
    app.activity(app.person(), at - 30 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY)
    rung(app.db, listener)
    app.evaluate(at)
    assert rung(app.db, listener) == [""]


def rung(db: psycopg.Connection, listener: psycopg.Connection) -> list[str]:
    """The payloads of all rings so far: what is notified later arrives later."""
    listener.execute("listen so_far")
    db.execute("notify so_far")
    heard = itertools.takewhile(lambda each: each.channel != "so_far", listener.notifies(timeout=60))
    return [each.payload for each in heard]


# Both ways into an evaluation agree.


@pytest.mark.parametrize("scenario_type", sorted(PARAMS))
@given(data=st.data(), case=cases())
@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
def test_a_touched_run_and_a_scheduled_run_give_the_same_prompts(
    db: psycopg.Connection, scenario_type: str, data: st.DataObject, case: Case
) -> None:
    params = data.draw(PARAMS[scenario_type], label="params")
    made = []
    with db.transaction(force_rollback=True):
        app = App(db)
        load(app, case.people)
        app.devices([p.id for p in case.people[::2]])
        app.scenario(
            scenario_type,
            params,
            evaluated_through=case.lower,
            expires_after="30 days",
            quiet_from=time(21),
            quiet_until=time(8),
        )
        for run in (app.evaluate, app.evaluate_touched):
            with db.transaction(force_rollback=True):
                errors = [r.error for r in run(case.upper)]
                assert not any(errors)
                made.append(
                    {(p.user_id, p.activity_ref, p.status, p.gate, p.due_at, p.not_before) for p in app.prompts()}
                )
    assert made[0] == made[1]
