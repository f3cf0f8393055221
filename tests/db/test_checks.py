"""sql/checks: nothing to say about a healthy database; for each thing that can go wrong, the problem and its remedy.

Where the remedy is SQL it is run as it stands, and must mend what it is for.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Final

import pytest

from pgherald import schema
from tests.support import two_chapters as world
from tests.support.check_faults import FAULTS, Fault
from tests.support.postgres import DAEMON_LOGIN, MIGRATOR
from tests.support.readme import blocks
from tests.support.two_chapters import healthy

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from tests.support.postgres import Database, Server

CHECKS: Final = dict(schema.checks())


def found(connection: psycopg.Connection, check: str) -> list[tuple[str, str]]:
    return connection.execute(CHECKS[check]).fetchall()


def all_found(connection: psycopg.Connection) -> dict[str, list[tuple[str, str]]]:
    return {check: rows for check in CHECKS if (rows := found(connection, check))}


@pytest.fixture(scope="module")
def populated(server: Server) -> Iterator[psycopg.Connection]:
    with server.database() as database:
        yield healthy(database)


@pytest.mark.parametrize("role", ["postgres", MIGRATOR, DAEMON_LOGIN, "herald_reader"])
def test_a_healthy_database_has_nothing_to_say_to_any_operator(database: Database, role: str) -> None:
    healthy(database)
    connection = database.connect(role)
    for check, query in CHECKS.items():
        cursor = connection.execute(query)
        assert [c.name for c in cursor.description or []] == ["problem", "remedy"]
        assert cursor.fetchall() == [], check


def test_a_database_with_a_plain_migration_lacks_its_sources_only(empty_database: Database) -> None:
    schema.migrate(empty_database.migrator_dsn)
    assert set(all_found(empty_database.connect())) == {"30_source_undefined"}


def test_every_check_is_one_query_with_a_word_on_what_it_is_for() -> None:
    folder = resources.files("pgherald") / "sql" / "checks"
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        assert re.fullmatch(r"\d\d_[a-z_]+\.sql", file.name)
        assert text.startswith("-- ")
        assert re.findall(r";$", text, re.MULTILINE) == [";"]
        assert text.endswith(";\n")


def told(db: psycopg.Connection, fault: Fault) -> list[str]:
    """The remedies that the check offers for a fault, this one's first."""
    if fault.as_owner:
        db.execute("set role herald_owner")
    db.execute(fault.break_)
    db.execute("reset role")
    rows = found(db, fault.check)
    first = [remedy for problem, remedy in rows if re.fullmatch(fault.problem, problem)]
    assert first, rows
    return first[:1] + [remedy for _, remedy in rows if remedy != first[0]]


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.mend != "migrate" and "index" not in f.check], ids=str)
def test_each_fault_is_told_with_a_remedy_that_mends_it(populated: psycopg.Connection, fault: Fault) -> None:
    with populated.transaction(force_rollback=True):
        for remedy in told(populated, fault):
            populated.execute(fault.mend or remedy)
        assert found(populated, fault.check) == []


@pytest.mark.parametrize("fault", [f for f in FAULTS if "index" in f.check], ids=str)
def test_each_fault_of_an_index_is_mended_without_locking_the_table(database: Database, fault: Fault) -> None:
    db = healthy(database)
    for remedy in told(db, fault):
        assert " concurrently " in remedy
        db.execute(remedy)
    assert found(db, fault.check) == []


def test_what_migrate_mends_is_sent_to_migrate(database: Database) -> None:
    db = healthy(database)
    faults = [f for f in FAULTS if f.mend == "migrate"]
    for fault in faults:
        first = told(db, fault)[0]
        assert "pgherald migrate" in first or "register_scenario_type" in first or "create or replace view" in first
    schema.migrate(database.migrator_dsn, with_reference=True)
    assert {fault.check: found(db, fault.check) for fault in faults} == {fault.check: [] for fault in faults}


def test_every_check_has_a_fault_that_it_finds() -> None:
    elsewhere = {"16_role_rights", "40_cron_job"}  # see test_roles.py, and below
    assert {fault.check for fault in FAULTS} | elsewhere == set(CHECKS)


def test_views_in_between_are_followed_to_the_tables_with_the_right_owners_rights(database: Database) -> None:
    db = healthy(database)
    db.execute(
        """
        create role between_owner nologin;
        create view app.between as select * from app.activity;
        grant usage on schema app to between_owner;
        alter view app.between owner to between_owner;
        grant select on app.between to herald_owner;
        create or replace view herald.source_activity as
        select a.id::text as activity_id, a.user_id, a.activity_type, a.occurred_at, a.flags from app.between as a;
        """
    )
    try:
        assert found(db, "31_source_rights") == [
            (
                "herald.source_activity cannot read app.activity: between_owner has no right to",
                "grant select on app.activity to between_owner",
            )
        ]
        db.execute("alter view app.between set (security_invoker = true)")
        assert found(db, "31_source_rights") == []
        assert found(db, "26_unwatched_source") == []
    finally:
        db.execute("drop owned by between_owner cascade; drop role between_owner")


def test_a_watched_column_may_have_any_name_until_it_is_renamed(database: Database) -> None:
    db = healthy(database)
    db.execute("create table app.visit (id uuid primary key, besøker uuid)")
    db.execute("select herald.watch('app.visit', 'besøker')")
    assert found(db, "25_missing_trigger") == []
    db.execute("alter table app.visit rename besøker to visitor")
    ((problem, remedy),) = found(db, "25_missing_trigger")
    assert problem.startswith('table app.visit is watched by its column "besøker", which it does not have')
    assert remedy == "select herald.watch('app.visit', '<the column with the user_id>')"
    db.execute("alter table app.visit rename visitor to user_id")
    ((_, remedy),) = found(db, "25_missing_trigger")
    db.execute(remedy)
    assert found(db, "25_missing_trigger") == []


def test_a_watched_column_that_is_no_uuid_any_more_is_told(database: Database) -> None:
    db = database.connect()
    db.execute("create table app.visit (user_id uuid)")
    db.execute("select herald.watch('app.visit', 'user_id')")
    assert found(db, "25_missing_trigger") == []
    db.execute("alter table app.visit alter user_id type text")
    ((problem, remedy),) = found(db, "25_missing_trigger")
    assert problem == (
        'table app.visit is watched by its column "user_id", which is of type text and not uuid: each write of it '
        "warns, and its changes wait for the scheduled run"
    )
    db.execute(remedy)
    assert found(db, "25_missing_trigger") == []


def test_the_steps_of_readme_leave_no_source_unwatched(database: Database) -> None:
    db = database.connect()
    for table in ("peer_mentor", "activity", "assignment", "certification"):
        db.execute("select herald.unwatch(%s)", (f"app.{table}",))
    assert len(found(db, "26_unwatched_source")) == 3
    for block in blocks("sql"):
        if "herald.source_" in block.text or "herald.watch(" in block.text:
            db.execute(block.text.encode())
    assert found(db, "26_unwatched_source") == []


def test_a_restrictive_policy_that_hides_rows_is_told(database: Database) -> None:
    db = healthy(database)
    db.execute(
        "alter table app.activity enable row level security;"
        "create policy herald_reads on app.activity for select to herald_owner using (true);"
        "create policy recent on app.activity as restrictive using (occurred_at > now() - interval '1 year')"
    )
    assert len(found(db, "32_source_row_security")) == 1


def test_pg_cron_jobs_that_are_gone_inactive_doubled_or_failing_are_told(cron_database: Database) -> None:
    db = healthy(cron_database)
    check = "40_cron_job"
    assert [problem for problem, _ in found(db, check)] == [
        "pg_cron is installed, but has no job herald-evaluate",
        "pg_cron is installed, but has no job herald-maintain",
    ]
    schema.migrate(cron_database.migrator_dsn)
    assert found(db, check) == []
    for role in (MIGRATOR, DAEMON_LOGIN, "herald_reader"):
        assert found(cron_database.connect(role), check) == [], "what a role may not see is not missing"
    db.execute("update cron.job set active = false where jobname = 'herald-maintain'")
    assert found(db, check) == [
        (
            f"pg_cron job herald-maintain of {MIGRATOR} is not active",
            f"as {MIGRATOR}: select cron.unschedule('herald-maintain'), then pgherald migrate",
        )
    ]
    cron_database.connect(MIGRATOR).execute("select cron.unschedule('herald-maintain')")
    schema.migrate(cron_database.migrator_dsn)
    assert found(db, check) == []
    db.execute(
        "insert into cron.job_run_details "
        "(jobid, database, username, command, status, return_message, start_time, end_time, runid) "
        "select jobid, database, username, command, 'failed', 'secret', now(), now(), 1000000 from cron.job "
        "where jobname = 'herald-evaluate'"
    )
    ((problem, _),) = found(db, check)
    assert re.fullmatch(f"the last run of pg_cron job herald-evaluate of {MIGRATOR} failed, at .*", problem)
    db.execute("delete from cron.job_run_details")
    db.execute("select cron.schedule('herald-evaluate', '* * * * *', 'select herald.evaluate()')")
    ((problem, remedy),) = found(db, check)
    assert problem == f"pg_cron job herald-evaluate is scheduled 2 times, by {MIGRATOR}, postgres"
    db.execute(remedy)
    assert found(db, check) == []


def test_no_check_tells_a_name_a_token_or_a_text_of_an_error(database: Database) -> None:
    db = healthy(database)
    for fault in FAULTS:
        if fault.check in ("33_unknown_time_zone", "41_stale_evaluation", "42_failing_scenario", "44_stuck_prompts"):
            db.execute(fault.break_)
    told = repr(all_found(db))
    assert "Mars/Phobos" in told
    for secret in ("secret", world.TOKEN_A1, str(world.A1), str(world.B1)):
        assert secret not in told
