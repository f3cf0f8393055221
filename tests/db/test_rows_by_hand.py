"""Rows that a DBA writes by hand, with no more than the columns that the documentation names."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.app import App, now

if TYPE_CHECKING:
    from uuid import UUID

    import psycopg

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def prompt(app: App, person: UUID, **columns: Any) -> UUID:
    """A prompt with the documented columns alone."""
    scenario = app.scenario("milestone", {"counts": [1]})
    row = {
        "scenario_id": scenario,
        "scenario_type": "milestone",
        "user_id": person,
        "activity_ref": "1",
        "due_at": now(),
        "evaluation_date": now().date(),
        "idempotency_key": "by hand",
        "cooldown_window_start": now(),
        **columns,
    }
    found = app.db.execute(
        f"insert into herald.prompt ({', '.join(row)}) values ({', '.join(['%s'] * len(row))}) returning prompt_id",
        list(row.values()),
    ).fetchone()
    assert found is not None
    made: UUID = found[0]
    return made


def explained(db: psycopg.Connection, person: UUID, check: str) -> str:
    row = db.execute(
        "select detail from herald.explain(%s, 'milestone') where check_name = %s", (person, check)
    ).fetchone()
    assert row is not None
    detail: str = row[0]
    return detail


@pytest.mark.parametrize("status", ["ready", "sent", "failed", "unknown", "skipped", "expired"])
def test_a_prompt_is_stored_and_read_back_in_each_status_that_needs_no_owner(app: App, status: str) -> None:
    """No moment in it lies where a program cannot read it."""
    made = prompt(app, app.person(), status=status)
    assert app.db.execute("select * from herald.prompt where prompt_id = %s", (made,)).fetchone() is not None


def test_a_prompt_put_to_skipped_by_hand_is_explained(app: App) -> None:
    person = app.person(time_zone="UTC")
    prompt(app, person)
    app.db.execute("update herald.prompt set status = 'skipped'")
    assert explained(app.db, person, "prompt").endswith(": skipped")


def test_a_prompt_put_to_failed_by_hand_failed_when_it_was_made_unless_it_says_when(app: App) -> None:
    prompt(app, app.person(), status="failed")
    when = "select f.failed_at = {} from herald.failed() as f join herald.prompt as p using (prompt_id)"
    assert app.db.execute(when.format("p.created_at").encode()).fetchall() == [(True,)]
    app.db.execute("update herald.prompt set settled_at = created_at + interval '1 hour'")
    assert app.db.execute(when.format("p.settled_at").encode()).fetchall() == [(True,)]


def test_a_prompt_put_to_unknown_by_hand_may_have_arrived_when_it_was_made(app: App) -> None:
    person = app.person()
    made = prompt(app, person, status="unknown", created_at=now() - HOUR, evaluation_date=now().date() - DAY)
    again = "select gate from herald.enqueue((select scenario_id from herald.scenario), %s, 'other')"
    assert app.db.execute(again.encode(), (person,)).fetchone() == ("cooldown",)
    assert "1 hour 0 minutes ago" in explained(app.db, person, "cooldown")
    assert app.db.execute(
        "select u.claimed_at = p.created_at from herald.unknown() as u join herald.prompt as p using (prompt_id)"
    ).fetchall() == [(True,)]
    assert app.db.execute("select decision from herald.resolve(array[%s], true)", (made,)).fetchall() == [("sent",)]
    assert app.db.execute(
        "select n.dispatched_at = p.created_at, h.dispatched_at = p.created_at from herald.prompt as p "
        "join herald.scenario_notification as n using (prompt_id) "
        "join herald.scenario_prompt_history as h using (prompt_id)"
    ).fetchall() == [(True, True)]


def test_a_device_revoked_by_hand_needs_no_reason(app: App) -> None:
    person = app.person()
    app.db.execute("update herald.device_token set revoked_at = now()")
    scenario = app.scenario("milestone", {"counts": [1]})
    assert app.db.execute("select gate from herald.enqueue(%s, %s, '1')", (scenario, person)).fetchone() == (
        "no_device_token",
    )
    assert explained(app.db, person, "device_token").endswith(" (unknown)")
    assert app.db.execute("select live, revoked, reasons from herald.token_counts()").fetchall() == [
        (None, 1, {"unknown": 1})
    ]
    assert app.db.execute("select revoked_reason, devices from herald.device_statistics").fetchall() == [("unknown", 1)]
