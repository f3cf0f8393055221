"""What operators call from psql or through `pgherald`: pause, resume, failed and unknown prompts, devices, status."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support.organisation import Organisation
from tests.support.postgres import wait_until_blocked

if TYPE_CHECKING:
    from tests.support.postgres import Database


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


def ask(db: psycopg.Connection, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    return db.execute(statement, values).fetchall()


def claim(db: psycopg.Connection) -> list[UUID]:
    """Claim what is ready, as a daemon would; the prompts to send."""
    rows = ask(db, "select prompt_id, decision from herald.claim('test', 100, '1 minute')")
    return [row[0] for row in rows if row[1] == "send"]


def settle(db: psycopg.Connection, prompt: UUID, outcome: str, error: str | None = None, epoch: int = 1) -> str:
    rows = ask(
        db,
        "select status from herald.settle(array[%s]::uuid[], array[%s]::bigint[], array[%s], array[%s]::text[], "
        "array[now()], array[null]::timestamptz[], array[null]::uuid[], array['projects/demo/messages/1'])",
        prompt,
        epoch,
        outcome,
        error,
    )
    return str(rows[0][0])


def failed_prompt(organisation: Organisation, error: str = "UNAVAILABLE", **columns: Any) -> tuple[UUID, UUID, UUID]:
    """(prompt, person, scenario) of a push that failed for good."""
    person = organisation.mentor("device")
    scenario = organisation.scenario(**columns)
    organisation.enqueue(scenario, person)
    (prompt,) = claim(organisation.db)
    assert settle(organisation.db, prompt, "failed", error) == "failed"
    return prompt, person, scenario


def of_yesterday(db: psycopg.Connection, prompt: UUID) -> None:
    """As if it had been decided on yesterday: a person gets one prompt of a type a day."""
    db.execute(
        "update herald.prompt set evaluation_date = evaluation_date - 1, idempotency_key = "
        "herald.idempotency_key(user_id, scenario_type, evaluation_date - 1) where prompt_id = %s",
        (prompt,),
    )


def unknown_prompt(organisation: Organisation) -> tuple[UUID, UUID, UUID]:
    person = organisation.mentor("device")
    scenario = organisation.scenario()
    organisation.enqueue(scenario, person)
    (prompt,) = claim(organisation.db)
    assert settle(organisation.db, prompt, "unknown", "TIMEOUT") == "unknown"
    return prompt, person, scenario


def test_everything_paused_is_claimed_by_nobody_until_it_is_resumed(organisation: Organisation) -> None:
    db = organisation.db
    organisation.enqueue(organisation.scenario(), organisation.mentor("device"))
    ((first, waiting),) = ask(db, "select paused_at, prompts from herald.pause()")
    assert waiting == 1
    assert claim(db) == []
    assert ask(db, "select paused_at from herald.pause()") == [(first,)], "a second pause does not move the moment"
    assert ask(db, "select was_paused, was_held, prompts from herald.resume()") == [(True, False, 1)]
    assert len(claim(db)) == 1
    assert ask(db, "select was_paused from herald.resume()") == [(False,)]


def test_what_waits_in_a_pause_is_not_told_as_overdue(organisation: Organisation) -> None:
    db = organisation.db
    organisation.enqueue(organisation.scenario(), organisation.mentor("device"))
    ready = "select oldest_ready_seconds > 500 from herald.daemon_state(null, now() + interval '10 minutes')"
    assert ask(db, ready) == [(True,)]
    db.execute("select * from herald.pause()")
    assert ask(db, ready) == [(False,)]
    db.execute("select * from herald.resume()")
    assert ask(db, ready) == [(True,)]


def test_a_paused_scenario_waits_alone_and_what_falls_due_meanwhile_waits_too(organisation: Organisation) -> None:
    db = organisation.db
    paused, other = organisation.scenario(), organisation.scenario("follow_up", {"activity_type": "x", "after_days": 1})
    early, late, elsewhere = (organisation.mentor(f"device-{at}") for at in range(3))
    organisation.enqueue(paused, early)
    assert ask(db, "select prompts from herald.pause(%s)", paused) == [(1,)]
    organisation.activity(late)
    db.execute("select herald.evaluate_touched()")
    organisation.enqueue(paused, elsewhere, "by-hand")
    organisation.enqueue(other, elsewhere)
    assert [ask(db, "select scenario_id from herald.prompt where prompt_id = %s", each) for each in claim(db)] == [
        [(other,)]
    ]
    assert ask(db, "select was_paused, was_held, prompts from herald.resume(%s)", paused) == [(True, False, 3)]
    assert len(claim(db)) == 3


def test_what_is_to_go_out_later_still_does_after_a_pause(organisation: Organisation) -> None:
    db = organisation.db
    scenario = organisation.scenario()
    before, meanwhile = organisation.mentor("device-1"), organisation.mentor("device-2")
    enqueue = "select gate from herald.enqueue(%s, %s, 'by-hand', now() + interval '30 days')"
    assert ask(db, enqueue, scenario, before) == [(None,)]
    db.execute("select * from herald.pause(%s)", (scenario,))
    assert ask(db, enqueue, scenario, meanwhile) == [(None,)]
    assert ask(db, "select prompts from herald.resume(%s)", scenario) == [(2,)]
    assert claim(db) == []
    later = "select decision from herald.claim('test', 100, '1 minute', now() + interval '30 days')"
    assert ask(db, later) == [("send",), ("send",)]


def test_everything_is_paused_at_once_while_a_run_that_is_not_over_keeps_its_scenarios(
    organisation: Organisation, database: Database
) -> None:
    db = organisation.db
    scenario = organisation.scenario()
    organisation.enqueue(scenario, organisation.mentor("device"))
    db.execute("alter function herald.pause set lock_timeout = '50ms'")
    run = database.connect()
    with run.transaction():
        assert ask(run, "select scenario_id, error from herald.evaluate()") == [(scenario, None)]
        with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
            db.execute("select herald.pause(%s)", (scenario,))
        assert caught.value.diag.message_primary == f"scenario {scenario} is held by another transaction, such as a run"
        assert (caught.value.diag.message_hint or "").startswith("pgherald pause, without a scenario, waits for none")
        assert ask(db, "select prompts from herald.pause()") == [(1,)]
        assert claim(db) == []
    assert ask(db, "select prompts from herald.pause(%s)", scenario) == [(1,)]
    assert ask(db, "select was_paused from herald.resume()") == [(True,)]
    assert claim(db) == []


def test_resuming_a_held_scenario_lets_its_next_run_make_them_all(organisation: Organisation) -> None:
    db = organisation.db
    scenario = organisation.scenario(max_prompts_per_run=2)
    for person in organisation.mentors(3):
        organisation.activity(person)
    db.execute("select * from herald.evaluate()")
    ((held, number),) = ask(db, "select held_at is not null, held_prompts from herald.status()")
    assert (held, number) == (True, 3)
    assert ask(db, "select was_paused, was_held, prompts from herald.resume(%s)", scenario) == [(False, True, 0)]
    assert ask(db, "select held_at, held_prompts from herald.status()") == [(None, None)]
    assert ask(db, "select prompts from herald.evaluate()") == [(3,)]
    assert ask(db, "select from herald.catch_up") == [], "once, not for ever"


def test_resuming_everything_leaves_a_scenario_paused_that_was_paused_by_itself(organisation: Organisation) -> None:
    db = organisation.db
    scenario = organisation.scenario()
    db.execute("select herald.pause(%s)", (scenario,))
    db.execute("select herald.pause()")
    db.execute("select herald.resume()")
    assert ask(db, "select paused_at is not null from herald.scenario") == [(True,)]


def test_a_retried_prompt_is_the_same_prompt_with_the_same_key_and_is_sent_once(organisation: Organisation) -> None:
    db = organisation.db
    prompt, person, _ = failed_prompt(organisation)
    before = ask(db, "select idempotency_key, notification_id, collapse_key from herald.prompt")
    assert ask(db, "select prompt_id, decision from herald.retry(array[%s]::uuid[])", prompt) == [(prompt, "ready")]
    assert claim(db) == [prompt]
    assert settle(db, prompt, "sent", epoch=2) == "sent"
    assert ask(db, "select idempotency_key, notification_id, collapse_key from herald.prompt") == before
    assert [row[0] for row in organisation.notifications()] == [person]
    assert ask(db, "select decision from herald.retry(array[%s]::uuid[])", prompt) == [("not_failed",)]


def test_a_retry_says_why_a_prompt_cannot_be(organisation: Organisation) -> None:
    db = organisation.db
    prompt, person, scenario = failed_prompt(organisation)
    of_yesterday(db, prompt)
    assert organisation.enqueue(scenario, person, "another")[0]  # by now another one of the type is open
    stranger = uuid4()
    found = dict(ask(db, "select prompt_id, decision from herald.retry(array[%s, %s]::uuid[])", prompt, stranger))
    assert found == {prompt: "duplicate", stranger: "no_such_prompt"}
    late = ask(db, "select decision from herald.retry(array[%s]::uuid[], now() + interval '4 days')", prompt)
    assert late == [("expired",)]
    assert ask(db, "select status from herald.prompt where prompt_id = %s", prompt) == [("failed",)]


def test_a_prompt_that_expired_cannot_be_retried_because_its_scenario_starts_again(organisation: Organisation) -> None:
    db = organisation.db
    prompt, _, _ = failed_prompt(organisation)
    db.execute("update herald.prompt set due_at = now() - interval '20 days', created_at = now() - interval '20 days'")
    db.execute("update herald.scenario set mode = 'off'")
    db.execute("update herald.scenario set mode = 'on'")
    assert ask(db, "select expires_at < now() from herald.failed()") == [(True,)]
    assert ask(db, "select decision from herald.retry(array[%s]::uuid[])", prompt) == [("expired",)]


def test_a_retried_prompt_of_a_paused_scenario_waits(organisation: Organisation) -> None:
    db = organisation.db
    prompt, _, scenario = failed_prompt(organisation)
    db.execute("select herald.pause(%s)", (scenario,))
    assert ask(db, "select decision from herald.retry(array[%s]::uuid[])", prompt) == [("ready",)]
    assert claim(db) == []
    db.execute("select herald.resume(%s)", (scenario,))
    assert claim(db) == [prompt]


def test_a_retry_that_meets_a_new_prompt_of_the_type_gives_way(organisation: Organisation, database: Database) -> None:
    """Not even when the other one is committed only while the retry waits for it."""
    db = organisation.db
    prompt, person, scenario = failed_prompt(organisation)
    of_yesterday(db, prompt)
    other = database.connect()
    with other.transaction():
        Organisation.enqueue(_on(organisation, other), scenario, person, "another")
        retrying = database.connect()
        retrying.execute("set statement_timeout = '60s'")
        retrying.pgconn.send_query_params(
            b"select decision from herald.retry(array[$1]::uuid[])", [str(prompt).encode()]
        )
        wait_until_blocked(db, retrying.info.backend_pid)
    result = retrying.pgconn.get_result()
    assert result is not None
    assert result.get_value(0, 0) == b"duplicate"


def _on(organisation: Organisation, db: psycopg.Connection) -> Organisation:
    """The same organisation through another connection."""
    twin = object.__new__(Organisation)
    twin.db, twin.organisation_id, twin.chapter_id = db, organisation.organisation_id, organisation.chapter_id
    return twin


def test_a_discarded_prompt_is_never_armed_again(organisation: Organisation) -> None:
    db = organisation.db
    person = organisation.mentor("device")
    scenario = organisation.scenario(cooldown="0")
    activity = organisation.activity(person)
    db.execute("select * from herald.evaluate()")
    (prompt,) = claim(db)
    settle(db, prompt, "failed", "UNAVAILABLE")
    assert ask(db, "select decision from herald.discard(array[%s]::uuid[])", prompt) == [("discarded",)]
    assert organisation.prompts() == {person: ("skipped", "discarded")}
    assert organisation.histories()[-1] == (person, "skipped", "discarded", 1)
    db.execute("update herald.scenario set evaluated_through = now() - interval '1 day'")
    db.execute("select * from herald.evaluate()")
    db.execute("update app.activity set flags = '{x}' where id = %s", (activity,))
    db.execute("select herald.evaluate_touched()")
    assert organisation.prompts() == {person: ("skipped", "discarded")}
    assert organisation.enqueue(scenario, person, "1") == (None, "duplicate")
    assert ask(db, "select decision from herald.retry(array[%s]::uuid[])", prompt) == [("not_failed",)]
    assert ask(db, "select decision from herald.discard(array[%s]::uuid[])", prompt) == [("not_failed",)]


def test_a_failed_prompt_that_is_not_discarded_is_armed_again_by_a_run_that_looks_back(
    organisation: Organisation,
) -> None:
    """The control of the test above: the same steps without the discard."""
    db = organisation.db
    person = organisation.mentor("device")
    organisation.scenario(cooldown="0")
    organisation.activity(person)
    db.execute("select * from herald.evaluate()")
    (prompt,) = claim(db)
    settle(db, prompt, "failed", "UNAVAILABLE")
    db.execute("select * from herald.evaluate()")
    assert organisation.prompts() == {person: ("failed", None)}
    db.execute("update herald.scenario set evaluated_through = now() - interval '1 day'")
    db.execute("select * from herald.evaluate()")
    assert organisation.prompts() == {person: ("ready", None)}


def test_resolved_as_sent_writes_the_record_that_its_answer_would_have_made(organisation: Organisation) -> None:
    db = organisation.db
    prompt, person, scenario = unknown_prompt(organisation)
    ((notification_id, claimed_at),) = ask(db, "select notification_id, claimed_at from herald.unknown()")
    assert ask(db, "select decision from herald.resolve(array[%s]::uuid[], true)", prompt) == [("sent",)]
    assert ask(db, "select id, user_id, prompt_id, dispatched_at from herald.scenario_notification") == [
        (notification_id, person, prompt, claimed_at)
    ]
    assert organisation.histories()[-1] == (person, "dispatched", None, 1)
    assert organisation.prompts() == {person: ("sent", None)}
    assert organisation.enqueue(scenario, person, "again") == (None, "cooldown")
    assert settle(db, prompt, "sent") == "sent", "its sender comes back and says the same"
    assert len(organisation.notifications()) == 1
    assert ask(db, "select decision from herald.resolve(array[%s]::uuid[], false)", prompt) == [("not_unknown",)]


def test_resolved_as_not_sent_may_be_retried_unless_its_sender_knows_better(organisation: Organisation) -> None:
    db = organisation.db
    prompt, person, _ = unknown_prompt(organisation)
    assert ask(db, "select decision from herald.resolve(array[%s]::uuid[], false)", prompt) == [("failed",)]
    assert ask(db, "select error_code from herald.failed()") == [("RESOLVED_NOT_SENT",)]
    assert organisation.notifications() == []
    assert organisation.histories()[-1] == (person, "failed", "RESOLVED_NOT_SENT", 1)
    assert settle(db, prompt, "sent") == "sent", "the spool of its sender turns up with FCM's acceptance"
    assert len(organisation.notifications()) == 1
    assert ask(db, "select decision from herald.retry(array[%s]::uuid[])", prompt) == [("not_failed",)]


NONSENSE = (
    "herald.retry(null)",
    "herald.retry(array[null]::uuid[])",
    "herald.discard(null)",
    "herald.resolve(null, true)",
    "herald.resolve(array[]::uuid[], null)",
    "herald.prune_tokens('29 days')",
    "herald.pause('00000000-0000-0000-0000-000000000000')",
    "herald.resume('00000000-0000-0000-0000-000000000000')",
)


def test_nonsense_is_refused_with_a_hint(db: psycopg.Connection) -> None:
    for call in NONSENSE:
        with pytest.raises(psycopg.Error) as refused:
            db.execute(f"select * from {call}")
        assert refused.value.sqlstate in ("22023", "P0002")
        assert refused.value.diag.message_hint


CHANGING = (
    "herald.pause()",
    "herald.resume()",
    "herald.retry('{}')",
    "herald.discard('{}')",
    "herald.resolve('{}', true)",
    "herald.devices_of(gen_random_uuid())",
    "herald.devices_to_verify(gen_random_uuid(), '0', 10)",
    "herald.prune_tokens()",
)


def test_only_the_daemon_s_role_may_change_things_or_read_tokens(database: Database) -> None:
    for role in ("authenticated", "anon", "service_role", "herald_reader"):
        connection = database.connect(role)
        for call in CHANGING:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"select * from {call}")
    daemon = database.connect("herald_daemon")
    for call in CHANGING:
        daemon.execute(f"select * from {call}")


def test_readers_may_look(database: Database) -> None:
    reader = database.connect("herald_reader")
    for function in ("failed", "unknown", "status", "outbox_status", "token_counts", "sequential_scans"):
        reader.execute(f"select * from herald.{function}()")


def test_devices_are_counted_and_pruned_by_when_they_were_last_seen(organisation: Organisation) -> None:
    db = organisation.db
    people = organisation.mentors(4)
    db.execute(
        "update herald.device_token set last_seen_at = now() - interval '271 days' where user_id = %s", (people[0],)
    )
    db.execute(
        "update herald.device_token set last_seen_at = now() - interval '40 days' where user_id = %s", (people[1],)
    )
    db.execute(
        "update herald.device_token set revoked_at = now(), revoked_reason = 'UNREGISTERED' where user_id = %s",
        (people[2],),
    )
    assert ask(
        db,
        "select platform, live, people, unseen_30_days, revoked, reasons, prunable from herald.token_counts()",
    ) == [("android", 3, 3, 2, 1, {"UNREGISTERED": 1}, 1)]
    assert ask(db, "select prunable from herald.token_counts('35 days')") == [(2,)]
    assert ask(db, "select herald.prune_tokens()") == [(1,)]
    assert ask(db, "select herald.prune_tokens('35 days', 1)") == [(1,)]
    assert ask(db, "select count(*) from herald.device_token") == [(2,)]


def test_status_counts_each_candidate_once_whichever_run_found_it(organisation: Organisation) -> None:
    db = organisation.db
    organisation.scenario()
    sent_to, opted_out = organisation.mentor("one"), organisation.mentor("two")
    db.execute("insert into herald.opt_out (user_id) values (%s)", (opted_out,))
    for person in (sent_to, opted_out):
        organisation.activity(person)
    db.execute("select herald.evaluate_touched()")
    (prompt,) = claim(db)
    settle(db, prompt, "sent")
    db.execute("select * from herald.evaluate()")
    assert ask(db, "select due, prompts, sent, suppressed, waiting from herald.status()") == [
        (2, 1, 1, {"opted_out": 1}, 0)
    ]


def test_nothing_is_late_where_no_scenario_is_to_run(organisation: Organisation) -> None:
    db = organisation.db
    state = "select last_evaluation_at, now from herald.daemon_state()"
    ((evaluated, now),) = ask(db, state)
    assert evaluated == now, "there is none"
    scenario = organisation.scenario()
    assert ask(db, state)[0][0] is None
    db.execute("select * from herald.evaluate()")
    db.execute("update herald.evaluation_run set started_at = started_at - interval '1 hour'")
    ((evaluated, now),) = ask(db, state)
    assert now - evaluated >= timedelta(hours=1)
    db.execute("update herald.scenario set mode = 'off' where scenario_id = %s", (scenario,))
    ((evaluated, now),) = ask(db, state)
    assert evaluated == now, "the last one is off"
    assert ask(db, "select last_scheduled_at from herald.outbox_status()") == [(None,)]


def test_status_says_what_it_is_in_a_sentence_in_the_language_asked_for(organisation: Organisation) -> None:
    organisation.scenario()
    ((english, norwegian),) = ask(
        organisation.db,
        "select (select sentence from herald.status('en')), (select sentence from herald.status('nb'))",
    )
    assert english.startswith("Send at a person's 1st activity")
    assert norwegian.startswith("Send ved en persons 1. aktivitet")


def test_a_scenario_is_found_by_name_id_or_the_beginning_of_it(organisation: Organisation) -> None:
    db = organisation.db
    scenario = organisation.scenario(name="Quiet mentors")
    organisation.scenario(name="Other", scenario_id="abcd0000-0000-0000-0000-000000000000")
    find = "select scenario_id from herald.find_scenario(%s)"
    for what in ("quiet MENTORS", str(scenario), str(scenario).upper(), str(scenario)[:13]):
        assert ask(db, find, what) == [(scenario,)]
    assert ask(db, find, "abc") == []
    assert ask(db, find, "%") == []


def test_a_table_read_whole_is_found_and_an_index_mends_it(organisation: Organisation) -> None:
    db = organisation.db
    organisation.scenario("inactivity", {"days": 30})
    organisation.large_history()
    assert ask(db, "select * from herald.sequential_scans()") == []
    indexes = ask(
        db,
        "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index "
        "where indrelid = 'app.activity'::regclass and not indisprimary",
    )
    organisation.scenario("milestone", {"counts": [10]})
    db.execute("drop index app.activity_user_occurred")
    walked = "select distinct scenario_type, relation from herald.sequential_scans()"
    assert ask(db, walked) == [("milestone", "app.activity")], "by the other index, from end to end"
    db.execute("drop index app.activity_occurred")
    found = ask(db, "select distinct relation, relation_rows from herald.sequential_scans()")
    assert found == [("app.activity", 20000)]
    for _, definition in indexes:
        db.execute(definition)
    assert ask(db, "select * from herald.sequential_scans()") == []


def test_the_latest_row_of_a_large_table_is_not_the_table_read_whole(organisation: Organisation) -> None:
    db = organisation.db
    organisation.large_history()
    db.execute(
        "create function herald.due_latest("
        "p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null) "
        "returns setof herald.candidate language sql stable as $$ "
        "select a.user_id, a.activity_id, a.occurred_at from herald.source_activity as a "
        "where a.occurred_at > lower(p_window) "
        "and a.occurred_at <= least(upper(p_window), (select max(b.occurred_at) from herald.source_activity as b)) $$"
    )
    db.execute("""select herald.register_scenario_type('latest', 'herald.due_latest', '{"en": "Send"}', '{}')""")
    organisation.scenario("latest", {})
    assert ask(db, "select * from herald.sequential_scans()") == []
