"""Real daemons for tests: `pgherald run` as a child process, its log as events, its metrics as numbers.

Everything is waited for, nothing is slept on; a daemon that a test leaves running is stopped with the block. Its log is
at debug level, and no secret may be in it or in the spool: every test that has a daemon holds that.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from tests.support.canaries import assert_nothing_shown, files_under, secrets_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import psycopg

    from pgherald.emulator.client import EmulatorClient

ROOT: Final = Path(__file__).parents[2]

PATIENCE: Final = 60.0
"""Seconds that anything is waited for, where how long it takes is not what is tested: a machine may be starved."""

UNHURRIED: Final = "30"
"""Seconds for a send, unless a test says otherwise: an FCM that the machine starves is not one that lost the answer."""


@dataclass(kw_only=True)
class Daemon:
    """`pgherald run` as a process, the leader of a group of its own.

    It may be started again: its log goes on in the same file, and what is told here is that of the last start.
    """

    environment: Mapping[str, str]
    state_dir: Path
    log_path: Path
    command: Sequence[str] = (sys.executable, "-m", "pgherald.cli", "run")
    patience: float = PATIENCE
    process: subprocess.Popen[bytes] = field(init=False)
    started_at: float = 0.0
    lives: int = 0
    _log_start: int = 0
    _address: str | None = None

    def start(self, *, ready: bool = True) -> Self:
        """Start it (again); returns once it is ready, unless told not to wait."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._address = None
        self.lives += 1
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if ready:
            self.wait_ready()
        return self

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.lives > 0 and self.process.poll() is None

    @property
    def log(self) -> str:
        """All that it wrote to stderr."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Its log lines so far, or those of one event; a line that is still being written is left out."""
        lines = [json.loads(line) for line in self.log.splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if name in (None, line["event"])]

    def wait_for_event(self, name: str, *, count: int = 1) -> dict[str, Any]:
        """The `count`-th event of that name, once it is there; fails with the log when it does not come."""

        def there() -> list[dict[str, Any]]:
            ended = not self.running
            found = self.events(name)[count - 1 : count]
            assert found or not ended, self._post_mortem(name)
            return found

        return wait_for(there, self.patience, lambda: self._post_mortem(name))[0]

    def wait_ready(self) -> None:
        self.wait_for_event("ready")

    @property
    def address(self) -> str:
        """Where it serves metrics and health."""
        if self._address is None:
            self._address = str(self.wait_for_event("starting")["listen"])
        return self._address

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of one of its pages."""
        request = urllib.request.Request(f"http://{self.address}{path}")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def series(self, name: str) -> dict[str, float]:
        """All numbers of a metric, by their labels as they are written; of one series, if `name` has its labels."""
        found = re.findall(rf"^{re.escape(name)}(\{{[^}}]*\}})? (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        assert found, f"no series {name}"
        return {labels: float(value) for labels, value in found}

    def metric(self, series: str) -> float:
        """The value of a series, written as the exposition has it; without labels, the sum over all of the metric."""
        return sum(self.series(series).values())

    def wait_for_metric(self, series: str, expected: float | Callable[[float], bool]) -> float:
        """The value of a series once it is `expected`, or what that takes; what is counted is so after what is seen."""
        found = 0.0

        def there() -> bool:
            nonlocal found
            found = self.metric(series)
            return expected(found) if callable(expected) else found == expected

        wait_for(there, otherwise=lambda: f"{series} is {found:g}; the log:\n{self.log}")
        return found

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.send(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        return self.process.wait(self.patience)

    def kill(self) -> None:
        """SIGKILL, to all of its group, and wait until it is gone; harmless where it is gone or was never started."""
        if self.lives > 0:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait()

    def _post_mortem(self, name: str) -> str:
        return f"no event {name!r}; exit code {self.process.poll()}; the log:\n{self.log}"


def environment_of(dsn: str, state_dir: Path, fcm: EmulatorClient, **settings: str) -> dict[str, str]:
    """The environment of a daemon with these settings, and nothing of the caller's that might mislead it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PGHERALD_", "PG", "FAULT"))}
    return kept | {
        "PGHERALD_DATABASE_URL": dsn,
        "PGHERALD_STATE_DIR": str(state_dir),
        "PGHERALD_METRICS_LISTEN": "127.0.0.1:0",
        "PGHERALD_SCHEDULER": "off",
        "PGHERALD_LOG_LEVEL": "debug",
        **fcm.environment,
        **settings,
    }


@contextmanager
def running_daemon(
    dsn: str,
    emulator: EmulatorClient,
    directory: Path,
    settings: Mapping[str, str] | None = None,
    *,
    ready: bool = True,
    arguments: Sequence[str] = (),
    wrapper: Sequence[str] = (),
) -> Iterator[Daemon]:
    """Run a daemon with its state and log in `directory`; ready when the block begins, unless told not to wait.

    `wrapper` is a command that becomes the one that it is given.

    A block that ended well fails all the same if a secret shows in what the daemon wrote.
    """
    state_dir = directory / "state"
    log_path = directory / "daemon.log"
    daemon = Daemon(
        environment=environment_of(
            dsn, state_dir, emulator, **{"PGHERALD_SEND_DEADLINE": UNHURRIED, **(settings or {})}
        ),
        state_dir=state_dir,
        log_path=log_path,
        command=(*wrapper, sys.executable, "-m", "pgherald.cli", "run", *arguments),
    )
    try:
        yield daemon.start(ready=ready)
    finally:
        if daemon.running:
            daemon.kill()
    assert_nothing_shown(
        {"its log": log_path.read_bytes(), **files_under(state_dir)}, secrets_of(emulator.credentials_path, dsn)
    )


def awake(db: psycopg.Connection) -> bool:
    """Whether a daemon of this database holds the lock that keeps writers from ringing."""
    row = db.execute(
        "select from pg_locks where locktype = 'advisory' and classid = 1751479908 and objid = 1 and granted "
        "and database = (select oid from pg_database where datname = current_database())"
    ).fetchone()
    return row is not None


def wait_asleep(db: psycopg.Connection) -> None:
    """Return once they all sleep: who writes now rings, and wakes each of them."""
    wait_for(lambda: not awake(db))


T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float = PATIENCE, otherwise: Callable[[], str] | None = None) -> T:
    """What `condition` returns once it is truthy; fails with the words of `otherwise` when it does not become so."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(otherwise() if otherwise else f"still not so after {seconds} s")
        time.sleep(0.02)
    return found
