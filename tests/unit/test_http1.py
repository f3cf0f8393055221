"""The reader of answers agrees with h11 on each one that it takes, and takes none that could be read in two ways."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgherald.connection import HEAD_MAX, Deadlines, NotAnAnswer
from pgherald.fcm import ANSWER_MAX, Response
from pgherald.http1 import AnswerReader, Http1Connection, whole_answer
from pgherald.model import Code
from pgherald.transport import HttpTransport
from tests.support.posting import SECRET, post
from tests.support.raw_server import OK, OK_BODY, Peer, raw_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgherald.link import Link, Receiver


def read(parts: Sequence[bytes], *, ends: bool = False) -> Response | Code | None:
    """What the reader makes of these bytes; BAD_ANSWER too if it refuses them."""
    reader = AnswerReader()
    try:
        for part in parts:
            if (answer := reader.feed(part)) is not None:
                return answer
    except NotAnAnswer:
        return Code.BAD_ANSWER
    return reader.end() if ends else None


def read_by_h11(data: bytes, *, ends: bool) -> Response | None:
    """What h11 makes of them; None if it refuses them or wants more."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 * HEAD_MAX)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    if ends:
        connection.receive_data(b"")
    status, headers, body = 0, {}, b""
    try:
        while True:
            match connection.next_event():
                case h11.Response() as head:
                    status = head.status_code
                    headers = {name.decode().lower(): value.decode("latin-1") for name, value in head.headers}
                case h11.Data(data=chunk):
                    body += bytes(chunk)
                case h11.EndOfMessage():
                    return Response(status, headers, body)
                case h11.InformationalResponse(status_code=101):
                    return None
                case h11.InformationalResponse():
                    pass
                case _:
                    return None
    except h11.RemoteProtocolError:
        return None


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

GOOD: list[tuple[bytes, Response]] = [
    (OK, Response(200, {"content-length": str(len(OK_BODY))}, OK_BODY)),
    (b"HTTP/1.1 200\r\nContent-Length:2\r\n\r\n{}", Response(200, {"content-length": "2"}, b"{}")),
    (b"HTTP/1.1 204 No Content\r\n\r\n", Response(204, {}, b"")),
    (
        b"HTTP/1.1 503 Busy\r\nRetry-After:  30 \r\ncontent-length: 0\r\n\r\n",
        Response(503, {"retry-after": "30", "content-length": "0"}, b""),
    ),
    (CHUNKED + chunked(b'{"name":', b'"n"}'), Response(200, {"transfer-encoding": "chunked"}, b'{"name":"n"}')),
    (CHUNKED + b"2;x=y\r\n{}\r\n0\r\nX-Trailer: 1\r\n\r\n", Response(200, {"transfer-encoding": "chunked"}, b"{}")),
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK,
        Response(200, {"content-length": str(len(OK_BODY))}, OK_BODY),
    ),
    (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        Response(200, {"content-length": "2"}, b"{}"),
    ),
]


@given(st.sampled_from(GOOD), st.data())
def test_an_answer_is_the_same_however_it_is_cut(good: tuple[bytes, Response], data: st.DataObject) -> None:
    sent, answer = good
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    parts = [sent[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert read(parts) == answer
    assert read([bytes([byte]) for byte in sent]) == answer
    assert read([sent[:-1]]) is None or answer.status == 204


@pytest.mark.parametrize("cut", range(1, len(OK)))
def test_a_cut_answer_is_no_answer(cut: int) -> None:
    assert read([OK[:cut]]) is None
    assert read([OK[:cut]], ends=True) in (Code.CONNECTION_LOST, Code.BAD_ANSWER)


def test_an_answer_without_a_length_is_what_came_until_the_end() -> None:
    assert read([b"HTTP/1.1 200 OK\r\n\r\n{}"], ends=True) == Response(200, {}, b"{}")


BAD: list[bytes] = [
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x16\x03\x01\x02\x00",
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 20x OK\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}" + b"x" * HEAD_MAX,
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nNo colon here\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (ANSWER_MAX + 1),
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"{}"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + chunked(b"{}"),
    b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (ANSWER_MAX + 1),
    CHUNKED + b"2\r\n{}x\r\n",
    CHUNKED + b"-2\r\n{}\r\n",
    CHUNKED + b"ffffffff\r\n",
    CHUNKED + chunked(*[b"x" * 30_000] * 3),
    CHUNKED + b"2" * 100_000,
    CHUNKED + b"0\r\n" + b"X: y\r\n" * 10_000,
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
]


@pytest.mark.parametrize("sent", BAD, ids=range(len(BAD)))
def test_what_is_no_http_or_could_be_read_in_two_ways_is_refused(sent: bytes) -> None:
    assert read([sent]) is Code.BAD_ANSWER


words = st.sampled_from(
    [
        *(
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.0 404 Not Found\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 204 No\r\n",
        ),
        *(
            b"Content-Length: 2\r\n",
            b"content-length: 3\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
        ),
        *(
            b"X-Y: z\r\n",
            b"X-Y:\tz \r\n",
            b" folded\r\n",
            b"\r\n",
            b"\r",
            b"\n",
            b":",
            b"0",
            b"2\r\n",
            b"0\r\n\r\n",
            b"{}",
            b"\x00",
        ),
        *(b"{}\r\n", OK, CHUNKED),
    ]
)
streams = st.lists(words | st.binary(max_size=4), max_size=10).map(b"".join)


@given(streams, st.booleans())
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n", False)
@example(CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", True)
def test_whatever_answer_is_taken_h11_reads_the_same(sent: bytes, ends: bool) -> None:
    answer = read([sent], ends=ends)
    if isinstance(answer, Response):
        assert read_by_h11(sent, ends=ends) == answer


def test_a_plain_answer_is_read_in_one_piece() -> None:
    assert whole(OK) == (read([OK]), True)


def whole(sent: bytes) -> tuple[Response, bool] | Code | None:
    """What is made of bytes that came in one piece; BAD_ANSWER if they are refused."""
    try:
        return whole_answer(sent)
    except NotAnAnswer:
        return Code.BAD_ANSWER


@given(streams | st.sampled_from(BAD))
@example(OK)
@example(OK + b"x")
@example(b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
def test_an_answer_in_one_piece_is_what_the_reader_makes_of_it(sent: bytes) -> None:
    found = whole(sent)
    if isinstance(found, tuple):
        reader = AnswerReader()
        assert found == (reader.feed(sent), reader.reusable)
    elif found is not None:
        assert read([sent]) is found


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_make_the_reader_fail_in_another_way(sent: bytes, ends: bool) -> None:
    read([sent], ends=ends)
    read([b"HTTP/1.1 200 OK\r\n", sent], ends=ends)
    read([CHUNKED, sent], ends=ends)


@pytest.mark.parametrize(
    ("sent", "reusable"),
    [
        (OK, True),
        (OK + b"x", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", True),
        (CHUNKED + chunked(b"{}"), True),
    ],
)
def test_a_connection_is_used_again_only_if_the_server_means_to_go_on(sent: bytes, reusable: bool) -> None:
    reader = AnswerReader()
    assert reader.feed(sent) is not None
    assert reader.reusable is reusable


@pytest.mark.anyio
async def test_a_server_that_speaks_unasked_loses_the_connection() -> None:
    async def chatty(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.send(OK)
        await peer.read()

    async with raw_server(chatty) as server, HttpTransport(1) as road:
        for _ in range(3):
            assert (await post(road, server.port)).body == OK_BODY
            await server.peers[-1].closed.wait()
        assert len(server.peers) == 3
        assert server.seen(SECRET.encode()) == 3


class Wire:
    """A link in memory: `unread` waits to be read, and if it `refuses`, no byte leaves."""

    def __init__(self, unread: bytes = b"", *, refuses: bool = False) -> None:
        self.is_open = True
        self.refuses = refuses
        self.unread = unread
        self.receiver: Receiver | None = None

    def listen(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def write(self, _: bytes) -> bool:
        return not self.refuses

    def look(self) -> bool:
        assert self.receiver is not None
        self.receiver.received(self.unread)
        return True

    def abort(self) -> None:
        self.is_open = False


@pytest.mark.anyio
async def test_an_answer_that_had_come_by_the_deadline_counts_though_nobody_had_read_it() -> None:
    link: Link = Wire(OK)  # type: ignore[assignment]
    connection = Http1Connection(link, set(), Deadlines())
    task = asyncio.create_task(connection.exchange("http://x/", (), b"", time.monotonic() + 60))
    await asyncio.sleep(0)
    connection.expire()
    answer = await task
    assert isinstance(answer, Response)
    assert answer.body == OK_BODY


@pytest.mark.anyio
async def test_a_request_of_which_the_kernel_refused_every_byte_was_not_taken() -> None:
    wire = Wire(refuses=True)
    link: Link = wire  # type: ignore[assignment]
    connection = Http1Connection(link, set(), Deadlines())
    assert await connection.exchange("http://x/", (), b"", time.monotonic() + 60) is None
    assert not wire.is_open
