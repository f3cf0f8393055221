"""HTTP/2 for one purpose: many small POSTs to one server at once, each with an honest word on what became of it.

`Http2Connection` is a `pgherald.connection.Connection` over `pgherald.link`. Requests that begin in the same turn of
the event loop leave in one write, and their answers come together too, so many pushes share the price of a system call
and of a TLS record. Not the library h2, over the same link and with the same writes: that took seven times the CPU, 300
microseconds a request, more than all else that the daemon does for a push. It speaks the part of RFC 9113 that this
needs, and no more:

- The compression of headers keeps no state, either way: the server is told so by a table of 0 bytes, and what is sent
  is never put into one. So heads are the same bytes again and again, and each is encoded and read once.
- A request begins when its whole body fits into both of the server's windows.
- Requests that the server refuses unprocessed (GOAWAY with an earlier last stream, REFUSED_STREAM) were not taken
  (section 8.7). All others that are without an answer when the connection or their time ends are unsure.
- A connection on which anything went wrong gets no more requests, and is closed when the last of them has ended.
"""

from __future__ import annotations

import asyncio
import re
import struct
import time
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

from pgherald.connection import HEAD_MAX, NotAnAnswer
from pgherald.fcm import ANSWER_MAX, KEEPALIVE, CancelledUnsent, Response
from pgherald.model import Code

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from pgherald.connection import Connection, Deadlines
    from pgherald.fcm import Fields
    from pgherald.link import Link

# Frame types, flags, settings and error codes: RFC 9113 sections 6 and 7.
DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9
ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_HEADER_LIST_SIZE: Final = 6
REFUSED_STREAM: Final = 7

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_MAX: Final = 16_384
"""Bytes of a frame's payload at most, either way: what holds unless somebody says otherwise, which nobody here does."""

WINDOW_FIRST: Final = 65_535
WINDOW_MAX: Final = 2**31 - 1
STREAM_LAST: Final = 2**31 - 1
"""The number of the last request that a connection can carry."""

_31_BITS: Final = 0x7FFFFFFF  # of a number of 32; the first is reserved

STREAMS_MAX: Final = 100
"""Requests at once on a connection whose server names no limit, and on none more than this: FCM's is 100."""

_HEADER: Final = struct.Struct(">HBBBI")  # length in 16 + 8 bits, type, flags, stream
_SETTING: Final = struct.Struct(">HI")
_NUMBER: Final = struct.Struct(">I")
_STATUS: Final = re.compile(r"[1-9][0-9]{2}")
_LENGTH: Final = re.compile(r"[0-9]{1,9}")
_TABLE_SIZE_0: Final = b"\x20"  # RFC 7541 section 6.3: from here on the table of what is sent has 0 bytes


def write_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """The bytes of a frame."""
    length = len(payload)
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


def _checked(length: int) -> int:
    """The length of a frame's payload. Raises NotAnAnswer if that is too long."""
    if length > FRAME_MAX:
        raise NotAnAnswer
    return length


def content(kind: int, flags: int, payload: bytes) -> bytes:
    """What DATA or HEADERS carry, without padding and priority (sections 6.1 and 6.2). Raises NotAnAnswer."""
    if flags & PADDED:
        if not payload or payload[0] >= len(payload):
            raise NotAnAnswer
        payload = payload[1 : len(payload) - payload[0]]
    if kind == HEADERS and flags & PRIORITY:
        payload = payload[5:]
    return payload


@lru_cache(maxsize=4)
def request_head(url: str, fields: Fields) -> bytes:
    """The head of a POST, compressed without a table; it is the same until the access token changes."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    named = [(":authority", parts.netloc.rpartition("@")[2]), (":path", path), *fields]
    return Encoder().encode(
        [(":method", "POST"), (":scheme", parts.scheme), *(NeverIndexedHeaderTuple(*field) for field in named)]
    )


class Head(NamedTuple):
    """The head of an answer; `length` is what it says of the body's."""

    status: int
    headers: Mapping[str, str]
    length: int | None


@lru_cache(maxsize=256)
def answer_head(block: bytes) -> Head:
    """Read a head. Those of one server are the same for a second or so, until its date changes. Raises NotAnAnswer."""
    decoder = Decoder(max_header_list_size=HEAD_MAX)
    decoder.header_table_size = decoder.max_allowed_table_size = 0
    try:
        fields = [(str(name), str(value)) for name, value in decoder.decode(block)]
    except HPACKError:
        raise NotAnAnswer from None
    if not fields or fields[0][0] != ":status" or any(name.startswith(":") for name, _ in fields[1:]):
        raise NotAnAnswer
    status, headers = fields[0][1], dict(fields[1:])
    length = headers.get("content-length")
    if _STATUS.fullmatch(status) is None or (length is not None and _LENGTH.fullmatch(length) is None):
        raise NotAnAnswer
    return Head(int(status), MappingProxyType(headers), None if length is None else int(length))


class _Block(NamedTuple):
    """The head of an answer as far as it has come, and the flags of its HEADERS and CONTINUATION."""

    number: int
    flags: int
    payload: bytes


class _Stream:
    """One request and its answer; `number` is 0 until it is written."""

    __slots__ = ("answer", "body", "connection", "deadline", "head", "number", "received", "request_head")

    def __init__(self, connection: Http2Connection, request_head: bytes, body: bytes, deadline: float) -> None:
        self.connection = connection
        self.request_head = request_head
        self.body = body
        self.deadline = deadline
        self.number = 0
        self.answer: asyncio.Future[Response | Code | None] = asyncio.get_running_loop().create_future()
        self.head: Head | None = None
        self.received = b""

    def request(self) -> bytes:
        """All frames of the request."""
        head, number = self.request_head, self.number
        if number == 1:
            head = _TABLE_SIZE_0 + head
        frames = write_frame(HEADERS, END_HEADERS, number, head)
        rest = self.body
        while len(rest) > FRAME_MAX:
            frames += write_frame(DATA, 0, number, rest[:FRAME_MAX])
            rest = rest[FRAME_MAX:]
        return frames + write_frame(DATA, END_STREAM, number, rest)

    def end(self, answer: Response | Code | None) -> None:
        """Tell who waits, unless that has been done."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def expire(self) -> None:
        """See `pgherald.connection.Expiring`."""
        if self.number > 0:
            self.connection.look()
            self.end(Code.TIMEOUT)
        else:
            self.end(None)


class Http2Connection:
    """One connection, for as many requests at once as the server allows. It is in `everyone` while it is open."""

    def __init__(self, link: Link, everyone: set[Connection], deadlines: Deadlines) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._everyone = everyone
        self._deadlines = deadlines
        self._greeted: asyncio.Future[bool] = self._loop.create_future()  # with the server's settings; False: it ended
        self._streams: dict[int, _Stream] = {}  # written, without an answer
        self._unwritten: list[_Stream] = []
        self._writes = False  # in this turn of the loop
        self._retired = False  # gets no more requests
        self._next = 1
        self._streams_max = STREAMS_MAX
        self._window = WINDOW_FIRST  # bytes that the server takes now, of all bodies together
        self._stream_window = WINDOW_FIRST  # and of each, when it begins
        self._uncredited = 0  # bytes that came since the server was last told to go on
        self._rest = b""  # of a frame that is not whole yet
        self._head: _Block | None = None  # of an answer that is not whole yet
        self._expects: tuple[int, int] | None = (SETTINGS, 0)  # type and stream of what alone may come next
        self._since = time.monotonic()
        everyone.add(self)
        link.listen(self)

    @classmethod
    async def open(cls, link: Link, everyone: set[Connection], deadlines: Deadlines) -> Self:
        """Begin to speak HTTP/2; returns when the server has. Raises OSError if it does not mean to serve."""
        connection = cls(link, everyone, deadlines)
        settings = {
            HEADER_TABLE_SIZE: 0,
            ENABLE_PUSH: 0,
            INITIAL_WINDOW_SIZE: 2 * ANSWER_MAX,
            MAX_HEADER_LIST_SIZE: HEAD_MAX,
        }
        link.write(
            PREFACE
            + write_frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings.items()))
            + write_frame(WINDOW_UPDATE, 0, 0, _NUMBER.pack(WINDOW_MAX - WINDOW_FIRST))
        )
        try:
            serves = await connection._greeted and connection.room > 0
        except BaseException:
            connection.abort()
            raise
        if not serves:
            connection.abort()
            raise ConnectionRefusedError
        return connection

    @property
    def room(self) -> int:
        """See `Connection`."""
        if self._retired:
            return 0
        numbers = (STREAM_LAST - self._next) // 2 + 1
        return max(0, min(self._streams_max - len(self._streams), numbers) - len(self._unwritten))

    def is_old(self) -> bool:
        """See `Connection`."""
        return self._is_idle() and time.monotonic() - self._since >= KEEPALIVE

    def is_fresh(self) -> bool:
        """See `Connection`."""
        return not self._is_idle() or (not self.is_old() and self.look() and self.room > 0)

    def _is_idle(self) -> bool:
        return not self._streams and not self._unwritten

    async def exchange(self, url: str, fields: Fields, body: bytes, deadline: float) -> Response | Code | None:
        """See `Connection`."""
        head = request_head(url, fields)
        if self.room == 0 or len(head) >= FRAME_MAX:
            return None
        stream = _Stream(self, head, body, deadline)
        self._unwritten.append(stream)
        self._write_soon()
        self._deadlines.add(stream, deadline)
        try:
            return await stream.answer
        except asyncio.CancelledError:
            if stream.number == 0:
                raise CancelledUnsent from None
            raise
        finally:
            self._deadlines.discard(stream)
            self._leave(stream)

    def _leave(self, stream: _Stream) -> None:
        """Nobody waits for it any more."""
        self._since = time.monotonic()
        if stream.number == 0:
            if stream in self._unwritten:
                self._unwritten.remove(stream)
        elif self._streams.pop(stream.number, None) is not None:
            self._retired = True  # for the server it is still under way
        if self._retired:
            self._retire()

    def _retire(self) -> None:
        """Take no more requests, and close when those under way have ended."""
        self._retired = True
        unwritten, self._unwritten = self._unwritten, []
        for stream in unwritten:
            stream.end(None)
        if not self._streams:
            self.abort()

    def _over(self, code: Code) -> None:
        """It ends now; the code is for those of whose requests nobody knows."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.end(code)
        self._retire()

    def abort(self) -> None:
        """See `Connection`."""
        self._retired = True
        if not self._greeted.done():
            self._greeted.set_result(False)
        self._everyone.discard(self)
        self._link.abort()

    def look(self) -> bool:
        """Read what has come; whether the connection goes on after that."""
        return self._link.look() and not self._retired

    def _write_soon(self) -> None:
        """Write in the next turn of the loop, together with whatever comes until then."""
        if not self._writes:
            self._writes = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._writes = False
        if not self.look():  # a goodbye that has come meanwhile
            return
        now = time.monotonic()
        begun: list[_Stream] = []
        waiting: list[_Stream] = []
        for stream in self._unwritten:
            if stream.deadline <= now:  # no timer has told it yet where the process was stopped meanwhile
                stream.end(None)
            if stream.answer.done():  # its time ended, or it was cancelled, in this very turn
                continue
            if len(stream.body) > min(self._window, self._stream_window):
                waiting.append(stream)
                continue
            self._window -= len(stream.body)
            stream.number = self._next
            self._next += 2
            self._streams[stream.number] = stream
            begun.append(stream)
        self._unwritten = waiting
        self._retired = self._next > STREAM_LAST
        if begun and not self._link.write(b"".join([stream.request() for stream in begun])):
            for stream in begun:
                stream.end(None)
            self._over(Code.CONNECTION_LOST)

    def received(self, data: bytes) -> None:
        """See `pgherald.link.Receiver`."""
        if self._rest:
            data = self._rest + data
        start, end = 0, len(data)
        try:
            while end - start >= _HEADER.size and self._link.is_open:
                high, low, kind, flags, number = _HEADER.unpack_from(data, start)
                begin, length = start + _HEADER.size, _checked(high << 8 | low)
                if end - begin < length:
                    break
                start = begin + length
                self._on(kind, flags, number & _31_BITS, data[begin:start])
        except NotAnAnswer:
            self._over(Code.BAD_ANSWER)
        self._rest = data[start:]

    def ended(self, *, in_order: bool) -> None:
        """See `pgherald.link.Receiver`."""
        self._over(Code.CONNECTION_LOST)

    def _on(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Act on a frame; its number is that of its stream, or 0. Raises NotAnAnswer if there is no going on."""
        if self._expects is not None and self._expects != (kind, number):
            raise NotAnAnswer
        if kind == DATA:
            self._on_data(flags, number, payload)
        elif kind == HEADERS:
            self._on_head(_Block(number, flags, content(kind, flags, payload)))
        elif kind == CONTINUATION:
            if self._head is None:
                raise NotAnAnswer
            before = self._head
            self._on_head(_Block(number, before.flags | flags & END_HEADERS, before.payload + payload))
        elif kind == RST_STREAM:
            refused = payload == _NUMBER.pack(REFUSED_STREAM)
            self._end(number, None if refused else Code.CONNECTION_LOST)
        elif kind == SETTINGS:
            self._on_settings(flags, payload)
        elif kind == PING and not flags & ACK:
            self._link.write(write_frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self._on_goaway(payload)
        elif kind == WINDOW_UPDATE and number == 0:  # that of a stream was large enough when it began
            self._on_window_update(payload)
        elif kind == PUSH_PROMISE:
            raise NotAnAnswer
        # What is not known is not looked at (section 4.1).

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        self._uncredited += len(payload)
        if self._uncredited > WINDOW_MAX // 2:
            self._link.write(write_frame(WINDOW_UPDATE, 0, 0, _NUMBER.pack(self._uncredited)))
            self._uncredited = 0
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.received += content(DATA, flags, payload)
        if stream.head is None or len(stream.received) > ANSWER_MAX:
            self._answered(stream, None)
        elif flags & END_STREAM:
            self._answered(stream, stream.head)

    def _on_head(self, block: _Block) -> None:
        if len(block.payload) > HEAD_MAX:
            raise NotAnAnswer
        if not block.flags & END_HEADERS:
            self._head, self._expects = block, (CONTINUATION, block.number)
            return
        self._head = self._expects = None
        stream = self._streams.get(block.number)
        if stream is None:
            return
        ends = bool(block.flags & END_STREAM)
        if stream.head is not None:  # this is the trailer, which nobody needs
            self._answered(stream, stream.head if ends else None)
            return
        try:
            head = answer_head(block.payload)
        except NotAnAnswer:
            self._answered(stream, None)
            return
        if head.status >= 200:
            stream.head = head
        if ends:
            self._answered(stream, stream.head)

    def _answered(self, stream: _Stream, head: Head | None) -> None:
        """The answer is there, or without a head it is none."""
        if head is None or head.length not in (None, len(stream.received)):
            self._end(stream.number, Code.BAD_ANSWER)
        else:
            del self._streams[stream.number]
            stream.end(Response(head.status, head.headers, stream.received))

    def _end(self, number: int, answer: Code | None) -> None:
        """One request comes to nothing; the connection may be to blame."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.end(answer)
            self._retire()

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            return
        if len(payload) % _SETTING.size:
            raise NotAnAnswer
        for setting, value in _SETTING.iter_unpack(payload):
            if setting == MAX_CONCURRENT_STREAMS:
                self._streams_max = min(value, STREAMS_MAX)
            elif setting == INITIAL_WINDOW_SIZE:
                self._stream_window = value
        if self._unwritten:
            self._write_soon()
        self._link.write(write_frame(SETTINGS, ACK, 0, b""))
        self._expects = None
        if not self._greeted.done():
            self._greeted.set_result(True)

    def _on_goaway(self, payload: bytes) -> None:
        if len(payload) < 8:
            raise NotAnAnswer
        last = _NUMBER.unpack_from(payload)[0] & _31_BITS
        for number in [number for number in self._streams if number > last]:
            self._streams.pop(number).end(None)
        self._retire()

    def _on_window_update(self, payload: bytes) -> None:
        if len(payload) != _NUMBER.size:
            raise NotAnAnswer
        self._window += _NUMBER.unpack(payload)[0] & _31_BITS
        if self._unwritten:
            self._write_soon()
