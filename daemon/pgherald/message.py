"""The body of a request to FCM v1: what leaves the house, and nothing else does.

An address, two identifiers, and for an alert the keys of texts that the app itself holds. No names, no texts, no
arguments of localised texts: whoever reads a push on its way learns that there is one. The dispatcher calls
`build_message` for each send.

Source of the shape: firebase.google.com/docs/reference/fcm/rest/v1/projects.messages, and for the APNs headers
developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from pgherald.model import Platform, Presentation

if TYPE_CHECKING:
    from datetime import datetime

    from pgherald.model import Device, Prompt

MESSAGE_MAX: Final = 4096
"""Bytes of a message at most; FCM counts the payload only, so this is a little stricter than it has to be."""

COLLAPSE_KEY_MAX: Final = 64
"""Bytes of `apns-collapse-id` at most, by Apple; the Android tag carries the same value."""

TTL_MAX: Final = 2_419_200
"""Seconds (4 weeks) that FCM keeps a message at most; it refuses to be asked for more."""

CHANNEL_ID: Final = "herald"
"""The Android notification channel that an app makes for these pushes."""


class MessageError(ValueError):
    """This prompt cannot be sent to this device, however often it is tried. The text holds no value of either."""


class MessageTooLarge(MessageError):
    """The message is above FCM's 4096 bytes."""


class UnsendableToken(MessageError):
    """FCM never issued such an address: as good as its own answer that the token is invalid."""


def build_message(prompt: Prompt, device: Device, *, ttl_seconds: int, expires_at: datetime) -> bytes:
    """The request's body, as JSON. `ttl_seconds` counts from now, for Android; `expires_at` says the same to APNs.

    Raises MessageError (or a kind of it) for what FCM could never take; then nothing may be sent.
    """
    token = device.token.reveal()
    if not (token and token.isascii() and token.isprintable()):
        raise UnsendableToken("the device's token is empty or has characters that no token has")
    if len(prompt.collapse_key.encode("utf-8", "replace")) > COLLAPSE_KEY_MAX:
        raise MessageError(f"the collapse key is above {COLLAPSE_KEY_MAX} bytes")
    message: dict[str, Any] = {
        device.kind.value: token,
        "data": {"notification_id": str(prompt.notification_id), "scenario_type": prompt.scenario_type},
    }
    if device.platform is Platform.ANDROID:
        message["android"] = _android(prompt, ttl_seconds)
    elif device.platform is Platform.IOS:
        message["apns"] = _apns(prompt, expires_at)
    try:
        body = orjson.dumps({"message": message})
    except TypeError:
        raise MessageError("the prompt holds text that is not valid Unicode") from None
    if len(body) > MESSAGE_MAX:
        raise MessageTooLarge(f"the message is {len(body)} bytes, above the {MESSAGE_MAX} that FCM takes")
    return body


def _android(prompt: Prompt, ttl_seconds: int) -> dict[str, Any]:
    """A data message wakes the app out of Doze only if its scenario has a priority above 0."""
    ttl = f"{min(max(ttl_seconds, 0), TTL_MAX)}s"
    if prompt.presentation is Presentation.DATA:
        return {"priority": "HIGH" if prompt.priority > 0 else "NORMAL", "ttl": ttl}
    return {
        "priority": "HIGH",
        "ttl": ttl,
        "notification": {
            "title_loc_key": prompt.title_key,
            "body_loc_key": prompt.body_key,
            "tag": prompt.collapse_key,
            "channel_id": CHANNEL_ID,
            "visibility": "PRIVATE",
        },
    }


def _apns(prompt: Prompt, expires_at: datetime) -> dict[str, Any]:
    """All header values are strings, and a background push may not have the priority of an alert (Apple)."""
    alert = prompt.presentation is Presentation.ALERT
    return {
        "headers": {
            "apns-priority": "10" if alert else "5",
            "apns-push-type": "alert" if alert else "background",
            "apns-collapse-id": prompt.collapse_key,
            "apns-expiration": str(int(expires_at.timestamp())),
        },
        "payload": {
            "aps": {
                "alert": {"title-loc-key": prompt.title_key, "loc-key": prompt.body_key},
                "mutable-content": 1,
            }
            if alert
            else {"content-available": 1}
        },
    }
