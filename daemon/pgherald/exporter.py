"""Serves /metrics, /healthz and /readyz to Prometheus, load balancers and people. Started by the service.

- /healthz: 200 while the process lives and its event loop turns.
- /readyz: 200 if pushes are being sent, with the reasons if something works worse than it should (a listener that is
  away: polling still finds the work); 503 with the reasons if they are not.
- /metrics: Prometheus' text format.

A small HTTP/1.1 server on h11, because it must stay answerable whatever its clients do: a handshake of TLS has to be
complete within 5 seconds, a request within 5 seconds and 8 KiB, an answer has to be taken within 5 seconds, and where
more than 64 connections are open the one that has been waiting longest without a complete request goes. GET and HEAD
only, no bodies. It listens on loopback unless told otherwise, and speaks plain HTTP unless it is given a TLS context.
"""

from __future__ import annotations

import errno
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

import anyio
import anyio.abc
import h11
import orjson
from anyio.abc import SocketAttribute

from pgherald.backoff import Told
from pgherald.config import METRICS_LISTEN
from pgherald.errors import ConfigError
from pgherald.health import Status
from pgherald.log import describe_exception, log
from pgherald.metrics import CONTENT_TYPE
from pgherald.tls import Guard, SecuredStream
from pgherald.values import HostPort

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgherald.health import Health
    from pgherald.metrics import Metrics

REQUEST_SECONDS: Final = 5.0  # to the first byte on a new connection, and from there to the end of the request
ANSWER_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 90.0  # between two requests of one connection: longer than Prometheus' usual scrape interval
MOST_CONNECTIONS: Final = 64
MOST_HEADER_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class _Stream(Protocol):
    """A client's bytes, secured or not."""

    async def receive(self, most: int, /) -> bytes: ...
    async def send(self, data: bytes, /) -> None: ...


class _Connection:
    """One client. `scope` ends it from outside; `asking` is true while no complete request of it is being answered."""

    def __init__(self, stream: _Stream) -> None:
        self.scope = anyio.CancelScope()
        self.asking = True
        self.stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEADER_BYTES)

    async def request(self, patience: float) -> h11.Request | None:
        """The next request as soon as it is complete, or None where the client has no more.

        Its first byte may take `patience` seconds, all of it REQUEST_SECONDS more.
        """
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            with anyio.fail_after(patience):
                event = await self._read()
        with anyio.fail_after(REQUEST_SECONDS):
            while event is h11.NEED_DATA:
                event = await self._read()
        return event if isinstance(event, h11.Request) else None

    async def _read(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            data = await self.stream.receive(MOST_HEADER_BYTES)
        except anyio.EndOfStream:
            data = b""
        self._http.receive_data(data)
        return self._http.next_event()

    def has_body(self) -> bool:
        """Whether the request goes on after its headers: nothing here takes a body, so the connection cannot go on."""
        return not isinstance(self._http.next_event(), h11.EndOfMessage)

    async def answer(self, answer: _Answer, *, with_body: bool, close: bool) -> bool:
        """Send an answer; False if the connection ends with it."""
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            *answer.headers,
        ]
        if close:
            headers.append(("Connection", "close"))
        events: list[h11.Event] = [h11.Response(status_code=answer.status, headers=headers), h11.EndOfMessage()]
        if with_body:
            events.insert(1, h11.Data(data=answer.body))
        data = b"".join(self._http.send(event) or b"" for event in events)
        with anyio.fail_after(ANSWER_SECONDS):
            await self.stream.send(data)
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True


_PLAIN_REFUSAL: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"this is HTTPS: ask for https://\n"
)


class _Server:
    def __init__(self, metrics: Metrics, health: Health, guard: Guard) -> None:
        self._metrics = metrics
        self._health = health
        self._guard = guard
        self._told = Told()  # of what came of a client
        # Those that ask come first, longest waiting first.
        self._connections: dict[_Connection, None] = {}

    async def accept(self, listener: anyio.abc.SocketListener, clients: anyio.abc.TaskGroup) -> None:
        """Take connections for ever. Having no file descriptor left is no reason to stop: there will be one again."""
        failing = False
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if not failing:
                    log.warning("exporter_accept_failed", exception=describe_exception(error))
                failing = True
                await anyio.sleep(0.1)
                continue
            failing = False
            clients.start_soon(self._serve, stream)

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            longest = next((each for each in self._connections if each.asking), next(iter(self._connections)))
            del self._connections[longest]
            longest.scope.cancel()
        connection = _Connection(stream)
        self._connections[connection] = None
        try:
            with connection.scope:
                context = self._guard.context
                if context is None:
                    await self._converse(connection)
                else:
                    await self._converse_in_private(connection, SecuredStream(stream, context))
                await stream.aclose()
        except (TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # too slow, or gone: there is nobody to tell
        except ssl.SSLError as error:
            await self._refuse(stream, error)
        except h11.LocalProtocolError as error:  # a mistake of ours, which must not cost more than this connection
            if self._may_tell():
                log.error("exporter_answer_failed", exception=describe_exception(error))
        finally:
            self._connections.pop(connection, None)
            await anyio.aclose_forcefully(stream)

    async def _converse_in_private(self, connection: _Connection, secured: SecuredStream) -> None:
        with anyio.fail_after(REQUEST_SECONDS):
            await secured.handshake()
        connection.stream = secured
        await self._converse(connection)
        with anyio.fail_after(ANSWER_SECONDS):
            await secured.farewell()

    def _may_tell(self) -> bool:
        """Whether what came of a client may be logged, after which it may not for a while."""
        return self._told.is_due("client", time.monotonic())

    async def _refuse(self, stream: anyio.abc.SocketStream, error: ssl.SSLError) -> None:
        """A client that speaks no TLS, brings no certificate that is good here, or does not take ours."""
        if self._may_tell():
            log.warning("metrics_client_refused", reason=error.reason or "TLS")
        if error.reason == "HTTP_REQUEST":
            with suppress(anyio.BrokenResourceError), anyio.move_on_after(ANSWER_SECONDS):
                await stream.send(_PLAIN_REFUSAL)

    async def _converse(self, connection: _Connection) -> None:
        patience, going_on = REQUEST_SECONDS, True
        while going_on:
            connection.asking = True
            request: h11.Request | None = None
            try:
                request = await connection.request(patience)
                if request is None:
                    return
                close = connection.has_body()
            except h11.RemoteProtocolError as error:
                refusal = _Answer(error.error_status_hint, b"not a request that is understood here\n")
                await connection.answer(refusal, with_body=request is None or request.method != b"HEAD", close=True)
                return
            connection.asking = False
            going_on = await connection.answer(self._respond(request), with_body=request.method != b"HEAD", close=close)
            patience = IDLE_SECONDS
            self._connections[connection] = self._connections.pop(connection, None)

    def _respond(self, request: h11.Request) -> _Answer:
        path = request.target.partition(b"?")[0]
        if path not in (b"/metrics", b"/healthz", b"/readyz"):
            return _Answer(404, b"here are /metrics, /healthz and /readyz\n")
        if request.method not in (b"GET", b"HEAD"):
            return _Answer(405, b"GET or HEAD\n", headers=(("Allow", "GET, HEAD"),))
        if path == b"/metrics":
            return _Answer(200, self._metrics.render(), CONTENT_TYPE)
        if path == b"/healthz":
            return _Answer(200, b"ok\n")
        now = self._health.snapshot()
        body = orjson.dumps({"status": now.status, "reasons": now.reasons}, option=orjson.OPT_APPEND_NEWLINE)
        return _Answer(503 if now.status is Status.NOT_READY else 200, body, "application/json")


async def serve(
    listen: HostPort,
    metrics: Metrics,
    health: Health,
    guard: Guard | None = None,
    *,
    task_status: anyio.abc.TaskStatus[HostPort] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; reports where it listens, which port 0 leaves open. Without `guard` in plain HTTP.

    Raises ConfigError if it cannot listen there.
    """
    try:
        listening = await anyio.create_tcp_listener(local_host=listen.host, local_port=listen.port, backlog=1024)
    except OSError as error:
        raise ConfigError(_cannot_listen(listen, error)) from None
    async with listening, anyio.create_task_group() as tasks:
        server = _Server(metrics, health, guard or Guard())
        for listener in cast("Sequence[anyio.abc.SocketListener]", listening.listeners):
            tasks.start_soon(server.accept, listener, tasks)
        task_status.started(HostPort(listen.host, listening.extra(SocketAttribute.local_port)))


def _cannot_listen(listen: HostPort, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        why = "the host has no address here; give an IP address"
    elif error.errno == errno.EADDRINUSE:
        why = f"something listens there already, perhaps another pgherald (ss -ltnp 'sport = :{listen.port}' tells)"
    elif error.errno == errno.EADDRNOTAVAIL:
        why = "this machine has no such address"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why = "this user may not listen there; take a port above 1023"
    else:
        why = describe_exception(error)
    return f"cannot serve metrics at {listen}: {why}; to listen elsewhere, set {METRICS_LISTEN.name}=127.0.0.1:9478"
