"""What the tests of the SQL start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import two_chapters as world
from tests.support.app import App

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from tests.support.postgres import Server


@pytest.fixture
def app(db: psycopg.Connection) -> App:
    """The reference app with its organisation, and nobody in it."""
    return App(db).create()


@pytest.fixture(scope="module")
def populated(server: Server) -> Iterator[psycopg.Connection]:
    """A superuser's connection to a database with two chapters, for all tests of a module: each undoes what it does."""
    with server.database() as database:
        connection = database.connect()
        world.populate(connection)
        yield connection
