"""A TCP road that can be cut, made silent, or made to keep the answers back."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from psycopg.conninfo import make_conninfo

from tests.support.postgres import DAEMON_LOGIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fault.world import World

_RESET = struct.pack("ii", 1, 0)


class Link:
    """Forwards connections to an address. Threads, for the tests are synchronous.

    `cut` resets all connections and refuses new ones, `mend` ends that; `silent` swallows everything both ways while
    the connections stay up; `hold` keeps what the server says to itself until `let_go`.
    """

    def __init__(self, host: str, port: int, listen: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._listen = listen
        self._server: socket.socket | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._mutex = threading.Lock()
        self.port = 0
        self.silent = False
        self._flowing = threading.Event()
        self._flowing.set()

    def __enter__(self) -> Self:
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self.cut()

    def mend(self) -> None:
        """Take connections (again), at the same port."""
        if self._server is not None:
            return
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((self._listen, self.port))
        server.listen(200)
        self.port = server.getsockname()[1]
        self._server = server
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()

    def cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        server, self._server = self._server, None
        if server is not None:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        self.reset()

    def reset(self) -> None:
        """Reset all connections; new ones are welcome."""
        with self._mutex:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _reset(end)

    def hold(self) -> None:
        """From now on what the server says waits here."""
        self._flowing.clear()

    def let_go(self) -> None:
        """It goes on its way, late but whole."""
        self._flowing.set()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            try:
                upstream = socket.create_connection(self._target, timeout=60)
            except OSError:
                _reset(client)
                continue
            for end in (client, upstream):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._mutex:
                self._pairs.append((client, upstream))
            threading.Thread(target=self._forth, args=(client, upstream), daemon=True).start()
            threading.Thread(target=self._back, args=(upstream, client), daemon=True).start()

    def _forth(self, client: socket.socket, upstream: socket.socket) -> None:
        with suppress(OSError):
            for data in _chunks(client):
                if self.silent:
                    continue
                upstream.sendall(data)
        _close(client, upstream)

    def _back(self, upstream: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            for data in _chunks(upstream):
                self._flowing.wait()
                if not self.silent:
                    client.sendall(data)
        _close(client, upstream)


@contextmanager
def link_to(world: World, listen: str = "127.0.0.1") -> Iterator[tuple[Link, str]]:
    """A road to the database of a world, and the DSN that takes it."""
    with Link("127.0.0.1", world.database.server.cluster.port, listen) as link:
        dsn = world.database.dsn_as(DAEMON_LOGIN, tcp=True)
        yield link, make_conninfo(dsn, host=listen, port=link.port)


def _chunks(end: socket.socket) -> Iterator[bytes]:
    while data := end.recv(65536):
        yield data


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    # shutdown would say FIN first, but without it a recv in another thread keeps the socket open
    with suppress(OSError):
        end.shutdown(socket.SHUT_RD)
    end.close()


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
