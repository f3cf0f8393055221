"""Preview and backtest: what a run would do and would have done, written nowhere, and nothing of other chapters."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.support.app import App, now
from tests.support.histories import PARAMS, Case, cases, load

if TYPE_CHECKING:
    from tests.support.postgres import Database

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
WRITTEN = ("prompt", "scenario_prompt_history", "scenario_notification", "evaluation_run", "scenario", "touched_user")


def preview(
    db: psycopg.Connection, what: Any, at: datetime | None = None, window: timedelta = 7 * DAY
) -> list[tuple[UUID, str, datetime, str]]:
    rows = db.execute("select * from herald.preview(%s, %s, %s)", (what, at or now(), window)).fetchall()
    return [(row[0], row[1], row[2].astimezone(UTC), row[3]) for row in rows]


def contents(db: psycopg.Connection) -> list[Any]:
    return [db.execute(f"select count(*), max(xmin::text::bigint) from herald.{name}").fetchone() for name in WRITTEN]


@pytest.mark.parametrize("scenario_type", sorted(PARAMS))
@given(data=st.data(), case=cases(), cooldown=st.sampled_from(["0", "1 day", "7 days"]))
@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
def test_a_preview_is_what_a_run_then_does(
    db: psycopg.Connection, scenario_type: str, data: st.DataObject, case: Case, cooldown: str
) -> None:
    params = data.draw(PARAMS[scenario_type], label="params")
    if case.lower == case.upper:
        return
    with db.transaction(force_rollback=True):
        app = App(db)
        load(app, case.people)
        people = [p.id for p in case.people]
        app.devices(people[::2])
        for person, opted_out in zip(people[1::3], ("milestone", None), strict=False):
            db.execute("insert into herald.opt_out (user_id, scenario_type) values (%s, %s)", (person, opted_out))
        db.execute("update app.peer_mentor set status = 'paused' where user_id = %s", (people[-1],))
        columns: dict[str, Any] = {
            "evaluated_through": case.lower,
            "cooldown": cooldown,
            "quiet_from": time(23),
            "quiet_until": time(7),
            "mode": data.draw(st.sampled_from(["on", "canary", "shadow"])),
            "canary_percent": 60,
        }
        definition = app.definition(scenario_type, params, **columns).obj
        scenario = app.scenario(scenario_type, params, **columns)
        saved_now = data.draw(st.booleans(), label="saved now")
        if saved_now:
            db.execute("update herald.scenario set started_at = %s", (case.upper,))
        before = contents(db)
        found = preview(db, scenario, case.upper, case.upper - case.lower)
        if saved_now:
            # Not yet saved, it says the same (who is in the canary depends on the id).
            unsaved = Jsonb({**definition, "scenario_id": str(scenario)})
            assert preview(db, unsaved, case.upper, case.upper - case.lower) == found
        assert contents(db) == before

        (run,) = app.evaluate(case.upper)
        assert run.error is None
        assert run.candidates == len(found)
        decisions = Counter(decision for *_, decision in found)
        assert run.suppressed == {gate: n for gate, n in decisions.items() if gate != "send"}
        expected = {
            (user, ref, {"expired": "expired", "no_device_token": "skipped"}.get(decision, "ready"))
            for user, ref, _, decision in found
            if decision in ("send", "quiet_hours", "expired", "no_device_token") and columns["mode"] != "shadow"
        }
        assert {(p.user_id, p.activity_ref, p.status) for p in app.prompts()} == expected


def test_a_preview_looks_at_the_window_it_was_asked_for(app: App) -> None:
    at = now()
    ages = {app.person(): age for age in (timedelta(0), 2 * DAY, 6 * DAY)}
    for person, age in ages.items():
        app.activity(person, at - 30 * DAY - age)
    definition = app.definition("inactivity", {"days": 30})
    assert [p for p, *_ in preview(app.db, definition, at)] == list(ages)[::-1]
    assert [p for p, *_ in preview(app.db, definition, at, 2 * DAY)] == list(ages)[:1]  # (lower, upper]
    assert [p for p, *_ in preview(app.db, definition, at, 2 * DAY + MINUTE)] == list(ages)[1::-1]


def test_a_scenario_that_is_off_is_previewed_as_if_it_were_on(app: App) -> None:
    app.activity(app.person(), now() - 30 * DAY)
    scenario = app.scenario("inactivity", {"days": 30}, mode="off")
    assert [decision for *_, decision in preview(app.db, scenario)] == ["send"]


@pytest.mark.parametrize("window", [timedelta(0), -DAY, 367 * DAY, None])
def test_a_window_that_makes_no_sense_is_refused(app: App, window: timedelta | None) -> None:
    scenario = app.scenario("inactivity", {"days": 30})
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="a preview needs a moment and a window"):
        app.db.execute("select * from herald.preview(%s, now(), %s)", (scenario, window))


@pytest.mark.parametrize("moment", [None, "infinity"])
def test_a_preview_of_no_moment_is_refused(app: App, moment: str | None) -> None:
    for what in (app.scenario("inactivity", {"days": 30}), app.definition("inactivity", {"days": 30})):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="a preview needs a moment and a window"):
            app.db.execute("select * from herald.preview(%s, %s)", (what, moment))


def test_a_preview_works_in_a_read_only_transaction(app: App) -> None:
    scenario = app.scenario("inactivity", {"days": 30})
    app.activity(app.person(), now() - 30 * DAY)
    app.db.execute("set default_transaction_read_only = on")
    assert len(preview(app.db, scenario)) == 1
    app.db.execute("select * from herald.backtest(%s, now() - interval '90 days')", (scenario,))
    app.db.execute("select herald.describe(%s)", (scenario,))


# Who may look.


@pytest.fixture
def neighbours(app: App) -> tuple[UUID, UUID, UUID, UUID]:
    """A coordinator of the first chapter; its person; another chapter and its person. Both are due now."""
    other = app.another_chapter()
    mine, theirs = app.person(), app.person(chapter=other)
    for person in (mine, theirs):
        app.activity(person, now() - 30 * DAY)
    coordinator = uuid4()
    app.db.execute("insert into app.coordinator (user_id, chapter_id) values (%s, %s)", (coordinator, app.chapter))
    return coordinator, mine, other, theirs


def test_a_coordinator_sees_the_people_of_their_own_chapter_alone(
    app: App, database: Database, neighbours: tuple[UUID, UUID, UUID, UUID]
) -> None:
    coordinator, mine, other, theirs = neighbours
    person = database.connect_as_person(coordinator)
    whole = app.scenario("inactivity", {"days": 30})
    own = app.scenario("inactivity", {"days": 30}, chapter_id=app.chapter)
    assert {user for user, *_ in preview(app.db, whole)} == {mine, theirs}
    for scenario in (whole, own, app.definition("inactivity", {"days": 30}, chapter_id=app.chapter)):
        assert {user for user, *_ in preview(person, scenario)} == {mine}
    tested = person.execute("select user_id, candidates from herald.backtest(%s, now() - interval '2 days')", (whole,))
    assert {row for row in tested.fetchall() if row[1]} == {(None, 1), (mine, 1)}
    del other


def test_a_foreign_scenario_is_as_unknown_as_none(
    app: App, database: Database, neighbours: tuple[UUID, UUID, UUID, UUID]
) -> None:
    coordinator, _, other, _ = neighbours
    foreign = app.scenario("inactivity", {"days": 30}, chapter_id=other)
    person = database.connect_as_person(coordinator)
    for query in (
        "select * from herald.preview(%s::uuid)",
        "select * from herald.backtest(%s, now() - interval '1 day')",
    ):
        answers = set()
        for scenario in (foreign, uuid4()):
            with pytest.raises(psycopg.errors.NoDataFound) as caught:
                person.execute(query, (scenario,))
            answers.add(str(caught.value.diag.message_primary).replace(str(scenario), "ID"))
        assert answers == {"no scenario ID"}


def test_a_definition_for_another_chapter_or_the_whole_organisation_is_refused_alike(
    app: App, database: Database, neighbours: tuple[UUID, UUID, UUID, UUID]
) -> None:
    coordinator, _, other, _ = neighbours
    person = database.connect_as_person(coordinator)
    answers = set()
    for columns in ({"chapter_id": other}, {"chapter_id": uuid4()}, {"chapter_id": None}):
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            preview(person, app.definition("inactivity", {"days": 30}, **columns))
        answers.add(caught.value.diag.message_primary)
    assert answers == {"definition: chapter_id must be a chapter that you coordinate, of organisation_id"}


def test_a_coordinator_previews_what_they_may_save_for_a_chapter_without_people_too(
    app: App, database: Database, neighbours: tuple[UUID, UUID, UUID, UUID]
) -> None:
    _, _, other, _ = neighbours
    coordinator, empty = uuid4(), app.another_chapter()
    app.db.execute("insert into app.coordinator (user_id, chapter_id) values (%s, %s)", (coordinator, empty))
    person = database.connect_as_person(coordinator)
    definition = app.definition("inactivity", {"days": 30}, chapter_id=empty)
    assert preview(person, definition) == []
    row = person.execute("select herald.describe_definition(%s)", (definition,)).fetchone()
    assert row == ("Send 30 days after the last activity (or registration); at most once a week",)
    person.execute(
        "insert into herald.scenario (scenario_type, organisation_id, chapter_id, name, params) "
        "select d.scenario_type, d.organisation_id, d.chapter_id, d.name, d.params "
        "from jsonb_populate_record(null::herald.scenario, %s) as d",
        (definition,),
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        preview(person, app.definition("inactivity", {"days": 30}, chapter_id=other))
    app.person(chapter=empty)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        preview(person, Jsonb({**definition.obj, "organisation_id": str(uuid4())}))


def test_somebody_who_coordinates_nothing_sees_nothing(app: App, database: Database) -> None:
    scenario = app.scenario("inactivity", {"days": 30})
    person = database.connect_as_person(app.person())
    with pytest.raises(psycopg.errors.NoDataFound):
        preview(person, scenario)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        preview(database.connect("anon"), scenario)


# Backtest.


def backtest(app: App, scenario: UUID, start: datetime, end: datetime) -> tuple[dict[str, Any], list[Any]]:
    rows = app.db.execute("select * from herald.backtest(%s, %s, %s)", (scenario, start, end)).fetchall()
    days = {str(day): (candidates, sent) for kind, day, _, candidates, sent in rows if kind == "day"}
    people = [(user, candidates, sent) for kind, _, user, candidates, sent in rows if kind == "person"]
    return days, people


def test_a_backtest_counts_each_day_and_names_those_reached_most_often(app: App) -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    often, seldom = app.people(2)
    for days in (0, 1, 2, 9):
        app.activity(often, start + days * DAY + MINUTE)
    app.activity(seldom, start + 3 * DAY + MINUTE)
    scenario = app.scenario("follow_up", {"activity_type": "contact", "after_days": 0}, cooldown="2 days")
    before = contents(app.db)
    found, people = backtest(app, scenario, start, start + 10 * DAY)
    assert contents(app.db) == before
    assert len(found) == 11
    assert {day: counts for day, counts in found.items() if counts != (0, 0)} == {
        "2026-03-01": (1, 1),
        "2026-03-02": (1, 0),  # in the cooldown
        "2026-03-03": (1, 0),  # exactly a cooldown later: the push went out a moment after the first was due
        "2026-03-04": (1, 1),
        "2026-03-10": (1, 1),
    }
    assert people == [(often, 4, 2), (seldom, 1, 1)]


def test_a_backtest_is_what_runs_each_minute_would_have_sent(app: App) -> None:
    start = datetime(2026, 3, 28, 22, tzinfo=UTC)
    person = app.person()
    for minutes in (1, 1, 30, 90, 24 * 60 + 30, 24 * 60 + 31):
        app.activity(person, start + minutes * MINUTE)
    columns = {"cooldown": "1 hour", "expires_after": "1 minute"}
    scenario = app.scenario(
        "follow_up", {"activity_type": "contact", "after_days": 0}, evaluated_through=start, **columns
    )
    app.db.execute("update herald.scenario set started_at = %s", (start - DAY,))
    days, _ = backtest(app, scenario, start, start + 2 * DAY)
    at = start
    while at < start + 26 * 60 * MINUTE:
        at += MINUTE if at < start + 2 * 60 * MINUTE or at >= start + 24 * 60 * MINUTE else 22 * 60 * MINUTE
        app.evaluate(at)
        for prompt in app.prompts():
            if prompt.status == "ready":
                app.sent(prompt.prompt_id, at)
    sent = app.db.execute(
        "select (dispatched_at at time zone 'UTC')::date::text, count(*) from herald.scenario_notification group by 1"
    ).fetchall()
    assert {day: n for day, (_, n) in days.items() if n} == dict(sent)


def test_a_backtest_counts_the_moment_that_a_push_takes(app: App) -> None:
    """A repeat that is due exactly a cooldown after the last one is too early for the push that this led to."""
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    app.activity(app.person(), start - 30 * DAY)
    scenario = app.scenario("inactivity", {"days": 30, "repeat_days": 7}, evaluated_through=start - MINUTE)
    _, people = backtest(app, scenario, start - MINUTE, start + 29 * DAY)
    for week in range(5):
        at = start + week * 7 * DAY
        app.evaluate(at)
        for prompt in app.prompts():
            if prompt.status == "ready":
                app.sent(prompt.prompt_id, at + timedelta(milliseconds=300))
    row = app.db.execute("select count(*) from herald.scenario_notification").fetchone()
    assert row == (3,)
    assert [(due, sent) for _, due, sent in people] == [(5, 3)]


def test_a_backtest_leaves_out_those_who_had_opted_out_by_then(app: App) -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    person = app.person()
    for days in (1, 20):
        app.activity(person, start + days * DAY)
    app.db.execute("insert into herald.opt_out values (%s, null, %s)", (person, start + 10 * DAY))
    scenario = app.scenario("follow_up", {"activity_type": "contact", "after_days": 0})
    _, people = backtest(app, scenario, start, start + 30 * DAY)
    assert people == [(person, 2, 1)]


def test_a_definition_is_backtested_alike(app: App) -> None:
    app.activity(app.person(), now() - 35 * DAY)
    scenario = app.scenario("inactivity", {"days": 30})
    saved = app.db.execute("select * from herald.backtest(%s, now() - interval '9 days')", (scenario,)).fetchall()
    unsaved = app.db.execute(
        "select * from herald.backtest_definition(%s, now() - interval '9 days')",
        (app.definition("inactivity", {"days": 30}),),
    ).fetchall()
    assert saved == unsaved


def test_a_backtest_that_ends_before_it_begins_is_refused(app: App) -> None:
    scenario = app.scenario("inactivity", {"days": 30})
    with pytest.raises(
        psycopg.errors.InvalidParameterValue, match="a backtest needs a time that begins before it ends"
    ):
        backtest(app, scenario, now(), now() - DAY)
