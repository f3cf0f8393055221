"""What the fault tests share: worlds, the results they leave, and the table made of those.

`make fault` sets FAULT=full: every crash point, all seeds, and bench-results/fault.json. Without it a part runs that
takes a few minutes. What this machine cannot inject is named at the end, loudly.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pgherald.emulator.client import emulator_process
from tests.fault.invariants import Broken, check_invariants
from tests.fault.world import FULL, World
from tests.support.daemon import ROOT
from tests.support.postgres import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.invariants import Finding
    from tests.fault.promise import Promise, Worlds
    from tests.support.postgres import Server

RESULTS: Final[list[dict[str, Any]]] = []
MISSING: Final[set[str]] = set()
_BEGAN: Final = time.time()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to `make fault` what is marked thorough: variations of what does run, and what takes long."""
    if FULL:
        return
    left_out = [item for item in items if item.get_closest_marker("thorough") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def fault_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fcm") / "accepted.jsonl"


@pytest.fixture(scope="session")
def shared_fcm(fault_log: Path) -> Iterator[EmulatorProcess]:
    with emulator_process("--log", str(fault_log), "--keep", "10") as emulator:
        yield emulator


@pytest.fixture
def fcm(shared_fcm: EmulatorProcess) -> Iterator[EmulatorProcess]:
    """The one FCM of all tests, without faults at first."""
    shared_fcm.set_faults(seed=1)
    yield shared_fcm
    shared_fcm.set_faults()


@pytest.fixture(scope="session")
def own_server() -> Iterator[Server]:
    """A server that may be stopped and crashed: PostgreSQL 18."""
    with (
        running_server("pg18_own", settings={"log_min_messages": "debug1", "max_connections": "60"}) as server,
        server.template(),
    ):
        yield server


@pytest.fixture
def make_world(tmp_path: Path, fcm: EmulatorProcess, fault_log: Path, request: pytest.FixtureRequest) -> Worlds:
    """Makes worlds: `with make_world() as world:`; on PostgreSQL 18 unless a server is given."""
    made = 0

    @contextmanager
    def make(server: Server | None = None, **options: Any) -> Iterator[World]:
        nonlocal made
        made += 1
        chosen = server or request.getfixturevalue("pg18")
        directory = tmp_path / f"world-{made}"
        directory.mkdir()
        with (
            chosen.database(name=f"fault_{os.getpid()}_{next(_NUMBERS)}") as database,
            World(database, options.pop("fcm", fcm), options.pop("fcm_log", fault_log), directory, **options) as world,
        ):
            yield world

    return make


def _count() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


_NUMBERS: Final = _count()


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Promise:
    """Checks the invariants of a world and keeps the numbers for the table."""

    def check(world: World, *, seed: int | None = None, points: int = 0, **expected: Any) -> Finding:
        try:
            finding = check_invariants(world, **expected)
        except Broken as broken:
            _keep(request, world, broken.finding, seed, points, broken.violations)
            raise
        _keep(request, world, finding, seed, points, [])
        return finding

    return check


def _keep(
    request: pytest.FixtureRequest,
    world: World,
    finding: Finding,
    seed: int | None,
    points: int,
    violations: list[str],
) -> None:
    RESULTS.append(
        {
            "test": request.node.name,
            "control": "control" in request.node.name,
            "server": world.database.server.name,
            "seed": seed,
            "crash_points": points,
            "crashes": world.crashes,
            "recovery_seconds": [round(each, 3) for each in world.recoveries],
            "violations": len(violations),
            "first_violation": violations[0] if violations else None,
            **asdict(finding),
        }
    )


def needs(tool: str, what: str) -> None:
    """Skip, and say so loudly, where a tool is not on this machine."""
    if shutil.which(tool) is None:
        lacks(f"{what}: no {tool}")


def needs_root(what: str) -> None:
    if os.geteuid() != 0:
        lacks(f"{what}: not root")


def lacks(what: str) -> None:
    MISSING.add(what)
    pytest.skip(what)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not RESULTS:
        return
    terminalreporter.section("shown under faults")
    seconds = round(time.time() - _BEGAN)
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    # a control passes when the check that it is for does not
    controls = sum(
        "tests/fault" in report.nodeid and "control" in report.nodeid
        for report in terminalreporter.getreports("passed")
    )
    for line in table(
        RESULTS, controls, f"a {'full' if FULL else 'short'} run of {seconds / 60:.0f} minutes ({machine})"
    ):
        terminalreporter.line(line)
    if FULL:
        path = Path(os.environ.get("FAULT_RESULT", ROOT / "bench-results" / "fault.json"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    "machine": machine,
                    "seconds": seconds,
                    "controls_found_out": controls,
                    "not_injected": sorted(MISSING),
                    "results": RESULTS,
                },
                indent=1,
            )
            + "\n"
        )
        terminalreporter.line(f"written to {path}")


def table(results: list[dict[str, Any]], controls: int, title: str) -> list[str]:
    """The numbers as README.md has them, in Markdown, from all runs that are no negative controls."""
    real = [each for each in results if not each["control"]]
    recoveries = sorted(second for each in real for second in each["recovery_seconds"])

    def total(key: str) -> int:
        return sum(each[key] for each in real)

    def quantile(share: float) -> str:
        return f"{recoveries[min(len(recoveries) - 1, int(share * len(recoveries)))]:.2f} s" if recoveries else "-"

    rows = [
        ("faulty runs checked", f"{len(real)}"),
        ("negative controls that the same checks found out", f"{controls}"),
        ("crash points, each one system call", f"{total('crash_points'):,}"),
        ("daemons and servers killed", f"{total('crashes'):,}"),
        ("seeds of random kills", f"{len({each['seed'] for each in real if each['seed'] is not None})}"),
        ("pushes accepted", f"{total('pushes'):,}"),
        ("duplicates", f"{total('duplicates')}"),
        ("lost", f"{total('lost')}"),
        ("unknown (answer lost; not sent again)", f"{total('unknown'):,}"),
        ("of these accepted by FCM", f"{total('unknown_accepted'):,}"),
        (f"from restart to ready, p50 / p99 of {len(recoveries)}", f"{quantile(0.5)} / {quantile(0.99)}"),
        ("canary hits", f"{total('canaries')}"),
    ]
    return [f"| {title} | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]
