"""The audit of the dependencies: a known vulnerability fails it; that nobody could be asked is told from none found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
LOCK = f"good==1.0 \\\n    --hash=sha256:{'0' * 64}\nbad==2.0 \\\n    --hash=sha256:{'1' * 64}\n"
KNOWN = {
    "id": "PYSEC-0000-1",
    "affected": [
        {
            "package": {"name": "bad", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.1"}]}],
            "versions": ["2.0"],
        }
    ],
}


@contextmanager
def osv(answer: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]) -> Iterator[str]:
    """An OSV on loopback, whose answer to each query is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content = answer(query)
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        serving.join()


def audit(url: str, lock: Path, **settings: str) -> tuple[int, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", str(ROOT / "tests" / "audit.sh"), str(lock)],
        env={**os.environ, "PATH": path, "AUDIT_URL": url, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    return ran.returncode, ran.stdout.strip()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.lock"
    path.write_text(LOCK)
    return path


def test_a_known_vulnerability_is_named_with_the_release_that_mends_it(lock: Path) -> None:
    asked = []

    def answer(query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(f"{query['package']['name']} {query['version']}")
        return 200, {"vulns": [KNOWN]} if query["package"]["name"] == "bad" else {}

    with osv(answer) as url:
        assert audit(url, lock) == (1, "bad 2.0: PYSEC-0000-1, mended in 2.1")
    assert sorted(asked) == ["bad 2.0", "good 1.0"]


def test_nothing_known_is_silence(lock: Path) -> None:
    with osv(lambda _: (200, {})) as url:
        assert audit(url, lock) == (0, "")


def test_nobody_to_ask_is_told_and_no_finding(lock: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        status, said = audit(f"http://127.0.0.1:{taken.getsockname()[1]}/v1/query", lock)
    assert status == 3
    assert "Connection refused" in said
    assert "\n" not in said
    with osv(lambda _: (503, {})) as url:
        assert audit(url, lock)[0] == 3


def test_an_osv_that_never_answers_does_not_hold_up_the_checks(lock: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/query"
        assert audit(url, lock, AUDIT_SECONDS="3") == (3, "OSV did not answer for all packages within 3 seconds")


def test_the_whole_lock_is_asked_for() -> None:
    asked: set[str] = set()

    def answer(query: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.add(query["package"]["name"])
        return 200, {}

    with osv(answer) as url:
        assert audit(url, ROOT / "requirements.lock") == (0, "")
    assert {"psycopg", "google-auth", "httpx2", "h11", "pip-audit"} <= asked
