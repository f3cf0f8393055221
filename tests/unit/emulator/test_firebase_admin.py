"""The official SDK, pointed at the emulator, sends through it and raises its own errors."""

# ruff: noqa: SLF001 - the SDK has no public way to send elsewhere, or to close its sessions
from __future__ import annotations

import datetime
import uuid
from typing import TYPE_CHECKING, Any

import pytest

firebase_admin = pytest.importorskip("firebase_admin")
from firebase_admin import credentials, exceptions, messaging  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgherald.emulator.client import EmulatorClient


# Tokens are what most senders still have; the SDK warns that they are giving way to installation ids.
pytestmark = pytest.mark.filterwarnings("ignore:Message.token is deprecated:DeprecationWarning")


@pytest.fixture
def app(emulator: EmulatorClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An SDK app whose only change is the address it sends to. Its sessions are closed: it leaves that to the gc."""
    url = emulator.endpoint + "/v1/projects/{0}/messages:send"
    monkeypatch.setattr(messaging._MessagingService, "FCM_URL", url)
    certificate = credentials.Certificate(str(emulator.credentials_path))
    app = firebase_admin.initialize_app(certificate, name=str(uuid.uuid4()))
    service = messaging._get_messaging_service(app)
    yield app
    service._client.session._auth_request.session.close()
    service._client.close()
    firebase_admin.delete_app(app)


def full_message(token: str = "device-1") -> Any:
    return messaging.Message(
        token=token,
        data={"notification_id": "1", "scenario_type": "inactivity"},
        notification=messaging.Notification(title="T", body="B"),
        android=messaging.AndroidConfig(
            priority="high",
            ttl=datetime.timedelta(days=3, milliseconds=500),
            notification=messaging.AndroidNotification(
                title_loc_key="t",
                body_loc_key="b",
                body_loc_args=["1"],
                tag="x",
                color="#aabbcc",
                visibility="private",
                priority="high",
                vibrate_timings_millis=[100, 1500],
                event_timestamp=datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC),
                light_settings=messaging.LightSettings("#ff0000", 100, 200),
                notification_count=1,
                proxy="deny",
            ),
            fcm_options=messaging.AndroidFCMOptions("label"),
        ),
        apns=messaging.APNSConfig(
            headers={"apns-priority": "10", "apns-push-type": "alert"},
            payload=messaging.APNSPayload(
                messaging.Aps(messaging.ApsAlert(title_loc_key="t", loc_key="b"), badge=1, mutable_content=True)
            ),
        ),
        webpush=messaging.WebpushConfig(
            headers={"TTL": "15"}, fcm_options=messaging.WebpushFCMOptions("https://example.org")
        ),
        fcm_options=messaging.FCMOptions("label"),
    )


def test_a_message_with_everything_in_it_is_accepted(emulator: EmulatorClient, app: Any) -> None:
    name = messaging.send(full_message(), app=app)
    [kept] = emulator.messages()
    assert name == kept["name"]
    assert kept["message"]["android"]["ttl"] == "259200.500000000s"


def test_a_dry_run_pushes_nothing(emulator: EmulatorClient, app: Any) -> None:
    assert messaging.send(full_message(), dry_run=True, app=app).endswith("/fake_message_id")
    assert emulator.messages() == []


def test_send_each_tells_the_good_from_the_bad(emulator: EmulatorClient, app: Any) -> None:
    tokens = ["a", "unregistered-1", "b", "sender-mismatch-1", "invalid-1", "apns-auth-1", "quota-1"]
    batch = messaging.send_each([full_message(token) for token in tokens], app=app)
    assert [response.success for response in batch.responses] == [token in "ab" for token in tokens]
    assert [type(response.exception) for response in batch.responses if response.exception] == [
        messaging.UnregisteredError,
        messaging.SenderIdMismatchError,
        exceptions.InvalidArgumentError,
        messaging.ThirdPartyAuthError,
        messaging.QuotaExceededError,
    ]
    assert sorted(entry["token"] for entry in emulator.messages()) == ["a", "b"]


def test_an_installation_id_is_sent_to(emulator: EmulatorClient, app: Any) -> None:
    messaging.send(messaging.Message(fid="fid-1", data={"k": "v"}), app=app)
    assert emulator.messages()[0]["message"] == {"fid": "fid-1", "data": {"k": "v"}}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("NOT_FOUND", exceptions.NotFoundError),
        ("PERMISSION_DENIED", exceptions.PermissionDeniedError),
        ("RATE_LIMIT_EXCEEDED", exceptions.ResourceExhaustedError),
        ("BAD_GATEWAY", exceptions.UnknownError),
        ("UNAUTHENTICATED", exceptions.UnauthenticatedError),
    ],
)
def test_other_errors_are_the_sdks_own(emulator: EmulatorClient, app: Any, code: str, error: type[Exception]) -> None:
    emulator.set_faults({"do": "status", "code": code})
    with pytest.raises(error):
        messaging.send(full_message(), app=app)
    assert emulator.messages() == []


def test_the_sdk_fetches_a_new_access_token_when_its_own_turned_bad(emulator: EmulatorClient, app: Any) -> None:
    emulator.set_token_lifetime(0)
    try:
        with pytest.raises(exceptions.UnauthenticatedError):
            messaging.send(full_message(), app=app)
    finally:
        emulator.set_token_lifetime(3599)
    messaging.send(full_message(), app=app)
    assert emulator.counters()["access_tokens"] > 1


def test_the_sdk_sends_twice_what_a_503_only_seemed_to_refuse(emulator: EmulatorClient, app: Any) -> None:
    emulator.set_faults({"do": "status", "status": 503, "accepted": True, "next": 1})
    messaging.send(full_message(), app=app)
    assert len(emulator.messages()) == 2
