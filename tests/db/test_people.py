"""The functions for phones: each on the caller's own rows only, whatever races, and telling nothing of anybody else."""

from __future__ import annotations

import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support import two_chapters as world
from tests.support.postgres import wait_until_blocked
from tests.support.two_chapters import (
    A1,
    A2,
    B1,
    NOTIFICATION_A1,
    NOTIFICATION_B1,
    TOKEN_A1,
    TOKEN_B1,
    acting_as,
    answer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.postgres import Database

UNKNOWN: Final = UUID("00000000-0000-4000-8000-00000000dead")

NO_TOKEN: Final = "('22023', 'this is not a device token', None, "
NO_PLATFORM: Final = "('22023', 'unknown platform', None, \"pass 'ios', 'android' or 'web'\""
NO_TYPE: Final = "('22023', 'unknown scenario type', None, 'pass a scenario type, or null for everything'"
NO_ID: Final = "('22023', 'p_notification_id is missing', None, 'pass notification_id from the data of the push'"

BAD_TOKENS: Final = (
    *(None, "", " ", "two words", "line\nbreak", "tab\t", "control\x01", "tøken", "🙂"),
    *("x" * 2001, "x" * 100_000),
)
REFUSED: Final[list[tuple[str, tuple[object, ...], str]]] = [
    *(("select herald.register_device_token(%s, 'ios')", (bad,), NO_TOKEN) for bad in BAD_TOKENS),
    *(("select herald.register_device_token('good', 'ios', %s)", (bad,), NO_TOKEN) for bad in BAD_TOKENS[1:]),
    *(("select herald.unregister_device_token(%s)", (bad,), NO_TOKEN) for bad in BAD_TOKENS),
    *(
        ("select herald.register_device_token('good', %s)", (bad,), NO_PLATFORM)
        for bad in (None, "", "iOS", "windows", "ios ", "x" * 10_000)
    ),
    *(
        ("select herald.set_opt_out(%s, true)", (bad,), NO_TYPE)
        for bad in ("", "nonsense", "x" * 10_000, "inactivity ")
    ),
    ("select herald.set_opt_out('inactivity', null)", (), "('22023', 'p_opted_out must be true or false'"),
    ("select * from herald.notification_content(null)", (), NO_ID),
    ("select herald.mark_opened(null)", (), NO_ID),
]

FIVE: Final = (
    ("select herald.register_device_token(%s, 'ios')", (TOKEN_A1, TOKEN_B1, "unknown")),
    ("select herald.register_device_token('new', 'ios', %s)", (TOKEN_A1, TOKEN_B1, "unknown")),
    ("select herald.unregister_device_token(%s)", (TOKEN_A1, TOKEN_B1, "unknown")),
    ("select herald.set_opt_out(%s, true)", ("expiry", "inactivity")),
    ("select * from herald.notification_content(%s)", (NOTIFICATION_A1, NOTIFICATION_B1, UNKNOWN)),
    ("select herald.mark_opened(%s)", (NOTIFICATION_A1, NOTIFICATION_B1, UNKNOWN)),
)


@pytest.fixture
def db(database: Database) -> psycopg.Connection:
    connection = database.connect()
    world.populate(connection)
    return connection


def ask(db: psycopg.Connection, person: object, query: str, values: tuple[object, ...] = ()) -> str:
    with db.transaction(force_rollback=True), acting_as(db, "authenticated", person):
        return answer(db, query, values)


def everything(db: psycopg.Connection) -> list[object]:
    return [
        db.execute(f"select * from herald.{table} order by 1, 2").fetchall()
        for table in ("device_token", "opt_out", "scenario_notification", "prompt")
    ]


def devices(db: psycopg.Connection, person: UUID) -> dict[str, tuple[str, str]]:
    rows = db.execute(
        "select token, platform, kind from herald.device_token where user_id = %s and revoked_at is null", (person,)
    )
    return {token: (platform, kind) for token, platform, kind in rows}


def register(connection: psycopg.Connection, token: str, replaces: str | None = None) -> None:
    connection.execute("select herald.register_device_token(%s, 'android', %s)", (token, replaces))


def test_null_empty_over_long_and_malformed_values_are_refused_and_not_repeated(db: psycopg.Connection) -> None:
    before = everything(db)
    for query, values, refusal in REFUSED:
        with db.transaction(), acting_as(db, "authenticated", A1):
            text = answer(db, query, values)
        assert text.startswith(refusal), (query, values)
        for value in values:
            assert not value or not str(value).strip() or len(str(value)) < 3 or str(value) not in text
    assert everything(db) == before


UNSIGNED: Final = "('28000', 'this call needs a signed-in person', None, "
MALFORMED: Final = "('28000', 'the claims of this request are malformed', None, "
BAD_CLAIMS: Final[list[tuple[object, str]]] = [
    (None, UNSIGNED),
    ({}, UNSIGNED),
    ({"sub": None}, UNSIGNED),
    ({"sub": ""}, MALFORMED),
    ({"sub": "me"}, MALFORMED),
    ({"sub": {"sub": str(A1)}}, MALFORMED),
    ({"sub": str(A1) * 1000}, MALFORMED),
    ([str(A1)], MALFORMED),
    (str(A1), MALFORMED),
    ('{"sub": "\\u0000"}', MALFORMED),
    ("{", MALFORMED),
]


def test_without_good_claims_every_function_gives_the_same_refusal_whatever_exists(db: psycopg.Connection) -> None:
    before = everything(db)
    for claims, refusal in BAD_CLAIMS:
        for query, values in FIVE:
            texts = {ask(db, claims, query, (value,)) for value in values}
            assert len(texts) == 1, (query, claims)
            assert texts.pop().startswith(refusal), (query, claims)
    assert everything(db) == before


def test_what_is_somebody_elses_is_answered_as_what_does_not_exist(db: psycopg.Connection) -> None:
    for query, values in FIVE:
        if len(values) == 3:
            _, other, unknown = (ask(db, A1, query, (value,)) for value in values)
            assert other == unknown, query
    for query, _ in FIVE[:3]:
        assert ask(db, A1, query, (TOKEN_A1,)) == ask(db, A1, query, (TOKEN_B1,)) == "(1, [('',)])"


def test_the_answer_takes_as_long_whether_it_exists_or_not(db: psycopg.Connection) -> None:
    def median_ratio(query: str, other: object, unknown: object) -> float:
        taken: dict[object, list[float]] = {other: [], unknown: []}
        with db.transaction(force_rollback=True), acting_as(db, "authenticated", A1):
            for i in range(120):
                value = (other, unknown)[i % 2]
                with db.transaction(force_rollback=True):
                    began = time.perf_counter()
                    db.execute(query, (value,))
                    taken[value].append(time.perf_counter() - began)
        return statistics.median(taken[other]) / statistics.median(taken[unknown])

    for query, values in FIVE:
        if len(values) == 3:
            ratios = [median_ratio(query, *values[1:]) for _ in range(3)]
            assert any(1 / 3 < ratio < 3 for ratio in ratios), (query, ratios)


def test_a_new_token_replaces_the_stale_one_in_one_transaction(database: Database, db: psycopg.Connection) -> None:
    phone = database.connect_as_person(A1)
    with phone.transaction():
        register(phone, "fresh", TOKEN_A1)
        assert set(devices(db, A1)) == {TOKEN_A1}, "others see the old one until it is over, never none and never both"
    assert set(devices(db, A1)) == {"fresh"}
    register(phone, "fresh", TOKEN_A1)
    register(phone, "fresh", "fresh")
    register(phone, "fresh")
    assert set(devices(db, A1)) == {"fresh"}


def test_a_failed_rotation_leaves_the_old_token(database: Database, db: psycopg.Connection) -> None:
    phone = database.connect_as_person(A1)
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        phone.execute("select herald.register_device_token('fresh', 'fax', %s)", (TOKEN_A1,))
    assert set(devices(db, A1)) == {TOKEN_A1}


def test_a_token_that_moves_to_another_person_leaves_the_first(database: Database, db: psycopg.Connection) -> None:
    register(database.connect_as_person(A2), TOKEN_A1)
    assert TOKEN_A1 not in devices(db, A1)
    assert TOKEN_A1 in devices(db, A2)
    database.connect_as_person(A1).execute("select herald.unregister_device_token(%s)", (TOKEN_A1,))
    assert TOKEN_A1 in devices(db, A2), "it is no longer the first person's to remove"


def test_nobody_can_remove_a_token_of_somebody_else(database: Database, db: psycopg.Connection) -> None:
    phone = database.connect_as_person(A1)
    phone.execute("select herald.unregister_device_token(%s)", (TOKEN_B1,))
    register(phone, "fresh", TOKEN_B1)
    assert set(devices(db, B1)) == {TOKEN_B1}


def test_a_revoked_token_that_registers_again_is_live_again(database: Database, db: psycopg.Connection) -> None:
    db.execute("update herald.device_token set revoked_at = now(), revoked_reason = 'UNREGISTERED'")
    assert devices(db, A1) == {}
    register(database.connect_as_person(A1), TOKEN_A1)
    assert set(devices(db, A1)) == {TOKEN_A1}


def test_installation_ids_are_told_from_registration_tokens(database: Database, db: psycopg.Connection) -> None:
    phone = database.connect_as_person(A2)
    fid = "cXyZ0123456789abcDEF-_"
    other = "my-phone-in-the-pocket"
    for token in (fid, fid + ":APA91b" + "x" * 140, fid[:-1], other):
        register(phone, token)
    kinds = {token: kind for token, (_, kind) in devices(db, A2).items() if not token.startswith("token-of")}
    assert kinds == {fid: "fid", fid + ":APA91b" + "x" * 140: "token", fid[:-1]: "token", other: "token"}


def test_a_person_keeps_twenty_devices_the_last_seen(database: Database, db: psycopg.Connection) -> None:
    phone = database.connect_as_person(A1)
    for i in range(25):
        register(phone, f"device-{i}")
    assert set(devices(db, A1)) == {f"device-{i}" for i in range(5, 25)}
    assert set(devices(db, B1)) == {TOKEN_B1}


def test_a_first_device_has_the_person_looked_at_again(database: Database, db: psycopg.Connection) -> None:
    register(database.connect_as_person(A1), "second")
    assert db.execute("select user_id from herald.touched_user").fetchall() == []
    newcomer = uuid4()
    register(database.connect_as_person(newcomer), "first")
    assert db.execute("select user_id from herald.touched_user").fetchall() == [(newcomer,)]


def race(
    first: psycopg.Connection, second: psycopg.Connection, observer: psycopg.Connection, *calls: Callable[[], object]
) -> None:
    """The first call, not yet committed; the second one, until it waits for the first; then both end."""
    with ThreadPoolExecutor(1) as pool:
        with first.transaction():
            calls[0]()
            later = pool.submit(calls[1])
            wait_until_blocked(observer, second.info.backend_pid)
        later.result(60)


def test_two_people_who_register_the_same_token_end_with_one_row(database: Database, db: psycopg.Connection) -> None:
    one, two = database.connect_as_person(A1), database.connect_as_person(B1)
    race(one, two, db, lambda: register(one, "shared"), lambda: register(two, "shared"))
    assert "shared" not in devices(db, A1)
    assert "shared" in devices(db, B1)


def test_two_phones_that_swap_tokens_end_one_after_the_other(database: Database, db: psycopg.Connection) -> None:
    one, two = database.connect_as_person(A1), database.connect_as_person(B1)
    race(one, two, db, lambda: register(one, TOKEN_B1, TOKEN_A1), lambda: register(two, TOKEN_A1, TOKEN_B1))
    found = db.execute(
        "select user_id, token from herald.device_token where token in (%s, %s)", (TOKEN_A1, TOKEN_B1)
    ).fetchall()
    assert (B1, TOKEN_A1) in found
    assert len({token for _, token in found}) == len(found)


def test_two_rotations_of_one_phone_leave_one_token(database: Database, db: psycopg.Connection) -> None:
    one, two = database.connect_as_person(A1), database.connect_as_person(A1)
    race(one, two, db, lambda: register(one, "fresh", TOKEN_A1), lambda: register(two, "fresh", TOKEN_A1))
    assert set(devices(db, A1)) == {"fresh"}


def test_a_device_that_registers_while_it_is_revoked_stays(database: Database, db: psycopg.Connection) -> None:
    phone, daemon = database.connect_as_person(A1), database.connect("herald_daemon")
    row = db.execute("select id, last_seen_at from herald.device_token where token = %s", (TOKEN_A1,)).fetchone()
    assert row is not None
    revoked: list[object] = []
    race(
        phone,
        daemon,
        db,
        lambda: register(phone, TOKEN_A1),
        lambda: revoked.extend(
            daemon.execute("select * from herald.revoke_devices(%s, %s, '{UNREGISTERED}')", ([row[0]], [row[1]]))
        ),
    )
    assert revoked == [], "the row changed since FCM was asked"
    assert TOKEN_A1 in devices(db, A1)


def test_phones_and_daemon_at_once_never_deadlock(database: Database, db: psycopg.Connection) -> None:
    tokens = [f"t{i}" for i in range(5)]
    people = [A1, A2, B1]

    def phone(seed: int) -> None:
        choose = random.Random(seed)
        connection = database.connect_as_person(people[seed % 3])
        for _ in range(60):
            match choose.randrange(4):
                case 0:
                    connection.execute("select herald.unregister_device_token(%s)", (choose.choice(tokens),))
                case _:
                    register(connection, choose.choice(tokens), choose.choice([None, *tokens]))

    def daemon(seed: int) -> None:
        connection = database.connect("herald_daemon")
        for _ in range(60):
            rows = db_rows(connection)
            connection.execute(
                "select * from herald.revoke_devices(%s, %s, %s)",
                ([r[0] for r in rows], [r[1] for r in rows], ["UNREGISTERED"] * len(rows)),
            )
            connection.execute("select herald.maintain_batch(now() + interval '271 days', 100)")

    def db_rows(connection: psycopg.Connection) -> list[tuple[UUID, object]]:
        with database.connect() as other:
            rows = other.execute("select id, last_seen_at from herald.device_token").fetchall()
        random.shuffle(rows)
        return rows

    with ThreadPoolExecutor(6) as pool:
        for done in [*(pool.submit(phone, seed) for seed in range(5)), pool.submit(daemon, 0)]:
            done.result(60)
    twice = db.execute("select token from herald.device_token group by token having count(*) > 1")
    assert twice.fetchall() == []


# --- opt-outs ------------------------------------------------------------------------------------------------------


def test_people_opt_out_and_in_again_of_one_type_or_of_everything(database: Database, db: psycopg.Connection) -> None:
    def opted_out() -> set[str | None]:
        return {t for (t,) in db.execute("select scenario_type from herald.opt_out where user_id = %s", (A2,))}

    phone = database.connect_as_person(A2)
    for scenario_type, out, left in (
        ("inactivity", True, {"inactivity"}),
        ("inactivity", True, {"inactivity"}),
        (None, True, {"inactivity", None}),
        (None, True, {"inactivity", None}),
        ("inactivity", False, {None}),
        (None, False, set()),
        (None, False, set()),
    ):
        phone.execute("select herald.set_opt_out(%s, %s)", (scenario_type, out))
        assert opted_out() == left
    others = db.execute("select user_id, scenario_type from herald.opt_out order by 1").fetchall()
    assert others == [(A1, "expiry"), (B1, "expiry")]


def content(database: Database, person: UUID, notification: UUID) -> list[tuple[str, str]]:
    rows = database.connect_as_person(person).execute(
        "select title, body from herald.notification_content(%s)", (notification,)
    )
    return rows.fetchall()


def test_content_is_of_ones_own_push_in_ones_own_locale(database: Database, db: psycopg.Connection) -> None:
    assert content(database, A1, NOTIFICATION_A1) == [("Hei", "How are you?")]
    assert content(database, A1, NOTIFICATION_B1) == []
    assert content(database, A1, UNKNOWN) == []
    assert content(database, B1, NOTIFICATION_B1) == [("Hei", "How are you?")]
    titles = {"nb": "Hei", "nb_NO": "Hei", "NB-no": "Hei", "en-GB": "Hello", "fr": "Hello", "": "Hello"}
    titles |= {"no": "Hei", "nn-NO": "Hei", "no_NO": "Hei"}  # as herald.describe has it
    for locale, title in titles.items():
        db.execute("update app.peer_mentor set locale = %s where user_id = %s", (locale, A1))
        assert content(database, A1, NOTIFICATION_A1) == [(title, "How are you?")], locale
    db.execute("insert into herald.message_text values ('greeting_title', 'nb-NO', 'Heisann')")
    db.execute("update app.peer_mentor set locale = 'nb-NO' where user_id = %s", (A1,))
    assert content(database, A1, NOTIFICATION_A1) == [("Heisann", "How are you?")]


def test_content_falls_back_to_the_keys_and_survives_its_scenario(database: Database, db: psycopg.Connection) -> None:
    db.execute("delete from herald.message_text")
    assert content(database, A1, NOTIFICATION_A1) == [("greeting_title", "greeting_body")]
    db.execute("delete from herald.prompt")
    db.execute("delete from herald.scenario")
    assert content(database, A1, NOTIFICATION_A1) == [("inactivity_title", "inactivity_body")]
    db.execute("delete from app.activity")
    db.execute("delete from app.peer_mentor")
    assert content(database, A1, NOTIFICATION_A1) == [("inactivity_title", "inactivity_body")]


def test_content_is_there_before_the_record_and_of_what_may_have_arrived(
    database: Database, db: psycopg.Connection
) -> None:
    db.execute("delete from herald.scenario_notification")
    for status, text in (
        ("ready", []),
        ("sending", [("Hei", "How are you?")]),
        ("unknown", [("Hei", "How are you?")]),
        ("ready", [("Hei", "How are you?")]),  # with on_unknown = 'resend'
        ("failed", []),
    ):
        db.execute(
            "update herald.prompt set status = %s, owner = 't', claimed_at = now(), deadline = now(), "
            "attempts = attempts + (%s = 'sending')::integer",
            (status, status),
        )
        assert content(database, A1, NOTIFICATION_A1) == text, status
        assert content(database, B1, NOTIFICATION_A1) == [], status


def test_content_is_told_once_while_a_second_copy_is_on_its_way(database: Database, db: psycopg.Connection) -> None:
    db.execute(
        "update herald.prompt set status = 'sending', owner = 't', claimed_at = now(), deadline = now(), attempts = 2"
    )
    assert content(database, A1, NOTIFICATION_A1) == [("Hei", "How are you?")]


def test_a_push_is_marked_opened_once_and_by_its_person_only(database: Database, db: psycopg.Connection) -> None:
    def opened() -> list[object]:
        return [row[0] for row in db.execute("select opened_at from herald.scenario_notification order by id desc")]

    database.connect_as_person(B1).execute("select herald.mark_opened(%s)", (NOTIFICATION_A1,))
    assert opened() == [None, None]
    one, two = database.connect_as_person(A1), database.connect_as_person(A1)
    mark = "select herald.mark_opened(%s)"
    race(one, two, db, lambda: one.execute(mark, (NOTIFICATION_A1,)), lambda: two.execute(mark, (NOTIFICATION_A1,)))
    first = opened()
    assert sum(at is not None for at in first) == 1
    one.execute(mark, (NOTIFICATION_A1,))
    assert opened() == first
