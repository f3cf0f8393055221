"""`pgherald migrate`: all or nothing, repeatable, harmless beside others, and exactly what the files say."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import TYPE_CHECKING, NoReturn

import pytest
from psycopg.conninfo import make_conninfo

from pgherald import schema
from pgherald.errors import ConfigError, HeraldError
from tests.support.postgres import CRON_DATABASE, DEBIAN_15, MIGRATOR, running_server

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import psycopg

    from tests.support.postgres import Database, Server


def schema_of(database: Database) -> list[str]:
    """Everything in the database as pg_dump tells it, with the rows that migrate writes."""
    dumped = subprocess.run(
        [database.server.cluster.binaries / "pg_dump", "--schema-only", "--restrict-key=none", database.dsn],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = database.connect().execute(
        "select 'migration', version::text, checksum from herald.migration "
        "union all select 'function', signature, fingerprint || grantees::text from herald.shipped_function "
        "union all select 'type', scenario_type, md5(row(evaluator, still_due, why, description, params_schema)::text) "
        "from herald.scenario_type order by 1, 2"
    )
    return dumped.splitlines() + [" ".join(row) for row in rows]


def herald_exists(database: Database) -> bool:
    row = database.connect().execute("select to_regnamespace('herald') is not null").fetchone()
    assert row is not None
    return bool(row[0])


def functions_in(database: Database) -> set[str]:
    found = database.connect().execute("select proname from pg_proc where pronamespace = 'herald'::regnamespace")
    return {name for (name,) in found}


def functions_of_the_files() -> set[str]:
    names: set[str] = set()
    for folder in ("functions", "scenarios"):
        for file in (resources.files("pgherald") / "sql" / folder).iterdir():
            made = re.findall(
                r"^create (?:or replace )?(?:function|procedure) (\S+?)\(", file.read_text(), re.MULTILINE
            )
            assert all(name.startswith("herald.") for name in made), file.name
            names.update(name.removeprefix("herald.") for name in made)
    return names


def test_the_functions_in_the_schema_are_exactly_those_of_the_files(database: Database) -> None:
    assert functions_in(database) == functions_of_the_files()
    remembered = database.connect().execute(
        "select count(*) filter (where f.signature is null), count(*) filter (where p.oid is null) "
        "from herald.shipped_function as f full join ("
        "select oid from pg_proc where pronamespace = 'herald'::regnamespace) as p "
        "on p.oid = to_regprocedure(f.signature)"
    )
    assert remembered.fetchone() == (0, 0)


def test_a_function_that_is_no_longer_shipped_is_dropped(database: Database) -> None:
    admin = database.connect(MIGRATOR)
    admin.execute("create function herald.retired(p_now timestamptz) returns int language sql return 1")
    admin.execute("insert into herald.shipped_function values ('herald.retired(timestamp with time zone)', '', '{}')")
    report = schema.migrate(database.migrator_dsn)
    assert report.dropped == ("herald.retired(timestamp with time zone)",)
    assert functions_in(database) == functions_of_the_files()
    assert schema.migrate(database.migrator_dsn).dropped == ()


def test_a_retired_function_that_something_depends_on_stays_and_is_named(database: Database) -> None:
    admin = database.connect(MIGRATOR)
    admin.execute("create function herald.retired() returns int language sql return 1")
    admin.execute("insert into herald.shipped_function values ('herald.retired()', '', '{}')")
    admin.execute("create view public.report as select herald.retired()")
    report = schema.migrate(database.migrator_dsn)
    assert report.dropped == ()
    assert [w for w in report.warnings if "herald.retired()" in w and "view public.report depends" in w]
    assert "retired" in functions_in(database)


def test_a_function_that_somebody_else_made_in_the_schema_stays_and_is_reported(database: Database) -> None:
    admin = database.connect(MIGRATOR)
    admin.execute("create function herald.mine() returns int language sql return 1")
    admin.execute(
        "create function herald.due_birthday("
        "p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null) "
        "returns setof herald.candidate language sql stable return null::herald.candidate"
    )
    admin.execute(
        "select herald.register_scenario_type('birthday', 'herald.due_birthday', %s, '{}')", ('{"en": "Send"}',)
    )
    for _ in range(2):
        report = schema.migrate(database.migrator_dsn)
        assert report.dropped == ()
        assert [w for w in report.warnings if "herald." in w] == [
            "herald.mine() is not part of pgherald: left as it is; a schema of its own would be a safer place"
        ]
    assert {"mine", "due_birthday"} <= functions_in(database)


def test_migrating_again_changes_nothing(database: Database) -> None:
    before = schema_of(database)
    report = schema.migrate(database.migrator_dsn, with_reference=True)
    assert report.applied == ()
    assert report.dropped == ()
    assert schema_of(database) == before


def test_a_dump_and_its_restore_leave_each_function_as_migrate_left_it(database: Database) -> None:
    admin = database.connect()
    made = admin.execute("select pg_get_functiondef(oid) from pg_proc where pronamespace = 'herald'::regnamespace")
    for (definition,) in made.fetchall():
        admin.execute(definition)
    changed = admin.execute(dict(schema.checks())["20_function_drift"])
    assert changed.fetchall() == []


def test_what_migrate_left_does_not_depend_on_the_interval_style_of_its_login(database: Database) -> None:
    schema.migrate(make_conninfo(database.migrator_dsn, options="-c intervalstyle=postgres"))
    script = schema.dump_sql()
    remembered = script[script.index("set local search_path") : script.index("do $$")]
    admin = database.connect(options="-c intervalstyle=iso_8601")
    with admin.transaction():
        admin.execute(remembered)
        changed = admin.execute(dict(schema.checks())["20_function_drift"])
        assert changed.fetchall() == []


def test_a_schema_that_was_restored_without_its_roles_is_told_to_restore_it_with_them(
    empty_database: Database,
) -> None:
    admin = empty_database.connect()
    admin.execute("create schema herald")
    admin.execute("create table herald.migration (version integer)")
    with pytest.raises(ConfigError, match=r"make the roles \(pg_dumpall --globals-only"):
        schema.migrate(empty_database.migrator_dsn)


def test_migrating_again_mends_what_was_changed_by_hand(database: Database) -> None:
    before = schema_of(database)
    admin = database.connect()
    admin.execute("create or replace function herald.ring() returns void language sql security definer as ''")
    admin.execute("drop function herald.mark_opened")
    admin.execute("revoke execute on function herald.set_opt_out from authenticated")
    admin.execute("grant execute on function herald.set_opt_out to public")
    admin.execute("drop policy coordinator_update on herald.scenario")
    admin.execute("drop trigger check_scenario on herald.scenario")
    assert schema_of(database) != before
    schema.migrate(database.migrator_dsn)
    assert sorted(schema_of(database)) == sorted(before)


def test_a_dry_run_changes_nothing_and_says_what_would_be_done(empty_database: Database) -> None:
    report = schema.migrate(empty_database.migrator_dsn, dry_run=True)
    assert report.dry_run
    assert report.applied == tuple(f"{m.version:04}_{m.name}" for m in schema.migrations())
    assert not herald_exists(empty_database)


def test_migrating_beside_running_work_waits_for_nobody(database: Database) -> None:
    worker = database.connect(MIGRATOR)
    with worker.transaction():
        for (table,) in worker.execute(
            "select oid::regclass::text from pg_class where relnamespace = 'herald'::regnamespace and relkind = 'r'"
        ).fetchall():
            worker.execute(f"lock table {table} in row exclusive mode")
        assert schema.migrate(database.migrator_dsn).applied == ()


def test_the_dumped_script_makes_what_migrate_makes(server: Server) -> None:
    with server.database(empty=True) as by_hand, server.database(empty=True) as by_program:
        psql: list[str | Path] = [
            server.cluster.binaries / "psql",
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            by_hand.migrator_dsn,
        ]
        done = subprocess.run(
            psql, input=schema.dump_sql(with_reference=True), text=True, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        schema.migrate(by_program.migrator_dsn, with_reference=True)
        assert schema_of(by_hand) == schema_of(by_program)
        assert schema.migrate(by_hand.migrator_dsn, with_reference=True).applied == ()


def test_a_dumped_script_that_fails_leaves_nothing(empty_database: Database) -> None:
    script = schema.dump_sql().replace("create table herald.prompt (", "create table herald.prompt (broken,")
    psql: list[str | Path] = [
        empty_database.server.cluster.binaries / "psql",
        "-X",
        "-q",
        "-d",
        empty_database.migrator_dsn,
    ]
    done = subprocess.run(psql, input=script, text=True, capture_output=True, check=False)
    assert "syntax error" in done.stderr
    assert not herald_exists(empty_database)


@pytest.mark.parametrize("options", ["", "-c default_transaction_isolation=serializable -c search_path=public"])
def test_twenty_at_once_in_one_database_are_harmless(empty_database: Database, options: str) -> None:
    conninfo = make_conninfo(empty_database.migrator_dsn, options=options)
    with ThreadPoolExecutor(20) as pool:
        reports = list(pool.map(lambda _: schema.migrate(conninfo), range(20)))
    assert sorted(len(r.applied) for r in reports) == [0] * 19 + [len(schema.migrations())]
    assert functions_in(empty_database) == functions_of_the_files()


@pytest.mark.parametrize("version", ["18", "15"])
def test_twenty_at_once_in_several_databases_of_a_new_cluster_are_harmless(
    version: str, request: pytest.FixtureRequest
) -> None:
    with new_cluster(version, request) as server, server.admin() as admin:
        admin.execute(f"create role {MIGRATOR} login createrole createdb")
        databases = [f"d{i}" for i in range(5)]
        for database in databases:
            admin.execute(f"create database {database} owner {MIGRATOR}")
        with ThreadPoolExecutor(20) as pool:
            reports = list(
                pool.map(lambda i: schema.migrate(server.cluster.dsn(databases[i % 5], MIGRATOR)), range(20))
            )
        assert sum(bool(r.applied) for r in reports) == 5


class Interrupted(BaseException):
    """As KeyboardInterrupt or SystemExit is: nothing in migrate catches it."""


@pytest.mark.parametrize("how", ["killed", "interrupted", "broken"])
@pytest.mark.parametrize(
    "where", ["roles.sql", "migrations/0002_flow.sql", "functions/60_outbox.sql", "scenarios/milestone.sql"]
)
def test_an_interrupted_migrate_leaves_nothing(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, where: str, how: str
) -> None:
    run = schema._run  # noqa: SLF001

    def stop(connection: psycopg.Connection) -> NoReturn:
        if how == "killed":
            empty_database.connect().execute("select pg_terminate_backend(%s)", (connection.info.backend_pid,))
        elif how == "interrupted":
            raise Interrupted
        connection.execute("select broken")
        raise AssertionError("it went on")

    def run_until(connection: psycopg.Connection, path: str, text: str) -> None:
        run(connection, path, text)
        if path == where:
            stop(connection)

    with monkeypatch.context() as patched:
        patched.setattr(schema, "_run", run_until)
        with pytest.raises((HeraldError, Interrupted)) as raised:
            schema.migrate(empty_database.migrator_dsn, with_reference=True)
    assert how != "killed" or "connection to Postgres was lost" in str(raised.value)
    assert not herald_exists(empty_database)
    schema.migrate(empty_database.migrator_dsn, with_reference=True)


def test_a_migration_with_another_text_than_was_applied_is_refused(database: Database) -> None:
    database.connect().execute("update herald.migration set checksum = 'other' where version = 2")
    before = schema_of(database)
    with pytest.raises(ConfigError, match="0002_flow was applied with another text") as raised:
        schema.migrate(database.migrator_dsn)
    assert raised.value.exit_code == 78
    assert schema_of(database) == before


def test_a_schema_that_is_newer_than_the_program_is_refused(database: Database) -> None:
    database.connect().execute("insert into herald.migration values (9999, 'later', '', false)")
    before = schema_of(database)
    with pytest.raises(ConfigError, match=r"version 9999, newer than this program's \d+: upgrade pgherald"):
        schema.migrate(database.migrator_dsn)
    assert schema_of(database) == before


def test_a_lock_that_somebody_holds_ends_migrate_with_a_word_and_without_a_trace(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_SESSION", schema._SESSION.replace("'5s'", "'50ms'"))  # noqa: SLF001
    holder = empty_database.connect()
    with holder.transaction():
        # a namespace of this name that is about to be there
        holder.execute("create schema herald")
        with pytest.raises(HeraldError, match="try again when it is quiet"):
            schema.migrate(empty_database.migrator_dsn)
        holder.execute("drop schema herald")
    schema.migrate(empty_database.migrator_dsn)


def test_a_server_that_only_reads_is_told_of_the_primary(empty_database: Database) -> None:
    read_only = make_conninfo(empty_database.migrator_dsn, options="-c default_transaction_read_only=on")
    with pytest.raises(
        ConfigError, match="is this a standby, then name the primary in PGHERALD_DATABASE_URL"
    ) as refused:
        schema.migrate(read_only)
    assert str(refused.value).startswith("migrate stopped")
    assert not herald_exists(empty_database)


def test_migrate_uses_no_object_that_only_looks_like_postgres_own(empty_database: Database) -> None:
    admin = empty_database.connect()
    admin.execute(
        f"""
        create schema trap authorization {MIGRATOR};
        create function trap.gen_random_uuid() returns uuid language sql return null::uuid;
        create function trap.now() returns timestamptz language sql return null::timestamptz;
        create function trap.format(text, text) returns text language sql return null::text;
        create function trap.same(text, text) returns boolean language sql return null::boolean;
        create operator trap.= (leftarg = text, rightarg = text, function = trap.same);
        create type trap.text as (a int);
        alter role {MIGRATOR} in database {empty_database.name} set search_path = trap, pg_catalog, public;
        """
    )
    schema.migrate(empty_database.migrator_dsn, with_reference=True)
    trapped = admin.execute(
        "select pg_describe_object(d.classid, d.objid, 0) from pg_depend as d "
        "where (d.refclassid, d.refobjid) in ("
        "select 'pg_proc'::regclass, oid from pg_proc where pronamespace = 'trap'::regnamespace "
        "union all select 'pg_operator'::regclass, oid from pg_operator where oprnamespace = 'trap'::regnamespace "
        "union all select 'pg_type'::regclass, oid from pg_type where typnamespace = 'trap'::regnamespace) "
        "and pg_describe_object(d.classid, d.objid, 0) !~ 'trap\\.'"
    )
    assert trapped.fetchall() == []


def test_pg_cron_jobs_are_scheduled_once_where_the_extension_is(cron_database: Database) -> None:
    cron_database.connect().execute(f"revoke usage on schema cron from {MIGRATOR}")
    without_right = schema.migrate(cron_database.migrator_dsn)
    assert not without_right.cron
    assert [w for w in without_right.warnings if "grant usage on schema cron" in w]
    cron_database.connect().execute(f"grant usage on schema cron to {MIGRATOR}")
    for _ in range(2):
        report = schema.migrate(cron_database.migrator_dsn)
        assert (report.cron, report.warnings) == (True, ())
    jobs = cron_database.connect().execute("select jobname, username, database, active from cron.job order by jobname")
    assert jobs.fetchall() == [
        ("herald-evaluate", MIGRATOR, CRON_DATABASE, True),
        ("herald-maintain", MIGRATOR, CRON_DATABASE, True),
    ]


def test_without_pg_cron_migrate_says_who_runs_the_schedule(database: Database) -> None:
    report = schema.migrate(database.migrator_dsn)
    assert not report.cron
    assert [w for w in report.warnings if "the daemon runs the schedule itself" in w]


def new_cluster(version: str, request: pytest.FixtureRequest) -> AbstractContextManager[Server]:
    if version == "15":
        request.getfixturevalue("pg15")
        return running_server("new15", binaries=DEBIAN_15)
    return running_server("new18")
