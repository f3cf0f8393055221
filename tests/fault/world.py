"""One database, one FCM and any number of daemons to do harm to: what every fault test is made of.

Nothing is imitated but FCM, and that at the socket: daemons are child processes, Postgres is real, the emulator is a
process of its own whose log file is written before it answers. That file is the truth that the records are held against
(`tests.fault.invariants`). Whatever must stay secret carries a canary, and whatever must not show it is searched.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
import zlib
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

import psycopg

from tests.fault import claims
from tests.support import canaries
from tests.support import daemon as daemons
from tests.support.postgres import DAEMON_LOGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from pgherald.emulator.client import EmulatorClient
    from tests.support.postgres import Database

FULL: Final = os.environ.get("FAULT") == "full"
"""Whether everything runs (`make fault`), or the quick part (`make test`)."""

ORGANISATION: Final = UUID("00000000-0000-0000-0000-0000000000aa")
CHAPTER: Final = UUID("00000000-0000-0000-0000-0000000000c1")

DEADLINE: Final = 2.5
"""Seconds for one send, unless a test says otherwise: longer than it takes by itself on a machine that is starved. A
claim is then good for ten, and given up after one more such; if its owner is dead nobody waits for that (`rest`)."""

SETTLED: Final = 120.0
"""Seconds in which a system that is left in peace has come to rest, on a slow machine too."""


FRAME: Final = b"\xffHS\x01"
"""How each entry of a spool begins."""


def wait_until(holds: Callable[[], bool], what: str, seconds: float = SETTLED) -> None:
    """Return once it holds; TimeoutError, with what was waited for, when it does not in time."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def spooled_prompts(state_dir: Path) -> set[UUID]:
    """The prompts in a spool on disk, read without the program's own code, as its module describes the frames."""
    found: set[UUID] = set()
    for path in (state_dir / "spool").glob("*.spool"):
        with suppress(FileNotFoundError):
            data = path.read_bytes()
            at = data.find(FRAME)
            while at >= 0:
                head = data[at : at + 16]
                if len(head) == 16:
                    length, checksum = struct.unpack_from("<II", head, 4)
                    payload = data[at + 16 : at + 16 + length]
                    if len(payload) == length and zlib.crc32(payload) == checksum:
                        found.add(UUID(json.loads(payload)["prompt_id"]))
                at = data.find(FRAME, at + 1)
    return found


def program(variant: str | None = None) -> tuple[str, ...]:
    """The command of a daemon: the real one, or the naive one of that name (tests/fault/naive.py) in its place."""
    module = ("pgherald.cli", "run") if variant is None else ("tests.fault.naive", variant)
    return (sys.executable, "-m", *module)


@dataclass(kw_only=True)
class Daemon(daemons.Daemon):
    """One that may be killed, and whose log may hold more than its own events: a wrapper's words, or a traceback."""

    name: str
    killed: bool = False

    def start(self, *, ready: bool = True) -> Self:
        self.killed = False
        return super().start(ready=ready)

    @property
    def owners(self) -> set[str]:
        """How this process calls itself in its claims, a wrapper or not."""
        return {
            f"{socket.gethostname()}:{pid}" for pid in (self.pid, *(each["pid"] for each in self.events("starting")))
        }

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        found = []
        for line in self.log.splitlines():
            if f'"event":"{name or ""}' in line:
                with suppress(ValueError):
                    found.append(json.loads(line))
        return [each for each in found if name in (None, each["event"])]

    def kill(self) -> None:
        super().kill()
        self.killed = True


@dataclass(frozen=True, slots=True)
class Push:
    """One line of the emulator's log."""

    token: str
    notification_id: UUID
    collapse: str
    name: str
    received_at: datetime


@dataclass(slots=True)
class World:
    """What one test plays with. Everything that it started ends with it."""

    database: Database
    fcm: EmulatorClient
    fcm_log: Path
    directory: Path
    tcp: bool = False
    deadline: float = DEADLINE
    daemons: dict[str, Daemon] = field(default_factory=dict)
    spooled: set[UUID] = field(default_factory=set)
    acted: list[UUID] = field(default_factory=list)
    payloads: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    lost_touch: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    ended_sessions: set[int] = field(default_factory=set)
    crashes: int = 0
    first_lives: int = 0
    _fcm_start: int = 0
    _pg_start: int = 0
    _open: ExitStack = field(default_factory=ExitStack)
    _people: int = 0
    _db: psycopg.Connection | None = None

    def __enter__(self) -> Self:
        self._fcm_start = self.fcm_log.stat().st_size if self.fcm_log.exists() else 0
        log = self.database.server.cluster.log_file
        self._pg_start = log.stat().st_size if log.exists() else 0
        db = self.db
        db.execute("insert into herald.message_text values ('milestone.title', 'en', %s)", (canaries.TEXT,))
        db.execute("insert into app.organisation (id, name) values (%s, %s)", (ORGANISATION, canaries.NAME))
        db.execute(
            "insert into app.chapter (id, organisation_id, name) values (%s, %s, %s)",
            (CHAPTER, ORGANISATION, canaries.EMAIL),
        )
        db.execute(claims.LOG.encode())
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self.daemons.values():
            daemon.kill()
        self._open.close()
        if self._db is not None:
            self._db.close()

    @property
    def db(self) -> psycopg.Connection:
        """A superuser's connection, made anew when the server took the last one with it."""
        if self._db is None or self._db.broken or self._db.closed:
            self._db = psycopg.connect(self.database.dsn, autocommit=True)
        return self._db

    def ask(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement; asked again while the server is away."""
        until = time.monotonic() + SETTLED
        while True:
            try:
                return self.db.execute(statement.encode(), parameters).fetchall()
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def scenario(self, **columns: Any) -> UUID:
        """A push at the first activity, at most one a week."""
        values: dict[str, Any] = {
            "scenario_type": "milestone",
            "params": json.dumps({"counts": [1]}),
            "organisation_id": ORGANISATION,
            "name": canaries.NAME,
            "title_key": "milestone.title",
            "body_key": "milestone.body",
            **columns,
        }
        names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
        rows = self.ask(
            f"insert into herald.scenario ({names}) values ({marks}) returning scenario_id", list(values.values())
        )
        found: UUID = rows[0][0]
        return found

    def people(self, count: int, prefix: str = "", devices: int = 1, platform: str = "android") -> list[UUID]:
        """People with a device each, whose tokens begin with `prefix` and carry the canary."""
        first = self._people
        self._people += count
        rows = self.ask(
            "with made as ("
            "  insert into app.peer_mentor (chapter_id, time_zone) select %s, 'UTC' from generate_series(1, %s) "
            "  returning user_id"
            "), numbered as (select m.user_id, row_number() over () + %s as n from made as m"
            "), told as ("
            "  insert into herald.device_token (user_id, token, platform)"
            "  select n.user_id, %s || %s || '-' || n.n || '-' || d, %s from numbered as n, generate_series(1, %s) as d"
            ") select n.user_id from numbered as n order by n.n",
            (CHAPTER, count, first, prefix, f"{canaries.DEVICE_TOKEN}-{self.database.name}", platform, devices),
        )
        return [row[0] for row in rows]

    def act(self, people: Iterable[UUID]) -> None:
        """Each of them does something for the first time, in one transaction: a push is due."""
        people = list(people)
        self.acted += people
        self.ask(
            "insert into app.activity (user_id, activity_type, flags) select u, 'contact', array[%s] "
            "from unnest(%s::uuid[]) as u returning user_id",
            (canaries.TOLD, people),
        )

    def daemon(
        self,
        name: str = "one",
        *,
        variant: str | None = None,
        wrapper: Sequence[str] = (),
        start: bool = True,
        state_dir: Path | None = None,
        dsn: str | None = None,
        fcm: EmulatorClient | None = None,
        **settings: str,
    ) -> Daemon:
        """A daemon; `settings` are PGHERALD_ ones in lower case, or other variables in upper case."""
        state_dir = state_dir or self.directory / f"state-{name}"
        own = {
            "PYTHONPATH": str(daemons.ROOT / "daemon"),
            "PYTHONFAULTHANDLER": "1",
            "PGHERALD_SEND_DEADLINE": str(self.deadline),
            "PGHERALD_POLL_INTERVAL": "1",
            **{key if key.isupper() else f"PGHERALD_{key.upper()}": value for key, value in settings.items()},
        }
        made = Daemon(
            environment=daemons.environment_of(
                dsn or self.database.dsn_as(DAEMON_LOGIN, tcp=self.tcp), state_dir, fcm or self.fcm, **own
            ),
            state_dir=state_dir,
            log_path=self.directory / f"{name}.log",
            command=(*wrapper, *program(variant)),
            patience=SETTLED,
            name=name,
        )
        self.daemons[name] = made
        self.first_lives += 1
        return made.start() if start else made

    def kill(self, daemon: Daemon) -> None:
        """SIGKILL, and note what its spool holds at that moment: those records must come."""
        self.lost_touch |= daemon.owners
        self.dead |= daemon.owners
        daemon.kill()
        self.crashes += 1
        self.note_spool(daemon)

    def hang_up(self) -> None:
        """End the sessions of all daemons. The server would still carry out what a dead one had asked for."""
        rows = self.ask(
            "select pid, pg_terminate_backend(pid, 10000) from pg_stat_activity "
            "where usename = %s and datname = current_database()",
            (DAEMON_LOGIN,),
        )
        self.ended_sessions |= {row[0] for row in rows}

    def note_spool(self, daemon: Daemon) -> set[UUID]:
        found = spooled_prompts(daemon.state_dir)
        self.spooled |= found
        return found

    def restart(self, daemon: Daemon) -> None:
        """Start it again, and measure from there to READY: spool replayed, listening, nothing left to do."""
        daemon.start()
        self.recoveries.append(time.monotonic() - daemon.started_at)

    def pushes(self) -> list[Push]:
        """What FCM accepted since this world began."""
        with self.fcm_log.open("rb") as log:
            log.seek(self._fcm_start)
            written = log.read()
        lines = written[: written.rfind(b"\n") + 1].splitlines()  # the last one may still be on its way
        found = []
        for line in lines:
            content = json.loads(line)
            message = content["message"]
            if self.database.name not in (content["token"] or "") and not content["token"].startswith("odd"):
                continue
            android = message.get("android", {}).get("notification", {}).get("tag")
            apns = message.get("apns", {}).get("headers", {}).get("apns-collapse-id")
            found.append(
                Push(
                    content["token"],
                    UUID(message["data"]["notification_id"]),
                    android or apns or "",
                    content["name"],
                    datetime.fromisoformat(content["received_at"]),
                )
            )
        return found

    def wait_for_pushes(self, count: int, seconds: float = SETTLED) -> None:
        wait_until(lambda: len(self.pushes()) >= count, f"{count} pushes", seconds)

    def statuses(self) -> dict[str, int]:
        return dict(self.ask("select status, count(*)::int from herald.prompt group by status"))

    def rest(self, seconds: float = SETTLED, *, time_passes: bool = False, spools: bool = True) -> None:
        """Wait until nothing is open: nobody touched, nothing ready or sending, no record owed by a running daemon.

        For the claims of those who were killed the time passes at once, for nobody can act on them any more.
        `time_passes`: what waits for its next try is due at once, as if its time had come. `spools`: the records too.
        """

        def at_rest() -> bool:
            self.ask(
                "update herald.prompt set deadline = now() - interval '1 hour' "
                "where status = 'sending' and owner = any(%s) and deadline > now() returning 1",
                (list(self.dead),),
            )
            if time_passes:
                self.ask(
                    "update herald.prompt set not_before = now() where status = 'ready' and not_before > now() "
                    "and not_before < 'infinity' returning 1"
                )
            (row,) = self.ask(
                "select (select count(*) from herald.touched_user), count(*) from herald.prompt "
                "where status in ('ready', 'sending') and not_before < 'infinity'"
            )
            return row == (0, 0)

        wait_until(at_rest, f"rest; {self.statuses()}", seconds)
        alive = [each for each in self.daemons.values() if each.running and spools]
        wait_until(
            lambda: all(each.metric("pgherald_spool_entries") == 0 for each in alive),
            "empty spools",
            seconds,
        )

    def postgres_log(self) -> str:
        """What the server wrote since this world began."""
        with self.database.server.cluster.log_file.open("rb") as log:
            log.seek(self._pg_start)
            return log.read().decode(errors="replace")

    def secrets(self) -> Mapping[str, str]:
        """What must be found nowhere, by kind."""
        return canaries.secrets_of(self.fcm.credentials_path, self.database.dsn_as(DAEMON_LOGIN, tcp=True))
