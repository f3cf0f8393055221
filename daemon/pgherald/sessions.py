"""Sessions with Postgres that last: `Locks` for the daemon's advisory locks, `ListenSession` for LISTEN.

Each has a direct connection of its own, whose death is noticed within seconds. A pooler in transaction mode cannot give
a session; what needs none goes through the pool of `pgherald.store`. Used by the worker, the scheduler, the listener.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import anyio
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

#: Advisory locks (classid, objid). AWAKE: held while a daemon looks for work by itself; the triggers of watched tables
#: test it. SCHEDULER: held by the one daemon that runs the schedule.
AWAKE: Final = (1751479908, 1)
SCHEDULER: Final = (1751479908, 2)

#: By these TCP notices a dead connection: within about nine seconds, however the server or the network died.
KEEPALIVES: Final[Mapping[str, int]] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 9000,
    "connect_timeout": 5,
}

#: The keepalives of the server's end, or the locks of a machine that is gone would keep others waiting: by default a
#: server asks after two hours. And what the login or the database may have set otherwise: serializable, claims and
#: records would fail now and then, to be tried again; without nulls in arrays, no outcome can be written.
_OWN_SETTINGS: Final = """
select pg_catalog.set_config(k.name, k.value, false)
from (
  values
    ('tcp_keepalives_idle', '5'),
    ('tcp_keepalives_interval', '2'),
    ('tcp_keepalives_count', '2'),
    ('tcp_user_timeout', '9000'),
    ('default_transaction_isolation', 'read committed'),
    ('array_nulls', 'on')
) as k (name, value)
"""

#: Errors that say nothing about the rows in hand: the connection, the server's resources, or another transaction.
PASSING_ERRORS: Final = (psycopg.OperationalError, psycopg.InterfaceError)

#: Whatever the database can answer with.
STORE_ERRORS: Final = (psycopg.Error,)

#: Seconds that a server may take for what it does at once.
_ANSWER_PATIENCE: Final = 20.0

#: Seconds within which a NOTIFY must come back to a session that stands behind a pooler.
_PROOF_PATIENCE: Final = 2.0

#: Seconds until a pooler that gave no session is asked again: somebody has to change a setting first.
POOLER_PATIENCE: Final = 60.0


class Locks:
    """Advisory locks of this daemon, on one direct connection that is made when it is needed.

    Nothing here raises. When the database is away no lock is held; that costs speed, and nothing goes wrong.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._turn = anyio.Lock()
        self._held: set[tuple[int, int]] = set()
        self._pooled_until = 0.0

    async def aclose(self) -> None:
        """Let all go."""
        connection, self._connection = self._connection, None
        self._held.clear()
        if connection is not None:
            await connection.close()

    async def stay_awake(self) -> None:
        """Take the lock that keeps writers from ringing. If another daemon has it, that serves as well."""
        await self._take(AWAKE)

    async def fall_asleep(self) -> int | None:
        """Let writers ring again. Returns the next transaction id that the server will give out: every transaction that
        may have seen the lock held has a lower one. None if the lock was not held."""
        if AWAKE not in self._held:
            return None
        self._held.discard(AWAKE)
        async with self._turn:
            try:
                with anyio.fail_after(_ANSWER_PATIENCE):
                    connection = await self._session()
                    await connection.execute("select pg_catalog.pg_advisory_unlock(%s, %s)", AWAKE)
                    cursor = await connection.execute(
                        "select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint"
                    )
                    row = await cursor.fetchone()
            except (*STORE_ERRORS, OSError, TimeoutError):
                await self.aclose()
                return None
        return None if row is None else int(row[0])

    async def lead(self) -> bool:
        """Become, or stay, the one daemon that runs the schedule.

        Behind a pooler that gives no session the answer is always True, so that each daemon runs it: there a lock would
        stay in the pooler when this daemon dies, and runs may overlap.
        """
        return await self._take(SCHEDULER) or self._is_behind_pooler()

    async def _take(self, lock: tuple[int, int]) -> bool:
        if self._is_behind_pooler():
            return False
        async with self._turn:
            try:
                with anyio.fail_after(_ANSWER_PATIENCE):
                    connection = await self._session()
                    if lock in self._held:
                        if lock is SCHEDULER:
                            await connection.execute("select 1")  # it is held as long as the connection is there
                        return True
                    cursor = await connection.execute("select pg_catalog.pg_try_advisory_lock(%s, %s)", lock)
                    row = await cursor.fetchone()
            except (*STORE_ERRORS, OSError, TimeoutError):
                await self.aclose()
                return False
        if row is not None and row[0]:
            self._held.add(lock)
        return lock in self._held

    async def _session(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._held.clear()
            self._connection = await _connect(self._conninfo, "pgherald locks")
            if not await _has_session(self._connection, self._conninfo):
                self._pooled_until = time.monotonic() + POOLER_PATIENCE
                raise NoSession("a pooler in between gives no session")
            await set_up(self._connection)
        return self._connection

    def _is_behind_pooler(self) -> bool:
        return time.monotonic() < self._pooled_until


class NotListening(psycopg.OperationalError):
    """The session answers, but LISTEN is not in force."""


class NoSession(NotListening):
    """A pooler stands in between that gives no session, such as pgbouncer in transaction mode."""


class ListenSession:
    """One direct connection that listens to one channel. It must be read all the time, or NOTIFY's queue fills up."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], channel: str) -> None:
        self._connection = connection
        self._channel = channel

    @classmethod
    @asynccontextmanager
    async def open(cls, conninfo: str, channel: str) -> AsyncIterator[ListenSession]:
        """Connect and LISTEN. TimeoutError where the server says nothing."""
        connection = await _connect(conninfo, "pgherald listener")
        try:
            with anyio.fail_after(_ANSWER_PATIENCE):
                if not await _has_session(connection, conninfo):
                    raise NoSession("a pooler in between gives no session")
                await set_up(connection)
                await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            yield cls(connection, channel)
        finally:
            await connection.close()

    @property
    def pid(self) -> int:
        """The backend's process id."""
        return self._connection.info.backend_pid

    async def notified(self, seconds: float) -> bool:
        """Wait for a notification, at most so long; without one, make sure that the session still listens.

        Raises NotListening, TimeoutError or a psycopg error when it does not.
        """
        async for _ in self._connection.notifies(timeout=seconds, stop_after=1):
            return True
        with anyio.fail_after(seconds):
            cursor = await self._connection.execute(
                "select %s in (select c.channel from pg_catalog.pg_listening_channels() as c (channel))",
                (self._channel,),
            )
            row = await cursor.fetchone()
        if row is None or not row[0]:
            raise NotListening("LISTEN is not in force in this session")
        return False


async def is_pooled(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether a pooler stands in between: the backend that answers has another pid than the greeting said."""
    cursor = await connection.execute("select pg_catalog.pg_backend_pid()")
    row = await cursor.fetchone()
    return row is None or row[0] != connection.info.backend_pid


async def set_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """Set what the daemon relies on, in a session of its own: a pooler would hand it on to others."""
    await connection.execute(_OWN_SETTINGS)


async def _has_session(connection: psycopg.AsyncConnection[Any], conninfo: str) -> bool:
    """Whether this connection keeps one backend to itself, so that LISTEN and advisory locks of it hold.

    Behind a pooler that is proven by a NOTIFY of another connection, which in transaction mode is never passed on.
    """
    if not await is_pooled(connection):
        return True
    channel = f"herald_proof_{token_hex(8)}"
    await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
    async with await _connect(conninfo, "pgherald proof") as other:
        await other.execute("select pg_catalog.pg_notify(%s, '')", (channel,))
    heard = [each async for each in connection.notifies(timeout=_PROOF_PATIENCE, stop_after=1)]
    await connection.execute(sql.SQL("unlisten {}").format(sql.Identifier(channel)))
    return bool(heard)


async def _connect(conninfo: str, name: str) -> psycopg.AsyncConnection[Any]:
    """A connection of one's own, autocommit, whose death is noticed within seconds."""
    return await psycopg.AsyncConnection.connect(
        make_conninfo(conninfo, application_name=name, client_encoding="UTF8", **KEEPALIVES), autocommit=True
    )
