"""herald.invariants: zero while the promise holds, and not when a row says otherwise."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.organisation import Organisation
from tests.support.postgres import DAEMON_LOGIN
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from uuid import UUID

    import psycopg

    from tests.support.postgres import Database


def violations(db: psycopg.Connection) -> dict[str, int]:
    """Those that are not zero."""
    return {name: count for name, count in db.execute("select * from herald.invariants()") if count}


def claim(db: psycopg.Connection) -> list[tuple[UUID, int]]:
    return db.execute("select prompt_id, epoch from herald.claim('a test', 100, '10 seconds')").fetchall()


def settle(db: psycopg.Connection, claimed: list[tuple[UUID, int]], outcome: str) -> None:
    for prompt_id, epoch in claimed:
        db.execute(
            "select herald.settle(%s, %s, %s, array[null], array[now()], array[null::timestamptz], "
            "array[null::uuid], array[null])",
            ([prompt_id], [epoch], [outcome]),
        )


@pytest.fixture
def sent(db: psycopg.Connection) -> Organisation:
    """Three prompts sent, one failed, one unknown, one on its way, one waiting."""
    organisation = Organisation(db)
    scenario = organisation.scenario()
    outcomes = ["sent", "sent", "sent", "failed", "unknown", None]
    for outcome in outcomes:
        organisation.enqueue(scenario, organisation.mentor(f"phone-{outcome}-{time.monotonic_ns()}"))
        claimed = claim(db)
        if outcome is not None:
            settle(db, claimed, outcome)
    organisation.enqueue(scenario, organisation.mentor("phone-waiting"))
    return organisation


def test_all_is_zero_while_the_promise_holds(sent: Organisation, database: Database) -> None:
    assert violations(sent.db) == {}
    names = {name for (name,) in database.connect(DAEMON_LOGIN).execute("select invariant from herald.invariants()")}
    assert len(names) == 6


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (
            "delete from herald.scenario_notification where id = (select id from herald.scenario_notification limit 1)",
            {"sent_prompt_without_notification": 1},
        ),
        (
            (
                "update herald.prompt set status = 'failed' where prompt_id = "
                "(select prompt_id from herald.scenario_notification limit 1)"
            ),
            {"notification_without_sent_prompt": 1, "dispatched_prompt_not_sent": 1},
        ),
        (
            (
                "insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, delivery_status) "
                "select prompt_id, scenario_id, peer_mentor_id, delivery_status from herald.scenario_prompt_history "
                "where delivery_status = 'dispatched' limit 2"
            ),
            {"prompt_dispatched_twice": 2},
        ),
        (
            "update herald.prompt set deadline = now() - interval '3 minutes' where status = 'sending'",
            {"sending_past_deadline": 1},
        ),
    ],
)
def test_a_row_that_breaks_the_promise_is_counted(sent: Organisation, broken: str, found: dict[str, int]) -> None:
    sent.db.execute(broken)
    assert violations(sent.db) == found


def test_a_second_copy_that_the_scenario_asks_for_breaks_nothing(sent: Organisation) -> None:
    sent.db.execute("update herald.scenario set on_unknown = 'resend'")
    sent.db.execute(
        "insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, delivery_status) "
        "select prompt_id, scenario_id, peer_mentor_id, delivery_status from herald.scenario_prompt_history "
        "where delivery_status = 'dispatched'"
    )
    assert violations(sent.db) == {}


def test_what_it_costs_does_not_grow_with_the_tables(sent: Organisation) -> None:
    sent.db.execute(
        "insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, idempotency_key, status, "
        "cooldown_window_start, settled_at) "
        "select (select scenario_id from herald.scenario), 'milestone', gen_random_uuid(), i::text, "
        "encode(sha256(i::text::bytea), 'hex'), 'sent', now(), now() from generate_series(1, 60000) as i"
    )
    sent.db.execute(
        "insert into herald.scenario_prompt_history (prompt_id, scenario_id, peer_mentor_id, delivery_status) "
        "select prompt_id, scenario_id, user_id, 'dispatched' from herald.prompt where length(activity_ref) < 7"
    )
    sent.db.execute(
        "insert into herald.scenario_notification (id, user_id, scenario_type, dispatched_at, idempotency_key, "
        "cooldown_window_start, prompt_id) "
        "select notification_id, user_id, scenario_type, now(), idempotency_key, now(), prompt_id from herald.prompt "
        "where length(activity_ref) < 7"
    )
    sent.db.execute("analyze herald.prompt, herald.scenario_prompt_history, herald.scenario_notification")
    assert violations(sent.db) == {}
    with Stopwatch() as took:
        sent.db.execute("select * from herald.invariants()").fetchall()
    assert took.seconds < 3
    with sent.db.transaction():
        sent.db.execute("select * from herald.invariants(1000)")
        read = sent.db.execute(
            "select sum(pg_stat_get_xact_tuples_returned(c) + pg_stat_get_xact_tuples_fetched(c)) from unnest(array["
            "'herald.scenario_prompt_history', 'herald.prompt', 'herald.scenario_notification']::regclass[]) as c"
        ).fetchone()
    assert read is not None
    assert read[0] < 30_000  # of 180,000
