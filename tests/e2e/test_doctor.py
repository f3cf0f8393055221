"""`pgherald doctor` on the database and the flow: what is broken is named, and mended by the remedy that it gives."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import make_conninfo

from pgherald import schema
from pgherald.doctor import database as examination
from pgherald.doctor import flow, servers
from tests.support.command import Command
from tests.support.daemon import running_daemon, wait_for
from tests.support.doctor import findings, on_18, problems, warnings
from tests.support.organisation import Organisation
from tests.support.pooler import needs_pgbouncer, pgbouncer
from tests.support.postgres import DAEMON_LOGIN, running_server

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.postgres import Database


def test_a_sound_chain_has_no_problem_and_each_link_is_named(doctor: Command, emulator: EmulatorProcess) -> None:
    answer = doctor("doctor")
    assert (answer.code, answer.err) == (0, "")
    assert "a NOTIFY comes back on the listening connection" in answer.out
    assert "the functions are those that this program ships" in answer.out
    assert "the database and this machine agree on the time" in answer.out
    assert f"{urlsplit(emulator.endpoint).netloc} gives an access token for them" in answer.out
    assert "FCM takes a message for project demo (validate_only, nothing sent)" in answer.out
    assert "nothing reaches a phone" in answer.text, "an emulator is not Google, and it says so"
    assert emulator.messages() == []
    assert problems(doctor) == {}
    every = doctor("doctor", "--verbose")
    assert "function drift: none" in every.out
    assert "sees the transactions of its own sessions only" in every.text, "what it cannot see it says"


@on_18
def test_with_more_eyes_nothing_is_left_unseen(doctor: Command, database: Database) -> None:
    answer = doctor("doctor", "--json", "--dba-url", database.dsn)
    assert (answer.code, answer.json["unseen"]) == (0, 0)
    bad = doctor("doctor", "--json", "--dba-url", "host=127.0.0.1 port=1 password=hush")
    assert "dba_connection" in findings(bad, "problem")
    assert "hush" not in bad.out + bad.err


# The way to the database.


@on_18
def test_no_connection_is_one_problem_and_the_rest_is_examined_all_the_same(doctor: Command) -> None:
    answer = doctor("doctor", "--json", PGHERALD_DATABASE_URL="postgresql://me:hush@127.0.0.1:1/app")
    assert answer.code == 1
    assert list(problems := findings(answer, "problem")) == ["connection"]
    assert problems["connection"][1] == "correct PGHERALD_DATABASE_URL, or start the server"
    assert "fcm_send" in findings(answer, "ok")
    assert "hush" not in answer.out + answer.err


@on_18
def test_where_no_connection_is_left_the_remedy_is_not_to_start_the_server(doctor: Command, database: Database) -> None:
    with database.server.admin() as admin:
        admin.execute(f"alter database {database.name} connection limit 0")
    what, remedy = problems(doctor)["connection"]
    assert "no connection is left within the limit of this role or database" in what
    assert "raise the limit" in remedy
    assert "start the server" not in remedy


@on_18
@needs_pgbouncer
def test_a_pooler_in_transaction_mode_is_found_out_and_a_direct_listener_mends_it(
    doctor: Command, database: Database, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pgbouncer(database, open_directory, "transaction") as pooled:
        with monkeypatch.context() as impatient:  # it does not come back, however long it is waited for
            impatient.setattr(examination, "NOTIFY_PATIENCE", 0.5)
            what, remedy = problems(Command({**doctor.settings, "PGHERALD_DATABASE_URL": pooled}))["listen"]
        assert "a pooler (pgbouncer, Supavisor) in transaction mode" in what
        assert "set PGHERALD_LISTEN_URL to a direct connection" in remedy
        mended = {**doctor.settings, "PGHERALD_DATABASE_URL": pooled, "PGHERALD_LISTEN_URL": database.daemon_dsn}
        answer = Command(mended)("doctor", "--json")
        assert answer.code == 0, answer.out
        assert "(through a pooler)" in findings(answer, "ok")["connection"][0]


@on_18
@needs_pgbouncer
def test_a_pooler_in_session_mode_is_good_enough(doctor: Command, database: Database, open_directory: Path) -> None:
    with pgbouncer(database, open_directory, "session") as pooled:
        answer = Command({**doctor.settings, "PGHERALD_DATABASE_URL": pooled})("doctor", "--json")
    assert answer.code == 0, answer.out
    assert "through a pooler in session mode" in findings(answer, "ok")["listen"][0]


@on_18
def test_a_listener_in_another_database_hears_nothing_and_is_told(
    doctor: Command, database: Database, empty_database: Database
) -> None:
    other = make_conninfo(database.daemon_dsn, dbname=empty_database.name)
    what, _ = problems(Command({**doctor.settings, "PGHERALD_LISTEN_URL": other}))["listen"]
    assert f"PGHERALD_LISTEN_URL leads to database {empty_database.name}, the other one to {database.name}" in what


@on_18
def test_a_login_that_may_only_read_is_a_problem(doctor: Command, database: Database) -> None:
    read_only = make_conninfo(database.daemon_dsn, options="-c default_transaction_read_only=on")
    what, remedy = problems(Command({**doctor.settings, "PGHERALD_DATABASE_URL": read_only}))["primary"]
    assert "read-only" in what
    assert "set default_transaction_read_only = off" in remedy


@on_18
def test_a_login_whose_dates_cannot_be_read_is_refused_with_the_statement_that_mends_it(
    doctor: Command, database: Database
) -> None:
    for parameter, style, wanted in (("DateStyle", "German", "ISO"), ("IntervalStyle", "iso_8601", "postgres")):
        dsn = make_conninfo(database.daemon_dsn, options=f"-c {parameter}={style}")
        there = Command({**doctor.settings, "PGHERALD_DATABASE_URL": dsn})
        remedy = f'alter role "herald_daemon_login" set {parameter} = {wanted}'
        assert problems(there)["connection"][1] == remedy
        for command in ("run", "evaluate"):
            answer = there(command)
            assert (answer.code, answer.err.rpartition(": ")[2]) == (78, f"{remedy}\n")


@on_18
def test_row_security_off_is_not_taken_for_a_missing_right(doctor: Command, database: Database) -> None:
    dsn = make_conninfo(database.daemon_dsn, options="-c row_security=off")
    what, remedy = problems(Command({**doctor.settings, "PGHERALD_DATABASE_URL": dsn}))["schema"]
    assert "row_security" in what
    assert remedy == 'alter role "herald_daemon_login" set row_security = on'
    assert remedy in Command({**doctor.settings, "PGHERALD_DATABASE_URL": dsn})("status").err


@on_18
def test_a_time_out_of_the_login_that_cuts_runs_off_is_a_warning(doctor: Command, database: Database) -> None:
    for timeout, warned in (("20s", True), ("5min", False), ("0", False)):
        dsn = make_conninfo(database.daemon_dsn, options=f"-c statement_timeout={timeout}")
        found = warnings(Command({**doctor.settings, "PGHERALD_DATABASE_URL": dsn}))
        assert ("timeouts" in found) == warned
        if warned:
            what, remedy = found["timeouts"]
            assert what.startswith(f"statement_timeout = {timeout} for this login")
            assert remedy == 'alter role "herald_daemon_login" set statement_timeout = 0'


@on_18
def test_a_session_that_the_server_ends_is_a_problem_and_the_rest_is_examined(
    doctor: Command, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_: int) -> list[servers.Bug]:
        db.execute(
            "select pg_terminate_backend(pid, 60000) from pg_stat_activity "
            "where application_name = 'pgherald' and datname = current_database()"
        )
        return []

    monkeypatch.setattr(examination, "bugs_of", end)
    answer = doctor("doctor", "--json")
    assert "lost while this was looked at" in findings(answer, "problem")["connection"][0]
    assert "fcm_send" in findings(answer, "ok")


def test_old_minor_releases_are_known_by_their_bugs() -> None:
    assert [bug.serious for bug in servers.bugs_of(150_002)] == [True, True, False, False, False, False]
    assert [bug.fixed_in[17] for bug in servers.bugs_of(170_001)] == [8, 6, 11]
    for bug in servers.BUGS:
        for major, minor in bug.fixed_in.items():
            assert bug in servers.bugs_of(major * 10_000 + minor - 1)
            assert bug not in servers.bugs_of(major * 10_000 + minor)
    assert servers.bugs_of(150_020) == servers.bugs_of(180_006) == servers.bugs_of(190_000) == []


@on_18
def test_an_old_minor_release_is_a_problem_with_the_release_that_mends_it(
    doctor: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = examination._FACTS.replace("current_setting('server_version_num')::integer", "abs(150002)")  # noqa: SLF001
    monkeypatch.setattr(examination, "_FACTS", facts)
    what, remedy = problems(doctor)["server_version"]
    assert "CVE-" in what
    assert re.search(r"update to 15\.\d+ or later", remedy)


# Schedule and queue.


def test_a_sound_pg_cron_is_seen_by_the_role_that_scheduled_it_and_unseen_by_the_daemon(
    cron_database: Database, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    schema.migrate(cron_database.migrator_dsn)
    doctor = Command(
        {
            "PGHERALD_DATABASE_URL": cron_database.daemon_dsn,
            "PGHERALD_STATE_DIR": str(tmp_path / "state"),
            **emulator.environment,
        }
    )
    before = findings(doctor("doctor", "--json"), "unseen")["pg_cron"][0]
    assert re.fullmatch(r'pg_cron is installed, but "\w+" may not see its jobs', before)
    db = cron_database.connect()
    Organisation(db).scenario()
    db.execute("select * from herald.evaluate()")
    answer = doctor("doctor", "--json")
    assert answer.code == 0, answer.out
    assert "pg_cron evidently makes the scheduled runs" in findings(answer, "unseen")["pg_cron"][0]
    answer = doctor("doctor", "--json", "--dba-url", cron_database.migrator_dsn)
    assert answer.code == 0, answer.out
    assert "are there, active, and run" in findings(answer, "ok")["pg_cron"][0]

    dba = ("--dba-url", cron_database.migrator_dsn)
    db.execute("update cron.job set active = false where jobname = 'herald-maintain'")
    what, remedy = problems(doctor, *dba)["checks/40_cron_job"]
    assert "herald-maintain" in what
    unschedule = re.search(r"select cron\.unschedule\('[^']+'\)", remedy)
    assert unschedule is not None
    assert remedy.endswith("then pgherald migrate")
    cron_database.connect("migrator").execute(unschedule[0])
    schema.migrate(cron_database.migrator_dsn)
    assert problems(doctor, *dba) == {}

    cron_database.connect("migrator").execute("select cron.unschedule('herald-evaluate')")
    what, remedy = problems(doctor, *dba)["checks/40_cron_job"]
    assert "has no job herald-evaluate" in what
    assert remedy == "pgherald migrate"
    schema.migrate(cron_database.migrator_dsn)
    assert problems(doctor, *dba) == {}

    db.execute("create role gone login superuser")
    db.execute("set role gone")
    db.execute("select cron.schedule('somebody-s', '0 0 1 1 *', 'select 1')")
    db.execute("reset role")
    db.execute("drop role gone")
    superuser = ("--dba-url", cron_database.dsn)
    what, remedy = problems(doctor, *superuser)["pg_cron"]
    assert 'pg_cron\'s job somebody-s belongs to role "gone", which does not exist' in what
    db.execute(remedy.partition(";")[0])
    assert problems(doctor, *superuser) == {}

    let_no_job_run(db)
    db.execute("update herald.evaluation_run set started_at = started_at - interval '10 minutes'")
    what, remedy = problems(doctor, *superuser)["pg_cron"]
    assert what == "pg_cron's job herald-evaluate is active, but never ran"
    assert remedy.startswith("ask again in a minute, if it was scheduled just now; else pg_cron must be in shared_")


def let_no_job_run(db: psycopg.Connection) -> None:
    """As if pg_cron's launcher had never been at work: a minute that begins now is not to start a job."""
    db.execute("update cron.job set schedule = '0 0 1 1 *'")
    running = "select from pg_stat_activity where backend_type like 'pg_cron%' and backend_type <> 'pg_cron launcher'"
    wait_for(lambda: db.execute(running).fetchall() == [])
    db.execute("delete from cron.job_run_details")


@on_18
def test_nobody_to_make_the_scheduled_runs_is_a_problem(doctor: Command, db: psycopg.Connection) -> None:
    Organisation(db).scenario()
    what, remedy = problems(Command({**doctor.settings, "PGHERALD_SCHEDULER": "off"}))["schedule"]
    assert "nobody makes scheduled runs" in what
    assert remedy.startswith("PGHERALD_SCHEDULER=auto")
    db.execute("update herald.scenario set created_at = now() - interval '1 hour'")
    assert "no scheduled run since" in problems(doctor)["checks/41_stale_evaluation"][0]
    db.execute("select * from herald.evaluate()")
    assert problems(doctor) == {}


@on_18
def test_daemons_are_counted_wherever_they_run(
    doctor: Command, database: Database, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    what, remedy = warnings(doctor)["daemons"]
    assert "nothing is sent" in what
    assert "pgherald run" in remedy
    with running_daemon(database.daemon_dsn, emulator, tmp_path / "daemon"):
        assert findings(doctor("doctor", "--json"), "ok")["daemons"][0] == "1 daemon listens"


@on_18
def test_a_queue_that_nobody_serves_is_a_problem_and_a_pause_a_warning(doctor: Command, db: psycopg.Connection) -> None:
    organisation = Organisation(db)
    organisation.enqueue(organisation.scenario(), organisation.mentor("device"))
    db.execute("update herald.prompt set not_before = now() - interval '2 minutes'")
    what, remedy = problems(doctor)["queue"]
    assert "1 prompt wait, the oldest for 2 min" in what or "1 prompt waits, the oldest for 2 min" in what
    assert "pgherald run" in remedy
    db.execute("select herald.pause()")
    assert problems(doctor) == {}
    assert warnings(doctor)["paused"][1] == "pgherald resume"
    db.execute("update herald.prompt set status = 'unknown'")
    assert warnings(doctor)["unknown"][1] == "pgherald unknown list"


# Indexes and transactions.


@on_18
def test_a_missing_index_of_a_large_source_table_is_named_and_made(doctor: Command, db: psycopg.Connection) -> None:
    organisation = Organisation(db)
    organisation.scenario("inactivity", {"days": 30})
    organisation.large_history()
    assert "plans" not in warnings(doctor)
    db.execute("drop index app.activity_occurred, app.activity_user_occurred")
    what, remedy = warnings(doctor)["plans"]
    assert (
        "app.activity (20,000 rows) is read whole for each scheduled run and each changed person of inactivity" in what
    )
    assert remedy == (
        "create index concurrently on app.activity (occurred_at); "
        "create index concurrently on app.activity (user_id, occurred_at); analyze app.activity"
    )
    for statement in remedy.split("; "):
        db.execute(statement)
    assert "plans" not in warnings(doctor)


@on_18
def test_an_idle_transaction_is_found_by_its_session_and_ended_by_its_remedy(
    doctor: Command, database: Database, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    idler = psycopg.connect(database.dsn, application_name="forgotten shell")
    try:
        idler.execute("select 1")
        monkeypatch.setattr(flow, "IDLE_WARNING", -1.0)
        monkeypatch.setattr(flow, "IDLE_PROBLEM", -1.0)
        what, remedy = problems(doctor, "--dba-url", database.dsn)["transactions"]
        assert f"(forgotten shell), pid {idler.info.backend_pid}" in what
        assert "idle in transaction" in what
        db.execute(remedy.partition(";")[0])
        wait_for(
            lambda: (
                db.execute(
                    "select count(*) = 0 from pg_stat_activity where application_name = 'forgotten shell'"
                ).fetchone()
                == (True,)
            )
        )
        assert problems(doctor, "--dba-url", database.dsn) == {}
    finally:
        idler.close()


@on_18
def test_commits_that_wait_for_a_synchronous_standby_are_told(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "UNCONFIRMED_PROBLEM", 0.0)
    with running_server("pg18") as server, server.template(), server.database() as database, server.admin() as admin:
        doctor = Command({**settings, "PGHERALD_DATABASE_URL": database.daemon_dsn})
        writer = database.connect(DAEMON_LOGIN)
        admin.execute("alter system set synchronous_standby_names = 'gone'")
        admin.execute("select pg_reload_conf()")
        over = Event()

        def commit() -> None:
            # those that come before the server has taken the setting up do not wait
            while not over.is_set():
                writer.execute("select lo_create(0)")

        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(commit)
            try:
                wait_for(
                    lambda: (
                        admin.execute("select count(*) from pg_stat_activity where wait_event = 'SyncRep'").fetchone()
                        == (1,)
                    )
                )
                what, remedy = problems(doctor)["synchronous_standby"]
                assert what.startswith("1 commit waits for a synchronous standby")
                over.set()
                for statement in remedy.partition(": ")[2].split("; "):
                    admin.execute(statement)
                waiting.result()
                assert "synchronous_standby" not in problems(doctor)
            finally:
                over.set()
                admin.execute("alter system reset synchronous_standby_names")
                admin.execute("select pg_reload_conf()")
