"""A synchronous way in, for the demo and tests: runs the emulator as a process, and speaks its control routes.

Nothing but the standard library, so that it can be used where no event loop runs.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLL_SECONDS = 0.02
_PATIENCE = 60.0  # seconds for what takes milliseconds, but on a machine that is starved


@dataclass(frozen=True, slots=True)
class EmulatorClient:
    """Speaks the control routes of a running emulator, in this process (from another thread) or in another."""

    endpoint: str
    credentials_path: Path
    tls_endpoint: str | None
    certificate_path: Path | None

    @property
    def environment(self) -> dict[str, str]:
        """The settings that point pgherald at it."""
        return {
            "PGHERALD_FCM_ENDPOINT": self.endpoint,
            "PGHERALD_FCM_CREDENTIALS": str(self.credentials_path),
        }

    def messages(self, since: int = 0) -> list[dict[str, Any]]:
        """All that is kept of what was accepted after `since`, oldest first."""
        found: list[dict[str, Any]] = []
        while more := self._call("GET", f"/emulator/messages?since={since}")["messages"]:
            found += more
            since = more[-1]["seq"]
        return found

    def counters(self) -> dict[str, Any]:
        content: dict[str, Any] = self._call("GET", "/emulator/counters")
        return content

    def wait_for(self, count: int, timeout: float = _PATIENCE) -> list[dict[str, Any]]:
        """What was accepted, once it is `count` messages or more; TimeoutError if that takes longer."""
        until = time.monotonic() + timeout
        while (accepted := self.counters()["accepted"]) < count:
            if time.monotonic() > until:
                raise TimeoutError(f"{accepted} of {count} messages accepted in {timeout:g} s")
            time.sleep(_POLL_SECONDS)
        return self.messages()

    def clear(self) -> None:
        """Forgets messages and counters."""
        self._call("DELETE", "/emulator/messages")

    def set_faults(self, *faults: dict[str, Any], seed: int | None = None) -> None:
        """Replaces all faults; none = everything works."""
        self._call("PUT", "/emulator/faults", {"faults": list(faults), "seed": seed})

    def set_tokens(self, tokens: dict[str, str]) -> None:
        """Replaces how device tokens answer."""
        self._call("PUT", "/emulator/tokens", tokens)

    def set_token_lifetime(self, seconds: float) -> None:
        self._call("PUT", "/emulator/oauth", {"lifetime": seconds})

    def revoke_access_tokens(self) -> None:
        self._call("DELETE", "/emulator/oauth")

    def _call(self, method: str, path: str, content: object = None) -> Any:
        with contextlib.closing(
            http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=_PATIENCE)
        ) as connection:
            connection.request(method, path, None if content is None else json.dumps(content))
            response = connection.getresponse()
            body = json.loads(response.read())
        if response.status != 200:
            raise ValueError(body["error"])
        return body


@dataclass(frozen=True, slots=True)
class EmulatorProcess(EmulatorClient):
    """An emulator that runs as a process of its own."""

    process: subprocess.Popen[str]

    def kill(self) -> None:
        """SIGKILL: no answer that is under way gets out; what it accepted is in its log file."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=_PATIENCE)


@contextlib.contextmanager
def emulator_process(*arguments: str, listen: str = "127.0.0.1:0") -> Iterator[EmulatorProcess]:
    """Runs `pgherald fcm-emulator` with these arguments until the block ends; it answers when the block begins.

    However it ends, what it keeps in temporary files goes with the block.
    """
    command = [sys.executable, "-m", "pgherald.emulator", "--json", "--listen", listen, *arguments]
    with (
        tempfile.TemporaryDirectory(prefix="pgherald-fcm-emulator-") as directory,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": directory}
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the emulator ended with exit code {process.wait()}; stderr says why")
            said = json.loads(line)
            yield EmulatorProcess(
                endpoint=said["endpoint"],
                process=process,
                credentials_path=Path(said["credentials"]),
                tls_endpoint=said["tls_endpoint"],
                certificate_path=None if said["certificate"] is None else Path(said["certificate"]),
            )
        finally:
            process.kill()
