"""TLS of the metrics endpoint: three files become a context, and a context and a stream a secured stream.

`Guard` holds the context in force, which a reload replaces. Used by the service, the exporter and the doctor. Not here:
TLS to FCM and to Postgres, which their clients do.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import anyio
import anyio.abc

from pgherald.config import METRICS_TLS_CERTIFICATE, METRICS_TLS_CLIENT_CA, METRICS_TLS_KEY
from pgherald.errors import ConfigError
from pgherald.log import describe_exception

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pgherald.config import Setting, Settings

R = TypeVar("R")

_RECORD: Final = 16_384
"""Bytes that are read at once: a record of TLS."""


@dataclass(slots=True)
class Guard:
    """What new connections are secured with: None is nothing, plain HTTP."""

    context: ssl.SSLContext | None = None


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """The context that the settings ask for; None where they ask for none.

    Raises ConfigError with a line for each file that is missing or of no use.
    """
    certificate, key, client_ca = (
        settings.metrics_tls_certificate,
        settings.metrics_tls_key,
        settings.metrics_tls_client_ca,
    )
    if certificate is None and key is None and client_ca is None:
        return None
    given = {METRICS_TLS_CERTIFICATE: certificate, METRICS_TLS_KEY: key, METRICS_TLS_CLIENT_CA: client_ca}
    problems = [_why_unreadable(setting, path) for setting, path in given.items() if path is not None]
    problems += [
        f"{setting.name}: is not set, and TLS for the metrics needs it; for example {setting.name}={setting.example}"
        for setting in (METRICS_TLS_CERTIFICATE, METRICS_TLS_KEY)
        if given[setting] is None
    ]
    if any(problems) or certificate is None or key is None:
        raise ConfigError("\n".join(filter(None, problems)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load_certificate(context, certificate, key)
    if client_ca is not None:
        _load_client_ca(context, client_ca)
    return context


def _why_unreadable(setting: Setting, path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except FileNotFoundError:
        why = "there is no such file"
    except PermissionError:
        why = "this user may not read it"
    except (OSError, ValueError) as error:
        why = f"it cannot be read ({describe_exception(error)})"
    else:
        return None
    return f"{setting.name}: {path}: {why}"


class _Encrypted(Exception):
    """The key asks for a passphrase."""


def _no_passphrase() -> NoReturn:
    raise _Encrypted


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except _Encrypted:
        problem = (
            f"{METRICS_TLS_KEY.name}: {key}: it is encrypted, and nobody is there to type its passphrase; "
            f"openssl pkey -in {key} -out a-file-of-0600 writes it without one"
        )
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        reason = getattr(error, "reason", None) or ""
        if reason == "KEY_VALUES_MISMATCH":
            problem = f"{METRICS_TLS_KEY.name}: {key}: it is not the key of the certificate {certificate}"
        elif not _holds_certificates(certificate):
            problem = f"{METRICS_TLS_CERTIFICATE.name}: {certificate}: it holds no certificate in PEM form"
        elif reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
            problem = f"{METRICS_TLS_CERTIFICATE.name}: {certificate}: OpenSSL takes it for unsafe ({reason})"
        else:
            problem = f"{METRICS_TLS_KEY.name}: {key}: it holds no private key in PEM form"
    else:
        return
    raise ConfigError(problem)


def _load_client_ca(context: ssl.SSLContext, client_ca: Path) -> None:
    if not _holds_certificates(client_ca):
        raise ConfigError(f"{METRICS_TLS_CLIENT_CA.name}: {client_ca}: it holds no certificate in PEM form")
    context.load_verify_locations(client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate authority may be trusted without its root


def _holds_certificates(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (OSError, ValueError):
        return False
    return True


def good_until(certificate: Path, key: Path) -> datetime | None:
    """The end of a certificate's life, as a client that trusts it is told. Nothing leaves this process.

    None for one that is past its end, not yet valid, or not made for servers.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key, password=_no_passphrase)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.load_verify_locations(certificate)
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError:
            return None
    seen: dict[str, Any] = client.getpeercert() or {}
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(seen["notAfter"]), UTC)


class SecuredStream:
    """The server's side of TLS over a byte stream, as far as the exporter needs it.

    What OpenSSL has to say when it gives up is sent: an alert tells a client why it is refused. Raises ssl.SSLError for
    what breaks TLS, anyio.EndOfStream for an end, in whatever form it comes, and what the stream below raises.
    """

    def __init__(self, stream: anyio.abc.ByteStream, context: ssl.SSLContext) -> None:
        self._stream = stream
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    async def handshake(self) -> None:
        """Has to be done before anything else."""
        await self._carry_on(self._tls.do_handshake)

    async def receive(self, most: int) -> bytes:
        """Some bytes, at most so many."""
        return await self._carry_on(lambda: self._tls.read(most))

    async def send(self, data: bytes) -> None:
        """All of it, a record at a time: only what is on its way is held twice."""
        rest = memoryview(data)
        while rest:
            written = await self._carry_on(lambda part=rest[:_RECORD]: self._tls.write(part))  # type: ignore[misc]
            rest = rest[written:]

    async def farewell(self) -> None:
        """Say that there is no more to come. Does not wait for the other side to say so."""
        with suppress(ssl.SSLError):  # it waits for the other's, which nobody needs
            self._tls.unwrap()
        await self._flush()

    async def _carry_on(self, step: Callable[[], R]) -> R:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed()
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                raise anyio.EndOfStream from None
            except ssl.SSLError:
                await self._flush()
                raise
            else:
                await self._flush()
                return result

    async def _feed(self) -> None:
        try:
            self._in.write(await self._stream.receive(_RECORD))
        except anyio.EndOfStream:
            self._in.write_eof()

    async def _flush(self) -> None:
        if self._out.pending:
            await self._stream.send(self._out.read())
