"""Who may do what: every role, relation, command and kind of claim, generated.

A statement that is not named below as allowed must be refused for want of a right, whoever the claims say is asking.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import psycopg
import pytest

from tests.support.two_chapters import (
    A1,
    CHAPTER_A,
    CHAPTER_B,
    COLUMNS,
    COORDINATOR_A,
    COORDINATOR_B,
    NOBODY,
    ORGANISATION,
    PLACES,
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
    from collections.abc import Iterator
    from uuid import UUID


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


@pytest.fixture
def db(populated: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """Two chapters, inside a transaction that is rolled back after the test."""
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


#: The engine's own, and the key.
CLOSED: Final = (
    "scenario_id",
    "evaluated_through",
    "evaluated_from",
    "started_at",
    "paused_at",
    "created_at",
)
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
    for scenario in (SCENARIO_A, SCENARIO_B, SCENARIO_ALL, SCENARIO_C, SCENARIO_OTHER_ALL, NOBODY):
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
