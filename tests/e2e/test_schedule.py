"""The time path on the real extension: pg_cron runs herald.evaluate() each minute; the daemon sends what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgherald import schema
from pgherald.emulator.client import emulator_process
from tests.support.command import Command
from tests.support.daemon import running_daemon, wait_for
from tests.support.organisation import Organisation
from tests.support.postgres import CRON_DATABASE, WITH_CRON, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.postgres import Database, Server


@pytest.fixture
def cron_database(pg15: Server) -> Iterator[Database]:
    """On a server of its own: other tests drop jobs, roles and databases under their launcher's feet."""
    with (
        running_server("pg15_schedule", binaries=pg15.cluster.binaries, settings=WITH_CRON) as server,
        server.template(),
        server.database(name=CRON_DATABASE) as database,
    ):
        superuser = database.connect()
        superuser.execute("create extension pg_cron")
        superuser.execute("grant usage on schema cron to migrator")
        yield database


def test_a_dry_run_says_of_the_jobs_too_that_they_would_be_scheduled(cron_database: Database) -> None:
    migrate = Command({"PGHERALD_DATABASE_URL": cron_database.migrator_dsn})
    assert "herald-maintain (nightly) would be scheduled" in migrate("migrate", "--dry-run").text
    assert "herald-maintain (nightly) are scheduled" in migrate("migrate").text


@pytest.mark.slow
def test_pg_cron_evaluates_each_minute_and_the_daemon_leaves_it_to_it(cron_database: Database, tmp_path: Path) -> None:
    report = schema.migrate(cron_database.migrator_dsn, with_reference=True)
    assert report.cron
    db = cron_database.connect()
    jobs = db.execute("select jobname, schedule, username, active from cron.job order by jobname").fetchall()
    assert jobs == [
        ("herald-evaluate", "* * * * *", "migrator", True),
        ("herald-maintain", "17 3 * * *", "migrator", True),
    ]
    organisation = Organisation(db)
    organisation.scenario("inactivity", {"days": 30})
    with (
        emulator_process() as emulator,
        running_daemon(cron_database.daemon_dsn, emulator, tmp_path, {"PGHERALD_SCHEDULER": "auto"}) as daemon,
    ):
        assert daemon.wait_for_event("scheduler_chosen")["scheduler"] == "pg_cron"
        # Registered so that thirty days are over a moment from now: no trigger tells, only time does.
        person = organisation.mentor("phone-1", registered="29 days 23:59:57")
        wait_for(lambda: len(organisation.notifications()) == 1, seconds=180)
        assert [message["token"] for message in emulator.messages()] == ["phone-1"]
        assert organisation.histories() == [(person, "dispatched", None, 1)]
        # pg_cron writes down how a run ended after it has; the push is quicker.
        ran = "select from cron.job_run_details where command like '%evaluate%' and status = 'succeeded'"
        wait_for(lambda: db.execute(ran).fetchall())
        holders = db.execute(
            "select count(*) from pg_locks where locktype = 'advisory' and classid = 1751479908 and objid = 2"
        ).fetchone()
        assert holders == (0,), "the daemon runs the schedule although pg_cron does"
