"""One connection to one server: TCP, and TLS where it is wanted, with as little as possible between it and the kernel.

A `Link` sends what it is given in the call itself, so whoever writes knows from which moment bytes may have left; it is
read from all the time, so an end that the server brings about is noticed when it happens. It knows nothing of HTTP: see
`pgherald.transport`. Not asyncio's streams or transports, because those took half of the time of a push, nor its way to
connect, which cancelled at the wrong moment leaves a socket behind.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

READ_MAX: Final = 16_384
"""Bytes taken at once, from the kernel and of a TLS record: FCM's answers are below 2,000."""


class Receiver(Protocol):
    """Who is told what comes in."""

    def received(self, data: bytes) -> None:
        """Some bytes, never none."""
        ...

    def ended(self, *, in_order: bool) -> None:
        """The server ended the connection: in order, or by breaking it off. Nothing comes after it."""
        ...


class Link:
    """An open connection, closed by `abort` or by the server."""

    __slots__ = ("_fd", "_incoming", "_loop", "_outgoing", "_poll", "_receiver", "_sock", "_tls", "_unsent")

    def __init__(self, sock: socket.socket, tls: ssl.SSLObject | None, bios: tuple[ssl.MemoryBIO, ssl.MemoryBIO]):
        self._sock: socket.socket | None = sock
        self._fd = sock.fileno()
        self._tls = tls
        self._incoming, self._outgoing = bios
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._unsent = b""
        self._receiver: Receiver | None = None

    @classmethod
    async def open(cls, address: str, port: int, context: ssl.SSLContext | None, host: str) -> Link:
        """Connect to an address, over TLS if there is a context; `host` is who the certificate must be for.

        Raises OSError, of which ssl.SSLError is a kind. Cancelled, it leaves nothing behind.
        """
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await _connect(sock, address, port)
            bios = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = None if context is None else context.wrap_bio(*bios, server_hostname=host)
            if tls is not None:
                await _shake_hands(sock, tls, *bios)
            return cls(sock, tls, bios)
        except BaseException:
            sock.close()
            raise

    def listen(self, receiver: Receiver) -> None:
        """Begin to read; what comes goes to the receiver."""
        self._receiver = receiver
        self._loop.add_reader(self._fd, self._read)

    @property
    def alpn_protocol(self) -> str | None:
        """The protocol that TLS agreed on (RFC 7301), if any."""
        return None if self._tls is None else self._tls.selected_alpn_protocol()

    @property
    def is_open(self) -> bool:
        return self._sock is not None

    def is_quiet(self) -> bool:
        """Whether it is open and nothing waits to be read, least of all the end."""
        return self._sock is not None and not self._poll.poll(0)

    def look(self) -> bool:
        """Read what waits now; whether the connection is still open after that."""
        while self._sock is not None and self._poll.poll(0):
            self._read()
        return self.is_open

    def write(self, data: bytes) -> bool:
        """Send; False if the kernel refused every byte, so that for certain none has left."""
        if self._sock is None:
            return False
        if self._tls is not None:
            left = memoryview(data)
            while left:
                left = left[self._tls.write(left) :]
            data = self._outgoing.read()
        return self._send(data)

    def _send(self, data: bytes) -> bool:
        """Hand bytes to the kernel, what it does not take now a little later; False if it refused all of them."""
        assert self._sock is not None
        if self._unsent:
            self._unsent += data
            return True
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.add_writer(self._fd, self._send_more)
        return True

    def _send_more(self) -> None:
        assert self._sock is not None
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._end(in_order=False)
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._fd)

    def _read(self) -> None:
        assert self._sock is not None
        assert self._receiver is not None
        try:
            data = self._sock.recv(READ_MAX)
        except BlockingIOError:
            return
        except OSError:
            self._end(in_order=False)
            return
        if self._tls is None:
            if data:
                self._receiver.received(data)
            else:
                self._end(in_order=True)
        elif data:
            self._decrypt(self._tls, data)
        else:
            self._end(in_order=False)  # TLS says goodbye itself: without that, what came before may have been cut

    def _decrypt(self, tls: ssl.SSLObject, data: bytes) -> None:
        assert self._receiver is not None
        self._incoming.write(data)
        records: list[bytes] = []
        end_in_order: bool | None = None
        try:
            while self._incoming.pending or tls.pending():
                plain = tls.read(READ_MAX)
                if not plain:
                    end_in_order = True
                    break
                records.append(plain)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            end_in_order = False
        if records:
            self._receiver.received(b"".join(records))
        if self._sock is None:
            return
        if end_in_order is not None:
            self._end(in_order=end_in_order)
        elif self._outgoing.pending:
            self._send(self._outgoing.read())  # TLS's own, such as new keys

    def _end(self, *, in_order: bool) -> None:
        receiver = self._receiver
        self.abort()
        if receiver is not None:
            receiver.ended(in_order=in_order)

    def abort(self) -> None:
        """Close without another word: not even TLS is ended in order, which could wait for the server."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            sock.close()
        self._receiver = None


async def _connect(sock: socket.socket, address: str, port: int) -> None:
    with suppress(BlockingIOError):
        sock.connect((address, port))
        return
    await _until(asyncio.get_running_loop().add_writer, asyncio.get_running_loop().remove_writer, sock)
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, "cannot connect")


async def _shake_hands(
    sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError:
            with suppress(OSError):  # why: the alert is for the server's log
                sock.send(outgoing.read())
            raise
        waiting = outgoing.read()
        while waiting:
            try:
                waiting = waiting[sock.send(waiting) :]
            except BlockingIOError:
                await _until(loop.add_writer, loop.remove_writer, sock)
        if done:
            return
        await _until(loop.add_reader, loop.remove_reader, sock)
        try:
            data = sock.recv(READ_MAX)
        except BlockingIOError:
            continue
        if not data:
            raise ConnectionResetError
        incoming.write(data)


async def _until(
    add: Callable[[socket.socket, Callable[[], None]], object],
    remove: Callable[[socket.socket], object],
    sock: socket.socket,
) -> None:
    """Wait until the loop finds the socket ready, and leave the loop as it was, whatever happens."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(sock)
