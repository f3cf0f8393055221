"""HTTP/1.1 for one purpose: small POSTs to one server, one at a time, with an honest word on whether each left.

`Http1Connection` is a `pgherald.connection.Connection` over `pgherald.link`. Whatever happens to it concerns one push,
and its one `write` is the moment from which bytes may have left. It reads what an HTTP/1.1 server may answer (RFC 9112)
and nothing else: no redirects, no cookies, no encodings.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pgherald.connection import HEAD_MAX, NotAnAnswer
from pgherald.fcm import ANSWER_MAX, KEEPALIVE, Response
from pgherald.model import Code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgherald.connection import Connection, Deadlines
    from pgherald.fcm import Fields
    from pgherald.link import Link

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD: Final = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: [^\r\n\0]*)?((?:\r\n" + _TOKEN + rb":[^\r\n\0]*)*)")
_FIELD: Final = re.compile(rb"\r\n(" + _TOKEN + rb"):([^\r\n\0]*)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]*)?")


@lru_cache(maxsize=4)
def _request_head(url: str, fields: Fields) -> bytes:
    """What comes before the body's length; it is the same until the access token changes."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {path} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}"]
    lines += [f"{name}: {value}" for name, value in fields]
    return "\r\n".join([*lines, "content-length: "]).encode("ascii")


class Http1Connection:
    """One connection: idle, or busy with one request. It is in `everyone` while it is open."""

    __slots__ = ("_answer", "_deadlines", "_everyone", "_link", "_loop", "_reader", "_reusable", "_since")

    def __init__(self, link: Link, everyone: set[Connection], deadlines: Deadlines) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._everyone = everyone
        self._deadlines = deadlines
        self._answer: asyncio.Future[Response | Code] | None = None
        self._reader: AnswerReader | None = None  # once there is a part of an answer
        self._reusable = True
        self._since = time.monotonic()
        everyone.add(self)
        link.listen(self)

    @property
    def room(self) -> int:
        """See `Connection`: one if it is idle, and the last answer left it fit for another request."""
        return int(self._answer is None and self._reusable and self._link.is_open)

    def is_old(self) -> bool:
        """See `Connection`."""
        return time.monotonic() - self._since >= KEEPALIVE

    def is_fresh(self) -> bool:
        """See `Connection`."""
        return not self.is_old() and self._link.is_quiet()

    async def exchange(self, url: str, fields: Fields, body: bytes, deadline: float) -> Response | Code | None:
        """See `Connection`."""
        self._reader, self._reusable = None, False
        if not self._link.write(b"%b%d\r\n\r\n%b" % (_request_head(url, fields), len(body), body)):
            self.abort()
            return None
        answer: asyncio.Future[Response | Code] = self._loop.create_future()
        self._answer = answer
        self._deadlines.add(self, deadline)
        try:
            return await answer
        finally:
            self._deadlines.discard(self)
            if not self.room:
                self.abort()

    def expire(self) -> None:
        """See `pgherald.connection.Expiring`."""
        self._link.look()
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
        """See `Connection`."""
        self._everyone.discard(self)
        self._link.abort()


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
        if head.status >= 200:
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
