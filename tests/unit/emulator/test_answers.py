"""Each answer that FCM can give can be had, over HTTP, with the body that Google sends."""

from __future__ import annotations

import email.utils
import time
from typing import TYPE_CHECKING, Any

import pytest

from pgherald.emulator.answers import CATALOGUE, TOKEN_PREFIXES
from tests.support.fcm_wire import RawHttp1, RawHttp2, Seen, access_token, message_to

if TYPE_CHECKING:
    from pgherald.emulator.client import EmulatorClient


def error_code(seen: Seen) -> str | None:
    """The errorCode of FCM's own error, None if the error carries none."""
    details = seen.json["error"].get("details", [])
    codes = [d["errorCode"] for d in details if d["@type"] == "type.googleapis.com/google.firebase.fcm.v1.FcmError"]
    return codes[0] if codes else None


def test_a_good_message_is_answered_with_its_name_and_kept(emulator: EmulatorClient, http1: RawHttp1) -> None:
    seen = http1.send(message_to("device-1"))
    assert seen.status == 200
    assert seen.raw.startswith(b"HTTP/1.1 200 OK\r\n")
    assert seen.head["content-type"] == "application/json; charset=UTF-8"
    [kept] = emulator.messages()
    assert seen.json == {"name": kept["name"]}
    assert kept["name"] == f"projects/demo/messages/{kept['id']}"
    assert kept["message"] == message_to("device-1")["message"]
    assert (kept["token"], kept["project"], kept["http_version"]) == ("device-1", "demo", "1.1")
    assert kept["received_at"].endswith("+00:00")


def test_no_two_messages_have_one_name(emulator: EmulatorClient, http1: RawHttp1) -> None:
    names = {http1.send(message_to()).json["name"] for _ in range(50)}
    assert len(names) == 50
    assert {entry["name"] for entry in emulator.messages()} == names


@pytest.mark.parametrize(
    ("token", "status", "canonical", "code"),
    [
        ("unregistered-1", 404, "NOT_FOUND", "UNREGISTERED"),
        ("sender-mismatch-1", 403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"),
        ("invalid-1", 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ("invalid-field-1", 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ("apns-auth-1", 401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"),
        ("quota-1", 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
    ],
)
def test_a_device_token_tells_by_its_beginning_how_it_answers(
    emulator: EmulatorClient, http1: RawHttp1, token: str, status: int, canonical: str, code: str
) -> None:
    seen = http1.send(message_to(token))
    assert (seen.status, seen.json["error"]["code"], seen.json["error"]["status"]) == (status, status, canonical)
    assert error_code(seen) == code
    assert emulator.messages() == []
    assert list(emulator.counters()["rejected"]) == [CATALOGUE[dict(TOKEN_PREFIXES)[token.removesuffix("1")]].code]


def test_an_invalid_token_is_named_in_the_message_or_in_a_field_violation(http1: RawHttp1) -> None:
    by_message = http1.send(message_to("invalid-1")).json["error"]
    by_field = http1.send(message_to("invalid-field-1")).json["error"]
    assert by_message["message"] == "The registration token is not a valid FCM registration token"
    assert [d["fieldViolations"] for d in by_field["details"] if "fieldViolations" in d] == [
        [{"field": "message.token", "description": "Invalid registration token"}]
    ]


def test_a_device_token_can_be_told_how_to_answer(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_tokens({"device-1": "UNREGISTERED", "device-2": "THIRD_PARTY_AUTH_ERROR_GATEWAY_TEXT"})
    assert error_code(http1.send(message_to("device-1"))) == "UNREGISTERED"
    disguised = http1.send(message_to("device-2"))
    assert error_code(disguised) == "THIRD_PARTY_AUTH_ERROR"
    assert "OAuth 2 access token" in disguised.json["error"]["message"]
    assert http1.send(message_to("device-3")).status == 200
    emulator.set_tokens({})
    assert http1.send(message_to("device-1")).status == 200


def test_an_installation_id_answers_as_a_token_does(emulator: EmulatorClient, http1: RawHttp1) -> None:
    assert error_code(http1.send({"message": {"fid": "unregistered-1"}})) == "UNREGISTERED"
    assert http1.send({"message": {"fid": "fid-1"}}).status == 200
    assert [entry["token"] for entry in emulator.messages()] == ["fid-1"]


@pytest.mark.parametrize(
    ("code", "status", "canonical", "fcm_code"),
    [
        ("NOT_FOUND", 404, "NOT_FOUND", None),
        ("INVALID_ARGUMENT", 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ("PERMISSION_DENIED", 403, "PERMISSION_DENIED", None),
        ("SERVICE_DISABLED", 403, "PERMISSION_DENIED", None),
        ("UNAUTHENTICATED", 401, "UNAUTHENTICATED", None),
        ("QUOTA_EXCEEDED", 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
        ("RATE_LIMIT_EXCEEDED", 429, "RESOURCE_EXHAUSTED", None),
        ("INTERNAL", 500, "INTERNAL", "INTERNAL"),
        ("UNAVAILABLE", 503, "UNAVAILABLE", "UNAVAILABLE"),
    ],
)
def test_each_other_error_of_fcm_can_be_had(
    emulator: EmulatorClient, http1: RawHttp1, code: str, status: int, canonical: str, fcm_code: str | None
) -> None:
    emulator.set_faults({"do": "status", "code": code, "next": 1})
    seen = http1.send(message_to())
    assert (seen.status, seen.json["error"]["status"], error_code(seen)) == (status, canonical, fcm_code)
    assert http1.send(message_to()).status == 200
    assert emulator.counters()["rejected"] == {code: 1}
    assert len(emulator.messages()) == 1


def test_what_is_no_answer_of_fcm_can_be_had(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "status", "status": 502})
    page = http1.send(message_to())
    assert (page.status, page.head["content-type"]) == (502, "text/html; charset=UTF-8")
    assert page.body.startswith(b"<!DOCTYPE html>")
    emulator.set_faults({"do": "status", "status": 200, "body": "{}"})
    assert http1.send(message_to()).body == b"{}"
    assert emulator.messages() == []


def test_retry_after_comes_as_seconds_or_as_an_http_date(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "status", "status": 429, "retry_after": 7})
    assert http1.send(message_to()).head["retry-after"] == "7"
    emulator.set_faults({"do": "status", "status": 503, "retry_after_date": 60})
    at = email.utils.parsedate_to_datetime(http1.send(message_to()).head["retry-after"]).timestamp()
    assert 50 < at - time.time() < 70


def test_a_503_can_hide_that_the_message_was_accepted(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "status", "status": 503, "accepted": True})
    assert http1.send(message_to()).status == 503
    assert len(emulator.messages()) == 1


def test_validate_only_checks_everything_and_pushes_nothing(emulator: EmulatorClient, http1: RawHttp1) -> None:
    good = http1.send(message_to() | {"validate_only": True})
    assert (good.status, good.json) == (200, {"name": "projects/demo/messages/fake_message_id"})
    assert error_code(http1.send(message_to("unregistered-1") | {"validate_only": True})) == "UNREGISTERED"
    assert http1.send(message_to(data={"from": "x"}) | {"validate_only": True}).status == 400
    assert emulator.messages() == []
    assert emulator.counters()["accepted"] == 0
    assert emulator.counters()["validated"] == 1


def test_a_request_without_a_good_access_token_is_unauthenticated(emulator: EmulatorClient, http1: RawHttp1) -> None:
    missing = http1.request(content=message_to(), headers={"authorization": ""})
    made_up = http1.request(content=message_to(), headers={"authorization": "Bearer made-up"})
    reasons = [seen.json["error"]["details"][0]["reason"] for seen in (missing, made_up)]
    assert [missing.status, made_up.status] == [401, 401]
    assert reasons == ["CREDENTIALS_MISSING", "ACCESS_TOKEN_TYPE_UNSUPPORTED"]
    assert "www-authenticate" in missing.head
    assert emulator.messages() == []


def test_another_project_is_denied_without_a_hint_whether_it_exists(http1: RawHttp1) -> None:
    seen = http1.request(path="/v1/projects/other/messages:send", content=message_to())
    assert (seen.status, seen.json["error"]["status"], error_code(seen)) == (403, "PERMISSION_DENIED", None)
    assert "projects/other' (or it may not exist)" in seen.json["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/v1/projects/demo/messages", "/fcm/send", "/v1/projects/demo/messages:sendAll"])
def test_another_path_is_not_found_as_by_googles_front_end(http1: RawHttp1, path: str) -> None:
    seen = http1.request(path=path, content=message_to())
    assert seen.status == 404
    assert seen.head["content-type"].startswith("text/html")


def test_the_path_may_be_percent_encoded_and_carry_a_query(http1: RawHttp1) -> None:
    assert http1.request(path="/v1/projects/demo/messages%3Asend?alt=json", content=message_to()).status == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"message": {"token": "t", "data": {"n": 1}}}', b'{"message": {"token": "\\ud800"}}'],
)
def test_a_bad_body_is_refused_and_the_connection_goes_on(http1: RawHttp1, body: bytes) -> None:
    assert http1.request(body=body).status == 400
    assert http1.send(message_to()).status == 200


def test_messages_are_read_from_where_one_left_off(emulator: EmulatorClient, http1: RawHttp1) -> None:
    for name in "abc":
        http1.send(message_to(name))
    first = emulator.messages()
    assert [entry["token"] for entry in first] == ["a", "b", "c"]
    assert [entry["token"] for entry in emulator.messages(since=first[0]["seq"])] == ["b", "c"]
    page = http1.request("GET", f"/emulator/messages?since={first[0]['seq']}&limit=1", body=b"")
    assert [entry["token"] for entry in page.json["messages"]] == ["b"]
    emulator.clear()
    assert emulator.messages() == []
    http1.send(message_to("d"))
    assert [entry["token"] for entry in emulator.messages(since=first[-1]["seq"])] == ["d"]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/emulator/faults", {"do": "explode"}),
        ("/emulator/faults", {"faults": [], "seed": "x"}),
        ("/emulator/tokens", {"t": "EXPLODED"}),
        ("/emulator/tokens", []),
        ("/emulator/oauth", {"lifetime": -1}),
    ],
)
def test_a_wrong_order_to_the_emulator_is_refused_in_words(http1: RawHttp1, path: str, content: Any) -> None:
    seen = http1.request("PUT", path, content)
    assert seen.status == 400
    assert seen.json["error"]


def test_the_client_raises_what_the_emulator_says(emulator: EmulatorClient) -> None:
    with pytest.raises(ValueError, match="it may be"):
        emulator.set_faults({"do": "explode"})


def test_faults_tell_how_often_they_hit(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "status", "status": 503, "every": 2})
    assert [http1.send(message_to()).status for _ in range(4)] == [200, 503, 200, 503]
    assert http1.request("GET", "/emulator/faults", body=b"").json["faults"] == [
        {"do": "status", "status": 503, "every": 2, "hits": 2}
    ]
    assert emulator.counters()["faults"] == {"status": 2}


def test_access_tokens_can_be_revoked_and_shortened(emulator: EmulatorClient) -> None:
    emulator.set_token_lifetime(0)
    try:
        expired = access_token(emulator.credentials_path)
    finally:
        emulator.set_token_lifetime(3599)
    with RawHttp1(emulator.endpoint, expired) as connection:
        seen = connection.send(message_to())
    assert seen.json["error"]["details"][0]["reason"] == "ACCESS_TOKEN_EXPIRED"


def test_the_same_answers_come_over_http2(emulator: EmulatorClient, http2: RawHttp2) -> None:
    good = http2.send(message_to())
    assert (good.headers[":status"], good.json["name"]) == ("200", emulator.messages()[0]["name"])
    assert emulator.messages()[0]["http_version"] == "2"
    gone = http2.send(message_to("unregistered-1"))
    assert (gone.headers[":status"], gone.json["error"]["status"]) == ("404", "NOT_FOUND")


def test_http2_over_tls_is_agreed_by_alpn(emulator: EmulatorClient, bearer: str) -> None:
    assert emulator.tls_endpoint is not None
    with RawHttp2(emulator.tls_endpoint, bearer, emulator.certificate_path) as connection:
        assert connection.send(message_to()).headers[":status"] == "200"
    assert [entry["http_version"] for entry in emulator.messages()] == ["2"]
