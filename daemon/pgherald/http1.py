"""HTTP/1.1 for one purpose: many small POSTs to one server, fast, each with an honest word on whether it left.

`Http1Transport` is a `pgherald.fcm.Transport` on asyncio's own protocols. One request at a time on a connection:
whatever happens to a connection concerns one push, and its one `write` is the moment from which bytes may have left. It
reads what an HTTP/1.1 server may answer (RFC 9112) and nothing else: no redirects, no cookies, no encodings.

With TLS it offers HTTP/1.1 only. HTTP/2 would share a connection, and with it every accident, between a hundred pushes.
"""

from __future__ import annotations

import asyncio
import re
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import anyio
import httpx2

from pgherald.fcm import ANSWER_MAX, KEEPALIVE, NotSent, Response, Unsure
from pgherald.model import Code

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

HEAD_MAX: Final = 16_384
"""Bytes of an answer's head at most; FCM's have about 500."""

ADDRESS_PATIENCE: Final = 0.5
"""Seconds for one address of a server before the next is tried: a broken IPv6 costs this once, not every connection."""

CONNECTING_MAX: Final = 32
"""Connections made at once: with five hundred begun together on a slow machine, each handshake would be late and thrown
away, again and again. Meanwhile one that is in use may come free, and serves as well."""

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD: Final = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: [^\r\n\0]*)?((?:\r\n" + _TOKEN + rb":[^\r\n\0]*)*)")
_FIELD: Final = re.compile(rb"\r\n(" + _TOKEN + rb"):([^\r\n\0]*)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]*)?")
_UNSAFE: Final = re.compile(r"[^\t\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a URL leads; `line` is the request line and the Host header."""

    host: str
    port: int
    tls: bool
    line: bytes


@lru_cache(maxsize=16)
def _target(url: str) -> _Target:
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    line = f"POST {path} HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\n".encode("ascii")
    return _Target(parts.hostname or "", parts.port or (443 if tls else 80), tls, line)


class Http1Transport:
    """Connections to the servers that are posted to, at most `max_connections` at once; idle ones are kept a while."""

    def __init__(self, max_connections: int, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl_context = ssl_context or httpx2.create_ssl_context()
        self._ssl_context.set_alpn_protocols(["http/1.1"])
        self._slots = anyio.Semaphore(max_connections, fast_acquire=True)
        self._connecting = anyio.Semaphore(CONNECTING_MAX, fast_acquire=True)
        self._idle: dict[_Target, list[_Connection]] = {}
        self._all: set[_Connection] = set()
        self._worked: dict[str, str] = {}
        self._fields: tuple[tuple[tuple[str, str], ...], bytes] = ((), b"")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; nothing may be under way any more."""
        closing = list(self._all)
        for connection in closing:
            connection.abort()
        with anyio.CancelScope(shield=True):
            for connection in closing:
                await connection.gone.wait()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Response:
        """See `pgherald.fcm.Transport`."""
        target = _target(url)
        request = b"%bcontent-length: %d\r\n%b\r\n%b" % (target.line, len(body), self._lines(headers), body)
        await _acquire(self._slots, deadline)
        connection = None
        try:
            connection = self._kept(target) or await self._made(target, deadline)
            patience = deadline - time.monotonic()
            if patience <= 0:
                raise NotSent
            answer = await connection.exchange(request, patience)
        finally:
            if connection is not None:
                self._keep(target, connection)
            self._slots.release()
        if isinstance(answer, Response):
            return answer
        raise Unsure(answer)

    def _lines(self, headers: Mapping[str, str]) -> bytes:
        """The header lines; they are the same until the access token changes."""
        key = tuple(headers.items())
        if key != self._fields[0]:
            if any(_UNSAFE.search(text) for field in key for text in field):
                raise NotSent
            self._fields = (key, "".join(f"{name}: {value}\r\n" for name, value in key).encode("ascii"))
        return self._fields[1]

    def _kept(self, target: _Target) -> _Connection | None:
        """The connection that was idle for the shortest time, if it is still any good."""
        idle = self._idle.get(target, ())
        while idle:
            connection = idle.pop()
            if connection.is_fresh():
                return connection
            connection.abort()
        return None

    def _keep(self, target: _Target, connection: _Connection) -> None:
        if not connection.reusable:
            connection.abort()
            return
        idle = self._idle.setdefault(target, [])
        if idle and not idle[0].is_young():
            idle.pop(0).abort()
        idle.append(connection)

    async def _made(self, target: _Target, deadline: float) -> _Connection:
        """A new connection, or one that came free while others were being made."""
        await _acquire(self._connecting, deadline)
        try:
            return self._kept(target) or await self._connected(target, deadline)
        finally:
            self._connecting.release()

    async def _connected(self, target: _Target, deadline: float) -> _Connection:
        """A new connection: to the address that worked last, or else to each in turn, the last one with all patience.

        Not asyncio's own race between addresses: cancelled at the wrong moment, that leaves a socket behind.
        """
        try:
            with anyio.move_on_after(deadline - time.monotonic()):
                addresses = await self._resolve(target)
                for address in addresses:
                    patience = ADDRESS_PATIENCE if address is not addresses[-1] else None
                    with suppress(OSError), anyio.move_on_after(patience):
                        connection = await self._connect(target, address)
                        self._worked[target.host] = address
                        return connection
        except (OSError, ValueError):  # an impossible host name is a ValueError
            pass
        raise NotSent

    async def _resolve(self, target: _Target) -> list[str]:
        found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        last = self._worked.get(target.host)
        return sorted(dict.fromkeys(str(address[0]) for *_, address in found), key=lambda address: address != last)

    async def _connect(self, target: _Target, address: str) -> _Connection:
        tls: dict[str, Any] = {"ssl": self._ssl_context, "server_hostname": target.host} if target.tls else {}
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self._all), address, target.port, **tls)
        return connection


async def _acquire(slots: anyio.Semaphore, deadline: float) -> None:
    """Take one of them, or raise NotSent at the deadline."""
    try:
        slots.acquire_nowait()
    except anyio.WouldBlock:
        with anyio.move_on_after(deadline - time.monotonic()) as scope:
            await slots.acquire()
        if scope.cancelled_caught:
            raise NotSent from None


class _Connection(asyncio.Protocol):
    """One connection: idle, or busy with one request. It is always read from, so a server that hangs up is noticed."""

    def __init__(self, everyone: set[_Connection]) -> None:
        self.gone = asyncio.Event()
        self._everyone = everyone
        self._transport: Any = None
        self._poll = select.poll()
        self._answer: asyncio.Future[Response | Code] | None = None
        self._reader = AnswerReader()
        self._closed = False
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._everyone.add(self)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    @property
    def reusable(self) -> bool:
        """Whether the last answer left the connection fit for another request."""
        return not self._closed and self._answer is None and self._reader.reusable

    def is_young(self) -> bool:
        return time.monotonic() - self._since < KEEPALIVE

    def is_fresh(self) -> bool:
        """Whether an idle connection may be used again: not too old, and not a word of the server, least of all bye."""
        return not self._closed and not self._transport.is_closing() and self.is_young() and not self._poll.poll(0)

    async def exchange(self, request: bytes, patience: float) -> Response | Code:
        """Send a request and wait for its answer, or for so many seconds; a code says why there is none.

        Raises NotSent if the connection is over already.
        """
        if self._closed or self._transport.is_closing():
            raise NotSent
        loop = asyncio.get_running_loop()
        self._reader = AnswerReader()
        answer: asyncio.Future[Response | Code] = loop.create_future()
        self._answer = answer
        timer = loop.call_later(patience, self._end, Code.TIMEOUT)
        self._transport.write(request)
        try:
            return await answer
        finally:
            timer.cancel()

    def _end(self, answer: Response | Code) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)
            if isinstance(answer, Response):
                self._answer = None
                self._since = time.monotonic()

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.abort()
            return
        try:
            answer = self._reader.feed(data)
        except NotAnAnswer:
            self._end(Code.BAD_ANSWER)
            self.abort()
            return
        if answer is not None:
            self._end(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._everyone.discard(self)
        self.gone.set()
        if self._answer is not None:
            self._end(self._reader.end() if exc is None else Code.CONNECTION_LOST)

    def abort(self) -> None:
        """Close without another word: not even TLS is ended in order, which could wait for the server."""
        self._transport.abort()


class NotAnAnswer(Exception):
    """What arrives is not HTTP/1.1, or not of the kind that FCM answers."""


class AnswerReader:
    """Reads one answer from the bytes of a connection, however they are cut. Pure."""

    def __init__(self) -> None:
        self.reusable = False
        self._buffer = bytearray()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._length: int | None = 0  # of the body; None is until the end of the connection
        self._chunked = False
        self._chunks = bytearray()
        self._keep_alive = False

    def feed(self, data: bytes) -> Response | None:
        """The answer, once it is whole. Raises NotAnAnswer."""
        self._buffer += data
        while self._status == 0:
            if not self._read_head():
                return None
        if self._chunked:
            return self._read_chunks()
        if self._length is None:
            if len(self._buffer) > ANSWER_MAX:
                raise NotAnAnswer
            return None
        if len(self._buffer) < self._length:
            return None
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        return self._whole(body)

    def end(self) -> Response | Code:
        """What there is of an answer when the connection ends in order."""
        if self._status == 0:
            return Code.CONNECTION_LOST
        if self._length is None and not self._chunked:
            return Response(self._status, self._headers, bytes(self._buffer))
        return Code.BAD_ANSWER

    def _whole(self, body: bytes) -> Response:
        self.reusable = self._keep_alive and not self._buffer
        return Response(self._status, self._headers, body)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_MAX or self._buffer[:7] != b"HTTP/1."[: len(self._buffer)]:
                raise NotAnAnswer
            return False
        head = _HEAD.fullmatch(self._buffer, 0, end)
        if head is None or end > HEAD_MAX:
            raise NotAnAnswer
        newer, status = head[1] == b"1", int(head[2])
        fields = [
            (name.decode().lower(), value.strip(b" \t").decode("latin-1")) for name, value in _FIELD.findall(head[3])
        ]
        del self._buffer[: end + 4]
        if 100 <= status < 200:
            if status == 101:
                raise NotAnAnswer
            return True
        self._headers = dict(fields)
        self._frame(status, fields)
        options = {
            option.strip().lower() for name, value in fields if name == "connection" for option in value.split(",")
        }
        self._keep_alive = "close" not in options and (newer or "keep-alive" in options)
        self._status = status
        return True

    def _frame(self, status: int, fields: list[tuple[str, str]]) -> None:
        """How long the body is (RFC 9112 section 6.3); what could be read in two ways is not read at all."""
        lengths = {value for name, value in fields if name == "content-length"}
        codings = [value.lower() for name, value in fields if name == "transfer-encoding"]
        if status in (204, 304):
            self._length = 0
        elif codings:
            if codings != ["chunked"] or lengths:
                raise NotAnAnswer
            self._chunked = True
        elif lengths:
            length = lengths.pop()
            if lengths or not (length.isascii() and length.isdigit()) or len(length) > 9 or int(length) > ANSWER_MAX:
                raise NotAnAnswer
            self._length = int(length)
        else:
            self._length = None

    def _read_chunks(self) -> Response | None:
        while (end := self._buffer.find(b"\r\n")) >= 0:
            line = _CHUNK.fullmatch(self._buffer, 0, end)
            if line is None:
                raise NotAnAnswer
            size = int(line[1], 16)
            if len(self._chunks) + size > ANSWER_MAX:
                raise NotAnAnswer
            if size == 0:
                return self._read_trailer(end)
            if len(self._buffer) < end + 2 + size + 2:
                break
            if self._buffer[end + 2 + size : end + 4 + size] != b"\r\n":
                raise NotAnAnswer
            self._chunks += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 4 + size]
        if len(self._buffer) > ANSWER_MAX + HEAD_MAX:
            raise NotAnAnswer
        return None

    def _read_trailer(self, begin: int) -> Response | None:
        """After the last chunk: fields that nobody needs, and an empty line."""
        end = self._buffer.find(b"\r\n\r\n", begin)
        if end < 0:
            if len(self._buffer) > HEAD_MAX:
                raise NotAnAnswer
            return None
        del self._buffer[: end + 4]
        return self._whole(bytes(self._chunks))
