"""The emulator as a whole: its parts put together, started and stopped. Called by the command, and by tests."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pgherald.emulator.app import App
from pgherald.emulator.faults import Faults
from pgherald.emulator.keys import ensure_service_account, make_certificate
from pgherald.emulator.ledger import Ledger
from pgherald.emulator.oauth import TokenEndpoint
from pgherald.emulator.server import bind, bound_address, listening, tls_context
from pgherald.values import HostPort

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgherald.emulator.ledger import Accepted

LOOPBACK = HostPort("127.0.0.1", 0)


@dataclass(frozen=True, slots=True)
class Emulator:
    """A running one. `endpoint` is what PGHERALD_FCM_ENDPOINT wants, `credentials_path` PGHERALD_FCM_CREDENTIALS."""

    project: str
    endpoint: str
    credentials_path: Path
    tls_endpoint: str | None
    certificate_path: Path | None
    app: App

    @property
    def messages(self) -> list[Accepted]:
        """What was accepted, oldest first."""
        return self.app.ledger.messages

    @property
    def faults(self) -> Faults:
        return self.app.faults

    @property
    def ledger(self) -> Ledger:
        return self.app.ledger

    @property
    def tokens(self) -> dict[str, str]:
        """Device token -> how it answers: a name of `answers.TOKEN_ANSWERS`. May be changed at any time."""
        return self.app.tokens

    async def wait_for(self, count: int) -> list[Accepted]:
        """What was accepted, once it is `count` messages or more."""
        await self.ledger.wait_for(count)
        return self.messages

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        *,
        listen: HostPort = LOOPBACK,
        url: str | None = None,
        tls_listen: HostPort | None = None,
        project: str = "demo",
        credentials: Path | None = None,
        certificate: Path | None = None,
        log: Path | None = None,
        token_lifetime: float = 3599,
        seed: int = 0,
        keep: int = 200_000,
    ) -> AsyncIterator[Self]:
        """Runs one until the block ends.

        `url` is how clients reach it, where that is not by `listen`. `credentials` is made, or taken over if an
        emulator made it; without it, one is made for as long as this runs. `certificate` is where the TLS port's
        certificate goes, made anew each time. The last `keep` messages stay in memory, all go to `log`.
        Raises HeraldError if an address is taken or a file cannot be had.
        """
        async with contextlib.AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgherald-fcm-emulator-")))
            sock = stack.enter_context(bind(listen))
            address = bound_address(sock)
            endpoint = url or f"http://{address}"
            account = ensure_service_account(
                credentials or directory / "credentials.json", project, f"{endpoint}/token"
            )
            audiences = frozenset(f"{base}/token" for base in (endpoint, f"http://localhost:{address.port}"))
            ledger = stack.enter_context(Ledger(log, keep))
            app = App(project, TokenEndpoint(account, audiences, token_lifetime), Faults(seed), ledger)
            tls_endpoint = certificate_path = None
            if tls_listen is not None:
                tls_sock = stack.enter_context(bind(tls_listen))
                key_path = directory / "tls-key.pem"
                certificate_path = make_certificate(certificate or directory / "tls.pem", key_path, tls_listen.host)
                await stack.enter_async_context(listening(app, tls_sock, tls_context(certificate_path, key_path)))
                tls_endpoint = f"https://{bound_address(tls_sock)}"
            await stack.enter_async_context(listening(app, sock))
            yield cls(project, endpoint, account.path, tls_endpoint, certificate_path, app)
