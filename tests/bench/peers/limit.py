"""The limit: h2load doing the same POST from a file, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from tests.bench import ground
from tests.bench.peers import run
from tests.bench.peers.install import Unable
from tests.bench.peers.talk import message

if TYPE_CHECKING:
    from tests.bench.peers.run import Drained

CONNECTIONS: Final = 100
JOB: Final = {
    "token": f"cXyZ{0:0128x}",
    "notification_id": "00000000-0000-4000-8000-000000000001",
    "scenario_type": "milestone",
    "tag": f"{0:064x}",
}


def drain(sink: ground.Sink, jobs: int) -> Drained:
    """So many requests, over connections kept open. Raises Unable."""
    ground.need("nghttp2-client")
    program = shutil.which("h2load")
    if program is None:
        raise Unable("there is no h2load on this machine (Debian: nghttp2-client)")
    body = sink.directory / "body.json"
    body.write_text(json.dumps(message(JOB)))
    headers = ("-H", f"authorization: Bearer {run.TOKEN}", "-H", "content-type: application/json")
    before = ground.cpu_seconds(ground.family(sink.pid))
    process = subprocess.Popen(
        [
            *(program, "--h1", "-t", "1", "-c", str(CONNECTIONS), "-n", str(jobs), "-d", str(body), *headers),
            sink.endpoint() + run.PATH,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    rate = re.search(r"finished in .*?, ([0-9.]+) req/s", said)
    if rate is None or f"{jobs} succeeded" not in said:
        raise Unable(said[-2000:])
    of_sink = ground.cpu_seconds(ground.family(sink.pid)) - before
    own = used.ru_utime + used.ru_stime
    return run.Drained(float(rate[1]), own * 1000 / jobs, 0, of_sink * 1000 / jobs, used.ru_maxrss / 1024)
