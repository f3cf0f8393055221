"""What systemd is told, heard at a real datagram socket."""

from __future__ import annotations

import os
import socket
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

from pgherald import service
from pgherald.health import Health
from pgherald.systemd import Notifier, watchdog_interval
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, Notifier]]:
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name if request.param == "path" else f"\0{name}")
        listening.settimeout(60)
        told = name if request.param == "path" else f"@{name}"
        yield listening, Notifier.from_environ({"NOTIFY_SOCKET": told})


def test_systemd_hears_of_the_whole_life_of_the_daemon(systemd: tuple[socket.socket, Notifier]) -> None:
    listening, notifier = systemd
    assert notifier.status("replaying the spool: 3 entries")
    assert notifier.extend_timeout(30)
    assert notifier.ready("sending")
    assert notifier.watchdog()
    assert notifier.stopping()
    heard = [listening.recv(4096).decode() for _ in range(5)]
    assert heard == [
        "STATUS=replaying the spool: 3 entries",
        "EXTEND_TIMEOUT_USEC=30000000",
        "READY=1\nSTATUS=sending",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_a_reload_carries_the_clock_that_systemd_matches_it_by(systemd: tuple[socket.socket, Notifier]) -> None:
    listening, notifier = systemd
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notifier.reloading()
    reloading, clock = listening.recv(4096).decode().split("\n")
    assert reloading == "RELOADING=1"
    assert clock.startswith("MONOTONIC_USEC=")
    assert before <= int(clock.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_status_cannot_smuggle_in_a_message_of_its_own(systemd: tuple[socket.socket, Notifier]) -> None:
    listening, notifier = systemd
    assert notifier.status("waiting\nMAINPID=1\0\nREADY=1")
    assert listening.recv(4096) == b"STATUS=waiting MAINPID=1 READY=1"
    assert not notifier.status("\n")
    assert notifier.status("\ud800")
    assert listening.recv(4096) == b"STATUS=?"


@pytest.mark.parametrize(
    "address", [None, "", "/nowhere/at/all", "@nobody", "vsock:2:3", "/" + "x" * 200, "/a\0b", "x"]
)
def test_without_anybody_who_listens_nothing_happens(address: str | None) -> None:
    notifier = Notifier.from_environ({} if address is None else {"NOTIFY_SOCKET": address})
    calls = (notifier.ready, notifier.reloading, notifier.stopping, notifier.watchdog)
    assert not any([*(call() for call in calls), notifier.status("x"), notifier.extend_timeout(1)])


def test_a_systemd_that_stopped_reading_does_not_hold_up_the_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"{tmp_path}/notify")
        notifier = Notifier(f"{tmp_path}/notify")
        for _ in range(10_000):
            if not notifier.watchdog():
                break
        else:
            pytest.fail("the queue of the socket never filled up")
        with Stopwatch() as took:
            assert not notifier.watchdog()
            assert not notifier.status("x")
        assert took.seconds < 0.5
        with Stopwatch() as took:
            assert not notifier.stopping()
        assert took.seconds < 5


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_systemd_asks(environ: dict[str, str], expected: float | None) -> None:
    assert watchdog_interval(environ, os.getpid()) == expected


@pytest.mark.anyio
@pytest.mark.parametrize(("stopping", "told"), [(False, ["sending"]), (True, [])])
async def test_ready_is_not_said_any_more_when_the_daemon_is_stopped_with_its_first_work_under_way(
    stopping: bool, told: list[str]
) -> None:
    said: list[str] = []
    worker = SimpleNamespace(drained=anyio.Event())
    parts = SimpleNamespace(
        worker=worker,
        health=Health(),
        notifier=SimpleNamespace(ready=said.append),
        status=lambda: "sending",
        stopping=stopping,
    )
    worker.drained.set()
    await service._announce(cast("Any", parts))  # noqa: SLF001
    assert said == told
