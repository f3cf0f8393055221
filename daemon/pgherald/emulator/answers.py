"""The answers that FCM, Google's OAuth endpoint and the proxies in front of them give, to the byte where it matters.

Pure data and constructors: no decision about when to give which (that is `app`, `messages`, `oauth` and `faults`).
Bodies follow FCM's ErrorCode reference and bodies that people posted in public issue threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from http.client import responses
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON = ("content-type", "application/json; charset=UTF-8")
HTML = ("content-type", "text/html; charset=UTF-8")

_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_APNS_ERROR = "type.googleapis.com/google.firebase.fcm.v1.ApnsError"
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_QUOTA_FAILURE = "type.googleapis.com/google.rpc.QuotaFailure"

_EXPECTED_OAUTH = (
    "Expected OAuth 2 access token, login cookie or other valid authentication credential. "
    "See https://developers.google.com/identity/sign-in/web/devconsole-project."
)
_CHALLENGE = ("www-authenticate", 'Bearer realm="https://accounts.google.com/", error="invalid_token"')


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response before it meets a wire. `code` is the name it is counted under."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (JSON,)
    code: str = "OK"

    def with_headers(self, *more: tuple[str, str]) -> Answer:
        return replace(self, headers=(*self.headers, *more))


@dataclass(frozen=True, slots=True)
class Violation:
    """One entry of google.rpc.BadRequest; `field` is '' for the root of the request."""

    field: str
    description: str


def ok(content: object) -> Answer:
    return Answer(200, _dump(content))


def json_answer(status: int, content: object, code: str) -> Answer:
    return Answer(status, _dump(content), code=code)


def error(status: int, canonical: str, message: str, *details: Mapping[str, Any], code: str | None = None) -> Answer:
    """A Google API error; `canonical` is the name of the google.rpc.Code, `details` as they go out."""
    content: dict[str, Any] = {"code": status, "message": message, "status": canonical}
    if details:
        content["details"] = list(details)
    return json_answer(status, {"error": content}, code or canonical)


def fcm_error(code: str) -> dict[str, str]:
    return {"@type": _FCM_ERROR, "errorCode": code}


def bad_request(violations: tuple[Violation, ...], *, by_fcm: bool) -> Answer:
    """400 with its field violations. The JSON gateway in front of FCM finds unknown and ill-typed fields and adds no
    FcmError; FCM itself finds the rest (`by_fcm`) and does."""
    fields = [
        {"field": v.field, "description": v.description} if v.field else {"description": v.description}
        for v in violations
    ]
    details: list[dict[str, Any]] = [{"@type": _BAD_REQUEST, "fieldViolations": fields}]
    if by_fcm:
        details.append(fcm_error("INVALID_ARGUMENT"))
    text = "\n".join(v.description for v in violations)
    return error(400, "INVALID_ARGUMENT", text, *details)


def apns_rejection(reason: str) -> Answer:
    """What FCM says when APNs would refuse a header: the reason is APNs' own."""
    apns = {"@type": _APNS_ERROR, "statusCode": 400, "reason": reason}
    text = "Request contains an invalid argument."
    return error(400, "INVALID_ARGUMENT", text, fcm_error("INVALID_ARGUMENT"), apns)


def unauthenticated(reason: str) -> Answer:
    """401 for the caller's own credential; `reason` as in google.rpc.ErrorInfo."""
    missing = reason == "CREDENTIALS_MISSING"
    begin = (
        "Request is missing required authentication credential."
        if missing
        else "Request had invalid authentication credentials."
    )
    info = {
        "@type": _ERROR_INFO,
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"method": "google.firebase.fcm.v1.FcmService.SendMessage", "service": "fcm.googleapis.com"},
    }
    return error(401, "UNAUTHENTICATED", f"{begin} {_EXPECTED_OAUTH}", info).with_headers(_CHALLENGE)


def permission_denied(project: str) -> Answer:
    """403 for a project that the service account has no right on, or that does not exist: FCM does not tell which."""
    resource = f"//cloudresourcemanager.googleapis.com/projects/{project}"
    permission = "cloudmessaging.messages.create"
    info = {
        "@type": _ERROR_INFO,
        "reason": "IAM_PERMISSION_DENIED",
        "domain": "cloudresourcemanager.googleapis.com",
        "metadata": {"permission": permission, "resource": f"projects/{project}"},
    }
    text = f"Permission '{permission}' denied on resource '{resource}' (or it may not exist)."
    return error(403, "PERMISSION_DENIED", text, info)


def oauth_error(status: int, name: str, description: str) -> Answer:
    return json_answer(status, {"error": name, "error_description": description}, name)


def page(status: int, code: str | None = None) -> Answer:
    """The HTML page of a proxy, which is not FCM's word on anything."""
    html = (
        "<!DOCTYPE html>\n<html lang=en>\n  <meta charset=utf-8>\n"
        f"  <title>Error {status} ({responses.get(status, 'Error')})!!1</title>\n"
        f"  <p><b>{status}.</b> <ins>That&#39;s an error.</ins>\n"
        "  <p>The server encountered a temporary error and could not complete your request.\n"
    )
    return Answer(status, html.encode(), (HTML,), code or f"HTTP_{status}")


def _dump(content: object) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _registration_token(*details: Mapping[str, Any], message: str) -> Answer:
    return error(400, "INVALID_ARGUMENT", message, fcm_error("INVALID_ARGUMENT"), *details, code="INVALID_TOKEN")


def _rate_limit() -> Answer:
    info = {
        "@type": _ERROR_INFO,
        "reason": "RATE_LIMIT_EXCEEDED",
        "domain": "googleapis.com",
        "metadata": {
            "service": "fcm.googleapis.com",
            "quota_limit": "SendsPerMinutePerProject",
            "quota_limit_value": "600000",
            "quota_metric": "fcm.googleapis.com/send_requests",
            "quota_unit": "1/min/{project}",
        },
    }
    text = (
        "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute' "
        "of service 'fcm.googleapis.com' for consumer 'project_number:1'."
    )
    return error(429, "RESOURCE_EXHAUSTED", text, info, code="RATE_LIMIT_EXCEEDED")


def _service_disabled() -> Answer:
    info = {
        "@type": _ERROR_INFO,
        "reason": "SERVICE_DISABLED",
        "domain": "googleapis.com",
        "metadata": {"service": "fcm.googleapis.com", "consumer": "projects/1"},
    }
    text = "Firebase Cloud Messaging API has not been used in project 1 before or it is disabled."
    return error(403, "PERMISSION_DENIED", text, info, code="SERVICE_DISABLED")


_APNS_TEXT = "Auth error from APNS or Web Push Service"

CATALOGUE: Mapping[str, Answer] = {
    # What a device token can be told to be.
    "UNREGISTERED": error(
        404, "NOT_FOUND", "Requested entity was not found.", fcm_error("UNREGISTERED"), code="UNREGISTERED"
    ),
    "SENDER_ID_MISMATCH": error(
        403, "PERMISSION_DENIED", "SenderId mismatch", fcm_error("SENDER_ID_MISMATCH"), code="SENDER_ID_MISMATCH"
    ),
    "INVALID_TOKEN": _registration_token(message="The registration token is not a valid FCM registration token"),
    "INVALID_TOKEN_FIELD": _registration_token(
        {
            "@type": _BAD_REQUEST,
            "fieldViolations": [{"field": "message.token", "description": "Invalid registration token"}],
        },
        message="Request contains an invalid argument.",
    ),
    "THIRD_PARTY_AUTH_ERROR": error(
        401, "UNAUTHENTICATED", _APNS_TEXT, fcm_error("THIRD_PARTY_AUTH_ERROR"), code="THIRD_PARTY_AUTH_ERROR"
    ),
    # The same, as FCM also words it: only errorCode tells it from a bad OAuth token.
    "THIRD_PARTY_AUTH_ERROR_GATEWAY_TEXT": error(
        401,
        "UNAUTHENTICATED",
        f"Request is missing required authentication credential. {_EXPECTED_OAUTH}",
        fcm_error("THIRD_PARTY_AUTH_ERROR"),
        code="THIRD_PARTY_AUTH_ERROR",
    ),
    # What is wrong with the request, the caller or the project.
    "INVALID_ARGUMENT": error(
        400, "INVALID_ARGUMENT", "Request contains an invalid argument.", fcm_error("INVALID_ARGUMENT")
    ),
    "UNAUTHENTICATED": unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED"),
    "PERMISSION_DENIED": permission_denied("emulator"),
    "SERVICE_DISABLED": _service_disabled(),
    "NOT_FOUND": error(404, "NOT_FOUND", "Requested entity was not found."),
    # What passes. FCM's own limit (a device, a topic) names QUOTA_EXCEEDED; the gateway's, for the project, does not.
    "QUOTA_EXCEEDED": error(
        429,
        "RESOURCE_EXHAUSTED",
        "Sending limit exceeded for the message target.",
        fcm_error("QUOTA_EXCEEDED"),
        {"@type": _QUOTA_FAILURE, "violations": [{"subject": "device", "description": "Message rate exceeded"}]},
        code="QUOTA_EXCEEDED",
    ),
    "RATE_LIMIT_EXCEEDED": _rate_limit(),
    "INTERNAL": error(500, "INTERNAL", "Internal error encountered.", fcm_error("INTERNAL")),
    "UNAVAILABLE": error(503, "UNAVAILABLE", "The service is currently unavailable.", fcm_error("UNAVAILABLE")),
    # A proxy's, not FCM's.
    "BAD_GATEWAY": page(502, "BAD_GATEWAY"),
    "GATEWAY_TIMEOUT": page(504, "GATEWAY_TIMEOUT"),
    # Google's OAuth endpoint.
    "invalid_grant": oauth_error(400, "invalid_grant", "Invalid JWT Signature."),
    "internal_failure": oauth_error(500, "internal_failure", "Backend Error"),
}

# The answer that a bare status stands for.
BY_STATUS: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "QUOTA_EXCEEDED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}

# How a device token can answer, and the beginnings of tokens that always do.
TOKEN_ANSWERS: frozenset[str] = frozenset(
    {
        "UNREGISTERED",
        "SENDER_ID_MISMATCH",
        "INVALID_TOKEN",
        "INVALID_TOKEN_FIELD",
        "THIRD_PARTY_AUTH_ERROR",
        "THIRD_PARTY_AUTH_ERROR_GATEWAY_TEXT",
        "QUOTA_EXCEEDED",
    }
)
TOKEN_PREFIXES: tuple[tuple[str, str], ...] = (
    ("unregistered-", "UNREGISTERED"),
    ("sender-mismatch-", "SENDER_ID_MISMATCH"),
    ("invalid-field-", "INVALID_TOKEN_FIELD"),
    ("invalid-", "INVALID_TOKEN"),
    ("apns-auth-", "THIRD_PARTY_AUTH_ERROR"),
    ("quota-", "QUOTA_EXCEEDED"),
)
