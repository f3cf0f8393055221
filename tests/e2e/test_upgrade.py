"""Upgrades: daemons of one release on the schema of the next, a rolling change under load, and one schema by two ways.

The next release is made up here: the shipped SQL with one migration more. At a release, what its `migrate --dump-sql`
prints goes to tests/releases/VERSION.sql, and the last test upgrades from it ever after.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgherald import schema
from tests.db.test_expected_schema import dump, normalised
from tests.support.daemon import PATIENCE, running_daemon, wait_for
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    import psycopg

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.postgres import Database

RELEASES = Path(__file__).parents[1] / "releases"

pytestmark = pytest.mark.parametrize("server", ["pg18"], indirect=True)

COMPATIBLE = """-- One more column, and an index.
-- compatible: yes
set local lock_timeout = '5s';
alter table herald.prompt add column note text constraint prompt_note check (length(note) < 100);
create index prompt_note on herald.prompt (note) where note is not null;
"""

BREAKING_UNSEEN = """-- The functions are the same, and mean something else.
-- compatible: no
set local lock_timeout = '5s';
"""

BREAKING = """-- What the daemon calls is no more.
-- compatible: no
set local lock_timeout = '5s';
drop function herald.evaluate_touched(integer, timestamptz);
delete from herald.shipped_function where signature like 'herald.evaluate_touched%';
"""


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process the next release, with the migration given; child processes stay what they are."""
    shipped = Path(str(resources.files("pgherald") / "sql")).resolve()

    def become(migration: str) -> None:
        sql = tmp_path / "next" / "sql"
        shutil.copytree(shipped, sql)
        last = schema.shipped_version()
        (sql / "migrations" / f"{last + 1:04}_next.sql").write_text(migration)
        if migration == BREAKING:
            for file in (sql / "functions").iterdir():
                text = file.read_text()
                file.write_text(text.replace("herald.evaluate_touched", "herald.evaluate_touched_people"))
        monkeypatch.setattr(schema, "_sql", lambda: sql)

    return become


def enqueue(organisation: Organisation, scenario: UUID, people: list[UUID]) -> None:
    organisation.db.execute("select herald.enqueue(%s, u, 'by-hand') from unnest(%s::uuid[]) as u", (scenario, people))


def statuses(organisation: Organisation) -> list[str]:
    return [status for status, _ in organisation.prompts().values()]


def test_an_older_daemon_goes_on_with_a_newer_compatible_schema_and_warns(
    database: Database,
    organisation: Organisation,
    emulator: EmulatorProcess,
    tmp_path: Path,
    next_release: Callable[[str], None],
) -> None:
    next_release(COMPATIBLE)
    schema.migrate(database.migrator_dsn)
    with running_daemon(database.daemon_dsn, emulator, tmp_path) as daemon:
        assert daemon.wait_for_event("schema_newer")["level"] == "warning"
        organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
        wait_for(lambda: len(organisation.notifications()) == 1)


def test_an_older_daemon_does_not_start_on_a_breaking_schema(
    database: Database,
    organisation: Organisation,
    emulator: EmulatorProcess,
    tmp_path: Path,
    next_release: Callable[[str], None],
) -> None:
    organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
    next_release(BREAKING)
    schema.migrate(database.migrator_dsn)
    with running_daemon(database.daemon_dsn, emulator, tmp_path, ready=False) as daemon:
        assert daemon.wait() == 78
    assert "upgrade pgherald" in daemon.log
    assert statuses(organisation) == ["ready"]
    assert emulator.messages() == []


@pytest.mark.parametrize("migration", [BREAKING, BREAKING_UNSEEN])
def test_a_breaking_migration_under_a_running_daemon_stops_it_before_it_claims_again(
    database: Database,
    organisation: Organisation,
    emulator: EmulatorProcess,
    tmp_path: Path,
    next_release: Callable[[str], None],
    migration: str,
) -> None:
    emulator.set_faults({"do": "latency", "seconds": 0.5})  # it has enough to do for almost a minute
    scenario = organisation.scenario()
    enqueue(organisation, scenario, organisation.mentors(1000))
    with running_daemon(database.daemon_dsn, emulator, tmp_path, ready=False) as daemon:
        wait_for(lambda: len(organisation.notifications()) > 20)
        next_release(migration)
        schema.migrate(database.migrator_dsn)
        row = organisation.db.execute("select clock_timestamp()").fetchone()
        assert row is not None
        assert daemon.wait() == 78
        assert "upgrade pgherald" in daemon.log
        assert '"schema_broke"' in daemon.log
        assert "Traceback" not in daemon.log
    late = organisation.db.execute("select count(*) from herald.prompt where claimed_at > %s", row).fetchone()
    assert late == (0,), "claimed after the migration had committed"
    # What was under way came to its end, and everything else is left for the new release.
    found = statuses(organisation)
    assert found.count("sent") == len(organisation.notifications()) == len(emulator.messages())
    assert found.count("ready") == 1000 - found.count("sent") > 0


def test_a_compatible_migration_under_a_running_daemon_is_noticed_and_nothing_stops(
    database: Database,
    organisation: Organisation,
    emulator: EmulatorProcess,
    tmp_path: Path,
    next_release: Callable[[str], None],
) -> None:
    scenario = organisation.scenario()
    organisation.enqueue(scenario, organisation.mentor("phone-tomorrow"))
    organisation.db.execute("update herald.prompt set not_before = now() + interval '1 day'")
    with running_daemon(database.daemon_dsn, emulator, tmp_path) as daemon:
        daemon.wait_for_metric('pgherald_prompts{status="ready"}', 1)  # a change is told from the measuring before it
        next_release(COMPATIBLE)
        schema.migrate(database.migrator_dsn)
        assert daemon.wait_for_event("schema_changed")["level"] == "warning"
        organisation.enqueue(scenario, organisation.mentor("phone-1"))
        wait_for(lambda: len(organisation.notifications()) == 1)


def test_a_rolling_upgrade_under_load_loses_and_repeats_nothing(
    database: Database,
    organisation: Organisation,
    emulator: EmulatorProcess,
    tmp_path: Path,
    next_release: Callable[[str], None],
) -> None:
    app = Organisation(database.connect())
    scenario = app.scenario()
    enough = threading.Event()
    written = 0

    def load() -> None:
        nonlocal written
        while not enough.wait(0.05):
            enqueue(app, scenario, app.mentors(10))
            written += 10

    loader = threading.Thread(target=load, daemon=True)
    with (
        ExitStack() as stack,
        running_daemon(database.daemon_dsn, emulator, tmp_path / "old-a") as old_a,
        running_daemon(database.daemon_dsn, emulator, tmp_path / "old-b") as old_b,
    ):
        stack.callback(enough.set)
        loader.start()
        wait_for(lambda: len(organisation.notifications()) > 50)
        next_release(COMPATIBLE)
        schema.migrate(database.migrator_dsn)  # the schema first, then one daemon after the other
        assert old_a.stop() == 0
        with running_daemon(database.daemon_dsn, emulator, tmp_path / "new-a"):
            assert old_b.stop() == 0
            with running_daemon(database.daemon_dsn, emulator, tmp_path / "new-b"):
                schema.migrate(database.migrator_dsn)  # once more, with everything running
                during = written
                wait_for(lambda: written > during)
                enough.set()
                loader.join(PATIENCE)
                wait_for(lambda: len(organisation.notifications()) == written)
        for daemon in (old_a, old_b):
            assert "Traceback" not in daemon.log
    assert statuses(organisation) == ["sent"] * written
    tokens = [message["token"] for message in emulator.messages()]
    assert len(tokens) == len(set(tokens)) == written
    assert organisation.db.execute("select * from herald.invariants() where violations > 0").fetchall() == []


def test_a_fresh_install_equals_an_upgraded_one(empty_database: Database, next_release: Callable[[str], None]) -> None:
    schema.migrate(empty_database.migrator_dsn)
    next_release(COMPATIBLE)
    assert len(schema.migrate(empty_database.migrator_dsn).applied) == 1
    with empty_database.server.database(empty=True) as fresh:
        schema.migrate(fresh.migrator_dsn)
        assert normalised(dump(fresh)) == normalised(dump(empty_database))
        assert functions(fresh) == functions(empty_database)


def test_every_release_upgrades_to_what_a_fresh_install_makes(database: Database) -> None:
    for script in [None, *sorted(RELEASES.glob("*.sql"))]:
        with database.server.database(empty=True) as upgraded:
            # Of today's release itself, the script must make the same as the command: that is the way back to it later.
            text = schema.dump_sql() if script is None else script.read_text()
            psql = database.server.cluster.binaries / "psql"
            subprocess.run(
                [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", upgraded.migrator_dsn], input=text, text=True, check=True
            )
            schema.migrate(upgraded.migrator_dsn)
            with database.server.database(empty=True) as fresh:
                schema.migrate(fresh.migrator_dsn)
                assert normalised(dump(fresh)) == normalised(dump(upgraded)), script
                assert functions(fresh) == functions(upgraded), script


def functions(database: Database) -> list[tuple[str, str]]:
    """Signature and text of each function, which the normalised dump leaves out."""
    return (
        database.connect()
        .execute(
            "select oid::regprocedure::text, pg_get_functiondef(oid) from pg_proc "
            "where pronamespace = 'herald'::regnamespace order by 1"
        )
        .fetchall()
    )
