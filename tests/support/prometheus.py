"""A real Prometheus for tests, scraping real daemons."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.support.daemon import PATIENCE, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES: Final = Path(__file__).parents[2] / "systemd" / "prometheus" / "rules.yml"


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running one."""

    port: int

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector; fails if Prometheus cannot parse it."""
        return list(self.get("query", query=expression)["result"])

    def get(self, what: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)["data"]


@contextmanager
def running_prometheus(directory: Path, jobs: str) -> Iterator[Prometheus]:
    """Prometheus as Debian ships it, with our rules, scraping each second; `jobs` is YAML, one of them `pgherald`."""
    (directory / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n"
        f"rule_files: ['{RULES}']\n"
        f"scrape_configs:\n{jobs}"
    )
    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/tsdb",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=log,
            stderr=log,
        )
    log_text = (directory / "prometheus.log").read_text
    try:
        prometheus = Prometheus(wait_for(lambda: listening_port(process.pid), otherwise=log_text))

        def is_up() -> bool:
            try:
                return bool(prometheus.query('up{job="pgherald"} == 1'))
            except OSError:
                return False

        wait_for(is_up, otherwise=log_text)
        yield prometheus
    finally:
        process.terminate()
        process.wait(PATIENCE)


def listening_port(pid: int) -> int:
    """The TCP port of IPv4 that a process listens at, 0 while there is none. It was given it: nobody else took it."""
    inodes = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(each.readlink().name)
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1].rpartition(":")[2], 16)
    return 0
