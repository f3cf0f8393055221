"""Servers that show what a client really sends: raw sockets, no HTTP library but h2 for the frames of HTTP/2.

A `RawServer` hands each connection to a script of the test and keeps every byte that arrived, so a test can say how
often a request reached the peer, and whether any of it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import anyio
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import GoAwayFrame

from pgherald.emulator.keys import make_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

OK_BODY = b'{"name":"projects/p/messages/1"}'


def http_answer(status: int = 200, body: bytes = OK_BODY, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


OK = http_answer()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what sets no event: bytes that arrive, a thread that ends."""
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - see above
            await anyio.sleep(0.005)


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.arrived = bytearray()
        self.closed = asyncio.Event()
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """Whatever arrives next; empty once the client has closed."""
        data = await self._reader.read(65_536)
        self.arrived += data
        return data

    async def request(self) -> bytes:
        """The next whole request of HTTP/1.1; raises EOFError if the client closes instead."""
        head = bytearray()
        while b"\r\n\r\n" not in head:
            byte = await self._reader.read(1)
            if not byte:
                raise EOFError
            head += byte
        self.arrived += head
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await self._reader.readexactly(length)
        self.arrived += body
        return bytes(head) + body

    async def send(self, data: bytes) -> None:
        self.write(data)
        await self._writer.drain()

    def write(self, data: bytes) -> None:
        """Send without waiting; nothing where the test has ended the connection."""
        if not self._writer.is_closing():
            self._writer.write(data)

    def reset(self) -> None:
        """End the connection with a RST, as a crashed peer or a firewall does; nothing where it has ended before."""
        if self._writer.is_closing():
            return
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def cut(self) -> None:
        """End the connection with a FIN and no word of TLS's, as who cuts an answer short would."""
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


Script: TypeAlias = "Callable[[Peer], Awaitable[None]]"


@dataclass
class RawServer:
    """`peers` are the connections in the order in which they came; `errors` what a script raised unasked."""

    port: int = 0
    peers: list[Peer] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def seen(self, mark: bytes) -> int:
        """How often these bytes have arrived, on all connections (HTTP/1.1, clear text)."""
        return sum(peer.arrived.count(mark) for peer in self.peers)


@asynccontextmanager
async def raw_server(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """A server on loopback that runs the script for each connection, and closes it when the script ends."""
    served = RawServer()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(reader, writer)
        served.peers.append(peer)
        try:
            await script(peer)
        except (EOFError, OSError, asyncio.CancelledError):
            pass
        except Exception as error:  # noqa: BLE001 - for the test to look at
            served.errors.append(error)
        finally:
            peer.closed.set()
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.01)  # asyncio ends handshakes whose client is gone
    assert not served.errors, served.errors


@dataclass
class Http2Server:
    """Answers requests with what came as their body; what is done besides is up to the test's `on_request`.

    Requests are known by their `x-id` header: `arrived` counts those that came whole, `begun` those whose headers came,
    `hold` are those that get no answer. `settings` are the server's own.
    """

    on_request: Callable[[Http2Server, Http2Peer, str], None] = lambda *_: None
    delay: float = 0.0
    hold: set[str] = field(default_factory=set)
    arrived: Counter[str] = field(default_factory=Counter)
    begun: Counter[str] = field(default_factory=Counter)
    heads: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    peers: list[Http2Peer] = field(default_factory=list)
    settings: dict[h2.settings.SettingCodes, int] = field(default_factory=dict)
    acknowledges: bool = True
    answer: bytes | None = None
    patience: asyncio.Event | None = None  # no answer until this is set

    async def script(self, peer: Peer) -> None:
        link = Http2Peer(self, peer)
        self.peers.append(link)
        await link.run()


class Http2Peer:
    """The server's end of one HTTP/2 connection. Each request is answered after the server's delay."""

    def __init__(self, server: Http2Server, peer: Peer) -> None:
        self._server = server
        self._peer = peer
        self._ids: dict[int, str] = {}
        self._bodies: dict[int, bytes] = {}
        self._last: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.last_stream = 0
        self.link = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))

    async def run(self) -> None:
        settings = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 100, **self._server.settings}
        self.link.local_settings = h2.settings.Settings(client=False, initial_values=settings)
        self.link.initiate_connection()
        await self.flush()
        try:
            while data := await self._peer.read():
                for event in self.link.receive_data(data):
                    self._on(event)
                await self.flush()
        finally:
            for task in self._tasks:
                task.cancel()

    def _on(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                head = [(bytes(name).decode(), bytes(value).decode()) for name, value in event.headers or []]
                identity = dict(head).get("x-id", "")
                assert event.stream_id is not None
                self._ids[event.stream_id] = identity
                self._bodies[event.stream_id] = b""
                self._server.begun[identity] += 1
                self._server.heads[identity] = head
            case h2.events.DataReceived():
                assert event.flow_controlled_length is not None
                assert event.stream_id is not None
                self._bodies[event.stream_id] += event.data or b""
                if self._server.acknowledges:
                    self.link.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                assert event.stream_id is not None
                if self._last is not None and event.stream_id > self._last:
                    return  # it has said that it would not look at this one
                self.last_stream = event.stream_id
                identity = self._ids[event.stream_id]
                self._server.arrived[identity] += 1
                self._server.on_request(self._server, self, identity)
                if identity not in self._server.hold:
                    task = asyncio.ensure_future(self._answer(event.stream_id))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            case _:
                pass

    async def _answer(self, stream_id: int) -> None:
        await asyncio.sleep(self._server.delay)
        if self._server.patience is not None:
            await self._server.patience.wait()
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self.link.send_headers(stream_id, [(":status", "200"), ("content-type", "application/json")])
            rest = self._bodies[stream_id] if self._server.answer is None else self._server.answer
            while len(rest) > (window := min(self.link.local_flow_control_window(stream_id), 16_384)):
                self.link.send_data(stream_id, rest[:window])
                rest = rest[window:]
                await self.flush()
                await until(lambda: self.link.local_flow_control_window(stream_id) > 0)
            self.link.send_data(stream_id, rest, end_stream=True)
            await self.flush()

    def goaway(self, last_stream_id: int) -> None:
        """Say goodbye, and go on as RFC 9113 lets a server: h2 itself would not send another frame after its own."""
        self._last = last_stream_id
        self.say(GoAwayFrame(0, last_stream_id=last_stream_id).serialize())

    def reset_stream(self, identity: str, error_code: int) -> None:
        stream_id = next(stream for stream, name in self._ids.items() if name == identity)
        self.link.reset_stream(stream_id, error_code=error_code)

    def say(self, data: bytes) -> None:
        """Bytes that h2 knows nothing of."""
        self._peer.write(self.link.data_to_send() + data)

    async def flush(self) -> None:
        if data := self.link.data_to_send():
            await self._peer.send(data)

    def reset(self) -> None:
        self._peer.reset()

    def close(self) -> None:
        self._peer.close()


def certificate(directory: Path) -> Path:
    """A certificate for localhost and loopback with its key, in one PEM file."""
    key = directory / "localhost.key"
    path = make_certificate(directory / "localhost.pem", key, "localhost")
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


def server_tls(pem: Path, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.set_alpn_protocols(list(protocols))
    return context


def client_tls(pem: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(pem))
