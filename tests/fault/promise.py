"""What a fault test takes: a maker of worlds, the promise that is checked at its end, and a control that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

import pytest

from tests.fault.invariants import Finding
from tests.fault.world import World

Worlds: TypeAlias = Callable[..., AbstractContextManager[World]]
Promise: TypeAlias = Callable[..., Finding]


def with_control(naive: str) -> pytest.MarkDecorator:
    """Have the daemon as it is keep the promise, and this variant of `naive` break it."""
    return pytest.mark.parametrize(
        "variant",
        [pytest.param(None, id="promise"), pytest.param(naive, id="control", marks=pytest.mark.thorough)],
    )
