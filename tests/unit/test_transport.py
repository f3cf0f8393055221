"""What a transport says about a request is true: not sent, unsure, or answered, and never sent twice.

Each server here logs the bytes that arrive, so "not sent for certain" is checked where it counts: at the peer. These
are the promises of `pgherald.fcm.Transport`, so any other road to FCM would have to keep them too.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import pytest

from pgherald.fcm import ANSWER_MAX, NotSent, Response, Transport, Unsure
from pgherald.model import Code
from pgherald.transport import ADDRESS_PATIENCE, HttpTransport
from tests.support.posting import MARK, SECRET, post
from tests.support.raw_server import (
    OK,
    OK_BODY,
    Peer,
    RawServer,
    client_tls,
    http_answer,
    raw_server,
    server_tls,
    until,
)
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeRoad: TypeAlias = Callable[..., HttpTransport]

pytestmark = pytest.mark.anyio


@pytest.fixture
def transport() -> MakeRoad:
    """Makes a transport; of ten connections, if nothing else is said."""

    def make(max_connections: int = 10, **options: Any) -> HttpTransport:
        return HttpTransport(max_connections, **options)

    return make


async def answer_all(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


async def test_what_arrives_is_the_request_and_what_comes_back_is_the_answer(transport: MakeRoad) -> None:
    async with raw_server(answer_all) as server, transport() as road:
        response = await post(road, server.port)
        assert response == Response(200, {"content-length": str(len(OK_BODY))}, OK_BODY)
        lines = [
            "POST /v1/projects/p/messages:send HTTP/1.1",
            f"host: 127.0.0.1:{server.port}",
            f"authorization: Bearer {SECRET}",
            "content-type: application/json",
            f"content-length: {len(MARK)}",
            "",
            "",
        ]
        assert bytes(server.peers[0].arrived) == "\r\n".join(lines).encode() + MARK


async def test_connections_are_used_again_and_limited(transport: MakeRoad) -> None:
    async with raw_server(answer_all) as server, transport(3) as road:
        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(post, road, server.port)
        assert len(server.peers) <= 3
        assert server.seen(MARK) == 30


async def test_a_refused_connection_is_not_sent(transport: MakeRoad) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with transport() as road:
            with pytest.raises(NotSent) as caught:
                await post(road, unused.getsockname()[1])
    assert caught.value.code is Code.NOT_CONNECTED


async def test_a_name_that_does_not_resolve_is_not_sent(monkeypatch: pytest.MonkeyPatch, transport: MakeRoad) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    async with transport() as road:
        with pytest.raises(NotSent):
            await road.post("https://fcm.example.org/x", {}, b"{}", time.monotonic() + 5)


async def test_a_connection_that_is_never_accepted_is_not_sent_and_ends_at_the_deadline(transport: MakeRoad) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            async with transport() as road:
                with Stopwatch() as took, pytest.raises(NotSent):
                    await post(road, full.getsockname()[1], within=0.3)
                assert took.wall > 0.25
                assert took.seconds < 1.0
        finally:
            for filler in fillers:
                filler.close()


async def test_no_free_connection_by_the_deadline_is_not_sent(transport: MakeRoad) -> None:
    async def silence(peer: Peer) -> None:
        await peer.request()
        await peer.read()

    async with raw_server(silence) as server, transport(1) as road, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(post, road, server.port, mark=b"FIRST"))
        await until(lambda: server.seen(b"FIRST") == 1)
        with pytest.raises(NotSent):
            await post(road, server.port, mark=b"SECOND", within=0.2)
        assert server.seen(b"SECOND") == 0
        assert len(server.peers) == 1
        tasks.cancel_scope.cancel()


async def test_a_deadline_in_the_past_is_not_sent(transport: MakeRoad) -> None:
    async with raw_server(answer_all) as server, transport() as road:
        await post(road, server.port, mark=b"FIRST")
        with pytest.raises(NotSent):
            await post(road, server.port, within=-0.001)
        assert server.seen(MARK) == 0


async def test_a_connection_closed_while_idle_is_not_used_again(transport: MakeRoad) -> None:
    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async with raw_server(once) as server, transport() as road:
        for n in range(20):
            assert (await post(road, server.port, mark=b"<%d>" % n)).status == 200
            await until(lambda: all(peer.closed.is_set() for peer in server.peers))
        assert [server.seen(b"<%d>" % n) for n in range(20)] == [1] * 20


async def test_a_connection_reset_while_idle_is_not_used_again(transport: MakeRoad) -> None:
    answered = asyncio.Semaphore(0)

    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await answered.acquire()
        peer.reset()

    async with raw_server(once) as server, transport() as road:
        for n in range(5):
            assert (await post(road, server.port, mark=b"<%d>" % n)).status == 200
            answered.release()
            await until(lambda: all(peer.closed.is_set() for peer in server.peers))
            await asyncio.sleep(0)  # the socket itself is closed a moment later
        assert [server.seen(b"<%d>" % n) for n in range(5)] == [1] * 5


async def test_requests_that_race_with_the_server_closing_are_never_sent_twice(transport: MakeRoad) -> None:
    """The server closes right after each answer, without saying so: whatever the client then says must be true."""

    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    outcomes: dict[bytes, str] = {}
    async with raw_server(once) as server, transport(4) as road:

        async def one(mark: bytes) -> None:
            try:
                await post(road, server.port, mark=mark)
                outcomes[mark] = "answered"
            except NotSent:
                outcomes[mark] = "not sent"
            except Unsure:
                outcomes[mark] = "unsure"

        async with anyio.create_task_group() as tasks:
            for n in range(200):
                tasks.start_soon(one, b"<%d>" % n)
    assert len(outcomes) == 200
    for mark, said in outcomes.items():
        arrived = server.seen(mark)
        assert arrived <= 1
        assert arrived == 1 or said != "answered"
        assert arrived == 0 or said != "not sent"
    assert "answered" in outcomes.values()


async def test_a_server_that_answers_the_second_request_by_closing_gets_it_once(transport: MakeRoad) -> None:
    async def once_and_a_half(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()

    async with raw_server(once_and_a_half) as server, transport() as road:
        await post(road, server.port, mark=b"FIRST")
        with pytest.raises(Unsure) as caught:
            await post(road, server.port)
        assert caught.value.code is Code.CONNECTION_LOST
        assert server.seen(MARK) == 1


async def test_a_server_that_closes_every_new_connection_is_left_alone_after_a_few(transport: MakeRoad) -> None:
    async def slam(peer: Peer) -> None:
        pass

    async with raw_server(slam) as server, transport() as road:
        with pytest.raises((NotSent, Unsure)):
            await post(road, server.port)
        assert len(server.peers) <= 3
        assert server.seen(MARK) == 0


BROKEN_ANSWERS: list[tuple[str, bytes, Code]] = [
    ("closed without a word", b"", Code.CONNECTION_LOST),
    ("cut in the status line", b"HTTP/1.1 20", Code.CONNECTION_LOST),
    ("cut in the headers", b"HTTP/1.1 200 OK\r\nContent-Le", Code.CONNECTION_LOST),
    ("cut in the body", b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"name":"projects/p/m', Code.BAD_ANSWER),
    ("cut in a chunk", b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{"name":', Code.BAD_ANSWER),
    ("not HTTP", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Code.BAD_ANSWER),
    ("binary", bytes(range(256)), Code.BAD_ANSWER),
    ("without end", http_answer(200, b"x" * (ANSWER_MAX + 1)), Code.BAD_ANSWER),
    ("headers without end", b"HTTP/1.1 200 OK\r\n" + b"X-Y: zzzzzzzzzzzzzzzzzz\r\n" * 20_000, Code.BAD_ANSWER),
]


@pytest.mark.parametrize(
    ("answer", "code"), [row[1:] for row in BROKEN_ANSWERS], ids=[row[0] for row in BROKEN_ANSWERS]
)
async def test_a_broken_answer_is_unsure_and_nothing_is_sent_again(
    answer: bytes, code: Code, transport: MakeRoad
) -> None:
    async def broken(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    async with raw_server(broken) as server, transport() as road:
        with pytest.raises(Unsure) as caught:
            await post(road, server.port)
        assert caught.value.code is code
        await asyncio.sleep(0.05)
        assert (server.seen(MARK), len(server.peers)) == (1, 1)


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"])
async def test_a_reset_after_bytes_went_out_is_unsure(part: bytes, transport: MakeRoad) -> None:
    async def reset(peer: Peer) -> None:
        await peer.request()
        await peer.send(part)
        await asyncio.sleep(0.02)
        peer.reset()

    async with raw_server(reset) as server, transport() as road:
        with pytest.raises(Unsure) as caught:
            await post(road, server.port)
        assert caught.value.code is Code.CONNECTION_LOST
        assert server.seen(MARK) == 1


async def test_no_answer_by_the_deadline_is_unsure(transport: MakeRoad) -> None:
    async def silence(peer: Peer) -> None:
        await peer.request()
        await peer.read()

    async with raw_server(silence) as server, transport() as road:
        with Stopwatch() as took, pytest.raises(Unsure) as caught:
            await post(road, server.port, within=1.0)
        assert took.wall > 0.95
        assert took.seconds < 1.7
        assert caught.value.code is Code.TIMEOUT
        assert server.seen(MARK) == 1


async def test_an_answer_that_comes_byte_by_byte_ends_at_the_deadline(transport: MakeRoad) -> None:
    async def drip(peer: Peer) -> None:
        await peer.request()
        for byte in OK:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0.1)

    async with raw_server(drip) as server, transport() as road:
        with Stopwatch() as took, pytest.raises(Unsure) as caught:
            await post(road, server.port, within=1.0)
        assert took.wall > 0.95
        assert took.seconds < 1.7
        assert caught.value.code is Code.TIMEOUT


async def test_redirects_are_answers_and_are_not_followed(transport: MakeRoad) -> None:
    async def away(peer: Peer) -> None:
        await peer.request()
        await peer.send(http_answer(307, b"", "Location: /elsewhere"))

    async with raw_server(away) as server, transport() as road:
        assert (await post(road, server.port)).status == 307
        await asyncio.sleep(0.05)
        assert server.seen(MARK) == 1


async def test_an_interim_answer_is_not_the_answer(transport: MakeRoad) -> None:
    async def interim(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)

    async with raw_server(interim) as server, transport() as road:
        assert (await post(road, server.port)).body == OK_BODY


async def test_cancelled_requests_leave_nothing_behind(transport: MakeRoad) -> None:
    answering = asyncio.Event()

    async def slow(peer: Peer) -> None:
        while True:
            await peer.request()
            await answering.wait()
            await peer.send(OK)

    async with raw_server(slow) as server, transport(4) as road:
        for _ in range(20):
            with anyio.move_on_after(0.01):
                async with anyio.create_task_group() as tasks:
                    for _ in range(20):
                        tasks.start_soon(post, road, server.port)
        answering.set()
        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(post, road, server.port)
    assert server.seen(MARK) <= 20 * 20 + 40


async def test_errors_show_neither_token_nor_address(transport: MakeRoad) -> None:
    async def broken(peer: Peer) -> None:
        await peer.request()

    async with raw_server(broken) as server, transport() as road:
        for within in (5.0, -1.0):
            with pytest.raises((NotSent, Unsure)) as caught:
                await post(road, server.port, within=within)
            shown = f"{caught.value!r} {caught.value} {caught.value.__cause__!r} {road!r}"
            assert SECRET not in shown
            assert str(server.port) not in shown
            assert "projects" not in shown


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch, transport: MakeRoad) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:1")
    async with raw_server(answer_all) as server, transport() as road:
        assert (await post(road, server.port)).status == 200


async def test_http1_is_spoken_where_tls_agrees_on_it(pem: Path, transport: MakeRoad) -> None:
    async with (
        raw_server(answer_all, server_tls(pem, "http/1.1")) as server,
        transport(ssl_context=client_tls(pem)) as road,
    ):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(lambda: post(road, server.port, scheme="https"))
        assert server.seen(b"POST /v1/projects/p/messages:send HTTP/1.1") == 20


async def test_a_certificate_that_is_not_trusted_is_not_sent(pem: Path, transport: MakeRoad) -> None:
    async with raw_server(answer_all, server_tls(pem, "http/1.1")) as server, transport() as road:
        with pytest.raises(NotSent):
            await post(road, server.port, scheme="https")
        assert server.seen(MARK) == 0


async def test_a_server_without_tls_is_not_sent(pem: Path, transport: MakeRoad) -> None:
    async def chat(peer: Peer) -> None:
        await peer.read()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with raw_server(chat) as server, transport(ssl_context=client_tls(pem)) as road:
        with pytest.raises(NotSent):
            await post(road, server.port, scheme="https")
        assert server.seen(MARK) == server.seen(SECRET.encode()) == 0


async def test_a_handshake_that_never_ends_is_not_sent_and_ends_at_the_deadline(pem: Path, transport: MakeRoad) -> None:
    async def silence(peer: Peer) -> None:
        while await peer.read():
            pass

    async with raw_server(silence) as server, transport(ssl_context=client_tls(pem)) as road:
        with Stopwatch() as took, pytest.raises(NotSent):
            await post(road, server.port, scheme="https", within=0.3)
        assert took.seconds < 1.0
        assert server.seen(MARK) == server.seen(SECRET.encode()) == 0


@pytest.mark.parametrize("broken", ["refusing", "mute"])
async def test_an_address_that_does_not_answer_costs_once(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    with socket.socket() as full:
        fillers = [socket.socket() for _ in range(4)]
        async with raw_server(answer_all) as server, HttpTransport(1) as road:
            full.bind(("127.0.0.2", server.port))
            if broken == "mute":
                full.listen(0)
                for filler in fillers:
                    filler.setblocking(False)
                    filler.connect_ex(full.getsockname())
            resolve = socket.getaddrinfo

            def both(host: str, *arguments: Any, **options: Any) -> Any:
                names = ["127.0.0.2", "127.0.0.1"] if host == "localhost" else [host]
                return [found for name in names for found in resolve(name, *arguments, **options)]

            monkeypatch.setattr(socket, "getaddrinfo", both)
            url, took = f"http://localhost:{server.port}/", []
            for _ in range(3):
                with Stopwatch() as watch:
                    answer = await road.post(url, {"connection": "close"}, b"{}", time.monotonic() + 60)
                assert answer.status == 200
                took.append(watch.seconds)
                server.peers[-1].close()
                await server.peers[-1].closed.wait()
            assert took[0] < ADDRESS_PATIENCE + 0.4
            assert max(took[1:]) < 0.2
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("value", ["a\r\nX-Other: 1", "a\nb", "a\x00b", "ünicode"])
async def test_a_header_that_would_be_another_is_not_sent(value: str) -> None:
    async with raw_server(answer_all) as server, HttpTransport(1) as road:
        with pytest.raises(NotSent):
            await road.post(f"http://127.0.0.1:{server.port}/", {"authorization": value}, b"{}", time.monotonic() + 60)
        assert server.peers == []


async def test_a_new_access_token_is_sent_from_then_on() -> None:
    async with raw_server(answer_all) as server, HttpTransport(1) as road:
        for token in ("one", "two", "two", "one"):
            await road.post(f"http://127.0.0.1:{server.port}/", {"authorization": token}, b"{}", time.monotonic() + 60)
        assert [line for line in bytes(server.peers[0].arrived).split(b"\r\n") if line.startswith(b"auth")] == [
            b"authorization: one",
            b"authorization: two",
            b"authorization: two",
            b"authorization: one",
        ]


@pytest.mark.parametrize("seed", range(3))
async def test_in_a_storm_of_everything_no_word_is_false_and_no_connection_is_lost(
    transport: MakeRoad, seed: int
) -> None:
    """Slow, silent, babbling, closing and resetting servers; requests that are cancelled or run out of time."""
    dice = Random(seed)
    calm = False

    async def moody(peer: Peer) -> None:
        while True:
            await peer.request()
            mood = 99 if calm else dice.randrange(20)
            if mood == 0:
                return
            if mood == 1:
                peer.reset()
            if mood == 2:
                await peer.read()
            await asyncio.sleep(0 if mood > 10 else dice.random() * 0.04)
            await peer.send(b"nonsense\r\n\r\n" if mood == 3 else OK[: 40 if mood == 4 else None])
            if mood in (4, 5):
                return

    said: dict[bytes, str] = {}

    async def one(road: Transport, server: RawServer, mark: bytes, within: float) -> None:
        try:
            assert (await post(road, server.port, mark=mark, within=within)).body == OK_BODY
            said[mark] = "answered"
        except NotSent:
            said[mark] = "not sent"
        except Unsure as error:
            said[mark] = error.code

    async with raw_server(moody) as server, transport(4) as road:

        async def restless(mark: bytes) -> None:
            await asyncio.sleep(dice.random() * 0.3)
            with anyio.move_on_after(dice.choice([0.001, 0.02, 1, 1, 1])):
                await one(road, server, mark, dice.choice([0.002, 0.03, 0.2]))

        async with anyio.create_task_group() as tasks:
            for n in range(200):
                tasks.start_soon(restless, b"<%d>" % n)
        calm = True
        async with anyio.create_task_group() as tasks:
            for n in range(200, 230):
                tasks.start_soon(one, road, server, b"<%d>" % n, 60.0)
    assert {said[b"<%d>" % n] for n in range(200, 230)} <= {"answered", Code.CONNECTION_LOST}
    assert max(server.seen(mark) for mark in said) == 1
    assert not {mark for mark, word in said.items() if word == "not sent" and server.seen(mark)}
    assert not {mark for mark, word in said.items() if word == "answered" and not server.seen(mark)}
    assert {"answered", Code.TIMEOUT} <= set(said.values())
