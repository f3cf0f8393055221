"""What an answer of FCM means: the whole error table of FCM v1, as one pure function.

`classify` reads status, headers and body of an answer that arrived whole; `pgherald.fcm` calls it, and makes the same
kinds of value of what went wrong on the way. Nothing here waits, retries or revokes: an answer says what is so, and the
dispatcher and `pgherald.pacing` act on it.

Sources: firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode, .../docs/cloud-messaging/error-codes, and
google.rpc.Status for the shape {"error": {"code", "status", "message", "details": [...]}}.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum, unique
from typing import TYPE_CHECKING, Final, TypeAlias

import orjson

from pgherald.model import Code

if TYPE_CHECKING:
    from collections.abc import Mapping

QUOTA_PAUSE: Final = 60.0
"""Seconds to pause after a 429 that names none (FCM: "if no retry-after is set, default to 60 seconds")."""

RETRY_AFTER_MAX: Final = 3600.0
"""Seconds that a Retry-After can ask for at most, so that one odd header does not silence the daemon for days."""

MESSAGE_NAME_MAX: Final = 512
"""Characters of a message's name; FCM's are about 60. What is longer is not a name."""


@unique
class Effect(StrEnum):
    """What an answer says about more than the one push it answers."""

    NONE = "none"
    CONFIG_ALARM = "config_alarm"  # 404 that is no token's: wrong project or endpoint
    PAYLOAD_ALARM = "payload_alarm"  # 400 that is no token's: we send something FCM does not take
    CIRCUIT = "circuit"  # 403: IAM, or the API is disabled
    PAUSE_IOS = "pause_ios"  # the APNs key is bad: iOS only
    REAUTH = "reauth"  # 401: the access token is not taken
    QUOTA = "quota"  # 429: the whole daemon pauses
    OVERLOAD = "overload"  # 500 and 503


@dataclass(frozen=True, slots=True)
class Accepted:
    """FCM took the push; `name` is projects/*/messages/*."""

    name: str


@dataclass(frozen=True, slots=True)
class TokenInvalid:
    """This address reaches nobody, and nothing was sent. (A burst of SENDER_ID_MISMATCH is our fault: see `pacing`.)"""

    code: Code


@dataclass(frozen=True, slots=True)
class Rejected:
    """Not sent, for certain. `retry_after` is in seconds from now, where the answer asks for a wait."""

    code: Code
    transient: bool
    retry_after: float | None = None
    effect: Effect = Effect.NONE


@dataclass(frozen=True, slots=True)
class Unsure:
    """Nobody can tell from this whether FCM took the push."""

    code: Code


Answer: TypeAlias = Accepted | TokenInvalid | Rejected | Unsure

_NAMES_THE_TOKEN: Final = re.compile(r"registration[ _-]?token|\bmessage\.(?:token|fid)\b", re.IGNORECASE)

_FCM_CODES: Final = frozenset(
    {
        Code.UNREGISTERED,
        Code.INVALID_ARGUMENT,
        Code.SENDER_ID_MISMATCH,
        Code.QUOTA_EXCEEDED,
        Code.THIRD_PARTY_AUTH_ERROR,
        Code.UNAVAILABLE,
        Code.INTERNAL,
    }
)

# google.rpc.Code, but OK. An error whose status is none of these is not one of Google's.
_RPC_STATUSES: Final = frozenset(
    {
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
    }
)


@dataclass(frozen=True, slots=True)
class _FcmError:
    """What there is to know from a parsed error; `code` is FCM's own (details[].errorCode) and may be missing."""

    code: Code | None
    status: str
    names_token: bool


def classify(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Answer:
    """Say what an answer means: FCM's own error code first, then the HTTP status.

    `headers` have lower-case names; `now` is UTC, for a Retry-After that is a date. Never raises, whatever the body is.
    An error counts only if its body parses as one of Google's: a proxy in between can make any status, and only what
    FCM itself said is certain. The one exception is 429, which stops a request before it is acted on, whoever says it.
    """
    if status == 200:
        name = _message_name(body)
        return Unsure(Code.BAD_ANSWER) if name is None else Accepted(name)
    error = _parse_error(body) if status >= 400 else None
    if status == 429 or (error is not None and error.code is Code.QUOTA_EXCEEDED):
        wait = _retry_after(headers, now)
        return Rejected(Code.QUOTA_EXCEEDED, True, QUOTA_PAUSE if wait is None else wait, Effect.QUOTA)
    if error is None:
        return Unsure(Code.BAD_ANSWER)
    if 400 <= status < 500:
        return _refused(status, error)
    if status in (500, 503):
        code = Code.UNAVAILABLE if status == 503 else Code.INTERNAL
        return Rejected(code, True, _retry_after(headers, now), Effect.OVERLOAD)
    return Unsure(Code.OTHER)


def _refused(status: int, error: _FcmError) -> Answer:
    """The 4xx part of the table, 429 excepted."""
    match error.code:
        case Code.UNREGISTERED | Code.SENDER_ID_MISMATCH:
            return TokenInvalid(error.code)
        case Code.THIRD_PARTY_AUTH_ERROR:
            return Rejected(error.code, True, None, Effect.PAUSE_IOS)
        case _:
            pass
    match status:
        case 400:
            if error.names_token and Code.INVALID_ARGUMENT in (error.code, error.status):
                return TokenInvalid(Code.INVALID_ARGUMENT)
            return Rejected(error.code or Code.INVALID_ARGUMENT, False, None, Effect.PAYLOAD_ALARM)
        case 401:
            return Rejected(Code.UNAUTHENTICATED, True, None, Effect.REAUTH)
        case 403:
            return Rejected(Code.PERMISSION_DENIED, True, None, Effect.CIRCUIT)
        case 404:
            return Rejected(Code.NOT_FOUND, False, None, Effect.CONFIG_ALARM)
        case _:
            return Unsure(Code.OTHER)


def _load(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _message_name(body: bytes) -> str | None:
    document = _load(body)
    name = document.get("name") if isinstance(document, dict) else None
    if isinstance(name, str) and 0 < len(name) <= MESSAGE_NAME_MAX and name.isprintable():
        return name
    return None


def _parse_error(body: bytes) -> _FcmError | None:
    """A body that is Google's error, or None. The HTTP status that it repeats is not looked at."""
    document = _load(body)
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return None
    status = error.get("status")
    if not isinstance(status, str):
        status = ""
    message = error.get("message")
    names_token = isinstance(message, str) and _NAMES_THE_TOKEN.search(message) is not None
    code: Code | None = None
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        if code in (None, Code.OTHER) and isinstance(said := detail.get("errorCode"), str):
            code = Code(said) if said in _FCM_CODES else Code.OTHER
        names_token = names_token or _violation_names_token(detail)
    if code is None and status not in _RPC_STATUSES:
        return None
    return _FcmError(code, status, names_token)


def _violation_names_token(detail: Mapping[str, object]) -> bool:
    violations = detail.get("fieldViolations")
    for violation in violations if isinstance(violations, list) else ():
        if not isinstance(violation, dict):
            continue
        for text in (violation.get("field"), violation.get("description")):
            if isinstance(text, str) and _NAMES_THE_TOKEN.search(text) is not None:
                return True
    return False


def _retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that Retry-After asks for (RFC 9110 section 10.2.3: seconds or a date); None without a readable one."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:10]), RETRY_AFTER_MAX)
    try:
        when = parsedate_to_datetime(value)
        wait = (when if when.tzinfo is not None else when.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return max(wait / timedelta(seconds=1), 0.0) if wait < timedelta(seconds=RETRY_AFTER_MAX) else RETRY_AFTER_MAX
