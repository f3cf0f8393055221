"""Scenarios as sentences: a table of examples over every parameter of every type, in English and Norwegian."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.app import App, only

if TYPE_CHECKING:
    from tests.support.postgres import Database

EXAMPLES: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "inactivity",
        {"days": 30},
        "Send 30 days after the last activity (or registration)",
        "Send 30 dager etter siste aktivitet (eller registrering)",
    ),
    (
        "inactivity",
        {"days": 1},
        "Send 1 day after the last activity (or registration)",
        "Send 1 dag etter siste aktivitet (eller registrering)",
    ),
    (
        "inactivity",
        {"days": 30, "repeat_days": 7},
        "Send 30 days after the last activity (or registration), then again every 7 days",
        "Send 30 dager etter siste aktivitet (eller registrering), deretter igjen hver 7. dag",
    ),
    (
        "inactivity",
        {"days": 30, "repeat_days": 1, "max_repeats": 1},
        "Send 30 days after the last activity (or registration), then again every day, at most once more",
        "Send 30 dager etter siste aktivitet (eller registrering), deretter igjen hver dag, høyst én gang til",
    ),
    (
        "inactivity",
        {"days": 30, "repeat_days": 30, "max_repeats": 3},
        "Send 30 days after the last activity (or registration), then again every 30 days, at most 3 times more",
        "Send 30 dager etter siste aktivitet (eller registrering), deretter igjen hver 30. dag, høyst 3 ganger til",
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
        "Send 3 dager etter kontakt, hver gang",
    ),
    (
        "follow_up",
        {"activity_type": "contact", "after_days": 0, "first_only": False},
        "Send right after each contact",
        "Send rett etter kontakt, hver gang",
    ),
    (
        "follow_up",
        {"activity_type": "contact", "after_days": 3, "first_only": True, "if_flag": "wellbeing_concern"},
        "Send 3 days after a first contact, if wellbeing was a concern",
        "Send 3 dager etter første kontakt, hvis det var bekymring for trivselen",
    ),
]

A_WEEK, I_UKEN = "; at most once a week", "; høyst én gang i uken"
ONCE_A_DAY, EN_GANG_OM_DAGEN = "; at most once a day (UTC)", "; høyst én gang om dagen (UTC)"

CONDITIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, A_WEEK, I_UKEN),
    ({"cooldown": "0"}, ONCE_A_DAY, EN_GANG_OM_DAGEN),
    (
        {"cooldown": "1 hour"},
        "; at most once an hour and once a day (UTC)",
        "; høyst én gang i timen og én gang om dagen (UTC)",
    ),
    (
        {"cooldown": "6 hours"},
        "; at most once in 6 hours and once a day (UTC)",
        "; høyst én gang på 6 timer og én gang om dagen (UTC)",
    ),
    ({"cooldown": "1 day"}, "; at most once a day", "; høyst én gang om dagen"),
    ({"cooldown": "24 hours"}, "; at most once a day", "; høyst én gang om dagen"),
    ({"cooldown": "3 days"}, "; at most once in 3 days", "; høyst én gang på 3 dager"),
    ({"cooldown": "14 days"}, "; at most once in 2 weeks", "; høyst én gang på 2 uker"),
    ({"cooldown": "1 month"}, "; at most once in 30 days", "; høyst én gang på 30 dager"),
    ({"cooldown": "36 hours"}, "; at most once in 1 day and 12 hours", "; høyst én gang på 1 dag og 12 timer"),
    (
        {"cooldown": "25 hours 90 seconds"},
        "; at most once in 1 day, 1 hour, 1 minute and 30 seconds",
        "; høyst én gang på 1 dag, 1 time, 1 minutt og 30 sekunder",
    ),
    (
        {"quiet_from": time(21), "quiet_until": time(8)},
        "; at most once a week; not between 21:00 and 08:00",
        "; høyst én gang i uken; ikke mellom 21:00 og 08:00",
    ),
    ({"expires_after": "6 hours"}, f"{A_WEEK}; at most 6 hours late", f"{I_UKEN}; høyst 6 timer forsinket"),
    ({"expires_after": "1 month"}, f"{A_WEEK}; at most 30 days late", f"{I_UKEN}; høyst 30 dager forsinket"),
    ({"expires_after": "1 year"}, f"{A_WEEK}; at most 365 days late", f"{I_UKEN}; høyst 365 dager forsinket"),
    (
        {"expires_after": "0.5 seconds"},
        f"{A_WEEK}; at most 0.5 seconds late",
        f"{I_UKEN}; høyst 0,5 sekunder forsinket",
    ),
    (
        {"expires_after": "1 minute 1.25 seconds"},
        f"{A_WEEK}; at most 1 minute and 1.25 seconds late",
        f"{I_UKEN}; høyst 1 minutt og 1,25 sekunder forsinket",
    ),
    ({"presentation": "data"}, f"{A_WEEK}; silently", f"{I_UKEN}; uten lyd og varsel"),
    ({"devices": "all"}, f"{A_WEEK}; on all devices", f"{I_UKEN}; på alle enheter"),
    (
        {"on_unknown": "resend"},
        f"{A_WEEK}; sent again if it is not certain that it arrived",
        f"{I_UKEN}; sendes på nytt hvis det er uvisst om den kom fram",
    ),
    (
        {"max_prompts_per_run": 500},
        f"{A_WEEK}; held if it would reach more than 500 people at once",
        f"{I_UKEN}; holdes tilbake hvis den ville nå flere enn 500 personer på én gang",
    ),
    (
        {"max_prompts_per_run": 1},
        f"{A_WEEK}; held if it would reach more than 1 person at once",
        f"{I_UKEN}; holdes tilbake hvis den ville nå flere enn 1 person på én gang",
    ),
    (
        {"mode": "canary", "canary_percent": 10},
        f"{A_WEEK}; only to 10 % of the people",
        f"{I_UKEN}; bare til 10 % av personene",
    ),
    ({"mode": "shadow"}, f"{A_WEEK}; only counted, nothing is sent", f"{I_UKEN}; telles bare, ingenting sendes"),
    ({"mode": "off"}, f"{A_WEEK}; switched off", f"{I_UKEN}; slått av"),
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
        assert described(db, scenario) == english + ONCE_A_DAY
        assert described(db, scenario, "nb") == norwegian + EN_GANG_OM_DAGEN
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
        assert described(db, scenario) == "Send 30 days after the last activity (or registration)" + english
        assert described(db, scenario, "nb") == "Send 30 dager etter siste aktivitet (eller registrering)" + norwegian


@pytest.mark.parametrize(("cooldown", "gate"), [("0", "duplicate"), ("6 hours", "duplicate"), ("12 hours", "cooldown")])
def test_a_cooldown_of_less_than_a_day_is_said_with_the_once_a_day_that_holds_besides(
    db: psycopg.Connection, cooldown: str, gate: str
) -> None:
    app = App(db).create()
    morning = datetime(2026, 6, 1, 8, tzinfo=UTC)
    person = app.person()
    scenario = app.scenario(
        "milestone", {"counts": [1, 2]}, cooldown=cooldown, evaluated_through=morning - timedelta(hours=1)
    )
    app.activity(person, morning)
    assert only(app.evaluate(morning)).prompts == 1
    app.sent(app.prompts()[0].prompt_id, morning)
    app.activity(person, morning + timedelta(hours=7))
    assert only(app.evaluate(morning + timedelta(hours=7))).suppressed == {gate: 1}
    assert described(db, scenario).endswith("once a day (UTC)")


@pytest.mark.parametrize(
    ("repeats", "cooldown", "days", "english", "norwegian"),
    [
        ({"repeat_days": 1}, "7 days", [0, 8, 16, 24], "; in effect every 8 days", "; i praksis hver 8. dag"),
        ({"repeat_days": 2}, "3 days", [0, 4, 8, 12, 16, 20, 24, 28], "every 4 days", "hver 4. dag"),
        ({"repeat_days": 7}, "7 days", [0, 14, 28], "; in effect every 14 days", "; i praksis hver 14. dag"),
        ({"repeat_days": 7, "max_repeats": 2}, "7 days", [0, 14], "; in effect every 14 days", "hver 14. dag"),
        ({"repeat_days": 7, "max_repeats": 1}, "7 days", [0], "; in effect once", "; i praksis én gang"),
        ({"repeat_days": 7}, "6 days", [0, 7, 14, 21, 28], "at most once in 6 days", "høyst én gang på 6 dager"),
    ],
)
def test_repeats_that_the_cooldown_leaves_out_are_said_so(
    db: psycopg.Connection, repeats: dict[str, int], cooldown: str, days: list[int], english: str, norwegian: str
) -> None:
    """A push goes out a moment after the run that decided on it: a cooldown as long as the repeats stops the next."""
    app = App(db).create()
    start = datetime(2026, 6, 1, 12, tzinfo=UTC)
    app.activity(app.person(), start - timedelta(days=30))
    scenario = app.scenario(
        "inactivity",
        {"days": 30, **repeats},
        cooldown=cooldown,
        evaluated_through=start - timedelta(minutes=1),
    )
    ready: list[int] = []
    for day in range(29):
        at = start + timedelta(days=day)
        app.evaluate(at)
        for prompt in app.prompts():
            if prompt.status == "ready":
                app.sent(prompt.prompt_id, at + timedelta(milliseconds=300))
                ready.append(day)
    assert ready == days
    assert described(db, scenario).endswith(english)
    assert described(db, scenario, "nb").endswith(norwegian)


def test_norwegian_sentences_take_a_word_of_any_gender(db: psycopg.Connection) -> None:
    """ "Hver", "en første" stand with a contact, not with a visit."""
    app = App(db).create()
    db.execute("insert into herald.phrase values ('nb', 'visit', 'besøk')")
    each = app.scenario("follow_up", {"activity_type": "visit", "after_days": 1})
    first = app.scenario("follow_up", {"activity_type": "visit", "after_days": 1, "first_only": True})
    assert described(db, each, "nb") == "Send 1 dag etter besøk, hver gang" + I_UKEN
    assert described(db, first, "nb") == "Send 1 dag etter første besøk" + I_UKEN


def test_the_sentence_of_the_design_comes_out_word_for_word(db: psycopg.Connection) -> None:
    scenario = (
        App(db)
        .create()
        .scenario(
            "follow_up",
            {"activity_type": "contact", "after_days": 3, "first_only": True, "if_flag": "wellbeing_concern"},
            quiet_from=time(21),
            quiet_until=time(8),
        )
    )
    assert described(db, scenario) == (
        "Send 3 days after a first contact, if wellbeing was a concern; at most once a week; "
        "not between 21:00 and 08:00"
    )


def test_a_scenario_that_waits_says_so(db: psycopg.Connection) -> None:
    app = App(db).create()
    paused = app.scenario("inactivity", {"days": 30}, paused_at=datetime.now(UTC))
    held = app.scenario("inactivity", {"days": 30})
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
    scenario = app.scenario("follow_up", {"activity_type": odd, "after_days": 3})
    assert described(db, scenario) == f"Send 3 days after each {odd.replace('_', ' ')}{A_WEEK}"


def test_a_scenario_not_yet_saved_is_described_alike(db: psycopg.Connection) -> None:
    app = App(db).create()
    definition = app.definition("inactivity", {"days": 30}, quiet_from="21:00", quiet_until="08:00")
    row = db.execute("select herald.describe_definition(%s)", (definition,)).fetchone()
    assert row == (f"Send 30 days after the last activity (or registration){A_WEEK}; not between 21:00 and 08:00",)


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
