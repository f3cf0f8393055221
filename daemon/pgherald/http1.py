"""HTTP/1.1 for one purpose: many small POSTs to one server, fast, each with an honest word on whether it left.

`Http1Transport` is a `pgherald.fcm.Transport` over `pgherald.link`. One request at a time on a connection: whatever
happens to a connection concerns one push, and its one `write` is the moment from which bytes may have left. It reads
what an HTTP/1.1 server may answer (RFC 9112) and nothing else: no redirects, no cookies, no encodings.

With TLS it offers HTTP/1.1 only. HTTP/2 would share a connection, and with it every accident, between a hundred pushes.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx2

from pgherald.fcm import ANSWER_MAX, KEEPALIVE, CancelledUnsent, NotSent, Response, Unsure
from pgherald.link import Link
from pgherald.model import Code

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

T = TypeVar("T")

HEAD_MAX: Final = 16_384
"""Bytes of an answer's head at most; FCM's have about 500."""

ADDRESS_PATIENCE: Final = 0.5
"""Seconds for one address of a server before the next is tried: a broken IPv6 costs this once, not every connection."""

CONNECTING_MAX: Final = 32
"""Connections made at once: with five hundred begun together on a slow machine, each handshake would be late and thrown
away, again and again. Meanwhile one that is in use may come free, and serves as well."""

LAST_LOOK: Final = 0.01
"""Seconds for reading what had arrived by the deadline: a process that was stopped finds its answers only later."""

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD: Final = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: [^\r\n\0]*)?((?:\r\n" + _TOKEN + rb":[^\r\n\0]*)*)")
_FIELD: Final = re.compile(rb"\r\n(" + _TOKEN + rb"):([^\r\n\0]*)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]*)?")
_UNSAFE: Final = re.compile(r"[^\t\x20-\x7e]")


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    """Where a URL leads; `line` is the request line and the Host header. There is one for each URL."""

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
        self._watch = _Watch()
        self._worked: dict[str, str] = {}
        self._headers: Mapping[str, str] = {}
        self._header_lines = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; nothing may be under way any more."""
        for connection in list(self._all):
            connection.abort()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Response:
        """See `pgherald.fcm.Transport`."""
        target = _target(url)
        request = b"%bcontent-length: %d\r\n%b\r\n%b" % (target.line, len(body), self._lines(headers), body)
        if self._slots.value > 0:
            self._slots.acquire_nowait()
        else:
            await _unsent(_acquire(self._slots, deadline))
        connection = None
        try:
            connection = self._kept(target)
            if connection is None:
                made: _Connection = await _unsent(self._made(target, deadline))
                connection = made
            if deadline <= time.monotonic():
                raise NotSent
            answer = await connection.exchange(request, deadline)
        finally:
            if connection is not None:
                self._keep(target, connection)
            self._slots.release()
        if isinstance(answer, Response):
            return answer
        raise Unsure(answer)

    def _lines(self, headers: Mapping[str, str]) -> bytes:
        """The header lines; they are the same until the access token changes."""
        if headers != self._headers:
            if any(_UNSAFE.search(text) for field in headers.items() for text in field):
                raise NotSent
            self._headers = dict(headers)
            self._header_lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii")
        return self._header_lines

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
        """A new connection: to the address that worked last, or else to each in turn, the last with all patience."""
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
        context = self._ssl_context if target.tls else None
        return _Connection(await Link.open(address, target.port, context, target.host), self._all, self._watch)


async def _unsent(step: Awaitable[T]) -> T:
    """Something that comes before a request is sent."""
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


class _Watch:
    """One timer for the deadlines of all requests under way: one for each took longer than to parse the answer."""

    def __init__(self) -> None:
        self._deadlines: dict[_Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = float("inf")

    def add(self, connection: _Connection, deadline: float) -> None:
        """Have it expire then, unless it is discarded before."""
        self._deadlines[connection] = deadline
        if deadline < self._looks_at:
            self._look_at(deadline)

    def discard(self, connection: _Connection) -> None:
        self._deadlines.pop(connection, None)

    def _look_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = moment
        self._timer = asyncio.get_running_loop().call_later(max(moment - time.monotonic(), 0.0), self._look)

    def _look(self) -> None:
        """Expire what is over, and look again when the next may be."""
        now = time.monotonic()
        for connection in [each for each, deadline in self._deadlines.items() if deadline <= now]:
            self.discard(connection)
            connection.expire()
        self._timer, self._looks_at = None, float("inf")
        if self._deadlines:
            self._look_at(min(self._deadlines.values()))


class _Connection:
    """One connection: idle, or busy with one request."""

    __slots__ = ("_answer", "_everyone", "_link", "_loop", "_reader", "_reusable", "_since", "_watch")

    def __init__(self, link: Link, everyone: set[_Connection], watch: _Watch) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._everyone = everyone
        self._watch = watch
        self._answer: asyncio.Future[Response | Code] | None = None
        self._reader: AnswerReader | None = None  # once there is a part of an answer
        self._reusable = False
        self._since = 0.0
        everyone.add(self)
        link.listen(self)

    @property
    def reusable(self) -> bool:
        """Whether the last answer left the connection fit for another request."""
        return self._answer is None and self._reusable and self._link.is_open

    def is_young(self) -> bool:
        return time.monotonic() - self._since < KEEPALIVE

    def is_fresh(self) -> bool:
        """Whether an idle connection may be used again: not too old, and not a word of the server, least of all bye."""
        return self.is_young() and self._link.is_quiet()

    async def exchange(self, request: bytes, deadline: float) -> Response | Code:
        """Send a request and wait for its answer, until the deadline; a code says why there is none.

        Raises NotSent if the connection is over already.
        """
        self._reader, self._reusable = None, False
        if not self._link.write(request):
            raise NotSent
        answer: asyncio.Future[Response | Code] = self._loop.create_future()
        self._answer = answer
        self._watch.add(self, deadline)
        try:
            return await answer
        finally:
            self._watch.discard(self)

    def expire(self) -> None:
        """The deadline is here."""
        if self._link.is_quiet():
            self._end(Code.TIMEOUT)
        else:
            self._loop.call_later(LAST_LOOK, self._give_up, self._answer)

    def _give_up(self, answer: asyncio.Future[Response | Code] | None) -> None:
        if answer is self._answer:
            self._end(Code.TIMEOUT)

    def _end(self, answer: Response | Code) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)
            if isinstance(answer, Response):
                self._answer = None
                self._since = time.monotonic()

    def received(self, data: bytes) -> None:
        """See `pgherald.link.Receiver`."""
        if self._answer is None or self._answer.done():
            self.abort()
            return
        answer: Response | None
        try:
            whole = whole_answer(data) if self._reader is None else None
            if whole is not None:
                answer, self._reusable = whole
            else:
                self._reader = self._reader or AnswerReader()
                answer = self._reader.feed(data)
                self._reusable = self._reader.reusable
        except NotAnAnswer:
            self._end(Code.BAD_ANSWER)
            self.abort()
            return
        if answer is not None:
            self._end(answer)

    def ended(self, *, in_order: bool) -> None:
        """See `pgherald.link.Receiver`."""
        self._everyone.discard(self)
        if self._answer is not None:
            self._end(self._reader.end() if in_order and self._reader is not None else Code.CONNECTION_LOST)

    def abort(self) -> None:
        """Close at once; whoever waits for an answer has been told, or does not wait any more."""
        self._everyone.discard(self)
        self._link.abort()


class NotAnAnswer(Exception):
    """What arrives is not HTTP/1.1, or not of the kind that FCM answers."""


def whole_answer(data: bytes) -> tuple[Response, bool] | None:
    """An answer that came in one piece, as nearly all do, and whether the connection is fit for another request; None
    where an AnswerReader has to look closer. Raises NotAnAnswer."""
    end = data.find(b"\r\n\r\n", 0, HEAD_MAX)
    if end < 0:
        return None
    head = _head(data[:end])
    if head.status < 200 or head.length is None or len(data) != end + 4 + head.length:
        return None
    return Response(head.status, head.headers, data[end + 4 :]), head.keep_alive


class AnswerReader:
    """Reads one answer from the bytes of a connection, however they are cut. Pure."""

    __slots__ = ("_buffer", "_chunks", "_head", "reusable")

    def __init__(self) -> None:
        self.reusable = False
        self._buffer = bytearray()
        self._head: _Head | None = None
        self._chunks = bytearray()

    def feed(self, data: bytes) -> Response | None:
        """The answer, once it is whole. Raises NotAnAnswer."""
        self._buffer += data
        while self._head is None:
            if not self._read_head():
                return None
        if self._head.chunked:
            return self._read_chunks(self._head)
        length = self._head.length
        if length is None:
            if len(self._buffer) > ANSWER_MAX:
                raise NotAnAnswer
            return None
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return self._whole(self._head, body)

    def end(self) -> Response | Code:
        """What there is of an answer when the connection ends in order."""
        if self._head is None:
            return Code.CONNECTION_LOST
        if self._head.length is None and not self._head.chunked:
            return Response(self._head.status, self._head.headers, bytes(self._buffer))
        return Code.BAD_ANSWER

    def _whole(self, head: _Head, body: bytes) -> Response:
        self.reusable = head.keep_alive and not self._buffer
        return Response(head.status, head.headers, body)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_MAX or self._buffer[:7] != b"HTTP/1."[: len(self._buffer)]:
                raise NotAnAnswer
            return False
        if end > HEAD_MAX:
            raise NotAnAnswer
        head = _head(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        if head.status < 200:
            return True
        self._head = head
        return True

    def _read_chunks(self, head: _Head) -> Response | None:
        while (end := self._buffer.find(b"\r\n")) >= 0:
            line = _CHUNK.fullmatch(self._buffer, 0, end)
            if line is None:
                raise NotAnAnswer
            size = int(line[1], 16)
            if len(self._chunks) + size > ANSWER_MAX:
                raise NotAnAnswer
            if size == 0:
                return self._read_trailer(head, end)
            if len(self._buffer) < end + 2 + size + 2:
                break
            if self._buffer[end + 2 + size : end + 4 + size] != b"\r\n":
                raise NotAnAnswer
            self._chunks += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 4 + size]
        if len(self._buffer) > ANSWER_MAX + HEAD_MAX:
            raise NotAnAnswer
        return None

    def _read_trailer(self, head: _Head, begin: int) -> Response | None:
        """After the last chunk: fields that nobody needs, and an empty line."""
        end = self._buffer.find(b"\r\n\r\n", begin)
        if end < 0:
            if len(self._buffer) > HEAD_MAX:
                raise NotAnAnswer
            return None
        del self._buffer[: end + 4]
        return self._whole(head, bytes(self._chunks))


@dataclass(frozen=True, slots=True)
class _Head:
    """Status line and header fields, and what follows from them; a `length` of None is until the connection's end."""

    status: int
    headers: Mapping[str, str]
    length: int | None
    chunked: bool
    keep_alive: bool


@lru_cache(maxsize=256)
def _head(text: bytes) -> _Head:
    """Read a head. Those of one server are the same for a second or so, until its Date changes. Raises NotAnAnswer."""
    found = _HEAD.fullmatch(text)
    if found is None:
        raise NotAnAnswer
    newer, status = found[1] == b"1", int(found[2])
    if status == 101:
        raise NotAnAnswer
    fields = [
        (name.decode().lower(), value.strip(b" \t").decode("latin-1")) for name, value in _FIELD.findall(found[3])
    ]
    options = {option.strip().lower() for name, value in fields if name == "connection" for option in value.split(",")}
    keep_alive = "close" not in options and (newer or "keep-alive" in options)
    if 100 <= status < 200:
        return _Head(status, {}, 0, chunked=False, keep_alive=keep_alive)
    length, chunked = _frame(status, fields)
    return _Head(status, MappingProxyType(dict(fields)), length, chunked, keep_alive)


def _frame(status: int, fields: Sequence[tuple[str, str]]) -> tuple[int | None, bool]:
    """How long the body is, and whether it is chunked (RFC 9112 section 6.3); what could be read in two ways is not
    read at all."""
    lengths = {value for name, value in fields if name == "content-length"}
    codings = [value.lower() for name, value in fields if name == "transfer-encoding"]
    if status in (204, 304):
        return 0, False
    if codings:
        if codings != ["chunked"] or lengths:
            raise NotAnAnswer
        return None, True
    if lengths:
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()) or len(length) > 9 or int(length) > ANSWER_MAX:
            raise NotAnAnswer
        return int(length), False
    return None, False
