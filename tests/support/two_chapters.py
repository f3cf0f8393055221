"""Two chapters of one organisation and a third of another, with everything that pgherald keeps of their people.

For tests of who may see what: every id and every moment is fixed, so that two answers can be compared to the byte.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from uuid import UUID

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from tests.support.postgres import Database

#: The moment at which everything is asked, by parameter.
NOW: Final = "2026-06-15 12:00:00+00"

ORGANISATION: Final = UUID("00000000-0000-4000-8000-00000000a000")
OTHER_ORGANISATION: Final = UUID("00000000-0000-4000-8000-00000000c000")
CHAPTER_A: Final = UUID("00000000-0000-4000-8000-00000000000a")
CHAPTER_B: Final = UUID("00000000-0000-4000-8000-00000000000b")
CHAPTER_C: Final = UUID("00000000-0000-4000-8000-00000000000c")
#: A chapter without people, coordinated by A's coordinator too.
CHAPTER_EMPTY: Final = UUID("00000000-0000-4000-8000-00000000000e")

COORDINATOR_A: Final = UUID("00000000-0000-4000-8000-0000000a00c0")
COORDINATOR_B: Final = UUID("00000000-0000-4000-8000-0000000b00c0")
A1: Final = UUID("00000000-0000-4000-8000-0000000a0001")
A2: Final = UUID("00000000-0000-4000-8000-0000000a0002")
B1: Final = UUID("00000000-0000-4000-8000-0000000b0001")
B2: Final = UUID("00000000-0000-4000-8000-0000000b0002")
C1: Final = UUID("00000000-0000-4000-8000-0000000c0001")
NOBODY: Final = UUID("00000000-0000-4000-8000-0000000f0001")

SCENARIO_A: Final = UUID("00000000-0000-4000-8000-0000000a5000")
SCENARIO_B: Final = UUID("00000000-0000-4000-8000-0000000b5000")
SCENARIO_ALL: Final = UUID("00000000-0000-4000-8000-000000a15000")
SCENARIO_C: Final = UUID("00000000-0000-4000-8000-0000000c5000")
SCENARIO_OTHER_ALL: Final = UUID("00000000-0000-4000-8000-000000c15000")

NOTIFICATION_A1: Final = UUID("00000000-0000-4000-8000-0000000a1e00")
NOTIFICATION_B1: Final = UUID("00000000-0000-4000-8000-0000000b1e00")

TOKEN_A1: Final = "token-of-a1"
TOKEN_B1: Final = "token-of-b1"

PLACES: Final = {
    "own chapter": (ORGANISATION, CHAPTER_A),
    "own chapter without people": (ORGANISATION, CHAPTER_EMPTY),
    "other chapter": (ORGANISATION, CHAPTER_B),
    "whole organisation": (ORGANISATION, None),
    "own chapter, other organisation": (OTHER_ORGANISATION, CHAPTER_A),
    "other organisation": (OTHER_ORGANISATION, CHAPTER_C),
    "unknown chapter": (ORGANISATION, NOBODY),
}

#: What a coordinator may set on a scenario, with a value to insert.
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

_PEOPLE: Final = ((A1, CHAPTER_A), (A2, CHAPTER_A), (B1, CHAPTER_B), (B2, CHAPTER_B), (C1, CHAPTER_C))


def populate(db: psycopg.Connection) -> None:
    """Fill a migrated database, as a superuser."""
    db.execute(
        """
        insert into app.organisation values (%(o)s, 'one'), (%(p)s, 'other');
        insert into app.chapter values
          (%(a)s, %(o)s, 'A'), (%(b)s, %(o)s, 'B'), (%(e)s, %(o)s, 'E'), (%(c)s, %(p)s, 'C');
        insert into app.coordinator values (%(ca)s, %(a)s), (%(ca)s, %(e)s), (%(cb)s, %(b)s)
        """
        % {
            key: f"'{value}'"
            for key, value in {
                "o": ORGANISATION,
                "p": OTHER_ORGANISATION,
                "a": CHAPTER_A,
                "b": CHAPTER_B,
                "c": CHAPTER_C,
                "e": CHAPTER_EMPTY,
                "ca": COORDINATOR_A,
                "cb": COORDINATOR_B,
            }.items()
        }
    )
    for person, chapter in _PEOPLE:
        add_person(db, person, chapter)
    _scenario(db, SCENARIO_A, ORGANISATION, CHAPTER_A)
    _scenario(db, SCENARIO_B, ORGANISATION, CHAPTER_B)
    _scenario(db, SCENARIO_ALL, ORGANISATION, None)
    _scenario(db, SCENARIO_C, OTHER_ORGANISATION, CHAPTER_C)
    _scenario(db, SCENARIO_OTHER_ALL, OTHER_ORGANISATION, None)
    db.execute(
        "insert into herald.message_text values ('greeting_title', 'en', 'Hello'), ('greeting_title', 'nb', 'Hei'), "
        "('greeting_body', 'en', 'How are you?')"
    )
    for notification, person, scenario, token in (
        (NOTIFICATION_A1, A1, SCENARIO_A, TOKEN_A1),
        (NOTIFICATION_B1, B1, SCENARIO_B, TOKEN_B1),
    ):
        db.execute("update herald.device_token set token = %s where user_id = %s", (token, person))
        db.execute(
            """
            with p as (
              insert into herald.prompt (prompt_id, scenario_id, scenario_type, user_id, activity_ref, due_at,
                evaluation_date, idempotency_key, cooldown_window_start, status, not_before, notification_id,
                created_at, settled_at)
              values (%(n)s, %(s)s, 'inactivity', %(u)s, 'registered', '2026-05-01', '2026-05-01',
                herald.idempotency_key(%(u)s, 'inactivity', '2026-05-01'), '2026-05-01', 'sent', '2026-05-01', %(n)s,
                '2026-05-01', '2026-05-01')
              returning *
            ), n as (
              insert into herald.scenario_notification (id, user_id, scenario_type, scenario_id, dispatched_at,
                idempotency_key, cooldown_window_start, prompt_id, activity_ref, message_name)
              select p.notification_id, p.user_id, p.scenario_type, p.scenario_id, p.due_at, p.idempotency_key,
                p.cooldown_window_start, p.prompt_id, p.activity_ref, 'name'
              from p
            ), h as (
              insert into herald.scenario_prompt_history
                (prompt_id, scenario_id, peer_mentor_id, dispatched_at, delivery_status)
              select p.prompt_id, p.scenario_id, p.user_id, p.due_at, 'dispatched' from p
            )
            insert into herald.evaluation_run
              (scenario_id, source, started_at, evaluated, candidates, prompts, duration)
            values (%(s)s, 'schedule', '2026-05-01', '(2026-04-30,2026-05-01]', 1, 1, '1 ms')
            """,
            {"n": notification, "u": person, "s": scenario},
        )
        db.execute("insert into herald.opt_out values (%s, 'expiry', '2026-05-02')", (person,))
    db.execute("delete from herald.touched_user")


def healthy(database: Database) -> psycopg.Connection:
    """A superuser's connection to a database where all is well: populated, and evaluated just now."""
    db = database.connect()
    populate(db)
    db.execute("select * from herald.evaluate()")
    return db


def add_person(db: psycopg.Connection, person: UUID, chapter: UUID) -> None:
    """A person, active, quiet for long, with a device."""
    db.execute(
        "insert into app.peer_mentor (user_id, chapter_id, locale, time_zone, registered_at) "
        "values (%s, %s, 'nb-NO', 'Europe/Oslo', '2025-01-01')",
        (person, chapter),
    )
    db.execute(
        "insert into app.activity (id, user_id, activity_type, occurred_at, flags) "
        "values (%s, %s, 'contact', '2026-05-14 12:00+00', '{wellbeing_concern}')",
        (person, person),
    )
    db.execute(
        "insert into herald.device_token (user_id, token, platform, registered_at, last_seen_at) "
        "values (%s, 'token-of-' || %s, 'ios', '2026-01-01', '2026-06-01')",
        (person, str(person)),
    )


def _scenario(db: psycopg.Connection, scenario: UUID, organisation: UUID, chapter: UUID | None) -> None:
    db.execute(
        "insert into herald.scenario (scenario_id, scenario_type, organisation_id, chapter_id, name, params, "
        "title_key, body_key, evaluated_through) "
        "values (%s, 'inactivity', %s, %s, 'quiet', %s, 'greeting_title', 'greeting_body', '2026-01-01')",
        (scenario, organisation, chapter, '{"days": 30}'),
    )
    db.execute(
        "update herald.scenario set started_at = '2026-01-01', created_at = '2026-01-01' where scenario_id = %s",
        (scenario,),
    )


def insert(organisation: UUID, chapter: UUID | None, **more: str) -> str:
    """A statement that makes a scenario; `more`: other columns or other values."""
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


@contextmanager
def acting_as(db: psycopg.Connection, role: str, claims: object = None) -> Iterator[None]:
    """Inside a transaction of a superuser's connection: be `role` with these claims (a person's id, or anything)."""
    if isinstance(claims, UUID):
        claims = {"sub": str(claims), "role": role}
    text = claims if isinstance(claims, str) else "" if claims is None else json.dumps(claims)
    db.execute("select pg_catalog.set_config('request.jwt.claims', %s, true)", (text,))
    db.execute(f"set local role {role}")
    try:
        yield
    finally:
        if db.info.transaction_status.name == "INTRANS":
            db.execute("reset role")


def answer(db: psycopg.Connection, query: str, values: Sequence[Any] = ()) -> str:
    """What a statement answers, in full: rows and count, or the error with every part that a client of the API gets."""
    try:
        with db.transaction():
            return _in_full(db.execute(query, values))
    except psycopg.Error as error:
        return _error_in_full(error)


def answer_as(db: psycopg.Connection, person: UUID, query: str, values: Sequence[Any] = ()) -> str:
    """The same to a person, inside a transaction, with nothing of it left: in as few round trips as there can be."""
    claims = sql.Literal(json.dumps({"sub": str(person), "role": "authenticated"}))
    db.execute(
        sql.SQL(
            "savepoint question; select pg_catalog.set_config('request.jwt.claims', {}, true); "
            "set local role authenticated"
        ).format(claims)
    )
    try:
        return _in_full(db.execute(query, values))
    except psycopg.Error as error:
        return _error_in_full(error)
    finally:
        db.execute("rollback to savepoint question; release savepoint question")


def _in_full(cursor: psycopg.Cursor) -> str:
    return repr((cursor.rowcount, cursor.fetchall() if cursor.description else []))


def _error_in_full(error: psycopg.Error) -> str:
    d = error.diag
    return repr(
        (
            error.sqlstate,
            d.message_primary,
            d.message_detail,
            d.message_hint,
            d.schema_name,
            d.table_name,
            d.column_name,
            d.constraint_name,
            d.datatype_name,
        )
    )
