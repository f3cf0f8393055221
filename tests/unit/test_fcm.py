"""What the road to FCM says about a request is true: not sent, unsure, or answered, and never sent twice.

Each server here logs the bytes that arrive, so "not sent for certain" is checked where it counts: at the peer.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import httpcore2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherald.fcm import ANSWER_MAX, CONNECTIONS_MAX, HttpxTransport, NotSent, Response, Unsure, _Frames
from pgherald.model import Code
from tests.support.raw_server import (
    OK,
    OK_BODY,
    Http2Peer,
    Http2Server,
    Peer,
    RawServer,
    certificate,
    client_tls,
    http_answer,
    raw_server,
    server_tls,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

SECRET = "ya29.secret-access-token"
MARK = b"MARK-OF-THE-BODY"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def transport(max_connections: int = 10, **options: Any) -> AsyncIterator[HttpxTransport]:
    async with HttpxTransport(max_connections, **options) as made:
        yield made


async def post(
    road: HttpxTransport,
    port: int,
    *,
    scheme: str = "http",
    within: float = 5.0,
    mark: bytes = MARK,
    identity: str | None = None,
) -> Response:
    url = f"{scheme}://127.0.0.1:{port}/v1/projects/p/messages:send"
    headers = {"authorization": f"Bearer {SECRET}", "content-type": "application/json"}
    if identity is not None:
        headers["x-id"] = identity
    return await road.post(url, headers, mark, time.monotonic() + within)


async def answer_all(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


async def test_what_arrives_is_the_request_and_what_comes_back_is_the_answer() -> None:
    async with raw_server(answer_all) as server, transport() as road:
        response = await post(road, server.port)
        assert response == Response(200, {"content-length": str(len(OK_BODY))}, OK_BODY)
        lines = [
            "POST /v1/projects/p/messages:send HTTP/1.1",
            f"host: 127.0.0.1:{server.port}",
            f"content-length: {len(MARK)}",
            f"authorization: Bearer {SECRET}",
            "content-type: application/json",
            "",
            "",
        ]
        assert bytes(server.peers[0].arrived) == "\r\n".join(lines).encode() + MARK


async def test_connections_are_used_again_and_limited() -> None:
    async with raw_server(answer_all) as server, transport(3) as road:
        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(post, road, server.port)
        assert len(server.peers) <= 3
        assert server.seen(MARK) == 30


async def test_a_refused_connection_is_not_sent() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with transport() as road:
            with pytest.raises(NotSent) as caught:
                await post(road, unused.getsockname()[1])
    assert caught.value.code is Code.NOT_CONNECTED


async def test_a_name_that_does_not_resolve_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    async with transport() as road:
        with pytest.raises(NotSent):
            await road.post("https://fcm.example.org/x", {}, b"{}", time.monotonic() + 5)


async def test_a_connection_that_is_never_accepted_is_not_sent_and_ends_at_the_deadline() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            async with transport() as road:
                begun = time.monotonic()
                with pytest.raises(NotSent):
                    await post(road, full.getsockname()[1], within=0.3)
                assert 0.25 < time.monotonic() - begun < 1.0
        finally:
            for filler in fillers:
                filler.close()


async def test_no_free_connection_by_the_deadline_is_not_sent() -> None:
    async def silence(peer: Peer) -> None:
        await peer.request()
        await peer.read()

    async with raw_server(silence) as server, transport(1) as road, anyio.create_task_group() as tasks:
        tasks.start_soon(expect_unsure, road, server, b"FIRST", 0.6)
        await until(lambda: server.seen(b"FIRST") == 1)
        with pytest.raises(NotSent):
            await post(road, server.port, mark=b"SECOND", within=0.2)
        assert server.seen(b"SECOND") == 0
    assert len(server.peers) == 1


async def expect_unsure(road: HttpxTransport, server: RawServer, mark: bytes, within: float) -> None:
    with pytest.raises(Unsure):
        await post(road, server.port, mark=mark, within=within)


async def test_a_deadline_in_the_past_is_not_sent() -> None:
    async with raw_server(answer_all) as server, transport() as road:
        await post(road, server.port, mark=b"FIRST")
        with pytest.raises(NotSent):
            await post(road, server.port, within=-0.001)
        assert server.seen(MARK) == 0


async def test_a_connection_closed_while_idle_is_not_used_again() -> None:
    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async with raw_server(once) as server, transport() as road:
        for n in range(20):
            assert (await post(road, server.port, mark=b"<%d>" % n)).status == 200
            await until(lambda: all(peer.closed.is_set() for peer in server.peers))
        assert [server.seen(b"<%d>" % n) for n in range(20)] == [1] * 20


async def test_a_connection_reset_while_idle_is_not_used_again() -> None:
    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await asyncio.sleep(0.02)
        peer.reset()

    async with raw_server(once) as server, transport() as road:
        for n in range(5):
            assert (await post(road, server.port, mark=b"<%d>" % n)).status == 200
            await asyncio.sleep(0.05)
        assert [server.seen(b"<%d>" % n) for n in range(5)] == [1] * 5


async def test_requests_that_race_with_the_server_closing_are_never_sent_twice() -> None:
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


async def test_a_server_that_answers_the_second_request_by_closing_gets_it_once() -> None:
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


async def test_a_server_that_closes_every_new_connection_is_left_alone_after_a_few() -> None:
    async def slam(peer: Peer) -> None:
        pass

    async with raw_server(slam) as server, transport() as road:
        with pytest.raises((NotSent, Unsure)):
            await post(road, server.port)
        assert len(server.peers) <= CONNECTIONS_MAX
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
async def test_a_broken_answer_is_unsure_and_nothing_is_sent_again(answer: bytes, code: Code) -> None:
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
async def test_a_reset_after_bytes_went_out_is_unsure(part: bytes) -> None:
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


async def test_no_answer_by_the_deadline_is_unsure() -> None:
    async def silence(peer: Peer) -> None:
        await peer.request()
        await peer.read()

    async with raw_server(silence) as server, transport() as road:
        begun = time.monotonic()
        with pytest.raises(Unsure) as caught:
            await post(road, server.port, within=0.3)
        assert 0.25 < time.monotonic() - begun < 1.0
        assert caught.value.code is Code.TIMEOUT
        assert server.seen(MARK) == 1


async def test_an_answer_that_comes_byte_by_byte_ends_at_the_deadline() -> None:
    async def drip(peer: Peer) -> None:
        await peer.request()
        for byte in OK:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0.1)

    async with raw_server(drip) as server, transport() as road:
        begun = time.monotonic()
        with pytest.raises(Unsure) as caught:
            await post(road, server.port, within=0.5)
        assert 0.45 < time.monotonic() - begun < 1.2
        assert caught.value.code is Code.TIMEOUT


async def test_redirects_are_answers_and_are_not_followed() -> None:
    async def away(peer: Peer) -> None:
        await peer.request()
        await peer.send(http_answer(307, b"", "Location: /elsewhere"))

    async with raw_server(away) as server, transport() as road:
        assert (await post(road, server.port)).status == 307
        await asyncio.sleep(0.05)
        assert server.seen(MARK) == 1


async def test_an_interim_answer_is_not_the_answer() -> None:
    async def interim(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)

    async with raw_server(interim) as server, transport() as road:
        assert (await post(road, server.port)).body == OK_BODY


async def test_cancelled_requests_leave_nothing_behind() -> None:
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


async def test_errors_show_neither_token_nor_address() -> None:
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


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:1")
    async with raw_server(answer_all) as server, transport() as road:
        assert (await post(road, server.port)).status == 200


async def test_http1_is_spoken_where_tls_agrees_on_it(pem: Path) -> None:
    async with (
        raw_server(answer_all, server_tls(pem, "http/1.1")) as server,
        transport(ssl_context=client_tls(pem)) as road,
    ):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(lambda: post(road, server.port, scheme="https"))
        assert server.seen(b"POST /v1/projects/p/messages:send HTTP/1.1") == 20


async def test_a_certificate_that_is_not_trusted_is_not_sent(pem: Path) -> None:
    async with raw_server(answer_all, server_tls(pem, "http/1.1")) as server, transport() as road:
        with pytest.raises(NotSent):
            await post(road, server.port, scheme="https")
        assert server.seen(MARK) == 0


async def test_a_server_without_tls_is_not_sent(pem: Path) -> None:
    async def chat(peer: Peer) -> None:
        await peer.read()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with raw_server(chat) as server, transport(ssl_context=client_tls(pem)) as road:
        with pytest.raises(NotSent):
            await post(road, server.port, scheme="https")
        assert server.seen(MARK) == server.seen(SECRET.encode()) == 0


async def test_a_handshake_that_never_ends_is_not_sent_and_ends_at_the_deadline(pem: Path) -> None:
    async def silence(peer: Peer) -> None:
        while await peer.read():
            pass

    async with raw_server(silence) as server, transport(ssl_context=client_tls(pem)) as road:
        begun = time.monotonic()
        with pytest.raises(NotSent):
            await post(road, server.port, scheme="https", within=0.3)
        assert time.monotonic() - begun < 1.0
        assert server.seen(MARK) == server.seen(SECRET.encode()) == 0


@asynccontextmanager
async def http2(
    pem: Path, server: Http2Server, max_connections: int = 10
) -> AsyncIterator[tuple[HttpxTransport, RawServer]]:
    async with (
        raw_server(server.script, server_tls(pem, "h2")) as raw,
        transport(max_connections, ssl_context=client_tls(pem)) as road,
    ):
        yield road, raw


async def send_all(road: HttpxTransport, port: int, ids: list[str], within: float = 5.0) -> dict[str, str]:
    """Send all at once; what the road said of each: answered, not sent, or unsure with its code."""
    said: dict[str, str] = {}

    async def one(identity: str) -> None:
        try:
            response = await post(road, port, scheme="https", within=within, identity=identity)
            assert response.body == OK_BODY
            said[identity] = "answered"
        except NotSent:
            said[identity] = "not sent"
        except Unsure as error:
            said[identity] = error.code

    async with anyio.create_task_group() as tasks:
        for identity in ids:
            tasks.start_soon(one, identity)
    return said


IDS = [str(n) for n in range(60)]


async def test_http2_carries_many_requests_on_one_connection(pem: Path) -> None:
    server = Http2Server(delay=0.01)
    async with http2(pem, server) as (road, raw):
        assert await send_all(road, raw.port, IDS) == dict.fromkeys(IDS, "answered")
        assert len(raw.peers) == 1
    assert set(server.arrived.values()) == {1}


def goodbye_at(count: int, last: Any) -> Any:
    """GOAWAY on the first connection once so many requests have come; `last` makes its stream id of the newest one."""

    def on_request(server: Http2Server, peer: Http2Peer, _: str) -> None:
        if peer is server.peers[0] and server.arrived.total() == count:
            peer.goaway(last(peer.last_stream))

    return on_request


@pytest.mark.parametrize("last", [lambda _: 2**31 - 1, lambda newest: newest], ids=["first notice", "exact"])
async def test_a_server_that_says_goodbye_still_answers_what_it_accepted(pem: Path, last: Any) -> None:
    server = Http2Server(goodbye_at(20, last), delay=0.05)
    async with http2(pem, server) as (road, raw):
        first = await send_all(road, raw.port, IDS[:20])
        assert first == dict.fromkeys(IDS[:20], "answered")
        assert await send_all(road, raw.port, IDS[20:]) == dict.fromkeys(IDS[20:], "answered")
        assert len(raw.peers) == 2
    assert server.arrived == dict.fromkeys(IDS, 1)


async def test_httpcore2_by_itself_gives_up_what_the_server_answers(pem: Path) -> None:
    """The negative control of the test above: without our part, a goodbye makes unknown of everything under way."""
    server = Http2Server(goodbye_at(20, lambda _: 2**31 - 1), delay=0.05)
    lost = 0
    async with (
        raw_server(server.script, server_tls(pem, "h2")) as raw,
        httpcore2.AsyncConnectionPool(client_tls(pem), http2=True) as pool,
    ):

        async def one(identity: str) -> None:
            nonlocal lost
            try:
                await pool.request("POST", f"https://127.0.0.1:{raw.port}/", headers={"x-id": identity}, content=MARK)
            except httpcore2.RemoteProtocolError:
                lost += 1

        async with anyio.create_task_group() as tasks:
            for identity in IDS[:20]:
                tasks.start_soon(one, identity)
    assert lost > 10


@pytest.mark.parametrize("last", [lambda newest: newest // 2 | 1, lambda _: 0], ids=["half", "none"])
async def test_what_a_goodbye_disowns_is_not_sent_again(pem: Path, last: Any) -> None:
    """The server says that it has not seen requests which did arrive: whether that is true, we cannot know."""
    server = Http2Server(goodbye_at(20, last), delay=0.05)
    server.hold = set(IDS[10:20])
    async with http2(pem, server) as (road, raw):
        said = await send_all(road, raw.port, IDS[:20], within=0.6)
        assert all(said[identity] == Code.TIMEOUT for identity in server.hold)
        assert await send_all(road, raw.port, IDS[20:]) == dict.fromkeys(IDS[20:], "answered")
    assert set(server.arrived.values()) == {1}


async def test_httpcore2_by_itself_sends_them_twice(pem: Path) -> None:
    """The negative control of the test above."""
    server = Http2Server(goodbye_at(20, lambda newest: newest // 2 | 1), delay=0.05)
    async with (
        raw_server(server.script, server_tls(pem, "h2")) as raw,
        httpcore2.AsyncConnectionPool(client_tls(pem), http2=True) as pool,
    ):

        async def one(identity: str) -> None:
            with suppress(httpcore2.RemoteProtocolError):
                await pool.request("POST", f"https://127.0.0.1:{raw.port}/", headers={"x-id": identity}, content=MARK)

        async with anyio.create_task_group() as tasks:
            for identity in IDS[:20]:
                tasks.start_soon(one, identity)
    assert max(server.arrived.values()) == 2


async def test_a_goodbye_while_idle_costs_nothing(pem: Path) -> None:
    server = Http2Server()
    async with http2(pem, server) as (road, raw):
        for n in range(6):
            assert await send_all(road, raw.port, [str(n)]) == {str(n): "answered"}
            server.peers[-1].goaway(server.peers[-1].last_stream)
            if n % 2:
                server.peers[-1].close()
            await asyncio.sleep(0.02)
        assert len(raw.peers) == 6
    assert set(server.arrived.values()) == {1}


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_an_http2_connection_that_ended_while_idle_is_not_used_again(pem: Path, end: str) -> None:
    server = Http2Server()
    async with http2(pem, server) as (road, raw):
        for n in range(4):
            assert await send_all(road, raw.port, [str(n)]) == {str(n): "answered"}
            getattr(server.peers[-1], end)()
            await asyncio.sleep(0.02)
    assert set(server.arrived.values()) == {1}


async def test_a_ping_while_idle_does_not_cost_the_connection(pem: Path) -> None:
    server = Http2Server()
    async with http2(pem, server) as (road, raw):
        for n in range(4):
            assert await send_all(road, raw.port, [str(n)]) == {str(n): "answered"}
            server.peers[-1].link.ping(b"12345678")
            await server.peers[-1].flush()
            await asyncio.sleep(0.02)
        assert len(raw.peers) == 1


async def test_an_http2_connection_that_breaks_makes_all_that_was_under_way_unsure(pem: Path) -> None:
    def on_request(server: Http2Server, peer: Http2Peer, _: str) -> None:
        if server.arrived.total() == 20:
            peer.reset()

    server = Http2Server(on_request, delay=10)
    async with http2(pem, server) as (road, raw):
        said = await send_all(road, raw.port, IDS[:20])
        assert set(said.values()) == {Code.CONNECTION_LOST}
        server.delay = 0
        assert await send_all(road, raw.port, IDS[20:]) == dict.fromkeys(IDS[20:], "answered")
    assert set(server.arrived.values()) == {1}


async def test_one_stream_that_is_reset_is_unsure_and_the_others_are_answered(pem: Path) -> None:
    def on_request(_: Http2Server, peer: Http2Peer, identity: str) -> None:
        if identity == "7":
            peer.reset_stream("7")

    server = Http2Server(on_request, delay=0.02)
    async with http2(pem, server) as (road, raw):
        said = await send_all(road, raw.port, IDS)
        assert said.pop("7") == Code.CONNECTION_LOST
        assert set(said.values()) == {"answered"}
    assert set(server.arrived.values()) == {1}


async def test_a_request_that_waits_for_a_stream_until_the_deadline_is_not_sent(pem: Path) -> None:
    server = Http2Server(hold={"first"}, streams_max=1)
    async with http2(pem, server, max_connections=1) as (road, raw), anyio.create_task_group() as tasks:
        tasks.start_soon(send_all, road, raw.port, ["first"], 0.8)
        await until(lambda: server.arrived["first"] == 1)
        assert await send_all(road, raw.port, ["second"], within=0.2) == {"second": "not sent"}
        assert server.begun["second"] == 0
        tasks.cancel_scope.cancel()


async def test_a_silent_request_takes_no_other_with_it(pem: Path) -> None:
    server = Http2Server(hold={"0", "1", "2"}, delay=0.1)
    async with http2(pem, server) as (road, raw):
        said: dict[str, str] = {}

        async def group(ids: list[str], within: float) -> None:
            said.update(await send_all(road, raw.port, ids, within))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(group, ["0", "1", "2"], 0.15)
            for n in range(3, 30):
                tasks.start_soon(group, [str(n)], 5.0)
                await asyncio.sleep(0.01)
    assert {said.pop(identity) for identity in "012"} == {Code.TIMEOUT}
    assert set(said.values()) == {"answered"}
    assert set(server.arrived.values()) == {1}


async def test_a_storm_of_cancellations_under_http2_harms_no_other_request(pem: Path) -> None:
    server = Http2Server(delay=0.03)
    async with http2(pem, server) as (road, raw):
        said: dict[str, str] = {}

        async def group(ids: list[str]) -> None:
            said.update(await send_all(road, raw.port, ids))

        async with anyio.create_task_group() as tasks:
            for storm in range(15):
                tasks.start_soon(group, [f"kept-{storm}-{n}" for n in range(3)])
                with anyio.move_on_after(0.001 * storm):
                    await send_all(road, raw.port, [f"cancelled-{storm}-{n}" for n in range(10)])
    assert len(said) == 45
    assert set(said.values()) == {"answered"}
    assert max(server.arrived.values()) == 1


async def test_a_server_that_stops_reading_ends_at_the_deadline(pem: Path) -> None:
    async def deaf(peer: Peer) -> None:
        await asyncio.sleep(30)

    async with (
        raw_server(deaf, server_tls(pem, "h2")) as server,
        transport(ssl_context=client_tls(pem)) as road,
    ):
        begun = time.monotonic()
        with pytest.raises((NotSent, Unsure)):
            await post(road, server.port, scheme="https", within=0.4)
        assert time.monotonic() - begun < 2.0


def frame(kind: int, payload: bytes, stream: int) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 0]) + stream.to_bytes(4) + payload


frames = st.lists(st.tuples(st.sampled_from([0, 1, 3, 4, 6, 7, 8, 0x55]), st.binary(max_size=40), st.integers(0, 99)))


@given(frames, st.data())
def test_goaway_frames_alone_are_kept_back_however_the_bytes_are_cut(
    sent: list[tuple[int, bytes, int]], data: st.DataObject
) -> None:
    stream = b"".join(frame(*one) for one in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = _Frames()
    passed = b"".join(
        reader.keep_goaway(stream[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    )
    assert passed == b"".join(frame(*one) for one in sent if one[0] != 7)
    assert reader.goodbye == any(kind == 7 for kind, _, _ in sent)


def test_the_client_trusts_what_the_machine_trusts() -> None:
    context = HttpxTransport(1)._pool._ssl_context  # noqa: SLF001 - there is no other place to look
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("seed", range(4))
async def test_in_a_storm_of_everything_no_word_is_false_and_no_connection_is_lost(pem: Path, seed: int) -> None:
    """Slow, silent, closing, resetting and parting servers; requests that are cancelled or run out of time."""
    dice = Random(seed)
    calm = False

    def on_request(server: Http2Server, peer: Http2Peer, identity: str) -> None:
        if calm:
            return
        server.delay = dice.choice([0.0, 0.0, 0.005, 0.05])
        match dice.randrange(40):
            case 0:
                peer.goaway(dice.choice([2**31 - 1, peer.last_stream, peer.last_stream // 2, 0]))
            case 1:
                peer.reset()
            case 2:
                peer.close()
            case 3:
                server.hold.add(identity)
                peer.reset_stream(identity)
            case 4 | 5:
                server.hold.add(identity)
            case _:
                pass

    server = Http2Server(on_request, streams_max=dice.choice([1, 7, 100]))
    said: dict[str, str] = {}
    async with http2(pem, server, max_connections=4) as (road, raw):

        async def one(identity: str) -> None:
            await asyncio.sleep(dice.random() * 0.3)
            with anyio.move_on_after(dice.choice([0.001, 0.02, 1, 1, 1])):
                said.update(await send_all(road, raw.port, [identity], within=dice.choice([0.002, 0.03, 0.2])))

        async with anyio.create_task_group() as tasks:
            for n in range(200):
                tasks.start_soon(one, str(n))
        calm = True
        last = [f"calm-{n}" for n in range(30)]
        assert await send_all(road, raw.port, last) == dict.fromkeys(last, "answered")
    assert max(server.arrived.values()) == 1
    assert not {identity for identity, word in said.items() if word == "not sent" and server.begun[identity]}
    assert not {identity for identity, word in said.items() if word == "answered" and not server.arrived[identity]}
    assert {"answered", Code.TIMEOUT} <= set(said.values())
