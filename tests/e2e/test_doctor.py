"""`pgherald doctor`: each thing broken for real, seen, named, and mended by the very remedy that it gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgherald import schema
from pgherald.devices import token_giver
from pgherald.doctor import database as examination
from pgherald.doctor import flow, servers, shipped
from pgherald.emulator.client import emulator_process
from pgherald.oauth import load_credentials
from tests.support.certificates import Authority, Identity
from tests.support.command import Command
from tests.support.daemon import PATIENCE, running_daemon, wait_for
from tests.support.organisation import Organisation
from tests.support.pooler import needs_pgbouncer, pgbouncer

if TYPE_CHECKING:
    from pgherald.emulator.client import EmulatorProcess
    from tests.support.command import Answer
    from tests.support.postgres import Database

on_18 = pytest.mark.parametrize("server", ["pg18"], indirect=True)

FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@pytest.fixture
def settings(emulator: EmulatorProcess, database: Database, tmp_path: Path) -> dict[str, str]:
    return {
        "PGHERALD_DATABASE_URL": database.daemon_dsn,
        "PGHERALD_STATE_DIR": str(tmp_path / "state"),
        **emulator.environment,
    }


@pytest.fixture
def doctor(settings: dict[str, str]) -> Command:
    return Command(settings)


def findings(answer: Answer, state: str) -> dict[str, tuple[str, str]]:
    """check -> (what, remedy) of the findings of a state; one of each check."""
    return {each["check"]: (each["what"], each["remedy"]) for each in answer.json["findings"] if each["state"] == state}


def problems(doctor: Command, *arguments: str) -> dict[str, tuple[str, str]]:
    answer = doctor("doctor", "--json", *arguments)
    found = findings(answer, "problem")
    assert answer.code == (1 if found else 0)
    assert answer.json["problems"] == sum(each["state"] == "problem" for each in answer.json["findings"])
    return found


def warnings(doctor: Command, *arguments: str) -> dict[str, tuple[str, str]]:
    return findings(doctor("doctor", "--json", *arguments), "warning")


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
    assert list(findings(answer, "problem")) == ["connection"]
    assert "fcm_send" in findings(answer, "ok")
    assert "hush" not in answer.out + answer.err


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


# Schema, rights, triggers.


@on_18
def test_a_database_without_the_schema_is_told_to_migrate(doctor: Command, empty_database: Database) -> None:
    what, remedy = problems(Command({**doctor.settings, "PGHERALD_DATABASE_URL": empty_database.dsn}))["schema"]
    assert "pgherald is not installed in this database" in what
    assert remedy == "pgherald migrate"


@on_18
def test_a_login_without_the_daemon_s_role_is_told_the_grant(doctor: Command, database: Database) -> None:
    stranger = Command({**doctor.settings, "PGHERALD_DATABASE_URL": database.dsn_as("authenticator")})
    what, remedy = problems(stranger)["schema"]
    assert 'the role "authenticator" may not use pgherald' in what
    assert remedy == 'grant herald_daemon to "authenticator"'


@on_18
def test_a_login_that_may_look_but_not_claim_is_a_problem_and_the_rest_is_examined(
    doctor: Command, db: psycopg.Connection, database: Database
) -> None:
    login = f"login_{database.name}"
    db.execute(f"create role {login} login in role herald_reader".encode())
    try:
        dsn = database.server.cluster.dsn(database.name, login)
        reader = Command({**doctor.settings, "PGHERALD_DATABASE_URL": dsn})
        answer = reader("doctor", "--json")
        what, remedy = findings(answer, "problem")["login_rights"]
        assert f'the role "{login}" may not use pgherald' in what
        assert "schema_version" in findings(answer, "ok")
        db.execute(remedy)
        assert problems(reader) == {}
    finally:
        db.execute(f"drop role {login}".encode())


@on_18
def test_a_login_that_may_call_the_functions_one_by_one_needs_no_role(
    doctor: Command, db: psycopg.Connection, database: Database
) -> None:
    login = f"login_{database.name}"
    db.execute(f"create role {login} login; grant usage on schema herald to {login}".encode())
    db.execute(f"grant execute on all functions in schema herald to {login}".encode())
    try:
        dsn = database.server.cluster.dsn(database.name, login)
        assert schema.check_for_daemon(dsn) == schema.shipped_version()
        answer = Command({**doctor.settings, "PGHERALD_DATABASE_URL": dsn})("doctor", "--json")
        assert "login_rights" not in findings(answer, "problem")
    finally:
        db.execute(f"drop owned by {login}; drop role {login}".encode())


def test_a_replaced_function_is_seen_though_nobody_migrated(doctor: Command, db: psycopg.Connection) -> None:
    db.execute(
        "create or replace function herald.cooldown_window_start(p_at timestamptz, p_cooldown interval) "
        "returns timestamptz language sql immutable strict parallel safe return p_at"
    )
    what, remedy = problems(doctor)["checks/20_function_drift"]
    assert "herald.cooldown_window_start" in what
    assert "is not the one that migrate left" in what
    assert remedy == "pgherald migrate"


@on_18
def test_functions_of_another_release_are_seen_by_the_program_s_own_files(
    doctor: Command, db: psycopg.Connection
) -> None:
    """Whoever migrated with another release left what that one calls sound."""
    db.execute(
        "create or replace function herald.touched_from(p_scenario herald.scenario, p_now timestamptz) "
        "returns timestamptz language plpgsql stable as 'begin return p_now; end'"
    )
    body = db.execute("select pg_get_functiondef('herald.ring()'::regprocedure)").fetchone()
    assert body is not None
    db.execute(str(body[0]).replace("0.5", "0.6"))
    db.execute("alter table herald.shipped_function disable row level security")
    db.execute(
        "update herald.shipped_function set fingerprint = md5(pg_get_functiondef(signature::regprocedure)) "
        "where signature in ('herald.ring()')"
    )
    db.execute("alter table herald.shipped_function enable row level security")
    what, remedy = problems(doctor)["functions"]
    assert what == "the schema has ring of another release"
    assert remedy == "pgherald migrate (of this program)"


def test_every_function_of_the_files_is_read(db: psycopg.Connection) -> None:
    found = {each.name for each in shipped.shipped()}
    there = {
        row[0]
        for row in db.execute("select proname from pg_proc where pronamespace = 'herald'::regnamespace").fetchall()
    }
    assert found == there
    assert sum(bool(each.body) for each in shipped.shipped()) > len(found) / 2


@on_18
def test_a_dropped_trigger_is_found_and_its_remedy_mends_it(
    doctor: Command, database: Database, db: psycopg.Connection
) -> None:
    db.execute("drop trigger herald_touch_insert on app.activity")
    what, remedy = problems(doctor)["checks/25_missing_trigger"]
    assert "app.activity" in what
    database.connect("migrator").execute(remedy)
    assert problems(doctor) == {}
    db.execute("alter table app.activity disable trigger herald_touch_update")
    what, remedy = problems(doctor)["checks/24_disabled_trigger"]
    db.execute(remedy)
    assert problems(doctor) == {}


@on_18
def test_a_source_that_nobody_watches_is_late_and_no_problem(
    doctor: Command, database: Database, db: psycopg.Connection
) -> None:
    db.execute("select herald.unwatch('app.peer_mentor')")
    assert problems(doctor) == {}
    what, remedy = warnings(doctor)["checks/26_unwatched_source"]
    assert "its changes wait for the scheduled run" in what
    database.connect("migrator").execute(remedy)
    assert "checks/26_unwatched_source" not in warnings(doctor)


@on_18
def test_a_revoked_grant_is_found_and_its_remedy_mends_it(doctor: Command, db: psycopg.Connection) -> None:
    db.execute("revoke execute on function herald.sweep from herald_daemon")
    what, remedy = problems(doctor)["checks/14_missing_grant"]
    assert "herald.sweep" in what
    db.execute(remedy)
    assert problems(doctor) == {}


@on_18
def test_row_level_security_switched_off_is_found_and_its_remedy_mends_it(
    doctor: Command, db: psycopg.Connection
) -> None:
    db.execute("alter table herald.device_token disable row level security")
    what, remedy = problems(doctor)["checks/12_row_security"]
    assert "herald.device_token" in what
    db.execute(remedy)
    assert problems(doctor) == {}


@on_18
def test_more_rights_than_the_daemon_needs_are_a_warning(
    doctor: Command, database: Database, db: psycopg.Connection
) -> None:
    db.execute("grant select on app.peer_mentor to herald_daemon_login")
    what, remedy = warnings(doctor)["login_rights"]
    assert "app.peer_mentor" in what
    db.execute(remedy)
    assert "login_rights" not in warnings(doctor)
    found = warnings(Command({**doctor.settings, "PGHERALD_DATABASE_URL": database.dsn}))
    what, remedy = found["login_rights"]
    assert "is a superuser" in what
    assert remedy == "create role pgherald login in role herald_daemon, named in PGHERALD_DATABASE_URL"


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
    what, _ = problems(doctor, *superuser)["pg_cron"]
    assert "never ran: its launcher is not at work" in what


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
    people = organisation.mentors(100)
    db.execute(
        "insert into app.activity (user_id, activity_type, occurred_at) "
        "select (%s::uuid[])[1 + n %% 100], 'contact', now() - n * interval '1 minute' "
        "from generate_series(1, 20000) as n",
        (people,),
    )
    db.execute("analyze app.activity")
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


# This machine.


@on_18
def test_the_metrics_certificate_is_looked_at_before_prometheus_does(doctor: Command, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "ca")

    def with_tls(identity: Identity) -> Command:
        tls = {"CERTIFICATE": identity.certificate, "KEY": identity.key, "CLIENT_CA": authority.certificate}
        return Command({**doctor.settings, **{f"PGHERALD_METRICS_TLS_{name}": str(p) for name, p in tls.items()}})

    good, soon, late = (authority.server(f"for-{days}", days=days) for days in (90, 5, -1))
    told = findings(with_tls(good)("doctor", "--json"), "ok")["metrics_tls"][0]
    assert "the metrics are served over TLS to clients with a certificate, until 2" in told
    assert "runs out in 4 days" in warnings(with_tls(soon))["metrics_tls"][0]
    for of_no_use in (late, authority.client()):
        what, remedy = problems(with_tls(of_no_use))["metrics_tls"]
        assert "has run out, or is not one for a server" in what
        assert remedy == "put a new one there, and reload the daemon"
    what, remedy = problems(with_tls(Identity(good.certificate, soon.key)))["metrics_tls"]
    assert what == f"the daemon will not start: {soon.key}: it is not the key of the certificate {good.certificate}"
    assert remedy == "mend the file, or PGHERALD_METRICS_TLS_KEY"


@on_18
def test_a_state_directory_of_no_use_is_a_problem(doctor: Command, tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    what, remedy = problems(Command({**doctor.settings, "PGHERALD_STATE_DIR": str(blocked)}))["state_directory"]
    assert str(blocked) in what
    assert "PGHERALD_STATE_DIR" in remedy


@on_18
def test_a_damaged_spool_is_told(doctor: Command, tmp_path: Path) -> None:
    spool = tmp_path / "state" / "spool"
    spool.mkdir(parents=True)
    (spool / "0000000000000001.spool.damaged").write_bytes(b"?")
    assert "1 spool file could not be read whole" in problems(doctor)["spool_damaged"][0]


@on_18
@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed")
def test_a_clock_two_hours_off_is_found_and_blamed_for_the_key_that_google_refuses(
    settings: dict[str, str],
) -> None:
    answer = _as_a_process(
        settings, LD_PRELOAD=str(FAKETIME), FAKETIME="+2h", FAKETIME_DONT_FAKE_MONOTONIC="1", FAKETIME_NO_CACHE="1"
    )
    found = {each["check"]: each for each in answer["findings"] if each["state"] == "problem"}
    assert set(found) == {"database_clock", "fcm_clock", "oauth"}
    assert re.search(r"the database's clock is (2 h|120 min) behind this machine's", found["database_clock"]["what"])
    assert re.search(r"FCM's clock is (2 h|120 min) behind this machine's", found["fcm_clock"]["what"])
    no_token = r"127\.0\.0\.1:\d+ gives no access token, because this machine's clock is (2 h|120 min) off"
    assert re.match(no_token, found["oauth"]["what"])
    assert found["oauth"]["remedy"] == "timedatectl set-ntp true"


def _as_a_process(settings: dict[str, str], **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "pgherald.cli", "doctor", "--json"],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == ""
    return json.loads(done.stdout)


# Firebase Cloud Messaging.


@pytest.mark.parametrize(
    ("token_uri", "giver"),
    [
        ("https://oauth2.googleapis.com/token", "Google"),
        ("https://accounts.google.com/o/oauth2/token", "Google"),
        ("https://notgoogle.com/token", "notgoogle.com"),
        ("http://127.0.0.1:9499/token", "127.0.0.1:9499"),
    ],
)
def test_google_is_named_only_where_it_is_google_that_gives_access_tokens(
    emulator: EmulatorProcess, tmp_path: Path, token_uri: str, giver: str
) -> None:
    path = tmp_path / "fcm.json"
    path.write_text(json.dumps({**json.loads(emulator.credentials_path.read_text()), "token_uri": token_uri}))
    credentials, _ = load_credentials(path, None)
    assert token_giver(credentials) == giver


@on_18
def test_a_wrong_key_is_found(settings: dict[str, str], tmp_path: Path) -> None:
    """Of another emulator: the account is unknown to this one."""
    with emulator_process("--credentials", str(tmp_path / "other.json"), "--project", "other") as other:
        key = json.loads(other.credentials_path.read_text())
    mine = json.loads(Path(settings["PGHERALD_FCM_CREDENTIALS"]).read_text())
    (tmp_path / "wrong.json").write_text(json.dumps({**mine, "private_key": key["private_key"]}))
    doctor = Command({**settings, "PGHERALD_FCM_CREDENTIALS": str(tmp_path / "wrong.json")})
    what, remedy = problems(doctor)["oauth"]
    assert re.match(r"127\.0\.0\.1:\d+ gives no access token: it does not accept this key", what)
    assert "Generate new private key" in remedy
    answer = doctor("doctor")
    assert "PRIVATE KEY" not in answer.out
    missing = problems(Command({**settings, "PGHERALD_FCM_CREDENTIALS": str(tmp_path / "none.json")}))
    assert "there is no such file" in missing["fcm_credentials"][0]


@on_18
def test_a_project_without_the_api_and_one_without_the_right_are_told_apart(
    doctor: Command, emulator: EmulatorProcess
) -> None:
    emulator.set_faults({"do": "status", "code": "SERVICE_DISABLED"})
    what, remedy = problems(doctor)["fcm_send"]
    assert "the Firebase Cloud Messaging API is not enabled in project demo" in what
    assert remedy == "gcloud services enable fcm.googleapis.com --project=demo"
    emulator.set_faults()
    what, remedy = problems(Command({**doctor.settings, "PGHERALD_FCM_PROJECT": "another-project"}))["fcm_send"]
    assert "may not send in project another-project" in what
    assert re.search(r"add-iam-policy-binding another-project --member=serviceAccount:\S+@\S+ ", remedy)


@on_18
@pytest.mark.parametrize(
    ("fault", "state", "said"),
    [
        ({"do": "status", "code": "NOT_FOUND"}, "problem", "there is no project demo at this endpoint"),
        ({"do": "status", "code": "UNAVAILABLE"}, "warning", "FCM has trouble of its own"),
        ({"do": "status", "code": "QUOTA_EXCEEDED"}, "warning", "the quota is used up"),
        ({"do": "status", "status": 502}, "problem", "BAD_ANSWER"),
    ],
)
def test_what_fcm_itself_says_is_told(
    doctor: Command, emulator: EmulatorProcess, fault: dict[str, Any], state: str, said: str
) -> None:
    emulator.set_faults(fault)
    assert said in findings(doctor("doctor", "--json"), state)["fcm_send"][0]


@on_18
def test_an_endpoint_that_is_not_there_is_told_step_by_step(doctor: Command) -> None:
    nobody = {**doctor.settings, "PGHERALD_FCM_ENDPOINT": "http://127.0.0.1:1"}
    assert "nothing listens on port 1 of 127.0.0.1" in problems(Command(nobody))["fcm_endpoint"][0]
    nowhere = {**doctor.settings, "PGHERALD_FCM_ENDPOINT": "https://fcm.invalid"}
    assert "the name fcm.invalid is not known here" in problems(Command(nowhere))["fcm_endpoint"][0]


@on_18
def test_settings_that_cannot_be_read_are_no_finding_but_exit_78(doctor: Command) -> None:
    answer = doctor("doctor", PGHERALD_MAX_RATE="fast")
    assert (answer.code, answer.out) == (78, "")
    assert "PGHERALD_MAX_RATE" in answer.err
