"""Transports on their way to servers of the tests, and what they say of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from pgherald.fcm import NotSent, Response, Unsure
from pgherald.transport import HttpTransport
from tests.support.posting import MARK, post
from tests.support.raw_server import OK, Http2Server, Peer, RawServer, client_tls, raw_server, server_tls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path


MakeRoad: TypeAlias = Callable[..., HttpTransport]
"""Makes a transport; of ten requests at once, if nothing else is said."""


async def answer_all(peer: Peer) -> None:
    """A server of HTTP/1.1 that is well."""
    while True:
        await peer.request()
        await peer.send(OK)


class Road:
    """A transport to one server."""

    def __init__(self, transport: HttpTransport, raw: RawServer) -> None:
        self.transport = transport
        self.raw = raw

    async def post(self, identity: str = "one", mark: bytes = MARK, within: float = 60.0) -> Response:
        return await post(self.transport, self.raw.port, scheme="https", mark=mark, identity=identity, within=within)

    async def say(self, identity: str, *, within: float = 60.0, mark: bytes = MARK) -> str:
        """What the transport says of a request, in a word."""
        try:
            assert (await self.post(identity, mark, within)).body == mark
        except NotSent:
            return "not sent"
        except Unsure as error:
            return error.code
        return "answered"

    async def say_all(self, identities: Sequence[str], **options: Any) -> dict[str, str]:
        """The same of many at once."""
        return dict(
            zip(identities, await asyncio.gather(*(self.say(each, **options) for each in identities)), strict=True)
        )


@asynccontextmanager
async def road_to(server: Http2Server, pem: Path, max_in_flight: int = 1000) -> AsyncIterator[Road]:
    async with (
        raw_server(server.script, server_tls(pem, "h2")) as raw,
        HttpTransport(max_in_flight, ssl_context=client_tls(pem)) as transport,
    ):
        yield Road(transport, raw)


def names(count: int) -> list[str]:
    return [f"n{n}" for n in range(count)]
