"""How long from an insert's commit to the request's arrival, the daemon being idle: p50 and p99 of single inserts.

`make bench-latency`. Every insert is a person's first activity, which a milestone scenario answers; the sink is a plain
HTTP server in this process, which takes the time when the request is there. DESIGN: p50 under 3 ms, p99 under 10.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import statistics
import threading
import time
from typing import Final

from tests.bench import ground

BODY: Final = b'{"name":"projects/bench/messages/0:1"}'
ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
PATIENCE: Final = 20.0


class _Sink(asyncio.Protocol):
    """Takes the time of every POST."""

    def __init__(self, arrivals: queue.Queue[float]) -> None:
        self._arrivals = arrivals

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST "):
            self._arrivals.put(time.perf_counter())
            self._transport.write(ANSWER)


def serve(arrivals: queue.Queue[float], port: int) -> None:
    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: _Sink(arrivals), "127.0.0.1", port)
        await server.serve_forever()

    threading.Thread(target=asyncio.run, args=(forever(),), daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inserts", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between a push and the next insert")
    arguments = parser.parse_args()
    arrivals: queue.Queue[float] = queue.Queue()
    port = ground.free_port()
    serve(arrivals, port)
    taken = []
    with (
        ground.running_server() as cluster,
        ground.running_sink() as sink,
        ground.connect(cluster) as db,
    ):
        ground.load_people(db, arguments.inserts)
        people = [row[0] for row in db.execute("select user_id from app.peer_mentor")]
        with ground.running_daemons(cluster, f"http://127.0.0.1:{port}", sink.environment):
            for person in people:
                time.sleep(arguments.pause)
                db.execute("insert into app.activity (user_id, activity_type) values (%s, 'visit')", (person,))
                committed = time.perf_counter()
                taken.append((arrivals.get(timeout=PATIENCE) - committed) * 1000)
    cuts = statistics.quantiles(taken, n=100)
    print(f"{len(taken)} inserts, one after the other, commit to arrival of the request\n")
    rows = [["pgherald", f"{cuts[49]:.2f}", f"{cuts[89]:.2f}", f"{cuts[98]:.2f}", f"{max(taken):.2f}"]]
    print(ground.table(["milliseconds", "p50", "p90", "p99", "worst"], rows))
    ground.write("latency", {"milliseconds": [round(each, 3) for each in taken]})


if __name__ == "__main__":
    main()
