"""HTTP/2 keeps the promises of `pgherald.fcm.Transport`, and speaks as h2 does, which the server here is made of.

Where a request is refused by a server that says so it is taken elsewhere; where nobody can tell it is unsure; whatever
bytes come. The servers count what arrives, so each word is checked at the peer.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final

import anyio
import h2.config
import h2.connection
import h2.events
import pytest
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from pgherald import http2
from pgherald.connection import HEAD_MAX, Deadlines, NotAnAnswer
from pgherald.fcm import ANSWER_MAX, KEEPALIVE, CancelledUnsent, NotSent, Response, Unsure
from pgherald.http2 import Http2Connection, answer_head
from pgherald.model import Code
from pgherald.transport import TRIES, HttpTransport
from tests.support.posting import MARK, SECRET, post
from tests.support.raw_server import (
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
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from pgherald.connection import Connection
    from pgherald.link import Link, Receiver

pytestmark = pytest.mark.anyio

NO_ERROR: Final = 0
CANCEL: Final = 8
REFUSED_STREAM: Final = 7


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


class Road:
    """A transport to one server."""

    def __init__(self, transport: HttpTransport, raw: RawServer) -> None:
        self.transport = transport
        self.raw = raw

    async def post(self, identity: str = "one", mark: bytes = MARK, within: float = 60.0) -> Response:
        return await post(self.transport, self.raw.port, scheme="https", mark=mark, identity=identity, within=within)

    async def say(self, identity: str, *, within: float = 60.0, mark: bytes = MARK) -> str:
        """What the transport says of a request, in a word."""
        try:
            assert (await self.post(identity, mark, within)).body == mark
        except NotSent:
            return "not sent"
        except Unsure as error:
            return error.code
        return "answered"

    async def say_all(self, identities: Sequence[str], **options: Any) -> dict[str, str]:
        """The same of many at once."""
        return dict(
            zip(identities, await asyncio.gather(*(self.say(each, **options) for each in identities)), strict=True)
        )


@asynccontextmanager
async def road_to(server: Http2Server, pem: Path, max_in_flight: int = 1000) -> AsyncIterator[Road]:
    async with (
        raw_server(server.script, server_tls(pem, "h2")) as raw,
        HttpTransport(max_in_flight, ssl_context=client_tls(pem)) as transport,
    ):
        yield Road(transport, raw)


def names(count: int) -> list[str]:
    return [f"n{n}" for n in range(count)]


async def test_what_arrives_is_the_request_and_what_comes_back_is_the_answer(pem: Path) -> None:
    server = Http2Server()
    async with road_to(server, pem) as road:
        for _ in range(3):
            assert await road.post() == Response(200, {"content-type": "application/json"}, MARK)
            assert server.heads["one"] == [
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", f"127.0.0.1:{road.raw.port}"),
                (":path", "/v1/projects/p/messages:send"),
                ("authorization", f"Bearer {SECRET}"),
                ("content-type", "application/json"),
                ("x-id", "one"),
            ]
    assert (server.arrived["one"], len(server.peers)) == (3, 1)


@pytest.mark.parametrize(("allowed", "connections"), [(100, 3), (1000, 3), (1, 30), (50, 6)])
async def test_connections_are_shared_as_far_as_the_server_allows_and_a_hundred_at_most(
    pem: Path, allowed: int, connections: int
) -> None:
    count = 300 if allowed > 1 else 30
    server = Http2Server(delay=1.0, settings={SettingCodes.MAX_CONCURRENT_STREAMS: allowed})
    async with road_to(server, pem) as road:
        assert set((await road.say_all(names(count))).values()) == {"answered"}
        assert len(server.peers) == connections
        server.delay = 0.0
        assert set((await road.say_all(names(count))).values()) == {"answered"}
    assert set(server.arrived.values()) == {2}
    assert len(server.peers) == connections


async def test_a_server_that_takes_no_requests_is_not_sent_and_keeps_no_connection(pem: Path) -> None:
    server = Http2Server(settings={SettingCodes.MAX_CONCURRENT_STREAMS: 0})
    async with road_to(server, pem) as road:
        assert await road.say("one") == "not sent"
        await until(lambda: all(peer.closed.is_set() for peer in road.raw.peers))
    assert not server.begun


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", PingFrame(0).serialize(), b"\xff" * 99])
async def test_a_server_that_agrees_on_http2_and_does_not_speak_it_is_not_sent(pem: Path, greeting: bytes) -> None:
    async def odd(peer: Peer) -> None:
        await peer.send(greeting)
        await peer.read()

    async with (
        raw_server(odd, server_tls(pem, "h2")) as raw,
        HttpTransport(1, ssl_context=client_tls(pem)) as transport,
    ):
        assert await Road(transport, raw).say("one", within=0.5) == "not sent"
        assert raw.seen(SECRET.encode()) == 0


# Ends in order


async def test_after_a_goodbye_new_requests_go_elsewhere_and_those_under_way_are_answered(pem: Path) -> None:
    def bye(_: Http2Server, peer: Http2Peer, identity: str) -> None:
        if identity == "n9":
            peer.goaway(peer.last_stream)

    server = Http2Server(bye, delay=0.2)
    async with road_to(server, pem) as road:
        assert set((await road.say_all(names(10))).values()) == {"answered"}
        assert await road.say("later") == "answered"
    assert len(server.peers) == 2
    assert set(server.arrived.values()) == {1}


async def test_what_a_goodbye_excludes_is_taken_elsewhere(pem: Path) -> None:
    def bye(server: Http2Server, peer: Http2Peer, identity: str) -> None:
        if identity == "n4" and len(server.peers) == 1:
            peer.goaway(peer.last_stream)

    server = Http2Server(bye, delay=0.2)
    async with road_to(server, pem) as road:
        assert await road.say("first") == "answered"
        assert set((await road.say_all(names(10))).values()) == {"answered"}
    assert len(server.peers) == 2
    assert set(server.arrived.values()) == {1}
    assert server.begun["n5"] == 2


@pytest.mark.parametrize("way", ["goaway", "refused"])
async def test_a_server_that_takes_nothing_is_left_alone_after_a_few_tries(pem: Path, way: str) -> None:
    def refuse(_: Http2Server, peer: Http2Peer, identity: str) -> None:
        if way == "goaway":
            peer.goaway(0)
        else:
            peer.reset_stream(identity, REFUSED_STREAM)

    server = Http2Server(refuse, hold={"one"})
    async with road_to(server, pem) as road:
        assert await road.say("one") == "not sent"
    assert server.begun["one"] == len(server.peers) == TRIES


@pytest.mark.parametrize("way", ["goaway", "close", "reset"])
async def test_a_connection_that_ended_while_idle_is_not_used_again(pem: Path, way: str) -> None:
    server = Http2Server()
    async with road_to(server, pem) as road:
        for n in range(5):
            assert await road.say(f"n{n}") == "answered"
            match way:
                case "goaway":
                    server.peers[-1].goaway(server.peers[-1].last_stream)
                case "close":
                    server.peers[-1].close()
                case _:
                    server.peers[-1].reset()
            await until(lambda: all(peer.closed.is_set() for peer in road.raw.peers))
        assert len(server.peers) == 5
    assert [server.begun[f"n{n}"] for n in range(5)] == [1] * 5


async def test_an_old_connection_is_not_used_again(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Http2Server()
    async with road_to(server, pem) as road:
        await road.post()
        now = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now() + KEEPALIVE)
        await road.post(within=3600)
        assert len(server.peers) == 2
        await until(road.raw.peers[0].closed.is_set)


async def test_a_connection_carries_requests_until_its_numbers_end(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "STREAM_LAST", 5)
    server = Http2Server(delay=0.1)
    async with road_to(server, pem) as road:
        for _ in range(3):
            assert await road.say("alone") == "answered"
        assert set((await road.say_all(names(10))).values()) == {"answered"}
    assert len(server.peers) >= 5
    assert {max(peer.last_stream, 1) for peer in server.peers} <= {1, 3, 5}


# Doubt


@pytest.mark.parametrize("error", [NO_ERROR, CANCEL])
async def test_a_request_that_the_server_breaks_off_is_unsure_and_the_others_are_answered(
    pem: Path, error: int
) -> None:
    def break_off(_: Http2Server, peer: Http2Peer, identity: str) -> None:
        if identity == "n3":
            peer.reset_stream(identity, error)

    server = Http2Server(break_off, delay=0.1, hold={"n3"})
    async with road_to(server, pem) as road:
        said = await road.say_all(names(10))
        assert said.pop("n3") is Code.CONNECTION_LOST
        assert set(said.values()) == {"answered"}
    assert set(server.arrived.values()) == {1}


@pytest.mark.parametrize("way", ["close", "reset", "goaway"])
async def test_a_connection_that_ends_leaves_all_under_way_unsure_and_none_is_sent_again(pem: Path, way: str) -> None:
    def end(_: Http2Server, peer: Http2Peer, identity: str) -> None:
        if identity == "n9":
            if way == "goaway":
                peer.goaway(peer.last_stream)
            (peer.reset if way == "reset" else peer.close)()

    server = Http2Server(end, hold=set(names(10)))
    async with road_to(server, pem) as road:
        assert set((await road.say_all(names(10))).values()) == {Code.CONNECTION_LOST}
        await asyncio.sleep(0.05)
    assert (set(server.arrived.values()), len(server.peers)) == ({1}, 1)


async def test_no_answer_by_the_deadline_is_unsure_and_the_connection_gets_no_more(pem: Path) -> None:
    server = Http2Server(hold={"mute"}, delay=1.0)
    async with road_to(server, pem) as road, anyio.create_task_group() as tasks:
        slow: dict[str, str] = {}

        async def wait() -> None:
            slow.update(await road.say_all(names(5)))

        tasks.start_soon(wait)
        begun = time.monotonic()
        assert await road.say("mute", within=0.3) is Code.TIMEOUT
        assert time.monotonic() - begun > 0.25
        server.delay = 0.0
        assert await road.say("later") == "answered"
        await until(road.raw.peers[0].closed.is_set)
        assert set(slow.values()) == {"answered"}
        assert not road.raw.peers[1].closed.is_set()
    assert set(server.arrived.values()) == {1}


async def test_an_answer_that_came_before_the_deadline_counts_though_the_process_slept(pem: Path) -> None:
    server = Http2Server()
    async with road_to(server, pem) as road:
        await road.post("first")
        answer = asyncio.create_task(road.post("second", within=0.5))
        await until(lambda: server.arrived["second"] == 1)
        time.sleep(0.8)  # noqa: ASYNC251 - this is what is tested
        assert (await answer).status == 200


# Before anything leaves


async def test_bodies_wait_until_the_server_takes_them(pem: Path) -> None:
    server = Http2Server()
    async with road_to(server, pem) as road:
        assert set((await road.say_all(names(100), mark=b"x" * 4000)).values()) == {"answered"}
        assert await road.say("long", mark=b"x" * 50_000) == "answered"
    assert set(server.arrived.values()) == {1}


async def test_what_the_server_does_not_take_by_the_deadline_is_not_sent(pem: Path) -> None:
    server = Http2Server(acknowledges=False)
    async with road_to(server, pem) as road:
        said = await road.say_all(names(30), mark=b"x" * 4000, within=1.0)
    assert [said[name] for name in names(30)] == ["answered"] * 16 + ["not sent"] * 14
    assert server.begun.total() == 16


async def test_a_body_that_no_request_may_have_is_not_sent_and_cancelled_it_had_not_left(pem: Path) -> None:
    server = Http2Server(settings={SettingCodes.INITIAL_WINDOW_SIZE: len(MARK) - 1})
    async with road_to(server, pem) as road:
        assert await road.say("one", within=0.3) == "not sent"
        task = asyncio.create_task(road.post("two"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(CancelledUnsent):
            await task
        assert await road.say("small", mark=b"x") == "answered"
    assert dict(server.begun) == {"small": 1}


async def test_a_request_cancelled_on_its_way_is_not_said_to_be_unsent(pem: Path) -> None:
    server = Http2Server(hold={"one"})
    async with road_to(server, pem) as road:
        task = asyncio.create_task(road.post("one"))
        await until(lambda: server.arrived["one"] == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert not isinstance(caught.value, CancelledUnsent)


async def test_a_token_longer_than_a_frame_is_not_sent(pem: Path) -> None:
    server = Http2Server()
    async with road_to(server, pem) as road:
        url = f"https://127.0.0.1:{road.raw.port}/"
        with pytest.raises(NotSent):
            await road.transport.post(url, {"authorization": "\x7f~" * 20_000}, b"{}", time.monotonic() + 60)
        assert await road.say("one") == "answered"
    assert dict(server.begun) == {"one": 1}


# Answers


def head(*fields: tuple[str, str], status: str | None = "200") -> bytes:
    encoded: bytes = Encoder().encode([*([] if status is None else [(":status", status)]), *fields])
    return encoded


def frames(*sent: Frame | bytes) -> bytes:
    return b"".join(each if isinstance(each, bytes) else each.serialize() for each in sent)


HEAD: Final = head()
WHOLE: Final = HeadersFrame(1, HEAD, flags=["END_HEADERS"])
LAST: Final = DataFrame(1, MARK, flags=["END_STREAM"])

GOOD: Final[dict[str, tuple[Frame | bytes, ...]]] = {
    "plain": (WHOLE, LAST),
    "with an empty end": (WHOLE, DataFrame(1, MARK), DataFrame(1, b"", flags=["END_STREAM"])),
    "in pieces": (
        WHOLE,
        *(DataFrame(1, MARK[n : n + 1]) for n in range(len(MARK))),
        DataFrame(1, flags=["END_STREAM"]),
    ),
    "padded": (
        HeadersFrame(1, HEAD, pad_length=7, flags=["END_HEADERS", "PADDED"]),
        DataFrame(1, MARK, pad_length=9, flags=["END_STREAM", "PADDED"]),
    ),
    "with a priority": (HeadersFrame(1, HEAD, depends_on=0, flags=["END_HEADERS", "PRIORITY"]), LAST),
    "head in pieces": (
        HeadersFrame(1, HEAD[:1]),
        *(ContinuationFrame(1, HEAD[n : n + 1]) for n in range(1, len(HEAD))),
        ContinuationFrame(1, flags=["END_HEADERS"]),
        LAST,
    ),
    "the first after the settings": (HeadersFrame(1, b"\x20" + HEAD, flags=["END_HEADERS"]), LAST),
    "after an interim one": (HeadersFrame(1, head(status="103"), flags=["END_HEADERS"]), WHOLE, LAST),
    "with a trailer": (
        WHOLE,
        DataFrame(1, MARK),
        HeadersFrame(1, head(("x", "y"), status=None), flags=["END_HEADERS", "END_STREAM"]),
    ),
    "with its length": (
        HeadersFrame(1, head(("content-length", str(len(MARK)))), flags=["END_HEADERS"]),
        LAST,
    ),
    "among others' frames": (
        PriorityFrame(1),
        WindowUpdateFrame(1, window_increment=5),
        WHOLE,
        b"\x00\x00\x03\xee\xff\x00\x00\x00\x01new",
        SettingsFrame(0, {SettingsFrame.MAX_FRAME_SIZE: 20_000}),
        PingFrame(0, b"12345678"),
        DataFrame(77, b"of a request that nobody waits for"),
        RstStreamFrame(77, error_code=NO_ERROR),
        LAST,
    ),
    "of many heads": (HeadersFrame(1, head(*((f"x{n}", "y") for n in range(200))), flags=["END_HEADERS"]), LAST),
}


@pytest.mark.parametrize("answer", GOOD.values(), ids=GOOD.keys())
async def test_an_answer_is_read_however_it_is_framed(pem: Path, answer: Sequence[Frame | bytes]) -> None:
    server = Http2Server(lambda _, peer, __: peer.say(frames(*answer)), hold={"one"})
    async with road_to(server, pem) as road:
        response = await road.post()
        assert (response.status, response.body) == (200, MARK)
        assert not road.raw.peers[0].closed.is_set()


BROKEN: Final[dict[str, bytes]] = {
    "a body without a head": frames(LAST),
    "a head that ends an interim answer": frames(
        HeadersFrame(1, head(status="103"), flags=["END_HEADERS", "END_STREAM"])
    ),
    "two heads": frames(WHOLE, WHOLE),
    "no status": frames(HeadersFrame(1, head(("x", "y"), status=None), flags=["END_HEADERS"])),
    "a status of four": frames(HeadersFrame(1, head(status="2000"), flags=["END_HEADERS"])),
    "a status of letters": frames(HeadersFrame(1, head(status="abc"), flags=["END_HEADERS"])),
    "a second status": frames(HeadersFrame(1, HEAD + HEAD, flags=["END_HEADERS"])),
    "a head that is none": frames(HeadersFrame(1, b"\xff" * 20, flags=["END_HEADERS"])),
    "a head from a table that is not there": frames(HeadersFrame(1, b"\x88\xbe", flags=["END_HEADERS"])),
    "less than its length": frames(HeadersFrame(1, head(("content-length", "99")), flags=["END_HEADERS"]), LAST),
    "a length of letters": frames(HeadersFrame(1, head(("content-length", "ten")), flags=["END_HEADERS"]), LAST),
    "a body without end": frames(WHOLE, *[DataFrame(1, b"x" * 16_384)] * (ANSWER_MAX // 16_384 + 1)),
    "a head without end": frames(HeadersFrame(1, b"\x88"), *[ContinuationFrame(1, b"\x88" * 16_000)] * 3),
    "a head that is too long": frames(
        HeadersFrame(1, head(*((f"x{n}", "y" * 90) for n in range(HEAD_MAX // 90))), flags=["END_HEADERS"])
    ),
    "something between the parts of a head": frames(HeadersFrame(1, HEAD[:1]), PingFrame(0, b"12345678")),
    "another's part of a head": frames(HeadersFrame(1, HEAD[:1]), ContinuationFrame(3, b"", flags=["END_HEADERS"])),
    "a part of no head": frames(ContinuationFrame(1, HEAD, flags=["END_HEADERS"])),
    "a frame that is too long": b"\x00\x40\x01" + frames(LAST)[3:],
    "padding longer than the frame": b"\x00\x00\x02\x00\x08\x00\x00\x00\x01\x05\x00",
    "padding without a length": b"\x00\x00\x00\x00\x08\x00\x00\x00\x01",
    "a push": frames(PushPromiseFrame(1, 2, HEAD, flags=["END_HEADERS"])),
    "half a setting": b"\x00\x00\x05\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00",
    "half a goodbye": b"\x00\x00\x04\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    "half a window": b"\x00\x00\x02\x08\x00\x00\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_answer_is_unsure_and_the_connection_gets_no_more(pem: Path, answer: bytes) -> None:
    server = Http2Server(lambda _, peer, __: peer.say(answer), hold={"one"})
    async with road_to(server, pem) as road:
        assert await road.say("one") is Code.BAD_ANSWER
        server.on_request = lambda *_: None
        await until(road.raw.peers[0].closed.is_set)
        assert await road.say("two") == "answered"
    assert (server.arrived["one"], len(server.peers)) == (1, 2)


async def test_answers_go_on_after_more_than_a_window_of_them(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "WINDOW_MAX", 200_000)
    server = Http2Server(answer=b"x" * 60_000)
    async with road_to(server, pem) as road:
        for n in range(20):
            assert len((await road.post(f"n{n}")).body) == 60_000
    assert len(server.peers) == 1


@given(
    st.lists(
        st.tuples(st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1), st.text(st.characters(codec="utf-8"))), max_size=8
    ),
    st.booleans(),
)
def test_a_head_is_read_as_hpack_wrote_it(fields: list[tuple[str, str]], huffman: bool) -> None:
    fields = [(name, value) for name, value in fields if name != "content-length"]
    encoder = Encoder()
    encoder.header_table_size = 0
    block = encoder.encode([(":status", "404"), *fields], huffman=huffman)
    assert answer_head(block) == (404, dict(fields), None)


@given(st.binary(max_size=60))
def test_no_bytes_make_the_reader_of_heads_fail_in_another_way(block: bytes) -> None:
    with suppress(NotAnAnswer):
        assert 100 <= answer_head(block).status <= 999


class Wire:
    """A link in memory, whose other end is h2."""

    def __init__(self) -> None:
        self.is_open = True
        self.alpn_protocol = "h2"
        self.receiver: Receiver | None = None
        self.peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.peer.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.deaf = False

    def listen(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def write(self, data: bytes) -> bool:
        if not self.deaf:
            self.events += self.peer.receive_data(data)
        return True

    def look(self) -> bool:
        return self.is_open

    def abort(self) -> None:
        self.is_open = False


async def opened(wire: Wire) -> Http2Connection:
    everyone: set[Connection] = set()
    link: Link = wire  # type: ignore[assignment]
    opening = asyncio.create_task(Http2Connection.open(link, everyone, Deadlines()))
    await asyncio.sleep(0)
    assert wire.receiver is not None
    wire.receiver.received(wire.peer.data_to_send())
    return await opening


@given(st.data())
def test_however_answers_are_ordered_and_cut_each_goes_to_its_request(data: st.DataObject) -> None:
    bodies = data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=6))

    async def talk() -> None:
        wire = Wire()
        connection = await opened(wire)
        deadline = time.monotonic() + 60
        tasks = [
            asyncio.create_task(connection.exchange("https://x/", (("x-id", str(n)),), body, deadline))
            for n, body in enumerate(bodies)
        ]
        for _ in range(3):
            await asyncio.sleep(0)
        arrived = {event.stream_id for event in wire.events if isinstance(event, h2.events.StreamEnded)}
        assert len(arrived) == len(bodies)
        for stream in data.draw(st.permutations(sorted(arrived))):
            wire.peer.send_headers(stream, [(":status", "200"), ("x-stream", str(stream))])
            wire.peer.send_data(stream, b"<%d>" % stream, end_stream=True)
        sent = wire.peer.data_to_send()
        cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=12)))
        assert wire.receiver is not None
        for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            if begin < end:
                wire.receiver.received(sent[begin:end])
        for number, task in enumerate(tasks):
            assert await task == Response(200, {"x-stream": str(2 * number + 1)}, b"<%d>" % (2 * number + 1))
        assert connection.room == 100

    asyncio.run(talk())


@given(st.data())
def test_no_bytes_leave_a_request_without_a_word(data: st.DataObject) -> None:
    """Frames of all kinds, and what is none: the request has its answer, or is unsure, or refused, or goes on."""
    kinds = st.builds(
        http2.write_frame,
        st.integers(0, 12),
        st.integers(0, 255),
        st.sampled_from([0, 1, 1, 1, 3, 9]),
        st.one_of(st.binary(max_size=20), st.sampled_from([HEAD, MARK, b"\x00" * 8, b"\x00" * 4])),
    )
    sent = data.draw(st.lists(st.one_of(kinds, kinds, kinds, st.binary(max_size=20)), max_size=8))

    async def talk() -> None:
        wire = Wire()
        connection = await opened(wire)
        wire.deaf = True  # h2 has an opinion of its own of what answers nonsense
        task = asyncio.create_task(connection.exchange("https://x/", (), MARK, time.monotonic() + 60))
        for _ in range(3):
            await asyncio.sleep(0)
        assert wire.receiver is not None
        for each in sent:
            if wire.is_open and each:
                wire.receiver.received(each)
        if wire.is_open:
            wire.receiver.ended(in_order=False)
        answer = await asyncio.wait_for(task, 10)
        assert answer is None or isinstance(answer, (Response, Code))
        assert connection.room == 0

    asyncio.run(talk())


@pytest.mark.parametrize("seed", range(3))
async def test_in_a_storm_of_everything_no_word_is_false(pem: Path, seed: int) -> None:
    """Servers that refuse, part, break off, close, reset and fall silent; requests that are cancelled or late."""
    dice = Random(seed)
    calm = False
    taken: dict[str, int] = {}

    def moody(server: Http2Server, peer: Http2Peer, identity: str) -> None:
        mood = 99 if calm else dice.randrange(60)
        server.hold.discard(identity)
        if mood in (0, 1):
            server.hold.add(identity)
            peer.reset_stream(identity, REFUSED_STREAM)
            return
        if mood == 2:
            peer.goaway(peer.last_stream - 2)
            server.hold.add(identity)
            return
        taken[identity] = taken.get(identity, 0) + 1
        if mood == 3:
            peer.goaway(peer.last_stream)
        elif mood == 4:
            peer.reset_stream(identity, CANCEL)
        elif mood == 5:
            peer.close()
        elif mood == 6:
            peer.reset()
        elif mood == 7:
            peer.say(b"nonsense nonsense nonsense")
        if mood in (4, 5, 6, 7, 8):
            server.hold.add(identity)

    server = Http2Server(moody, delay=0.02)
    said: dict[str, str] = {}
    async with road_to(server, pem, 40) as road:

        async def restless(identity: str) -> None:
            await asyncio.sleep(dice.random())
            with anyio.move_on_after(dice.choice([0.001, 0.02, 1, 1, 1])):
                said[identity] = await road.say(identity, within=dice.choice([0.002, 0.05, 0.4, 0.4]))

        async with anyio.create_task_group() as tasks:
            for name in names(400):
                tasks.start_soon(restless, name)
        calm = True
        server.hold.clear()
        assert set((await road.say_all([f"calm{n}" for n in range(30)])).values()) <= {"answered", Code.CONNECTION_LOST}
    assert max(taken.values()) == 1
    assert not {name for name, word in said.items() if word == "not sent" and name in taken}
    assert not {name for name, word in said.items() if word == "answered" and name not in taken}
    assert {"answered", "not sent", Code.TIMEOUT, Code.CONNECTION_LOST} <= set(said.values())
