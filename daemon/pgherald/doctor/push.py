"""The way to FCM: credentials, endpoint, clock, access token, project, by a message that FCM only checks.

The address in that message is made up, so FCM's word that it is no token is as good an answer as any: it has then
let in the account, found the project and read the message.
"""

from __future__ import annotations

import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import httpx2
import orjson

from pgherald.config import FCM_ENDPOINT, FCM_PROJECT
from pgherald.devices import explain, explain_no_token, message_for, road
from pgherald.doctor.finding import Part, State, ok, problem, warning
from pgherald.errors import ConfigError
from pgherald.fcm import NotSent, Unsure
from pgherald.model import Code, Device, DeviceId, Platform, Token, TokenKind
from pgherald.oauth import NoOAuthToken
from pgherald.outcome import Accepted, Effect, Rejected, TokenInvalid
from pgherald.screen import span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgherald.config import Settings
    from pgherald.devices import Road
    from pgherald.doctor.finding import Finding
    from pgherald.fcm import Response, Transport
    from pgherald.outcome import Answer

PATIENCE: Final = 10.0
"""Seconds for one request: the doctor would rather know than be quick."""

OFFSET_WARNING: Final = 5.0
OFFSET_PROBLEM: Final = 60.0
"""Seconds that two clocks may differ. Google refuses a JWT that is minutes off; FCM's Date has whole seconds."""

_MADE_UP: Final = Device(
    device_id=DeviceId(UUID(int=0)),
    platform=Platform.ANDROID,
    kind=TokenKind.TOKEN,
    token=Token("pgherald-doctor:a-token-that-nobody-has"),
    last_seen_at=datetime(2000, 1, 1, tzinfo=UTC),
)


class _Witness:
    """A transport that remembers the last answer, and the clock it came with."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.last: Response | None = None
        self.offset: float | None = None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Response:
        before = datetime.now(UTC)
        self.last = None
        self.last = await self._inner.post(url, headers, body, deadline)
        self.offset = _offset(self.last.headers, before, datetime.now(UTC))
        return self.last

    @property
    def reason(self) -> str:
        """google.rpc.ErrorInfo's reason in the last answer; empty without one."""
        try:
            document = orjson.loads(self.last.body if self.last is not None else b"")
            details = document["error"]["details"]
            return next((str(each["reason"]) for each in details if "reason" in each), "")
        except (ValueError, KeyError, TypeError):
            return ""


def _offset(headers: Mapping[str, str], before: datetime, after: datetime) -> float | None:
    """Seconds that the answer's Date is ahead of this machine's clock, as far as whole seconds can tell."""
    try:
        there = parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        return None
    if there.tzinfo is None:
        there = there.replace(tzinfo=UTC)
    # Date names the second that it was written in
    if there > after:
        return (there - after).total_seconds()
    return min((there + timedelta(seconds=1) - before).total_seconds(), 0.0)


def examine(settings: Settings) -> list[Finding]:
    """The whole way, as far as it can be gone."""
    return anyio.run(_examine, settings)


async def _examine(settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    witness: list[_Witness] = []

    def watched(transport: Transport) -> Transport:
        witness.append(_Witness(transport))
        return witness[0]

    try:
        async with road(settings, watched) as way:
            source = settings.fcm_credentials or "application default credentials"
            found.append(ok(Part.FCM, "fcm_credentials", f"credentials can be read ({source}), project {way.project}"))
            reached = await _endpoint(settings, witness[0])
            found += reached
            try:
                await way.oauth.token()
            except NoOAuthToken as error:
                found.append(_no_token(error.reason, witness[0].offset, way.token_giver))
                return found
            found.append(ok(Part.FCM, "oauth", f"{way.token_giver} gives an access token for them"))
            if not any(each.check == "fcm_endpoint" and each.state is State.PROBLEM for each in reached):
                found.append(await _validate(way, witness[0]))
    except ConfigError as error:
        remedy = "PGHERALD_FCM_CREDENTIALS=/path/to/the/key.json, which this user can read"
        found.append(problem(Part.FCM, "fcm_credentials", str(error), remedy))
    return found


async def _endpoint(settings: Settings, witness: _Witness) -> list[Finding]:
    """Whether anything answers there, and what time it has: a POST without credentials, which FCM refuses."""
    url = f"{settings.fcm_endpoint.rstrip('/')}/v1/projects/-/messages:send"
    headers = {"content-type": "application/json"}
    try:
        answer = await witness.post(url, headers, b"{}", time.monotonic() + PATIENCE)
    except NotSent:
        why, remedy = await anyio.to_thread.run_sync(_why_not_reached, settings.fcm_endpoint)
        return [problem(Part.FCM, "fcm_endpoint", f"no connection to FCM at {settings.fcm_endpoint}: {why}", remedy)]
    except Unsure as error:
        return [
            problem(
                Part.FCM,
                "fcm_endpoint",
                f"{settings.fcm_endpoint} takes a request and does not answer it well ({error.code})",
                "look for a proxy or firewall in between; curl -v the address from here",
            )
        ]
    found = []
    host = urlsplit(settings.fcm_endpoint).hostname or ""
    if not host.endswith(".googleapis.com"):
        found.append(
            warning(
                Part.FCM,
                "fcm_endpoint_name",
                f"the endpoint is {settings.fcm_endpoint}, not Google's: nothing reaches a phone",
                f"unset {FCM_ENDPOINT.name}, unless this is for trying things out",
            )
        )
    found += _clock(witness.offset)
    found.append(
        ok(Part.FCM, "fcm_endpoint", f"{settings.fcm_endpoint} answers (HTTP {answer.status} without credentials)")
    )
    return found


def _clock(offset: float | None) -> list[Finding]:
    if offset is None:
        return []
    if abs(offset) <= OFFSET_WARNING:
        return [ok(Part.FCM, "fcm_clock", "FCM and this machine agree on the time")]
    what = f"FCM's clock is {span(abs(offset))} {'ahead of' if offset > 0 else 'behind'} this machine's"
    say = problem if abs(offset) > OFFSET_PROBLEM else warning
    return [
        say(
            Part.FCM,
            "fcm_clock",
            f"{what}: Google refuses to give access tokens to a wrong clock",
            "timedatectl set-ntp true",
        )
    ]


def _why_not_reached(endpoint: str) -> tuple[str, str]:
    """Go the way again step by step: name, TCP, TLS."""
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return f"the name {host} is not known here", "check /etc/resolv.conf and " + FCM_ENDPOINT.name
    try:
        with socket.create_connection((host, port), timeout=PATIENCE) as plain:
            if parts.scheme == "https":
                with httpx2.create_ssl_context().wrap_socket(plain, server_hostname=host):
                    pass
    except ssl.SSLCertVerificationError as error:
        return f"TLS: {error.verify_message}", "a proxy that breaks TLS? Else update the system's CA certificates"
    except ssl.SSLError as error:
        return f"TLS: {error.reason or 'failed'}", "look for a proxy in between"
    except ConnectionRefusedError:
        return f"nothing listens on port {port} of {host}", f"check {FCM_ENDPOINT.name}"
    except OSError:
        return f"{host} port {port} does not answer", f"let this machine out to {host} port {port} (firewall, proxy)"
    return "it was refused for a moment", "try again"


def _no_token(reason: str, offset: float | None, giver: str) -> Finding:
    if reason == "invalid_grant" and offset is not None and abs(offset) > OFFSET_PROBLEM:
        what = f"{giver} gives no access token, because this machine's clock is {span(abs(offset))} off"
        return problem(Part.FCM, "oauth", what, "timedatectl set-ntp true")
    if reason == "invalid_grant":
        return problem(
            Part.FCM,
            "oauth",
            f"{giver} gives no access token: it does not accept this key (deleted, disabled, or of a deleted account)",
            "make a new one: Firebase console, Project settings, Service accounts, Generate new private key",
        )
    return problem(Part.FCM, "oauth", f"no access token ({reason})", explain_no_token(reason))


async def _validate(way: Road, witness: _Witness) -> Finding:
    project = way.project
    answer = await way.client.validate(message_for(_MADE_UP), time.monotonic() + PATIENCE)
    match answer:
        case Accepted() | TokenInvalid(Code.UNREGISTERED | Code.INVALID_ARGUMENT):
            return ok(Part.FCM, "fcm_send", f"FCM takes a message for project {project} (validate_only, nothing sent)")
        case TokenInvalid(code):
            return ok(Part.FCM, "fcm_send", f"FCM takes a message for project {project} (its answer: {code})")
        case Rejected(code, _, _, effect):
            return _refused(answer, code, effect, witness.reason, way)
        case _:
            return problem(
                Part.FCM, "fcm_send", f"FCM's answer to a message: {explain(answer)}", "look for a proxy in between"
            )


def _refused(answer: Answer, code: Code, effect: Effect, reason: str, way: Road) -> Finding:
    project, account = way.project, way.account or "<the service account>"
    match effect:
        case Effect.CIRCUIT if reason == "SERVICE_DISABLED":
            return problem(
                Part.FCM,
                "fcm_send",
                f"the Firebase Cloud Messaging API is not enabled in project {project}",
                f"gcloud services enable fcm.googleapis.com --project={project}",
            )
        case Effect.CIRCUIT:
            return problem(
                Part.FCM,
                "fcm_send",
                f"the service account may not send in project {project}, or there is no such project",
                f"gcloud projects add-iam-policy-binding {project} --member=serviceAccount:{account} "
                f"--role=roles/firebasecloudmessaging.admin; or correct {FCM_PROJECT.name}",
            )
        case Effect.CONFIG_ALARM:
            return problem(
                Part.FCM,
                "fcm_send",
                f"there is no project {project} at this endpoint",
                f"correct {FCM_PROJECT.name} or {FCM_ENDPOINT.name}",
            )
        case Effect.QUOTA | Effect.OVERLOAD:
            return warning(
                Part.FCM, "fcm_send", f"FCM, asked to check a message: {explain(answer)}", "try again in a while"
            )
        case _:
            return problem(
                Part.FCM, "fcm_send", f"FCM refuses a message with {code}: {explain(answer)}", "look at the lines above"
            )
