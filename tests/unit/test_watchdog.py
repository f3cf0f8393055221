"""What systemd's watchdog is told of a worker that hangs, or seems to."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

from pgherald import service
from pgherald.config import LogLevel

if TYPE_CHECKING:
    from pgherald.log import Log

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("hangs", "fed", "told"),
    [
        ([False, False, False, False], 4, 0),
        # as after SIGCONT: it was stopped with all the rest, and has not had its turn
        ([False, True, False, False], 4, 0),
        ([False, True, True, True], 2, 1),
        ([True, True, False, True, True], 3, 2),
    ],
)
async def test_a_worker_hangs_that_was_found_so_twice(
    hangs: list[bool],
    fed: int,
    told: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    process_log: Log,
) -> None:
    process_log.set_up(LogLevel.INFO, None, strict=True)
    monkeypatch.setattr(service, "REPORT_SECONDS", 0.0)
    looks, feeds = iter(hangs), itertools.count()
    notifier = SimpleNamespace(watchdog=lambda: next(feeds), status=lambda _: None, extend_timeout=lambda _: None)
    worker = SimpleNamespace(hangs=lambda _: next(looks), drained=anyio.Event())
    parts = SimpleNamespace(worker=worker, status=str)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await service._feed_watchdog(  # noqa: SLF001
            cast("Any", notifier), {"WATCHDOG_USEC": "20000000"}, cast("Any", parts)
        )
    assert next(feeds) == fed
    assert capfd.readouterr().err.count('"worker_hangs"') == told
