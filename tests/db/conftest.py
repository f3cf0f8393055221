"""What the tests of the SQL start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.app import App

if TYPE_CHECKING:
    import psycopg


@pytest.fixture
def app(db: psycopg.Connection) -> App:
    """The reference app with its organisation, and nobody in it."""
    return App(db).create()
