"""What leaves the house is exactly what was promised, in the shape that Google publishes."""

from __future__ import annotations

import importlib.resources
import json
import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherald.message import (
    COLLAPSE_KEY_MAX,
    MESSAGE_MAX,
    TTL_MAX,
    MessageError,
    UnsendableToken,
    build_message,
)
from pgherald.model import (
    Device,
    DeviceId,
    NotificationId,
    Platform,
    Presentation,
    Prompt,
    PromptId,
    ScenarioId,
    Token,
    TokenKind,
    UserId,
)

EXPIRES = datetime(2026, 2, 3, 12, 0, 0, tzinfo=UTC)
NOTIFICATION = "11111111-2222-3333-4444-555555555555"
COLLAPSE = "c" * 64
TTL = 259_200


def device(platform: Platform, kind: TokenKind = TokenKind.TOKEN, token: str = "fcm:token-1") -> Device:
    return Device(DeviceId(UUID(int=9)), platform, kind, Token(token), EXPIRES)


def prompt(presentation: Presentation = Presentation.ALERT, **changes: Any) -> Prompt:
    made = Prompt(
        prompt_id=PromptId(UUID(int=1)),
        epoch=3,
        notification_id=NotificationId(UUID(NOTIFICATION)),
        scenario_id=ScenarioId(UUID(int=2)),
        scenario_type="inactivity",
        user_id=UserId(UUID(int=3)),
        activity_ref="registered#2",
        presentation=presentation,
        title_key="inactivity_title",
        body_key="inactivity_body",
        priority=0,
        collapse_key=COLLAPSE,
        attempt=1,
        due_at=EXPIRES,
        expires_at=EXPIRES,
        claimed_at=EXPIRES,
        all_devices=False,
        devices=(),
        claimed_mono=0.0,
    )
    return made._replace(**changes)


def sent(a_prompt: Prompt, a_device: Device) -> Any:
    return json.loads(build_message(a_prompt, a_device, ttl_seconds=TTL, expires_at=EXPIRES))


DATA = {"notification_id": NOTIFICATION, "scenario_type": "inactivity"}


def test_an_alert_to_android_is_exactly_this() -> None:
    assert sent(prompt(), device(Platform.ANDROID)) == {
        "message": {
            "token": "fcm:token-1",
            "data": DATA,
            "android": {
                "priority": "HIGH",
                "ttl": "259200s",
                "notification": {
                    "title_loc_key": "inactivity_title",
                    "body_loc_key": "inactivity_body",
                    "tag": COLLAPSE,
                    "channel_id": "herald",
                    "visibility": "PRIVATE",
                },
            },
        }
    }


def test_an_alert_to_ios_is_exactly_this() -> None:
    assert sent(prompt(), device(Platform.IOS)) == {
        "message": {
            "token": "fcm:token-1",
            "data": DATA,
            "apns": {
                "headers": {
                    "apns-priority": "10",
                    "apns-push-type": "alert",
                    "apns-collapse-id": COLLAPSE,
                    "apns-expiration": "1770120000",
                },
                "payload": {
                    "aps": {
                        "alert": {"title-loc-key": "inactivity_title", "loc-key": "inactivity_body"},
                        "mutable-content": 1,
                    }
                },
            },
        }
    }


@pytest.mark.parametrize(("priority", "word"), [(0, "NORMAL"), (-1, "NORMAL"), (1, "HIGH"), (9, "HIGH")])
def test_data_to_android_shows_nothing_and_has_the_scenarios_priority(priority: int, word: str) -> None:
    assert sent(prompt(Presentation.DATA, priority=priority), device(Platform.ANDROID)) == {
        "message": {"token": "fcm:token-1", "data": DATA, "android": {"priority": word, "ttl": "259200s"}}
    }


def test_data_to_ios_is_a_background_push() -> None:
    assert sent(prompt(Presentation.DATA, priority=9), device(Platform.IOS)) == {
        "message": {
            "token": "fcm:token-1",
            "data": DATA,
            "apns": {
                "headers": {
                    "apns-priority": "5",
                    "apns-push-type": "background",
                    "apns-collapse-id": COLLAPSE,
                    "apns-expiration": "1770120000",
                },
                "payload": {"aps": {"content-available": 1}},
            },
        }
    }


@pytest.mark.parametrize("presentation", Presentation)
def test_the_web_gets_the_data_alone(presentation: Presentation) -> None:
    assert sent(prompt(presentation), device(Platform.WEB)) == {"message": {"token": "fcm:token-1", "data": DATA}}


def test_an_installation_id_takes_the_place_of_the_token() -> None:
    assert sent(prompt(), device(Platform.WEB, TokenKind.FID, "cIZ-fid")) == {
        "message": {"fid": "cIZ-fid", "data": DATA}
    }


# Written from the contract, not from the code: every path that may leave the house, and nothing else.
ALLOWED = {
    "message.token",
    "message.fid",
    "message.data.notification_id",
    "message.data.scenario_type",
    "message.android.priority",
    "message.android.ttl",
    "message.android.notification.title_loc_key",
    "message.android.notification.body_loc_key",
    "message.android.notification.tag",
    "message.android.notification.channel_id",
    "message.android.notification.visibility",
    "message.apns.headers.apns-priority",
    "message.apns.headers.apns-push-type",
    "message.apns.headers.apns-collapse-id",
    "message.apns.headers.apns-expiration",
    "message.apns.payload.aps.alert.title-loc-key",
    "message.apns.payload.aps.alert.loc-key",
    "message.apns.payload.aps.mutable-content",
    "message.apns.payload.aps.content-available",
}


def paths(value: object, at: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {at}
    return set().union(*(paths(inner, f"{at}.{key}".lstrip(".")) for key, inner in value.items()))


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
tokens = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=200)
prompts = st.builds(
    prompt,
    presentation=st.sampled_from(Presentation),
    scenario_type=names,
    title_key=names,
    body_key=names,
    collapse_key=st.text(st.characters(max_codepoint=0x7F), max_size=64),
    activity_ref=st.just("PRIVATE-REF"),
    priority=st.integers(-5, 5),
)
devices = st.builds(device, st.sampled_from(Platform), st.sampled_from(TokenKind), tokens)


@given(prompts, devices)
def test_nothing_outside_the_allow_list_ever_leaves(a_prompt: Prompt, a_device: Device) -> None:
    message = sent(a_prompt, a_device)
    assert paths(message) <= ALLOWED
    private = (a_prompt.user_id, a_prompt.prompt_id, a_prompt.scenario_id, a_device.device_id, a_prompt.activity_ref)
    assert not [secret for secret in private if str(secret) in json.dumps(message)]


@given(prompts, devices)
def test_a_message_has_one_address_and_the_same_mark_on_both_platforms(a_prompt: Prompt, a_device: Device) -> None:
    message = sent(a_prompt, a_device)["message"]
    assert ("token" in message) is (a_device.kind is TokenKind.TOKEN)
    assert ("fid" in message) is (a_device.kind is TokenKind.FID)
    assert all(type(value) is str for value in message["data"].values())
    if a_prompt.presentation is Presentation.ALERT and a_device.platform is Platform.ANDROID:
        assert message["android"]["notification"]["tag"] == a_prompt.collapse_key
    if a_device.platform is Platform.IOS:
        assert message["apns"]["headers"]["apns-collapse-id"] == a_prompt.collapse_key
        assert all(type(value) is str for value in message["apns"]["headers"].values())


def published_schemas() -> dict[str, Any]:
    documents = importlib.resources.files("googleapiclient.discovery_cache") / "documents"
    schemas: dict[str, Any] = json.loads((documents / "fcm.v1.json").read_text("utf-8"))["schemas"]
    return schemas


def camel(name: str) -> str:
    return re.sub(r"_(.)", lambda match: match[1].upper(), name)


def conforms(value: object, schema: dict[str, Any], schemas: dict[str, Any], at: str) -> None:
    """Google's discovery schema, as far as messages use it; proto3 JSON takes snake_case names for camelCase ones."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"]]
    match schema["type"]:
        case "object" if "properties" in schema:
            assert isinstance(value, dict), at
            for key, inner in value.items():
                assert camel(key) in schema["properties"], f"{at}.{key}"
                conforms(inner, schema["properties"][camel(key)], schemas, f"{at}.{key}")
        case "object":
            assert isinstance(value, dict), at
            for key, inner in value.items():
                conforms(inner, schema["additionalProperties"], schemas, f"{at}.{key}")
        case "string":
            assert isinstance(value, str), at
            assert value in schema.get("enum", [value]), at
            if schema.get("format") == "google-duration":
                assert re.fullmatch(r"\d+(\.\d{1,9})?s", value), at
        case "any":
            json.dumps(value)
        case other:
            raise AssertionError(f"{at}: a {other} in a message")


SCHEMAS = published_schemas()


@given(prompts, devices)
def test_every_message_is_of_the_shape_that_google_publishes(a_prompt: Prompt, a_device: Device) -> None:
    conforms(sent(a_prompt, a_device), {"$ref": "SendMessageRequest"}, SCHEMAS, "")


def test_the_check_against_the_published_shape_can_fail() -> None:
    for wrong in (
        {"message": {"tokens": "x"}},
        {"message": {"data": {"a": 1}}},
        {"message": {"android": {"priority": "high"}}},
    ):
        with pytest.raises(AssertionError):
            conforms(wrong, {"$ref": "SendMessageRequest"}, SCHEMAS, "")


@pytest.mark.parametrize(
    ("seconds", "ttl"), [(0, "0s"), (-7, "0s"), (60, "60s"), (TTL_MAX, "2419200s"), (10**9, "2419200s")]
)
def test_the_time_to_live_stays_within_what_fcm_takes(seconds: int, ttl: str) -> None:
    body = build_message(prompt(), device(Platform.ANDROID), ttl_seconds=seconds, expires_at=EXPIRES)
    assert json.loads(body)["message"]["android"]["ttl"] == ttl


def test_a_message_of_4096_bytes_goes_out_and_one_more_does_not() -> None:
    spare = MESSAGE_MAX - len(build_message(prompt(), device(Platform.IOS), ttl_seconds=1, expires_at=EXPIRES))
    body_key = "inactivity_body" + "b" * spare
    full = build_message(prompt(body_key=body_key), device(Platform.IOS), ttl_seconds=1, expires_at=EXPIRES)
    assert len(full) == MESSAGE_MAX
    with pytest.raises(MessageError, match="4097 bytes"):
        build_message(prompt(body_key=body_key + "b"), device(Platform.IOS), ttl_seconds=1, expires_at=EXPIRES)


@pytest.mark.parametrize("token", ["", "a\r\nX-Header: 1", "a\nb", "a\tb", "a\x00b", "a\ud800", "tökén"])
def test_what_can_be_no_token_is_refused_as_one(token: str) -> None:
    with pytest.raises(UnsendableToken) as caught:
        build_message(prompt(), device(Platform.ANDROID, token=token), ttl_seconds=1, expires_at=EXPIRES)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("field", ["scenario_type", "title_key", "body_key", "collapse_key"])
@pytest.mark.parametrize("platform", Platform)
def test_text_that_cannot_be_written_is_a_typed_error(field: str, platform: Platform) -> None:
    change: dict[str, Any] = {field: "lone \ud800 surrogate"}
    broken = prompt(**change)
    if platform is Platform.WEB and field != "scenario_type":
        assert sent(broken, device(platform))
    else:
        with pytest.raises(MessageError, match="not valid Unicode"):
            build_message(broken, device(platform), ttl_seconds=1, expires_at=EXPIRES)


@given(st.text(max_size=80))
def test_a_collapse_key_is_64_bytes_or_refused(key: str) -> None:
    try:
        build_message(prompt(collapse_key=key), device(Platform.IOS), ttl_seconds=1, expires_at=EXPIRES)
    except MessageError:
        assert len(key.encode("utf-8", "surrogatepass")) > COLLAPSE_KEY_MAX or any(
            "\ud800" <= c <= "\udfff" for c in key
        )
    else:
        assert len(key.encode()) <= COLLAPSE_KEY_MAX
