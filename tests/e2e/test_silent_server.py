"""A server or a pooler that is there and says nothing: what is asked is called off, or its connection given up."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import PoolTimeout

from pgherald.sessions import ListenSession, Locks
from pgherald.store import CalledOff, Store
from tests.support.daemon import running_daemon
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    import psycopg

    from pgherald.emulator.client import EmulatorProcess
    from pgherald.model import Prompt
    from tests.support.postgres import Database

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    async with Store(database.daemon_dsn) as made:
        yield made


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


async def claim(store: Store) -> Sequence[Prompt]:
    return (await store.claim("a test", 100, timedelta(minutes=1))).prompts


async def claim_in_the_end(store: Store) -> Sequence[Prompt]:
    """What a claim answers, of those tried until one is not called off: on a new connection, and on a machine that has
    others to serve, any may take longer than a test's short patience."""
    with anyio.fail_after(60):
        while True:
            with suppress(CalledOff):
                return await claim(store)


class Mute:
    """Does not answer the first question of so many new connections."""

    def __init__(self, connections: int) -> None:
        self.connections = connections

    async def __call__(self, _: psycopg.AsyncConnection[Any]) -> bool:
        self.connections -= 1
        if self.connections >= 0:
            await anyio.sleep_forever()
        return False


@contextmanager
def stopped_sessions(db: psycopg.Connection, name: str) -> Iterator[None]:
    """While it lasts, the server's side of these sessions is there and says nothing."""
    rows = db.execute(
        "select pid from pg_stat_activity where application_name = %s and datname = current_database()", (name,)
    ).fetchall()
    assert rows
    for (pid,) in rows:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for (pid,) in rows:
            os.kill(pid, signal.SIGCONT)


async def test_connections_whose_server_says_nothing_are_given_up_for_others(
    store: Store, organisation: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
    assert (await store.waiting()).ready
    monkeypatch.setattr("pgherald.store.CLAIM_PATIENCE", 1.0)
    monkeypatch.setattr("pgherald.store.CANCEL_PATIENCE", 0.5)
    refused = 0
    with stopped_sessions(organisation.db, "pgherald"), anyio.fail_after(60):
        while True:
            try:
                prompts = await claim(store)
            except TimeoutError:
                refused += 1
            else:
                break
        assert len(prompts) == 1
    assert refused > 0


async def test_a_claim_that_takes_too_long_takes_nothing(
    store: Store, organisation: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
    monkeypatch.setattr("pgherald.store.CLAIM_PATIENCE", 0.2)
    with organisation.db.transaction():
        organisation.db.execute("lock table herald.prompt in exclusive mode")
        with anyio.fail_after(60), pytest.raises(CalledOff):
            await claim(store)
    monkeypatch.undo()
    assert len(await claim(store)) == 1


async def test_a_claim_that_the_server_itself_cancels_is_called_off_too(
    database: Database, organisation: Organisation
) -> None:
    organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
    async with Store(make_conninfo(database.daemon_dsn, options="-c statement_timeout=200")) as store:
        with organisation.db.transaction():
            organisation.db.execute("lock table herald.prompt in exclusive mode")
            with pytest.raises(CalledOff):
                await claim(store)
        assert len(await claim_in_the_end(store)) == 1


async def test_a_claim_that_was_committed_though_it_was_called_off_is_answered(
    store: Store, organisation: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
    # As where a commit waits for a standby that is away: told to end, the server ends the waiting, not what was done.
    organisation.db.execute("""
        create function public.wait_a_while() returns trigger language plpgsql as $$
        begin
          perform pg_catalog.pg_sleep(60);
          return new;
        exception when query_canceled then
          return new;
        end $$;
        create trigger wait_a_while before update on herald.prompt
        for each row when (new.status = 'sending') execute function public.wait_a_while();
    """)
    monkeypatch.setattr("pgherald.store.CLAIM_PATIENCE", 0.2)
    assert len(await claim_in_the_end(store)) == 1


@pytest.mark.parametrize("asked", [Store.evaluate, Store.maintain])
async def test_a_scheduled_run_and_a_deletion_whose_server_says_nothing_are_given_up_in_the_end(
    store: Store,
    db: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    asked: Callable[[Store], Awaitable[object]],
) -> None:
    await asked(store)
    monkeypatch.setattr("pgherald.store.RUN_PATIENCE", 0.2)
    monkeypatch.setattr("pgherald.store.CANCEL_PATIENCE", 0.2)
    with stopped_sessions(db, "pgherald"), anyio.move_on_after(30) as scope, pytest.raises(TimeoutError):
        await asked(store)
    assert not scope.cancelled_caught
    monkeypatch.undo()
    await asked(store)


async def test_a_lock_whose_server_says_nothing_is_not_held_and_had_again(
    database: Database, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = Locks(database.daemon_dsn)
    assert await locks.lead()
    with stopped_sessions(db, "pgherald locks"):
        monkeypatch.setattr("pgherald.sessions._ANSWER_PATIENCE", 0.2)
        with anyio.fail_after(60):
            assert not await locks.lead()
        monkeypatch.undo()
    with anyio.fail_after(60):
        while not await locks.lead():  # noqa: ASYNC110 - the server sets no event
            await anyio.sleep(0.05)
    await locks.aclose()


async def test_new_connections_whose_first_question_is_never_answered_are_given_up_for_another(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgherald.store.is_pooled", mute := Mute(2))
    monkeypatch.setattr("pgherald.store.ANSWER_PATIENCE", 0.2)
    with anyio.fail_after(30):
        async with Store(database.daemon_dsn) as store:
            while True:
                with suppress(PoolTimeout, CalledOff):  # what is asked has no more patience than a new connection
                    await store.waiting()
                    break
    assert mute.connections < 0


async def test_a_listener_whose_first_question_is_never_answered_is_given_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgherald.sessions.is_pooled", Mute(1))
    monkeypatch.setattr("pgherald.sessions._ANSWER_PATIENCE", 0.2)
    with anyio.move_on_after(30) as scope, pytest.raises(TimeoutError):
        async with ListenSession.open(database.daemon_dsn, "herald"):
            pass
    assert not scope.cancelled_caught
    monkeypatch.undo()
    async with ListenSession.open(database.daemon_dsn, "herald") as session:
        assert not await session.notified(0.2)


def test_a_stop_while_the_database_says_nothing_at_the_start_is_an_orderly_one(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://daemon@127.0.0.1:{silent.getsockname()[1]}/app"
        with running_daemon(dsn, emulator, tmp_path, ready=False) as daemon:
            asked, _ = silent.accept()
            with asked:
                daemon.send(signal.SIGTERM)
                assert daemon.wait() == 0
            assert [line["event"] for line in daemon.events()] == ["stopping", "stopped"]
