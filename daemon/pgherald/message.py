"""The body of a request to FCM v1: what leaves the house, and nothing else does.

An address, two identifiers, and for an alert the keys of texts that the app itself holds. No names, no texts, no
arguments of localised texts: whoever reads a push on its way learns that there is one. The dispatcher calls
`build_message` for each send.

Source of the shape: firebase.google.com/docs/reference/fcm/rest/v1/projects.messages, and for the APNs headers
developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import orjson

from pgherald.model import Platform, Presentation, TokenKind

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

# Python 3.11 calls a function to look a member of an enumeration up.
_IOS: Final = Platform.IOS
_ANDROID: Final = Platform.ANDROID
_FID: Final = TokenKind.FID
_ALERT: Final = Presentation.ALERT
_BLANK: Final = uuid4().hex  # in no text that somebody else wrote


class MessageError(ValueError):
    """This prompt cannot be sent to this device, however often it is tried. The text holds no value of either."""


class UnsendableToken(MessageError):
    """FCM never issued such an address: as good as its own answer that the token is invalid."""


def build_message(prompt: Prompt, device: Device, *, ttl_seconds: int, expires_at: datetime) -> bytes:
    """The request's body, as JSON. `ttl_seconds` counts from now, for Android; `expires_at` says the same to APNs.

    Raises MessageError (or a kind of it) for what FCM could never take; then nothing may be sent.
    """
    token, collapse_key = device.token.reveal(), prompt.collapse_key
    if not (token and token.isascii() and token.isprintable()):
        raise UnsendableToken("the device's token is empty or has characters that no token has")
    if len(collapse_key if collapse_key.isascii() else collapse_key.encode("utf-8", "replace")) > COLLAPSE_KEY_MAX:
        raise MessageError(f"the collapse key is above {COLLAPSE_KEY_MAX} bytes")
    is_ios, is_android = device.platform is _IOS, device.platform is _ANDROID
    try:
        form = _form(
            is_ios,
            is_android,
            device.kind is _FID,
            prompt.presentation is _ALERT,
            prompt.priority > 0,
            prompt.scenario_type,
            prompt.title_key,
            prompt.body_key,
        )
        message = form % {
            "address": _inside(token),
            "notification": prompt.notification_id,
            "ttl": min(max(ttl_seconds, 0), TTL_MAX),
            "expiration": int(expires_at.timestamp()),
            "collapse_key": _inside(collapse_key) if is_ios or is_android else "",
        }
        body = message.encode()
    except (TypeError, UnicodeEncodeError):
        raise MessageError("the prompt holds text that is not valid Unicode") from None
    if len(body) > MESSAGE_MAX:
        raise MessageError(f"the message is {len(body)} bytes, above the {MESSAGE_MAX} that FCM takes")
    return body


def _inside(text: str) -> str:
    """A text as it stands between the quotes of a JSON string. Raises TypeError for what is not valid Unicode."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return orjson.dumps(text)[1:-1].decode()


@lru_cache(maxsize=1024)
def _form(
    is_ios: bool,
    is_android: bool,
    is_fid: bool,
    is_alert: bool,
    is_urgent: bool,
    scenario_type: str,
    title_key: str,
    body_key: str,
) -> str:
    """What the messages of a scenario to one kind of device have in common; what they differ in stands as %(name)s."""
    message: dict[str, Any] = {
        "fid" if is_fid else "token": f"{_BLANK}(address)s",
        "data": {"notification_id": f"{_BLANK}(notification)s", "scenario_type": scenario_type},
    }
    if is_android:
        message["android"] = _android(is_alert, is_urgent, title_key, body_key)
    elif is_ios:
        message["apns"] = _apns(is_alert, title_key, body_key)
    return orjson.dumps({"message": message}).decode().replace("%", "%%").replace(_BLANK, "%")


def _android(is_alert: bool, is_urgent: bool, title_key: str, body_key: str) -> dict[str, Any]:
    """A data message wakes the app out of Doze only if its scenario has a priority above 0."""
    ttl = f"{_BLANK}(ttl)ss"
    if not is_alert:
        return {"priority": "HIGH" if is_urgent else "NORMAL", "ttl": ttl}
    return {
        "priority": "HIGH",
        "ttl": ttl,
        "notification": {
            "title_loc_key": title_key,
            "body_loc_key": body_key,
            "tag": f"{_BLANK}(collapse_key)s",
            "channel_id": CHANNEL_ID,
            "visibility": "PRIVATE",
        },
    }


def _apns(is_alert: bool, title_key: str, body_key: str) -> dict[str, Any]:
    """All header values are strings, and a background push may not have the priority of an alert (Apple)."""
    return {
        "headers": {
            "apns-priority": "10" if is_alert else "5",
            "apns-push-type": "alert" if is_alert else "background",
            "apns-collapse-id": f"{_BLANK}(collapse_key)s",
            "apns-expiration": f"{_BLANK}(expiration)s",
        },
        "payload": {
            "aps": {
                "alert": {"title-loc-key": title_key, "loc-key": body_key},
                "mutable-content": 1,
            }
            if is_alert
            else {"content-available": 1}
        },
    }
