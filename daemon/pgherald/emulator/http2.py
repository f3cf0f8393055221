"""HTTP/2 on one connection: bytes to requests through h2, replies to frames, and the faults of the wire.

Driven by `server`'s callbacks; owns no task, only timers on the loop. Streams are answered as they become complete,
each on its own; what breaks the connection breaks all of them, as with the real thing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, assert_never

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame

from pgherald.emulator.app import MAX_BODY, App, Reply, Request
from pgherald.emulator.faults import Wire

if TYPE_CHECKING:
    from pgherald.emulator.answers import Answer
    from pgherald.emulator.link import Link

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(slots=True)
class _Stream:
    """A request that is not answered to its end: what has come of it, and what is still to go out."""

    headers: list[tuple[str, str]]
    body: bytearray = field(default_factory=bytearray)
    unsent: bytes = b""


class Http2:
    def __init__(self, app: App, link: Link) -> None:
        self._app = app
        self._link = link
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._streams: dict[int, _Stream] = {}
        self._highest = 0
        self._last: int | None = None  # the last stream that is served, once GOAWAY is out
        self._h2.initiate_connection()
        self._flush()

    def receive(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except (ProtocolError, UnicodeDecodeError):
            self._flush()
            self._link.finish()
            return
        for event in events:
            if self._link.closed:
                return
            match event:
                case RequestReceived(stream_id=int() as stream_id, headers=list() as headers):
                    self._begin(stream_id, headers)
                case DataReceived(stream_id=int() as stream_id, data=bytes() as chunk):
                    self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
                    self._append(stream_id, chunk)
                case StreamEnded(stream_id=int() as stream_id) if stream_id in self._streams:
                    self._answer(stream_id)
                case StreamReset(stream_id=int() as stream_id):
                    self._end(stream_id)
                case WindowUpdated() | RemoteSettingsChanged():
                    for stream_id in [s for s, stream in self._streams.items() if stream.unsent]:
                        self._send_body(stream_id)
                case ConnectionTerminated():
                    self._link.finish()
                case _:
                    pass
        self._flush()

    def _begin(self, stream_id: int, headers: list[tuple[str, str]]) -> None:
        if self._last is not None and stream_id > self._last:
            return
        self._highest = max(self._highest, stream_id)
        self._streams[stream_id] = _Stream(headers)

    def _append(self, stream_id: int, chunk: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.body += chunk
        if len(stream.body) > MAX_BODY:
            self._h2.reset_stream(stream_id)
            self._end(stream_id)

    def _answer(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        headers = dict(stream.headers)
        request = Request(headers.get(":method", ""), headers.get(":path", ""), headers, bytes(stream.body), "2")
        reply = self._app.handle(request)
        if reply.delay:
            asyncio.get_running_loop().call_later(reply.delay, self._deliver_late, stream_id, reply)
        else:
            self._deliver(stream_id, reply)

    def _deliver_late(self, stream_id: int, reply: Reply) -> None:
        if stream_id in self._streams and not self._link.closed:
            self._deliver(stream_id, reply)
            self._flush()

    def _deliver(self, stream_id: int, reply: Reply) -> None:
        try:
            self._put_on_wire(stream_id, reply)
        except ProtocolError:  # the peer's bytes that brought the request also took it, or the connection, back
            self._end(stream_id)

    def _put_on_wire(self, stream_id: int, reply: Reply) -> None:
        match reply.wire:
            case Wire.WHOLE:
                self._send(stream_id, reply.answer)
            case Wire.DROP_BEFORE | Wire.DROP_AFTER:
                self._link.reset()
            case Wire.SILENT:
                pass
            case Wire.CUT_HEADERS | Wire.CUT_BODY:
                self._cut(stream_id, reply)
            case Wire.DRIP:
                self._send_head(stream_id, reply.answer)
                self._drip(stream_id, reply.answer.body, 0, reply.pause)
            case Wire.GOAWAY:
                self._send(stream_id, reply.answer)
                self._go_away(self._highest)
            case Wire.GOAWAY_BEFORE:
                self._end(stream_id)
                self._go_away(max((s for s in self._streams if s > stream_id), default=stream_id - 2))
            case Wire.GOAWAY_AFTER:
                self._go_away(self._highest)
                self._link.finish()
            case _:
                assert_never(reply.wire)

    def _send(self, stream_id: int, answer: Answer) -> None:
        self._send_head(stream_id, answer)
        self._streams[stream_id].unsent = answer.body
        self._send_body(stream_id)

    def _send_head(self, stream_id: int, answer: Answer) -> None:
        headers = [
            (":status", str(answer.status)),
            *answer.headers,
            ("date", formatdate(usegmt=True)),
            ("content-length", str(len(answer.body))),
        ]
        self._h2.send_headers(stream_id, headers)

    def _send_body(self, stream_id: int) -> None:
        """Sends what the peer's window takes; a WINDOW_UPDATE brings the rest here again."""
        stream = self._streams[stream_id]
        while stream.unsent:
            size = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if size <= 0:
                return
            self._h2.send_data(stream_id, stream.unsent[:size])
            stream.unsent = stream.unsent[size:]
        self._h2.end_stream(stream_id)
        self._end(stream_id)

    def _drip(self, stream_id: int, body: bytes, sent: int, pause: float) -> None:
        if stream_id not in self._streams or self._link.closed:
            return
        if sent == len(body):
            self._h2.end_stream(stream_id)
            self._end(stream_id)
            self._flush()
            return
        self._h2.send_data(stream_id, body[sent : sent + 1])
        self._flush()
        asyncio.get_running_loop().call_later(pause, self._drip, stream_id, body, sent + 1, pause)

    def _cut(self, stream_id: int, reply: Reply) -> None:
        """Closes the connection in the middle of a frame of this answer."""
        self._flush()
        if reply.wire is Wire.CUT_BODY:
            self._send_head(stream_id, reply.answer)
            self._flush()
            self._h2.send_data(stream_id, reply.answer.body)
        else:
            self._send_head(stream_id, reply.answer)
        frame = self._h2.data_to_send()
        self._link.write(frame[: len(frame) // 2])
        self._link.finish()

    def _go_away(self, last: int) -> None:
        """Written past h2, which would take the connection for closed and refuse to end the streams still served."""
        self._flush()
        self._last = last
        self._link.write(GoAwayFrame(0, last_stream_id=last).serialize())
        self._close_when_done()

    def _end(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._last is not None and not self._streams:
            self._flush()
            self._link.finish()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._link.write(data)
