"""Who may do what: every role, relation, command and kind of claim, generated; and what one chapter learns of another.

A statement that is not named below as allowed must be refused for want of a right, whoever the claims say is asking.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import two_chapters as world
from tests.support.two_chapters import (
    A1,
    A2,
    B1,
    B2,
    CHAPTER_A,
    CHAPTER_B,
    CHAPTER_C,
    CHAPTER_EMPTY,
    COORDINATOR_A,
    COORDINATOR_B,
    NOBODY,
    NOTIFICATION_A1,
    NOTIFICATION_B1,
    NOW,
    ORGANISATION,
    OTHER_ORGANISATION,
    SCENARIO_A,
    SCENARIO_ALL,
    SCENARIO_B,
    SCENARIO_C,
    TOKEN_B1,
    acting_as,
    answer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.postgres import Server

ROLES: Final = ("anon", "authenticated", "service_role", "herald_daemon", "herald_reader")
COMMANDS: Final = ("select", "insert", "update", "delete", "truncate")
CLAIMS: Final[dict[str, object]] = {
    "own": COORDINATOR_A,
    "other chapter": COORDINATOR_B,
    "other person": A1,
    "nobody": NOBODY,
    "none": None,
    "forged role": {"sub": str(NOBODY), "role": "service_role", "app_metadata": {"chapter_id": str(CHAPTER_A)}},
    "forged superuser": {"sub": str(NOBODY), "role": "postgres", "user_role": "herald_owner"},
    "no sub": {"role": "authenticated", "chapter_id": str(CHAPTER_A)},
    "null sub": {"sub": None},
    "sub is no uuid": {"sub": "' or true --"},
    "sub is a list": {"sub": [str(COORDINATOR_A)]},
    "no object": [{"sub": str(COORDINATOR_A)}],
    "no JSON": "{sub: me}",
}
MALFORMED: Final = ("sub is no uuid", "sub is a list", "no object", "no JSON")

#: What is allowed at all, of which rows is tested below: everything else is refused.
ALLOWED: Final = {
    ("authenticated", "scenario", "select"),
    ("authenticated", "scenario", "insert"),
    ("authenticated", "scenario", "update"),
    ("authenticated", "scenario", "delete"),
    ("authenticated", "scenario_type", "select"),
    ("herald_reader", "scenario_statistics", "select"),
    ("herald_reader", "outbox_statistics", "select"),
    ("herald_reader", "delivery_statistics", "select"),
    ("herald_reader", "device_statistics", "select"),
}

Cell = tuple[str, str, str, str]


@pytest.fixture(scope="module")
def populated(server: Server) -> Iterator[psycopg.Connection]:
    """A superuser's connection to a database with two chapters, for all tests here: each undoes what it does."""
    with server.database() as database:
        connection = database.connect()
        world.populate(connection)
        yield connection


@pytest.fixture
def db(populated: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """The same inside a transaction that is rolled back after the test."""
    with populated.transaction(force_rollback=True):
        yield populated


def statement(command: str, relation: str, column: str) -> str:
    return {
        "select": f"select * from {relation}",
        "insert": f"insert into {relation} default values",
        "update": f"update {relation} set {column} = {column}",
        "delete": f"delete from {relation}",
        "truncate": f"truncate {relation}",
    }[command]


def test_every_role_relation_command_and_claim_has_the_expected_outcome(db: psycopg.Connection) -> None:
    relations = db.execute(
        "select c.relname, c.relkind::text, min(a.attname) from pg_class as c "
        "join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and a.attidentity = '' and not a.attisdropped "
        "where c.relnamespace = 'herald'::regnamespace and c.relkind in ('r', 'p', 'v') group by 1, 2 order by 1"
    ).fetchall()
    assert len(relations) >= 22
    surprises: list[tuple[Cell, str]] = []
    allowed: set[Cell] = set()
    for role in ROLES:
        # claims mean something to clients only: the others get those that could mislead
        for kind in CLAIMS if role == "authenticated" else ("own", "none", "forged role"):
            claims = CLAIMS[kind]
            for relation, relation_kind, column in relations:
                for command in COMMANDS if relation_kind == "r" else ("select",):
                    with db.transaction(force_rollback=True), acting_as(db, role, claims):
                        outcome = answer(db, statement(command, f"herald.{relation}", column))
                    cell = (role, relation, command, kind)
                    if (role, relation, command) in ALLOWED:
                        allowed.add(cell)
                    elif not outcome.startswith("('42501', 'permission denied for "):
                        surprises.append((cell, outcome))
    assert surprises == []
    assert {cell[:3] for cell in allowed} == ALLOWED


def scenarios_seen(db: psycopg.Connection) -> set[UUID]:
    return {row[0] for row in db.execute("select scenario_id from herald.scenario")}


SEES: Final[dict[str, set[UUID]]] = {
    "own": {SCENARIO_A, SCENARIO_ALL},
    "other chapter": {SCENARIO_B, SCENARIO_ALL},
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_coordinators_read_their_chapter_and_their_organisation_and_nobody_else_reads(
    db: psycopg.Connection, kind: str
) -> None:
    with db.transaction(force_rollback=True), acting_as(db, "authenticated", CLAIMS[kind]):
        if kind in MALFORMED:
            with pytest.raises(
                psycopg.errors.InvalidAuthorizationSpecification, match="claims of this request are malformed"
            ):
                scenarios_seen(db)
            return
        assert scenarios_seen(db) == SEES.get(kind, set())
        count = db.execute("select count(*), count(distinct name) from herald.scenario").fetchone()
        assert count is not None
        assert count[0] == len(SEES.get(kind, set()))
        types = db.execute("select scenario_type from herald.scenario_type").fetchall()
        assert {t for (t,) in types} == {"inactivity", "milestone", "expiry", "follow_up"}


COLUMNS: Final = {
    "scenario_type": "'milestone'",
    "name": "'another'",
    "params": """'{"counts": [1]}'""",
    "title_key": "'t'",
    "body_key": "'b'",
    "presentation": "'data'",
    "devices": "'all'",
    "cooldown": "'1 day'",
    "quiet_from": "'21:00'",
    "quiet_until": "'08:00'",
    "mode": "'canary'",
    "canary_percent": "10",
    "priority": "1",
    "jitter": "'1 minute'",
    "expires_after": "'1 day'",
    "on_unknown": "'resend'",
    "max_prompts_per_run": "5",
}
#: The engine's own, and the key.
CLOSED: Final = (
    "scenario_id",
    "evaluated_through",
    "evaluated_from",
    "started_at",
    "paused_at",
    "created_at",
)


def insert(organisation: UUID, chapter: UUID | None, **more: str) -> str:
    values = {
        "organisation_id": f"'{organisation}'",
        "chapter_id": "null" if chapter is None else f"'{chapter}'",
        **COLUMNS,
        **more,
    }
    return (
        f"insert into herald.scenario ({', '.join(values)}) values ({', '.join(values.values())}) "
        "returning name, organisation_id, chapter_id"
    )


PLACES: Final = {
    "own chapter": (ORGANISATION, CHAPTER_A),
    "own chapter without people": (ORGANISATION, CHAPTER_EMPTY),
    "other chapter": (ORGANISATION, CHAPTER_B),
    "whole organisation": (ORGANISATION, None),
    "own chapter, other organisation": (OTHER_ORGANISATION, CHAPTER_A),
    "other organisation": (OTHER_ORGANISATION, CHAPTER_C),
    "unknown chapter": (ORGANISATION, NOBODY),
}
MAY_WRITE: Final = {("own", "own chapter"), ("own", "own chapter without people"), ("other chapter", "other chapter")}
REFUSED: Final = """('42501', 'new row violates row-level security policy for table "scenario"'"""


@pytest.mark.parametrize("kind", [k for k in CLAIMS if k not in MALFORMED])
def test_scenarios_are_written_by_coordinators_in_their_own_chapter_only(db: psycopg.Connection, kind: str) -> None:
    for place, (organisation, chapter) in PLACES.items():
        with db.transaction(force_rollback=True), acting_as(db, "authenticated", CLAIMS[kind]):
            inserted = answer(db, insert(organisation, chapter))
            moved = answer(
                db,
                "update herald.scenario set organisation_id = %s, chapter_id = %s where name = 'quiet' "
                "and chapter_id is not null returning name",
                (organisation, chapter),
            )
        if (kind, place) in MAY_WRITE:
            assert inserted.startswith("(1, [('another',"), place
            assert moved == "(1, [('quiet',)])", place
        else:
            assert inserted.startswith(REFUSED), place
            # whoever coordinates nothing has no row to move
            assert moved.startswith(REFUSED) if kind in SEES else moved == "(0, [])", place


@pytest.mark.parametrize("kind", [k for k in CLAIMS if k not in MALFORMED])
def test_updates_and_deletes_reach_the_own_chapters_scenarios_only(db: psycopg.Connection, kind: str) -> None:
    db.execute("delete from herald.prompt")
    own = {"own": SCENARIO_A, "other chapter": SCENARIO_B}.get(kind)
    for scenario in (SCENARIO_A, SCENARIO_B, SCENARIO_ALL, SCENARIO_C, NOBODY):
        reached = int(scenario == own)
        for command in ("update herald.scenario set name = 'mine'", "delete from herald.scenario"):
            with db.transaction(force_rollback=True), acting_as(db, "authenticated", CLAIMS[kind]):
                assert answer(db, f"{command} where scenario_id = %s", (scenario,)) == f"({reached}, [])"
    with db.transaction(force_rollback=True), acting_as(db, "authenticated", CLAIMS[kind]):
        assert answer(db, "update herald.scenario set name = 'mine'") == f"({int(own is not None)}, [])"


def test_a_scenario_that_has_prompts_is_not_deleted_and_the_hint_says_what_to_do_instead(
    db: psycopg.Connection,
) -> None:
    delete = f"delete from herald.scenario where scenario_id = '{SCENARIO_A}'"
    with db.transaction(force_rollback=True), acting_as(db, "authenticated", COORDINATOR_A):
        refused = answer(db, delete)
        assert refused.startswith(
            """('23503', 'scenario "quiet" has prompts, and cannot be deleted', None, "set mode = """
        )
        assert "herald.prompt'" not in refused, "no table that a coordinator cannot see"
        db.execute(f"update herald.scenario set mode = 'off' where scenario_id = '{SCENARIO_A}'")
    db.execute("delete from herald.prompt")
    with acting_as(db, "authenticated", COORDINATOR_A):
        assert answer(db, delete) == "(1, [])"


def test_a_coordinator_may_set_every_column_of_configuration_and_no_other(db: psycopg.Connection) -> None:
    columns = db.execute(
        "select attname from pg_attribute "
        "where attrelid = 'herald.scenario'::regclass and attnum > 0 and not attisdropped"
    ).fetchall()
    assert {c for (c,) in columns} == {*COLUMNS, *CLOSED, "organisation_id", "chapter_id"}
    with db.transaction(force_rollback=True), acting_as(db, "authenticated", COORDINATOR_A):
        for column in ("ctid", "xmin", "tableoid"):
            query = f"select {column} from herald.scenario"
            assert answer(db, query).startswith("('42501', 'permission denied for table scenario'"), column
        for column in CLOSED:
            for command in (
                insert(ORGANISATION, CHAPTER_A, **{column: "default"}),
                f"update herald.scenario set {column} = default",
            ):
                assert answer(db, command).startswith("('42501', 'permission denied for table scenario'"), column


def test_postgrest_can_insert_upsert_patch_and_delete_a_scenario(db: psycopg.Connection) -> None:
    """The statements that PostgREST 12 sends: everything from json_to_recordset, everything returned."""
    payload = json.dumps(
        [
            {
                "scenario_type": "expiry",
                "organisation_id": str(ORGANISATION),
                "chapter_id": str(CHAPTER_A),
                "name": "certificates",
                "params": {"days_before": [30]},
                "title_key": "t",
                "body_key": "b",
            }
        ]
    )
    columns = "scenario_type, organisation_id, chapter_id, name, params, title_key, body_key"
    record = (
        "json_to_recordset(%s) as r (scenario_type text, organisation_id uuid, chapter_id uuid, name text, "
        "params jsonb, title_key text, body_key text)"
    )
    with db.transaction(force_rollback=True), acting_as(db, "authenticated", COORDINATOR_A):
        made = db.execute(
            f'with source as (insert into "herald"."scenario" ({columns}) select {columns} from {record} '
            'returning "herald"."scenario".*) select count(*), json_agg(source) from source',
            (payload,),
        ).fetchone()
        assert made is not None
        assert made[0] == 1
        row = made[1][0]
        assert row["cooldown"] == "7 days"
        upserted = db.execute(
            f'with source as (insert into "herald"."scenario" ({columns}) select {columns} from {record} '
            "on conflict (scenario_id) do update set name = excluded.name "
            'returning "herald"."scenario".*) select count(*) from source',
            (payload,),
        ).fetchone()
        assert upserted == (1,)
        patched = db.execute(
            'with source as (update "herald"."scenario" set "mode" = b.mode from (select mode from json_to_record(%s) '
            'as b (mode text)) as b where "herald"."scenario"."scenario_id" = %s returning "herald"."scenario".*) '
            "select count(*) from source",
            ('{"mode": "shadow"}', row["scenario_id"]),
        ).fetchone()
        assert patched == (1,)
        gone = db.execute(
            'with source as (delete from "herald"."scenario" where "herald"."scenario"."scenario_id" = %s '
            'returning "herald"."scenario"."scenario_id") select count(*) from source',
            (row["scenario_id"],),
        ).fetchone()
        assert gone == (1,)


def test_a_bad_scenario_is_refused_with_words_that_tell_nothing_of_others(db: psycopg.Connection) -> None:
    bad = {"params": """'{"counts": []}'"""}
    with db.transaction(force_rollback=True), acting_as(db, "authenticated", COORDINATOR_A):
        own = answer(db, insert(ORGANISATION, CHAPTER_A, **bad))
        others = answer(db, insert(ORGANISATION, CHAPTER_B, **bad))
        unknown = answer(db, insert(ORGANISATION, NOBODY, **bad))
    assert 'parameter "counts" must be a list' in own
    assert own == others == unknown


#: Everything that a person or coordinator of chapter A can ask: (as whom, statement, values).
QUESTIONS: Final[list[tuple[UUID, str, tuple[object, ...]]]] = [
    (COORDINATOR_A, "select * from herald.scenario order by scenario_id", ()),
    (COORDINATOR_A, "select count(*) from herald.scenario", ()),
    (COORDINATOR_A, "select * from herald.scenario_type order by scenario_type", ()),
    (COORDINATOR_A, "select * from herald.my_scopes() order by 1, 2", ()),
    (COORDINATOR_A, "select * from herald.my_chapters() order by 1", ()),
    (COORDINATOR_A, "select * from herald.my_organisations()", ()),
    *(
        (COORDINATOR_A, query, (scenario,))
        for scenario in (SCENARIO_A, SCENARIO_ALL, SCENARIO_B, SCENARIO_C, NOBODY)
        for query in (
            "select herald.describe(%s)",
            "select herald.describe(%s, 'nb')",
            f"select * from herald.preview(%s::uuid, '{NOW}', '60 days')",
            f"select * from herald.backtest(%s, '{NOW}'::timestamptz - interval '60 days', '{NOW}')",
            "update herald.scenario set name = name where scenario_id = %s",
            "delete from herald.scenario where scenario_id = %s",
            "select herald.enqueue(%s, null, null)",
        )
    ),
    *(
        (
            COORDINATOR_A,
            f"select * from {function}",
            (
                json.dumps(
                    {
                        "scenario_type": "inactivity",
                        "organisation_id": str(ORGANISATION),
                        "chapter_id": None if chapter is None else str(chapter),
                        "name": "draft",
                        "params": {"days": 30},
                    }
                ),
            ),
        )
        for chapter in (CHAPTER_A, CHAPTER_B, None, NOBODY)
        for function in (
            f"herald.preview(%s::jsonb, '{NOW}', '60 days')",
            "herald.describe_definition(%s::jsonb)",
            f"herald.backtest_definition(%s::jsonb, '{NOW}'::timestamptz - interval '60 days', '{NOW}')",
        )
    ),
    *(
        (COORDINATOR_A, f"select * from herald.explain(%s, '{kind}', '{NOW}')", (person,))
        for person in (A1, A2, B1, B2, NOBODY)
        for kind in ("inactivity", "expiry")
    ),
    *((COORDINATOR_A, insert(o, c), ()) for o, c in PLACES.values()),
    *(
        (A1, query, values)
        for query, values in (
            ("select * from herald.notification_content(%s)", (NOTIFICATION_A1,)),
            ("select * from herald.notification_content(%s)", (NOTIFICATION_B1,)),
            ("select herald.mark_opened(%s)", (NOTIFICATION_B1,)),
            ("select herald.register_device_token(%s, 'ios')", (TOKEN_B1,)),
            ("select herald.register_device_token('new', 'ios', %s)", (TOKEN_B1,)),
            ("select herald.unregister_device_token(%s)", (TOKEN_B1,)),
            ("select herald.set_opt_out('expiry', true)", ()),
            ("select * from herald.scenario", ()),
            (f"select * from herald.explain(%s, 'inactivity', '{NOW}')", (A1,)),
            (f"select * from herald.explain(%s, 'inactivity', '{NOW}')", (B1,)),
        )
    ),
]


def answers(db: psycopg.Connection, questions: Sequence[tuple[UUID, str, tuple[object, ...]]] = QUESTIONS) -> list[str]:
    found = []
    for person, query, values in questions:
        with db.transaction(force_rollback=True), acting_as(db, "authenticated", person):
            found.append(answer(db, query, values))
    return found


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
        for existing in (SCENARIO_B, SCENARIO_C, B1, B2):
            unknown = by_question.get((person, query, tuple(NOBODY if v == existing else v for v in values)))
            if existing in values and unknown is not None and person == COORDINATOR_A:
                assert text.replace(str(existing), str(NOBODY)) == unknown
                compared += 1
    assert compared >= 14


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


def test_policies_ask_once_a_statement_and_find_rows_by_index(db: psycopg.Connection) -> None:
    db.execute("set local enable_seqscan = off")
    with acting_as(db, "authenticated", COORDINATOR_A):
        for statement in (
            "select * from herald.scenario",
            "update herald.scenario set name = name",
            "delete from herald.scenario",
        ):
            plan = "\n".join(line for (line,) in db.execute(f"explain {statement}"))
            assert "InitPlan" in plan
            assert "scenario_chapter" in plan
            assert "Seq Scan on scenario" not in plan
