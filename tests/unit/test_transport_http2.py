"""Over HTTP/2 too no request is sent twice, and a server that says goodbye still gets to answer.

The negative controls show what the library below does when left alone.
"""

from __future__ import annotations

import asyncio
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

from pgherald.fcm import HttpxTransport, NotSent, Unsure, _Frames
from pgherald.model import Code
from tests.support.posting import MARK, post
from tests.support.raw_server import (
    OK_BODY,
    Http2Peer,
    Http2Server,
    Peer,
    RawServer,
    certificate,
    client_tls,
    raw_server,
    server_tls,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def http2(
    pem: Path, server: Http2Server, max_connections: int = 10
) -> AsyncIterator[tuple[HttpxTransport, RawServer]]:
    async with (
        raw_server(server.script, server_tls(pem, "h2")) as raw,
        HttpxTransport(max_connections, ssl_context=client_tls(pem)) as road,
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
        HttpxTransport(10, ssl_context=client_tls(pem)) as road,
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


def test_the_client_trusts_what_the_machine_trusts() -> None:
    context = HttpxTransport(1)._pool._ssl_context  # noqa: SLF001 - there is no other place to look
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
