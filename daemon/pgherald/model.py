"""The words of the domain as Python types: identifiers, prompts, devices, and what became of a push.

What is made for every push and has many fields is a named tuple: a frozen dataclass sets them one by one, which took
ten times as long. No I/O and no behaviour beyond keeping a device token out of sight. Every other module may import
this one; it imports none of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import TYPE_CHECKING, NamedTuple, NewType, NoReturn, TypeAlias, final
from uuid import UUID

if TYPE_CHECKING:
    from datetime import date, datetime

PromptId = NewType("PromptId", UUID)
ScenarioId = NewType("ScenarioId", UUID)
UserId = NewType("UserId", UUID)
NotificationId = NewType("NotificationId", UUID)
DeviceId = NewType("DeviceId", UUID)


def idempotency_key(user_id: UUID, scenario_type: str, evaluation_date: date) -> str:
    """The key of a decision, as `herald.idempotency_key()` makes it: one per person, scenario type and UTC date."""
    parts = (str(user_id), scenario_type, evaluation_date.isoformat())
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


class Word(StrEnum):
    """A closed set of words. Their hash is that of the text, which is fast: an Enum's own is computed in Python."""

    __hash__ = str.__hash__


@unique
class Platform(Word):
    """What kind of device a token addresses; values as in `herald.device_token.platform`."""

    IOS = "ios"
    ANDROID = "android"
    WEB = "web"


@unique
class TokenKind(Word):
    """How FCM is to read an address: a registration token, or a Firebase installation id."""

    TOKEN = "token"
    FID = "fid"


@unique
class Presentation(Word):
    """Whether the device shows the push by itself (`alert`) or hands it to the app (`data`)."""

    ALERT = "alert"
    DATA = "data"


@unique
class Code(Word):
    """Every code an answer can carry: a closed set, for history rows and metric labels alike.

    Down to UNAUTHENTICATED these are FCM's and Google's own words; the rest is what a sender can observe itself.
    Whatever else FCM may come to say is OTHER.
    """

    OK = "OK"
    UNREGISTERED = "UNREGISTERED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    SENDER_ID_MISMATCH = "SENDER_ID_MISMATCH"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    THIRD_PARTY_AUTH_ERROR = "THIRD_PARTY_AUTH_ERROR"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"
    NOT_FOUND = "NOT_FOUND"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    TIMEOUT = "TIMEOUT"  # no answer within the deadline; the request may have arrived
    CONNECTION_LOST = "CONNECTION_LOST"  # the connection broke after bytes of the request may have gone out
    BAD_ANSWER = "BAD_ANSWER"  # an answer that is not FCM's: cut, not HTTP, not JSON, a proxy's page
    NOT_CONNECTED = "NOT_CONNECTED"  # no byte of the request left: refused, DNS, TLS, no free connection in time
    NO_OAUTH_TOKEN = "NO_OAUTH_TOKEN"  # no access token to send with, so nothing was sent
    LEASE_EXPIRED = "LEASE_EXPIRED"  # this process slept past its claim, so nothing was sent
    OTHER = "OTHER"


@final
class Token:
    """The address of one device, which whoever knows it can push to: never shown unless asked by `reveal()`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The address itself: for the request to FCM and nothing else."""
        return self._value

    def __repr__(self) -> str:
        return "Token(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and self._value == other._value

    def __hash__(self) -> int:
        return hash((Token, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token is not pickled: that would write it somewhere")


class Device(NamedTuple):
    """One row of `herald.device_token` as it was claimed; it is revoked only if the row still is this one."""

    device_id: DeviceId
    platform: Platform
    kind: TokenKind
    token: Token
    last_seen_at: datetime


@dataclass(frozen=True, slots=True)
class Revoked:
    """A device that FCM called invalid, and the code it gave."""

    device: Device
    error_code: str


class Prompt(NamedTuple):
    """One claimed row of the outbox, with everything needed to send it.

    `epoch` fences a late owner. `claimed_at` is the database's clock; `claimed_mono` is `time.monotonic()` of this
    process when the claim was sent off, so it is the earlier of the two moments. `devices` come in the order to try
    them; with `all_devices` each of them is sent to, otherwise the next only if the one before was found invalid.
    """

    prompt_id: PromptId
    epoch: int
    notification_id: NotificationId
    scenario_id: ScenarioId
    scenario_type: str
    user_id: UserId
    activity_ref: str
    presentation: Presentation
    title_key: str
    body_key: str
    priority: int
    collapse_key: str
    attempt: int
    due_at: datetime
    expires_at: datetime
    claimed_at: datetime
    all_devices: bool
    devices: tuple[Device, ...]
    claimed_mono: float


@dataclass(frozen=True, slots=True)
class Sent:
    """FCM accepted the push; `message_name` is the name it gave (projects/*/messages/*)."""

    message_name: str
    device_id: DeviceId
    revoked: tuple[Revoked, ...] = ()


@dataclass(frozen=True, slots=True)
class NoToken:
    """The person has no device to push to; nothing was sent."""


@dataclass(frozen=True, slots=True)
class TokenRevoked:
    """Every device of the person was found invalid; FCM accepted nothing."""

    error_code: str
    revoked: tuple[Revoked, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """Not sent, for certain. `transient` ones are tried again, no sooner than `retry_after` seconds from now."""

    error_code: str
    transient: bool
    retry_after: float | None = None
    revoked: tuple[Revoked, ...] = ()


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody can tell whether FCM accepted the push; it is not sent again by default."""

    error_code: str
    revoked: tuple[Revoked, ...] = ()


DispatchResult: TypeAlias = Sent | NoToken | TokenRevoked | Failed | Unknown


@dataclass(frozen=True, slots=True)
class DispatchSummary:
    """How many prompts of a batch were accepted, failed (unknown ones included), or skipped."""

    dispatched: int
    failed: int
    skipped: int
