"""Every row of FCM's error table, and that nothing FCM (or what stands in its way) says can break the reading of it."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import permutations
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgherald.model import Code
from pgherald.outcome import (
    QUOTA_PAUSE,
    RETRY_AFTER_MAX,
    Accepted,
    Answer,
    Effect,
    Rejected,
    TokenInvalid,
    Unsure,
    classify,
)

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
HTML = b"<!DOCTYPE html>\n<html lang=en><title>Error 502 (Server Error)!!1</title>"


def error(status: int, name: str, *details: dict[str, Any], message: str = "Something is wrong.") -> bytes:
    return orjson.dumps({"error": {"code": status, "message": message, "status": name, "details": list(details)}})


def fcm(code: str) -> dict[str, Any]:
    return {"@type": FCM_ERROR, "errorCode": code}


def violation(field: str, description: str) -> dict[str, Any]:
    return {"@type": BAD_REQUEST, "fieldViolations": [{"field": field, "description": description}]}


OTHER_DETAIL = {"@type": "type.googleapis.com/google.rpc.Help", "links": [{"url": "https://example.org"}]}
NAME = "projects/p/messages/0:1500415314455276%31bd1c9631bd1c96"

TABLE: list[tuple[str, int, dict[str, str], bytes, Answer]] = [
    ("200 with name", 200, {}, orjson.dumps({"name": NAME}), Accepted(NAME)),
    ("404 + UNREGISTERED", 404, {}, error(404, "NOT_FOUND", fcm("UNREGISTERED")), TokenInvalid(Code.UNREGISTERED)),
    (
        "404 without it",
        404,
        {},
        error(404, "NOT_FOUND", message="Requested entity was not found."),
        Rejected(Code.NOT_FOUND, False, None, Effect.CONFIG_ALARM),
    ),
    (
        "400 whose message names the registration token",
        400,
        {},
        error(
            400,
            "INVALID_ARGUMENT",
            fcm("INVALID_ARGUMENT"),
            message="The registration token is not a valid FCM registration token",
        ),
        TokenInvalid(Code.INVALID_ARGUMENT),
    ),
    (
        "400 whose field violation names the registration token",
        400,
        {},
        error(
            400, "INVALID_ARGUMENT", violation("message.token", "Invalid registration token"), fcm("INVALID_ARGUMENT")
        ),
        TokenInvalid(Code.INVALID_ARGUMENT),
    ),
    (
        "400 whose field violation names the token, without FCM's own code",
        400,
        {},
        error(400, "INVALID_ARGUMENT", violation("message.token", "Invalid value")),
        TokenInvalid(Code.INVALID_ARGUMENT),
    ),
    (
        "400 whose field violation names the installation id",
        400,
        {},
        error(400, "INVALID_ARGUMENT", violation("message.fid", "Invalid value"), fcm("INVALID_ARGUMENT")),
        TokenInvalid(Code.INVALID_ARGUMENT),
    ),
    (
        "400 other: a bad value",
        400,
        {},
        error(
            400,
            "INVALID_ARGUMENT",
            violation("message.data[0].value", "Invalid value at 'message.data[0].value' (TYPE_STRING), 12"),
        ),
        Rejected(Code.INVALID_ARGUMENT, False, None, Effect.PAYLOAD_ALARM),
    ),
    (
        "400 other: no recipient",
        400,
        {},
        error(
            400,
            "INVALID_ARGUMENT",
            violation("message", "Recipient of the message is not set."),
            fcm("INVALID_ARGUMENT"),
            message="Recipient of the message is not set.",
        ),
        Rejected(Code.INVALID_ARGUMENT, False, None, Effect.PAYLOAD_ALARM),
    ),
    (
        "400 other: no details",
        400,
        {},
        orjson.dumps(
            {"error": {"code": 400, "message": "Request contains an invalid argument.", "status": "INVALID_ARGUMENT"}}
        ),
        Rejected(Code.INVALID_ARGUMENT, False, None, Effect.PAYLOAD_ALARM),
    ),
    (
        "403 SENDER_ID_MISMATCH",
        403,
        {},
        error(403, "PERMISSION_DENIED", fcm("SENDER_ID_MISMATCH"), message="SenderId mismatch"),
        TokenInvalid(Code.SENDER_ID_MISMATCH),
    ),
    (
        "403 other",
        403,
        {},
        error(
            403,
            "PERMISSION_DENIED",
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SERVICE_DISABLED"},
            message="Firebase Cloud Messaging API has not been used in project 1 before or it is disabled.",
        ),
        Rejected(Code.PERMISSION_DENIED, True, None, Effect.CIRCUIT),
    ),
    (
        "401 THIRD_PARTY_AUTH_ERROR",
        401,
        {},
        error(
            401,
            "UNAUTHENTICATED",
            fcm("THIRD_PARTY_AUTH_ERROR"),
            {
                "@type": "type.googleapis.com/google.firebase.fcm.v1.ApnsError",
                "statusCode": 403,
                "reason": "InvalidProviderToken",
            },
        ),
        Rejected(Code.THIRD_PARTY_AUTH_ERROR, True, None, Effect.PAUSE_IOS),
    ),
    (
        "401 other",
        401,
        {},
        error(401, "UNAUTHENTICATED", message="Request had invalid authentication credentials."),
        Rejected(Code.UNAUTHENTICATED, True, None, Effect.REAUTH),
    ),
    (
        "429 with seconds",
        429,
        {"retry-after": "120"},
        error(429, "RESOURCE_EXHAUSTED", fcm("QUOTA_EXCEEDED")),
        Rejected(Code.QUOTA_EXCEEDED, True, 120.0, Effect.QUOTA),
    ),
    (
        "429 with a date",
        429,
        {"retry-after": "Sat, 31 Jan 2026 12:01:30 GMT"},
        error(429, "RESOURCE_EXHAUSTED", fcm("QUOTA_EXCEEDED")),
        Rejected(Code.QUOTA_EXCEEDED, True, 90.0, Effect.QUOTA),
    ),
    (
        "429 without Retry-After",
        429,
        {},
        error(429, "RESOURCE_EXHAUSTED", fcm("QUOTA_EXCEEDED")),
        Rejected(Code.QUOTA_EXCEEDED, True, QUOTA_PAUSE, Effect.QUOTA),
    ),
    (
        "429 of something in between",
        429,
        {"retry-after": "5"},
        HTML,
        Rejected(Code.QUOTA_EXCEEDED, True, 5.0, Effect.QUOTA),
    ),
    (
        "500 INTERNAL",
        500,
        {},
        error(500, "INTERNAL", fcm("INTERNAL")),
        Rejected(Code.INTERNAL, True, None, Effect.OVERLOAD),
    ),
    (
        "503 UNAVAILABLE with Retry-After",
        503,
        {"retry-after": "30"},
        error(503, "UNAVAILABLE", fcm("UNAVAILABLE")),
        Rejected(Code.UNAVAILABLE, True, 30.0, Effect.OVERLOAD),
    ),
    (
        "503 UNAVAILABLE without details",
        503,
        {},
        error(503, "UNAVAILABLE"),
        Rejected(Code.UNAVAILABLE, True, None, Effect.OVERLOAD),
    ),
    ("anything else: 200 without a name", 200, {}, b"{}", Unsure(Code.BAD_ANSWER)),
    ("anything else: 200 with an empty name", 200, {}, b'{"name":""}', Unsure(Code.BAD_ANSWER)),
    ("anything else: 200 whose name is no text", 200, {}, b'{"name":7}', Unsure(Code.BAD_ANSWER)),
    ("anything else: 200 whose name no database holds", 200, {}, b'{"name":"a\\u0000b"}', Unsure(Code.BAD_ANSWER)),
    ("anything else: 200 with an endless name", 200, {}, orjson.dumps({"name": "n" * 5000}), Unsure(Code.BAD_ANSWER)),
    ("anything else: 200 cut in the middle", 200, {}, b'{"name": "projects/p/mess', Unsure(Code.BAD_ANSWER)),
    ("anything else: 200 of a proxy", 200, {}, HTML, Unsure(Code.BAD_ANSWER)),
    ("anything else: 200 with nothing", 200, {}, b"", Unsure(Code.BAD_ANSWER)),
    ("anything else: another 2xx", 202, {}, orjson.dumps({"name": NAME}), Unsure(Code.BAD_ANSWER)),
    ("anything else: a redirect", 307, {"location": "https://example.org/"}, b"", Unsure(Code.BAD_ANSWER)),
    *(
        (f"anything else: a proxy's {status}", status, {}, HTML, Unsure(Code.BAD_ANSWER))
        for status in (400, 401, 403, 404, 408, 413, 500, 502, 503, 504)
    ),
    (
        "anything else: a 503 in JSON that is not Google's",
        503,
        {},
        b'{"error":{"code":503,"message":"upstream connect error"}}',
        Unsure(Code.BAD_ANSWER),
    ),
    ("anything else: 503 with no error in it", 503, {}, b'{"message":"no healthy upstream"}', Unsure(Code.BAD_ANSWER)),
    ("anything else: 504 of Google", 504, {}, error(504, "DEADLINE_EXCEEDED"), Unsure(Code.OTHER)),
    ("anything else: 409 of Google", 409, {}, error(409, "ABORTED"), Unsure(Code.OTHER)),
    ("anything else: 502 of Google", 502, {}, error(502, "INTERNAL", fcm("INTERNAL")), Unsure(Code.OTHER)),
    (
        "a code FCM has not got yet",
        403,
        {},
        error(403, "PERMISSION_DENIED", fcm("BRAND_NEW_ERROR")),
        Rejected(Code.PERMISSION_DENIED, True, None, Effect.CIRCUIT),
    ),
]


@pytest.mark.parametrize(
    ("status", "headers", "body", "answer"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_error_table(status: int, headers: dict[str, str], body: bytes, answer: Answer) -> None:
    assert classify(status, headers, body, NOW) == answer


@pytest.mark.parametrize(
    "details", list(permutations([fcm("UNREGISTERED"), OTHER_DETAIL, violation("message.data", "x")]))
)
def test_details_are_found_in_any_order_between_others(details: tuple[dict[str, Any], ...]) -> None:
    body = error(404, "NOT_FOUND", *details)
    assert classify(404, {}, body, NOW) == TokenInvalid(Code.UNREGISTERED)


@pytest.mark.parametrize("odd", [None, 7, "text", [], {}, [None, 7, "x", [], {"errorCode": 5}, {"fieldViolations": 3}]])
def test_odd_details_hide_nothing_and_break_nothing(odd: Any) -> None:
    details = [*(odd if isinstance(odd, list) else [odd]), fcm("UNREGISTERED")]
    body = orjson.dumps({"error": {"status": "NOT_FOUND", "message": odd, "details": details}})
    assert classify(404, {}, body, NOW) == TokenInvalid(Code.UNREGISTERED)
    plain = orjson.dumps({"error": {"status": "NOT_FOUND", "message": odd, "details": odd}})
    assert classify(404, {}, plain, NOW) == Rejected(Code.NOT_FOUND, False, None, Effect.CONFIG_ALARM)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 7 ", 7.0),
        ("86400", RETRY_AFTER_MAX),
        ("9" * 400, RETRY_AFTER_MAX),
        ("Sat, 31 Jan 2026 12:00:10 GMT", 10.0),
        ("Saturday, 31-Jan-26 12:00:10 GMT", 10.0),
        ("Sat Jan 31 12:00:10 2026", 10.0),
        ("Sat, 31 Jan 2026 11:59:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_MAX),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        ("Sat, 99 Jan 2026 12:00:10 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nonsense_is_no_wait(value: str, seconds: float | None) -> None:
    answer = classify(503, {"retry-after": value}, error(503, "UNAVAILABLE"), NOW)
    assert answer == Rejected(Code.UNAVAILABLE, True, seconds, Effect.OVERLOAD)


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20)
words = st.sampled_from(
    ["error", "code", "status", "message", "details", "errorCode", "@type", "fieldViolations", "field", "name"]
    + [code.value for code in Code]
    + ["registration token", "message.token", FCM_ERROR]
)
documents = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=5), inner, max_size=5),
    max_leaves=12,
)
errors = st.fixed_dictionaries(
    {},
    optional={
        "code": scalars,
        "status": words | scalars,
        "message": words | scalars,
        "details": st.lists(
            st.fixed_dictionaries({}, optional={"errorCode": words | documents, "fieldViolations": documents})
            | documents,
            max_size=4,
        )
        | documents,
    },
)
bodies = st.binary(max_size=200) | documents.map(orjson.dumps) | st.builds(lambda e: orjson.dumps({"error": e}), errors)


@given(st.integers(-1, 1000), st.dictionaries(st.just("retry-after"), st.text(max_size=40)), bodies)
@example(200, {}, b"[" * 100_000)
@example(503, {}, b'{"error":' * 5000)
@example(200, {}, b'{"name":"\\ud800"}')
@example(429, {"retry-after": "Sat, 31 Jan 2026 12:00:10 +9999"}, b"")
def test_nothing_that_comes_back_makes_the_reading_fail(status: int, headers: dict[str, str], body: bytes) -> None:
    answer = classify(status, headers, body, NOW)
    match answer:
        case Accepted(name):
            assert status == 200
            assert orjson.loads(body)["name"] == name
        case TokenInvalid():
            assert 400 <= status < 500
        case Rejected(retry_after=wait):
            assert status >= 400
            assert wait is None or 0 <= wait <= RETRY_AFTER_MAX
        case Unsure(code):
            assert code in (Code.BAD_ANSWER, Code.OTHER)


@given(st.integers(500, 599), st.binary(max_size=200) | documents.map(orjson.dumps))
def test_a_broken_server_is_certain_only_if_it_spoke_as_google_does(status: int, body: bytes) -> None:
    answer = classify(status, {}, body, NOW)
    if not isinstance(answer, Unsure):
        assert isinstance(orjson.loads(body)["error"], dict)
