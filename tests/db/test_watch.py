"""The event path inside the database: watched tables hand their people over, and the app's writes never fail for it."""

from __future__ import annotations

import threading
from datetime import date
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import psycopg
import pytest

from pgherald.embedded import Cluster
from pgherald.model import idempotency_key
from pgherald.schema import migrate
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from tests.support.postgres import Database


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


def touched(db: psycopg.Connection) -> list[UUID]:
    return sorted(row[0] for row in db.execute("select distinct user_id from herald.touched_user").fetchall())


def forget(db: psycopg.Connection) -> None:
    db.execute("delete from herald.touched_user")


def test_the_key_of_a_decision_is_the_same_in_sql_and_python(db: psycopg.Connection) -> None:
    user, day = UUID("00000000-0000-0000-0000-000000000001"), date(2026, 1, 31)
    row = db.execute("select herald.idempotency_key(%s, 'inactivity', %s)", (user, day)).fetchone()
    assert row == (idempotency_key(user, "inactivity", day),)
    assert row == ("489e63319c9adbb5c76f63d6a314a489319989030e22dad9b5c2379178701d25",)


@pytest.mark.parametrize("table", ["app.activity", "app.assignment", "app.certification"])
def test_insert_update_and_delete_hand_over_whom_they_touch(
    organisation: Organisation, db: psycopg.Connection, table: str
) -> None:
    first, second = organisation.mentor(), organisation.mentor()
    columns = {
        "app.activity": "(user_id, activity_type) values (%s, 'contact')",
        "app.assignment": "(user_id, ends_at) values (%s, now())",
        "app.certification": "(user_id, kind, expires_at) values (%s, 'first_aid', now())",
    }
    forget(db)
    db.execute(f"insert into {table} {columns[table]}", (first,))
    assert touched(db) == [first]
    forget(db)
    db.execute(f"update {table} set user_id = %s", (second,))
    assert touched(db) == sorted([first, second])
    forget(db)
    db.execute(f"delete from {table}")
    assert touched(db) == [second]


def test_a_bulk_insert_hands_each_person_over_once(organisation: Organisation, db: psycopg.Connection) -> None:
    people = organisation.mentors(100)
    forget(db)
    db.execute(
        "insert into app.activity (user_id, activity_type) "
        "select u, 'contact' from unnest(%s::uuid[]) as u, generate_series(1, 200)",
        (people,),
    )
    assert db.execute("select count(*) from herald.touched_user").fetchone() == (100,)


def test_what_is_rolled_back_touches_nobody(organisation: Organisation, db: psycopg.Connection) -> None:
    person = organisation.mentor()
    forget(db)
    with db.transaction(force_rollback=True):
        organisation.activity(person)
    assert touched(db) == []


def test_a_person_column_of_another_name_is_watched_too(database: Database, db: psycopg.Connection) -> None:
    owner = database.connect("migrator")
    owner.execute("create table public.visit (visit_id int, mentor uuid, note text)")
    owner.execute("select herald.watch('public.visit', 'mentor')")
    person, other, third = uuid4(), uuid4(), uuid4()
    owner.execute("insert into public.visit values (1, %s), (2, %s), (3, null)", (person, other))
    assert touched(db) == sorted([person, other])
    forget(db)
    owner.execute("update public.visit set mentor = %s where visit_id = 2", (third,))
    assert touched(db) == sorted([other, third])
    forget(db)
    owner.execute("delete from public.visit where visit_id <> 2")
    assert touched(db) == [person]
    forget(db)
    owner.execute("select herald.unwatch('public.visit')")
    owner.execute("insert into public.visit values (4, %s)", (person,))
    assert touched(db) == []


def test_a_column_that_is_not_there_is_refused_with_a_hint(database: Database) -> None:
    owner = database.connect("migrator")
    with pytest.raises(psycopg.errors.UndefinedColumn, match='no column "nobody" of type uuid') as refused:
        owner.execute("select herald.watch('app.activity', 'nobody')")
    assert refused.value.diag.message_hint == "name the column that holds the person's user_id"


BROKEN = {
    "the table of touched users is gone": "drop table herald.touched_user",
    "a function is gone": "drop function herald.ring()",
    "the engine may not write": "revoke insert on herald.touched_user from herald_owner",
    "the engine may not use its schema": "revoke all on schema herald from herald_owner",
    "a constraint stands in the way": "alter table herald.touched_user add constraint never check (false) not valid",
    "the table is of another shape": "alter table herald.touched_user rename user_id to person",
}


@pytest.mark.parametrize("how", BROKEN)
def test_the_write_of_the_app_goes_through_when(how: str, organisation: Organisation, db: psycopg.Connection) -> None:
    person = organisation.mentor()
    db.execute(BROKEN[how])
    notices: list[str] = []
    db.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    activity = organisation.activity(person)
    assert db.execute("select user_id from app.activity where id = %s", (activity,)).fetchone() == (person,)
    assert any(notice.startswith("pgherald could not note the change of app.activity") for notice in notices)
    assert str(person) not in " ".join(notices)


def test_the_write_of_the_app_goes_through_with_a_broken_evaluator(
    database: Database, organisation: Organisation, db: psycopg.Connection
) -> None:
    scenario_id = organisation.scenario()
    other = organisation.scenario("follow_up", {"activity_type": "contact", "after_days": 0})
    person = organisation.mentor("phone-1")
    db.execute(
        "create or replace function herald.due_milestone(p_scenario herald.scenario, p_window tstzrange, "
        "p_users uuid[] default null) returns setof herald.candidate language plpgsql stable as "
        "$$ begin raise exception 'broken on purpose'; end $$"
    )
    organisation.activity(person, ago="1 second")
    db.execute(
        "update herald.scenario set evaluated_through = now() - interval '1 hour' where scenario_id = %s", (other,)
    )
    found = database.connect("herald_daemon").execute(
        "select scenario_id, prompts, error from herald.evaluate_touched()"
    )
    result = {row[0]: row[1:] for row in found.fetchall()}
    assert result[scenario_id] == (0, "P0001: broken on purpose")
    assert result[other] == (1, None)
    assert db.execute(
        "select catch_up_from is not null from herald.catch_up where scenario_id = %s", (scenario_id,)
    ).fetchone() == (True,)


def test_writers_never_wait_for_one_another(database: Database, organisation: Organisation) -> None:
    person = organisation.mentor()
    with psycopg.connect(database.dsn) as open_one:
        open_one.execute("insert into app.activity (user_id, activity_type) values (%s, 'contact')", (person,))
        done = threading.Event()

        def write() -> None:
            organisation.activity(person)
            done.set()

        threading.Thread(target=write, daemon=True).start()
        assert done.wait(60)


def test_a_full_queue_of_notifications_does_not_fail_the_write() -> None:
    # The smallest queue there is (PostgreSQL 17 and later), a listener that never reads on, and somebody who fills it.
    with Cluster(settings={"max_notify_queue_pages": "64"}) as cluster:
        migrate(cluster.dsn(), with_reference=True)
        with (
            psycopg.connect(cluster.dsn(), autocommit=True) as db,
            psycopg.connect(cluster.dsn()) as listener,
        ):
            organisation = Organisation(db)
            organisation.scenario()
            person = organisation.mentor("phone-1")
            listener.execute("listen herald")
            listener.commit()
            listener.execute("select 1")  # in a transaction: what it has not read stays in the queue
            flooded = False
            for place in range(2000):
                try:
                    db.execute("select pg_notify('flood', %s)", (f"{place}" + "x" * 7000,))
                except psycopg.errors.ProgramLimitExceeded:
                    flooded = True
                    break
            assert flooded
            usage = db.execute("select pg_notification_queue_usage()").fetchone()
            assert usage is not None
            assert usage[0] > 0.9
            organisation.activity(person)
            assert person in touched(db)
            assert db.execute("select prompts from herald.evaluate_touched()").fetchone() == (1,)
