"""The road to FCM: one POST with one deadline, and an honest word on whether it can have arrived.

`Transport` is the protocol of a road (`pgherald.transport` is the one that is used), `FcmClient` what the dispatcher
calls: it adds the access token and turns whatever happened into an `Answer`. Nothing here tries a push again, but for
the one repetition after a 401, which FCM did not act on.

Times called `deadline` are moments of `time.monotonic()`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias
from urllib.parse import quote

import anyio

from pgherald import outcome
from pgherald.model import Code
from pgherald.oauth import NoOAuthToken
from pgherald.outcome import Effect, Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgherald.oauth import OAuth
    from pgherald.outcome import Answer

ANSWER_MAX: Final = 65_536
"""Bytes of an answer at most; FCM's are below 2,000. What is longer is not FCM's."""

KEEPALIVE: Final = 30.0
"""Seconds that an idle connection is kept. Well below the minutes after which Google's front ends and NAT gateways drop
one: a request sent on a connection that is already gone can only end as unknown."""


Fields: TypeAlias = "tuple[tuple[str, str], ...]"
"""The header fields of a request: names, lower-case, and values."""


class Response(NamedTuple):
    """An answer that arrived whole; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NotSent(Exception):
    """Certain: no byte of the request left for the peer, or the peer has said that it does nothing about it."""


class Unsure(Exception):
    """Bytes of the request may have reached the peer, and no whole answer came back."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


class CancelledUnsent(asyncio.CancelledError):
    """A cancellation that came before any byte of the request had left for the peer."""


class Transport(Protocol):
    """A way to POST. The peer takes each request at most once, whatever happens; no redirect is followed."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Response:
        """POST, and read the whole answer before the deadline, or raise NotSent or Unsure; cancelled, CancelledUnsent
        if nothing has left."""
        ...


class FcmClient:
    """Sends messages of one project; `send` is called concurrently."""

    def __init__(self, transport: Transport, oauth: OAuth, endpoint: str, project: str) -> None:
        self._transport = transport
        self._oauth = oauth
        self._headers_token = ""
        self._headers: Mapping[str, str] = {}
        self._url = f"{endpoint.rstrip('/')}/v1/projects/{quote(project, safe=':')}/messages:send"

    async def send(self, message: bytes, deadline: float) -> Answer:
        """Send a message of `build_message`. Never raises but for cancellation: then nobody knows what became of it,
        unless it is CancelledUnsent."""
        answer, token = await self._try(message, deadline, stale=None)
        if isinstance(answer, Rejected) and answer.effect is Effect.REAUTH:
            again, newer = await self._try(message, deadline, stale=token)
            return again if newer else answer
        return answer

    async def validate(self, message: bytes, deadline: float) -> Answer:
        """As `send`, but FCM only checks the message and the right to send it; nobody gets anything."""
        return await self.send(b'{"validate_only":true,' + message[1:], deadline)

    async def _try(self, message: bytes, deadline: float, stale: str | None) -> tuple[Answer, str]:
        """One POST with the token that is there, or with a newer one than `stale`; an empty token if there was none."""
        token = (self._oauth.cached if stale is None else "") or await self._token(deadline, stale)
        if not token:
            return Rejected(Code.NO_OAUTH_TOKEN, transient=True), token
        if token != self._headers_token:
            self._headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            self._headers_token = token
        try:
            response = await self._transport.post(self._url, self._headers, message, deadline)
        except NotSent:
            return Rejected(Code.NOT_CONNECTED, transient=True), token
        except Unsure as error:
            return outcome.Unsure(error.code), token
        return outcome.classify(response.status, response.headers, response.body, datetime.now(UTC)), token

    async def _token(self, deadline: float, stale: str | None) -> str:
        try:
            with anyio.move_on_after(deadline - time.monotonic()), suppress(NoOAuthToken):
                return await (self._oauth.token() if stale is None else self._oauth.refresh(stale))
        except asyncio.CancelledError:
            raise CancelledUnsent from None  # a first try that FCM answered with 401 counts for nothing
        return ""
