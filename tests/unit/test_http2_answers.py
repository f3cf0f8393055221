"""Answers over HTTP/2 are read as h2 and hpack write them, however they are framed and cut; nonsense is doubt."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import h2.config
import h2.connection
import h2.events
import pytest
from h2.settings import SettingCodes
from hpack import Decoder, Encoder, NeverIndexedHeaderTuple
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
from pgherald.connection import HEAD_MAX, Deadlines, Expiring, NotAnAnswer
from pgherald.fcm import ANSWER_MAX, Response
from pgherald.http2 import Http2Connection, answer_head
from pgherald.model import Code
from tests.support.posting import MARK
from tests.support.raw_server import (
    Http2Server,
    until,
)
from tests.support.road import road_to

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pgherald.connection import Connection
    from pgherald.link import Link, Receiver

pytestmark = pytest.mark.anyio

NO_ERROR: Final = 0
CANCEL: Final = 8
REFUSED_STREAM: Final = 7


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
        self.deaf = self.refuses = False
        self.unread = b""

    def listen(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def write(self, data: bytes) -> bool:
        if not self.deaf and not self.refuses:
            self.events += self.peer.receive_data(data)
        return not self.refuses

    def deliver(self) -> None:
        """Hand over what the other end has to say."""
        assert self.receiver is not None
        self.receiver.received(self.peer.data_to_send())

    def count(self, kind: type[h2.events.Event]) -> int:
        """How many events of a kind there were at the other end."""
        return sum(isinstance(event, kind) for event in self.events)

    def look(self) -> bool:
        unread, self.unread = self.unread, b""
        if unread and self.receiver is not None:
            self.receiver.received(unread)
        return self.is_open

    def abort(self) -> None:
        self.is_open = False


async def opened(wire: Wire, deadlines: Deadlines | None = None) -> Http2Connection:
    everyone: set[Connection] = set()
    link: Link = wire  # type: ignore[assignment]
    opening = asyncio.create_task(Http2Connection.open(link, everyone, deadlines or Deadlines()))
    await asyncio.sleep(0)
    wire.deliver()
    return await opening


class Clockless(Deadlines):
    """Deadlines that come when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[Expiring] = []

    def add(self, what: Expiring, deadline: float) -> None:
        self.added.append(what)


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_request_whose_time_ends_before_it_is_written_does_not_leave() -> None:
    wire, deadlines = Wire(), Clockless()
    connection = await opened(wire, deadlines)
    task = asyncio.create_task(connection.exchange("https://x/", (), MARK, time.monotonic() + 60))
    await turns(1)
    deadlines.added[0].expire()
    assert await task is None
    await turns()
    assert not [event for event in wire.events if isinstance(event, h2.events.RequestReceived)]
    assert connection.room == 100


async def test_an_answer_that_had_come_by_the_deadline_counts_though_nobody_had_read_it() -> None:
    wire, deadlines = Wire(), Clockless()
    connection = await opened(wire, deadlines)
    task = asyncio.create_task(connection.exchange("https://x/", (), MARK, time.monotonic() + 60))
    await turns()
    wire.unread = frames(WHOLE, LAST)
    deadlines.added[0].expire()
    assert await task == Response(200, {}, MARK)


async def test_requests_of_which_the_kernel_refused_every_byte_were_not_taken() -> None:
    wire = Wire()
    connection = await opened(wire)
    deadline = time.monotonic() + 60
    before = asyncio.create_task(connection.exchange("https://x/", (), MARK, deadline))
    await turns()
    wire.refuses = True
    after = [asyncio.create_task(connection.exchange("https://x/", (), MARK, deadline)) for _ in range(2)]
    assert await asyncio.gather(before, *after) == [Code.CONNECTION_LOST, None, None]
    assert not wire.is_open


async def test_settings_and_pings_are_acknowledged() -> None:
    wire = Wire()
    await opened(wire)
    assert wire.count(h2.events.SettingsAcknowledged) == 1
    wire.peer.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 7})
    wire.peer.ping(b"12345678")
    wire.deliver()
    assert wire.count(h2.events.SettingsAcknowledged) == 2
    assert [event.ping_data for event in wire.events if isinstance(event, h2.events.PingAckReceived)] == [b"12345678"]


async def test_a_body_that_waits_leaves_as_soon_as_the_server_takes_it() -> None:
    wire = Wire()
    connection = await opened(wire)
    deadline = time.monotonic() + 60
    tasks = [
        asyncio.create_task(connection.exchange("https://x/", (), b"x" * size, deadline)) for size in (65_000, 1_000)
    ]
    await turns()
    assert wire.count(h2.events.StreamEnded) == 1
    wire.peer.acknowledge_received_data(65_000, 1)
    wire.deliver()
    await turns()
    assert wire.count(h2.events.StreamEnded) == 2
    for stream in (1, 3):
        wire.peer.send_headers(stream, [(":status", "200")], end_stream=True)
    wire.deliver()
    assert await asyncio.gather(*tasks) == [Response(200, {}, b"")] * 2


def test_what_a_head_tells_of_a_request_is_for_nobodys_table() -> None:
    """No proxy may put an access token where another connection's guess would find it (RFC 7541 section 7.1.3)."""
    fields = Decoder().decode(http2.request_head("https://x/v1", (("authorization", "Bearer y"), ("x-id", "1"))))
    never = {str(field[0]) for field in fields if isinstance(field, NeverIndexedHeaderTuple)}
    assert never == {":authority", ":path", "authorization", "x-id"}


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
        await turns()
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
        await turns()
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
