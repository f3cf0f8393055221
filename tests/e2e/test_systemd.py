"""The daemon under a service manager: a fake one hears what it says, sends it signals, and hands it its credentials."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.daemon import running_daemon, wait_for
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import psycopg

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.daemon import Daemon
    from tests.support.postgres import Database

UNITS = Path(__file__).parents[2] / "systemd"
WATCHDOG = 4.0
"""Seconds; the daemon feeds it twice as often, so that a starved machine may delay it by half of that."""

pytestmark = pytest.mark.parametrize("server", ["pg18"], indirect=True)


@dataclass(slots=True)
class Manager:
    """Listens as systemd does; `heard` are its assignments in order, each with the time it came."""

    socket: socket.socket
    address: str
    heard: list[tuple[float, str]] = field(default_factory=list)

    def listen(self) -> list[str]:
        """Everything so far."""
        while True:
            try:
                lines = self.socket.recv(4096, socket.MSG_DONTWAIT).decode().split("\n")
            except BlockingIOError:
                return [line for _, line in self.heard]
            self.heard += [(time.monotonic(), line) for line in lines]

    def wait_for(self, pattern: str, count: int = 1) -> str:
        """The `count`-th assignment that matches, once it came."""
        found = wait_for(
            lambda: [line for line in self.listen() if re.fullmatch(pattern, line)][count - 1 : count],
            otherwise=lambda: f"no {pattern} in {self.listen()}",
        )
        return found[0]

    def count(self, line: str) -> int:
        return self.listen().count(line)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        yield Manager(listening, address)


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "pgherald.env"
    path.write_text("# as in /etc\nPGHERALD_POLL_INTERVAL=3600\n")
    return path


@contextmanager
def managed(
    database: Database,
    emulator: EmulatorProcess,
    manager: Manager,
    directory: Path,
    settings_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Daemon]:
    """A daemon started as the unit starts it, with a watchdog."""
    watchdog = f"{WATCHDOG * 1e6:.0f}"
    settings = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": watchdog, **(environment or {})}
    arguments = ("--settings-file", str(settings_file)) if settings_file else ()
    with running_daemon(database.daemon_dsn, emulator, directory, settings, ready=False, arguments=arguments) as daemon:
        yield daemon


def is_fed(manager: Manager) -> bool:
    """Whether the watchdog is fed for longer than it waits, each time before it would bite."""
    before = manager.count("WATCHDOG=1")
    wait_for(lambda: manager.count("WATCHDOG=1") >= before + 3)
    fed = [at for at, line in manager.heard if line == "WATCHDOG=1"][max(0, before - 1) :]
    return all(later - earlier < WATCHDOG for earlier, later in pairwise(fed))


def test_systemd_hears_of_start_work_and_stop(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, manager: Manager, tmp_path: Path
) -> None:
    scenario = organisation.scenario()
    for person in organisation.mentors(30):
        organisation.enqueue(scenario, person)
    one_by_one = {"PGHERALD_MAX_IN_FLIGHT": "1"}  # so that batches have ended long before nothing is left
    with managed(database, emulator, manager, tmp_path, environment=one_by_one) as daemon:
        manager.wait_for("READY=1")
        ready = manager.listen().index("READY=1")
        assert [status for status, _ in organisation.prompts().values()].count("ready") == 0, "ready before it drained"
        daemon.wait_ready()
        log = [event["event"] for event in daemon.events()]
        assert log.index("listening") < log.index("batch_dispatched") < log.index("ready")
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in manager.listen()[:ready])
        assert is_fed(manager)
        wait_for(lambda: len(organisation.notifications()) == 30)
        manager.wait_for("STATUS=sending: 30 sent, 0 failed, 0 unknown since start; 0 ready, 0 in flight, .*")
        assert daemon.stop() == 0
        manager.wait_for("STOPPING=1")
        manager.wait_for("STATUS=draining: 30 sent, .*")
    assert manager.count("READY=1") == 1


def test_credentials_of_the_unit_are_all_it_needs(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, manager: Manager, tmp_path: Path
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    shutil.copy(emulator.credentials_path, credentials / "fcm.json")
    parts = conninfo_to_dict(database.dsn_as("herald_daemon_login", tcp=True))
    password = parts.pop("password")
    (credentials / "pgpass").write_text(f"*:*:*:{parts['user']}:{password}\n")
    (credentials / "pgpass").chmod(0o400)
    environment = {
        "CREDENTIALS_DIRECTORY": str(credentials),
        "PGPASSFILE": str(credentials / "pgpass"),
        "STATE_DIRECTORY": str(tmp_path / "var"),
        "PGHERALD_STATE_DIR": "",
        "PGHERALD_FCM_CREDENTIALS": "",
        "PGHERALD_DATABASE_URL": make_conninfo("", **parts),
    }
    with managed(database, emulator, manager, tmp_path, environment=environment) as daemon:
        manager.wait_for("READY=1")
        organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
        wait_for(lambda: len(organisation.notifications()) == 1)
        assert list((tmp_path / "var").iterdir()), "the spool is in the state directory"
        assert str(password) not in daemon.log


def test_a_database_that_is_away_is_no_reason_to_be_killed(
    database: Database, emulator: EmulatorProcess, manager: Manager, tmp_path: Path
) -> None:
    with managed(database, emulator, manager, tmp_path) as daemon, database.server.admin() as admin:
        manager.wait_for("READY=1")
        admin.execute(f"alter database {database.name} allow_connections false")
        try:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()",
                (database.name,),
            )
            manager.wait_for(r"STATUS=(not ready|degraded) \(.*(database_away|listener_down).*\): .*")
            assert is_fed(manager)
        finally:
            admin.execute(f"alter database {database.name} allow_connections true")
        wait_for(lambda: daemon.get("/readyz")[1] == '{"status":"ready","reasons":[]}\n')
        assert daemon.running


def test_a_worker_that_waits_for_a_lock_in_the_database_is_not_killed(
    database: Database, organisation: Organisation, emulator: EmulatorProcess, manager: Manager, tmp_path: Path
) -> None:
    with managed(database, emulator, manager, tmp_path) as daemon:
        manager.wait_for("READY=1")
        holder = database.connect()
        with holder.transaction():
            holder.execute("lock table herald.touched_user")
            organisation.db.execute("select pg_notify('herald', '')")
            wait_for(
                lambda: organisation.db.execute(
                    "select from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'pgherald'"
                ).fetchall()
            )
            assert is_fed(manager)
        organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
        wait_for(lambda: len(organisation.notifications()) == 1)
        assert daemon.running


def test_a_process_that_hangs_feeds_no_watchdog(
    database: Database, emulator: EmulatorProcess, manager: Manager, tmp_path: Path
) -> None:
    with managed(database, emulator, manager, tmp_path) as daemon:
        manager.wait_for("READY=1")
        assert is_fed(manager)
        daemon.send(signal.SIGSTOP)
        wait_for(lambda: Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(") ")[2][0] == "T")
        before = manager.count("WATCHDOG=1")
        time.sleep(WATCHDOG)  # nothing tells of what does not come
        assert manager.count("WATCHDOG=1") == before
        # What systemd does then; the log has the places where each thread stood.
        daemon.send(signal.SIGABRT)
        daemon.send(signal.SIGCONT)
        assert daemon.wait() == -signal.SIGABRT
        assert "(most recent call first)" in daemon.log_path.read_text()


def test_a_reload_changes_what_can_change_and_names_what_cannot(
    database: Database,
    emulator: EmulatorProcess,
    manager: Manager,
    tmp_path: Path,
    settings_file: Path,
) -> None:
    with managed(database, emulator, manager, tmp_path, settings_file) as daemon:
        manager.wait_for("READY=1")
        expiry = daemon.wait_for_metric("pgherald_oauth_expiry_timestamp_seconds", lambda at: at > 0)
        assert daemon.metric('pgherald_wakeups_total{source="poll"}') == 0
        settings_file.write_text(
            "PGHERALD_POLL_INTERVAL='0.1'\nPGHERALD_LOG_LEVEL=info\nPGHERALD_MAX_RATE=\"5\"\nPGHERALD_MAX_IN_FLIGHT=7\n"
        )
        daemon.send(signal.SIGHUP)
        daemon.wait_for_event("reloaded")
        manager.wait_for("READY=1", 2)
        reloading = manager.listen().index("RELOADING=1")
        assert re.fullmatch(r"MONOTONIC_USEC=\d+", manager.listen()[reloading + 1])
        changed = [event["setting"] for event in daemon.events("setting_changed")]
        assert changed == ["PGHERALD_LOG_LEVEL", "PGHERALD_MAX_RATE", "PGHERALD_POLL_INTERVAL"]
        assert [event["setting"] for event in daemon.events("setting_needs_restart")] == ["PGHERALD_MAX_IN_FLIGHT"]
        daemon.wait_for_metric('pgherald_wakeups_total{source="poll"}', lambda times: times > 5)
        daemon.wait_for_metric("pgherald_oauth_expiry_timestamp_seconds", lambda at: at > expiry)  # asked anew
        # What needs a restart is said again, as long as it is so.
        daemon.send(signal.SIGHUP)
        daemon.wait_for_event("reloaded", count=2)
        assert len(daemon.events("setting_needs_restart")) == 2
        assert len(daemon.events("setting_changed")) == 3


def test_a_lower_rate_holds_after_a_reload(
    database: Database,
    organisation: Organisation,
    emulator: EmulatorProcess,
    manager: Manager,
    tmp_path: Path,
    settings_file: Path,
) -> None:
    with managed(database, emulator, manager, tmp_path, settings_file) as daemon:
        manager.wait_for("READY=1")
        settings_file.write_text("PGHERALD_MAX_RATE=20\n")
        daemon.send(signal.SIGHUP)
        daemon.wait_for_event("reloaded")
        scenario = organisation.scenario()
        began = time.monotonic()
        organisation.db.execute(
            "select herald.enqueue(%s, u, 'by-hand') from unnest(%s::uuid[]) as u", (scenario, organisation.mentors(40))
        )
        wait_for(lambda: len(organisation.notifications()) == 40)
        assert time.monotonic() - began > 1.5


def test_a_reload_takes_new_credentials(
    database: Database,
    organisation: Organisation,
    emulator: EmulatorProcess,
    manager: Manager,
    tmp_path: Path,
    settings_file: Path,
) -> None:
    key = tmp_path / "fcm.json"
    account = json.loads(emulator.credentials_path.read_text())
    key.write_text(json.dumps(account))
    settings = {"PGHERALD_FCM_CREDENTIALS": str(key)}
    with managed(database, emulator, manager, tmp_path, settings_file, settings) as daemon:
        manager.wait_for("READY=1")
        key.write_text(json.dumps(account | {"private_key": "not a key"}))
        daemon.send(signal.SIGHUP)
        refused = daemon.wait_for_event("reload_refused")
        assert (refused["reason"], refused["path"]) == ("credentials", str(key))
        manager.wait_for("STATUS=reload refused, nothing was changed; sending.*")
        key.unlink()
        daemon.send(signal.SIGHUP)
        refused = daemon.wait_for_event("reload_refused", count=2)
        assert (refused["reason"], refused["path"]) == ("credentials", str(key))
        assert refused["exception"] == "FileNotFoundError[ENOENT]"
        manager.wait_for("READY=1", 3)
        key.write_text(json.dumps(account | {"project_id": "another-project"}))
        daemon.send(signal.SIGHUP)
        assert daemon.wait_for_event("setting_needs_restart")["setting"] == "PGHERALD_FCM_PROJECT"
        # A key that was deleted at Google: the token there is stays in use, and the failure is said.
        key.write_text(json.dumps(account | {"client_email": "deleted@example.org"}))
        daemon.send(signal.SIGHUP)
        daemon.wait_for_event("oauth_refresh_failed")
        organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
        wait_for(lambda: len(organisation.notifications()) == 1)
        manager.wait_for("READY=1", 5)
        assert "private_key" not in daemon.log


def test_a_refused_reload_names_no_credentials_file_that_may_be_a_secret_in_the_wrong_line(
    database: Database, emulator: EmulatorProcess, manager: Manager, tmp_path: Path, settings_file: Path
) -> None:
    with managed(database, emulator, manager, tmp_path, settings_file) as daemon:
        manager.wait_for("READY=1")
        settings_file.write_text("PGHERALD_FCM_CREDENTIALS=hush\n")
        daemon.send(signal.SIGHUP)
        refused = daemon.wait_for_event("reload_refused")
        assert (refused["reason"], refused["path"]) == ("credentials", None)
        assert "hush" not in daemon.log


def test_a_reload_of_settings_that_cannot_work_changes_nothing_and_says_what_is_at_fault(
    database: Database, emulator: EmulatorProcess, manager: Manager, tmp_path: Path, settings_file: Path
) -> None:
    with managed(database, emulator, manager, tmp_path, settings_file) as daemon:
        manager.wait_for("READY=1")
        wrong = ("PGHERALD_MAX_RATE=hush-fast\nPGHERALD_POLL_INTERVAL=0.1\n", "no setting hush\n", None)
        for number, text in enumerate(wrong, start=1):
            if text is None:
                settings_file.unlink()
            else:
                settings_file.write_text(text)
            daemon.send(signal.SIGHUP)
            manager.wait_for("STATUS=reload refused, .*", number)
        assert [event["setting"] for event in daemon.events("setting_refused")] == ["PGHERALD_MAX_RATE"]
        assert [(event["reason"], event["path"], event["exception"]) for event in daemon.events("reload_refused")] == [
            ("settings", None, "ConfigError"),
            ("settings_file_lines", str(settings_file), "ConfigError"),
            ("settings_file_unreadable", str(settings_file), "FileNotFoundError[ENOENT]"),
        ]
        assert daemon.metric('pgherald_wakeups_total{source="poll"}') == 0
        assert "hush" not in daemon.log
        assert daemon.get("/readyz")[0] == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("PGHERALD_POLL_INTERVAL=0\n", "PGHERALD_POLL_INTERVAL"),
        ("PGHERALD_COLOUR=red\n", "PGHERALD_COLOUR"),
        ("export A=1\n", "lines that are not NAME=value: 1"),
    ],
)
def test_a_start_with_settings_that_cannot_work_ends_with_78(
    database: Database, emulator: EmulatorProcess, manager: Manager, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "pgherald.env"
    path.write_text(text)
    with managed(database, emulator, manager, tmp_path, path) as daemon:
        assert daemon.wait() == 78
    assert said in daemon.log
    assert "READY=1" not in manager.listen()


@pytest.mark.parametrize(
    ("shut", "reopen", "reason"),
    [
        ("connection limit 0", "connection limit -1", "full"),
        ("allow_connections false", "allow_connections true", "closed"),
    ],
)
def test_a_start_without_a_database_waits_for_it(
    database: Database, emulator: EmulatorProcess, manager: Manager, tmp_path: Path, shut: str, reopen: str, reason: str
) -> None:
    with database.server.admin() as admin:
        admin.execute(f"alter database {database.name} {shut}")
        with managed(database, emulator, manager, tmp_path) as daemon:
            assert daemon.wait_for_event("waiting_for_database")["reason"] == reason
            manager.wait_for("STATUS=waiting for the database: PGHERALD_DATABASE_URL: no connection to Postgres .*")
            manager.wait_for("EXTEND_TIMEOUT_USEC=30000000")
            admin.execute(f"alter database {database.name} {reopen}")
            manager.wait_for("READY=1")
            assert daemon.running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_it_waits_for_the_database_is_an_orderly_one(
    database: Database, emulator: EmulatorProcess, manager: Manager, tmp_path: Path, number: signal.Signals
) -> None:
    with database.server.admin() as admin:
        admin.execute(f"alter database {database.name} allow_connections false")
        with managed(database, emulator, manager, tmp_path) as daemon:
            daemon.wait_for_event("waiting_for_database")
            daemon.send(number)
            assert daemon.wait() == 0
            assert daemon.events("stopping")[0]["signal"] == number.name
            assert daemon.events()[-1]["event"] == "stopped"
            manager.wait_for("STOPPING=1")


def unit(name: str) -> dict[str, list[str]]:
    """The assignments of a unit file."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_units_say_what_the_daemon_relies_on(server: object) -> None:
    for name in ("pgherald.service", "pgherald@.service"):
        told = unit(name)
        assert told["Type"] == ["notify"]
        assert told["RestartPreventExitStatus"] == ["78"]
        assert told["Restart"] == ["always"]
        assert told["DynamicUser"] == ["yes"]
        assert told["Environment"] == ["PGPASSFILE=%d/pgpass"]
        assert [each.split(":")[0] for each in told["LoadCredential"]] == ["fcm.json", "pgpass"]
        assert "-HUP" in told["ExecReload"][0]
        assert int(told["WatchdogSec"][0]) >= 20  # the worker may be late by ten seconds


def test_the_template_differs_from_the_unit_in_what_the_instance_names(server: object) -> None:
    def plain(value: str) -> str:
        return (
            value.replace("credentials/%i/", "credentials/")
            .replace("-%i", "")
            .replace(" %i", "")
            .replace("%i.env", "pgherald.env")
        )

    single, template = unit("pgherald.service"), unit("pgherald@.service")
    assert {key: [plain(value) for value in values] for key, values in template.items()} == single
    assert {key for key, values in template.items() if any("%i" in value for value in values)} == {
        "Description",
        "ExecStart",
        "LoadCredential",
        "StateDirectory",
    }


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("name", ["pgherald.service", "pgherald@.service"])
def test_systemd_finds_no_fault_in_the_units(server: object, tmp_path: Path, name: str) -> None:
    text = (UNITS / name).read_text()
    # The program is not installed here; everything else is as it is.
    (tmp_path / name).write_text(re.sub(r"^(Exec\w+=)\S+", r"\1/bin/true", text, flags=re.MULTILINE))

    def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemd-analyze", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"]},
        )

    verified = analyze("verify", "--man=no", str(tmp_path / name))
    assert (verified.returncode, verified.stderr, verified.stdout) == (0, "", "")
    secure = analyze("security", "--no-pager", "--offline=true", "--threshold=12", str(tmp_path / name))
    assert secure.returncode == 0
    assert re.search(r"exposure level for \S+: (0\.\d|1\.[01]) ", secure.stdout)


def test_the_example_of_the_settings_is_one_that_the_daemon_takes(
    server: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgherald.config import SETTINGS, load_settings, parse_environment_file

    path = UNITS / "pgherald.env.example"
    text = path.read_text()
    everything = re.sub(r"^#(?=PGHERALD_)", "", text, flags=re.MULTILINE)
    for each in (text, everything):
        found = parse_environment_file(each, path)
        load_settings({**found, "HOME": "/nonexistent"})
    by_the_unit = {"PGHERALD_FCM_CREDENTIALS", "PGHERALD_STATE_DIR"}
    by_the_unit |= {f"PGHERALD_METRICS_TLS_{file}" for file in ("CERTIFICATE", "KEY", "CLIENT_CA")}
    from_google = {"PGHERALD_FCM_PROJECT", "PGHERALD_FCM_ENDPOINT"}
    assert set(found) == {setting.name for setting in SETTINGS} - by_the_unit - from_google


def test_the_daemon_runs_under_the_units_system_call_filter(server: object) -> None:
    """What the units forbid, by systemd's own list, is not among what CPython, psycopg and the spool call."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this machine")
    forbidden: set[str] = set()
    for group in ("@privileged", "@resources"):
        listed = subprocess.run(
            ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
        )
        forbidden |= {line.strip() for line in listed.stdout.splitlines()[2:]}
    assert not forbidden & {"prlimit64", "sched_getaffinity", "fdatasync", "flock", "clone3", "getrandom", "epoll_wait"}
