"""One FCM emulator for the end-to-end tests of a worker, put back to its defaults before each of them; the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgherald.emulator.client import emulator_process
from tests.support.command import Command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.postgres import Database


@pytest.fixture(scope="session")
def running_emulator() -> Iterator[EmulatorProcess]:
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def emulator(running_emulator: EmulatorProcess) -> EmulatorProcess:
    """Without faults, without messages."""
    running_emulator.set_faults()
    running_emulator.clear()
    return running_emulator


@pytest.fixture
def pgherald(database: Database) -> Command:
    """The commands of the daemon's role, without FCM."""
    return Command({"PGHERALD_DATABASE_URL": database.daemon_dsn})


@pytest.fixture
def settings(emulator: EmulatorProcess, database: Database, tmp_path: Path) -> dict[str, str]:
    """Those of a daemon of `database` that sends through `emulator`."""
    return {
        "PGHERALD_DATABASE_URL": database.daemon_dsn,
        "PGHERALD_STATE_DIR": str(tmp_path / "state"),
        **emulator.environment,
    }


@pytest.fixture
def doctor(settings: dict[str, str]) -> Command:
    """The commands with the whole chain: a database, a state directory, an FCM."""
    return Command(settings)
