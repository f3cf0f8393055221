"""What the exporter promises: the right answers, and answers at all whatever its clients do. Over real sockets."""

from __future__ import annotations

import json
import os
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgherald import exporter
from pgherald.errors import ConfigError
from pgherald.exporter import serve
from pgherald.health import Health, Snapshot, Status
from pgherald.metrics import Metrics
from pgherald.values import HostPort
from tests.support.daemon import PATIENCE
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    import io
    from collections.abc import AsyncIterator

    from anyio.abc import SocketStream


@dataclass
class Running:
    address: HostPort
    metrics: Metrics
    health: Health

    async def connect(self) -> SocketStream:
        return await anyio.connect_tcp(self.address.host, self.address.port)

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """One request over a connection of its own, read to its end."""
        async with await self.connect() as client:
            await client.send(request)
            data = b""
            with anyio.fail_after(PATIENCE):
                async for chunk in client:
                    data += chunk
        return parsed(data)

    async def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        return await self.ask(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())


async def read_until_cut_off(client: SocketStream) -> int:
    """How many bytes come before the server ends the connection."""
    received = 0
    with anyio.fail_after(PATIENCE):
        try:
            while True:
                received += len(await client.receive(1_000_000))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return received


def parsed(data: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return int(status.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in headers)}, body


@asynccontextmanager
async def running(listen: HostPort | None = None) -> AsyncIterator[Running]:
    metrics, health = Metrics(), Health()
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(serve, listen or HostPort("127.0.0.1", 0), metrics, health)
        yield Running(address, metrics, health)
        tasks.cancel_scope.cancel()


pytestmark = pytest.mark.anyio


async def test_metrics_are_served_in_prometheus_text_format() -> None:
    async with running() as server:
        server.metrics.in_flight.set(3)
        status, headers, body = await server.get("/metrics?x=1")
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert b"\npgherald_in_flight 3.0\n" in body
        assert len(body) == int(headers["content-length"])


async def test_healthz_answers_while_the_loop_turns() -> None:
    async with running() as server:
        assert (await server.get("/healthz"))[::2] == (200, b"ok\n")


async def test_readyz_says_why_not() -> None:
    async with running() as server:
        status, headers, body = await server.get("/readyz")
        assert (status, headers["content-type"]) == (503, "application/json")
        assert json.loads(body) == {"status": "not ready", "reasons": ["starting"]}
        server.health.set_ready()
        status, _, body = await server.get("/readyz")
        assert (status, json.loads(body)) == (200, {"status": "ready", "reasons": []})
        server.health.set_degraded("listener_down")
        status, _, body = await server.get("/readyz")
        assert (status, json.loads(body)) == (200, {"status": "degraded", "reasons": ["listener_down"]})
        server.health.set_unready("spool_failing")
        status, _, body = await server.get("/readyz")
        assert (status, json.loads(body)) == (
            503,
            {"status": "not ready", "reasons": ["spool_failing", "listener_down"]},
        )


def test_a_reason_counts_as_what_it_was_last_said_to_be_until_it_is_cleared() -> None:
    health = Health()
    health.set_ready()
    health.set_unready("database_away")
    health.set_unready("database_away")
    health.set_degraded("database_away")
    assert health.snapshot().status is Status.DEGRADED
    health.set_unready("database_away")
    assert health.snapshot().status is Status.NOT_READY
    health.clear("database_away")
    health.clear("never_said")
    assert health.snapshot() == Snapshot(Status.READY, ())


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/nothing"])
async def test_head_gives_the_headers_of_get_and_no_body(path: str) -> None:
    async with running() as server:
        server.metrics.render()
        status, headers, body = await server.get(path, "HEAD")
        asked = await server.get(path)
        assert (status, body) == (asked[0], b"")
        # What the process used may have grown by a digit between the two.
        assert abs(int(headers.pop("content-length")) - int(asked[1].pop("content-length"))) < 50
        assert headers == asked[1]


async def test_everything_else_is_refused() -> None:
    async with running() as server:
        for path in ("/", "/metrics/", "//metrics", "/..%2f", "*", "http://x/metrics"):
            assert (await server.get(path))[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "FOO"):
            status, headers, _ = await server.get("/metrics", method)
            assert (status, headers["allow"]) == (405, "GET, HEAD")


async def test_a_body_is_not_waited_for() -> None:
    async with running() as server:
        status, headers, _ = await server.ask(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert (status, headers["connection"]) == (405, "close")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400),  # TLS to a plain port
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9000, 431),
        (b"GET /" + b"y" * 9000, 431),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n", 400),  # no chunk
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n", 400),
    ],
)
async def test_what_is_no_good_request_gets_an_answer_and_the_connection_ends(request_: bytes, expected: int) -> None:
    async with running() as server:
        status, _, body = await server.ask(request_)
        assert status == expected
        assert bool(body) is not request_.startswith(b"HEAD")


@given(st.binary(max_size=300))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_any_bytes_leave_it_answering(data: bytes) -> None:
    async with running() as server:
        client = await server.connect()
        await client.send(data + b"\r\n\r\n")
        await client.send_eof()
        await read_until_cut_off(client)
        await client.aclose()
        assert (await server.get("/healthz"))[0] == 200


METHODS = st.sampled_from([b"HEAD", b"GET", b"POST", b"CONNECT", b"get", b""])
TARGETS = st.sampled_from([b"/metrics", b"/readyz", b"*", b"x:1", b"\xff", b""])
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b""])
HEADERS = st.sampled_from(
    [
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip",
        b"Content-Length: 3",
        b"Content-Length: -1",
        b"Connection: close",
        b"Connection: upgrade\r\nUpgrade: h2c",
        b"Expect: 100-continue",
        b"Host: y",
        b"No colon",
        b" folded",
    ]
)
BODIES = st.sampled_from([b"", b"abc", b"ZZZ\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"3\r\nabcdef", b"\x00\r\n\r\n"])
REQUESTS = st.builds(
    lambda line, headers, body: b"\r\n".join([b" ".join(line), b"Host: x", *headers, b"", body]),
    st.tuples(METHODS, TARGETS, VERSIONS),
    st.lists(HEADERS, max_size=2),
    BODIES,
)


@given(clients=st.lists(st.lists(REQUESTS, min_size=1, max_size=3), min_size=10, max_size=20))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_malformed_requests_leave_it_answering(clients: list[list[bytes]], logged: io.StringIO) -> None:
    async with running() as server:
        for requests in clients:
            async with await server.connect() as client:
                await client.send(b"".join(requests))
                await client.send_eof()
                await read_until_cut_off(client)
        assert (await server.get("/healthz"))[0] == 200
    assert not logged.getvalue()


async def test_an_answer_that_cannot_be_given_ends_one_connection_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, logged: io.StringIO
) -> None:
    monkeypatch.setattr(exporter, "CONTENT_TYPE", "two\r\nlines")
    async with running() as server:
        for _ in range(3):
            async with await server.connect() as client:
                await client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await read_until_cut_off(client) == 0
        assert (await server.get("/healthz"))[0] == 200
    (line,) = logged.getvalue().splitlines()
    assert json.loads(line)["event"] == "exporter_answer_failed"


async def test_a_connection_is_kept_for_the_next_scrape_and_takes_pipelined_ones() -> None:
    async with running() as server, await server.connect() as client:
        request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        for sent in (request, request, request * 3):
            await client.send(sent)
            data = b""
            while data.count(b"ok\n") < sent.count(b"GET"):
                with anyio.fail_after(PATIENCE):
                    data += await client.receive()
            assert data.count(b"200") == sent.count(b"GET")


async def test_five_hundred_slow_connections_do_not_keep_prometheus_out() -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with running() as server:
        slow = [await server.connect() for _ in range(250)]
        for client in slow:
            await client.send(b"GET /metrics HTTP/1.1\r\nHost: ")
        slow += [await server.connect() for _ in range(250)]
        for path in ("/metrics", "/healthz", "/readyz"):
            with Stopwatch() as took:
                assert (await server.get(path))[0] in (200, 503)
            assert took.seconds < 2
        open_ones = len(os.listdir("/proc/self/fd"))
        assert open_ones < before + 500 + exporter.MOST_CONNECTIONS + 10
        for client in slow:
            await anyio.aclose_forcefully(client)


async def test_a_connection_that_is_being_answered_outlives_ones_that_only_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporter, "MOST_CONNECTIONS", 2)
    async with running() as server, await server.connect() as kept, await server.connect() as idle:
        await idle.send(b"GET")
        await kept.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await kept.receive()
        assert (await server.get("/healthz"))[0] == 200
        assert await read_until_cut_off(idle) == 0
        await kept.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await kept.receive()


async def test_a_request_that_trickles_in_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "REQUEST_SECONDS", 0.2)
    async with running() as server, await server.connect() as client:

        async def trickle() -> None:
            with suppress(anyio.BrokenResourceError):
                while True:
                    await client.send(b"G")
                    await anyio.sleep(0.05)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trickle)
            assert await read_until_cut_off(client) == 0
            tasks.cancel_scope.cancel()


async def test_an_idle_connection_is_kept_longer_than_a_request_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with running() as server, await server.connect() as client:
        await client.send(ask)
        assert b"200" in await client.receive()
        monkeypatch.setattr(exporter, "REQUEST_SECONDS", 0.2)
        await anyio.sleep(0.5)
        monkeypatch.setattr(exporter, "IDLE_SECONDS", 0.2)  # from the next answer on
        await client.send(ask)
        assert b"200" in await client.receive()
        assert await read_until_cut_off(client) == 0


async def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "ANSWER_SECONDS", 0.2)
    async with running() as server, await server.connect() as client:
        answering = anyio.Event()

        def render() -> bytes:
            answering.set()
            return b"x" * 50_000_000

        monkeypatch.setattr(server.metrics, "render", render)
        await client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await answering.wait()
        await anyio.sleep(0.5)
        assert await read_until_cut_off(client) < 50_000_000


async def test_running_out_of_file_descriptors_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as server:
        loop_type = type(__import__("asyncio").get_running_loop())
        accept, failures = loop_type.sock_accept, iter([OSError(24, "Too many open files")] * 3)

        async def scarce(loop: object, sock: socket.socket) -> object:
            accepted = await accept(loop, sock)
            error = next(failures, None)
            if error is not None:
                accepted[0].close()
                raise error
            return accepted

        monkeypatch.setattr(loop_type, "sock_accept", scarce)
        for _ in range(5):
            with anyio.move_on_after(PATIENCE):
                try:
                    if (await server.get("/healthz"))[0] == 200:
                        break
                except (IndexError, OSError, anyio.BrokenResourceError):
                    continue
        else:
            pytest.fail("it no longer answers")


async def test_an_address_in_use_is_a_configuration_error_with_its_remedy() -> None:
    async with running() as server:
        with pytest.raises(ExceptionGroup) as caught:
            async with running(server.address):
                pass
        (error,) = caught.value.exceptions
        assert isinstance(error, ConfigError)
        assert str(error).startswith(
            f"cannot serve metrics at 127.0.0.1:{server.address.port}: something listens there"
        )
        assert "PGHERALD_METRICS_LISTEN=" in str(error)


@pytest.mark.parametrize(
    ("host", "why"), [("192.0.2.1", "this machine has no such address"), ("nowhere.invalid", "no address here")]
)
async def test_an_address_that_is_not_here_is_a_configuration_error(host: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        await serve(HostPort(host, 0), Metrics(), Health())


async def test_localhost_listens_on_each_of_its_addresses() -> None:
    async with running(HostPort("localhost", 0)) as server:
        assert (await server.get("/healthz"))[0] == 200
        addresses = {info[4][0] for info in socket.getaddrinfo("127.0.0.1", server.address.port)}
        for address in addresses:
            async with await anyio.connect_tcp(str(address), server.address.port):
                pass
