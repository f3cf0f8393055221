"""Scenarios as sentences: a table of examples over every parameter of every type, in English and Norwegian."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.app import App, clock

if TYPE_CHECKING:
    from tests.support.postgres import Database

EXAMPLES: list[tuple[str, dict[str, Any], str, str]] = [
    ("inactivity", {"days": 30}, "Send 30 days after the last activity", "Send 30 dager etter siste aktivitet"),
    ("inactivity", {"days": 1}, "Send 1 day after the last activity", "Send 1 dag etter siste aktivitet"),
    (
        "inactivity",
        {"days": 30, "repeat_days": 7},
        "Send 30 days after the last activity, then again every 7 days",
        "Send 30 dager etter siste aktivitet, deretter igjen hver 7. dag",
    ),
    (
        "inactivity",
        {"days": 30, "repeat_days": 1, "max_repeats": 1},
        "Send 30 days after the last activity, then again every day, at most once more",
        "Send 30 dager etter siste aktivitet, deretter igjen hver dag, høyst én gang til",
    ),
    (
        "inactivity",
        {"days": 30, "repeat_days": 30, "max_repeats": 3},
        "Send 30 days after the last activity, then again every 30 days, at most 3 times more",
        "Send 30 dager etter siste aktivitet, deretter igjen hver 30. dag, høyst 3 ganger til",
    ),
    ("milestone", {"counts": [10]}, "Send at a person's 10th activity", "Send ved en persons 10. aktivitet"),
    (
        "milestone",
        {"counts": [1, 2, 3, 4, 11, 12, 13, 21, 22, 103, 111]},
        "Send at a person's 1st, 2nd, 3rd, 4th, 11th, 12th, 13th, 21st, 22nd, 103rd and 111th activity",
        "Send ved en persons 1., 2., 3., 4., 11., 12., 13., 21., 22., 103. og 111. aktivitet",
    ),
    (
        "milestone",
        {"counts": [1, 2, 10, 50]},
        "Send at a person's 1st, 2nd, 10th and 50th activity",
        "Send ved en persons 1., 2., 10. og 50. aktivitet",
    ),
    (
        "milestone",
        {"counts": [1, 10, 50], "activity_types": ["contact", "home_visit"]},
        "Send at a person's 1st, 10th and 50th contact or home visit",
        "Send ved en persons 1., 10. og 50. kontakt eller home visit",
    ),
    (
        "expiry",
        {"days_before": [30, 7, 1]},
        "Send 30, 7 and 1 days before something expires, unless it is renewed",
        "Send 30, 7 og 1 dager før noe utløper, hvis det ikke er fornyet",
    ),
    (
        "expiry",
        {"days_before": [7, 30, 1, 30], "kinds": ["first_aid", "assignment", "first_aid"]},
        "Send 30, 7 and 1 days before a first-aid certificate or an assignment expires, unless it is renewed",
        "Send 30, 7 og 1 dager før et førstehjelpskurs eller et oppdrag utløper, hvis det ikke er fornyet",
    ),
    (
        "expiry",
        {"days_before": [1, 1]},
        "Send 1 day before something expires, unless it is renewed",
        "Send 1 dag før noe utløper, hvis det ikke er fornyet",
    ),
    (
        "expiry",
        {"days_before": [1], "kinds": ["first_aid"]},
        "Send 1 day before a first-aid certificate expires, unless it is renewed",
        "Send 1 dag før et førstehjelpskurs utløper, hvis det ikke er fornyet",
    ),
    (
        "expiry",
        {"days_before": [14], "kinds": ["first_aid", "assignment"]},
        "Send 14 days before a first-aid certificate or an assignment expires, unless it is renewed",
        "Send 14 dager før et førstehjelpskurs eller et oppdrag utløper, hvis det ikke er fornyet",
    ),
    (
        "follow_up",
        {"activity_type": "contact", "after_days": 3},
        "Send 3 days after each contact",
        "Send 3 dager etter hver kontakt",
    ),
    (
        "follow_up",
        {"activity_type": "contact", "after_days": 0, "first_only": False},
        "Send right after each contact",
        "Send rett etter hver kontakt",
    ),
    (
        "follow_up",
        {"activity_type": "contact", "after_days": 3, "first_only": True, "if_flag": "wellbeing_concern"},
        "Send 3 days after a first contact, if wellbeing was a concern",
        "Send 3 dager etter en første kontakt, hvis det var bekymring for trivselen",
    ),
]

CONDITIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "; at most once a week", "; høyst én gang i uken"),
    ({"cooldown": "0"}, "", ""),
    ({"cooldown": "1 hour"}, "; at most once an hour", "; høyst én gang i timen"),
    ({"cooldown": "1 day"}, "; at most once a day", "; høyst én gang om dagen"),
    ({"cooldown": "24 hours"}, "; at most once a day", "; høyst én gang om dagen"),
    ({"cooldown": "3 days"}, "; at most once in 3 days", "; høyst én gang på 3 dager"),
    ({"cooldown": "14 days"}, "; at most once in 2 weeks", "; høyst én gang på 2 uker"),
    ({"cooldown": "1 month"}, "; at most once in 30 days", "; høyst én gang på 30 dager"),
    ({"cooldown": "36 hours"}, "; at most once in 1 day and 12 hours", "; høyst én gang på 1 dag og 12 timer"),
    (
        {"cooldown": "90 seconds"},
        "; at most once in 1 minute and 30 seconds",
        "; høyst én gang på 1 minutt og 30 sekunder",
    ),
    (
        {"quiet_from": clock(21), "quiet_until": clock(8)},
        "; at most once a week; not between 21:00 and 08:00",
        "; høyst én gang i uken; ikke mellom 21:00 og 08:00",
    ),
    ({"cooldown": "0", "expires_after": "6 hours"}, "; at most 6 hours late", "; høyst 6 timer forsinket"),
    ({"cooldown": "0", "presentation": "data"}, "; silently", "; uten lyd og varsel"),
    ({"cooldown": "0", "devices": "all"}, "; on all devices", "; på alle enheter"),
    (
        {"cooldown": "0", "max_prompts_per_run": 500},
        "; held if it would reach more than 500 people at once",
        "; holdes tilbake hvis den ville nå flere enn 500 personer på en gang",
    ),
    (
        {"cooldown": "0", "mode": "canary", "canary_percent": 10},
        "; only to 10 % of the people",
        "; bare til 10 % av personene",
    ),
    ({"cooldown": "0", "mode": "shadow"}, "; only counted, nothing is sent", "; bare talt, ingenting sendes"),
    ({"cooldown": "0", "mode": "off"}, "; switched off", "; slått av"),
]


def described(db: psycopg.Connection, scenario: object, locale: str = "en") -> str:
    row = db.execute("select herald.describe(%s, %s)", (scenario, locale)).fetchone()
    assert row is not None
    sentence: str = row[0]
    return sentence


def test_every_parameter_of_every_type_is_said_in_english_and_norwegian(db: psycopg.Connection) -> None:
    app = App(db).create()
    for scenario_type, params, english, norwegian in EXAMPLES:
        scenario = app.scenario(scenario_type, params, cooldown="0")
        assert described(db, scenario) == english
        assert described(db, scenario, "nb") == norwegian
    # The table leaves no parameter out.
    said = {(scenario_type, name) for scenario_type, params, *_ in EXAMPLES for name in params}
    known = db.execute(
        "select t.scenario_type, k from herald.scenario_type as t "
        "cross join jsonb_object_keys(t.params_schema -> 'properties') as k"
    ).fetchall()
    assert said == set(known)


def test_cooldown_and_quiet_hours_are_said_and_else_only_what_is_not_the_default(db: psycopg.Connection) -> None:
    app = App(db).create()
    for columns, english, norwegian in CONDITIONS:
        scenario = app.scenario("inactivity", {"days": 30}, **columns)
        assert described(db, scenario) == "Send 30 days after the last activity" + english
        assert described(db, scenario, "nb") == "Send 30 dager etter siste aktivitet" + norwegian


def test_the_sentence_of_the_design_comes_out_word_for_word(db: psycopg.Connection) -> None:
    scenario = (
        App(db)
        .create()
        .scenario(
            "follow_up",
            {"activity_type": "contact", "after_days": 3, "first_only": True, "if_flag": "wellbeing_concern"},
            quiet_from=clock(21),
            quiet_until=clock(8),
        )
    )
    assert described(db, scenario) == (
        "Send 3 days after a first contact, if wellbeing was a concern; at most once a week; "
        "not between 21:00 and 08:00"
    )


def test_a_scenario_that_waits_says_so(db: psycopg.Connection) -> None:
    app = App(db).create()
    paused = app.scenario("inactivity", {"days": 30}, cooldown="0", paused_at=datetime.now(UTC))
    held = app.scenario("inactivity", {"days": 30}, cooldown="0")
    db.execute("insert into herald.catch_up values (%s, null, now(), now(), now())", (held,))
    assert described(db, paused).endswith("; paused")
    assert described(db, held).endswith("; held: a run would have reached too many people")
    assert described(db, held, "nb").endswith("; holdt tilbake: en kjøring ville nådd for mange personer")


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ("en-GB", "en"),
        ("en_GB", "en"),
        ("nb-NO", "nb"),
        ("nb_NO", "nb"),
        ("no", "nb"),
        ("nn", "nb"),
        ("NB", "nb"),
        ("de", "en"),
        ("sv-SE", "en"),
    ],
)
def test_a_locale_is_answered_in_its_language_or_in_english(db: psycopg.Connection, locale: str, language: str) -> None:
    scenario = App(db).create().scenario("inactivity", {"days": 30})
    assert described(db, scenario, locale) == described(db, scenario, language)


@pytest.mark.parametrize("locale", ["", "english please", "e", "../nb", "nb_", None])
def test_what_is_no_locale_is_refused(db: psycopg.Connection, locale: str | None) -> None:
    scenario = App(db).create().scenario("inactivity", {"days": 30})
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="this is not a locale"):
        db.execute("select herald.describe(%s, %s)", (scenario, locale))


def test_what_a_parameter_holds_is_never_read_as_a_template(db: psycopg.Connection) -> None:
    app = App(db).create()
    odd = "[after_days:x]{after_days} '%s' \\1 |"
    scenario = app.scenario("follow_up", {"activity_type": odd, "after_days": 3}, cooldown="0")
    assert described(db, scenario) == f"Send 3 days after each {odd.replace('_', ' ')}"


def test_a_scenario_not_yet_saved_is_described_alike(db: psycopg.Connection) -> None:
    app = App(db).create()
    definition = app.definition("inactivity", {"days": 30}, quiet_from="21:00", quiet_until="08:00")
    row = db.execute("select herald.describe_definition(%s)", (definition,)).fetchone()
    assert row == ("Send 30 days after the last activity; at most once a week; not between 21:00 and 08:00",)


def test_a_coordinator_gets_the_same_answer_for_a_foreign_scenario_as_for_none(database: Database) -> None:
    app = App(database.connect()).create()
    app.person()
    coordinator = uuid4()
    app.db.execute("insert into app.coordinator (user_id, chapter_id) values (%s, %s)", (coordinator, app.chapter))
    own = app.scenario("inactivity", {"days": 30}, chapter_id=app.chapter)
    whole = app.scenario("inactivity", {"days": 40})
    foreign = app.scenario("inactivity", {"days": 50}, chapter_id=app.another_chapter())
    person = database.connect_as_person(coordinator)
    assert described(person, own).startswith("Send 30 days")
    assert described(person, whole).startswith("Send 40 days")
    answers = []
    for scenario in (foreign, uuid4()):
        with pytest.raises(psycopg.errors.NoDataFound) as caught:
            described(person, scenario)
        answers.append(str(caught.value).replace(str(scenario), "ID"))
    assert answers[0] == answers[1]


def test_a_type_without_norwegian_is_said_in_english_to_the_end(db: psycopg.Connection) -> None:
    app = App(db).create()
    db.execute(
        "create function public.due_never(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null) "
        "returns setof herald.candidate language sql stable as "
        "'select null::uuid, null::text, null::timestamptz where false'"
    )
    db.execute(
        "select herald.register_scenario_type('never', 'public.due_never', %s, %s)",
        (Jsonb({"en": "Send never"}), Jsonb({"type": "object", "properties": {}})),
    )
    scenario = app.scenario("never", {})
    assert described(db, scenario, "nb") == "Send never; at most once a week"
