"""HTTP/1.1 on one connection: bytes to requests through h11, replies to bytes, and the faults of the wire.

Driven by `server`'s callbacks; owns no task, only timers on the loop. One request at a time, as HTTP/1.1 has it.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from http.client import responses
from typing import TYPE_CHECKING, assert_never

import h11

from pgherald.emulator.app import MAX_BODY, App, Reply, Request
from pgherald.emulator.faults import Wire

if TYPE_CHECKING:
    from pgherald.emulator.answers import Answer
    from pgherald.emulator.link import Link


class Http1:
    def __init__(self, app: App, link: Link) -> None:
        self._app = app
        self._link = link
        self._h11 = h11.Connection(h11.SERVER)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._answering = False

    def receive(self, data: bytes) -> None:
        try:
            self._h11.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint)

    def _advance(self) -> None:
        while not self._answering and not self._link.closed:
            match self._h11.next_event():
                case h11.Request() as head:
                    self._head = head
                    self._body.clear()
                case h11.Data() as chunk:
                    self._body += chunk.data
                    if len(self._body) > MAX_BODY:
                        self._refuse(413)
                case h11.EndOfMessage():
                    self._answer()
                case h11.NEED_DATA:
                    if self._h11.they_are_waiting_for_100_continue:
                        self._link.write(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                    return
                case _:
                    return

    def _answer(self) -> None:
        assert self._head is not None
        head = self._head
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        version = head.http_version.decode()
        request = Request(head.method.decode(), head.target.decode("latin-1"), headers, bytes(self._body), version)
        reply = self._app.handle(request)
        self._answering = True
        if reply.delay:
            asyncio.get_running_loop().call_later(reply.delay, self._deliver, reply)
        else:
            self._deliver(reply)

    def _deliver(self, reply: Reply) -> None:
        if self._link.closed:
            return
        match reply.wire:
            case Wire.WHOLE:
                self._link.write(b"".join(self._encoded(reply.answer)))
                self._next_cycle()
            case Wire.GOAWAY:
                self._link.write(b"".join(self._encoded(reply.answer.with_headers(("connection", "close")))))
                self._next_cycle()
            case Wire.DROP_BEFORE | Wire.DROP_AFTER | Wire.GOAWAY_BEFORE | Wire.GOAWAY_AFTER:
                self._link.reset()
            case Wire.SILENT:
                pass
            case Wire.CUT_HEADERS:
                head, _ = self._encoded(reply.answer)
                self._link.write(head[: len(head) // 2])
                self._link.finish()
            case Wire.CUT_BODY:
                head, body = self._encoded(reply.answer)
                self._link.write(head + body[: len(body) // 2])
                self._link.finish()
            case Wire.DRIP:
                self._drip(b"".join(self._encoded(reply.answer)), 0, reply.pause)
            case _:
                assert_never(reply.wire)

    def _drip(self, data: bytes, sent: int, pause: float) -> None:
        if self._link.closed:
            return
        if sent == len(data):
            self._next_cycle()
            return
        self._link.write(data[sent : sent + 1])
        asyncio.get_running_loop().call_later(pause, self._drip, data, sent + 1, pause)

    def _encoded(self, answer: Answer) -> tuple[bytes, bytes]:
        headers = [*answer.headers, ("date", formatdate(usegmt=True)), ("content-length", str(len(answer.body)))]
        head = self._h11.send(
            h11.Response(status_code=answer.status, headers=headers, reason=responses.get(answer.status, ""))
        )
        body = self._h11.send(h11.Data(data=answer.body))
        end = self._h11.send(h11.EndOfMessage())
        return head or b"", (body or b"") + (end or b"")

    def _next_cycle(self) -> None:
        self._answering = False
        if self._h11.our_state is h11.MUST_CLOSE:
            self._link.finish()
            return
        self._h11.start_next_cycle()
        self._advance()

    def _refuse(self, status: int) -> None:
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = h11.Response(status_code=status, headers=[("connection", "close"), ("content-length", "0")])
            self._link.write(self._h11.send(response) or b"")
        self._link.finish()
