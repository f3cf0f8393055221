"""What FCM takes and what it refuses, field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherald.emulator.answers import Answer
from pgherald.emulator.messages import SendRequest, Target, check, parse

TAG = "ab" * 32
ALERT_ANDROID = {
    "priority": "HIGH",
    "ttl": "259200s",
    "notification": {
        "title_loc_key": "inactivity_title",
        "body_loc_key": "inactivity_body",
        "tag": TAG,
        "channel_id": "herald",
        "visibility": "PRIVATE",
    },
}
ALERT_APNS = {
    "headers": {
        "apns-priority": "10",
        "apns-push-type": "alert",
        "apns-collapse-id": TAG,
        "apns-expiration": "1764547200",
    },
    "payload": {"aps": {"alert": {"title-loc-key": "t", "loc-key": "b"}, "mutable-content": 1}},
}


def request_of(**fields: Any) -> dict[str, Any]:
    return {"message": {"token": "t", **fields}}


def refused(content: Any) -> dict[str, Any]:
    answer = check(content)
    assert isinstance(answer, Answer), "accepted"
    assert answer.status == 400
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    return error


def violations(error: dict[str, Any]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for detail in error["details"]:
        found += detail.get("fieldViolations", [])
    return found


def error_codes(error: dict[str, Any]) -> list[str]:
    return [detail["errorCode"] for detail in error["details"] if "errorCode" in detail]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data": {"notification_id": "1", "scenario_type": "inactivity"}, "android": ALERT_ANDROID},
        {"data": {"notification_id": "1"}, "apns": ALERT_APNS},
        {"notification": {"title": "T", "body": "B", "image": "https://x/y.png"}},
        {"android": {"priority": "normal", "ttl": "0s", "direct_boot_ok": True, "collapse_key": "k"}},
        {"android": {"ttl": "2419200s"}},
        {"android": {"ttl": "3.5s", "notification": {"titleLocKey": "t", "bodyLocArgs": ["a"], "color": "#aaBB00"}}},
        {"android": {"notification": {"light_settings": {"color": {"red": 1, "alpha": 0.5}}, "notification_count": 2}}},
        {"android": {"notification": {"event_time": "2026-01-31T10:00:00.5Z", "vibrate_timings": ["0.1s", "1s"]}}},
        {"apns": {"headers": {"apns-priority": "5", "apns-push-type": "background"}, "payload": {"aps": {}}}},
        {"webpush": {"headers": {"TTL": "15"}, "notification": {"title": "t"}, "fcmOptions": {"link": "https://x"}}},
        {"fcm_options": {"analytics_label": "a-b_c"}, "apns": {"fcm_options": {"image": "https://x"}}},
        {"notification": None, "android": None, "name": "ignored"},
    ],
)
def test_a_message_of_known_fields_is_taken(fields: dict[str, Any]) -> None:
    checked = check(request_of(**fields))
    assert checked == SendRequest(request_of(**fields)["message"], Target("token", "t"), validate_only=False)


@pytest.mark.parametrize("kind", ["token", "fid", "topic", "condition"])
def test_each_kind_of_target_is_taken(kind: str) -> None:
    checked = check({"message": {kind: "abc"}})
    assert isinstance(checked, SendRequest)
    assert checked.target == Target(kind, "abc")
    assert checked.target.is_device is (kind in {"token", "fid"})


@pytest.mark.parametrize("name", ["validate_only", "validateOnly"])
def test_validate_only_is_read_in_both_spellings(name: str) -> None:
    checked = check({"message": {"token": "t"}, name: True})
    assert isinstance(checked, SendRequest)
    assert checked.validate_only


def test_an_unknown_field_is_named_with_its_place() -> None:
    error = refused(request_of(android={"notification": {"badge": 1}}))
    text = "Invalid JSON payload received. Unknown name \"badge\" at 'message.android.notification': Cannot find field."
    assert error["message"] == text
    assert violations(error) == [{"field": "message.android.notification", "description": text}]
    assert error_codes(error) == []


def test_an_unknown_field_at_the_root_has_no_place() -> None:
    error = refused({"message": {"token": "t"}, "to": "x"})
    assert violations(error) == [
        {"description": 'Invalid JSON payload received. Unknown name "to": Cannot find field.'}
    ]


def test_all_unknown_fields_are_reported_at_once() -> None:
    error = refused(request_of(a=1, b=2))
    assert len(violations(error)) == 2
    assert error["message"].count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "place", "description"),
    [
        ({"data": {"a": "x", "n": 12}}, "message.data[1].value", "(TYPE_STRING), 12"),
        ({"data": {"n": None}}, "message.data[0].value", "(TYPE_STRING), null"),
        ({"data": "x"}, "message.data", '(map), "x"'),
        ({"token": 1}, "message.token", "(TYPE_STRING), 1"),
        ({"android": "x"}, "message.android", '(type.googleapis.com/google.firebase.fcm.v1.AndroidConfig), "x"'),
        ({"android": {"priority": "URGENT"}}, "message.android.priority", 'AndroidMessagePriority), "URGENT"'),
        ({"android": {"priority": 5}}, "message.android.priority", "AndroidMessagePriority), 5"),
        ({"android": {"ttl": 3600}}, "message.android.ttl", "(type.googleapis.com/google.protobuf.Duration), 3600"),
        ({"android": {"ttl": "3600"}}, "message.android.ttl", "duration must end with 's'"),
        ({"android": {"ttl": "soons"}}, "message.android.ttl", '"soons"'),
        ({"android": {"direct_boot_ok": "true"}}, "message.android.direct_boot_ok", '(TYPE_BOOL), "true"'),
        (
            {"android": {"notification": {"notification_count": 1.5}}},
            "message.android.notification.notification_count",
            "(TYPE_INT32), 1.5",
        ),
        (
            {"android": {"notification": {"title_loc_args": [1]}}},
            "message.android.notification.title_loc_args[0]",
            "(TYPE_STRING), 1",
        ),
        (
            {"android": {"notification": {"event_time": "yesterday"}}},
            "message.android.notification.event_time",
            '"yesterday"',
        ),
        ({"apns": {"payload": "x"}}, "message.apns.payload", '(type.googleapis.com/google.protobuf.Struct), "x"'),
        ({"apns": {"headers": {"apns-priority": 10}}}, "message.apns.headers[0].value", "(TYPE_STRING), 10"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_the_gateway(
    fields: dict[str, Any], place: str, description: str
) -> None:
    error = refused(request_of(**fields))
    [violation] = violations(error)
    assert violation["field"] == place
    assert violation["description"].startswith(f"Invalid value at '{place}'")
    assert violation["description"].endswith(description)
    assert error_codes(error) == []


def test_a_list_where_there_is_none_is_refused() -> None:
    error = refused(request_of(notification=[]))
    assert "Proto field is not repeating, cannot start list." in error["message"]


@pytest.mark.parametrize("content", [{}, {"message": {}}, {"message": {"token": ""}}, {"message": {"data": {}}}])
def test_a_message_without_a_target_is_refused(content: Any) -> None:
    error = refused(content)
    assert error["message"] == "Recipient of the message is not set."
    assert violations(error) == [{"field": "message", "description": "Recipient of the message is not set."}]
    assert error_codes(error) == ["INVALID_ARGUMENT"]


def test_a_message_with_two_targets_is_refused() -> None:
    error = refused({"message": {"token": "t", "topic": "x"}})
    assert error["message"] == (
        "Invalid value at 'message' (oneof), oneof field 'target' is already set. Cannot set 'topic'"
    )


@pytest.mark.parametrize("key", ["from", "message_type", "google.c.a", "gcm.notification.title"])
@pytest.mark.parametrize("place", ["data", "android"])
def test_a_reserved_data_key_is_refused(key: str, place: str) -> None:
    error = refused(request_of(data={key: "x"}) if place == "data" else request_of(android={"data": {key: "x"}}))
    assert violations(error)[0]["description"] == f"Invalid data payload key: {key}"
    assert error_codes(error) == ["INVALID_ARGUMENT"]


@pytest.mark.parametrize("ttl", ["-1s", "2419201s"])
def test_a_ttl_out_of_range_is_refused(ttl: str) -> None:
    error = refused(request_of(android={"ttl": ttl}))
    assert violations(error)[0]["field"] == "message.android.ttl"
    assert error_codes(error) == ["INVALID_ARGUMENT"]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"android": {"notification": {"color": "red"}}}, "message.android.notification.color"),
        ({"webpush": {"fcm_options": {"link": "http://x"}}}, "message.webpush.fcm_options.link"),
        ({"fcm_options": {"analytics_label": "no blanks"}}, "message.fcm_options.analytics_label"),
        ({"apns": {"fcm_options": {"analytics_label": ""}}}, "message.apns.fcm_options.analytics_label"),
    ],
)
def test_a_malformed_value_is_refused_by_fcm(fields: dict[str, Any], place: str) -> None:
    error = refused(request_of(**fields))
    assert violations(error)[0]["field"] == place
    assert error_codes(error) == ["INVALID_ARGUMENT"]


@pytest.mark.parametrize("token", ["a b", "a\nb", "æ", "x" * 4097])
def test_a_token_that_is_none_is_refused_as_such(token: str) -> None:
    assert refused({"message": {"token": token}})["message"] == (
        "The registration token is not a valid FCM registration token"
    )


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"apns-collapse-id": "x" * 65}, "BadCollapseId"),
        ({"apns-collapse-id": "æ" * 33}, "BadCollapseId"),
        ({"apns-priority": "11"}, "BadPriority"),
        ({"apns-priority": "10", "apns-push-type": "background"}, "BadPriority"),
        ({"apns-push-type": "loud"}, "InvalidPushType"),
        ({"apns-expiration": "tomorrow"}, "BadExpirationDate"),
    ],
)
def test_a_header_that_apns_would_refuse_is_refused_with_its_reason(headers: dict[str, str], reason: str) -> None:
    error = refused(request_of(apns={"headers": headers, "payload": {"aps": {}}}))
    assert error_codes(error) == ["INVALID_ARGUMENT"]
    assert {d["@type"].rpartition(".")[2]: d.get("reason") for d in error["details"]}["ApnsError"] == reason


@pytest.mark.parametrize(
    ("fits", "too_big", "limit"),
    [
        ({"data": {"k": "x" * 4095}}, {"data": {"k": "x" * 4096}}, 4096),
        ({"data": {"k": "æ" * 2047}}, {"data": {"k": "æ" * 2048}}, 4096),
        (
            {"android": {"notification": {"tag": "x" * 4093}}},
            {"android": {"notification": {"tag": "x" * 4094}}},
            4096,
        ),
        ({"apns": {"payload": {"k": "x" * 4088}}}, {"apns": {"payload": {"k": "x" * 4089}}}, 4096),
    ],
)
def test_a_payload_of_4096_bytes_fits_and_one_more_does_not(
    fits: dict[str, Any], too_big: dict[str, Any], limit: int
) -> None:
    assert isinstance(check(request_of(**fits)), SendRequest)
    error = refused(request_of(**too_big))
    assert "message is too big" in error["message"]
    assert error_codes(error) == ["INVALID_ARGUMENT"]


def test_a_topic_takes_half_the_payload() -> None:
    assert isinstance(check({"message": {"topic": "t", "data": {"k": "x" * 2047}}}), SendRequest)
    refused({"message": {"topic": "t", "data": {"k": "x" * 2048}}})


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"a": NaN}', b'"\\ud800"', b"[" * 100_000])
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    answer = parse(body)
    assert isinstance(answer, Answer)
    assert answer.status == 400


KEYS = (
    ["message", "token", "topic", "data", "android", "apns", "webpush", "notification", "ttl", "headers", "payload"],
    ["priority", "color", "fcm_options", "analytics_label", "light_settings", "validateOnly"],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS[0]) | st.sampled_from(KEYS[1]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_comes_is_taken_or_refused_with_400(content: Any) -> None:
    checked = check(parse(json.dumps(content).encode()))
    if isinstance(checked, Answer):
        assert checked.status == 400
    else:
        assert checked.target.value
