"""`pgherald demo` as a process: where it may leave nothing behind, and a terminal to run it on."""

from __future__ import annotations

import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO: Final = [sys.executable, "-m", "pgherald.cli", "demo"]
PATIENCE: Final = 180.0


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
    """A demo on a pseudo-terminal, which is read all the time, as by a person's: nothing holds the demo up."""

    def __init__(self, scratch: Path, columns: int = 100, **more: str) -> None:
        self._read = bytearray()
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
        self._reader = threading.Thread(target=self._read_all, daemon=True)
        self._reader.start()

    @property
    def seen(self) -> str:
        """All it has written so far."""
        return bytes(self._read).decode(errors="ignore").replace("\r\n", "\n")

    @property
    def plain(self) -> str:
        """The same without colour."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.seen)

    @property
    def exports(self) -> dict[str, str]:
        """The settings that it says to export."""
        return dict(re.findall(r"^export (\w+)='(.*)'$", self.plain, re.MULTILINE))

    @property
    def to_paste(self) -> str:
        """All that it says to export, line by line, for a shell."""
        return "".join(re.findall(r"^export .*\n", self.plain, re.MULTILINE))

    def read_until(self, text: str, count: int = 1) -> None:
        """Wait until `text`, colours apart, was seen so often; fail if the demo ends before, or it takes too long."""
        deadline = time.monotonic() + PATIENCE
        while self.plain.count(text) < count:
            assert self._reader.is_alive() or self.plain.count(text) >= count, self.seen
            assert time.monotonic() < deadline, f"nothing more came: {self.seen[-2000:]}"
            time.sleep(0.01)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Wait for the end; the exit code."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()

    def _read_all(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self._read += data
        except OSError:  # Linux says EIO when the other side has gone
            pass
        finally:
            os.close(self._master)
