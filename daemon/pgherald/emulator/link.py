"""One TCP connection as the HTTP versions see it: bytes out, and three ways to end it."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

# SO_LINGER on, zero seconds: close throws away what is unsent and sends RST.
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)
_PATIENCE_SECONDS: Final = 1.0


class Link:
    """`closed` is true from the moment that nothing more goes out."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._finished = False

    @property
    def closed(self) -> bool:
        return self._finished or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if not self.closed:
            self._transport.write(data)

    def finish(self) -> None:
        """Ends our direction after what was written, and closes when the peer does or patience ends: closing with the
        peer's bytes unread would be a reset, and take from it what it has not read yet."""
        if self.closed:
            return
        self._finished = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._transport.close)
        else:
            self._transport.close()

    def reset(self) -> None:
        """Ends both directions at once; the peer sees a connection reset."""
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()
