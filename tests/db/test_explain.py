"""Why she did (not) get it: every check with its numbers, and nothing about people of other chapters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest

if TYPE_CHECKING:
    from tests.support.app import App
    from tests.support.postgres import Database

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def explain(
    db: psycopg.Connection, person: UUID, scenario_type: str, at: datetime = NOW
) -> dict[str, tuple[bool, str]]:
    rows = db.execute("select * from herald.explain(%s, %s, %s)", (person, scenario_type, at)).fetchall()
    assert len({row[0] for row in rows}) == len(rows)
    return {name: (passed, detail) for name, passed, detail in rows}


def inactivity(app: App, **columns: Any) -> UUID:
    """A scenario that has run since long before NOW."""
    scenario = app.scenario("inactivity", {"days": 30}, evaluated_through=NOW - 300 * DAY, **columns)
    app.db.execute("update herald.scenario set started_at = %s where scenario_id = %s", (NOW - 300 * DAY, scenario))
    return scenario


def test_it_says_how_long_ago_the_last_activity_was_and_how_long_it_must_be(app: App) -> None:
    person = app.person(registered_at=NOW - 30 * DAY)
    app.activity(person, NOW - 30 * DAY + HOUR)
    inactivity(app)
    checks = explain(app.db, person, "inactivity")
    assert checks["due"] == (False, "last activity 29 days 23 hours ago; needs 30 days; not due within the last year")
    assert checks["decision"] == (False, "nothing to send: not due")


def test_what_was_due_long_ago_and_is_not_any_more_is_not_called_due(app: App) -> None:
    person = app.person(registered_at=NOW - 100 * DAY, time_zone="UTC")
    app.activity(person, NOW - 10 * DAY)
    inactivity(app)
    assert explain(app.db, person, "inactivity")["due"] == (
        False,
        "last activity 10 days 0 hours ago; needs 30 days; last due 2026-03-23 12:00 UTC, not any more",
    )


def test_it_speaks_of_what_a_run_would_send_though_something_else_fell_due_later(app: App) -> None:
    """The later certificate is past already, the other one is not."""
    person = app.person(registered_at=NOW - 300 * DAY)
    sent = app.certificate(person, NOW + 28 * DAY)
    app.certificate(person, NOW - HOUR, "driving")
    scenario = app.scenario("expiry", {"days_before": [30, 1]}, evaluated_through=NOW - 4 * DAY)
    checks = explain(app.db, person, "expiry")
    assert checks["decision"] == (True, "a run that looks at it now sends it")
    assert f"about {sent}#30" in checks["due"][1]
    assert all(passed for passed, _ in checks.values())
    app.evaluate(NOW)
    assert [(p.scenario_id, p.activity_ref) for p in app.prompts()] == [(scenario, f"{sent}#30")]


@pytest.mark.parametrize(
    ("scenario_type", "params", "detail"),
    [
        (
            "inactivity",
            {"days": 3, "repeat_days": 30},
            "last activity 2 days 0 hours ago; needs 3 days, then every 30 days",
        ),
        ("inactivity", {"days": 4, "repeat_days": 1}, "last activity 2 days 0 hours ago; needs 4 days, then every day"),
        ("milestone", {"counts": [5, 10]}, "2 activities; needs 5, 10"),
        ("milestone", {"counts": [5], "activity_types": ["contact"]}, "2 activities (contact); needs 5"),
        ("expiry", {"days_before": [1, 7, 7]}, "first_aid expires in 20 days 0 hours; needs 7 and 1 days before"),
        ("expiry", {"days_before": [1]}, "first_aid expires in 20 days 0 hours; needs 1 day before"),
        (
            "follow_up",
            {"activity_type": "contact", "after_days": 3, "first_only": True},
            "first contact 2 days 12 hours ago; needs 3 days",
        ),
        (
            "follow_up",
            {"activity_type": "contact", "after_days": 3, "if_flag": "urgent"},
            "last contact 2 days 0 hours ago, without flag urgent; needs 3 days",
        ),
        ("follow_up", {"activity_type": "visit", "after_days": 3}, "no visit yet; needs one 3 days ago"),
        ("follow_up", {"activity_type": "visit", "after_days": 1}, "no visit yet; needs one 1 day ago"),
        ("follow_up", {"activity_type": "visit", "after_days": 0}, "no visit yet; needs one"),
    ],
)
def test_every_type_tells_its_numbers(app: App, scenario_type: str, params: dict[str, Any], detail: str) -> None:
    person = app.person(registered_at=NOW - 2 * DAY)
    app.activity(person, NOW - 2 * DAY - 12 * HOUR)
    app.activity(person, NOW - 2 * DAY)
    app.certificate(person, NOW + 20 * DAY)
    app.scenario(scenario_type, params)
    assert explain(app.db, person, scenario_type)["due"] == (False, detail + "; not due within the last year")


def test_everything_passes_for_a_person_who_is_about_to_get_it(app: App) -> None:
    person = app.person(registered_at=NOW - 100 * DAY, time_zone="Europe/Oslo")
    activity = app.activity(person, NOW - 30 * DAY - MINUTE)
    app.db.execute("update herald.device_token set last_seen_at = %s", (NOW - 3 * DAY,))
    scenario = inactivity(app)
    due = "2026-06-01 13:59 Europe/Oslo, 1 minute ago"
    assert explain(app.db, person, "inactivity") == {
        "recipient": (True, "active; registered 2026-02-21 13:00 Europe/Oslo; time zone Europe/Oslo"),
        "opt_out": (True, "not opted out"),
        "device_token": (True, "android, seen 3 days 0 hours ago"),
        "daily_cap": (True, "0 today, sent or waiting; no limit"),
        "scenario": (True, f"inactivity ({scenario}): on"),
        "due": (
            True,
            f"last activity 30 days 0 hours ago; needs 30 days; due {due}, about {activity}",
        ),
        "still_due": (True, "still so"),
        "expires": (True, "to be sent before 2026-06-04 13:59 Europe/Oslo, 3 days after it was due"),
        "duplicate": (True, "no other prompt of this type is open or was decided on today (UTC)"),
        "cooldown": (True, "no push of this type yet; cooldown 1 week"),
        "quiet_hours": (True, "none; now it is 2026-06-01 14:00 Europe/Oslo"),
        "decision": (True, "a run that looks at it now sends it"),
    }


def test_each_gate_fails_with_its_own_numbers(app: App) -> None:
    person = app.person(registered_at=NOW - 100 * DAY, time_zone="UTC", status="paused")
    app.activity(person, NOW - 34 * DAY)
    inactivity(app, quiet_from="11:00", quiet_until="13:30", mode="canary", canary_percent=0, name="quiet mentors")
    db = app.db
    db.execute(
        "insert into herald.opt_out values (%s, 'inactivity', %s), (%s, null, %s)",
        (person, NOW - DAY, person, NOW - HOUR),
    )
    db.execute("update herald.device_token set revoked_at = %s, revoked_reason = 'UNREGISTERED'", (NOW - DAY,))
    db.execute("update herald.setting set daily_cap = 1")
    db.execute(
        "insert into herald.scenario_notification "
        "(user_id, scenario_type, dispatched_at, idempotency_key, cooldown_window_start) "
        "values (%s, 'inactivity', %s, repeat('0', 64), %s)",
        (person, NOW - 2 * HOUR, NOW),
    )
    checks = explain(db, person, "inactivity")
    assert {name: detail for name, (passed, detail) in checks.items() if not passed} == {
        "recipient": "not active; registered 2026-02-21 12:00 UTC; time zone UTC",
        "opt_out": (
            "opted out of inactivity since 2026-05-31 12:00 UTC; opted out of everything since 2026-06-01 11:00 UTC"
        ),
        "device_token": "android, revoked 2026-05-31 12:00 UTC (UNREGISTERED)",
        "daily_cap": "1 today, sent or waiting; at most 1",
        "expires": "to be sent before 2026-05-31 12:00 UTC, 3 days after it was due",
        "cooldown": (
            "last push of this type 2026-06-01 10:00 UTC, 2 hours 0 minutes ago; "
            "cooldown 1 week, over 2026-06-08 10:00 UTC"
        ),
        "canary": "is not among the 0 % of people that this scenario is sent to",
        "quiet_hours": "11:00 to 13:30; now it is 2026-06-01 12:00 UTC: waits until 2026-06-01 13:30 UTC",
        "decision": "not sent: inactive_recipient",
    }


def test_without_a_cooldown_none_is_said_to_be_over(app: App) -> None:
    person = app.person(time_zone="UTC")
    app.activity(person, NOW - 30 * DAY)
    inactivity(app, cooldown="0")
    app.evaluate(NOW)
    app.sent(app.prompts()[0].prompt_id, NOW)
    assert explain(app.db, person, "inactivity", NOW + HOUR)["cooldown"] == (
        True,
        "last push of this type 2026-06-01 12:00 UTC, 1 hour 0 minutes ago; cooldown none",
    )


def test_someone_without_any_device_is_told_apart(app: App) -> None:
    person = app.person(device=False)
    inactivity(app)
    passed, detail = explain(app.db, person, "inactivity")["device_token"]
    assert (passed, detail) == (False, "no device was ever registered, or it was signed out")


def test_what_was_due_before_the_scenario_began_says_so(app: App) -> None:
    person = app.person(time_zone="UTC")
    app.activity(person, NOW - 31 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=NOW)
    checks = explain(app.db, person, "inactivity")
    assert checks["due"][0] is False
    assert checks["due"][1].endswith("; the scenario looks back no further than 2026-06-01 12:00 UTC")
    assert checks["decision"] == (False, "not sent: the scenario does not look back so far")


@pytest.mark.parametrize(
    ("columns", "detail", "decision"),
    [
        ({"mode": "off"}, "off", "not sent: the scenario is off"),
        ({"mode": "shadow"}, "shadow", "not sent: shadow"),
        ({"paused_at": NOW - HOUR}, "on, paused since 2026-06-01 11:00 UTC", "sent once the scenario goes on"),
        (
            {"paused_at": NOW - HOUR, "quiet_from": "11:00", "quiet_until": "13:00"},
            "on, paused since 2026-06-01 11:00 UTC",
            "sent once the scenario goes on",
        ),
    ],
)
def test_a_scenario_that_sends_nothing_is_the_reason(
    app: App, columns: dict[str, Any], detail: str, decision: str
) -> None:
    person = app.person(time_zone="UTC")
    app.activity(person, NOW - 30 * DAY)
    scenario = inactivity(app, **columns)
    checks = explain(app.db, person, "inactivity")
    assert checks["scenario"] == (False, f"inactivity ({scenario}): {detail}")
    assert checks["decision"] == (False, decision)


def test_a_pause_of_everything_is_the_reason(app: App) -> None:
    person = app.person(time_zone="UTC")
    app.activity(person, NOW - 30 * DAY)
    scenario = inactivity(app)
    app.db.execute("update herald.setting set paused_at = %s", (NOW - HOUR,))
    checks = explain(app.db, person, "inactivity")
    assert checks["scenario"] == (
        False,
        f"inactivity ({scenario}): on, and everything is paused since 2026-06-01 11:00 UTC",
    )
    assert checks["decision"] == (False, "sent once everything goes on")


@pytest.mark.parametrize("columns", [{}, {"quiet_from": "11:00", "quiet_until": "13:00"}])
def test_a_scenario_that_is_held_is_the_reason(app: App, columns: dict[str, Any]) -> None:
    people = app.people(2, time_zone="UTC")
    for person in people:
        app.activity(person, NOW - 30 * DAY)
    inactivity(app, max_prompts_per_run=1, **columns)
    app.db.execute("update herald.scenario set evaluated_through = %s", (NOW - HOUR,))
    app.evaluate(NOW)
    checks = explain(app.db, people[0], "inactivity")
    assert checks["scenario"][0] is False
    assert checks["scenario"][1].endswith("on, held since 2026-06-01 12:00 UTC")
    assert checks["decision"] == (False, "held: a run would have reached too many people")
    assert app.prompts() == []


def test_the_end_of_what_a_scenario_set_back_reaches_is_told_from_when_that_was_done(app: App) -> None:
    person = app.person(time_zone="UTC")
    app.activity(person, NOW - 35 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=NOW - 10 * DAY)
    app.db.execute("update herald.scenario set started_at = %s", (NOW - HOUR,))
    checks = explain(app.db, person, "inactivity")
    assert checks["expires"] == (
        True,
        "to be sent before 2026-06-04 11:00 UTC, 3 days after the scenario was started or set back",
    )
    assert checks["decision"] == (True, "a run that looks at it now sends it")


def test_a_time_zone_that_nobody_knows_is_told_with_the_one_used(app: App) -> None:
    person = app.person(registered_at=NOW - DAY, time_zone="Nowhere/Land")
    assert explain(app.db, person, "inactivity")["recipient"] == (
        True,
        "active; registered 2026-05-31 12:00 UTC; time zone Nowhere/Land, unknown: UTC is used",
    )


def test_it_tells_what_became_of_the_prompt(app: App) -> None:
    person = app.person(time_zone="UTC")
    activity = app.activity(person, NOW - 30 * DAY)
    inactivity(app)
    app.evaluate(NOW)
    db = app.db
    about = f"about {activity}, due 2026-06-01 12:00 UTC: "

    def told() -> tuple[bool, str]:
        passed, detail = explain(db, person, "inactivity", NOW + HOUR)["prompt"]
        assert detail.startswith(about)
        return passed, detail.removeprefix(about)

    assert told() == (True, "waits to be sent since 2026-06-01 12:00 UTC")
    db.execute("select herald.pause()")
    assert told() == (True, "waits, everything is paused")
    db.execute("select herald.resume()")
    db.execute("update herald.prompt set not_before = %s, gate = 'quiet_hours'", (NOW + 2 * HOUR,))
    assert told() == (True, "waits until 2026-06-01 14:00 UTC (quiet_hours)")
    db.execute("update herald.prompt set not_before = 'infinity', gate = null")
    assert told() == (True, "waits, the scenario is paused")
    for change, fate in {
        "status = 'sending', owner = 'd', claimed_at = now(), deadline = now()": (True, "is being sent"),
        "status = 'failed', error_code = 'UNREGISTERED', attempts = 2": (
            False,
            "failed with UNREGISTERED after 2 attempts",
        ),
        "status = 'unknown', error_code = 'TIMEOUT'": (
            False,
            "may have been sent: the answer of FCM is not known (TIMEOUT)",
        ),
        f"status = 'skipped', gate = 'opted_out', settled_at = '{NOW}'": (
            False,
            "skipped, opted_out 2026-06-01 12:00 UTC",
        ),
        "status = 'expired'": (False, "expired before it could be sent"),
    }.items():
        db.execute(f"update herald.prompt set {change}")
        assert told() == fate
    db.execute("update herald.prompt set status = 'ready', gate = null, not_before = due_at")
    app.sent(app.prompts()[0].prompt_id, NOW + MINUTE)
    assert told() == (True, "sent 2026-06-01 12:01 UTC, not opened yet")
    db.execute("update herald.scenario_notification set opened_at = %s", (NOW + 2 * MINUTE,))
    assert told() == (True, "sent 2026-06-01 12:01 UTC, opened 2026-06-01 12:02 UTC")
    assert explain(db, person, "inactivity", NOW + HOUR)["decision"] == (False, "decided already, see prompt")


def test_what_came_after_the_moment_asked_for_is_left_out(app: App) -> None:
    person = app.person(time_zone="UTC")
    app.activity(person, NOW - 30 * DAY)
    inactivity(app)
    app.db.execute("update herald.device_token set last_seen_at = %s", (NOW + 3 * DAY,))
    before = explain(app.db, person, "inactivity")
    app.evaluate(NOW + HOUR)
    other = app.scenario("inactivity", {"days": 20}, evaluated_through=NOW - 300 * DAY)
    app.db.execute(
        "insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, due_at, evaluation_date, "
        "idempotency_key, cooldown_window_start, status, owner, claimed_at, deadline, created_at) "
        "values (%s, 'inactivity', %s, 'x', %s, %s, repeat('0', 64), %s, 'unknown', 'd', %s, %s, %s)",
        (other, person, NOW, NOW.date() + 3 * DAY, NOW, NOW + 3 * DAY, NOW + 3 * DAY, NOW + 3 * DAY),
    )
    app.db.execute("update herald.scenario set chapter_id = %s where scenario_id = %s", (app.another_chapter(), other))
    app.sent(app.prompts()[0].prompt_id, NOW + 2 * HOUR)
    after = explain(app.db, person, "inactivity")
    assert before["device_token"] == (True, "android, seen 2026-06-04 12:00 UTC")
    assert after.pop("decision") == (False, "decided after this moment")
    assert before.pop("decision") == (True, "a run that looks at it now sends it")
    del before["daily_cap"], after["daily_cap"]  # as the gate counts it
    assert after == before
    assert explain(app.db, person, "inactivity", NOW + 3 * HOUR)["prompt"][1].endswith(
        "sent 2026-06-01 14:00 UTC, not opened yet"
    )


@pytest.mark.parametrize("gate", ["opted_out", "cooldown"])
def test_what_only_later_stopped_it_is_told_as_that(app: App, gate: str) -> None:
    person = app.person(time_zone="UTC")
    app.activity(person, NOW - 30 * DAY)
    inactivity(app)
    before = explain(app.db, person, "inactivity")
    later = NOW + HOUR
    if gate == "opted_out":
        app.db.execute("insert into herald.opt_out values (%s, 'inactivity', %s)", (person, later))
    else:
        app.db.execute(
            "insert into herald.scenario_notification "
            "(user_id, scenario_type, dispatched_at, idempotency_key, cooldown_window_start) "
            "values (%s, 'inactivity', %s, repeat('0', 64), %s)",
            (person, later, later),
        )
    after = explain(app.db, person, "inactivity")
    assert after.pop("decision") == (False, f"not sent: {gate}, since after this moment")
    del before["decision"], before["daily_cap"], after["daily_cap"]  # as the gate counts it
    assert after == before
    assert explain(app.db, person, "inactivity", later)["decision"] == (False, f"not sent: {gate}")


def test_each_scenario_that_covers_the_person_is_gone_through(app: App) -> None:
    person = app.person()
    other = app.another_chapter()
    app.scenario("inactivity", {"days": 30}, name="whole", priority=2)
    app.scenario("inactivity", {"days": 60}, name="own", chapter_id=app.chapter)
    app.scenario("inactivity", {"days": 90}, name="foreign", chapter_id=other)
    rows = app.db.execute(
        "select check_name, detail from herald.explain(%s, 'inactivity', %s)", (person, NOW)
    ).fetchall()
    assert [detail.split(" ")[0] for name, detail in rows if name == "scenario"] == ["whole", "own"]
    assert [name for name, _ in rows].count("decision") == 2


def test_without_a_scenario_it_says_so(app: App) -> None:
    checks = explain(app.db, app.person(), "expiry")
    assert checks["scenario"] == (False, "no scenario of type expiry covers this person")


def test_an_unknown_type_is_refused_with_the_known_ones(app: App) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match='unknown scenario type "birthday"') as caught:
        explain(app.db, app.person(), "birthday")
    assert caught.value.diag.message_hint == "known: expiry, follow_up, inactivity, milestone"


def test_no_moment_at_all_is_refused_as_that(app: App) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="explain needs a moment") as caught:
        app.db.execute("select herald.explain(%s, 'expiry', null)", (app.person(),))
    assert "herald.explain(" in (caught.value.diag.message_hint or "")


def test_an_evaluator_that_fails_is_named_without_its_words(app: App) -> None:
    person = app.person()
    inactivity(app)
    app.db.execute(
        "create or replace view herald.source_activity as select id::text as activity_id, user_id, activity_type, "
        "occurred_at, (case when 1 / (length(activity_type) - 6) > 0 then flags end) as flags from app.activity"
    )
    app.scenario("follow_up", {"activity_type": "secret", "after_days": 1, "if_flag": "urgent"})
    app.activity(person, NOW - 2 * DAY, "secret")
    checks = explain(app.db, person, "follow_up")
    assert checks["due"] == (False, "the evaluator of follow_up fails with 22012")


def test_the_answer_about_foreign_and_unknown_people_is_the_same(app: App, database: Database) -> None:
    other = app.another_chapter()
    mine, theirs = app.person(), app.person(chapter=other)
    coordinator = uuid4()
    app.db.execute("insert into app.coordinator (user_id, chapter_id) values (%s, %s)", (coordinator, app.chapter))
    inactivity(app)
    person = database.connect_as_person(coordinator)
    assert "decision" in explain(person, mine, "inactivity")
    nobody = {"recipient": (False, "no such person among those you may see")}
    assert explain(person, theirs, "inactivity") == nobody
    assert explain(person, uuid4(), "inactivity") == nobody
    assert explain(app.db, uuid4(), "inactivity") == nobody
    # A mentor is no coordinator, not even of themselves.
    assert explain(database.connect_as_person(mine), mine, "inactivity") == nobody
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        explain(database.connect("anon"), mine, "inactivity")
