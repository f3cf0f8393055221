"""HTTP/2 keeps the promises of `pgherald.fcm.Transport`, to a server made of h2.

What a server says it did not take is taken elsewhere or not sent; what nobody can tell is unsure. The servers count
what arrives, so each word is checked at the peer. See test_http2_answers.py for what may come back.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from random import Random
from typing import TYPE_CHECKING, Final

import anyio
import pytest
from h2.settings import SettingCodes
from hyperframe.frame import PingFrame

from pgherald import http2
from pgherald.fcm import KEEPALIVE, CancelledUnsent, NotSent, Response
from pgherald.model import Code
from pgherald.transport import TRIES, HttpTransport
from tests.support.posting import MARK, SECRET
from tests.support.raw_server import (
    Http2Peer,
    Http2Server,
    Peer,
    client_tls,
    raw_server,
    server_tls,
    until,
)
from tests.support.road import Road, names, road_to

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.anyio

NO_ERROR: Final = 0
CANCEL: Final = 8
REFUSED_STREAM: Final = 7

LOOPS: Final = tuple(("asyncio", {"use_uvloop": use}) for use in (False, True))


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
    server = Http2Server(patience=asyncio.Event(), settings={SettingCodes.MAX_CONCURRENT_STREAMS: allowed})
    assert server.patience is not None
    async with road_to(server, pem) as road:
        first = asyncio.create_task(road.say_all(names(count)))
        await until(lambda: server.arrived.total() == count)
        assert len(server.peers) == connections
        server.patience.set()
        assert set((await first).values()) == {"answered"}
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
    server = Http2Server(hold={"mute"}, patience=asyncio.Event())
    assert server.patience is not None
    async with road_to(server, pem) as road:
        slow = asyncio.create_task(road.say_all(names(5)))
        await until(lambda: server.arrived.total() == 5)
        begun = time.monotonic()
        assert await road.say("mute", within=1.0) is Code.TIMEOUT
        assert time.monotonic() - begun > 0.95
        later = asyncio.create_task(road.say("later"))
        await until(lambda: len(server.peers) == 2 and server.arrived["later"] == 1)
        assert not road.raw.peers[0].closed.is_set()
        server.patience.set()
        assert set((await slow).values()) == {await later} == {"answered"}
        await until(road.raw.peers[0].closed.is_set)
        assert not road.raw.peers[1].closed.is_set()
    assert set(server.arrived.values()) == {1}


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
        said = await road.say_all(names(30), mark=b"x" * 4000, within=3.0)
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


async def test_a_body_that_waits_is_sent_when_the_server_allows_it(pem: Path) -> None:
    server = Http2Server(settings={SettingCodes.INITIAL_WINDOW_SIZE: 1})
    async with road_to(server, pem) as road:
        assert await road.say("small", mark=b"x") == "answered"
        task = asyncio.create_task(road.say("one", within=5.0))
        for _ in range(3):  # turns of the loop: it has been handed over, and was not written
            await asyncio.sleep(0)
        server.peers[0].link.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
        await server.peers[0].flush()
        assert await task == "answered"
    assert len(server.peers) == 1


@pytest.mark.parametrize("anyio_backend", LOOPS, ids=("asyncio", "uvloop"))
async def test_what_could_not_leave_before_its_deadline_is_not_sent(pem: Path) -> None:
    server = Http2Server()
    async with road_to(server, pem) as road:
        assert await road.say("first") == "answered"
        # The process is stopped in the turn of the loop that writes the request, which the turn before has handed over.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, time.sleep, 1.0)
        assert await asyncio.create_task(road.say("late", within=0.5)) == "not sent"
        assert await road.say("later") == "answered"
    assert (server.begun["late"], len(server.peers)) == (0, 1)


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
            await road.transport.post(url, {"authorization": "~" * 20_000}, b"{}", time.monotonic() + 60)
        assert await road.say("one") == "answered"
    assert dict(server.begun) == {"one": 1}


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

        for storm in itertools.count():
            async with anyio.create_task_group() as tasks:
                for name in names(400):
                    tasks.start_soon(restless, f"{name}-{storm}")
            if set(said.values()) - {"answered", "not sent"}:
                break  # on a machine that is busy, all of them may have been too late to be sent
        calm = True
        server.hold.clear()
        after = await road.say_all([f"calm{n}" for n in range(30)])
    assert set(after.values()) <= {"answered", Code.CONNECTION_LOST}
    said.update(after)
    assert max(taken.values()) == 1
    assert not {name for name, word in said.items() if word == "not sent" and name in taken}
    assert not {name for name, word in said.items() if word == "answered" and name not in taken}
    assert "answered" in said.values()
