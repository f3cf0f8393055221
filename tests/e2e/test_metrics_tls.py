"""The metrics over TLS, on the daemon itself: scraped by a real Prometheus, probed as in Docker, reloaded."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.support.certificates import Authority, Identity
from tests.support.daemon import PATIENCE, running_daemon, wait_for
from tests.support.prometheus import running_prometheus

if TYPE_CHECKING:
    from pathlib import Path

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.daemon import Daemon
    from tests.support.postgres import Database

pytestmark = pytest.mark.parametrize("server", ["pg18"], indirect=True)


def settings_for(identity: Identity, clients: Authority | None = None) -> dict[str, str]:
    found = {
        "PGHERALD_METRICS_TLS_CERTIFICATE": str(identity.certificate),
        "PGHERALD_METRICS_TLS_KEY": str(identity.key),
    }
    return found | ({} if clients is None else {"PGHERALD_METRICS_TLS_CLIENT_CA": str(clients.certificate)})


def get(daemon: Daemon, authority: Authority, identity: Identity | None = None) -> int:
    """The status of /metrics for a client that trusts this authority, and shows its certificate if it has one."""
    context = ssl.create_default_context(cafile=authority.certificate)
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    with urllib.request.urlopen(f"https://{daemon.address}/metrics", timeout=PATIENCE, context=context) as answer:
        assert b"pgherald_build_info" in answer.read()
        return int(answer.status)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus on this machine")
def test_prometheus_scrapes_with_its_certificate_and_not_without(
    database: Database, emulator: EmulatorProcess, tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    mine, stranger = ours.client("prometheus"), theirs.client("stranger")

    def job(name: str, identity: Identity | None, scheme: str = "https") -> str:
        tls = f"ca_file: {ours.certificate}"
        if identity is not None:
            tls += f", cert_file: {identity.certificate}, key_file: {identity.key}"
        return (
            f"- {{job_name: {name}, scheme: {scheme}, tls_config: {{{tls}}}, "
            f"static_configs: [{{targets: ['{daemon.address}']}}]}}\n"
        )

    with running_daemon(database.daemon_dsn, emulator, tmp_path, settings_for(ours.server(), ours)) as daemon:
        jobs = job("pgherald", mine) + job("none", None) + job("stranger", stranger) + job("plain", mine, "http")
        with running_prometheus(tmp_path, jobs) as prometheus:

            def up() -> dict[str, str]:
                return {each["metric"]["job"]: each["value"][1] for each in prometheus.query("up")}

            wait_for(lambda: up() == {"pgherald": "1", "none": "0", "stranger": "0", "plain": "0"})
            wait_for(lambda: prometheus.query("pgherald_build_info"))
            said = {
                "none": "certificate required",
                "stranger": "unknown certificate authority",
                "plain": "400 Bad Request",
            }

            def errors() -> dict[str, str]:
                targets = prometheus.get("targets")["activeTargets"]
                return {each["labels"]["job"]: each["lastError"] for each in targets}

            # any one scrape may be too late on a machine that is busy
            wait_for(
                lambda: [name for name in said if said[name] in errors()[name]] == [*said],
                otherwise=lambda: f"{errors()}",
            )
        assert daemon.wait_for_event("metrics_client_refused")["level"] == "warning"


@pytest.mark.parametrize("how", ["plain", "tls", "client certificates"])
def test_the_health_check_of_the_image_knows_a_daemon_that_lives_from_one_that_hangs_or_is_gone(
    database: Database, emulator: EmulatorProcess, tmp_path: Path, ours: Authority, how: str
) -> None:
    settings = {
        "plain": {},
        "tls": settings_for(ours.server()),
        "client certificates": settings_for(ours.server(), ours),
    }[how]

    def probe(listen: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "pgherald.probe"],
            env={"PATH": os.environ["PATH"], "PGHERALD_METRICS_LISTEN": listen, **settings},
            capture_output=True,
            check=False,
        ).returncode

    with running_daemon(database.daemon_dsn, emulator, tmp_path, settings) as daemon:
        address = daemon.address
        assert probe(address) == 0
        assert probe(address.replace("127.0.0.1", "0.0.0.0")) == 0
        daemon.send(signal.SIGSTOP)
        assert probe(address) == 1
        daemon.send(signal.SIGCONT)
        wait_for(lambda: probe(address) == 0)
    assert probe(address) == 1


def test_a_reload_takes_renewed_certificates_and_turns_tls_on_and_off(
    database: Database, emulator: EmulatorProcess, tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    path = tmp_path / "pgherald.env"
    first, second = ours.server("first"), theirs.server("second")
    certificate, key = tmp_path / "metrics.crt", tmp_path / "metrics.key"
    settings = settings_for(Identity(certificate, key))

    def put(identity: Identity) -> None:
        certificate.write_bytes(identity.certificate.read_bytes())
        key.write_bytes(identity.key.read_bytes())

    def write(wanted: dict[str, str]) -> None:
        path.write_text("".join(f"{name}={value}\n" for name, value in wanted.items()))

    put(first)
    write(settings)
    with running_daemon(database.daemon_dsn, emulator, tmp_path, arguments=("--settings-file", str(path))) as daemon:
        assert get(daemon, ours) == 200

        put(second)
        daemon.send(signal.SIGHUP)
        daemon.wait_for_event("reloaded")
        assert get(daemon, theirs) == 200

        key.write_bytes(first.key.read_bytes())  # half of a renewal
        daemon.send(signal.SIGHUP)
        assert daemon.wait_for_event("reload_refused")["reason"] == "metrics_tls"
        assert daemon.wait_for_event("setting_refused")["setting"] == "PGHERALD_METRICS_TLS_KEY"
        assert get(daemon, theirs) == 200

        put(second)
        write(settings | {"PGHERALD_METRICS_TLS_CLIENT_CA": str(ours.certificate)})
        daemon.send(signal.SIGHUP)
        daemon.wait_for_event("reloaded", count=2)
        assert daemon.wait_for_event("setting_changed")["setting"] == "PGHERALD_METRICS_TLS_CLIENT_CA"
        assert get(daemon, theirs, ours.client()) == 200
        with pytest.raises((urllib.error.URLError, ssl.SSLError), match="CERTIFICATE_REQUIRED"):
            get(daemon, theirs)

        write({})
        daemon.send(signal.SIGHUP)
        daemon.wait_for_event("reloaded", count=3)
        assert daemon.get("/healthz") == (200, "ok\n")
        assert daemon.events("setting_needs_restart") == []


def test_tls_that_cannot_work_ends_with_78_and_names_each_file(
    database: Database, emulator: EmulatorProcess, tmp_path: Path, ours: Authority
) -> None:
    settings = settings_for(Identity(tmp_path / "nowhere.crt", ours.server().key))
    with running_daemon(database.daemon_dsn, emulator, tmp_path, settings, ready=False) as daemon:
        assert daemon.wait() == 78
    assert f"PGHERALD_METRICS_TLS_CERTIFICATE: {tmp_path / 'nowhere.crt'}: there is no such file" in daemon.log
