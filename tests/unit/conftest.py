"""What the tests of this directory share: a way to make transports, and the log of a test."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest

from pgherald.config import LogLevel
from pgherald.log import log
from pgherald.transport import HttpTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.road import MakeRoad


@pytest.fixture
def transport() -> MakeRoad:
    """See `MakeRoad`."""

    def make(max_in_flight: int = 10, **options: Any) -> HttpTransport:
        return HttpTransport(max_in_flight, **options)

    return make


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What is said while the test runs; a misuse of the log is an error."""
    out, strict = io.StringIO(), log.strict
    log.set_up(LogLevel.DEBUG, out, strict=True)
    yield out
    log.set_up(LogLevel.INFO, None, strict=strict)
