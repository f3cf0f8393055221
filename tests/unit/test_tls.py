"""TLS of the metrics endpoint, over real sockets: who gets in, who does not and why, and that nobody is kept out."""

from __future__ import annotations

import json
import os
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.streams.tls import TLSStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgherald import exporter
from pgherald.config import LogLevel, Settings, load_settings
from pgherald.errors import ConfigError
from pgherald.exporter import serve
from pgherald.health import Health
from pgherald.log import log
from pgherald.metrics import Metrics
from pgherald.tls import Guard, server_context
from pgherald.values import HostPort
from tests.support.certificates import Authority, Identity, encrypted
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from anyio.abc import ByteStream, SocketStream

pytestmark = pytest.mark.anyio

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(scope="module")
def server(ours: Authority) -> Identity:
    return ours.server()


def with_tls(identity: Identity, clients: Authority | None = None) -> Settings:
    return replace(
        load_settings({"HOME": "/"}),
        metrics_tls_certificate=identity.certificate,
        metrics_tls_key=identity.key,
        metrics_tls_client_ca=None if clients is None else clients.certificate,
    )


def trusting(authority: Authority, identity: Identity | None = None) -> ssl.SSLContext:
    """A client that trusts this authority, and says who it is if it is told."""
    context = ssl.create_default_context(cafile=authority.certificate)
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


class Running:
    def __init__(self, address: HostPort, guard: Guard, metrics: Metrics) -> None:
        self.address, self.guard, self.metrics = address, guard, metrics

    async def connect(self) -> SocketStream:
        return await anyio.connect_tcp(self.address.host, self.address.port)

    async def ask(self, context: ssl.SSLContext, path: bytes = b"/metrics") -> tuple[int, bytes]:
        """Status and body of one request over TLS, read to its end, which must be a proper one."""
        raw = await self.connect()
        try:
            client = await TLSStream.wrap(raw, hostname="localhost", ssl_context=context)
            found = await ask(client, path)
            await client.aclose()
        finally:
            await anyio.aclose_forcefully(raw)
        return found


async def ask(client: ByteStream, path: bytes) -> tuple[int, bytes]:
    await client.send(GET % path)
    data = b""
    with anyio.fail_after(60):
        async for chunk in client:
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@asynccontextmanager
async def running(wanted: Settings) -> AsyncIterator[Running]:
    metrics, health, guard = Metrics(), Health(), Guard(server_context(wanted))
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(serve, HostPort("127.0.0.1", 0), metrics, health, guard)
        yield Running(address, guard, metrics)
        tasks.cancel_scope.cancel()


async def test_with_a_certificate_everything_is_served_over_tls(ours: Authority, server: Identity) -> None:
    async with running(with_tls(server)) as exporting:
        status, body = await exporting.ask(trusting(ours))
        assert status == 200
        assert b"pgherald_build_info" in body
        assert await exporting.ask(trusting(ours), b"/healthz") == (200, b"ok\n")
        assert (await exporting.ask(trusting(ours), b"/readyz"))[0] == 503


async def test_the_right_client_certificate_gets_in(ours: Authority, server: Identity) -> None:
    async with running(with_tls(server, ours)) as exporting:
        assert (await exporting.ask(trusting(ours, ours.client())))[0] == 200


async def refusal(exporting: Running, context: ssl.SSLContext) -> str:
    """Why OpenSSL says it was not let in."""
    with pytest.raises((ssl.SSLError, anyio.BrokenResourceError)) as caught:
        await exporting.ask(context, b"/healthz")
    assert isinstance(caught.value, ssl.SSLError), "the alert that tells why did not come"
    return str(caught.value.reason)


async def test_a_client_with_no_certificate_or_a_wrong_one_is_refused_and_told_why(
    ours: Authority, theirs: Authority, server: Identity
) -> None:
    stranger, expired, no_client = theirs.client(), ours.client("expired", days=-1), ours.server("other")
    lookalike = Authority.make(theirs.directory / "lookalike", "ours").client()
    async with running(with_tls(server, ours)) as exporting:
        assert await refusal(exporting, trusting(ours)) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        assert await refusal(exporting, trusting(ours, stranger)) == "TLSV1_ALERT_UNKNOWN_CA"
        assert await refusal(exporting, trusting(ours, lookalike)) in (
            "TLSV1_ALERT_UNKNOWN_CA",
            "TLSV1_ALERT_DECRYPT_ERROR",
        )
        assert await refusal(exporting, trusting(ours, expired)) == "SSLV3_ALERT_CERTIFICATE_EXPIRED"
        assert "CERTIFICATE" in await refusal(exporting, trusting(ours, no_client))
        older = trusting(ours)
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        assert "HANDSHAKE_FAILURE" in await refusal(exporting, older)
        assert (await exporting.ask(trusting(ours, ours.client())))[0] == 200


async def test_plain_http_gets_a_word_and_nothing_else(server: Identity) -> None:
    async with running(with_tls(server)) as exporting:
        for path in (b"/metrics", b"/healthz", b"/readyz"):
            async with await exporting.connect() as client:
                assert await ask(client, path) == (400, b"this is HTTPS: ask for https://\n")


async def test_a_client_that_does_not_trust_our_certificate_harms_nobody(
    ours: Authority, theirs: Authority, server: Identity
) -> None:
    async with running(with_tls(server)) as exporting:
        with pytest.raises(ssl.SSLCertVerificationError):
            await exporting.ask(trusting(theirs))
        assert (await exporting.ask(trusting(ours)))[0] == 200


@pytest.mark.usefixtures("process_log")
async def test_refusals_are_logged_with_their_reason_but_not_each(
    ours: Authority, server: Identity, capsys: pytest.CaptureFixture[str]
) -> None:
    log.set_up(LogLevel.INFO, None)
    async with running(with_tls(server, ours)) as exporting:
        for _ in range(5):
            await refusal(exporting, trusting(ours))
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert [(line["event"], line["reason"]) for line in lines] == [
            ("metrics_client_refused", "PEER_DID_NOT_RETURN_A_CERTIFICATE")
        ]


async def test_a_large_answer_arrives_whole_and_a_connection_is_kept(
    ours: Authority, server: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(with_tls(server)) as exporting:
        page = bytes(range(256)) * 8000
        monkeypatch.setattr(exporting.metrics, "render", lambda: page)
        raw = await exporting.connect()
        async with await TLSStream.wrap(raw, hostname="localhost", ssl_context=trusting(ours)) as client:
            for _ in range(3):
                await client.send(GET.replace(b"Connection: close\r\n", b"") % b"/metrics")
                data = bytearray()
                with anyio.fail_after(60):
                    while b"\r\n\r\n" not in data[:1000] or len(data) < data.index(b"\r\n\r\n") + 4 + len(page):
                        data += await client.receive()
                assert data.endswith(page)


async def test_a_context_put_in_force_holds_for_the_next_connection(
    ours: Authority, theirs: Authority, server: Identity
) -> None:
    async with running(with_tls(server)) as exporting:
        assert (await exporting.ask(trusting(ours)))[0] == 200
        exporting.guard.context = server_context(with_tls(theirs.server(), theirs))
        assert (await exporting.ask(trusting(theirs, theirs.client())))[0] == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            await exporting.ask(trusting(ours))
        exporting.guard.context = None
        async with await exporting.connect() as client:
            assert (await ask(client, b"/healthz"))[0] == 200


def client_hello(length: int | None = None) -> bytes:
    """The first bytes of a handshake, or a part of them."""
    out = ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()[:length]


async def test_five_hundred_connections_that_never_finish_a_handshake_do_not_keep_prometheus_out(
    ours: Authority, server: Identity
) -> None:
    context, hello = trusting(ours, ours.client()), client_hello()
    before = len(os.listdir("/proc/self/fd"))
    async with running(with_tls(server, ours)) as exporting:
        slow = [await exporting.connect() for _ in range(500)]
        for at, client in enumerate(slow):
            await client.send((b"", hello[:3], hello[:-1], hello, b"GET /metrics HTTP/1.1\r\n")[at % 5] or b"\x16")
        for path in (b"/metrics", b"/healthz", b"/readyz"):
            with Stopwatch() as took:
                assert (await exporting.ask(context, path))[0] in (200, 503)
            assert took.seconds < 3
        assert len(os.listdir("/proc/self/fd")) < before + 500 + exporter.MOST_CONNECTIONS + 10
        for client in slow:
            await anyio.aclose_forcefully(client)


async def test_a_handshake_that_trickles_in_is_cut_off(server: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "REQUEST_SECONDS", 0.2)
    hello = client_hello()
    async with running(with_tls(server)) as exporting, await exporting.connect() as client:

        async def trickle() -> None:
            for byte in hello:
                await client.send(bytes([byte]))
                with anyio.move_on_after(0.02):
                    await client.receive()

        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await trickle()


@given(st.binary(max_size=300), st.integers(0, 600))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_any_bytes_leave_it_answering(ours: Authority, server: Identity, data: bytes, part: int) -> None:
    async with running(with_tls(server)) as exporting:
        async with await exporting.connect() as client:
            await client.send(client_hello(part) + data + b"\r\n")
            await client.send_eof()
            with anyio.fail_after(60), suppress(anyio.BrokenResourceError):
                async for _ in client:
                    pass
        assert (await exporting.ask(trusting(ours), b"/healthz"))[0] == 200


# --- the files -----------------------------------------------------------------------------------------------------


def said(**files: Path | None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        server_context(replace(load_settings({"HOME": "/"}), **{f"metrics_tls_{name}": p for name, p in files.items()}))  # type: ignore[arg-type]
    assert caught.value.exit_code == 78
    return [line.removeprefix("PGHERALD_METRICS_TLS_") for line in str(caught.value).split("\n")]


def test_without_these_settings_there_is_no_tls() -> None:
    assert server_context(load_settings({"HOME": "/"})) is None


def test_what_is_missing_is_listed_together(ours: Authority, server: Identity, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    (no_key,) = said(certificate=server.certificate)
    assert no_key.startswith(
        "KEY: is not set, and TLS for the metrics needs it; for example PGHERALD_METRICS_TLS_KEY=/"
    )
    assert said(key=server.key)[0].startswith("CERTIFICATE: is not set, and TLS for the metrics needs it")
    assert [line.split(":")[0] for line in said(client_ca=ours.certificate)] == ["CERTIFICATE", "KEY"]
    assert said(certificate=nowhere, key=tmp_path, client_ca=nowhere) == [
        f"CERTIFICATE: {nowhere}: there is no such file",
        f"KEY: {tmp_path}: it cannot be read (IsADirectoryError[EISDIR])",
        f"CLIENT_CA: {nowhere}: there is no such file",
    ]


def test_files_of_the_wrong_kind_are_told_apart(
    ours: Authority, theirs: Authority, server: Identity, tmp_path: Path
) -> None:
    empty, other, locked = tmp_path / "empty", theirs.server(), encrypted(server)
    empty.write_text("")
    c, k = server.certificate, server.key
    assert said(certificate=c, key=other.key) == [f"KEY: {other.key}: it is not the key of the certificate {c}"]
    for wrong in (empty, k):
        assert said(certificate=wrong, key=k) == [f"CERTIFICATE: {wrong}: it holds no certificate in PEM form"]
    for wrong in (empty, c):
        assert said(certificate=c, key=wrong) == [f"KEY: {wrong}: it holds no private key in PEM form"]
    for wrong in (empty, k):
        assert said(certificate=c, key=k, client_ca=wrong) == [
            f"CLIENT_CA: {wrong}: it holds no certificate in PEM form"
        ]
    (encrypted_key,) = said(certificate=c, key=locked)
    assert encrypted_key.startswith(f"KEY: {locked}: it is encrypted, and nobody is there to type its passphrase")


def test_the_content_of_a_key_in_the_place_of_its_path_is_never_shown(server: Identity) -> None:
    for name in ("CERTIFICATE", "KEY", "CLIENT_CA"):
        with pytest.raises(ConfigError) as caught:
            load_settings({"HOME": "/", f"PGHERALD_METRICS_TLS_{name}": server.key.read_text()})
        assert str(caught.value).startswith(
            f"PGHERALD_METRICS_TLS_{name}: is the content of a PEM file, where its path"
        )
        assert server.key.read_text().splitlines()[1] not in str(caught.value)


def test_systemd_s_credentials_are_taken_without_being_told(tmp_path: Path, ours: Authority, server: Identity) -> None:
    environ = {"HOME": "/", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert server_context(load_settings(environ)) is None
    (tmp_path / "metrics.crt").write_bytes(server.certificate.read_bytes())
    (tmp_path / "metrics.key").write_bytes(server.key.read_bytes())
    context = server_context(load_settings(environ))
    assert context is not None
    assert context.verify_mode is ssl.CERT_NONE
    (tmp_path / "metrics-clients.crt").write_bytes(ours.certificate.read_bytes())
    context = server_context(load_settings(environ))
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
