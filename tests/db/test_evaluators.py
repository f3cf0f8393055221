"""The four evaluators against plain-Python models, over random histories, windows and session time zones.

A model says who is due by going through every row of a person; the evaluators must find the same through an index.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.app import App, Candidate
from tests.support.histories import DAY, PARAMS, TYPES, Case, Person, cases, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import psycopg

EXAMPLES = settings(
    max_examples=100,
    # One database for all examples: each undoes what it did.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def inactivity(person: Person, params: dict[str, Any]) -> Iterator[tuple[str, datetime]]:
    def last(moment: datetime) -> tuple[datetime, str] | None:
        done = [(a.at, str(a.id)) for a in person.activities if a.at <= moment]
        if done:
            return max(done)
        return (person.registered_at, "registered") if person.registered_at <= moment else None

    repeats = params.get("max_repeats", 30) if "repeat_days" in params else 0
    for base in {(person.registered_at, "registered")} | {(a.at, str(a.id)) for a in person.activities}:
        for repeat in range(repeats + 1):
            moment = base[0] + (params["days"] + repeat * params.get("repeat_days", 0)) * DAY
            if last(moment) == base:
                yield base[1] + (f"#{repeat}" if repeat else ""), moment


def milestone(person: Person, params: dict[str, Any]) -> Iterator[tuple[str, datetime]]:
    moments = sorted(a.at for a in person.activities if a.kind in params.get("activity_types", TYPES))
    for count in params["counts"]:
        if count <= len(moments):
            yield str(count), moments[count - 1]


def expiry(person: Person, params: dict[str, Any]) -> Iterator[tuple[str, datetime]]:
    for item in person.items:
        renewed = any(other.kind == item.kind and other.expires_at > item.expires_at for other in person.items)
        if not renewed and item.kind in params.get("kinds", [item.kind]):
            for days in set(params["days_before"]):
                yield f"{item.id}#{days}", item.expires_at - days * DAY


def follow_up(person: Person, params: dict[str, Any]) -> Iterator[tuple[str, datetime]]:
    of_type = sorted(
        (a for a in person.activities if a.kind == params["activity_type"]), key=lambda a: (a.at, str(a.id))
    )
    for activity in of_type[:1] if params.get("first_only") else of_type:
        if params.get("if_flag") in (None, *activity.flags):
            yield str(activity.id), activity.at + params["after_days"] * DAY


MODELS: dict[str, Any] = {
    "inactivity": inactivity,
    "milestone": milestone,
    "expiry": expiry,
    "follow_up": follow_up,
}


def by_person(found: Sequence[Candidate]) -> list[tuple[UUID, str, datetime]]:
    # In UTC: Python never calls moments of two time zones equal in the hour that the clocks repeat.
    return sorted((c.user_id, c.activity_ref, c.due_at.astimezone(UTC)) for c in found)


@pytest.mark.parametrize("scenario_type", sorted(MODELS))
@given(data=st.data(), case=cases())
@EXAMPLES
def test_an_evaluator_finds_those_who_became_due_and_nobody_else(
    db: psycopg.Connection, scenario_type: str, data: st.DataObject, case: Case
) -> None:
    params = data.draw(PARAMS[scenario_type], label="params")
    with db.transaction(force_rollback=True):
        db.execute("select set_config('timezone', %s, true)", (case.time_zone,))
        app = App(db)
        load(app, case.people)
        scenario = app.definition(scenario_type, params)
        expected = sorted(
            (person.id, ref, due_at)
            for person in case.people
            for ref, due_at in MODELS[scenario_type](person, params)
            if case.lower < due_at <= case.upper
        )
        whole = app.candidates(scenario, case.lower, case.upper)
        assert by_person(whole) == expected

        # Cut anywhere, the windows give the same.
        edges = [case.lower, *case.cuts, case.upper]
        parts = [c for a, b in pairwise(edges) for c in app.candidates(scenario, a, b)]
        assert by_person(parts) == expected

        # For some people only, the same as for all.
        some = [person.id for number, person in enumerate(case.people) if number in case.some]
        touched = app.candidates(scenario, case.lower, case.upper, some)
        assert by_person(touched) == [row for row in expected if row[0] in some]


NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(("age", "due"), [(30 * DAY - SECOND, False), (30 * DAY, True), (30 * DAY + SECOND, True)])
def test_inactivity_is_due_after_exactly_its_days(app: App, age: timedelta, due: bool) -> None:
    person = app.person()
    activity = app.activity(person, NOW - age)
    found = app.candidates(app.definition("inactivity", {"days": 30}), NOW - DAY, NOW)
    assert [c.activity_ref for c in found] == ([str(activity)] if due else [])


def test_inactivity_is_not_due_when_the_next_activity_comes_at_that_very_moment(app: App) -> None:
    person = app.person()
    app.activity(person, NOW - 30 * DAY)
    app.activity(person, NOW)
    assert app.candidates(app.definition("inactivity", {"days": 30}), NOW - DAY, NOW) == []


def test_a_backtest_is_not_changed_by_what_happened_later(app: App) -> None:
    person = app.person()
    activity = app.activity(person, NOW - 40 * DAY)
    scenario = app.definition("inactivity", {"days": 30})
    before = app.candidates(scenario, NOW - 20 * DAY, NOW)
    app.activity(person, NOW - 5 * DAY)
    assert app.candidates(scenario, NOW - 20 * DAY, NOW) == before
    assert [c.activity_ref for c in before] == [str(activity)]


def test_a_person_without_any_activity_is_due_by_the_registration(app: App) -> None:
    person = app.person(registered_at=NOW - 30 * DAY)
    found = app.candidates(app.definition("inactivity", {"days": 30, "repeat_days": 7}), NOW - DAY, NOW + 20 * DAY)
    assert by_person(found) == [
        (person, "registered", NOW),
        (person, "registered#1", NOW + 7 * DAY),
        (person, "registered#2", NOW + 14 * DAY),
    ]


def test_repeats_end_after_max_repeats(app: App) -> None:
    app.person(registered_at=NOW - 30 * DAY)
    params = {"days": 30, "repeat_days": 7, "max_repeats": 2}
    found = app.candidates(app.definition("inactivity", params), NOW - DAY, NOW + 365 * DAY)
    assert [c.activity_ref for c in found] == ["registered", "registered#1", "registered#2"]


def test_what_is_named_twice_is_due_once(app: App) -> None:
    person = app.person()
    item = app.certificate(person, NOW + 7 * DAY)
    for users in (None, [person]):
        expires = app.candidates(app.definition("expiry", {"days_before": [1, 7, 7]}), NOW - DAY, NOW, users)
        assert [c.activity_ref for c in expires] == [f"{item}#7"]


def test_a_certificate_that_was_renewed_does_not_expire(app: App) -> None:
    person = app.person()
    app.certificate(person, NOW + 30 * DAY)
    other = app.certificate(person, NOW + 30 * DAY, "driving")
    app.certificate(person, NOW + 400 * DAY)
    found = app.candidates(app.definition("expiry", {"days_before": [30]}), NOW - DAY, NOW)
    assert [c.activity_ref for c in found] == [f"{other}#30"]


def test_people_of_other_chapters_and_organisations_are_no_candidates(app: App) -> None:
    mine = app.person(registered_at=NOW - 30 * DAY)
    neighbour = app.person(registered_at=NOW - 30 * DAY, chapter=app.another_chapter())
    app.person(registered_at=NOW - 30 * DAY, chapter=app.another_chapter(UUID(int=7)))
    whole = app.candidates(app.definition("inactivity", {"days": 30}), NOW - DAY, NOW)
    own = app.candidates(app.definition("inactivity", {"days": 30}, chapter_id=app.chapter), NOW - DAY, NOW)
    assert {c.user_id for c in whole} == {mine, neighbour}
    assert {c.user_id for c in own} == {mine}


@pytest.mark.parametrize("moment", ["infinity", "-infinity"])
def test_endless_moments_in_the_app_harm_nobody(app: App, moment: str) -> None:
    person, other = app.people(2)
    app.db.execute(
        "insert into app.activity (user_id, activity_type, occurred_at) values (%s, 'contact', %s)", (person, moment)
    )
    app.db.execute(
        "insert into app.certification (user_id, kind, expires_at) values (%s, 'first_aid', %s)", (person, moment)
    )
    app.activity(other, NOW - 30 * DAY)
    app.certificate(other, NOW + 30 * DAY)
    scenarios: dict[str, dict[str, Any]] = {
        "inactivity": {"days": 30, "repeat_days": 1},
        "milestone": {"counts": [1]},
        "expiry": {"days_before": [30]},
        "follow_up": {"activity_type": "contact", "after_days": 30},
    }
    for scenario_type, params in scenarios.items():
        found = app.candidates(app.definition(scenario_type, params), NOW - 31 * DAY, NOW)
        assert other in {c.user_id for c in found}
        app.db.execute("select * from herald.explain(%s, %s, %s)", (person, scenario_type, NOW))


def test_an_evaluator_needs_no_rows_to_answer(app: App) -> None:
    params = {"days": 30, "repeat_days": 30}
    assert app.candidates(app.definition("inactivity", params), NOW - 3650 * DAY, NOW) == []
