"""People who act all the time, whatever else happens: the load under which things are broken."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from tests.fault.world import World

BURST_SECONDS = 0.1


@contextmanager
def crowd(world: World, people: Sequence[UUID], seconds: float) -> Iterator[threading.Thread]:
    """Have them act for the first time, evenly over so many seconds, on a connection of their own. The block ends when
    all have. A burst that the database would not take is tried again: whoever acted twice is due once all the same."""
    thread = threading.Thread(target=_act, args=(world, people, seconds), daemon=True)
    thread.start()
    yield thread
    thread.join()


def _act(world: World, people: Sequence[UUID], seconds: float) -> None:
    began = time.monotonic()
    bursts = max(1, round(seconds / BURST_SECONDS))
    own: psycopg.Connection | None = None
    for burst in range(bursts):
        some = list(people[len(people) * burst // bursts : len(people) * (burst + 1) // bursts])
        while some:
            try:
                if own is None or own.broken:
                    own = psycopg.connect(world.database.dsn, autocommit=True)
                own.execute(
                    "insert into app.activity (user_id, activity_type) "
                    "select u, 'contact' from unnest(%s::uuid[]) as u",
                    (some,),
                )
                break
            except psycopg.OperationalError:
                time.sleep(0.05)
        world.acted += some
        time.sleep(max(0.0, began + (burst + 1) * BURST_SECONDS - time.monotonic()))
    if own is not None:
        own.close()
