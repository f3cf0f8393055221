"""One POST over a transport, as the tests of the transports make it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgherald.fcm import Response, Transport

SECRET = "ya29.secret-access-token"
MARK = b"MARK-OF-THE-BODY"


async def post(
    road: Transport,
    port: int,
    *,
    scheme: str = "http",
    within: float = 60.0,
    mark: bytes = MARK,
    identity: str | None = None,
) -> Response:
    """POST `mark` to a server on loopback; `identity` goes into a header x-id."""
    url = f"{scheme}://127.0.0.1:{port}/v1/projects/p/messages:send"
    headers = {"authorization": f"Bearer {SECRET}", "content-type": "application/json"}
    if identity is not None:
        headers["x-id"] = identity
    return await road.post(url, headers, mark, time.monotonic() + within)
