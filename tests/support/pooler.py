"""Debian's pgbouncer in front of a test's database, as Supabase has a pooler on its port 6543."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.daemon import PATIENCE, wait_for
from tests.support.postgres import DAEMON_LOGIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.postgres import Database

PGBOUNCER: Final = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
PORT: Final = 6543

needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="no pgbouncer on this machine")


@contextmanager
def pgbouncer(database: Database, directory: Path, mode: str) -> Iterator[str]:
    """Run one in `mode` (transaction, session), with few server connections, so that they do change hands.

    Yields the DSN that leads through it as the daemon's role: a socket in `directory`, which another user has to be
    able to write to (the fixture `open_directory`), because pgbouncer refuses to be root.
    """
    assert PGBOUNCER is not None
    place = conninfo_to_dict(database.dsn_as(DAEMON_LOGIN, tcp=True))
    server = " ".join(f"{key}={place[key]}" for key in ("host", "port", "dbname", "user", "password"))
    config, log = directory / "pgbouncer.ini", directory / "pgbouncer.log"
    config.write_text(
        f"[databases]\n{database.name} = {server}\n"
        f"[pgbouncer]\nlisten_addr =\nlisten_port = {PORT}\nunix_socket_dir = {directory}\nauth_type = any\n"
        f"pool_mode = {mode}\ndefault_pool_size = 4\nmax_client_conn = 100\n"
    )
    config.chmod(0o644)
    as_user = ["--user=nobody"] if os.geteuid() == 0 else []
    with log.open("w") as out:
        process = subprocess.Popen(
            [PGBOUNCER, *as_user, "--quiet", str(config)], stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    dsn = make_conninfo("", host=str(directory), port=PORT, dbname=database.name, user=DAEMON_LOGIN)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with psycopg.connect(dsn):
                return True
        except psycopg.OperationalError:
            return False

    try:
        wait_for(answers, otherwise=log.read_text)
        yield dsn
    finally:
        process.kill()  # what a signal that asks for an end makes it wait for differs between its releases
        process.wait(PATIENCE)
