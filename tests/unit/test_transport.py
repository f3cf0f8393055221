"""What a transport says about a request is true: not sent, unsure, or answered, and never sent twice.

Each server here logs the bytes that arrive, so "not sent for certain" is checked where it counts: at the peer. These
are the promises of `pgherald.fcm.Transport`, so any other road to FCM would have to keep them too.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import count, islice
from random import Random
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import pytest

from pgherald.fcm import ANSWER_MAX, KEEPALIVE, CancelledUnsent, NotSent, Response, Transport, Unsure
from pgherald.model import Code
from pgherald.transport import HttpTransport
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
from tests.support.road import MakeRoad, answer_all
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


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
    calm = False

    async def mute_at_first(peer: Peer) -> None:
        while True:
            await peer.request()
            if not calm:
                await peer.read()  # returns when the client closes
                return
            await peer.send(OK)

    async with raw_server(mute_at_first) as server, transport(4) as road:

        async def post_many(tasks: anyio.abc.TaskGroup, count: int) -> None:
            for _ in range(count):
                tasks.start_soon(post, road, server.port)

        for seconds in (None, *[0.01] * 20):
            with anyio.move_on_after(seconds):
                async with anyio.create_task_group() as tasks:
                    await post_many(tasks, 20)
                    if seconds is None:
                        await until(lambda: server.seen(MARK) == 4)
                        tasks.cancel_scope.cancel()
            await until(lambda: all(peer.closed.is_set() for peer in server.peers))
        calm = True
        async with anyio.create_task_group() as tasks:
            await post_many(tasks, 40)
    assert server.seen(MARK) <= 21 * 20 + 40


async def test_a_request_cancelled_while_others_have_all_slots_had_not_left(transport: MakeRoad) -> None:
    async def mute(peer: Peer) -> None:
        await peer.request()
        await peer.read()

    async with raw_server(mute) as server, transport(1) as road:
        first = asyncio.create_task(post(road, server.port))
        await until(lambda: server.seen(MARK) == 1)
        second = asyncio.create_task(post(road, server.port))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(CancelledUnsent):
            await second
        first.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await first
    assert not isinstance(caught.value, CancelledUnsent)
    assert server.seen(MARK) == 1


async def test_a_transport_that_is_closed_keeps_no_connection(transport: MakeRoad) -> None:
    async with raw_server(answer_all) as server:
        async with transport() as road:
            await post(road, server.port)
            assert not server.peers[0].closed.is_set()
        await until(server.peers[0].closed.is_set)


@pytest.mark.parametrize("whole", [True, False])
async def test_an_answer_whose_length_nobody_said_is_whole_only_if_tls_says_goodbye(
    pem: Path, transport: MakeRoad, whole: bool
) -> None:
    async def answer(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + OK_BODY)
        if whole:
            peer.close()
        else:
            peer.cut()

    async with (
        raw_server(answer, server_tls(pem, "http/1.1")) as server,
        transport(ssl_context=client_tls(pem)) as road,
    ):
        if whole:
            assert (await post(road, server.port, scheme="https")).body == OK_BODY
        else:
            with pytest.raises(Unsure) as caught:
                await post(road, server.port, scheme="https")
            assert caught.value.code is Code.CONNECTION_LOST


async def test_connections_that_are_old_are_closed_while_a_younger_one_is_used(
    transport: MakeRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, later = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now() + later)
    both = asyncio.Event()

    async def together(peer: Peer) -> None:
        while True:
            await peer.request()
            await both.wait()
            await peer.send(OK)

    async with raw_server(together) as server, transport() as road:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(partial(post, road, server.port, within=3600))
            await until(lambda: server.seen(MARK) == 2)
            both.set()
        for _ in range(2):
            later += 0.6 * KEEPALIVE
            await post(road, server.port, within=3600)
        await until(lambda: [peer.closed.is_set() for peer in server.peers].count(True) == 1)
        assert len(server.peers) == 2


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

        marks = (b"<%d>" % n for n in count())
        while not {"answered", Code.TIMEOUT} <= set(said.values()):  # or the machine was too slow for a storm
            async with anyio.create_task_group() as tasks:
                for mark in islice(marks, 200):
                    tasks.start_soon(restless, mark)
        calm = True
        last = [*islice(marks, 30)]
        async with anyio.create_task_group() as tasks:
            for mark in last:
                tasks.start_soon(one, road, server, mark, 60.0)
    assert {said[mark] for mark in last} <= {"answered", Code.CONNECTION_LOST}
    assert max(server.seen(mark) for mark in said) == 1
    assert not {mark for mark, word in said.items() if word == "not sent" and server.seen(mark)}
    assert not {mark for mark, word in said.items() if word == "answered" and not server.seen(mark)}
