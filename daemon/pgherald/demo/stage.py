"""What the demo runs on: an embedded Postgres, the FCM emulator, and the real daemon, each a process of its own.

However this process ends, nothing stays behind: Postgres has its undertaker (`pgherald.embedded`), and each of the two
others runs under a shell that waits on a pipe from here. When the pipe closes, the shell stops its child and removes
the child's directory. All are out of reach of Ctrl-C in the terminal, so that this process alone ends them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

import psycopg

from pgherald import schema
from pgherald.embedded import Cluster
from pgherald.emulator.client import EmulatorClient
from pgherald.errors import HeraldError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

DATABASE: Final = "demo"
DAEMON: Final = "pgherald_demo"
"""The role that the daemon logs in as: a member of herald_daemon and nothing else."""

PATIENCE: Final = 20.0
"""Seconds that anything may take to start, happen or stop."""

# $1 a directory for the child, the rest its command. The child's pipes are its own: they end with it. No pid can have
# been used anew: the shell has not waited for it yet.
_MINDER: Final = """
directory="$1"; shift
mkdir -m 700 "$directory" || exit
"$@" </dev/null & child=$!
exec >/dev/null 2>&1
read -r word
kill -TERM "$child"
wait "$child"
rm -rf -- "$directory"
"""


class Stage:
    """The processes, up and running inside `with`, and a superuser's autocommit connection to the demo's database.

    `told` is called with what has just been done, as it is done.
    """

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told
        self._stack = ExitStack()
        self._cluster = Cluster()
        self.daemon: Child
        self.emulator: EmulatorClient
        self.database: psycopg.Connection

    def __enter__(self) -> Self:
        try:
            self._set()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dsn(self) -> str:
        """The superuser's: over the Unix socket, which only this user of the machine reaches."""
        return self._cluster.dsn(DATABASE)

    @property
    def psql(self) -> Path:
        """The client that came with the embedded server."""
        return self._cluster.binaries / "psql"

    @property
    def settings(self) -> dict[str, str]:
        """What the daemon runs with."""
        return {
            "PGHERALD_DATABASE_URL": self._cluster.dsn(DATABASE, DAEMON),
            **self.emulator.environment,
            "PGHERALD_METRICS_LISTEN": "127.0.0.1:0",
            "PGHERALD_STATE_DIR": str(self._directory_of("daemon") / "state"),
        }

    def start_daemon(self) -> None:
        """Start `pgherald run`, and return once it says that it is ready."""
        started = time.monotonic()
        self.daemon = self._start("daemon", ["-m", "pgherald.cli", "run"], self.settings)
        self.daemon.wait_for("ready")
        self._told(f"the daemon is ready: pid {self.daemon.said('starting')['pid']}, {_since(started)}")

    def close(self) -> None:
        """Stop and remove everything. Ctrl-C is not heard meanwhile: it takes a moment, and whatever it would leave
        undone the shells do."""
        with suppress(ValueError):  # only the main thread has signals
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._stack.close()

    def _set(self) -> None:
        for name in [name for name in os.environ if name.startswith("PG")]:
            del os.environ[name]  # neither psycopg here nor any of the children is to follow the caller's settings
        started = time.monotonic()
        with _ctrl_c_held_back():
            self._stack.enter_context(self._cluster)
        arguments = ["--json", "--listen", "127.0.0.1:0", "--credentials", str(self._directory_of("fcm") / "key.json")]
        emulator = self._start("fcm", ["-m", "pgherald.emulator", *arguments], {})
        self._told(
            f"Postgres {self._cluster.major_version} runs, embedded, in {self._cluster.directory}: {_since(started)}"
        )
        with psycopg.connect(self._cluster.dsn(), autocommit=True) as connection:
            connection.execute(f"create database {DATABASE}")
        started = time.monotonic()
        schema.migrate(self.dsn, with_reference=True)
        self._told(f"pgherald migrate --with-reference: schema herald and the reference app, {_since(started)}")
        self.database = self._stack.enter_context(closing(psycopg.connect(self.dsn, autocommit=True)))
        self.database.execute(f"create role {DAEMON} login in role herald_daemon")
        said = json.loads(emulator.first_line())
        self.emulator = EmulatorClient(said["endpoint"], Path(said["credentials"]), None, None)
        self._told(f"an FCM emulator plays project {said['project']} at {said['endpoint']}")

    def _start(self, name: str, arguments: Sequence[str], settings: Mapping[str, str]) -> Child:
        """Start a child with nothing of the caller's that might mislead it, its scratch files in its own directory."""
        directory = self._directory_of(name)
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment = kept | {"TMPDIR": str(directory), "PYTHONUNBUFFERED": "1", **settings}
        return self._stack.enter_context(Child(arguments, environment, directory))

    def _directory_of(self, name: str) -> Path:
        """Beside the cluster's, not in it: as root, those belong to different users."""
        return self._cluster.directory.with_name(f"{self._cluster.directory.name}-{name}")


class Child:
    """A Python program under its minder, which makes and removes `directory` for it.

    What it writes to stderr is read as it comes; JSON lines can be waited for.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self._lines: deque[dict[str, Any]] = deque(maxlen=1000)
        self._words: deque[str] = deque(maxlen=20)
        self._changed = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _MINDER, "pgherald-demo", directory, sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        try:
            if process.stdin is not None:
                process.stdin.close()
            process.wait(PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            self._reader.join(1)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def first_line(self) -> str:
        """The first line of its output; HeraldError with its last words when it ended without one."""
        output = self._process.stdout
        line = output.readline() if output is not None else ""
        if not line:
            self._reader.join(1)
            raise HeraldError(self.last_words())
        return line

    def wait_for(self, event: str) -> None:
        """Return once it has logged `event`; HeraldError when it ends, or takes too long."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while all(line.get("event") != event for line in self._lines):
                if self._ended or not self._changed.wait(deadline - time.monotonic()):
                    raise HeraldError(self.last_words())

    def said(self, event: str) -> dict[str, Any]:
        """The latest line of `event`; empty when there is none."""
        with self._changed:
            return next((line for line in reversed(self._lines) if line.get("event") == event), {})

    def said_all(self) -> list[dict[str, Any]]:
        """Every line so far, or the last thousand."""
        with self._changed:
            return list(self._lines)

    @property
    def has_ended(self) -> bool:
        return self._ended

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self._words.append(line.rstrip())
                try:
                    content = json.loads(line)
                except ValueError:
                    continue
                self._lines.append(content)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def last_words(self) -> str:
        """The end of what it wrote, for a person to read."""
        what = "ended" if self._ended else f"did not do in {PATIENCE:g} s what it should"
        return f"a process of the demo {what}; its last words:\n" + "\n".join(self._words)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Keep a Ctrl-C until the block has ended: it may come between a program's start and the knowledge of it."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def _since(started: float) -> str:
    return f"{(time.monotonic() - started) * 1000:.0f} ms"
