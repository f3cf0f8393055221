"""What the benchmarks stand on: a durable server, an nginx that answers like FCM, daemons, and what all of them used.

The server has fsync on, whatever it costs. The sink speaks TLS with a certificate of its own and gives access tokens;
its slow twin holds every answer back. Everything is started and stopped within a `with`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg

from pgherald import schema
from pgherald.embedded import Cluster
from pgherald.emulator.keys import make_certificate
from tests.support.daemon import Daemon
from tests.support.service_account import key_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

RESULTS: Final = Path("bench-results")
DATABASE: Final = "bench"
DAEMON: Final = "bench_daemon"
ORGANISATION: Final = "00000000-0000-4000-8000-0000000000aa"
CHAPTER: Final = "00000000-0000-4000-8000-0000000000c1"
SERVER: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "max_connections": "200",
}
TICKS: Final = os.sysconf("SC_CLK_TCK")

PEOPLE: Final = """
insert into app.organisation (id, name) values ('{organisation}', 'bench')
on conflict do nothing;
insert into app.chapter (id, organisation_id, name) values ('{chapter}', '{organisation}', 'bench')
on conflict do nothing;
insert into app.peer_mentor (user_id, chapter_id, registered_at)
select ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, '{chapter}', now() - interval '90 days'
from generate_series(1, {people}) as n on conflict do nothing;
truncate herald.touched_user;
insert into herald.device_token (user_id, token, platform)
select m.user_id, 'cXyZ' || repeat(md5(m.user_id::text), 4),
  case when m.user_id::text < '00000000-0000-4000-8000-{half}' then 'ios' else 'android' end
from app.peer_mentor as m on conflict do nothing;
insert into herald.scenario (scenario_type, organisation_id, name, params, title_key, body_key)
select 'milestone', '{organisation}', 'bench', '{{"counts": [1]}}', 'milestone_title', 'milestone_body'
where not exists (select from herald.scenario);
vacuum analyze;
"""

PROMPTS: Final = """
truncate herald.prompt, herald.scenario_notification, herald.scenario_prompt_history;
insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, idempotency_key)
select s.scenario_id, s.scenario_type, m.user_id, '1',
  herald.idempotency_key(m.user_id, s.scenario_type, (now() at time zone 'UTC')::date)
from herald.scenario as s, (select user_id from app.peer_mentor order by user_id limit {prompts}) as m;
vacuum analyze herald.prompt, herald.open_prompt, herald.scenario_notification, herald.scenario_prompt_history;
checkpoint;
"""


def script(db: psycopg.Connection, text: str) -> None:
    """Statement by statement, each its own transaction."""
    for statement in text.split(";\n"):
        if statement.strip():
            db.execute(statement)


@contextmanager
def running_server(binaries: Path | None = None) -> Iterator[Cluster]:
    """A PostgreSQL, 18 unless told, with the schema, the reference app and a login for the daemon in `bench`."""
    with Cluster(settings=SERVER, binaries=binaries) as cluster:
        with psycopg.connect(cluster.dsn(), autocommit=True) as admin:
            admin.execute(f"create database {DATABASE}")
        schema.migrate(cluster.dsn(DATABASE), with_reference=True)
        with psycopg.connect(cluster.dsn(DATABASE), autocommit=True) as admin:
            admin.execute(f"create role {DAEMON} login in role herald_daemon")
        yield cluster


def connect(cluster: Cluster) -> psycopg.Connection:
    return psycopg.connect(cluster.dsn(DATABASE), autocommit=True)


def load_people(db: psycopg.Connection, people: int) -> None:
    half = f"{people // 2:012x}"
    script(db, PEOPLE.format(organisation=ORGANISATION, chapter=CHAPTER, people=people, half=half))


@dataclass(frozen=True, slots=True)
class Sink:
    """An nginx that takes every push; `slow_port` answers after its delay."""

    directory: Path
    port: int
    slow_port: int
    pid: int
    environment: Mapping[str, str]

    def endpoint(self, *, slow: bool = False) -> str:
        return f"https://127.0.0.1:{self.slow_port if slow else self.port}"

    @property
    def certificate(self) -> Path:
        return self.directory / "cert.pem"


NGINX: Final = """
{modules}
worker_processes 1; daemon off; pid {directory}/pid; error_log {directory}/error.log; worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 300s; default_type application/json;
  client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  ssl_certificate {directory}/cert.pem; ssl_certificate_key {directory}/key.pem; ssl_session_cache shared:bench:10m;
  server {{
    listen 127.0.0.1:{port} ssl http2;
    location / {{ return 200 '{{"name":"projects/bench/messages/0:1500415314455276%31bd1c9631bd1c96"}}'; }}
    location = /token {{ return 200 '{{"access_token":"{token}","expires_in":3600,"token_type":"Bearer"}}'; }}
  }}
  {slow}
}}
"""
SLOW: Final = """
  server {{
    listen 127.0.0.1:{port} ssl http2;
    location / {{ echo_sleep {seconds}; echo '{{"name":"projects/bench/messages/0:1500415314455276"}}'; }}
  }}
"""
ECHO: Final = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")


def need(*packages: str) -> None:
    """Install Debian packages whose programs a benchmark calls, as root on Debian; elsewhere they have to be there."""
    if shutil.which("apt-get") and os.geteuid() == 0:
        there = subprocess.run(["dpkg-query", "--show", *packages], capture_output=True, check=False)
        if there.returncode:
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(
                ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *packages],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdout=subprocess.DEVNULL,
                check=True,
            )


@contextmanager
def running_sink(*, delay: float = 0.05) -> Iterator[Sink]:
    """nginx on this machine, one worker; stopped with the block."""
    need("nginx-light", "libnginx-mod-http-echo")
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if nginx is None:
        raise SystemExit("nginx is missing: it is the sink of this benchmark")
    directory = Path(tempfile.mkdtemp(prefix="pgherald-sink-"))
    port, slow_port = free_port(), free_port()
    _write_keys(directory, port)
    (directory / "nginx.conf").write_text(
        NGINX.format(
            modules=f"load_module {ECHO};" if ECHO.exists() else "",
            directory=directory,
            port=port,
            token="ya29." + "x" * 200,
            slow=SLOW.format(port=slow_port, seconds=delay) if ECHO.exists() else "",
        )
    )
    process = subprocess.Popen([nginx, "-e", str(directory / "error.log"), "-c", str(directory / "nginx.conf")])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Sink(
            directory,
            port,
            slow_port,
            process.pid,
            {
                "PGHERALD_FCM_CREDENTIALS": str(directory / "account.json"),
                "SSL_CERT_FILE": str(directory / "cert.pem"),
                "REQUESTS_CA_BUNDLE": str(directory / "cert.pem"),
            },
        )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)


def _write_keys(directory: Path, port: int) -> None:
    make_certificate(directory / "cert.pem", directory / "key.pem", "127.0.0.1").chmod(0o644)
    key_file(directory / "account.json", project_id="bench", client_id="1", token_uri=f"https://127.0.0.1:{port}/token")
    directory.chmod(0o755)


def tls_context(sink: Sink) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(sink.certificate))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_daemons(
    cluster: Cluster, endpoint: str, environment: Mapping[str, str], count: int = 1, **settings: object
) -> Iterator[list[Daemon]]:
    """Daemons on the cluster, all ready; `settings` are PGHERALD_* in lower case."""
    with ExitStack() as stack:
        yield [stack.enter_context(_daemon(cluster, endpoint, environment, settings)) for _ in range(count)]


@contextmanager
def _daemon(
    cluster: Cluster, endpoint: str, environment: Mapping[str, str], settings: Mapping[str, object]
) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="pgherald-bench-") as directory:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PGHERALD_", "PG"))}
        own = {
            "PGHERALD_DATABASE_URL": cluster.dsn(DATABASE, DAEMON),
            "PGHERALD_STATE_DIR": f"{directory}/state",
            "PGHERALD_METRICS_LISTEN": "127.0.0.1:0",
            "PGHERALD_SCHEDULER": "off",
            "PGHERALD_FCM_ENDPOINT": endpoint,
            "PGHERALD_MAX_RATE": "1000000",
        }
        given = {f"PGHERALD_{name.upper()}": str(value) for name, value in settings.items()}
        daemon = Daemon(
            environment={**clean, **environment, **own, **given},
            state_dir=Path(directory) / "state",
            log_path=Path(directory) / "log",
            patience=30.0,
        )
        try:
            yield daemon.start()
        finally:
            try:
                daemon.stop()
            except subprocess.TimeoutExpired:
                daemon.kill()


def cpu_seconds(pids: Iterable[int]) -> float:
    """What these processes used, their own dead children included."""
    return sum(_ticks(pid) for pid in pids) / TICKS


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])


def family(pid: int) -> list[int]:
    """A process and its children: a postmaster and its backends, an nginx and its worker."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, found)]


def peak_mb(pid: int, field: str = "VmHWM") -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown, padded so that it reads well as it is: the first column to the left and the others to the right."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(3, *(len(row[n]) for row in cells)) for n in range(len(head))]
    lines = [
        " | ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    rule = " | ".join("-" * width if n == 0 else "-" * (width - 1) + ":" for n, width in enumerate(widths))
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def machine() -> str:
    """The processor, how much of it there is, and the memory."""
    model, memory = platform.machine(), ""
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1].strip() if found else model
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB"
    cores = os.cpu_count() or 1
    return f"{cores} {'core' if cores == 1 else 'cores'} ({model}){memory}"


def write(name: str, results: Any) -> None:
    """bench-results/NAME.json, with machine, time and command; prints the line that belongs under the table."""
    now = datetime.now(UTC)
    command = f"make bench-{name}" + (f' ARGS="{shlex.join(sys.argv[1:])}"' if sys.argv[1:] else "")
    content = {
        "at": now.isoformat(timespec="seconds"),
        "command": command,
        "machine": machine(),
        "python": platform.python_version(),
        "load_before_or_after": os.getloadavg(),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    load = f"load at the end {os.getloadavg()[0]:.1f}"
    print(f"\n`{command}`, {now:%Y-%m-%d}: {machine()}, Postgres and all else on it; {load}.")
