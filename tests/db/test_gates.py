"""The gates, one by one and at their borders, through herald.evaluate() and herald.enqueue()."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support.app import App, Run, now

if TYPE_CHECKING:
    from tests.support.postgres import Database

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
TICK = timedelta(microseconds=1)


def enqueue(app: App, scenario: UUID, person: UUID, ref: str = "x", due_at: datetime | None = None) -> str | None:
    """The gate that stopped it; None when nothing did."""
    row = app.db.execute(
        "select gate from herald.enqueue(%s, %s, %s, coalesce(%s, now()))", (scenario, person, ref, due_at)
    ).fetchone()
    assert row is not None
    gate: str | None = row[0]
    return gate


def evaluated(app: App, at: datetime) -> Run:
    (run,) = app.evaluate(at)
    assert run.error is None
    return run


def claimed(app: App, at: datetime) -> list[tuple[str, str | None]]:
    """What a claim decides on each prompt that waits, and the gate."""
    return app.db.execute(
        "select decision, gate from herald.claim('a test', 100, '1 minute', %s) order by decision", (at,)
    ).fetchall()


def due_milestone(app: App, at: datetime, **columns: object) -> UUID:
    """A scenario that the second activity of a person is due for."""
    return app.scenario("milestone", {"counts": [2]}, evaluated_through=at - HOUR, **columns)


# Opt-out.


@pytest.mark.parametrize(("opted_out", "stopped"), [("milestone", True), (None, True), ("inactivity", False)])
def test_opting_out_of_a_type_or_of_everything_stops_it_and_of_another_type_does_not(
    app: App, opted_out: str | None, stopped: bool
) -> None:
    person = app.person()
    app.db.execute("insert into herald.opt_out (user_id, scenario_type) values (%s, %s)", (person, opted_out))
    scenario = app.scenario("milestone", {"counts": [1]})
    assert enqueue(app, scenario, person) == ("opted_out" if stopped else None)


# Cooldown.


@pytest.mark.parametrize(("age", "gate"), [(DAY - TICK, "cooldown"), (DAY, None), (DAY + TICK, None)])
def test_exactly_a_cooldown_ago_passes(app: App, age: timedelta, gate: str | None) -> None:
    at = now()
    person = app.person()
    due_milestone(app, at, cooldown="1 day")
    app.db.execute(
        "insert into herald.scenario_notification "
        "(user_id, scenario_type, dispatched_at, idempotency_key, cooldown_window_start) "
        "values (%s, 'milestone', %s, repeat('0', 64), %s)",
        (person, at - age, at - 10 * DAY),
    )
    app.activity(person, at - 2 * MINUTE)
    app.activity(person, at - MINUTE)
    assert evaluated(app, at).suppressed == ({gate: 1} if gate else {})


def test_two_types_do_not_disturb_each_other(app: App) -> None:
    person = app.person()
    first = app.scenario("milestone", {"counts": [1]})
    second = app.scenario("inactivity", {"days": 30})
    third = app.scenario("milestone", {"counts": [5]})
    assert enqueue(app, first, person) is None
    app.sent(app.prompts()[0].prompt_id, now())
    assert enqueue(app, second, person) is None
    assert enqueue(app, third, person, "y") == "cooldown"


def test_a_push_that_may_have_arrived_counts_for_the_cooldown(app: App) -> None:
    person = app.person()
    scenario = app.scenario("milestone", {"counts": [1]})
    assert enqueue(app, scenario, person) is None
    app.db.execute("update herald.prompt set status = 'unknown', claimed_at = now() - interval '1 hour'")
    assert enqueue(app, scenario, person, "y") == "cooldown"
    app.db.execute("update herald.prompt set claimed_at = now() - interval '7 days'")
    # The cooldown is over; what was decided on this day stays the decision of the day.
    assert enqueue(app, scenario, person, "y") == "duplicate"


def test_two_sends_a_cooldown_apart_never_share_a_window(db: psycopg.Connection) -> None:
    (bad,) = db.execute(
        """
        select count(*)
        from (
          select timestamptz '2026-01-01' + random() * interval '900 days' as at,
            random() * interval '40 days' as cooldown
          from generate_series(1, 2000)
        ) as q
        where q.cooldown > interval '1 second'
          and herald.cooldown_window_start(q.at, q.cooldown)
            >= herald.cooldown_window_start(q.at + q.cooldown, q.cooldown)
        """
    ).fetchone() or (None,)
    assert bad == 0


# Duplicates.


def test_the_same_thing_is_never_decided_on_twice(app: App) -> None:
    person = app.person()
    scenario = app.scenario("milestone", {"counts": [1]}, cooldown="0")
    assert enqueue(app, scenario, person) is None
    assert enqueue(app, scenario, person) == "duplicate"
    app.sent(app.prompts()[0].prompt_id, now() - 3 * DAY)
    assert enqueue(app, scenario, person) == "duplicate"


def test_one_prompt_of_a_type_is_open_at_a_time(app: App) -> None:
    person = app.person()
    first, second = (app.scenario("milestone", {"counts": [n]}, cooldown="0") for n in (1, 2))
    assert enqueue(app, first, person) is None
    assert enqueue(app, second, person) == "duplicate"


def test_of_several_counts_reached_in_one_insert_the_highest_is_sent(app: App) -> None:
    at = now()
    person = app.person()
    app.scenario("milestone", {"counts": [1, 9, 10]}, evaluated_through=at - HOUR, cooldown="0")
    app.db.execute(
        "insert into app.activity (user_id, activity_type, occurred_at) "
        "select %s, 'contact', %s from generate_series(1, 10)",
        (person, at),
    )
    assert evaluated(app, at).suppressed == {"duplicate": 2}
    assert [p.activity_ref for p in app.prompts()] == ["10"]


def test_a_failed_prompt_is_armed_again_in_the_same_row(app: App) -> None:
    at = now()
    person = app.person()
    due_milestone(app, at)
    for _ in range(2):
        app.activity(person, at)
    evaluated(app, at)
    (before,) = app.prompts()
    app.db.execute("update herald.prompt set status = 'failed', error_code = 'UNREGISTERED', settled_at = now()")
    app.db.execute("insert into herald.touched_user (user_id) values (%s)", (person,))
    (run,) = app.evaluate_touched(at + MINUTE)
    (after,) = app.prompts()
    assert (run.prompts, after.prompt_id, after.status) == (1, before.prompt_id, "ready")


def test_a_discarded_prompt_is_not_armed_again(app: App) -> None:
    person = app.person()
    scenario = app.scenario("milestone", {"counts": [1]})
    assert enqueue(app, scenario, person) is None
    app.db.execute("update herald.prompt set status = 'skipped', gate = 'discarded', settled_at = now()")
    assert enqueue(app, scenario, person) == "duplicate"


# Recipients.


@pytest.mark.parametrize("status", ["paused", "left"])
def test_people_who_paused_or_left_get_nothing(app: App, status: str) -> None:
    scenario = app.scenario("milestone", {"counts": [1]})
    assert enqueue(app, scenario, app.person(status=status)) == "inactive_recipient"


def test_an_unknown_person_gets_nothing(app: App) -> None:
    assert enqueue(app, app.scenario("milestone", {"counts": [1]}), uuid4()) == "unknown_recipient"


def test_somebody_of_another_chapter_is_as_unknown_as_nobody(app: App) -> None:
    scenario = app.scenario("milestone", {"counts": [1]}, chapter_id=app.chapter)
    assert enqueue(app, scenario, app.person(chapter=app.another_chapter())) == "unknown_recipient"


@pytest.mark.parametrize(
    ("scope", "elsewhere", "decision"),
    [
        ("chapter", None, ("skipped", "unknown_recipient")),
        ("organisation", None, ("send", None)),
        ("organisation", UUID(int=7), ("skipped", "unknown_recipient")),
    ],
)
def test_who_moved_away_does_not_get_what_waited_for_them_there(
    app: App, scope: str, elsewhere: UUID | None, decision: tuple[str, str | None]
) -> None:
    person = app.person()
    scenario = app.scenario("milestone", {"counts": [1]}, chapter_id=app.chapter if scope == "chapter" else None)
    assert enqueue(app, scenario, person) is None
    app.db.execute(
        "update app.peer_mentor set chapter_id = %s where user_id = %s", (app.another_chapter(elsewhere), person)
    )
    app.evaluate_touched(now())
    assert claimed(app, now()) == [decision]


def test_without_a_device_the_prompt_is_skipped_told_and_armed_when_one_is_registered(app: App) -> None:
    at = now()
    person = app.person(device=False)
    due_milestone(app, at)
    for _ in range(2):
        app.activity(person, at)
    run = evaluated(app, at)
    assert (run.candidates, run.prompts, run.suppressed) == (1, 0, {"no_device_token": 1})
    assert [(p.status, p.gate) for p in app.prompts()] == [("skipped", "no_device_token")]
    history = "select delivery_status, error_code, attempt from herald.scenario_prompt_history"
    assert app.db.execute(history).fetchall() == [("skipped", "no_device_token", 0)]
    # Looked at again and again, it is told once.
    assert app.evaluate_touched(at + MINUTE) == []
    assert len(app.db.execute(history).fetchall()) == 1

    app.devices([person])
    app.db.execute("insert into herald.touched_user (user_id) values (%s)", (person,))
    (run,) = app.evaluate_touched(at + 2 * MINUTE)
    assert run.prompts == 1
    assert [(p.status, p.gate) for p in app.prompts()] == [("ready", None)]


def test_a_revoked_device_is_no_device(app: App) -> None:
    person = app.person()
    app.db.execute("update herald.device_token set revoked_at = now(), revoked_reason = 'UNREGISTERED'")
    assert enqueue(app, app.scenario("milestone", {"counts": [1]}), person) == "no_device_token"


# Quiet hours.


def test_in_the_quiet_hours_a_prompt_is_deferred_to_their_end_and_not_dropped(app: App) -> None:
    at = now()
    person = app.person(time_zone="UTC")
    due_milestone(app, at, quiet_from=(at - HOUR).time(), quiet_until=(at + HOUR).time())
    for _ in range(2):
        app.activity(person, at)
    run = evaluated(app, at)
    assert (run.prompts, run.suppressed) == (1, {"quiet_hours": 1})
    assert [(p.status, p.gate, p.not_before) for p in app.prompts()] == [("ready", "quiet_hours", at + HOUR)]


def test_enqueueing_in_the_quiet_hours_gives_the_prompt_and_the_gate(app: App) -> None:
    at = now()
    person = app.person(time_zone="UTC")
    scenario = app.scenario("milestone", {"counts": [1]}, quiet_from=(at - HOUR).time(), quiet_until=(at + HOUR).time())
    row = app.db.execute(
        "select prompt_id is not null, gate from herald.enqueue(%s, %s, 'x')", (scenario, person)
    ).fetchone()
    assert row == (True, "quiet_hours")


# The cap.


def test_a_person_gets_no_more_than_the_cap_a_day_over_all_scenarios(app: App) -> None:
    app.db.execute("update herald.setting set daily_cap = 2")
    person = app.person()
    names = ("inactivity", "milestone", "expiry", "follow_up")
    params: tuple[dict[str, object], ...] = (
        {"days": 1},
        {"counts": [1]},
        {"days_before": [1]},
        {"activity_type": "c", "after_days": 1},
    )
    scenarios = [app.scenario(name, values) for name, values in zip(names, params, strict=True)]
    assert enqueue(app, scenarios[0], person) is None
    app.sent(app.prompts()[0].prompt_id, now())
    assert enqueue(app, scenarios[1], person) is None  # waits, and counts
    assert enqueue(app, scenarios[2], person) == "daily_cap"
    other = app.person()
    assert enqueue(app, scenarios[3], other) is None


def test_what_a_night_put_off_to_one_moment_stays_within_the_cap(app: App) -> None:
    night = now().replace(hour=23, minute=0) + DAY
    morning = night + 9 * HOUR
    app.db.execute("update herald.setting set daily_cap = 1")
    person, other = app.people(2, time_zone="UTC")
    for kind, params in (("milestone", {"counts": [1]}), ("follow_up", {"activity_type": "c", "after_days": 1})):
        scenario = app.scenario(
            kind, params, quiet_from=time(22), quiet_until=time(8), priority=int(kind == "follow_up")
        )
        assert enqueue(app, scenario, person, due_at=night) == "quiet_hours"
    assert enqueue(app, scenario, other, due_at=night) == "quiet_hours"
    rows = app.db.execute(
        "select user_id, scenario_type, decision, gate from herald.claim('a test', 100, '1 minute', %s)", (morning,)
    ).fetchall()
    assert set(rows) == {
        (person, "follow_up", "send", None),
        (person, "milestone", "skipped", "daily_cap"),
        (other, "follow_up", "send", None),
    }


def test_two_claims_at_once_stay_within_the_cap_together(app: App, database: Database) -> None:
    person = app.person()
    for kind, params in (("milestone", {"counts": [1]}), ("inactivity", {"days": 1})):
        assert enqueue(app, app.scenario(kind, params), person) is None
    app.db.execute("update herald.setting set daily_cap = 1")
    claim = "select decision, gate from herald.claim('a test', 1, '1 minute')"
    with psycopg.connect(database.daemon_dsn) as first:
        assert first.execute(claim).fetchall() == [("send", None)]
        assert app.db.execute(claim).fetchall() == []
    assert app.db.execute(claim).fetchall() == [("skipped", "daily_cap")]


@pytest.mark.parametrize("instead", ["opted out", "expired", "quiet"])
def test_what_is_not_sent_takes_nobodys_place_under_the_cap(app: App, instead: str) -> None:
    person = app.person(time_zone="UTC")
    first = app.scenario("milestone", {"counts": [1]}, priority=1)
    second = app.scenario("follow_up", {"activity_type": "c", "after_days": 1})
    assert enqueue(app, first, person) is None
    assert enqueue(app, second, person) is None
    app.db.execute("update herald.setting set daily_cap = 1")
    if instead == "opted out":
        app.db.execute("insert into herald.opt_out (user_id, scenario_type) values (%s, 'milestone')", (person,))
    elif instead == "expired":
        app.db.execute("update herald.scenario set expires_after = '1 microsecond' where scenario_id = %s", (first,))
    else:
        app.db.execute(
            "update herald.scenario set quiet_from = %(at)s::time - interval '1 hour', "
            "quiet_until = %(at)s::time + interval '1 hour' where scenario_id = %(id)s",
            {"at": now().time(), "id": first},
        )
    assert ("send", None) in claimed(app, now())


def test_the_cap_counts_the_day_of_the_persons_own_clock(app: App) -> None:
    person = app.person(time_zone="Pacific/Kiritimati")
    for moment, pushes in [
        # 14 hours ahead: a new day begins at 10:00 UTC.
        (datetime(2026, 6, 1, 9, 59, tzinfo=UTC), 1),
        (datetime(2026, 6, 1, 10, tzinfo=UTC), 0),
    ]:
        app.db.execute("delete from herald.scenario_notification")
        app.db.execute(
            "insert into herald.scenario_notification "
            "(user_id, scenario_type, dispatched_at, idempotency_key, cooldown_window_start) "
            "values (%s, 'milestone', '2026-06-01 09:00+00', repeat('0', 64), now())",
            (person,),
        )
        found = app.db.execute("select herald.pushes_today(%s, %s, 'Pacific/Kiritimati')", (person, moment)).fetchone()
        assert found == (pushes,)


# Enqueueing.


def test_a_developer_may_enqueue_for_later(app: App) -> None:
    person = app.person()
    later = now() + 3 * HOUR
    assert enqueue(app, app.scenario("milestone", {"counts": [1]}), person, due_at=later) is None
    assert [(p.due_at, p.not_before) for p in app.prompts()] == [(later, later)]


@pytest.mark.parametrize("scenario_type", ["inactivity", "milestone", "expiry", "follow_up"])
def test_any_type_takes_a_reference_of_the_developers_own(app: App, scenario_type: str) -> None:
    person = app.person()
    params: dict[str, dict[str, object]] = {
        "inactivity": {"days": 1},
        "milestone": {"counts": [1]},
        "expiry": {"days_before": [1]},
        "follow_up": {"activity_type": "c", "after_days": 1},
    }
    scenario = app.scenario(scenario_type, params[scenario_type], cooldown="0")
    for ref in ("order-17", "order#99999999999"):
        assert enqueue(app, scenario, person, ref) is None
        app.db.execute("delete from herald.prompt")


@pytest.mark.parametrize(("mode", "gate"), [("off", "off"), ("shadow", "shadow")])
def test_enqueueing_into_a_scenario_that_sends_nothing_says_so(app: App, mode: str, gate: str) -> None:
    assert enqueue(app, app.scenario("milestone", {"counts": [1]}, mode=mode), app.person()) == gate
    assert app.prompts() == []


def test_enqueueing_something_too_old_says_so(app: App) -> None:
    scenario = app.scenario("milestone", {"counts": [1]})
    app.db.execute("update herald.scenario set started_at = now() - interval '1 year'")
    assert enqueue(app, scenario, app.person(), due_at=now() - 3 * DAY - MINUTE) == "expired"


def test_enqueueing_something_too_old_says_so_however_young_the_scenario_is(app: App) -> None:
    scenario = app.scenario("milestone", {"counts": [1]})
    assert enqueue(app, scenario, app.person(), due_at=now() - 3 * DAY - MINUTE) == "expired"


@pytest.mark.parametrize(("ref", "user"), [("", True), ("x" * 401, True), (None, True), ("x", False)])
def test_enqueueing_nonsense_is_refused(app: App, ref: str | None, user: bool) -> None:
    scenario = app.scenario("milestone", {"counts": [1]})
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="enqueue needs a user"):
        app.db.execute("select * from herald.enqueue(%s, %s, %s)", (scenario, app.person() if user else None, ref))


@pytest.mark.parametrize("due_at", [None, "infinity", "-infinity"])
def test_enqueueing_for_no_moment_is_refused(app: App, due_at: str | None) -> None:
    scenario = app.scenario("milestone", {"counts": [1]})
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="and a due time"):
        app.db.execute("select * from herald.enqueue(%s, %s, 'x', %s)", (scenario, app.person(), due_at))


def test_enqueueing_into_no_scenario_is_refused(app: App) -> None:
    with pytest.raises(psycopg.errors.NoDataFound, match="no scenario"):
        enqueue(app, uuid4(), app.person())


def test_the_backend_may_enqueue_and_a_phone_may_not(app: App, database: Database) -> None:
    person = app.person()
    scenario = app.scenario("milestone", {"counts": [1]})
    backend = App(database.connect("service_role"))
    assert enqueue(backend, scenario, person) is None
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        enqueue(App(database.connect_as_person(person)), scenario, person)
