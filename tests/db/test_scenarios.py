"""How a scenario is configured: refused when it makes no sense, started from now, its modes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.app import App, now, only

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)

BAD_PARAMS: list[tuple[str, Any, str]] = [
    ("inactivity", {}, 'parameter "days" is missing'),
    ("inactivity", {"days": None}, 'parameter "days" is missing'),
    ("inactivity", {"days": -1}, 'parameter "days" must be at least 1'),
    ("inactivity", {"days": 0}, 'parameter "days" must be at least 1'),
    ("inactivity", {"days": 36501}, 'parameter "days" must be at most 36500'),
    ("inactivity", {"days": "30"}, 'parameter "days" must be a whole number'),
    ("inactivity", {"days": 1.5}, 'parameter "days" must be a whole number'),
    ("inactivity", {"days": True}, 'parameter "days" must be a whole number'),
    ("inactivity", {"days": 30, "day": 1}, 'unknown parameter "day"; it takes "days", "max_repeats", "repeat_days"'),
    ("inactivity", {"days": 30, "repeat_days": None}, 'parameter "repeat_days" must be a whole number'),
    ("inactivity", {"days": 30, "max_repeats": 3}, 'parameter "max_repeats" needs "repeat_days"'),
    ("inactivity", [30], "params must be a JSON object"),
    ("milestone", {"counts": 10}, 'parameter "counts" must be a list of at least 1'),
    ("milestone", {"counts": []}, 'parameter "counts" must be a list of at least 1'),
    ("milestone", {"counts": [10, 0]}, 'parameter "counts" has an element that must be at least 1'),
    ("milestone", {"counts": [50, 10, 1]}, 'parameter "counts" must rise from each number to the next'),
    ("milestone", {"counts": [1, 1]}, 'parameter "counts" must rise from each number to the next'),
    ("milestone", {"counts": [1, "x"]}, 'parameter "counts" has an element that must be a whole number'),
    ("milestone", {"counts": list(range(1, 102))}, 'parameter "counts" must be a list of at most 100'),
    ("milestone", {"counts": [1], "activity_types": [""]}, "has an element that must be a text, not empty"),
    ("expiry", {"days_before": [30], "kinds": []}, 'parameter "kinds" must be a list of at least 1'),
    ("follow_up", {"after_days": 3}, 'parameter "activity_type" is missing'),
    ("follow_up", {"activity_type": "c", "after_days": -1}, 'parameter "after_days" must be at least 0'),
    ("follow_up", {"activity_type": "c" * 201, "after_days": 1}, "must be a text of at most 200 characters"),
    ("follow_up", {"activity_type": "c", "after_days": 1, "first_only": "yes"}, '"first_only" must be true or false'),
]

BAD_COLUMNS: list[tuple[dict[str, Any], str]] = [
    ({"mode": "paused"}, "mode must be off, shadow, canary or on"),
    ({"mode": "canary"}, "mode canary needs canary_percent, for example 10"),
    ({"mode": "canary", "canary_percent": 101}, "canary_percent must lie between 0 and 100"),
    ({"cooldown": "-1 day"}, "cooldown must lie between 0 and 36500 days"),
    ({"cooldown": "9999 years"}, "cooldown must lie between 0 and 36500 days"),
    ({"cooldown": "-9999 years 3600000 days"}, "cooldown must lie between 0 and 36500 days"),
    ({"expires_after": "83000000 days -1991999900 hours"}, "expires_after must be longer than nothing"),
    ({"quiet_from": "21:00"}, "quiet_from and quiet_until go together"),
    ({"quiet_from": "21:00", "quiet_until": "21:00"}, "quiet_from and quiet_until must differ"),
    ({"presentation": "sound"}, "presentation must be alert or data"),
    ({"devices": "some"}, "devices must be latest or all"),
    ({"expires_after": "0"}, "expires_after must be longer than nothing"),
    ({"expires_after": "-11 months 331 days"}, "at most 36500 days, no part of it negative, for example 3 days"),
    ({"expires_after": "9999 years"}, "expires_after must be longer than nothing and at most 36500 days"),
    ({"jitter": "2 hours"}, "jitter must lie between 0 and 1 hour"),
    ({"on_unknown": "panic"}, "on_unknown must be drop or resend"),
    ({"max_prompts_per_run": 0}, "max_prompts_per_run must be at least 1"),
    ({"title_key": "Hei på deg!"}, "title_key must be a key"),
    ({"body_key": "{name}"}, "body_key must be a key"),
    ({"name": ""}, "name must be a text of 1 to 200 characters"),
    ({"name": None}, "name must be a text of 1 to 200 characters"),
    ({"organisation_id": None}, "organisation_id is missing"),
    ({"evaluated_through": "infinity"}, "evaluated_through must be a moment"),
]


def claim(app: App) -> list[str]:
    rows = app.db.execute("select decision from herald.claim('a test', 100, '1 minute', %s)", (now(),)).fetchall()
    return [row[0] for row in rows]


# What is refused, by an insert and by a preview alike.


def test_a_bad_parameter_is_named_with_what_it_may_be_and_an_example(app: App) -> None:
    for scenario_type, params, message in BAD_PARAMS:
        with pytest.raises(psycopg.errors.CheckViolation) as inserted:
            app.scenario(scenario_type, params)
        with pytest.raises(psycopg.errors.CheckViolation) as previewed:
            app.db.execute("select * from herald.preview(%s)", (app.definition(scenario_type, params),))
        for caught in (inserted.value.diag, previewed.value.diag):
            assert message in (caught.message_primary or "")
            assert (caught.message_hint or "").startswith("for example {")
            assert caught.column_name == "params"


def test_a_bad_column_is_named_with_what_it_may_be(app: App) -> None:
    for columns, message in BAD_COLUMNS:
        with pytest.raises(psycopg.errors.IntegrityError) as inserted:
            app.scenario("inactivity", {"days": 30}, **columns)
        definition = {**app.definition("inactivity", {"days": 30}).obj, **columns}
        with pytest.raises(psycopg.errors.IntegrityError) as previewed:
            app.db.execute("select * from herald.preview(%s)", (Jsonb(definition),))
        assert message in (inserted.value.diag.message_primary or "")
        assert inserted.value.diag.message_primary == previewed.value.diag.message_primary


@pytest.mark.parametrize("text", ["red \x1b[31m", "two\nlines", "\x7f", "\x9b2J"])
def test_what_a_terminal_would_obey_is_refused_where_coordinators_write(app: App, text: str) -> None:
    """Operators read names and parameters on theirs."""
    with pytest.raises(psycopg.errors.CheckViolation, match="name must be a text of 1 to 200 characters, all visible"):
        app.scenario("inactivity", {"days": 30}, name=text)
    with pytest.raises(psycopg.errors.CheckViolation, match='"activity_type" must be a text of visible characters'):
        app.scenario("follow_up", {"activity_type": text, "after_days": 3})
    app.scenario("follow_up", {"activity_type": "besøk 👩‍👧", "after_days": 3}, name="Første besøk: 🎉 静か")


@pytest.mark.parametrize(
    ("column", "allowed", "problem"),
    [("cooldown", "0", "lie between 0 and"), ("expires_after", "1 day", "be longer than nothing and at most")],
)
def test_years_that_are_too_many_days_are_refused_in_the_same_words(
    app: App, column: str, allowed: str, problem: str
) -> None:
    """To Postgres a year of 12 months is as long as 360 days, and here it has 365."""
    app.scenario("inactivity", {"days": 30}, **{column: "100 years"})
    scenario = app.scenario("inactivity", {"days": 30}, **{column: allowed})
    for tried in ("101 years", "100 years 1 day", "1216 months 20 days"):
        definition = app.definition("inactivity", {"days": 30}, **{column: tried})
        for query, values in (
            (f"update herald.scenario set {column} = %s where scenario_id = %s", (tried, scenario)),
            ("select * from herald.preview(%s)", (definition,)),
        ):
            with pytest.raises(psycopg.errors.CheckViolation, match=f"{column} must {problem} 36500 days") as caught:
                app.db.execute(query, values)
            assert caught.value.diag.column_name == column


def test_the_constraints_of_the_table_hold_without_the_trigger_too(app: App) -> None:
    app.db.execute("alter table herald.scenario disable trigger check_scenario")
    for columns, _ in BAD_COLUMNS:
        if columns.get("evaluated_through") != "infinity":
            with pytest.raises(psycopg.errors.IntegrityError):
                app.scenario("inactivity", {"days": 30}, **{"title_key": "a", "body_key": "b", **columns})


def test_a_scenario_with_the_longest_times_that_there_are_stops_nobodys_runs_and_claims(app: App) -> None:
    person = app.person()
    app.scenario("milestone", {"counts": [1]}, cooldown="36500 days", expires_after="36500 days")
    app.scenario("follow_up", {"activity_type": "contact", "after_days": 0})
    app.activity(person, now())
    assert [(run.prompts, run.error) for run in app.evaluate_touched(now())] == [(1, None)] * 2
    assert claim(app) == ["send", "send"]
    app.db.execute("select herald.maintain_batch(now(), 10), herald.status()")
    app.db.execute("select * from herald.explain(%s, 'milestone')", (person,))


@pytest.mark.parametrize("kept", ["prompt", "history", "notification", "run", "token"])
def test_a_retention_that_no_calendar_holds_is_refused(app: App, kept: str) -> None:
    """The nightly clean-up would fail by it."""
    with pytest.raises(psycopg.errors.CheckViolation):
        app.db.execute(f"update herald.setting set {kept}_retention = '9999 years'")
    app.db.execute(f"update herald.setting set {kept}_retention = '36500 days'")
    app.db.execute("select herald.maintain_batch(now(), 10)")


def test_a_scenario_of_another_type_speaks_of_that_unless_it_was_told_what_to_say(app: App) -> None:
    def keys() -> object:
        return app.db.execute("select title_key, body_key from herald.scenario").fetchone()

    app.scenario("inactivity", {"days": 30}, body_key="come_back")
    app.db.execute("update herald.scenario set scenario_type = 'milestone', params = '{\"counts\": [1]}'")
    assert keys() == ("milestone_title", "come_back")


def test_an_unknown_type_is_refused_with_the_known_ones(app: App) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match='unknown scenario type "birthday"') as caught:
        app.scenario("birthday", {})
    assert caught.value.diag.message_hint == "known: expiry, follow_up, inactivity, milestone"


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ([], "a definition is a JSON object"),
        ({"colour": "red"}, 'unknown column "colour"'),
        ({"cooldown": "soon"}, "invalid input syntax for type interval"),
        ({"organisation_id": "17"}, "invalid input syntax for type uuid"),
        ({"devices": None}, "devices is missing"),
        ({"scenario_type": None}, "scenario_type is missing"),
    ],
)
def test_a_definition_that_is_none_is_refused(app: App, definition: Any, message: str) -> None:
    if isinstance(definition, dict):
        definition = {**app.definition("inactivity", {"days": 30}).obj, **definition}
    with pytest.raises(psycopg.Error, match=message):
        app.db.execute("select * from herald.preview(%s)", (Jsonb(definition),))


@pytest.mark.parametrize("wrong", [{}, {"scenario_type": "birthday"}, {"params": {}}])
def test_a_definition_without_a_name_is_called_that(app: App, wrong: dict[str, Any]) -> None:
    definition = {**app.definition("inactivity", {"days": 30}).obj, "name": None, **wrong}
    with pytest.raises(psycopg.errors.IntegrityError, match=r'scenario "\(without a name\)"'):
        app.db.execute("select * from herald.preview(%s)", (Jsonb(definition),))


def test_every_column_that_people_are_sent_to_is_explained(db: psycopg.Connection) -> None:
    unexplained = db.execute(
        """
        select a.attrelid::regclass::text, a.attname
        from pg_attribute as a
        where a.attrelid in ('herald.scenario'::regclass, 'herald.setting'::regclass, 'herald.message_text'::regclass)
          and a.attnum > 0 and not a.attisdropped and col_description(a.attrelid, a.attnum) is null
        """
    ).fetchall()
    assert unexplained == []


def test_a_cooldown_in_months_becomes_days_so_that_its_windows_have_one_length(app: App) -> None:
    app.scenario("inactivity", {"days": 30}, cooldown="1 year 2 months 3 days 04:00")
    assert app.db.execute("select cooldown::text from herald.scenario").fetchall() == [("428 days 04:00:00",)]


# Where it starts.


def test_a_new_scenario_does_not_reach_those_who_were_due_before(app: App) -> None:
    early, late = app.people(2)
    app.activity(early, now() - 40 * DAY)
    app.activity(late, now() - 30 * DAY + MINUTE)
    app.scenario("inactivity", {"days": 30})
    at = now() + 2 * MINUTE
    app.evaluate_touched(at)
    app.evaluate(at)
    assert [p.user_id for p in app.prompts()] == [late]


def test_one_that_is_set_back_reaches_them_and_does_not_call_them_expired(app: App) -> None:
    person = app.person()
    app.activity(person, now() - 40 * DAY)
    scenario = app.scenario("inactivity", {"days": 30})
    app.db.execute("update herald.scenario set evaluated_through = now() - interval '20 days'")
    assert only(app.evaluate(now())).prompts == 1
    assert [(p.user_id, p.status, p.scenario_id) for p in app.prompts()] == [(person, "ready", scenario)]


def test_one_that_is_set_back_an_hour_does_not_reach_those_who_were_due_months_ago(app: App) -> None:
    old, late = app.people(2)
    app.activity(old, now() - 120 * DAY)
    app.activity(late, now() - 32 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=now() - 100 * DAY)
    app.db.execute("update herald.scenario set started_at = now() - interval '100 days', evaluated_through = now()")
    app.db.execute("update herald.scenario set evaluated_through = now() - interval '1 hour'")
    app.evaluate_touched(now())
    app.evaluate(now())
    assert [p.user_id for p in app.prompts()] == [late]


def test_one_that_is_set_back_far_reaches_touched_people_that_far_back_and_no_further(app: App) -> None:
    reached, beyond = app.people(2)
    app.activity(reached, now() - 49 * DAY)
    app.activity(beyond, now() - 51 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=now() - 100 * DAY)
    app.db.execute("update herald.scenario set started_at = now() - interval '100 days', evaluated_through = now()")
    app.db.execute("update herald.scenario set evaluated_through = now() - interval '20 days'")
    app.evaluate_touched(now())
    assert [p.user_id for p in app.prompts()] == [reached]


def test_one_that_is_enabled_again_starts_from_then(app: App) -> None:
    person = app.person()
    app.activity(person, now() - 30 * DAY - MINUTE)
    app.scenario("inactivity", {"days": 30}, evaluated_through=now() - DAY, mode="off")
    assert app.evaluate(now()) == []
    app.db.execute("update herald.scenario set mode = 'on'")
    app.evaluate(now() + SECOND)
    app.evaluate_touched(now() + SECOND)
    assert app.prompts() == []


AGAIN = {
    "enabled again": "update herald.scenario set mode = 'off'; update herald.scenario set mode = 'on'",
    "set back": "update herald.scenario set evaluated_through = now() - interval '1 hour'",
}


@pytest.mark.parametrize("again", list(AGAIN))
def test_a_prompt_that_expired_while_it_waited_does_not_come_alive_when_its_scenario_starts_again(
    app: App, again: str
) -> None:
    app.activity(app.person(), now() - 50 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=now() - 100 * DAY)
    app.evaluate(now())
    app.db.execute("update herald.scenario set started_at = now() - interval '100 days'")
    app.db.execute("update herald.prompt set created_at = due_at")
    app.db.execute(AGAIN[again])
    assert claim(app) == ["expired"]


@pytest.mark.parametrize(
    "change", ["name = 'another'", "params = '{\"days\": 20}'", "mode = 'canary', canary_percent = 100"]
)
def test_what_a_set_back_reached_is_sent_though_the_scenario_is_changed_meanwhile(app: App, change: str) -> None:
    app.activity(app.person(), now() - 40 * DAY)
    app.scenario("inactivity", {"days": 30})
    app.db.execute("update herald.scenario set evaluated_through = now() - interval '20 days'")
    app.evaluate(now())
    app.db.execute(f"update herald.scenario set {change}")
    assert claim(app) == ["send"]


@pytest.mark.parametrize(
    "change",
    ["params = '{\"days\": 20}'", "mode = 'on', canary_percent = null"],
)
def test_a_changed_rule_reaches_nobody_who_was_due_before_the_change(app: App, change: str) -> None:
    start = now() - 10 * DAY
    app.activity(app.person(), now() - 21 * DAY)
    app.activity(app.person(), now() - 31 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=start, mode="canary", canary_percent=0)
    app.evaluate(now())
    app.db.execute(f"update herald.scenario set {change}")
    app.evaluate(now() + MINUTE)
    app.evaluate_touched(now() + MINUTE)
    assert app.prompts() == []


def test_an_edit_that_leaves_the_rule_alone_does_not_forget_how_far_it_got(app: App) -> None:
    app.scenario("inactivity", {"days": 30}, evaluated_through=now() - DAY)
    before = app.db.execute("select evaluated_through, evaluated_from from herald.scenario").fetchone()
    app.db.execute("update herald.scenario set name = 'another', priority = 7, cooldown = '1 day'")
    assert app.db.execute("select evaluated_through, evaluated_from from herald.scenario").fetchone() == before


# Modes.


def test_a_scenario_in_the_shadow_is_counted_and_sends_nothing(app: App) -> None:
    with_device, without = app.person(), app.person(device=False)
    for person in (with_device, without):
        app.activity(person, now() - 30 * DAY)
    app.scenario("inactivity", {"days": 30}, mode="shadow", evaluated_through=now() - DAY)
    run = only(app.evaluate(now()))
    assert (run.candidates, run.prompts, run.suppressed) == (2, 0, {"shadow": 1, "no_device_token": 1})
    assert app.evaluate_touched(now()) == []
    assert app.prompts() == []
    assert app.db.execute("select count(*) from herald.scenario_prompt_history").fetchone() == (0,)


def test_a_canary_reaches_the_same_share_of_people_every_time(app: App) -> None:
    people = app.people(200)
    at = now()
    app.db.execute(
        "insert into app.activity (user_id, activity_type, occurred_at) "
        "select u, 'contact', %s from unnest(%s::uuid[]) as u",
        (at - 30 * DAY, people),
    )
    scenario = app.scenario("inactivity", {"days": 30}, mode="canary", canary_percent=20, evaluated_through=at - DAY)
    run = only(app.evaluate(at))
    reached = {p.user_id for p in app.prompts()}
    assert 20 < len(reached) < 60
    assert run.suppressed == {"canary": 200 - len(reached)}
    app.db.execute("delete from herald.prompt")
    app.db.execute("update herald.scenario set evaluated_through = %s", (at - DAY,))
    app.evaluate(at)
    assert {p.user_id for p in app.prompts()} == reached
    shares = app.db.execute(
        "select count(*) filter (where herald.in_canary(%(s)s, u, 0)), "
        "count(*) filter (where herald.in_canary(%(s)s, u, 100)) "
        "from unnest(%(people)s::uuid[]) as u",
        {"s": scenario, "people": people},
    ).fetchone()
    assert shares == (0, 200)


def test_the_prompts_of_a_paused_scenario_wait(app: App) -> None:
    app.activity(app.person(), now() - 30 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=now() - DAY, paused_at=now())
    app.evaluate(now())
    assert app.db.execute("select status, not_before::text from herald.prompt").fetchall() == [("ready", "infinity")]


def test_priority_goes_with_the_prompt(app: App) -> None:
    app.activity(app.person(), now() - 30 * DAY)
    app.scenario("inactivity", {"days": 30}, evaluated_through=now() - DAY, priority=9)
    app.evaluate(now())
    assert app.db.execute("select priority from herald.prompt").fetchall() == [(9,)]
