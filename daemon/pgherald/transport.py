"""Connections to FCM: made when they are needed, shared as far as their HTTP allows, kept a while, and never too many.

`HttpTransport` is a `pgherald.fcm.Transport`. With TLS the server chooses: HTTP/2 (`pgherald.http2`), as FCM does, or
HTTP/1.1 (`pgherald.http1`), as without TLS. Both are a `Connection` over `pgherald.link`, with the same honest word on
whether a request may have been acted on. HTTP/2 takes less CPU. An accident of a connection then concerns up to a
hundred pushes together; but a server that ends one in order says which requests it did not take, where HTTP/1.1 leaves
doubt.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx2

from pgherald.connection import Deadlines
from pgherald.fcm import CancelledUnsent, NotSent, Response, Unsure
from pgherald.http1 import Http1Connection
from pgherald.http2 import Http2Connection
from pgherald.link import Link

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Mapping
    from typing import Self

    from pgherald.connection import Connection
    from pgherald.fcm import Fields

T = TypeVar("T")

ADDRESS_PATIENCE: Final = 0.5
ADDRESS_PATIENCE_MAX: Final = 1.5
"""Seconds for one address of a server before the next is tried: a broken one costs this once, not every connection. It
grows, up to the maximum, each time that all were tried in vain: the way to all of them may be as long as that."""

CONNECTING_MAX: Final = 32
"""Connections of HTTP/1.1 made at once: with five hundred begun together on a slow machine, each handshake would be
late and thrown away, again and again. Meanwhile one that is in use may come free, and serves as well. Until a server is
known to want HTTP/1.1 there is one at a time: with HTTP/2 it serves a hundred."""

TRIES: Final = 3
"""Connections that a request is tried on at most, while each says that it was not taken."""

H2: Final = "h2"  # ALPN's name for HTTP/2 (RFC 9113 section 3.1)

_UNSAFE: Final = re.compile(r"[^\t\x20-\x7e]")


@dataclass(slots=True, eq=False)
class _Server:
    """Where a URL leads, and the connections with room for a request, the last used at the end. There is one for each
    URL."""

    host: str
    port: int
    tls: bool
    free: dict[Connection, None] = field(default_factory=dict)
    # When each address failed last (time.monotonic()) since one worked, and -inf for that one.
    tried: dict[str, float] = field(default_factory=dict)
    patience: float = ADDRESS_PATIENCE
    connecting: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(1, fast_acquire=True))
    speaks_http1: bool = False

    def take(self) -> Connection | None:
        """The connection that was used last of those with room, if one is still any good."""
        while self.free:
            connection, _ = self.free.popitem()
            if connection.room == 0:
                continue
            if connection.is_fresh():
                return self.lend(connection)
            connection.abort()
        return None

    def lend(self, connection: Connection) -> Connection:
        """Have it used for one request, and by others too if it has room for them."""
        if connection.room > 1:
            self.free[connection] = None
        return connection

    def take_back(self, connection: Connection) -> None:
        """It is not used for that request any more."""
        oldest = next(iter(self.free), None)
        if oldest is not None and oldest.is_old():
            del self.free[oldest]
            oldest.abort()
        if connection.room > 0:
            self.free[connection] = None


class HttpTransport:
    """Connections to the servers that are posted to, for at most `max_in_flight` requests at once."""

    def __init__(self, max_in_flight: int, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl_context = ssl_context or httpx2.create_ssl_context()
        self._ssl_context.set_alpn_protocols([H2, "http/1.1"])
        self._slots = anyio.Semaphore(max_in_flight, fast_acquire=True)
        self._servers: dict[str, _Server] = {}
        self._all: set[Connection] = set()
        self._deadlines = Deadlines()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections; nothing may be under way any more."""
        for connection in list(self._all):
            connection.abort()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Response:
        """See `pgherald.fcm.Transport`."""
        server = self._servers.get(url) or self._new_server(url)
        fields = _checked(tuple(headers.items()))
        if self._slots.value > 0:
            self._slots.acquire_nowait()
        else:
            await _unsent(_acquire(self._slots, deadline))
        try:
            for _ in range(TRIES):
                connection = server.take()
                if connection is None:
                    made: Connection = await _unsent(self._made(server, deadline))
                    connection = made
                try:
                    if deadline <= time.monotonic():
                        break
                    answer = await connection.exchange(url, fields, body, deadline)
                finally:
                    server.take_back(connection)
                if isinstance(answer, Response):
                    return answer
                if answer is not None:
                    raise Unsure(answer)
        finally:
            self._slots.release()
        raise NotSent

    def _new_server(self, url: str) -> _Server:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        server = self._servers[url] = _Server(parts.hostname or "", parts.port or (443 if tls else 80), tls)
        return server

    async def _made(self, server: _Server, deadline: float) -> Connection:
        """A new connection, or one that came free while others were being made."""
        await _acquire(server.connecting, deadline)
        try:
            return server.take() or server.lend(await self._connected(server, deadline))
        finally:
            server.connecting.release()

    async def _connected(self, server: _Server, deadline: float) -> Connection:
        """A new connection: to the address that worked last, or else to each in turn, the last with all patience.

        Those that did not work are tried after the others: so, however many they are, they hinder but a few sends.
        """
        try:
            with anyio.move_on_after(deadline - time.monotonic()):
                addresses = await self._resolve(server)
                # Never so much that the first cannot fail before the deadline: it would be the first again.
                most = min(server.patience, max(ADDRESS_PATIENCE, (deadline - time.monotonic()) / 2))
                for address in addresses:
                    began = time.monotonic()
                    with suppress(OSError), anyio.move_on_after(None if address is addresses[-1] else most):
                        connection = await self._connect(server, address)
                        server.tried = {address: float("-inf")}
                        took = time.monotonic() - began
                        server.patience = min(max(ADDRESS_PATIENCE, 2 * took), ADDRESS_PATIENCE_MAX)
                        return connection
                    server.tried[address] = time.monotonic()
        except (OSError, ValueError):  # an impossible host name is a ValueError
            pass
        raise NotSent

    async def _resolve(self, server: _Server) -> list[str]:
        found = await asyncio.get_running_loop().getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(address[0]) for *_, address in found)
        if all(server.tried.get(address, 0.0) > 0.0 for address in addresses):
            server.tried.clear()
            server.patience = min(2 * server.patience, ADDRESS_PATIENCE_MAX)
        return sorted(addresses, key=lambda address: server.tried.get(address, 0.0))

    async def _connect(self, server: _Server, address: str) -> Connection:
        link = await Link.open(address, server.port, self._ssl_context if server.tls else None, server.host)
        if link.alpn_protocol == H2:
            return await Http2Connection.open(link, self._all, self._deadlines)
        if not server.speaks_http1:
            server.speaks_http1 = True
            for _ in range(CONNECTING_MAX - 1):
                server.connecting.release()
        return Http1Connection(link, self._all, self._deadlines)


@lru_cache(maxsize=4)
def _checked(fields: Fields) -> Fields:
    """Header fields none of which would read as another; they are the same until the access token changes."""
    if any(_UNSAFE.search(text) for named in fields for text in named):
        raise NotSent
    return fields


async def _unsent(step: Awaitable[T]) -> T:
    """Await a step that comes before a request is sent; cancelled in it, CancelledUnsent."""
    try:
        return await step
    except asyncio.CancelledError:
        raise CancelledUnsent from None


async def _acquire(slots: anyio.Semaphore, deadline: float) -> None:
    """Take one of them, or raise NotSent at the deadline."""
    try:
        slots.acquire_nowait()
    except anyio.WouldBlock:
        with anyio.move_on_after(deadline - time.monotonic()) as scope:
            await slots.acquire()
        if scope.cancelled_caught:
            raise NotSent from None
