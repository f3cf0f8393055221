"""The road to FCM: one POST with one deadline, and an honest word on whether it can have arrived.

`Transport` is the protocol of a road, `HttpxTransport` the one that is used, `FcmClient` what the dispatcher calls: it
adds the access token and turns whatever happened into an `Answer`. Nothing here tries a push again, but for the one
repetition after a 401, which FCM did not act on.

Times called `deadline` are moments of `time.monotonic()`.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol
from urllib.parse import quote, urlsplit

import anyio
import h11
import httpcore2
import httpx2

from pgherald import outcome
from pgherald.model import Code
from pgherald.oauth import NoOAuthToken
from pgherald.outcome import Effect, Rejected

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from pgherald.oauth import OAuth
    from pgherald.outcome import Answer

ANSWER_MAX: Final = 65_536
"""Bytes of an answer at most; FCM's are below 2,000. What is longer is not FCM's."""

KEEPALIVE: Final = 30.0
"""Seconds that an idle connection is kept. Well below the minutes after which Google's front ends and NAT gateways drop
one: a request sent on a connection that is already gone can only end as unknown."""

WRITE_PATIENCE: Final = 1.0
"""Seconds that one write to a connection may take, and so outlast a deadline; see `_Stream.write`."""

STREAMS_MAX: Final = 100
"""Requests at once on one HTTP/2 connection, as many as servers commonly allow; with more, another one is opened."""

CONNECTIONS_MAX: Final = 3
"""Connections to try for one request, where each is over before the request is sent."""

CATCH_UP: Final = 0.05
"""Seconds to wait for the rest of what an idle server has begun to say."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer that arrived whole; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NotSent(Exception):
    """Certain: no byte of the request left for the peer."""

    def __init__(self, code: Code = Code.NOT_CONNECTED) -> None:
        super().__init__(code)
        self.code = code


class Unsure(Exception):
    """Bytes of the request may have reached the peer, and no whole answer came back."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


class Transport(Protocol):
    """A way to POST. It sends each request at most once, whatever happens, and follows no redirect."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Response:
        """POST, and read the whole answer before the deadline, or raise NotSent or Unsure."""
        ...


class FcmClient:
    """Sends messages of one project; `send` is called concurrently."""

    def __init__(self, transport: Transport, oauth: OAuth, endpoint: str, project: str) -> None:
        self._transport = transport
        self._oauth = oauth
        self._url = f"{endpoint.rstrip('/')}/v1/projects/{quote(project, safe=':')}/messages:send"

    async def send(self, message: bytes, deadline: float) -> Answer:
        """Send a message of `build_message`. Never raises but for cancellation: then nobody knows what became of it."""
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
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        try:
            response = await self._transport.post(self._url, headers, message, deadline)
        except NotSent as error:
            return Rejected(error.code, transient=True), token
        except Unsure as error:
            return outcome.Unsure(error.code), token
        return outcome.classify(response.status, response.headers, response.body, datetime.now(UTC)), token

    async def _token(self, deadline: float, stale: str | None) -> str:
        with anyio.move_on_after(deadline - time.monotonic()), suppress(NoOAuthToken):
            return await (self._oauth.token() if stale is None else self._oauth.refresh(stale))
        return ""


class HttpxTransport:
    """HTTP/1.1, or HTTP/2 where TLS agrees on it, over httpx2's connection pool.

    The pool (httpcore2) is used directly: httpx2's own client adds cookies, redirects and logged URLs, none of which
    belong here. What it does not promise is added: a request is never repeated (httpcore2 repeats one when an HTTP/2
    server says GOAWAY), the moment from which bytes may have left is known for certain, and a server that says goodbye
    still gets to answer what it has accepted (httpcore2 gives all of it up).
    """

    def __init__(self, max_connections: int, *, http2: bool = True, ssl_context: ssl.SSLContext | None = None) -> None:
        self._pool = _Pool(max_connections, http2, ssl_context or httpx2.create_ssl_context())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; nothing may be under way any more."""
        with anyio.CancelScope(shield=True):
            await self._pool.aclose()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Response:
        """See `Transport`. The pool has no time-outs of its own: one scope spans waiting, connecting, and both ways."""
        attempt = _Attempt()
        response: Response | None = None
        try:
            request = _request(url, headers, body, attempt)
            with anyio.move_on_after(deadline - time.monotonic()):
                response = await self._exchange(request, attempt)
        except Exception as error:  # noqa: BLE001 - whatever breaks in there, all that matters is whether bytes had left
            raise (Unsure(_code_of(error)) if attempt.begun else NotSent()) from None
        finally:
            attempt.over()
        if response is None:
            raise Unsure(Code.TIMEOUT) if attempt.begun else NotSent()
        return response

    async def _exchange(self, request: httpcore2.Request, attempt: _Attempt) -> Response:
        answer = await self._pool.handle_async_request(request)
        try:
            body = await _whole(answer)
        except BaseException:
            attempt.given_up()
            raise
        finally:
            await answer.aclose()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
        return Response(answer.status, headers, body)


async def _whole(answer: httpcore2.Response) -> bytes:
    body = bytearray()
    async for chunk in answer.aiter_stream():
        body += chunk
        if len(body) > ANSWER_MAX:
            raise _NotAnAnswer
    return bytes(body)


class _NotAnAnswer(Exception):
    """More bytes than any answer of FCM has."""


class _SecondSend(Exception):
    """The pool was about to send a request again."""


class _TurnedAway(Exception):
    """One connection after the other was over before the request could be sent."""


def _code_of(error: Exception) -> Code:
    """Which kind of unsure: an answer that is none, or a connection that broke."""
    no_http = any(isinstance(cause, h11.RemoteProtocolError) for cause in error.args)
    return Code.BAD_ANSWER if no_http or isinstance(error, _NotAnAnswer) else Code.CONNECTION_LOST


def _request(url: str, headers: Mapping[str, str], body: bytes, attempt: _Attempt) -> httpcore2.Request:
    target, host = _target(url)
    lines = [(b"host", host), (b"content-length", b"%d" % len(body))]
    lines += [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
    return httpcore2.Request(b"POST", target, headers=lines, content=body, extensions={"trace": attempt})


@lru_cache(maxsize=16)
def _target(url: str) -> tuple[httpcore2.URL, bytes]:
    return httpcore2.URL(url), urlsplit(url).netloc.rpartition("@")[2].encode("ascii")


class _Attempt:
    """Watches one request on its way through the pool, and holds it to one sending: httpcore2's trace hook.

    httpcore2 calls it right before it hands the first bytes of a request to the connection, and waits for it: what is
    raised here keeps them back. Until then the peer has seen TCP, TLS and HTTP/2's preface, and nothing of the request.
    """

    __slots__ = ("_connection", "_turned_away", "begun")

    def __init__(self) -> None:
        self.begun = False
        self._connection: _Connection | None = None
        self._turned_away = 0

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if not event.endswith("send_request_headers.started"):
            return
        if self.begun:
            raise _SecondSend
        if self._connection is not None:
            self._connection.admit(self)
            self._connection.proven = True
        self.begun = True

    def take(self, connection: _Connection) -> None:
        """The pool has chosen this connection."""
        if self._connection is not None:
            self._connection.users -= 1
        self._connection = connection
        connection.users += 1

    def turn_away(self) -> NoReturn:
        """Have the pool look for another connection; a server that closes every new one is left alone after a few."""
        self._turned_away += 1
        raise httpcore2.ConnectionNotAvailable if self._turned_away < CONNECTIONS_MAX else _TurnedAway

    def given_up(self) -> None:
        """The request may still be under way at the server and counts there: its connection takes no other."""
        if self._connection is not None and self.begun:
            self._connection.leave()

    def over(self) -> None:
        """The request needs its connection no more."""
        if self._connection is not None:
            self._connection.users -= 1


class _Pool(httpcore2.AsyncConnectionPool):
    """A pool of `_Connection`s."""

    def __init__(self, max_connections: int, http2: bool, ssl_context: ssl.SSLContext) -> None:
        super().__init__(ssl_context, max_connections=max_connections, keepalive_expiry=KEEPALIVE, http2=http2)
        self._settings = (ssl_context, http2)

    def create_connection(self, origin: httpcore2.Origin) -> _Connection:
        ssl_context, http2 = self._settings
        return _Connection(origin, ssl_context, http2)


class _Connection(httpcore2.AsyncHTTPConnection):
    """A connection that takes no request any more once its server has said goodbye, or once it can't be trusted."""

    def __init__(self, origin: httpcore2.Origin, ssl_context: ssl.SSLContext, http2: bool) -> None:
        self.users = 0  # requests that hold this connection, from the pool's choice to the end of the answer
        self.proven = False  # whether a request has got as far as being sent
        self._line = _Line()
        self._left = False
        super().__init__(
            origin, ssl_context=ssl_context, keepalive_expiry=KEEPALIVE, http2=http2, network_backend=self._line
        )

    def leave(self) -> None:
        """Take no request any more."""
        self._left = True

    @property
    def _leaving(self) -> bool:
        return self._left or (self._line.stream is not None and self._line.stream.goodbye)

    def admit(self, attempt: _Attempt) -> None:
        """Turn a request away, of which nothing has left yet, if this connection is over."""
        if self._left:
            raise httpcore2.ConnectionNotAvailable
        stream = self._line.stream
        if stream is not None and (stream.goodbye or (not stream.shared and stream.has_news())):
            attempt.turn_away()

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        attempt: _Attempt = request.extensions["trace"]
        attempt.take(self)
        stream = self._line.stream
        if stream is not None and stream.shared and self.is_idle():
            await stream.catch_up()
        self.admit(attempt)
        try:
            return await super().handle_async_request(request)
        except BaseException:
            attempt.given_up()
            stream = self._line.stream
            if stream is not None and stream.shared and not self.proven:
                # Given up in the middle of HTTP/2's preface, of which httpcore2 then believes that it is complete.
                self.leave()
                with anyio.CancelScope(shield=True):
                    await self.aclose()
            raise

    def is_available(self) -> bool:
        return not self._leaving and self.users < STREAMS_MAX and super().is_available()

    def has_expired(self) -> bool:
        return (self._leaving and self.users == 0) or super().has_expired()

    def is_closed(self) -> bool:
        """Not while others still connect: httpcore2 drops a connection when one of those who wait is cancelled."""
        return super().is_closed() and (self.users == 0 or self._connection is not None)


class _Line(httpcore2.AsyncNetworkBackend):
    """Opens the one stream of one connection."""

    def __init__(self) -> None:
        self.stream: _Stream | None = None
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2 names it so
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        self.stream = _Stream(await self._backend.connect_tcp(host, port, timeout, local_address, socket_options))
        return self.stream


class _Stream(httpcore2.AsyncNetworkStream):
    """The bytes of one connection. `shared` means HTTP/2: several requests at once, and frames to look at.

    httpcore2 and h2 take a GOAWAY for the end of a connection and give up all that is under way on it, although the
    server is going to answer what it has accepted (RFC 9113 section 6.8). So GOAWAY frames are kept from them: the
    connection takes nothing new (`goodbye`), and what is under way ends with its answer, or with the connection.
    """

    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner
        self._frames: _Frames | None = None
        self._ahead = b""
        self._ended = False
        self._reading = anyio.Lock(fast_acquire=True)

    @property
    def shared(self) -> bool:
        return self._frames is not None

    @property
    def goodbye(self) -> bool:
        return self._ended or (self._frames is not None and self._frames.goodbye)

    def has_news(self) -> bool:
        """Whether the server has said something that was not read: on an idle HTTP/1.1 connection that is its end."""
        return bool(self._inner.get_extra_info("is_readable"))

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> httpcore2.AsyncNetworkStream:
        try:
            self._inner = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._inner.aclose()
            raise
        if self._inner.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
            self._frames = _Frames()
        return self

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - as above
        if self._frames is None:
            return await self._inner.read(max_bytes, timeout)
        async with self._reading:
            while not self._ahead and not self._ended:
                await self._read_ahead()
            data, self._ahead = self._ahead, b""
            return data

    async def catch_up(self) -> None:
        """Read what the server of an idle connection has said meanwhile; it may have been goodbye."""
        async with self._reading:
            while not self._ended and self.has_news():
                with anyio.move_on_after(CATCH_UP) as scope, suppress(httpcore2.ReadError):
                    await self._read_ahead()
                if scope.cancelled_caught:
                    break

    async def _read_ahead(self) -> None:
        try:
            data = await self._inner.read(65_536)
        except httpcore2.ReadError:
            self._ended = True
            raise
        self._ended = not data
        if self._frames is not None:
            self._ahead += self._frames.keep_goaway(data)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as above
        """Write all of it, or give the connection up.

        A cancellation in between would cut a frame or a TLS record, and with it everything else under way on the
        connection, so it waits for the write, which waits for nobody unless the server has stopped reading.
        """
        if self._frames is None:
            return await self._inner.write(buffer, timeout)
        with anyio.move_on_after(WRITE_PATIENCE, shield=True):
            return await self._inner.write(buffer, timeout)
        self._ended = True
        raise httpcore2.WriteError

    async def aclose(self) -> None:
        await self._inner.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Frames:
    """Follows the frames of HTTP/2 (RFC 9113 section 4.1) in the bytes that a server sends, however they are cut."""

    _HEAD: Final = 9
    _GOAWAY: Final = 0x7

    def __init__(self) -> None:
        self.goodbye = False
        self._head = b""  # of a frame that has begun to arrive
        self._rest = 0  # bytes of the frame that is arriving
        self._kept = False

    def keep_goaway(self, data: bytes) -> bytes:
        """The bytes without GOAWAY frames, as far as they are known to be none."""
        data, self._head = self._head + data, b""
        passed = bytearray()
        at = 0
        while at < len(data):
            if self._rest == 0:
                if len(data) - at < self._HEAD:
                    self._head = data[at:]
                    break
                self._rest = self._HEAD + int.from_bytes(data[at : at + 3])
                self._kept = data[at + 3] == self._GOAWAY
                self.goodbye = self.goodbye or self._kept
            end = min(at + self._rest, len(data))
            if not self._kept:
                passed += data[at:end]
            self._rest -= end - at
            at = end
        return bytes(passed)
