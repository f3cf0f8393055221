"""One FCM emulator for the end-to-end tests of a worker, put back to its defaults before each of them; the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgherald.emulator.client import emulator_process
from tests.support.command import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

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
