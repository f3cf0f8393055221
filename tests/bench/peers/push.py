"""The POST of one push, for the Python workers: aiohttp, as many connections as pushes at once.

Any answer but 200 ends the worker.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from tests.bench.peers.talk import Bench, message, say

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True)
class Pusher:
    """Pushes, at most `in_flight` at once, and tells when the last is answered."""

    bench: Bench
    session: aiohttp.ClientSession
    first: int = 0
    answered: int = 0

    @classmethod
    def open(cls, bench: Bench) -> Pusher:
        context = ssl.create_default_context(cafile=bench.certificate) if bench.certificate else False
        connector = aiohttp.TCPConnector(limit=bench.in_flight, ssl=context)
        headers = {"authorization": f"Bearer {bench.token}", "content-type": "application/json"}
        return cls(bench, aiohttp.ClientSession(connector=connector, headers=headers))

    async def push(self, job: Mapping[str, str]) -> None:
        """One push to FCM, from a job's payload."""
        self.first = self.first or time.monotonic_ns()
        async with self.session.post(self.bench.url, data=json.dumps(message(job)).encode()) as answer:
            await answer.json()
            if answer.status != 200:
                print(f"answered {answer.status}", file=sys.stderr)
                os._exit(1)
        self.answered += 1
        if self.answered == self.bench.jobs:
            say(first=self.first, last=time.monotonic_ns())
