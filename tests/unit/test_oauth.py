"""The access token stays fresh, whatever its endpoint does."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import anyio
import orjson
import pytest

from pgherald import oauth as oauth_module
from pgherald.oauth import NoOAuthToken, OAuth, load_credentials
from tests.support.raw_server import Peer, RawServer, http_answer, raw_server, until
from tests.support.service_account import key_file
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    import io
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


anyio_test = pytest.mark.anyio


def granted(token: str, expires_in: Any = 3600) -> bytes:
    return http_answer(200, orjson.dumps({"access_token": token, "expires_in": expires_in, "token_type": "Bearer"}))


@asynccontextmanager
async def endpoint(
    tmp_path: Path, answer: Callable[[Peer, int], Awaitable[None]]
) -> AsyncIterator[tuple[OAuth, RawServer]]:
    """An OAuth whose token endpoint answers as told: `answer` gets the connection, and which request it is, from 1."""
    count = 0

    async def script(peer: Peer) -> None:
        nonlocal count
        await peer.request()
        count += 1
        await answer(peer, count)

    async with raw_server(script) as server:
        path = key_file(tmp_path / "fcm.json", token_uri=f"http://127.0.0.1:{server.port}/token")
        credentials, _ = load_credentials(path, None)
        yield OAuth(credentials), server


async def number(peer: Peer, count: int) -> None:
    await peer.send(granted(f"token-{count}"))


async def silence(peer: Peer, _: int) -> None:
    while await peer.read():
        pass


@anyio_test
async def test_a_token_is_fetched_once_and_then_read_from_memory(tmp_path: Path) -> None:
    async with endpoint(tmp_path, number) as (oauth, server):
        assert oauth.expiry_timestamp == 0
        assert [await oauth.token() for _ in range(5)] == ["token-1"] * 5
        assert oauth.expiry_timestamp == pytest.approx(time.time() + 3600, abs=5)
        assert server.seen(b"POST /token") == 1
        assert server.seen(b"grant-type%3Ajwt-bearer") == 1


@anyio_test
async def test_a_proxy_that_the_environment_names_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it for sending: with a proxy that is down, sending would work, and be without a token."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with endpoint(tmp_path, number) as (oauth, _):
        assert await oauth.token() == "token-1"


@asynccontextmanager
async def renewing(oauth: OAuth) -> AsyncIterator[None]:
    """`OAuth.run` at work, as in the daemon; it has a first token when the block begins."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(oauth.run)
        await until(lambda: bool(oauth.cached))
        yield
        tasks.cancel_scope.cancel()


@anyio_test
@pytest.mark.parametrize("around", [renewing, nullcontext], ids=["in the daemon", "in a command"])
async def test_many_who_need_a_token_cause_one_request(
    tmp_path: Path, around: Callable[[OAuth], AbstractAsyncContextManager[None]]
) -> None:
    async with endpoint(tmp_path, number) as (oauth, server), around(oauth):
        tokens: list[str] = []

        async def first() -> None:
            tokens.append(await oauth.token())

        async def again() -> None:
            tokens.append(await oauth.refresh("token-1"))

        for each in (first, again):
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(each)
        assert tokens == ["token-1"] * 50 + ["token-2"] * 50
        assert len(server.peers) == 2


@anyio_test
async def test_a_storm_of_401_is_no_storm_of_renewals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint(tmp_path, number) as (oauth, server):
        assert await oauth.token() == "token-1"
        assert await oauth.refresh("token-1") == "token-2"
        monkeypatch.setattr(oauth_module, "FORCED_PAUSE", 3600.0)  # all of this happens within the pause
        for _ in range(100):
            with pytest.raises(NoOAuthToken) as caught:
                await oauth.refresh("token-2")
            assert caught.value.reason == "renewed_a_moment_ago"
        assert len(server.peers) == 2
        assert await oauth.token() == "token-2"


@anyio_test
async def test_a_401_is_healed_by_an_endpoint_slower_than_all_who_wait_for_it(tmp_path: Path) -> None:
    answering = asyncio.Event()

    async def slow(peer: Peer, count: int) -> None:
        if count > 1:
            await answering.wait()
        await number(peer, count)

    async with endpoint(tmp_path, slow) as (oauth, server), renewing(oauth):
        for _ in range(3):
            with anyio.move_on_after(0.05) as gave_up:
                await oauth.refresh("token-1")
            assert gave_up.cancelled_caught
        await until(lambda: len(server.peers) == 2)
        answering.set()
        await until(lambda: oauth.cached == "token-2")
        assert len(server.peers) == 2


@anyio_test
async def test_after_a_401_each_failure_is_logged_once_and_tried_again_though_nobody_waits(
    tmp_path: Path, logged: io.StringIO
) -> None:
    failing = 3

    async def down_for_a_while(peer: Peer, count: int) -> None:
        await peer.send(http_answer(503, b"") if 1 < count <= 1 + failing else granted(f"token-{count}"))

    async with endpoint(tmp_path, down_for_a_while) as (oauth, server), renewing(oauth):
        with pytest.raises(NoOAuthToken) as caught:
            await oauth.refresh("token-1")
        assert caught.value.reason == "http_503"
        await until(lambda: oauth.cached == f"token-{failing + 2}")
        assert len(server.peers) == failing + 2
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert [(line["level"], line["event"], line["reason"]) for line in lines] == [
        ("error", "oauth_refresh_failed", "http_503")
    ] * failing


@anyio_test
async def test_an_endpoint_that_gives_the_same_token_again_is_asked_once_for_a_401(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def same(peer: Peer, _: int) -> None:
        await peer.send(granted("token"))

    async with endpoint(tmp_path, same) as (oauth, server), renewing(oauth):
        assert await oauth.refresh("token") == "token"
        monkeypatch.setattr(oauth_module, "FORCED_PAUSE", 3600.0)  # the second comes within the pause
        with pytest.raises(NoOAuthToken) as caught:
            await oauth.refresh("token")
        assert caught.value.reason == "renewed_a_moment_ago"
        assert len(server.peers) == 2


@anyio_test
async def test_other_credentials_are_asked_with_at_once_beside_the_renewal(tmp_path: Path) -> None:
    async with endpoint(tmp_path, number) as (oauth, _), renewing(oauth):
        path = key_file(tmp_path / "other.json", token_uri="http://127.0.0.1:1/token")
        with pytest.raises(NoOAuthToken) as caught:
            await oauth.adopt(load_credentials(path, None)[0])
        assert (caught.value.reason, oauth.cached) == ("unreachable", "token-1")
        await oauth.adopt(load_credentials(tmp_path / "fcm.json", None)[0])
        assert oauth.cached == "token-2"


@pytest.fixture
def renewed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a tenth of a token's life, so that a slow machine has the rest of it."""
    monkeypatch.setattr(oauth_module, "RENEW_AT", 0.1)


@anyio_test
@pytest.mark.usefixtures("renewed_early")
async def test_a_token_is_renewed_before_it_expires(tmp_path: Path) -> None:
    async def short(peer: Peer, count: int) -> None:
        await peer.send(granted(f"token-{count}", 10))

    async with endpoint(tmp_path, short) as (oauth, _), anyio.create_task_group() as tasks:
        tasks.start_soon(oauth.run)
        await until(lambda: oauth.expiry_timestamp > 0)
        first = oauth.expiry_timestamp
        await until(lambda: oauth.expiry_timestamp > first)
        assert time.time() < first
        assert await oauth.token() != "token-1"
        tasks.cancel_scope.cancel()


@anyio_test
async def test_an_outage_of_the_endpoint_is_noticed_at_its_end(tmp_path: Path) -> None:
    async def down_at_first(peer: Peer, count: int) -> None:
        await peer.send(http_answer(503, b"busy") if count < 4 else granted("token"))

    async with endpoint(tmp_path, down_at_first) as (oauth, server), anyio.create_task_group() as tasks:
        tasks.start_soon(oauth.run)
        await until(lambda: oauth.expiry_timestamp > 0)
        assert await oauth.token() == "token"
        assert len(server.peers) == 4
        tasks.cancel_scope.cancel()


@anyio_test
@pytest.mark.usefixtures("renewed_early")
async def test_during_an_outage_the_old_token_is_used_as_long_as_it_lives(tmp_path: Path) -> None:
    async def once(peer: Peer, count: int) -> None:
        await peer.send(granted("token", 5) if count == 1 else http_answer(500, b"{}"))

    async with endpoint(tmp_path, once) as (oauth, server), anyio.create_task_group() as tasks:
        tasks.start_soon(oauth.run)
        await until(lambda: len(server.peers) >= 2)
        assert await oauth.token() == "token"
        await until(lambda: time.time() > oauth.expiry_timestamp)
        with pytest.raises(NoOAuthToken):
            await oauth.token()
        tasks.cancel_scope.cancel()


REFUSALS: list[tuple[str, bytes, str]] = [
    (
        "a key that was deleted",
        http_answer(400, b'{"error":"invalid_grant","error_description":"SECRET"}'),
        "invalid_grant",
    ),
    ("an error nobody knows", http_answer(400, b'{"error":"SECRET thing"}'), "refused"),
    ("an outage", http_answer(503, b"SECRET"), "http_503"),
    ("a rate limit", http_answer(429, b"SECRET"), "http_429"),
    ("a page", http_answer(200, b"<html>SECRET</html>"), "bad_answer"),
    ("no token", http_answer(200, b"{}"), "refused"),
    ("a list", http_answer(200, b"[]"), "bad_answer"),
    ("a token that breaks the header", granted("SECRET\r\nX-Other: 1"), "bad_answer"),
    ("a token of no text", http_answer(200, b'{"access_token":7,"expires_in":3600}'), "bad_answer"),
    ("an expiry beyond all times", granted("SECRET", 10**18), "bad_answer"),
    ("an expiry of no number", granted("SECRET", "soon"), "bad_answer"),
    ("a token that is over", granted("SECRET", 0), "expired_on_arrival"),
    ("an answer without end", http_answer(200, b" " * 100_000), "bad_answer"),
    ("a cut answer", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "unreachable"),
    ("no answer", b"", "unreachable"),
]


@anyio_test
@pytest.mark.parametrize(("answer", "reason"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
async def test_what_is_no_token_is_none_and_its_reason_is_one_word(tmp_path: Path, answer: bytes, reason: str) -> None:
    async def refuse(peer: Peer, _: int) -> None:
        await peer.send(answer)

    async with endpoint(tmp_path, refuse) as (oauth, server):
        with pytest.raises(NoOAuthToken) as caught:
            await oauth.token()
        assert caught.value.reason == reason
        assert "SECRET" not in f"{caught.value!r}{caught.value.__cause__!r}"
        assert len(server.peers) == 1, "google-auth's own repetitions would sleep in the thread"


@anyio_test
async def test_a_token_without_a_stated_life_is_taken_for_a_short_one(tmp_path: Path) -> None:
    async def untold(peer: Peer, _: int) -> None:
        await peer.send(http_answer(200, b'{"access_token":"token"}'))

    async with endpoint(tmp_path, untold) as (oauth, _):
        assert await oauth.token() == "token"
        assert oauth.expiry_timestamp == pytest.approx(time.time() + 300, abs=5)


@anyio_test
async def test_after_a_failure_nobody_waits_for_the_next_try(tmp_path: Path) -> None:
    async def down(peer: Peer, _: int) -> None:
        await peer.send(http_answer(503, b""))

    async with endpoint(tmp_path, down) as (oauth, server):
        for _ in range(200):
            with pytest.raises(NoOAuthToken):
                await oauth.token()
        assert len(server.peers) < 20


async def drip(peer: Peer, _: int) -> None:
    for byte in granted("token"):
        await peer.send(bytes([byte]))
        await asyncio.sleep(0.05)


@anyio_test
@pytest.mark.parametrize("answer", [silence, drip])
async def test_an_endpoint_that_hangs_or_drips_costs_the_bound_and_no_more(
    tmp_path: Path, answer: Callable[[Peer, int], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth_module, "CALL_BOUND", 1.5)
    async with endpoint(tmp_path, answer) as (oauth, server):
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await anyio.sleep(0.01)
                ticks += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            with Stopwatch() as took, pytest.raises(NoOAuthToken) as caught:
                await oauth.token()
            tasks.cancel_scope.cancel()
        assert caught.value.reason == "timeout"
        assert took.wall > 1.45
        assert took.seconds < 2.6
        assert ticks > 1, "the event loop went on"
        await until(no_thread_waits)
        await until(server.peers[0].closed.is_set)


def no_thread_waits() -> bool:
    """No thread is left with the endpoint: it would keep the program from ending."""
    return not any(thread.name == "AnyIO worker thread" and is_busy(thread) for thread in threading.enumerate())


def is_busy(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the only way to see where a thread is
    while frame is not None:
        if frame.f_code.co_filename == oauth_module.__file__:
            return True
        frame = frame.f_back
    return False


@anyio_test
async def test_stopping_while_the_endpoint_hangs_takes_no_time(tmp_path: Path) -> None:
    with Stopwatch() as took:
        async with endpoint(tmp_path, silence) as (oauth, server):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(oauth.run)
                for _ in range(3):
                    tasks.start_soon(oauth.token)
                await until(lambda: bool(server.peers))
                begun = took.seconds
                tasks.cancel_scope.cancel()
            await until(no_thread_waits)
            assert took.seconds - begun < 1.0


@anyio_test
async def test_whenever_it_is_stopped_no_call_is_left_behind(tmp_path: Path) -> None:
    async with endpoint(tmp_path, silence) as (oauth, _):
        for turns in range(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(oauth.run)
                for _ in range(turns):
                    await asyncio.sleep(0.0002)
                tasks.cancel_scope.cancel()
            await until(no_thread_waits)


@anyio_test
async def test_one_who_gives_up_waiting_harms_nobody_else(tmp_path: Path) -> None:
    answering = asyncio.Event()

    async def slow(peer: Peer, count: int) -> None:
        await answering.wait()
        await number(peer, count)

    async with endpoint(tmp_path, slow) as (oauth, server):
        tokens: list[str] = []

        async def wait() -> None:
            tokens.append(await oauth.token())

        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as impatient:
                impatient.start_soon(oauth.token)
                await until(lambda: bool(server.peers))
                tasks.start_soon(wait)
                await anyio.sleep(0.02)
                impatient.cancel_scope.cancel()
            answering.set()
        assert tokens == [oauth.cached] != [""]


@anyio_test
async def test_a_token_is_in_no_repr(tmp_path: Path) -> None:
    async with endpoint(tmp_path, number) as (oauth, _):
        token = await oauth.token()
        assert token not in f"{oauth!r}{oauth._granted!r}"  # noqa: SLF001 - what a debugger or a log would show
