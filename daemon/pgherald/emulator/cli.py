"""`pgherald fcm-emulator`: runs the emulator until a signal, and says what to set to use it."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import orjson

from pgherald.emulator.faults import Fault, FaultError, parse_fault
from pgherald.errors import HeraldError, UsageError
from pgherald.values import HostPort, Wrong, host_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgherald.emulator.service import Emulator

_DESCRIPTION = """\
A local Firebase Cloud Messaging v1 and OAuth token endpoint: checks the JWT and
the message as Google does, keeps what it accepted, and fails when told to.
Official Firebase SDKs work against it. Nothing reaches a phone."""

_EPILOG = """\
faults (--fault, repeatable; or PUT as JSON to /emulator/faults while it runs):
  latency=0.05  latency=0.1-0.5   wait before the answer
  status=503  code=QUOTA_EXCEEDED
                            answer so; with retry_after=5 or retry_after_date=5,
                            accepted=true, body=TEXT
  drop_before  drop_after   reset the connection before or after the message is
                            accepted
  cut_headers  cut_body     close in the middle of the answer
  silent  drip  drip=0.1    accept, then answer never, or byte by byte
  goaway  goaway_before  goaway_after
                            HTTP/2 GOAWAY after the answer, instead of
                            accepting, instead of the answer
  each with ,next=3 or ,every=10 or ,fraction=0.1, ,token_prefix=ios- and
  ,on=token (the OAuth endpoint)
  for example:
    --fault status=503,fraction=0.1 --fault drop_after,every=100 --latency 0.05
  or while it runs:
    curl -X PUT .../emulator/faults \\
      -d '[{"do": "status", "status": 503, "fraction": 0.1}]'

device tokens that always fail, by how they begin:
  unregistered-  sender-mismatch-  invalid-  invalid-field-  apns-auth-  quota-
  (others: PUT {"TOKEN": "UNREGISTERED"} to /emulator/tokens)

what it did:
  GET /emulator/messages?since=SEQ  GET /emulator/counters
  DELETE /emulator/messages"""


_TEXTS: Any = {
    "description": _DESCRIPTION,
    "epilog": _EPILOG,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command; its arguments go to `run`."""
    parser = subparsers.add_parser(
        "fcm-emulator", help="a local FCM v1 and OAuth endpoint to try and test against", **_TEXTS
    )
    _add_arguments(parser)
    return parser


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--listen", type=_address, default=HostPort("127.0.0.1", 9499), metavar="HOST:PORT", help="default: %(default)s"
    )
    add("--url", type=_url, help="how clients reach it, if not by --listen (a container's name, a proxy)")
    add("--tls-listen", type=_address, metavar="HOST:PORT", help="also listen with TLS (HTTP/2 by ALPN)")
    add("--tls-certificate", type=Path, metavar="FILE", help="write the TLS port's certificate here, to be trusted")
    add("--project", default="demo", help="the Firebase project it plays (default: %(default)s)")
    add("--credentials", type=Path, metavar="FILE", help="service account file to make (default: a temporary one)")
    add("--log", type=Path, metavar="FILE", help="append each accepted message, as a JSON line, before it is answered")
    add("--keep", type=_count, default=200_000, metavar="N", help="messages kept in memory (default: %(default)s)")
    add(
        "--token-lifetime",
        type=_seconds,
        default=3599.0,
        metavar="SECONDS",
        help="of access tokens (default: %(default)g)",
    )
    add("--latency", type=_latency, metavar="SECONDS", help="wait before each answer: 0.05, or 0.1-0.5")
    add("--fault", type=_fault, action="append", default=[], metavar="FAULT", help="what goes wrong; see below")
    add("--seed", type=int, default=0, help="of the faults' randomness (default: %(default)s)")
    add("--json", action="store_true", help="say what to set, and at the end what was done, as JSON lines")


def run(args: argparse.Namespace) -> int:
    """Runs until SIGINT or SIGTERM. Exit code 0, 1 if it could not start or 2 for wrong usage (said on stderr)."""
    try:
        if args.tls_certificate is not None and args.tls_listen is None:
            raise UsageError("--tls-certificate is that of the TLS port: give --tls-listen HOST:PORT too")
        _check_extra()
        anyio.run(_serve, args)
    except HeraldError as error:
        sys.stderr.write(f"pgherald fcm-emulator: {error}\n")
        return error.exit_code
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command on its own, without the rest of pgherald."""
    parser = argparse.ArgumentParser(prog="pgherald fcm-emulator", **_TEXTS)
    _add_arguments(parser)
    return run(parser.parse_args(argv))


def _check_extra() -> None:
    if not all(map(importlib.util.find_spec, ("h2", "cryptography"))):
        raise HeraldError("the extra demo is not installed: pip install 'pgherald[demo]'")


async def _serve(args: argparse.Namespace) -> None:
    from pgherald.emulator.service import Emulator  # needs the extra

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with Emulator.start(
            listen=args.listen,
            url=args.url,
            tls_listen=args.tls_listen,
            project=args.project,
            credentials=args.credentials,
            certificate=args.tls_certificate,
            log=args.log,
            token_lifetime=args.token_lifetime,
            seed=args.seed,
            keep=args.keep,
        ) as emulator:
            latency = [args.latency] if args.latency is not None else []
            emulator.faults.set(*latency, *args.fault)
            _say(_settings_json(emulator) if args.json else _settings_text(emulator))
            async for _ in signals:
                break
            counters = emulator.ledger.counters()
            _say(_json_line(counters) if args.json else _summary(counters))


def _settings_json(emulator: Emulator) -> str:
    paths = {"credentials": emulator.credentials_path, "certificate": emulator.certificate_path}
    return _json_line(
        {
            "project": emulator.project,
            "endpoint": emulator.endpoint,
            "tls_endpoint": emulator.tls_endpoint,
            **{name: None if path is None else str(path) for name, path in paths.items()},
        }
    )


def _settings_text(emulator: Emulator) -> str:
    lines = [
        f"FCM emulator for project {emulator.project}, listening on {emulator.endpoint}",
        *([f"and with TLS on {emulator.tls_endpoint}"] if emulator.tls_endpoint else []),
        "Set:",
        f"  export PGHERALD_FCM_ENDPOINT={emulator.endpoint}",
        f"  export PGHERALD_FCM_CREDENTIALS={emulator.credentials_path}",
        *([f"  export SSL_CERT_FILE={emulator.certificate_path}  # for TLS"] if emulator.certificate_path else []),
        f"Accepted messages: curl {emulator.endpoint}/emulator/messages",
        "Stop: Ctrl-C",
    ]
    return "".join(f"{line}\n" for line in lines)


def _summary(counters: dict[str, Any]) -> str:
    rejected = ", ".join(f"{count} {code}" for code, count in sorted(counters["rejected"].items()))
    return f"Accepted {counters['accepted']} messages; rejected {rejected or 'none'}.\n"


def _json_line(content: dict[str, Any]) -> str:
    return orjson.dumps(content).decode() + "\n"


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _address(text: str) -> HostPort:
    try:
        return host_port(text)
    except Wrong as wrong:
        raise argparse.ArgumentTypeError(f"{text!r} {wrong}") from None


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text.rstrip("/")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 on")
    return seconds


def _fault(text: str) -> Fault:
    try:
        return parse_fault(text)
    except FaultError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _latency(text: str) -> Fault:
    return _fault(f"latency={text}")
