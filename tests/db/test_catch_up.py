"""Chapters that are behind in a scenario: each keeps its own place, nothing is lost, and the others never wait."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tests.support.app import App, now

if TYPE_CHECKING:
    from uuid import UUID


DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


def _quiet(app: App, at: datetime, count: int, chapter: UUID | None = None) -> list[UUID]:
    """People who become due a second before `at`."""
    people = app.people(count, chapter=chapter)
    for person in people:
        app.activity(person, at - 30 * DAY - SECOND)
    app.db.execute("delete from herald.touched_user")
    return people


def _break(app: App, people: list[UUID]) -> None:
    """No activity of these people can be read any more."""
    app.db.execute(
        "create or replace view herald.source_activity as select a.id::text as activity_id, a.user_id, "
        "a.activity_type, case when a.user_id = any ('{"
        + ",".join(map(str, people))
        + "}') then ('x' || a.user_id)::timestamptz else a.occurred_at end as occurred_at, a.flags "
        "from app.activity as a"
    )


def _told(app: App) -> set[UUID]:
    return {p.user_id for p in app.prompts() if p.status == "ready"}


def _behind(app: App) -> list[UUID]:
    return [c for (c,) in app.db.execute("select chapter_id from herald.catch_up")]


def test_a_chapter_that_fails_catches_up_once_it_can_and_the_others_went_on(app: App) -> None:
    at = now()
    south = app.another_chapter()
    north_people, south_people = _quiet(app, at, 2), _quiet(app, at, 2, south)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY)
    _break(app, south_people[:1])
    for minute in range(3):
        (run,) = app.evaluate(at + minute * MINUTE)
        assert run.error is not None
        assert run.error.startswith("22007")
        assert _told(app) == set(north_people)
        assert _behind(app) == [south]
    _break(app, [])
    (run,) = app.evaluate(at + 4 * MINUTE)
    assert (run.prompts, run.error) == (2, None)
    assert _told(app) == {*north_people, *south_people}
    assert _behind(app) == []


def test_what_was_held_is_decided_on_by_the_corrected_rule(app: App) -> None:
    """Too many by the wrong rule; the right one, put in while it is held, reaches those of the held time."""
    at = now()
    people = _quiet(app, at, 3)
    longer = app.person()
    app.activity(longer, at - 40 * DAY - SECOND)
    scenario = app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, max_prompts_per_run=2)
    app.evaluate(at)
    app.evaluate(at + MINUTE)
    assert _behind(app) == [app.chapter]
    app.db.execute("""update herald.scenario set params = '{"days": 40}' where scenario_id = %s""", (scenario,))
    (run,) = app.evaluate(at + 2 * MINUTE)
    assert (run.prompts, run.error) == (1, None)
    assert _told(app) == {longer}
    assert not _told(app) & set(people)
    assert _behind(app) == []


def test_what_was_held_after_a_set_back_is_sent_by_the_corrected_rule(app: App) -> None:
    at = now()
    _quiet(app, at - 10 * DAY, 3)
    longer = app.person()
    app.activity(longer, at - 50 * DAY)
    app.scenario("inactivity", {"days": 30}, max_prompts_per_run=2)
    app.db.execute("update herald.scenario set evaluated_through = %s", (at - 20 * DAY,))
    app.evaluate(at)
    assert _behind(app) == [app.chapter]
    app.db.execute("""update herald.scenario set params = '{"days": 45}'""")
    (run,) = app.evaluate(now())
    assert (run.prompts, run.suppressed, run.error) == (1, {}, None)
    claimed = app.db.execute("select user_id, decision from herald.claim('a test', 100, '1 minute', %s)", (now(),))
    assert claimed.fetchall() == [(longer, "send")]


def test_a_changed_rule_reaches_nobody_who_was_due_before_the_last_run(app: App) -> None:
    """Though a run for touched users failed, and looked back further."""
    at = now()
    early = app.person()
    app.activity(early, at - 40 * DAY - HOUR)
    scenario = app.scenario("inactivity", {"days": 60}, evaluated_through=at - DAY)
    app.evaluate(at)
    _break(app, [early])
    app.db.execute("insert into herald.touched_user values (%s)", (early,))
    (run,) = app.evaluate_touched(at + SECOND)
    assert run.error is not None
    assert _behind(app) == [app.chapter]
    _break(app, [])
    app.db.execute("""update herald.scenario set params = '{"days": 40}' where scenario_id = %s""", (scenario,))
    (run,) = app.evaluate(at + MINUTE)
    assert (run.candidates, run.error) == (0, None)
    assert _behind(app) == []


def test_a_scenario_that_is_enabled_again_has_nothing_to_catch_up(app: App) -> None:
    at = now()
    _quiet(app, at, 3)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, max_prompts_per_run=2)
    app.evaluate(at)
    assert _behind(app) == [app.chapter]
    app.db.execute("update herald.scenario set mode = 'off'")
    app.db.execute("update herald.scenario set mode = 'on'")
    assert _behind(app) == []
    (run,) = app.evaluate(at + MINUTE)
    assert (run.candidates, run.error) == (0, None)


def test_a_held_chapter_keeps_the_prompts_that_it_has(app: App) -> None:
    at = now()
    south = app.another_chapter()
    first = app.person(chapter=south)
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY, max_prompts_per_run=2)
    app.activity(first, at)
    app.evaluate_touched(at + SECOND)
    more = app.people(3, chapter=south)
    north = app.person()
    for person in (first, *more, north):
        app.activity(person, at + SECOND)
    (run,) = app.evaluate_touched(at + 2 * SECOND)
    assert run.suppressed["held"] == 3
    assert _told(app) == {first, north}
    # and while it is held, what comes of its people is left to the scheduled run
    app.activity(more[0], at + 2 * SECOND)
    assert app.evaluate_touched(at + 3 * SECOND) == []
    app.db.execute("select herald.resume(scenario_id) from herald.scenario")
    assert [r.error for r in app.evaluate(at + MINUTE)] == [None]
    assert _told(app) == {first, north, *more}


def test_the_prompts_of_all_chapters_count_together_as_those_of_one_run(app: App) -> None:
    at = now()
    south = app.another_chapter()
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY, max_prompts_per_run=3)
    made = []
    for chapter in (app.chapter, south, app.chapter, south):
        app.activity(app.person(chapter=chapter), at)
        made += [(run.prompts, run.suppressed) for run in app.evaluate_touched(at + SECOND)]
    assert made == [(1, {})] * 3 + [(0, {"held": 1})]
    assert _behind(app) == [south]


def test_a_storm_in_another_chapter_counts_only_there(app: App) -> None:
    at = now()
    south = app.another_chapter()
    app.scenario("milestone", {"counts": [1]}, evaluated_through=at - DAY, max_prompts_per_run=2)
    for chapter in (app.chapter, south, south, south):
        app.activity(app.person(chapter=chapter), at)
    runs = app.evaluate_touched(at + SECOND)
    assert [(run.prompts, run.suppressed) for run in runs] == [(1, {"held": 3})]
    assert _behind(app) == [south]


def test_a_run_that_has_to_go_chapter_by_chapter_makes_no_more_than_the_limit_either(app: App) -> None:
    at = now()
    south, west = app.another_chapter(), app.another_chapter()
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, max_prompts_per_run=3)
    for chapter in (app.chapter, south):
        _quiet(app, at, 2, chapter)
    _break(app, _quiet(app, at, 1, west))
    (run,) = app.evaluate(at)
    assert (run.prompts, run.suppressed) == (2, {"held": 2})
    held = app.db.execute("select chapter_id from herald.catch_up where held_at is not null").fetchall()
    assert len(held) == 1
    assert held[0][0] in (app.chapter, south)


def test_people_of_another_chapter_cannot_make_a_run_for_touched_users_fail(app: App) -> None:
    at = now()
    south = app.another_chapter()
    north_person, south_person = app.person(), app.person(chapter=south)
    for chapter in (app.chapter, None):
        app.scenario("milestone", {"counts": [1]}, chapter_id=chapter, evaluated_through=at - DAY, cooldown="0")
    for person in (north_person, south_person):
        app.activity(person, at)
    _break(app, [south_person])
    runs = app.evaluate_touched(at + SECOND)
    assert sum(run.prompts for run in runs) == 1
    assert _told(app) == {north_person}
    assert _behind(app) == [south]


def test_what_was_held_counts_as_due_once(app: App) -> None:
    at = now()
    south = app.another_chapter()
    _quiet(app, at, 2)
    _quiet(app, at, 3, south)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, max_prompts_per_run=2)
    due = "select due, prompts, held_prompts, evaluated_through = %s from herald.status()"
    app.evaluate(at - 2 * SECOND)
    app.evaluate(at)
    app.evaluate(at + SECOND)
    assert app.db.execute(due, (at - 2 * SECOND,)).fetchone() == (2, 2, 3, True)
    app.db.execute("select herald.resume(scenario_id) from herald.scenario")
    app.evaluate(at + 2 * SECOND)
    assert app.db.execute(due, (at + 2 * SECOND,)).fetchone() == (5, 5, None, True)


def test_a_scenario_set_back_looks_back_in_chapters_that_are_behind_too(app: App) -> None:
    at = now()
    before = app.person()
    app.activity(before, at - 32 * DAY)
    people = _quiet(app, at, 3)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - DAY, max_prompts_per_run=2)
    app.evaluate(at)
    assert _behind(app) == [app.chapter]
    app.db.execute("update herald.scenario set evaluated_through = %s", (at - 3 * DAY,))
    app.evaluate(at + MINUTE)
    app.db.execute("select herald.resume(scenario_id) from herald.scenario")
    app.evaluate(at + 2 * MINUTE)
    assert _told(app) == {before, *people}


def test_a_scenario_set_back_does_not_revive_what_had_expired_in_a_chapter_that_is_behind(app: App) -> None:
    at = now()
    _quiet(app, at - 55 * DAY, 1)
    recent = _quiet(app, at - 2 * DAY, 1)
    asked_for = _quiet(app, at - HOUR, 1)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - 60 * DAY)
    app.db.execute("update herald.scenario set started_at = evaluated_from")
    _break(app, recent)
    (run,) = app.evaluate(at)
    assert run.error is not None
    _break(app, [])
    app.db.execute("update herald.scenario set evaluated_through = %s", (at - DAY,))
    (run,) = app.evaluate(now())
    assert run.error is None
    assert _told(app) == {*recent, *asked_for}
    assert _behind(app) == []


def test_a_scenario_that_is_enabled_again_and_set_back_starts_from_there_in_a_chapter_that_was_behind(app: App) -> None:
    at = now()
    _quiet(app, at - 55 * DAY, 1)
    recent = _quiet(app, at - 2 * DAY, 1)
    asked_for = _quiet(app, at - HOUR, 1)
    app.scenario("inactivity", {"days": 30}, evaluated_through=at - 60 * DAY)
    _break(app, recent)
    (run,) = app.evaluate(at)
    assert run.error is not None
    _break(app, [])
    app.db.execute("update herald.scenario set mode = 'off'")
    app.db.execute("update herald.scenario set mode = 'on', evaluated_through = %s", (at - DAY,))
    app.evaluate(now())
    app.db.execute("insert into herald.touched_user select user_id from herald.source_recipient")
    app.evaluate_touched(now())
    assert _told(app) == set(asked_for)
