"""The daemon with its own rights, and with more than it needs: it works either way, and warns when it could do harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import running_daemon, wait_for
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.postgres import Database


@pytest.mark.parametrize(
    ("role", "rights"),
    [
        ("herald_daemon_login", set()),
        # put on by a superuser: what the login can take off, an intruder can too
        ("herald_daemon", {"superuser"}),
        ("migrator", {"createrole", "member", "tables"}),
    ],
)
def test_the_daemon_needs_execute_on_its_functions_only_and_warns_of_more(
    database: Database,
    db: psycopg.Connection,
    emulator: EmulatorProcess,
    tmp_path: Path,
    role: str,
    rights: set[str],
) -> None:
    organisation = Organisation(db)
    with running_daemon(database.dsn_as(role), emulator, tmp_path) as daemon:
        assert {event["reason"] for event in daemon.events("more_rights_than_needed")} == rights
        organisation.scenario("milestone", {"counts": [1]})
        organisation.activity(organisation.mentor("a-device"))
        wait_for(lambda: len(organisation.notifications()) == 1)
