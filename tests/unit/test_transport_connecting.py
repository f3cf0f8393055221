"""Until there is a connection nothing is sent: names, addresses, TLS, and how many connections there may be."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from pgherald.fcm import CancelledUnsent, NotSent, Unsure
from pgherald.link import Link
from pgherald.transport import ADDRESS_PATIENCE, CONNECTING_MAX, HttpTransport
from tests.support.posting import MARK, SECRET, post
from tests.support.raw_server import (
    Peer,
    client_tls,
    raw_server,
    server_tls,
    until,
)
from tests.support.road import MakeRoad, answer_all
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.anyio


async def test_a_refused_connection_is_not_sent(transport: MakeRoad) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with transport() as road:
            with pytest.raises(NotSent):
                await post(road, unused.getsockname()[1])


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
                assert took.seconds < 30
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


async def test_a_server_that_closes_every_new_connection_is_left_alone_after_a_few(transport: MakeRoad) -> None:
    async def slam(peer: Peer) -> None:
        pass

    async with raw_server(slam) as server, transport() as road:
        with pytest.raises((NotSent, Unsure)):
            await post(road, server.port)
        assert len(server.peers) <= 3
        assert server.seen(MARK) == 0


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
        assert took.seconds < 30
        assert server.seen(MARK) == server.seen(SECRET.encode()) == 0


async def test_a_request_cancelled_while_it_connects_had_not_left(pem: Path, transport: MakeRoad) -> None:
    async def silence(peer: Peer) -> None:
        while await peer.read():
            pass

    async with raw_server(silence) as server, transport(ssl_context=client_tls(pem)) as road:
        task = asyncio.create_task(post(road, server.port, scheme="https"))
        await until(lambda: any(peer.arrived for peer in server.peers))
        task.cancel()
        with pytest.raises(CancelledUnsent):
            await task
        await until(server.peers[0].closed.is_set)


async def test_once_a_server_is_known_to_speak_http1_many_connections_are_made_at_once(
    monkeypatch: pytest.MonkeyPatch, transport: MakeRoad
) -> None:
    begun, gate, connect = 0, asyncio.Event(), Link.open

    async def wait_and_connect(*to: Any) -> Link:
        nonlocal begun
        begun += 1
        await gate.wait()
        return await connect(*to)

    async with raw_server(answer_all) as server, transport(CONNECTING_MAX + 9) as road:
        await post(road, server.port)
        server.peers[0].close()
        await until(server.peers[0].closed.is_set)
        monkeypatch.setattr(Link, "open", wait_and_connect)
        async with anyio.create_task_group() as tasks:
            for _ in range(CONNECTING_MAX + 9):
                tasks.start_soon(post, road, server.port)
            await until(lambda: begun == CONNECTING_MAX)
            gate.set()


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


async def test_addresses_that_do_not_answer_cost_once_each_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    mute = [f"127.0.0.{n}" for n in range(2, 9)]
    connect = Link.open
    tried: list[str] = []

    async def open_(address: str, *arguments: Any) -> Link:
        tried.append(address)
        if address in mute:
            await anyio.sleep_forever()
        return await connect(address, *arguments)

    def resolve(_: str, port: int, *__: Any, **___: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in (*mute, "127.0.0.1")]

    monkeypatch.setattr(Link, "open", open_)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with raw_server(answer_all) as server, HttpTransport(1) as road:
        url = f"http://localhost:{server.port}/"
        with pytest.raises(NotSent):
            await road.post(url, {}, b"{}", time.monotonic() + 5.5 * ADDRESS_PATIENCE)
        assert "127.0.0.1" not in tried
        assert (await road.post(url, {"connection": "close"}, b"{}", time.monotonic() + 60)).status == 200
        assert tried[-1] == "127.0.0.1"
        assert len(tried) <= len(mute) + 2  # one was cut short by the deadline
        server.peers[-1].close()
        await server.peers[-1].closed.wait()
        # What worked last is the first to be tried, and behind the others again once it works no more.
        tried.clear()
        mute.append("127.0.0.1")
        for count in (2, 4):
            task = asyncio.create_task(road.post(url, {}, b"{}", time.monotonic() + 60))
            await until(lambda count=count: len(tried) == count)  # type: ignore[misc]
            task.cancel()
            with pytest.raises(CancelledUnsent):
                await task
        assert [address == "127.0.0.1" for address in tried] == [True, False, False, False]


async def test_many_addresses_that_are_all_slow_are_given_more_time_until_one_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = [f"127.0.0.{n}" for n in range(2, 10)]
    connect = Link.open

    async def open_(_: str, *arguments: Any) -> Link:
        await anyio.sleep(1.5 * ADDRESS_PATIENCE)
        return await connect("127.0.0.1", *arguments)

    def resolve(_: str, port: int, *__: Any, **___: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(Link, "open", open_)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with raw_server(answer_all) as server, HttpTransport(1) as road:
        url, statuses = f"http://localhost:{server.port}/", []
        for _ in range(6):
            try:
                answer = await road.post(url, {"connection": "close"}, b"{}", time.monotonic() + 3)
            except NotSent:
                statuses.append(0)
            else:
                statuses.append(answer.status)
                server.peers[-1].close()
                await server.peers[-1].closed.wait()
        assert statuses[-2:] == [200, 200]
