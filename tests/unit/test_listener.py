"""The listener without a database: how it counts and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from pgherald import listener
from pgherald.health import Health
from pgherald.listener import Doorbell, Listener
from pgherald.metrics import Metrics

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random


@pytest.mark.anyio
async def test_an_outage_is_one_reconnect_however_often_it_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = anyio.Event()

    def delay(failures: int, _: Random) -> float:
        if failures == 3:
            tried.set()
        return 0.0

    monkeypatch.setattr(listener, "reconnect_delay", delay)
    metrics = Metrics()
    ear = Listener(f"host={tmp_path}", Doorbell(), metrics, Health())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ear.run)
        await tried.wait()
        tasks.cancel_scope.cancel()
    assert metrics.listener_reconnects_total.value() == 1
