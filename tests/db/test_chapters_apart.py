"""What happens in one chapter changes no answer to another: compared to the byte, whatever happens there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import two_chapters as world
from tests.support.questions import QUESTIONS, answers
from tests.support.two_chapters import (
    A1,
    A2,
    B1,
    B2,
    CHAPTER_B,
    CHAPTER_C,
    COORDINATOR_A,
    NOBODY,
    NOTIFICATION_A1,
    NOTIFICATION_B1,
    NOW,
    ORGANISATION,
    SCENARIO_A,
    SCENARIO_ALL,
    SCENARIO_B,
    SCENARIO_C,
    SCENARIO_OTHER_ALL,
    acting_as,
    answer,
    insert,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg


def _new_person(db: psycopg.Connection) -> None:
    world.add_person(db, uuid4(), CHAPTER_B)


#: What may happen in chapter B, through whatever path.
CHANGES: Final[dict[str, Callable[[psycopg.Connection], object]]] = {
    "a person joins": _new_person,
    "a person leaves": lambda db: db.execute("update app.peer_mentor set status = 'left' where user_id = %s", (B1,)),
    "a person moves away": lambda db: db.execute(
        "update app.peer_mentor set chapter_id = %s where user_id = %s", (CHAPTER_C, B2)
    ),
    "a person is active": lambda db: db.execute(
        "insert into app.activity (user_id, activity_type) values (%s, 'contact')", (B1,)
    ),
    "a time zone is nonsense": lambda db: db.execute(
        "update app.peer_mentor set time_zone = 'Mars/Phobos' where user_id = %s", (B2,)
    ),
    "a certificate": lambda db: db.execute(
        "insert into app.certification (user_id, kind, expires_at) values (%s, 'first_aid', '2026-06-20')", (B1,)
    ),
    "all activities go": lambda db: db.execute("delete from app.activity where user_id in (%s, %s)", (B1, B2)),
    "a coordinator more": lambda db: db.execute("insert into app.coordinator values (%s, %s)", (B1, CHAPTER_B)),
    "no coordinator": lambda db: db.execute("delete from app.coordinator where chapter_id = %s", (CHAPTER_B,)),
    "a scenario more": lambda db: db.execute(insert(ORGANISATION, CHAPTER_B)),
    "another scenario's parameters": lambda db: db.execute(
        """update herald.scenario set params = '{"days": 1}', name = 'changed' where scenario_id = %s""", (SCENARIO_B,)
    ),
    "the scenario goes": lambda db: (
        db.execute("delete from herald.prompt where scenario_id = %s", (SCENARIO_B,)),
        db.execute("delete from herald.scenario where scenario_id = %s", (SCENARIO_B,)),
    ),
    "a run": lambda db: (
        db.execute("select * from herald.evaluate(%s, %s)", (NOW, SCENARIO_B))
        if db.execute("select from herald.scenario where scenario_id = %s", (SCENARIO_B,)).fetchall()
        else None
    ),
    "a run for touched users": lambda db: (
        db.execute("delete from herald.touched_user"),
        db.execute("insert into herald.touched_user values (%s), (%s)", (B1, B2)),
        db.execute("select * from herald.evaluate_touched(10, %s)", (NOW,)),
    ),
    "a push": lambda db: (
        db.execute(
            "insert into herald.scenario_notification "
            "(user_id, scenario_type, scenario_id, dispatched_at, idempotency_key, cooldown_window_start) "
            "values (%s, 'inactivity', %s, %s, md5(random()::text), %s) on conflict do nothing",
            (B2, SCENARIO_B, NOW, NOW),
        ),
    ),
    "an opt-out": lambda db: db.execute(
        "insert into herald.opt_out (user_id) values (%s) on conflict do nothing", (B2,)
    ),
    "no device": lambda db: db.execute("delete from herald.device_token where user_id = %s", (B1,)),
    "a device more": lambda db: db.execute(
        "insert into herald.device_token (user_id, token, platform) values (%s, gen_random_uuid()::text, 'web')", (B2,)
    ),
    "the push was opened": lambda db: db.execute(
        "update herald.scenario_notification set opened_at = now() where id = %s", (NOTIFICATION_B1,)
    ),
    "the push is forgotten": lambda db: db.execute(
        "delete from herald.scenario_notification where id = %s", (NOTIFICATION_B1,)
    ),
    "a run failed": lambda db: db.execute(
        "insert into herald.evaluation_run "
        "(scenario_id, source, started_at, evaluated, candidates, prompts, duration, error) "
        "select scenario_id, 'schedule', now(), '(2026-05-01,2026-05-02]', 0, 0, '1 s', '22P02: secret' "
        "from herald.scenario where scenario_id = %s",
        (SCENARIO_B,),
    ),
}


@pytest.fixture
def db(populated: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """Two chapters, inside a transaction that is rolled back after the test."""
    with populated.transaction(force_rollback=True):
        yield populated


@pytest.fixture
def quiet_world(db: psycopg.Connection) -> tuple[psycopg.Connection, list[str]]:
    return db, answers(db)


def test_what_chapter_a_can_ask_does_answer(quiet_world: tuple[psycopg.Connection, list[str]]) -> None:
    db, found = quiet_world
    assert answers(db) == found
    by_question = {(query, values): text for (_, query, values), text in zip(QUESTIONS, found, strict=True)}
    preview = f"select * from herald.preview(%s::uuid, '{NOW}', '60 days')"
    assert by_question[preview, (SCENARIO_ALL,)].count("UUID(") == 2, "both people of A, nobody of B"
    assert by_question[preview, (SCENARIO_B,)].startswith(f"('P0002', 'no scenario {SCENARIO_B}'")
    assert by_question[preview, (NOBODY,)].startswith(f"('P0002', 'no scenario {NOBODY}'")
    for about in (B1, B2, NOBODY):
        explained = by_question[f"select * from herald.explain(%s, 'inactivity', '{NOW}')", (about,)]
        assert explained == "(1, [('recipient', False, 'no such person among those you may see')])"


def test_what_exists_elsewhere_is_answered_as_what_does_not_exist(
    quiet_world: tuple[psycopg.Connection, list[str]],
) -> None:
    _, found = quiet_world
    by_question = {
        (person, query, values): text for (person, query, values), text in zip(QUESTIONS, found, strict=True)
    }
    compared = 0
    for (person, query, values), text in by_question.items():
        for existing in (SCENARIO_B, SCENARIO_C, SCENARIO_OTHER_ALL, B1, B2):
            unknown = by_question.get((person, query, tuple(NOBODY if v == existing else v for v in values)))
            if existing in values and unknown is not None and person == COORDINATOR_A:
                assert text.replace(str(existing), str(NOBODY)) == unknown
                compared += 1
    assert compared >= 21


@pytest.mark.parametrize("claims", ['{"sub": "auth0|1"}', '{"sub": 1}', "[]", "{"])
def test_malformed_claims_are_refused_whatever_exists(db: psycopg.Connection, claims: str) -> None:
    refused = "('28000', 'the claims of this request are malformed'"
    for query in ("describe(%s)", "preview(%s::uuid)", "backtest(%s, now() - interval '1 day')"):
        for scenario in (SCENARIO_A, SCENARIO_B, SCENARIO_OTHER_ALL, NOBODY):
            with db.transaction(force_rollback=True), acting_as(db, "authenticated", claims):
                assert answer(db, f"select * from herald.{query}", (scenario,)).startswith(refused)
    for person in (A1, B1, NOBODY):
        with db.transaction(force_rollback=True), acting_as(db, "authenticated", claims):
            assert answer(db, "select * from herald.explain(%s, 'inactivity')", (person,)).startswith(refused)
            assert answer(db, "select * from herald.explain(%s, 'no type')", (person,)).startswith(refused)
    with db.transaction(force_rollback=True), acting_as(db, "service_role", claims):
        assert answer(db, "select * from herald.describe(%s)", (SCENARIO_A,)).startswith("(1, ")


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changes=st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=6, unique=True))
def test_no_change_in_chapter_b_changes_any_answer_to_chapter_a(
    quiet_world: tuple[psycopg.Connection, list[str]], changes: list[str]
) -> None:
    db, before = quiet_world
    with db.transaction(force_rollback=True):
        for change in changes:
            CHANGES[change](db)
        assert answers(db) == before


def test_each_change_in_chapter_b_alone_changes_no_answer_to_chapter_a(
    quiet_world: tuple[psycopg.Connection, list[str]],
) -> None:
    db, before = quiet_world
    for name, change in CHANGES.items():
        with db.transaction(force_rollback=True):
            change(db)
            assert answers(db) == before, name


def test_the_same_changes_in_chapter_a_do_change_answers(quiet_world: tuple[psycopg.Connection, list[str]]) -> None:
    """The control: the comparison would see a difference if there were one."""
    db, before = quiet_world
    for sees_less in (
        f"update app.peer_mentor set status = 'left' where user_id = '{A1}'",
        f"update herald.scenario set name = 'changed' where scenario_id = '{SCENARIO_A}'",
        f"insert into herald.opt_out (user_id) values ('{A2}')",
        f"delete from herald.scenario_notification where id = '{NOTIFICATION_A1}'",
        # and a leak: an answer that counts the people of B
        """
        create or replace function herald.my_people() returns uuid[] language sql stable as 'select null::uuid[]';
        create or replace function herald.visible_people(p_users uuid[]) returns setof uuid language sql stable
        as 'select unnest(p_users)'
        """,
    ):
        with db.transaction(force_rollback=True):
            db.execute(sees_less.encode())
            assert answers(db) != before


def test_an_evaluator_that_fails_on_another_chapters_rows_tells_nothing(
    quiet_world: tuple[psycopg.Connection, list[str]],
) -> None:
    db, _ = quiet_world
    db.execute(
        "create function herald.due_fragile("
        "p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null) "
        "returns setof herald.candidate language sql stable as $$ "
        "select r.user_id, 'x', upper(p_window) from herald.source_recipient as r "
        "where (p_users is null or r.user_id = any (p_users)) and r.time_zone::text <> 'x' "
        "and case when r.time_zone ~ '^\\d' then r.time_zone::integer > 0 else true end $$"
    )
    db.execute("""select herald.register_scenario_type('fragile', 'herald.due_fragile', '{"en": "Send"}', '{}')""")
    scenario = db.execute(
        "insert into herald.scenario (scenario_type, organisation_id, name) values ('fragile', %s, 'f') "
        "returning scenario_id",
        (ORGANISATION,),
    ).fetchone()
    preview = "select user_id from herald.preview(%s::uuid, now() + interval '1 hour', '1 hour')"

    def previewed() -> str:
        with db.transaction(force_rollback=True), acting_as(db, "authenticated", COORDINATOR_A):
            return answer(db, preview, scenario or ())

    before = previewed()
    assert before.count("UUID(") == 2
    db.execute("update app.peer_mentor set time_zone = '4 secret' where user_id = %s", (B1,))
    assert "4 secret" in answer(db, preview, scenario or ()), "the control: staff see the error"
    assert previewed() == before


def test_what_an_evaluator_fails_on_is_told_to_staff_only(quiet_world: tuple[psycopg.Connection, list[str]]) -> None:
    """It may meet rows of anybody, such as where a view casts a column, before it leaves them out."""
    db, _ = quiet_world
    db.execute("alter table app.peer_mentor add secret text default 'Kari Nordmann'")
    db.execute(
        "create function herald.due_cast("
        "p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null) "
        "returns setof herald.candidate language sql stable as $$ "
        "select m.user_id, m.secret::int::text, upper(p_window) from app.peer_mentor as m $$"
    )
    db.execute("grant usage on schema app to herald_owner; grant select on app.peer_mentor to herald_owner")
    db.execute("""select herald.register_scenario_type('cast', 'herald.due_cast', '{"en": "Send"}', '{}')""")
    scenario = db.execute(
        "insert into herald.scenario (scenario_type, organisation_id, name) values ('cast', %s, 'f') "
        "returning scenario_id",
        (ORGANISATION,),
    ).fetchone()
    assert scenario is not None
    for question in (
        "select user_id from herald.preview(%s::uuid)",
        "select user_id from herald.backtest(%s, now() - interval '2 days')",
    ):
        assert "Kari Nordmann" in answer(db, question, scenario), "the control: staff see the error"
        with db.transaction(force_rollback=True), acting_as(db, "authenticated", COORDINATOR_A):
            said = answer(db, question, scenario)
        assert "a function of scenario type cast fails with 22P02" in said
        assert "Kari" not in said


def test_what_a_still_due_function_fails_on_is_told_to_staff_only(
    quiet_world: tuple[psycopg.Connection, list[str]],
) -> None:
    db, _ = quiet_world
    db.execute("alter table app.peer_mentor add secret text default 'Kari Nordmann'")
    db.execute(
        "create function herald.due_all("
        "p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null) "
        "returns setof herald.candidate language sql stable as $$ "
        "select r.user_id, 'x', upper(p_window) from herald.source_recipient as r "
        "where p_users is null or r.user_id = any (p_users) $$"
    )
    db.execute(
        "create function herald.still_cast("
        "p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamptz) "
        "returns setof herald.candidate language sql stable as $$ "
        "select m.user_id, m.secret::int::text, p_now from app.peer_mentor as m $$"
    )
    db.execute("grant usage on schema app to herald_owner; grant select on app.peer_mentor to herald_owner")
    db.execute(
        "select herald.register_scenario_type("
        """'cast', 'herald.due_all', '{"en": "Send"}', '{}', p_still_due => 'herald.still_cast')"""
    )
    scenario = db.execute(
        "insert into herald.scenario (scenario_type, organisation_id, name) values ('cast', %s, 'f') "
        "returning scenario_id",
        (ORGANISATION,),
    ).fetchone()
    assert scenario is not None
    question = "select user_id from herald.preview(%s::uuid)"
    assert "Kari Nordmann" in answer(db, question, scenario), "the control: staff see the error"
    with db.transaction(force_rollback=True), acting_as(db, "authenticated", COORDINATOR_A):
        said = answer(db, question, scenario)
        explained = answer(db, "select * from herald.explain(%s, 'cast')", (A1,))
    assert "a function of scenario type cast fails with 22P02" in said
    assert "the evaluator of cast fails with 22P02" in explained
    assert "Kari" not in said + explained
