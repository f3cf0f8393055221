"""One daemon through everything that can happen to it, with a secret in every place for one; and all that it wrote.

`tell` runs it, on a server that logs every statement with its parameters. What comes of it is `Written`: bytes by
place. Sessions of the test itself are kept out of Postgres's log, so that what is there is what pgherald's left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from psycopg.conninfo import make_conninfo

from tests.support import canaries
from tests.support.command import Command
from tests.support.daemon import PATIENCE, running_daemon, wait_for
from tests.support.organisation import Organisation
from tests.support.postgres import DAEMON_LOGIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    import psycopg

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.daemon import Daemon
    from tests.support.postgres import Database, Server

#: For `running_server`: all that Postgres can be told to write about statements.
TALKATIVE: Final = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_min_messages": "debug1",
    "log_min_error_statement": "debug1",
    "log_error_verbosity": "verbose",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "track_activity_query_size": "65536",
}
SILENT: Final = "-c log_statement=none -c log_min_duration_statement=-1 -c log_min_messages=panic"

#: Texts of errors that no log but Postgres's own may repeat: an exception of the app's, a password that was mistyped.
IN_AN_ERROR: Final = "canary-in-the-text-of-an-error-3c"
MISTYPED: Final = "canary/mistyped+password=4d"

ECHO: Final = f"you sent Authorization: Bearer {canaries.BEARER}x and token {canaries.DEVICE_TOKEN}: {canaries.TEXT}"
REFUSAL: Final = json.dumps({"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": ECHO}})

#: How FCM fails, by how a token begins; the emulator knows those without a fault by themselves.
FAILURES: Final[dict[str, dict[str, Any] | None]] = {
    "unregistered-": None,
    "invalid-": None,
    "invalid-field-": None,
    "sender-mismatch-": None,
    "apns-auth-": None,
    "reset-": {"do": "drop_before"},
    "lost-": {"do": "drop_after"},
    "cut-": {"do": "cut_body"},
    "page-": {"do": "status", "status": 502, "body": f"<html>{ECHO}</html>"},
    "echo-": {"do": "status", "status": 400, "body": REFUSAL},
    "not-json-": {"do": "status", "status": 200, "body": f'{{"name": "{ECHO}'},
    "busy-": {"do": "status", "code": "UNAVAILABLE"},
    "silent-": {"do": "silent"},
}
#: A bug, as `python -c` would have it: what is sent, or what is known, is in the text of an exception.
BUGS: Final = {
    "in one push": (
        "from pgherald import fcm\n"
        "async def send(self, message, deadline):\n"
        "    raise RuntimeError(f'cannot send {message.decode()}') from ValueError(message)\n"
        "fcm.FcmClient.send = send\n"
    ),
    "in the listener": (
        "from pgherald import listener\n"
        "async def run(self):\n"
        f"    raise ExceptionGroup('x', [RuntimeError('{IN_AN_ERROR}', self.__dict__)])\n"
        "listener.Listener.run = run\n"
    ),
}
RUN: Final = "import sys\nfrom pgherald.cli import main\nsys.exit(main(['run']))\n"


@dataclass(slots=True)
class Written:
    """What there is to search, by place; and the secrets to search for."""

    secrets: dict[str, str]
    daemon: dict[str, bytes] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    commands: dict[str, bytes] = field(default_factory=dict)
    rows: dict[str, bytes] = field(default_factory=dict)
    postgres: bytes = b""
    codes: set[str | None] = field(default_factory=set)


def tell(server: Server, emulator: EmulatorProcess, directory: Path) -> Written:
    """The story. Raises if something that belongs to it does not happen."""
    with ExitStack() as stack:
        database = stack.enter_context(server.database())
        with server.admin() as admin:
            admin.execute(f"alter role {DAEMON_LOGIN} in database {database.name} set log_min_messages = debug1")
        db = database.connect(options=SILENT)
        dsn = database.dsn_as(DAEMON_LOGIN, tcp=True)
        captured = stack.enter_context(server.captured_log())
        written = Written(canaries.secrets_of(emulator.credentials_path, dsn))
        written.secrets |= {"text of an error": IN_AN_ERROR, "mistyped password": MISTYPED}
        stage = _Stage(database, db, dsn, emulator, directory, Organisation(db), written)
        listening = database.connect(options=SILENT)
        listening.execute("listen herald")
        manager = stack.enter_context(_notify_socket(directory))
        stage.live_through_it(manager)
        stage.crash()
        stage.ask_every_command()
        stage.get_everything_wrong()
        written.rows = stage.rows()
        written.rows["NOTIFY"] = repr([(n.channel, n.payload) for n in listening.notifies(timeout=0.2)]).encode()
        written.daemon["what systemd heard"] = _heard(manager)
        written.postgres = captured.text.encode()
    return written


@contextmanager
def _notify_socket(directory: Path) -> Iterator[socket.socket]:
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(directory / "notify"))
        listening.setblocking(False)
        yield listening


def _heard(manager: socket.socket) -> bytes:
    found = []
    while True:
        try:
            found.append(manager.recv(4096))
        except BlockingIOError:
            return b"\n".join(found)


def _is_over(log: bytes, process: subprocess.Popen[bytes]) -> bool:
    """Whether a daemon with a bug has told of it, and has ended or gone on."""
    return b'"traceback":' in log and (process.poll() is not None or b'"error_code":"OTHER"' in log)


@dataclass(slots=True)
class _Stage:
    database: Database
    db: psycopg.Connection
    dsn: str
    emulator: EmulatorProcess
    directory: Path
    organisation: Organisation
    written: Written
    people: dict[str, UUID] = field(default_factory=dict)

    def live_through_it(self, manager: socket.socket) -> None:
        """A daemon's life: all answers of FCM, OAuth, the database and its operators, then a kill and an abort."""
        settings_file = self.directory / "pgherald.env"
        settings_file.write_text("PGHERALD_POLL_INTERVAL=0.2\n")
        settings = {
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "PGHERALD_SEND_DEADLINE": "1.5",
            "PGHERALD_SCHEDULER": "internal",
        }
        arguments = ("--settings-file", str(settings_file))
        scenario = self.organisation.scenario(name=canaries.NAME)
        with running_daemon(self.dsn, self.emulator, self.directory / "one", settings, arguments=arguments) as daemon:
            daemon.wait_for_metric("pgherald_oauth_expiry_timestamp_seconds", lambda at: at > 0)
            self.succeed_and_fail(daemon)
            self.be_refused(daemon, "QUOTA_EXCEEDED")
            self.lose_oauth(daemon)
            self.lose_the_database(daemon)
            self.reload_nonsense(daemon, settings_file)
            self.take_pages(daemon, "before the kill")
            self.emulator.set_faults({"do": "silent"})
            self.act("killed")
            wait_for(lambda: daemon.metric("pgherald_in_flight") == 1)
            daemon.kill()
            self.emulator.set_faults()
        with running_daemon(self.dsn, self.emulator, self.directory / "one", settings) as daemon:
            self.organisation.enqueue(scenario, self.organisation.mentor(f"after-{canaries.DEVICE_TOKEN}"))
            wait_for(lambda: self.status("killed") == "unknown")
            self.take_pages(daemon, "after the kill")
            self.be_refused(daemon, "PERMISSION_DENIED")
            daemon.send(signal.SIGABRT)  # as the watchdog does; where each thread stood goes to the log
            assert daemon.wait() == -signal.SIGABRT
        self.keep("one", daemon)

    def act(self, kind: str, prefix: str = "", **columns: Any) -> None:
        """Somebody with such a token does something for the first time."""
        self.people[kind] = self.organisation.mentor(
            f"{prefix}{canaries.DEVICE_TOKEN}-{kind.replace(chr(32), chr(45))}", **columns
        )
        self.organisation.activity(self.people[kind])

    def status(self, kind: str) -> str:
        return self.organisation.prompts().get(self.people[kind], ("", None))[0]

    def tried(self) -> set[str]:
        """Whose prompt FCM was asked about, whatever it said."""
        rows = self.db.execute("select distinct peer_mentor_id from herald.scenario_prompt_history").fetchall()
        ended = {row[0] for row in rows}
        return {kind for kind, person in self.people.items() if person in ended}

    def succeed_and_fail(self, daemon: Daemon) -> None:
        self.emulator.set_faults(
            *(fault | {"token_prefix": prefix} for prefix, fault in FAILURES.items() if fault is not None), seed=1
        )
        for platform in ("android", "ios", "web"):
            self.act(f"fine on {platform}", platform=platform)
        for prefix in FAILURES:
            self.act(prefix, prefix, platform="ios" if prefix == "apns-auth-" else "android")
        nobody = self.organisation.mentor()
        self.people["without a device"] = nobody
        self.organisation.activity(nobody)
        wait_for(lambda: self.tried() == set(self.people), otherwise=lambda: f"{set(self.people) - self.tried()}")
        self.take_pages(daemon, "while FCM fails")

    def be_refused(self, daemon: Daemon, code: str) -> None:
        """Somebody comes while FCM takes nothing from anybody."""
        self.emulator.set_faults({"do": "status", "code": code, "retry_after": 1})
        self.act(f"refused with {code}")
        daemon.wait_for_metric(f'pgherald_fcm_responses_total{{code="{code}"}}', lambda value: value > 0)
        wait_for(lambda: code in self.codes())
        self.take_pages(daemon, f"under {code}")
        self.emulator.set_faults()

    def lose_oauth(self, daemon: Daemon) -> None:
        # Nobody's next try is to fall into it.
        self.db.execute("update herald.prompt set not_before = now() + interval '1 day' where status = 'ready'")
        self.emulator.set_faults(
            {"do": "status", "status": 400, "on": "token", "body": json.dumps({"error": "x", "text": ECHO})}
        )
        self.emulator.revoke_access_tokens()
        daemon.send(signal.SIGHUP)
        daemon.wait_for_event("oauth_refresh_failed")
        self.emulator.set_faults()
        daemon.send(signal.SIGHUP)
        daemon.wait_for_event("reloaded", count=2)

    def lose_the_database(self, daemon: Daemon) -> None:
        """Sessions ended, a record refused with a secret in the words of the refusal, an evaluator that fails."""
        self.db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgherald%'"
        )
        daemon.wait_for_event("listener_lost")
        daemon.wait_for_event("listening", count=2)
        self.db.execute(
            "create function app.refuse() returns trigger language plpgsql as $$ begin raise exception "
            f"'key (token)=({IN_AN_ERROR}) already exists' using errcode = '23505'; end $$;"
            "create trigger refuse before insert on herald.scenario_notification for each row "
            "execute function app.refuse();"
        )
        self.act("unrecorded")
        daemon.wait_for_event("record_failed")
        self.take_pages(daemon, "while no record is taken")
        self.spool("while no record is taken", daemon)
        self.db.execute("drop trigger refuse on herald.scenario_notification")
        wait_for(lambda: self.status("unrecorded") == "sent")
        original = self.db.execute("select pg_get_viewdef('herald.source_activity'::regclass)").fetchone()
        assert original is not None
        self.db.execute(
            "create or replace view herald.source_activity as select a.id::text as activity_id, a.user_id, "
            f"a.activity_type, case when a.activity_type = 'cause' then '{IN_AN_ERROR}'::text::timestamptz "
            "else a.occurred_at end as occurred_at, a.flags from app.activity as a"
        )
        self.organisation.activity(self.organisation.mentor(), "cause")
        daemon.wait_for_event("evaluation_failed")
        self.db.execute(f"create or replace view herald.source_activity as {original[0]}".encode())

    def reload_nonsense(self, daemon: Daemon, settings_file: Path) -> None:
        good = settings_file.read_text()
        for at, text in enumerate(
            (
                f"PGHERALD_MAX_RATE={canaries.DEVICE_TOKEN}\n",
                f"postgresql://u:{MISTYPED}@db/app\n",
                f"PGHERALD_FCM_ENDPOINT=https://{canaries.BEARER}@fcm.example\n",
                f"PGHERALD_TOKEN={canaries.BEARER}\n",
            )
        ):
            settings_file.write_text(text)
            daemon.send(signal.SIGHUP)
            daemon.wait_for_event("reload_refused", count=at + 1)
        settings_file.write_text(good)

    def crash(self) -> None:
        """The program itself has a bug: its exceptions hold all that it knows."""
        for name, bug in BUGS.items():
            log_path = self.directory / f"{name}.log"
            environment = {key: value for key, value in os.environ.items() if not key.startswith(("PGHERALD_", "PG"))}
            environment |= {
                "PGHERALD_DATABASE_URL": self.dsn,
                "PGHERALD_STATE_DIR": str(self.directory / name),
                "PGHERALD_METRICS_LISTEN": "127.0.0.1:0",
                "PGHERALD_LOG_LEVEL": "debug",
                "PGHERALD_SCHEDULER": "off",
                **self.emulator.environment,
            }
            with log_path.open("wb") as log:
                process = subprocess.Popen([sys.executable, "-c", bug + RUN], env=environment, stdout=log, stderr=log)
            try:
                self.act(f"a bug {name}")
                wait_for(lambda log=log_path, it=process: _is_over(log.read_bytes(), it), otherwise=log_path.read_text)  # type: ignore[misc]
            finally:
                process.kill()
                process.wait(PATIENCE)
            self.written.daemon[f"log of a bug {name}"] = log_path.read_bytes()

    def ask_every_command(self) -> None:
        """Each command that reads or writes, as it is meant."""
        pgherald = Command(
            {
                "PGHERALD_DATABASE_URL": self.dsn,
                "PGHERALD_STATE_DIR": str(self.directory / "doctor"),
                **self.emulator.environment,
            }
        )
        person = self.people["fine on ios"]
        for arguments in (
            *(("status",), ("status", "--json"), ("describe",), ("evaluate",), ("evaluate", "--json")),
            *(("preview", canaries.NAME), ("backtest", canaries.NAME), ("why", person, "milestone")),
            *(("failed", "list"), ("failed", "list", "--json"), ("unknown", "list"), ("unknown", "list", "--json")),
            *(("pause",), ("resume",), ("failed", "retry", "--all"), ("unknown", "resolve", "--all", "--sent")),
            *(("send-test", person), ("send-test", person, "--json"), ("send-test", person, "--really")),
            *(("send-test", self.people["invalid-"]), ("send-test", self.people["echo-"], "--json")),
            *(("tokens", "list"), ("tokens", "verify", "--json"), ("tokens", "verify", "--even-if-many")),
            *(("tokens", "prune"), ("doctor", "--verbose"), ("doctor", "--json")),
        ):
            self.ask(pgherald, *arguments)

    def get_everything_wrong(self) -> None:
        """Each command with a secret where it does not belong, and with each kind of wrong settings."""
        key = self.directory / "broken.json"
        content = json.loads(self.emulator.credentials_path.read_text())
        content["private_key"] = content["private_key"].replace("\n", "\\n")[:200]
        key.write_text(json.dumps(content))
        good = {"PGHERALD_DATABASE_URL": self.dsn, "PGHERALD_STATE_DIR": "/dev/null/x", **self.emulator.environment}
        wrong = [
            {"PGHERALD_DATABASE_URL": f"postgresql://u:{MISTYPED}@x@127.0.0.1/app"},
            {"PGHERALD_DATABASE_URL": f"{MISTYPED} host=127.0.0.1"},
            {"PGHERALD_DATABASE_URL": make_conninfo(self.dsn, password=MISTYPED)},
            {"PGHERALD_LISTEN_URL": f"postgresql://u:{MISTYPED}"},
            {"PGHERALD_FCM_CREDENTIALS": self.emulator.credentials_path.read_text()},
            {"PGHERALD_FCM_CREDENTIALS": str(key)},
            {"PGHERALD_FCM_ENDPOINT": f"https://{canaries.BEARER}@fcm.example"},
            {"PGHERALD_MAX_RATE": canaries.DEVICE_TOKEN, "PGHERALD_BEARER": canaries.BEARER},
        ]
        commands: tuple[tuple[object, ...], ...] = (
            *(("migrate",), ("status",), ("doctor",), ("describe",), ("evaluate",), ("failed", "list")),
            *(("tokens", "verify"), ("send-test", self.people["fine on ios"]), ("unknown", "list"), ("pause",)),
        )
        for settings in wrong:
            for command in commands:
                self.ask(Command(good | settings), *command)
            self.start_in_vain(good | settings)
        for arguments in (
            *(("why", canaries.DEVICE_TOKEN, "milestone"), ("send-test", canaries.DEVICE_TOKEN)),
            *(("failed", "retry", canaries.DEVICE_TOKEN), ("unknown", "resolve", canaries.BEARER, "--sent")),
            *(("tokens", "prune", "--unseen-for", canaries.DEVICE_TOKEN), ("evaluate", "--now", canaries.TEXT)),
        ):
            self.ask(Command(good), *arguments)

    def ask(self, pgherald: Command, *arguments: object) -> None:
        answer = pgherald(*arguments)
        place = f"{len(self.written.commands)}: pgherald {' '.join(map(str, arguments[:2]))}"
        self.written.commands[place] = (answer.out + answer.err).encode()

    def start_in_vain(self, settings: dict[str, str]) -> None:
        ran = subprocess.run(
            [sys.executable, "-m", "pgherald.cli", "run"],
            env={"PATH": os.environ["PATH"], "PGHERALD_METRICS_LISTEN": "127.0.0.1:0", **settings},
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ran.returncode == 78, ran.stderr
        self.written.commands[f"{len(self.written.commands)}: pgherald run"] = ran.stdout + ran.stderr

    def take_pages(self, daemon: Daemon, when: str) -> None:
        for path in ("/metrics", "/readyz", "/healthz"):
            self.written.pages[f"{path} {when}"] = daemon.get(path)[1].encode()

    def keep(self, name: str, daemon: Daemon) -> None:
        self.written.daemon[f"log of {name}"] = daemon.log_path.read_bytes()
        self.spool("at the end", daemon)

    def spool(self, when: str, daemon: Daemon) -> None:
        self.written.daemon |= {f"{path} {when}": text for path, text in canaries.files_under(daemon.state_dir).items()}

    def codes(self) -> set[str | None]:
        rows = self.db.execute("select distinct error_code from herald.scenario_prompt_history").fetchall()
        return {row[0] for row in rows}

    def rows(self) -> dict[str, bytes]:
        """Every table but those whose own content these secrets are, and what the server tells of its sessions."""
        tables = ("scenario_prompt_history", "scenario_notification", "prompt", "evaluation_run", "touched_user")
        queries = {table: f"select t::text from herald.{table} as t" for table in tables} | {
            "pg_stat_activity": "select coalesce(a.query, '') from pg_stat_activity as a "
            "where a.application_name like 'pgherald%'"
        }
        self.written.codes = self.codes()
        return {
            place: "\n".join(row[0] for row in self.db.execute(query.encode()).fetchall()).encode()
            for place, query in queries.items()
        }
