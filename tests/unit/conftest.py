"""What the tests of this directory share: a way to make transports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pgherald.transport import HttpTransport

if TYPE_CHECKING:
    from tests.support.road import MakeRoad


@pytest.fixture
def transport() -> MakeRoad:
    """See `MakeRoad`."""

    def make(max_in_flight: int = 10, **options: Any) -> HttpTransport:
        return HttpTransport(max_in_flight, **options)

    return make
