"""Devices asked by hand: a test message to one person, and whether FCM still knows the tokens there are.

Both go the way of a real push, message builder, access token and client included; neither writes a prompt, a
notification or a history row. Called by the commands `send-test` and `tokens verify`; `doctor` uses the same words.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, assert_never
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import anyio
import anyio.to_thread

from pgherald.errors import ConfigError
from pgherald.fcm import FcmClient
from pgherald.message import MessageError, UnsendableToken, build_message
from pgherald.model import (
    Code,
    NotificationId,
    Presentation,
    Prompt,
    PromptId,
    Revoked,
    ScenarioId,
    UserId,
)
from pgherald.oauth import NoOAuthToken, OAuth, load_credentials
from pgherald.outcome import Accepted, Effect, Rejected, TokenInvalid, Unsure
from pgherald.pacing import Pacing
from pgherald.transport import HttpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from google.auth.credentials import Credentials

    from pgherald.config import Settings
    from pgherald.fcm import Transport
    from pgherald.model import Device
    from pgherald.operate import Operations, Scenario
    from pgherald.outcome import Answer

PAGE: Final = 500
"""Devices read, and checked, at a time."""

MASS_SHARE: Final = 1 / 3
"""More than this part of the checked tokens invalid, and more than `MASS_LEAST`, is no everyday wear: rather the wrong
project, or an FCM that errs. Then nothing is revoked without a person's word."""

MASS_LEAST: Final = 10

DOUBTS_MAX: Final = 20
"""A verification ends after so many answers that decide nothing, if they are more than half of all."""

_FOR_ALL: Final = (Effect.CIRCUIT, Effect.REAUTH, Effect.CONFIG_ALARM)
"""What an answer says of all that we send, and not of one token."""

TEST_TTL: Final = timedelta(hours=1)

NOBODY: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Told:
    """What FCM answered for one device; `good` if it took the message (or would have)."""

    device: Device
    good: bool
    code: str
    words: str


@dataclass(slots=True)
class Verified:
    """What a verification came to: `invalid` and `inconclusive` by code; `stopped` says why it ended early."""

    checked: int = 0
    good: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    inconclusive: Counter[str] = field(default_factory=Counter)
    revoked: int = 0
    stopped: str | None = None


@dataclass(frozen=True, slots=True)
class Road:
    """The way to FCM as the daemon would go it; `account` is the service account's address, where there is one.

    `token_giver` is who gives the access tokens.
    """

    client: FcmClient
    oauth: OAuth
    project: str
    account: str | None
    token_giver: str


@asynccontextmanager
async def road(settings: Settings, wrap: Callable[[Transport], Transport] | None = None) -> AsyncIterator[Road]:
    """Open the way to FCM; ConfigError without credentials. `wrap` puts something around the transport, to look on."""
    credentials, project = await anyio.to_thread.run_sync(
        load_credentials, settings.fcm_credentials, settings.fcm_project
    )
    oauth = OAuth(credentials)
    async with HttpTransport(settings.max_in_flight) as transport:
        way = transport if wrap is None else wrap(transport)
        account = getattr(credentials, "service_account_email", None)
        client = FcmClient(way, oauth, settings.fcm_endpoint, project)
        yield Road(client, oauth, project, account, token_giver(credentials))


def token_giver(credentials: Credentials) -> str:
    """Who gives access tokens for these: Google, or the host that their token_uri names instead."""
    # A service account's has no public name.
    uri = getattr(credentials, "token_uri", None) or getattr(credentials, "_token_uri", None) or ""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "the token endpoint"
    is_google = f".{parts.hostname or 'google.com'}".endswith((".googleapis.com", ".google.com"))
    return "Google" if is_google else parts.netloc.rpartition("@")[2]


async def authorised(oauth: OAuth) -> None:
    """Get an access token, or say why there is none."""
    try:
        await oauth.token()
    except NoOAuthToken as error:
        raise ConfigError(f"no access token for FCM: {explain_no_token(error.reason)}") from None


def explain_no_token(reason: str) -> str:
    """Why the token endpoint gave none, and what to do."""
    match reason:
        case "invalid_grant":
            return (
                "Google does not accept the key (deleted, disabled, of a deleted account), or this machine's clock is "
                "minutes off. Compare the clocks (`date -u`, `timedatectl`); else make a new key: Firebase console, "
                "Project settings, Service accounts"
            )
        case "invalid_client" | "disabled_client" | "deleted_client" | "unauthorized_client" | "org_internal":
            return (
                f"the service account is disabled, deleted or not allowed this ({reason}): look at it in the Google "
                "Cloud console under IAM, Service accounts, or make a new key"
            )
        case "timeout" | "unreachable":
            return (
                "the token endpoint (token_uri of the credentials, oauth2.googleapis.com) does not answer from here: "
                "DNS, a firewall, or TLS in between"
            )
        case reason if reason.startswith("http_"):
            return f"the token endpoint has trouble of its own ({reason}): try again in a while"
        case "expired_on_arrival":
            return "the access token was expired on arrival: this machine's clock is ahead. `timedatectl set-ntp true`"
        case _:
            return f"the token endpoint answered in an unexpected way ({reason}): a proxy in between?"


def explain(answer: Answer) -> str:
    """An answer of FCM in words, for one device."""
    match answer:
        case Accepted():
            return "accepted"
        case TokenInvalid(Code.SENDER_ID_MISMATCH):
            return "this token belongs to another Firebase project's app"
        case TokenInvalid(Code.UNREGISTERED):
            return "FCM no longer knows this token: the app was removed, or has a newer one"
        case TokenInvalid():
            return "this is not a token of FCM"
        case Unsure(code):
            return f"no usable answer ({code}): a time-out, a lost connection, or a proxy that answers in FCM's place"
        case Rejected(code, _, _, effect):
            return _explain_rejection(code, effect)
        case _:
            assert_never(answer)


def _explain_rejection(code: Code, effect: Effect) -> str:
    match effect:
        case Effect.CIRCUIT:
            return "the service account may not send in this project, or the FCM API is not enabled there"
        case Effect.PAUSE_IOS:
            return "FCM cannot use the APNs key: upload it again (Firebase console, Cloud Messaging, Apple app)"
        case Effect.REAUTH:
            return "FCM does not take the access token"
        case Effect.CONFIG_ALARM:
            return "there is no such project at this endpoint"
        case Effect.PAYLOAD_ALARM:
            return "FCM does not take this message"
        case Effect.QUOTA:
            return "the quota is used up: wait a minute"
        case Effect.OVERLOAD:
            return "FCM has trouble of its own: try again in a while"
        case Effect.NONE:
            match code:
                case Code.NOT_CONNECTED:
                    return "no connection to FCM: DNS, a firewall, or TLS in between"
                case Code.NO_OAUTH_TOKEN:
                    return "no access token for FCM"
                case _:
                    return f"not sent ({code})"
        case _:
            assert_never(effect)


def message_for(device: Device, scenario: Scenario | None = None) -> bytes:
    """A test message for a device: with the texts' keys of a scenario, or keys of its own. Raises MessageError."""
    now = datetime.now(UTC)
    prompt = Prompt(
        prompt_id=PromptId(uuid4()),
        epoch=1,
        notification_id=NotificationId(uuid4()),
        scenario_id=ScenarioId(scenario.scenario_id if scenario else NOBODY),
        scenario_type=scenario.scenario_type if scenario else "test",
        user_id=UserId(NOBODY),
        activity_ref="test",
        presentation=Presentation(scenario.presentation) if scenario else Presentation.ALERT,
        title_key=scenario.title_key if scenario else "test_title",
        body_key=scenario.body_key if scenario else "test_body",
        priority=1,
        collapse_key=uuid4().hex,
        attempt=1,
        due_at=now,
        expires_at=now + TEST_TTL,
        claimed_at=now,
        all_devices=True,
        devices=(device,),
        claimed_mono=time.monotonic(),
    )
    return build_message(prompt, device, ttl_seconds=int(TEST_TTL.total_seconds()), expires_at=prompt.expires_at)


async def send_test(
    settings: Settings, devices: Sequence[Device], scenario: Scenario | None, *, really: bool
) -> list[Told]:
    """One message to each device; without `really` FCM only checks it. Raises ConfigError where nothing can be sent."""
    async with road(settings) as way:
        await authorised(way.oauth)
        told = []
        for device in devices:
            try:
                message = message_for(device, scenario)
            except MessageError as error:
                told.append(Told(device, False, "UNSENDABLE", str(error)))
                continue
            deadline = time.monotonic() + settings.send_deadline
            answer = await (way.client.send(message, deadline) if really else way.client.validate(message, deadline))
            good = isinstance(answer, Accepted)
            told.append(Told(device, good, "OK" if isinstance(answer, Accepted) else answer.code, explain(answer)))
        return told


async def verify(
    settings: Settings,
    operations: Operations,
    unseen: timedelta,
    *,
    limit: int | None,
    dry_run: bool,
    even_if_many: bool,
    progress: Callable[[Verified], None],
) -> Verified:
    """Ask FCM about every live device unseen for so long, and revoke what it no longer knows.

    Stops, with nothing more revoked, where FCM refuses us rather than a token, and where so many are invalid that the
    mistake is likely ours (see MASS_SHARE) unless `even_if_many`.
    """
    found = Verified()
    pacing = Pacing(settings.max_rate)
    after = NOBODY
    async with road(settings) as way:
        await authorised(way.oauth)
        while found.stopped is None and (limit is None or found.checked < limit):
            wanted = PAGE if limit is None else min(PAGE, limit - found.checked)
            page = await anyio.to_thread.run_sync(operations.devices_to_verify, after, unseen, wanted)
            if not page:
                break
            after = page[-1].device_id
            invalid = await _verify_page(way.client, page, pacing, settings, found)
            if _is_mass(found) and not even_if_many:
                found.stopped = (
                    f"{found.invalid.total()} of {found.checked} tokens are invalid, too many to be everyday wear: is "
                    "this the right Firebase project? Nothing more was revoked. If it is right: --even-if-many"
                )
            elif invalid and not dry_run:
                found.revoked += await anyio.to_thread.run_sync(operations.revoke, invalid)
            progress(found)
    return found


def _is_mass(found: Verified) -> bool:
    total = found.invalid.total()
    return total > MASS_LEAST and total > found.checked * MASS_SHARE


async def _verify_page(
    client: FcmClient, page: Sequence[Device], pacing: Pacing, settings: Settings, found: Verified
) -> list[Revoked]:
    """The invalid ones of a page; counts into `found`, and stops it where FCM refuses us."""
    invalid: list[Revoked] = []
    slots = anyio.CapacityLimiter(settings.max_in_flight)

    async def ask(device: Device) -> None:
        async with slots:
            await _take_turn(pacing, found)
            if found.stopped is not None:
                return
            answer = await _validate(client, device, settings.send_deadline)
        pacing.on_answer(answer, device.platform, time.monotonic())
        found.checked += 1
        match answer:
            case Accepted():
                found.good += 1
            case TokenInvalid(code):
                found.invalid[code] += 1
                invalid.append(Revoked(device, code))
            case Rejected(code, _, _, effect) if effect in _FOR_ALL or code is Code.NO_OAUTH_TOKEN:
                found.inconclusive[code] += 1
                found.stopped = f"FCM refuses all we send ({code}): {explain(answer)}; `pgherald doctor` says more"
            case Rejected(code) | Unsure(code):
                found.inconclusive[code] += 1
                doubts = found.inconclusive.total()
                if doubts >= DOUBTS_MAX and doubts > found.checked / 2:
                    found.stopped = f"FCM does not answer well ({code}): {explain(answer)}"
            case _:
                assert_never(answer)

    async with anyio.create_task_group() as tasks:
        for device in page:
            tasks.start_soon(ask, device)
    return invalid


async def _take_turn(pacing: Pacing, found: Verified) -> None:
    """Wait until the rate, and what FCM said so far, allow one more; no longer than there is a reason to go on."""
    while found.stopped is None and pacing.allowance(time.monotonic(), 1) < 1:  # noqa: ASYNC110 - time is the event
        await anyio.sleep(max(0.001, pacing.ready_in(time.monotonic())))


async def _validate(client: FcmClient, device: Device, patience: float) -> Answer:
    try:
        message = message_for(device)
    except UnsendableToken:
        return TokenInvalid(Code.INVALID_ARGUMENT)
    except MessageError:
        return Rejected(Code.INVALID_ARGUMENT, transient=False)
    return await client.validate(message, time.monotonic() + patience)
