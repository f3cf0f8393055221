"""`pgherald demo` as a process: where it may leave nothing behind, and a terminal to run it on."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO: Final = [sys.executable, "-m", "pgherald.cli", "demo"]
PATIENCE: Final = 60.0


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Where a demo keeps everything: afterwards it must be empty, and no process may have anything to do with it."""
    path = Path(tempfile.mkdtemp(prefix="demo-test-"))
    path.chmod(0o1777)  # as /tmp is: when root runs the demo, the server's user makes and removes directories too
    yield path
    shutil.rmtree(path, ignore_errors=True)


def environment(scratch: Path, **more: str) -> dict[str, str]:
    """Of a demo that keeps everything in `scratch`."""
    foreign = ("PG", "NO_COLOR", "COLUMNS", "LINES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # A newcomer may have any of these set for something else; the demo must not follow them.
    return kept | {"TMPDIR": str(scratch), "PGHOST": "nowhere.invalid", "PGHERALD_DATABASE_URL": "host=x"} | more


def left_behind(scratch: Path) -> list[str]:
    """What there still is of a demo: files, and processes that know of its directory."""
    found = [str(path) for path in scratch.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(scratch).encode() in said and process.name != str(os.getpid()):
            found.append(said.replace(b"\0", b" ").decode(errors="replace")[:200])
    return found


def assert_nothing_is_left(scratch: Path) -> None:
    """Fail unless within a while all of a demo has gone."""
    deadline = time.monotonic() + PATIENCE
    while found := left_behind(scratch):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


# In the child: make stdin its controlling terminal, so that a typed Ctrl-C is a signal, and have that signal heard even
# if the tests themselves run where it is ignored.
_ON_TERMINAL: Final = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
)


class Terminal:
    """A demo on a pseudo-terminal; `seen` is all it has written so far."""

    def __init__(self, scratch: Path, columns: int = 100, **more: str) -> None:
        self.seen = ""
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, *DEMO],
            env=environment(scratch, TERM="xterm", **more),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    @property
    def plain(self) -> str:
        """What it has written, without colour."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.seen)

    @property
    def exports(self) -> dict[str, str]:
        """The settings that it says to export."""
        return dict(re.findall(r"^export (\w+)='(.*)'$", self.plain, re.MULTILINE))

    def read_until(self, text: str) -> None:
        """Read until `text`, colours apart, has been seen; fail if the demo ends before, or it takes too long."""
        while text not in self.plain:
            assert self._read(), self.seen

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        os.close(self._master)
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], PATIENCE)
        assert ready, f"nothing more came: {self.seen[-2000:]}"
        try:
            read = os.read(self._master, 65536)
        except OSError:  # Linux says EIO when the other side has gone
            return False
        self.seen += read.decode().replace("\r\n", "\n")
        return bool(read)
