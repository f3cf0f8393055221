"""The sockets: listens in clear text and over TLS, and tells HTTP/1.1 from HTTP/2.

HTTP/2 is taken over TLS where ALPN agrees on it, and in clear text by prior knowledge (RFC 9113, 3.3): the connection's
first bytes are its preface.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from typing import TYPE_CHECKING, Final

import anyio

from pgherald.emulator.http1 import Http1
from pgherald.emulator.http2 import PREFACE, Http2
from pgherald.emulator.link import Link
from pgherald.errors import HeraldError
from pgherald.values import HostPort

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pgherald.emulator.app import App

_PATIENCE_SECONDS: Final = 1.0


class Connection(asyncio.Protocol):
    """One client: holds its first bytes until they tell the version, then hands all to `Http1` or `Http2`."""

    def __init__(self, app: App, connections: set[Connection]) -> None:
        self.gone = asyncio.Event()
        self._app = app
        self._connections = connections
        self._first = b""
        self._http: Http1 | Http2 | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.link = Link(transport)
        self._connections.add(self)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is not None:
            version = Http2 if tls.selected_alpn_protocol() == "h2" else Http1
            self._http = version(self._app, self.link)

    def data_received(self, data: bytes) -> None:
        if self.link.closed:
            return
        if self._http is None:
            self._first += data
            if len(self._first) < len(PREFACE) and PREFACE.startswith(self._first):
                return
            version = Http2 if self._first.startswith(PREFACE) else Http1
            self._http = version(self._app, self.link)
            data = self._first
        self._http.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self.gone.set()


@contextlib.asynccontextmanager
async def listening(app: App, sock: socket.socket, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """Serves `app` on a bound socket until the block ends, which resets what is still connected."""
    connections: set[Connection] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(app, connections), sock=sock, ssl=tls, backlog=1024
    )
    try:
        yield
    finally:
        server.close()
        with anyio.move_on_after(_PATIENCE_SECONDS, shield=True):
            for connection in tuple(connections):
                connection.link.reset()
                await connection.gone.wait()


def bind(address: HostPort) -> socket.socket:
    """Raises HeraldError if the address is not to be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=1024)
    except socket.gaierror as error:
        raise HeraldError(f"{address.host} is no address of this machine: choose another HOST:PORT") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            text = (
                f"{address} is taken by another program: stop it, or choose another HOST:PORT (port 0 = any free one)"
            )
        else:
            text = f"{address} cannot be listened on ({error.strerror}): choose another HOST:PORT"
        raise HeraldError(text) from error


def bound_address(sock: socket.socket) -> HostPort:
    host, port = sock.getsockname()[:2]
    return HostPort(host, port)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context
