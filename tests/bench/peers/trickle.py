"""Single jobs into an idle system: from the insert's commit to the request's arrival, the same for all.

A job is an insert by this process: an activity for pgherald, which evaluates it first, and for a peer what its
documentation shows. The sink is the plain HTTP server of bench-latency.
"""

from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING, Final

from tests.bench import ground, latency
from tests.bench.peers import run
from tests.bench.peers.install import Unable

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from pgherald.embedded import Cluster
    from tests.bench.peers.contenders import Peer

WARM_UP: Final = 20
PAUSE: Final = 0.05

OF_PGHERALD: Final = {
    "pgherald, an activity to evaluate": "insert into app.activity (user_id, activity_type) values (%s, 'visit')",
    "pgherald, herald.enqueue": "select herald.enqueue(s.scenario_id, %s, '1') from herald.scenario as s",
}


class Arrivals:
    """The server, and when requests came."""

    def __init__(self) -> None:
        self._times: queue.Queue[float] = queue.Queue()
        self.port = ground.free_port()
        latency.serve(self._times, self.port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def measure(self, insert: Callable[[int], object], count: int) -> list[float]:
        """Milliseconds of so many inserts, one after the other; the first ones warm up and do not count.

        Raises Unable when one does not arrive.
        """
        taken = []
        for number in range(WARM_UP + count):
            time.sleep(PAUSE)
            insert(number)
            committed = time.perf_counter()
            try:
                arrived = self._times.get(timeout=latency.PATIENCE)
            except queue.Empty:
                raise Unable(f"no request within {latency.PATIENCE:.0f} s of an insert") from None
            taken.append((arrived - committed) * 1000)
        return taken[WARM_UP:]


def of_pgherald(
    cluster: Cluster, db: psycopg.Connection, sink: ground.Sink, arrivals: Arrivals, statement: str, count: int
) -> list[float]:
    """Each insert is about a person who has had none."""
    ground.script(db, ground.PROMPTS.format(prompts=0))
    db.execute("truncate app.activity, herald.touched_user")
    people = db.execute("select user_id from app.peer_mentor limit %s", (WARM_UP + count,)).fetchall()
    with ground.running_daemons(cluster, arrivals.url, sink.environment):
        return arrivals.measure(lambda number: db.execute(statement, people[number]), count)


def of_peer(cluster: Cluster, peer: Peer, sink: ground.Sink, arrivals: Arrivals, count: int) -> list[float]:
    assert peer.queue is not None
    one = peer.queue.one
    with (
        run.fresh_database(cluster, peer) as db,
        run.running_worker(cluster, peer, sink, arrivals.url + run.PATH, 0) as worker,
    ):
        worker.go()
        return arrivals.measure(lambda number: db.execute(one, (number,)), count)
