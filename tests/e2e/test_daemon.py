"""The daemon as a process: rows are written as the app writes them, and what reached FCM is read from the emulator."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import orjson
import psycopg
import pytest

from tests.support.daemon import PATIENCE, Daemon, awake, running_daemon, wait_asleep, wait_for
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from uuid import UUID

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.postgres import Database

SENT = 'pgherald_prompts_total{scenario_type="milestone",outcome="sent"}'
NOTIFIED = 'pgherald_wakeups_total{source="notify"}'
POLLED = 'pgherald_wakeups_total{source="poll"}'


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


@pytest.fixture
def daemon(database: Database, emulator: EmulatorProcess, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that would not look by itself for an hour: what it finds, it was told."""
    with running_daemon(database.daemon_dsn, emulator, tmp_path, {"PGHERALD_POLL_INTERVAL": "3600"}) as running:
        yield running


def settled(organisation: Organisation, count: int = 1) -> None:
    """Wait until so many notifications are recorded."""
    wait_for(lambda: len(organisation.notifications()) >= count)


def enqueue_all(organisation: Organisation, people: Sequence[UUID]) -> None:
    """A prompt for each of them, all at once."""
    organisation.db.execute(
        "select herald.enqueue(%s, u, 'by-hand') from unnest(%s::uuid[]) as u", (organisation.scenario(), people)
    )


def test_an_insert_becomes_one_push_one_notification_and_one_history_row(
    organisation: Organisation, daemon: Daemon, emulator: EmulatorProcess
) -> None:
    organisation.scenario()
    person = organisation.mentor("phone-1")
    wait_asleep(organisation.db)
    organisation.activity(person)
    settled(organisation)
    (message,) = emulator.messages()
    assert message["token"] == "phone-1"
    assert message["message"]["data"]["scenario_type"] == "milestone"
    assert [row[0] for row in organisation.notifications()] == [person]
    assert organisation.histories() == [(person, "dispatched", None, 1)]
    daemon.wait_for_metric(SENT, 1)
    daemon.wait_for_metric('pgherald_fcm_responses_total{code="OK"}', 1)
    daemon.wait_for_metric(NOTIFIED, lambda times: times >= 1)
    assert daemon.wait_for_event("batch_dispatched")["dispatched"] == 1


def test_a_transaction_that_commits_late_is_not_missed(
    database: Database, organisation: Organisation, daemon: Daemon, emulator: EmulatorProcess
) -> None:
    organisation.scenario()
    late, prompt = organisation.mentor("phone-late"), organisation.mentor("phone-prompt")
    with psycopg.connect(database.dsn) as slow:
        slow.execute("insert into app.activity (user_id, activity_type) values (%s, 'contact')", (late,))
        organisation.activity(prompt)
        settled(organisation)
        organisation.db.execute("select herald.evaluate()")  # the scheduled run passes over the moment of the open one
        slow.commit()
    settled(organisation, 2)
    assert sorted(message["token"] for message in emulator.messages()) == ["phone-late", "phone-prompt"]


def test_a_writer_that_saw_the_daemon_awake_is_found_without_a_ring(
    database: Database, organisation: Organisation, daemon: Daemon, emulator: EmulatorProcess
) -> None:
    organisation.scenario()
    late = organisation.mentor("phone-late")
    others = organisation.mentors(100)
    # FCM is so slow that ready prompts wait for a free slot as long as this writer needs: it sees the daemon awake, and
    # does not ring.
    emulator.set_faults({"do": "latency", "seconds": 3})
    with psycopg.connect(database.dsn) as writer:
        organisation.db.execute(
            "insert into app.activity (user_id, activity_type) select u, 'contact' from unnest(%s::uuid[]) as u",
            (others,),
        )
        wait_for(lambda: awake(organisation.db))
        writer.execute("insert into app.activity (user_id, activity_type) values (%s, 'contact')", (late,))
        assert awake(organisation.db), "half a minute's work was done before the writer wrote"
        emulator.set_faults()
        settled(organisation, 100)
        # Being woken for something else in between must not make it forget that this writer is still out.
        for _ in range(3):
            wait_asleep(organisation.db)
            heard = daemon.metric(NOTIFIED)
            organisation.db.execute("select herald.ring()")
            daemon.wait_for_metric(NOTIFIED, lambda times, before=heard: times > before)  # type: ignore[misc]
        wait_asleep(organisation.db)
        writer.commit()
    settled(organisation, 101)
    assert "phone-late" in {message["token"] for message in emulator.messages()}


def test_people_touched_by_update_and_delete_end_right(organisation: Organisation, daemon: Daemon) -> None:
    organisation.scenario("inactivity", {"days": 30}, quiet_from="00:00", quiet_until="23:59:59")
    person = organisation.mentor("phone-1")
    back_dated = organisation.activity(person, ago="20 days")
    # Moved back beyond thirty days: due since yesterday, but it is a quiet hour, so it waits.
    organisation.db.execute("update herald.scenario set evaluated_through = now() - interval '3 days'")
    organisation.db.execute(
        "update app.activity set occurred_at = now() - interval '31 days' where id = %s", (back_dated,)
    )
    wait_for(lambda: organisation.prompts().get(person) == ("ready", "quiet_hours"))
    # An activity is entered after all: nothing is due any more, and what waited is withdrawn.
    entered = organisation.activity(person)
    wait_for(lambda: organisation.prompts().get(person) == ("skipped", "no_longer_due"))
    # It was a mistake and is deleted: due again, the same row.
    organisation.db.execute("delete from app.activity where id = %s", (entered,))
    wait_for(lambda: organisation.prompts().get(person) == ("ready", "quiet_hours"))
    assert organisation.db.execute("select count(*) from herald.prompt").fetchone() == (1,)


def test_a_hundred_thousand_rows_at_once_are_taken_in_turns(
    organisation: Organisation, daemon: Daemon, emulator: EmulatorProcess
) -> None:
    organisation.scenario(params={"counts": [100]})
    people = organisation.mentors(1000)
    organisation.db.execute(
        "insert into app.activity (user_id, activity_type) select u, 'contact' from unnest(%s::uuid[]) as u, "
        "generate_series(1, 100)",
        (people,),
    )
    settled(organisation, 1000)
    assert len(emulator.messages()) == 1000
    wait_for(lambda: organisation.db.execute("select count(*) from herald.touched_user").fetchone() == (0,))


def test_a_stop_lets_what_is_under_way_end_and_gives_the_rest_back(
    organisation: Organisation, daemon: Daemon, emulator: EmulatorProcess
) -> None:
    emulator.set_faults({"do": "latency", "seconds": 2})
    enqueue_all(organisation, organisation.mentors(100))
    daemon.wait_for_metric("pgherald_in_flight", lambda number: number > 0)
    assert daemon.stop() == 0
    accepted = len(emulator.messages())
    assert 0 < accepted < 100
    assert len(organisation.notifications()) == accepted
    statuses = [status for status, _ in organisation.prompts().values()]
    assert statuses.count("sent") == accepted
    assert statuses.count("ready") == 100 - accepted
    assert daemon.wait_for_event("stopped")["entries"] == 0
    assert "Traceback" not in daemon.log


def test_a_daemon_that_stops_says_that_it_is_not_ready(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    emulator.set_faults({"do": "silent"})
    with running_daemon(database.daemon_dsn, emulator, tmp_path, {"PGHERALD_SEND_DEADLINE": "60"}) as daemon:
        organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
        daemon.wait_for_metric("pgherald_in_flight", 1)
        daemon.send(signal.SIGTERM)
        daemon.wait_for_event("stopping")
        status, body = daemon.get("/readyz")
        assert (status, orjson.loads(body)["reasons"]) == (503, ["stopping"])
        assert daemon.stop() == 0


def test_a_transient_failure_is_tried_again_and_a_permanent_one_is_not(
    organisation: Organisation, daemon: Daemon, emulator: EmulatorProcess
) -> None:
    emulator.set_faults({"do": "status", "status": 503, "next": 1})
    scenario_id = organisation.scenario()
    person, other = organisation.mentor("phone-1"), organisation.mentor("invalid-field-2")
    organisation.enqueue(scenario_id, person)
    wait_for(lambda: len(organisation.histories()) == 1)
    assert organisation.histories() == [(person, "failed", "UNAVAILABLE", 1)]
    organisation.db.execute("update herald.prompt set not_before = now()")  # as if the back-off had passed
    organisation.enqueue(scenario_id, other)  # rings
    settled(organisation)
    wait_for(lambda: organisation.prompts()[other][0] == "failed")
    assert sorted(row[1:] for row in organisation.histories()) == [
        ("dispatched", None, 2),
        ("failed", "INVALID_ARGUMENT", 1),
        ("failed", "UNAVAILABLE", 1),
    ]


def test_an_unanswered_send_is_unknown_and_never_sent_again(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    emulator.set_faults({"do": "silent", "next": 1})
    settings = {"PGHERALD_SEND_DEADLINE": "3", "PGHERALD_POLL_INTERVAL": "0.2"}
    with running_daemon(database.daemon_dsn, emulator, tmp_path, settings) as daemon:
        daemon.wait_for_metric("pgherald_oauth_expiry_timestamp_seconds", lambda at: at > 0)
        scenario_id = organisation.scenario()
        person = organisation.mentor("phone-1")
        organisation.enqueue(scenario_id, person)
        wait_for(lambda: organisation.prompts()[person][0] == "unknown")
        daemon.wait_for_metric('pgherald_prompts_total{scenario_type="milestone",outcome="unknown"}', 1)
        assert organisation.histories() == [(person, "unknown", "TIMEOUT", 1)]
        polls = daemon.metric(POLLED)
        daemon.wait_for_metric(POLLED, lambda times: times > polls + 3)
        assert len(emulator.messages()) == 1
        assert organisation.notifications() == []


def test_a_daemon_killed_after_the_answer_leaves_no_push_without_record(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    scenario_id = organisation.scenario()
    person = organisation.mentor("phone-1")
    with running_daemon(database.daemon_dsn, emulator, tmp_path) as daemon:
        blocker = psycopg.connect(database.dsn)
        organisation.enqueue(scenario_id, person)
        settled(organisation)
        daemon.wait_for_metric("pgherald_spool_entries", 0)
        # The database takes no record from now on; the next acceptance stays in the spool.
        blocker.execute("lock table herald.scenario_notification in exclusive mode")
        another = organisation.mentor("phone-2")
        organisation.enqueue(scenario_id, another)
        daemon.wait_for_metric("pgherald_spool_entries", 1)
        daemon.kill()
        blocker.close()
    with running_daemon(database.daemon_dsn, emulator, tmp_path) as daemon:
        settled(organisation, 2)
        daemon.wait_for_metric("pgherald_spool_entries", 0)
    assert len(emulator.messages()) == 2
    assert sorted(row[1] for row in organisation.histories()) == ["dispatched", "dispatched"]


def test_the_metrics_tell_how_late_how_slow_and_what_was_held_back(
    organisation: Organisation, daemon: Daemon, emulator: EmulatorProcess
) -> None:
    db, scenario_id = organisation.db, organisation.scenario()
    emulator.set_faults({"do": "latency", "seconds": 0.25})
    db.execute(
        "select herald.enqueue(%s, %s, 'late', now() - interval '1 hour')",
        (scenario_id, organisation.mentor("phone-1")),
    )
    daemon.wait_for_metric("pgherald_due_to_sent_seconds_count", 1)
    assert 3600 < daemon.metric("pgherald_due_to_sent_seconds_sum") < 7200
    daemon.wait_for_metric("pgherald_send_seconds_count", 1)
    assert 0.25 < daemon.metric("pgherald_send_seconds_sum") < 3600

    daemon.wait_for_metric('pgherald_prompts{status="sent"}', 1)  # from here on it counts runs
    person = organisation.mentor("phone-2")
    db.execute("insert into herald.opt_out (user_id) values (%s)", (person,))
    # evaluated as somebody new: such a run could see the activity too, and it would be held back once in each
    wait_for(lambda: db.execute("select count(*) from herald.touched_user").fetchone() == (0,))
    organisation.activity(person)
    daemon.wait_for_metric('pgherald_suppressed_total{scenario_type="milestone",gate="opted_out"}', 1)
    assert daemon.metric('pgherald_evaluation_seconds_count{scenario_type="milestone"}') >= 1
    assert daemon.metric('pgherald_evaluation_seconds_sum{scenario_type="milestone"}') > 0

    assert daemon.metric('pgherald_breaker_open{breaker="quota"}') == 0
    emulator.set_faults({"do": "status", "code": "QUOTA_EXCEEDED", "retry_after": 3600})
    organisation.enqueue(scenario_id, organisation.mentor("phone-3"))
    daemon.wait_for_metric('pgherald_breaker_open{breaker="quota"}', 1)

    organisation.enqueue(scenario_id, organisation.mentor("phone-4"), "waits")
    db.execute("update herald.prompt set not_before = now() - interval '2 hours' where activity_ref = 'waits'")
    daemon.wait_for_metric("pgherald_oldest_ready_seconds", lambda seconds: 7200 <= seconds < 10_800)


def test_a_listener_that_lost_its_connection_listens_again(
    organisation: Organisation, daemon: Daemon, emulator: EmulatorProcess
) -> None:
    killed = organisation.db.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgherald listener' "
        "and datname = current_database()"
    ).fetchall()
    assert killed == [(True,)]
    daemon.wait_for_event("listening", count=2)
    organisation.scenario()
    organisation.activity(organisation.mentor("phone-1"))
    settled(organisation)
    assert daemon.metric("pgherald_listener_up") == 1
    assert daemon.metric("pgherald_listener_reconnects_total") == 1
    assert daemon.get("/readyz")[0] == 200


def test_without_a_ring_the_poll_finds_the_work(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    organisation.db.execute(
        "create or replace function herald.ring() returns void language sql security definer "
        "set search_path = pg_catalog, pg_temp as 'select'"
    )
    with running_daemon(database.daemon_dsn, emulator, tmp_path, {"PGHERALD_POLL_INTERVAL": "0.3"}) as daemon:
        scenario_id = organisation.scenario()
        organisation.enqueue(scenario_id, organisation.mentor("phone-1"))
        settled(organisation)
        daemon.wait_for_metric(POLLED, lambda times: times >= 1)
        assert daemon.metric(NOTIFIED) == 0


def test_two_daemons_never_send_the_same_prompt(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    people = organisation.mentors(400)
    emulator.set_faults({"do": "latency", "seconds": 0.1})  # so that one of them cannot be done before the other wakes
    with (
        running_daemon(database.daemon_dsn, emulator, tmp_path / "a") as first,
        running_daemon(database.daemon_dsn, emulator, tmp_path / "b") as second,
    ):
        wait_asleep(organisation.db)
        enqueue_all(organisation, people)
        settled(organisation, 400)
        wait_for(lambda: first.metric(SENT) + second.metric(SENT) == 400)
        assert min(first.metric(SENT), second.metric(SENT)) > 0
    tokens = [message["token"] for message in emulator.messages()]
    assert len(tokens) == len(set(tokens)) == 400


def test_one_daemon_at_a_time_runs_the_schedule(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    organisation.scenario("inactivity", {"days": 30})
    settings = {"PGHERALD_SCHEDULER": "internal"}

    def leader() -> int | None:
        row = organisation.db.execute(
            "select a.pid from pg_locks as l join pg_stat_activity as a on a.pid = l.pid "
            "where l.locktype = 'advisory' and l.classid = 1751479908 and l.objid = 2 and l.granted "
            "and a.datname = current_database()"
        ).fetchone()
        return None if row is None else int(row[0])

    def runs() -> int:
        row = organisation.db.execute("select count(*) from herald.evaluation_run").fetchone()
        assert row is not None
        return int(row[0])

    with running_daemon(database.daemon_dsn, emulator, tmp_path / "a", settings) as first:
        wait_for(lambda: runs() == 1)
        before = wait_for(leader)
        with running_daemon(database.daemon_dsn, emulator, tmp_path / "b", settings):
            first.stop()
            wait_for(lambda: leader() not in (None, before))
            wait_for(lambda: runs() == 2)


def test_an_evaluator_that_never_ends_does_not_keep_the_daemon_from_its_other_duties(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    db = organisation.db
    organisation.endless_scenario()
    prompt_id, _ = organisation.enqueue(organisation.scenario(), person := organisation.mentor("phone-1"))
    db.execute(
        "update herald.prompt set status = 'sending', owner = 'a daemon that died', claimed_at = now(), "
        "deadline = now() + interval '1 hour' where prompt_id = %s",
        (prompt_id,),
    )
    db.execute("delete from herald.touched_user")  # the schedule alone is to meet it
    with running_daemon(database.daemon_dsn, emulator, tmp_path, {"PGHERALD_SCHEDULER": "internal"}) as daemon:
        wait_for(lambda: db.execute("select from pg_stat_activity where wait_event = 'PgSleep'").rowcount == 1)
        db.execute("update herald.prompt set deadline = now() - interval '1 hour'")
        wait_for(lambda: organisation.prompts()[person][0] == "unknown")
        daemon.wait_for_metric('pgherald_prompts{status="unknown"}', 1)
        assert daemon.stop() == 0


def test_health_says_when_the_database_is_away(database: Database, daemon: Daemon) -> None:
    assert daemon.get("/healthz")[0] == 200
    assert daemon.get("/readyz")[0] == 200
    with database.server.admin() as admin:
        admin.execute(f"alter database {database.name} allow_connections false")
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = %s and application_name like 'pgherald%%'",
            (database.name,),
        )
        try:
            wait_for(lambda: daemon.get("/readyz")[0] == 503 or "listener_down" in daemon.get("/readyz")[1])
            assert daemon.get("/healthz")[0] == 200
        finally:
            admin.execute(f"alter database {database.name} allow_connections true")
    wait_for(lambda: daemon.get("/readyz") == (200, '{"status":"ready","reasons":[]}\n'))


def test_a_second_daemon_on_the_same_spool_does_not_start(
    database: Database, emulator: EmulatorProcess, tmp_path: Path, daemon: Daemon
) -> None:
    with running_daemon(database.daemon_dsn, emulator, tmp_path, ready=False) as second:
        assert second.wait() == 78
    assert str(daemon.pid) in second.log


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize("closed", ["2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_daemon_started_with_closed_files_sends_and_stops_in_order(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path, closed: str
) -> None:
    organisation.scenario()
    organisation.activity(organisation.mentor("phone-1"))
    wrapper = ("sh", "-c", f'exec "$@" {closed}', "sh")
    with running_daemon(database.daemon_dsn, emulator, tmp_path, ready=False, wrapper=wrapper) as daemon:
        wait_for(lambda: organisation.notifications() or not daemon.running)
        assert len(emulator.messages()) == 1
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log


def test_nothing_secret_is_in_the_log(
    organisation: Organisation, database: Database, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    with running_daemon(database.daemon_dsn, emulator, tmp_path, {"PGHERALD_LOG_LEVEL": "debug"}) as daemon:
        scenario_id = organisation.scenario()
        for token in ("hush-phone", "unregistered-hush", "invalid-hush"):
            organisation.enqueue(scenario_id, organisation.mentor(token))
        wait_for(lambda: len(organisation.histories()) == 3)
        pages = daemon.get("/metrics")[1]
        assert daemon.stop() == 0
        log = daemon.log
    for secret in ("hush", "An organisation", "A chapter", str(database.server.cluster.socket_directory)):
        assert secret not in log
        assert secret not in pages


def test_the_app_does_not_wait_for_a_daemon_that_hangs(
    organisation: Organisation, daemon: Daemon, emulator: EmulatorProcess
) -> None:
    organisation.scenario()
    people = [organisation.mentor(f"phone-{n}") for n in range(20)]
    daemon.send(signal.SIGSTOP)
    done = threading.Event()

    def write() -> None:
        for person in people:
            organisation.activity(person)
        done.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert done.wait(PATIENCE), "the app's writes wait for the daemon"
    daemon.send(signal.SIGCONT)
    settled(organisation, 20)
    assert len(emulator.messages()) == 20


def test_a_daemon_started_while_all_is_paused_is_ready_and_sends_on_resume(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    scenario_id = organisation.scenario()
    organisation.enqueue(scenario_id, organisation.mentor("phone-1"))
    organisation.db.execute("select herald.pause()")
    with running_daemon(database.daemon_dsn, emulator, tmp_path):
        assert emulator.messages() == []
        organisation.db.execute("select herald.resume()")
        settled(organisation)
    assert len(emulator.messages()) == 1


def test_a_prompt_that_comes_back_while_its_scenario_is_paused_waits_for_the_resume(
    organisation: Organisation, daemon: Daemon, emulator: EmulatorProcess
) -> None:
    emulator.set_faults({"do": "status", "status": 503, "next": 1})
    scenario_id = organisation.scenario()
    person = organisation.mentor("phone-1")
    organisation.enqueue(scenario_id, person)
    wait_for(lambda: len(organisation.histories()) == 1)
    organisation.db.execute("update herald.scenario set paused_at = now() where scenario_id = %s", (scenario_id,))
    organisation.db.execute("update herald.prompt set not_before = now()")  # as if the back-off had passed
    organisation.db.execute("select herald.ring()")
    wait_for(lambda: organisation.prompts()[person] == ("ready", "paused"))
    assert emulator.messages() == []
    organisation.db.execute("select herald.resume(%s)", (scenario_id,))
    settled(organisation)
    assert len(emulator.messages()) == 1
