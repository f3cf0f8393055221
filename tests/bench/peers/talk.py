"""What a push holds, and the few words that a Python worker and the bench exchange; push.mjs is the same for Node.

BENCH holds {dsn, url, certificate, token, inFlight, jobs, options}. A worker says {"ready"}, begins at the line "go",
and says {"first", "last"} (nanoseconds of the monotonic clock) once `jobs` pushes are answered; it goes on until its
stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True)
class Bench:
    """What the bench asks for."""

    dsn: str
    url: str
    certificate: str
    token: str
    in_flight: int
    jobs: int
    options: dict[str, Any]

    @classmethod
    def given(cls) -> Bench:
        found = json.loads(os.environ["BENCH"])
        return cls(**{"in_flight" if name == "inFlight" else name: value for name, value in found.items()})


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def ready() -> None:
    """Say that all is prepared, and wait for "go"."""
    say(ready=True)
    sys.stdin.readline()


def message(job: Mapping[str, str]) -> dict[str, Any]:
    """The body of a request, as pgherald would send it."""
    return {
        "message": {
            "token": job["token"],
            "data": {"notification_id": job["notification_id"], "scenario_type": job["scenario_type"]},
            "android": {
                "priority": "HIGH",
                "ttl": "259200s",
                "notification": {
                    "title_loc_key": "milestone_title",
                    "body_loc_key": "milestone_body",
                    "tag": job["tag"],
                    "channel_id": "herald",
                    "visibility": "PRIVATE",
                },
            },
        }
    }


async def until_over(running: asyncio.Future[Any]) -> NoReturn:
    """End with the bench's end, or with what ended the worker before."""
    await asyncio.wait(
        (running, asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))), return_when="FIRST_COMPLETED"
    )
    if running.done() and (error := running.exception()) is not None:
        traceback.print_exception(error)
        os._exit(1)
    os._exit(0)
