"""herald.open_prompt gone wrong, with the triggers off or gone: that is counted, and mended without losing a push."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgherald import schema
from tests.support.queue import Queue, settle

if TYPE_CHECKING:
    from uuid import UUID

    import psycopg

    from tests.support.postgres import Database


@pytest.fixture
def queue(db: psycopg.Connection) -> Queue:
    return Queue(db)


def spoil(db: psycopg.Connection) -> None:
    db.execute("alter table herald.prompt disable trigger user")
    db.execute("update herald.prompt set status = 'sent', settled_at = now() where activity_ref = '1'")
    db.execute("update herald.prompt set status = 'ready' where activity_ref = '2'")
    db.execute("update herald.prompt set not_before = 'infinity' where activity_ref = '3'")
    db.execute("alter table herald.prompt enable trigger user")


def test_a_queue_that_went_wrong_is_counted_and_mended(queue: Queue, db: psycopg.Connection) -> None:
    for person, ref, status in zip(
        queue.organisation.mentors(4), "1234", ("ready", "failed", "ready", "ready"), strict=True
    ):
        queue.insert(person, ref, status)
    spoil(db)
    assert not queue.is_right()
    found = {name: count for name, count in db.execute("select * from herald.invariants()") if count}
    assert found == {"open_prompt_disagrees": 3}
    db.execute("select herald.mend_open_prompts()")
    assert queue.is_right()
    assert db.execute("select sum(violations) from herald.invariants()").fetchone() == (0,)


def opened_twice(queue: Queue, claimed: tuple[int, ...]) -> list[tuple[UUID, int]]:
    """Two prompts of one person opened while the triggers are off, oldest first, those of `claimed` claimed."""
    (person,) = queue.organisation.mentors(1)
    queue.db.execute("alter table herald.prompt disable trigger user")
    prompts = [queue.insert(person, ref) for ref in "12"]
    for n in claimed:
        queue.db.execute("select herald.claim_prompts('a test', array[%s], '1 minute')", (prompts[n],))
    queue.db.execute("alter table herald.prompt enable trigger user")
    return [(prompt, int(n in claimed)) for n, prompt in enumerate(prompts)]


def states(db: psycopg.Connection, prompts: list[tuple[UUID, int]]) -> list[tuple[str, str | None]]:
    query = "select status, coalesce(gate, error_code) from herald.prompt where prompt_id = %s"
    return [row for prompt, _ in prompts for row in db.execute(query, (prompt,))]


@pytest.mark.parametrize(
    ("claimed", "mended"),
    [
        ((), [("ready", "a test"), ("skipped", "duplicate")]),
        ((1,), [("skipped", "duplicate"), ("sending", None)]),
        ((0, 1), [("sending", None), ("unknown", "OWNER_LOST")]),
    ],
)
@pytest.mark.parametrize("queued", [None, 0, 1])
def test_of_two_open_prompts_of_a_person_and_type_mending_leaves_one_open(
    queue: Queue,
    db: psycopg.Connection,
    claimed: tuple[int, ...],
    mended: list[tuple[str, str | None]],
    queued: int | None,
) -> None:
    prompts = opened_twice(queue, claimed)
    if queued is not None:
        db.execute(
            "insert into herald.open_prompt (user_id, scenario_type, prompt_id, scenario_id, priority, not_before, "
            "deadline) select user_id, scenario_type, prompt_id, scenario_id, priority, not_before, deadline "
            "from herald.prompt where prompt_id = %s",
            prompts[queued][:1],
        )
    db.execute("select herald.mend_open_prompts()")
    assert states(db, prompts) == mended
    assert queue.is_right()
    assert db.execute("select sum(violations) from herald.invariants()").fetchone() == (0,)
    told = db.execute("select delivery_status, error_code from herald.scenario_prompt_history").fetchall()
    assert told == [state for state in mended if state[0] in ("skipped", "unknown")]
    assert db.execute("select herald.mend_open_prompts()").fetchone() == (0,)


@pytest.mark.parametrize(("outcome", "becomes"), [("sent", "sent"), ("retry", "failed"), ("unknown", "unknown")])
def test_what_mending_closed_on_its_way_still_takes_its_owners_answer(
    queue: Queue, db: psycopg.Connection, outcome: str, becomes: str
) -> None:
    prompts = opened_twice(queue, (0, 1))
    db.execute("select herald.mend_open_prompts()")
    settle(db, prompts[1:], outcome)
    assert [status for status, _ in states(db, prompts)] == ["sending", becomes]
    settle(db, prompts[:1], "retry")
    assert [status for status, _ in states(db, prompts)] == ["ready", becomes]
    assert queue.is_right()
    assert db.execute("select sum(violations) from herald.invariants()").fetchone() == (0,)


def test_mending_forgets_no_push_that_was_accepted(queue: Queue, db: psycopg.Connection) -> None:
    db.execute("update herald.scenario set on_unknown = 'resend', cooldown = '0'")
    (person,) = queue.organisation.mentors(1)
    first = queue.insert(person, "1")
    for outcome in ("unknown", "sent"):  # its first copy turns out to be accepted while the second is on its way
        claimed = db.execute(
            "select prompt_id, epoch from herald.claim('a test', 1, '1 minute', now() + interval '1 minute')"
        ).fetchall()
        settle(db, [(first, 1)], outcome)
    assert claimed == [(first, 2)]
    db.execute("alter table herald.prompt disable trigger user")
    queue.db.execute("select herald.claim_prompts('a test', array[%s], '1 minute')", (queue.insert(person, "2"),))
    db.execute("update herald.prompt set created_at = now() + interval '1 second' where prompt_id = %s", (first,))
    db.execute("alter table herald.prompt enable trigger user")
    db.execute("select herald.mend_open_prompts()")
    assert states(db, [(first, 2)]) == [("sent", None)]
    assert queue.is_right()
    assert db.execute("select sum(violations) from herald.invariants()").fetchone() == (0,)


def test_migrate_mends_a_queue_in_which_a_person_has_two_prompts_open(
    queue: Queue, database: Database, db: psycopg.Connection
) -> None:
    db.execute("drop trigger open_prompt_insert on herald.prompt")
    (person,) = queue.organisation.mentors(1)
    for ref in "12":
        queue.insert(person, ref)
    schema.migrate(database.migrator_dsn)
    assert queue.count() == 1
    assert queue.is_right()


def test_migrate_brings_a_dropped_trigger_back_and_mends_the_queue(
    queue: Queue, database: Database, db: psycopg.Connection
) -> None:
    queue.fill(2)
    db.execute("drop trigger open_prompt_update on herald.prompt")
    db.execute("update herald.prompt set priority = 3")
    assert not queue.is_right()
    schema.migrate(database.migrator_dsn)
    assert queue.is_right()
    db.execute("update herald.prompt set priority = 4")
    assert queue.is_right()
