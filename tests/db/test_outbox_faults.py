"""Claim, settle and sweep where things changed or went wrong before: late owners, odd rows, a database set back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from uuid import UUID

    import psycopg

    from tests.support.app import App
    from tests.support.postgres import Database

NOTIFIED = """
insert into herald.scenario_notification
  (user_id, scenario_type, dispatched_at, idempotency_key, cooldown_window_start)
select user_id, '%s', now() - interval '%s', repeat('0', 64), now() - interval '100 days' from herald.prompt
"""


def ready(app: App, **columns: Any) -> UUID:
    """A prompt that may be claimed."""
    app.scenario("milestone", {"counts": [1]}, title_key="t", body_key="b", **columns)
    person = app.person()
    app.db.execute("insert into app.activity (user_id, activity_type) values (%s, 'contact')", (person,))
    app.db.execute("select herald.evaluate_touched()")
    row = app.db.execute("select prompt_id from herald.prompt").fetchone()
    assert row is not None
    found: UUID = row[0]
    return found


def claim(db: psycopg.Connection, owner: str = "a") -> int | None:
    row = db.execute("select epoch from herald.claim(%s, 10, '1 second') where decision = 'send'", (owner,)).fetchone()
    return None if row is None else int(row[0])


def settle(db: psycopg.Connection, prompt: UUID, epoch: int, outcome: str) -> tuple[bool, str | None]:
    row = db.execute(
        "select applied, status from herald.settle(array[%s::uuid], array[%s::bigint], array[%s], array['X'], "
        "array[now()], array[now()], array[null::uuid], array['projects/p/messages/1'])",
        (prompt, epoch, outcome),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def sweep(db: psycopg.Connection) -> list[Any]:
    return db.execute("select status from herald.sweep('0', now() + interval '1 hour')").fetchall()


def status(db: psycopg.Connection) -> Any:
    return db.execute(
        "select status, (select count(*) from herald.scenario_notification) from herald.prompt"
    ).fetchone()


# What changes while a prompt waits, and what its next claim then says.
CHANGES: dict[str, tuple[str, str, str]] = {
    "opted out of everything": (
        "insert into herald.opt_out (user_id) select user_id from herald.prompt",
        "skipped",
        "opted_out",
    ),
    "opted out of the type": (
        "insert into herald.opt_out (user_id, scenario_type) select user_id, scenario_type from herald.prompt",
        "skipped",
        "opted_out",
    ),
    "notified": (NOTIFIED % ("milestone", "6 days"), "skipped", "cooldown"),
    "a full day": (
        "update herald.setting set daily_cap = 1;" + NOTIFIED % ("expiry", "0 days"),
        "skipped",
        "daily_cap",
    ),
    "switched off": ("update herald.scenario set mode = 'off'", "skipped", "off"),
    "left": ("update app.peer_mentor set status = 'left'", "skipped", "inactive_recipient"),
    "too late": (
        """
        update herald.prompt set due_at = now() - interval '3 days';
        update herald.scenario set started_at = now() - interval '9 days'
        """,
        "expired",
        "expired",
    ),
    "night": (
        """
        update herald.scenario
        set quiet_from = (now() at time zone 'Europe/Oslo')::time - interval '2 hours',
          quiet_until = (now() at time zone 'Europe/Oslo')::time + interval '2 hours'
        """,
        "deferred",
        "quiet_hours",
    ),
}


@pytest.mark.parametrize(("change", "decision", "gate"), CHANGES.values(), ids=CHANGES.keys())
def test_a_gate_that_closed_while_a_prompt_waited_is_found_closed_by_its_claim(
    app: App, db: psycopg.Connection, change: str, decision: str, gate: str
) -> None:
    ready(app)
    db.execute(change.encode())
    claimed = "select decision, gate from herald.claim('a', 10, '1 second')"
    assert db.execute(claimed).fetchall() == [(decision, gate)]
    becomes = "ready" if decision == "deferred" else decision
    assert db.execute("select status, attempts from herald.prompt").fetchall() == [(becomes, 0)]
    assert db.execute(claimed).fetchall() == []


@pytest.mark.parametrize("last", ["failed", "unknown", "retry", "release", "skipped", "swept"])
def test_once_a_copy_was_accepted_the_next_copys_outcome_does_not_take_it_back(
    app: App, db: psycopg.Connection, last: str
) -> None:
    prompt = ready(app, on_unknown="resend")
    first = claim(db)
    assert first is not None
    assert sweep(db) == [("ready",)]
    db.execute("update herald.prompt set not_before = now()")
    second = claim(db, "b")
    assert second == first + 1
    assert settle(db, prompt, first, "sent") == (True, "sending")
    if last == "swept":
        assert sweep(db) == []
    else:
        settle(db, prompt, second, last)
    assert status(db) == ("sent", 1)


def test_a_spool_that_is_ahead_of_a_restored_database_is_believed(app: App, db: psycopg.Connection) -> None:
    prompt = ready(app)
    epoch = claim(db)
    assert epoch is not None
    assert settle(db, prompt, epoch + 1, "sent") == (True, "sent")
    assert status(db) == ("sent", 1)


def test_a_late_owner_that_found_no_device_says_so(app: App, db: psycopg.Connection) -> None:
    prompt = ready(app)
    epoch = claim(db)
    assert epoch is not None
    assert sweep(db) == [("unknown",)]
    assert settle(db, prompt, epoch, "skipped") == (True, "skipped")


def test_a_claim_that_is_given_back_was_no_attempt(app: App, db: psycopg.Connection) -> None:
    prompt = ready(app)
    for _ in range(2):
        epoch = claim(db)
        assert epoch is not None
        assert settle(db, prompt, epoch, "release") == (True, "ready")
        assert db.execute("select attempts from herald.prompt").fetchone() == (0,)


@pytest.mark.parametrize(("after", "swept"), [("29.9", []), ("30.1", [("unknown",)])])
def test_a_claim_is_swept_when_its_lease_and_the_grace_are_over_and_no_earlier(
    app: App, db: psycopg.Connection, after: str, swept: list[Any]
) -> None:
    ready(app)
    claim(db)
    found = db.execute(
        "select s.status from (select deadline from herald.prompt) as p, "
        "herald.sweep('30 seconds', p.deadline + %s * interval '1 second') as s",
        (after,),
    )
    assert found.fetchall() == swept


@pytest.mark.parametrize("statement", ["claim", "settle"])
def test_what_others_rely_on_is_on_disk_whatever_the_database_is_set_to(
    app: App, database: Database, db: psycopg.Connection, statement: str
) -> None:
    prompt = ready(app)
    epoch = claim(db) if statement == "settle" else None
    with database.connect("herald_daemon_login") as daemon:
        daemon.execute("set synchronous_commit = off")
        with daemon.transaction():
            if epoch is None:
                assert claim(daemon) is not None
            else:
                settle(daemon, prompt, epoch, "sent")
            row = daemon.execute("show synchronous_commit").fetchone()
        assert row == ("on",)
        assert daemon.execute("show synchronous_commit").fetchone() == ("off",)


@pytest.mark.parametrize(
    "spoil",
    [
        "update herald.prompt set due_at = '-infinity'",
        "update herald.prompt set due_at = '4000-01-01 BC'",
        "update herald.prompt set due_at = 'infinity'",
        """
        alter table herald.scenario disable trigger check_scenario, drop constraint scenario_expires_after;
        update herald.scenario set expires_after = '200000 years'
        """,
        "update herald.device_token set last_seen_at = 'infinity'",
        "update herald.device_token set last_seen_at = '4000-01-01 BC'",
    ],
)
def test_times_that_no_program_can_read_are_not_handed_out(app: App, db: psycopg.Connection, spoil: str) -> None:
    ready(app)
    db.execute(spoil.encode())
    row = db.execute("select due_at, expires_at, devices from herald.claim('a', 10, '1 second')").fetchone()
    assert row is not None
    assert row[0].year >= 1
    assert 1 < int(row[2][0]["last_seen_at"][:4]) < 9999
