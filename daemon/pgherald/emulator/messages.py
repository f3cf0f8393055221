"""FCM v1's rules for a send request: which fields there are, of which type, and what FCM itself refuses.

Pure: bytes in, a `SendRequest` or the `Answer` that refuses it out. The tables follow FCM v1's public REST reference.
What the JSON gateway finds (unknown names, types) is reported all at once, as it does, before FCM's own rules, of which
the first that is broken is reported. Field names are accepted in both spellings of
proto3's JSON (`title_loc_key`, `titleLocKey`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeAlias, assert_never

import orjson

from pgherald.emulator.answers import CATALOGUE, Answer, Violation, apns_rejection, bad_request

MAX_PAYLOAD: Final = 4096
MAX_TOPIC_PAYLOAD: Final = 2048
MAX_TTL_SECONDS: Final = 28 * 24 * 3600

_FCM: Final = "type.googleapis.com/google.firebase.fcm.v1."
_TARGETS: Final = ("token", "fid", "topic", "condition")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a message goes; `kind` is the field that says so: token, fid, topic or condition."""

    kind: str
    value: str

    @property
    def is_device(self) -> bool:
        return self.kind in ("token", "fid")


@dataclass(frozen=True, slots=True)
class SendRequest:
    """A request that FCM would take. `message` is as received, its spelling of names untouched."""

    message: dict[str, Any]
    target: Target
    validate_only: bool


class Scalar(Enum):
    """A type without fields of its own; the value is how Google's gateway names it in an error."""

    STRING = "TYPE_STRING"
    BOOL = "TYPE_BOOL"
    INT32 = "TYPE_INT32"
    FLOAT = "TYPE_FLOAT"
    DURATION = "type.googleapis.com/google.protobuf.Duration"
    TIMESTAMP = "type.googleapis.com/google.protobuf.Timestamp"
    STRUCT = "type.googleapis.com/google.protobuf.Struct"
    STRING_MAP = "map of TYPE_STRING"


@dataclass(frozen=True, slots=True)
class Choice:
    """An enum: one of the names, in any case."""

    type_name: str
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Repeated:
    item: Scalar


@dataclass(frozen=True, slots=True)
class Table:
    """A message type: its fields by their proto names; `lookup` holds both spellings."""

    type_name: str
    fields: dict[str, FieldType]
    lookup: dict[str, tuple[str, FieldType]] = field(init=False)

    def __post_init__(self) -> None:
        both = {name: (name, kind) for name, kind in self.fields.items()}
        both |= {_camel(name): (name, kind) for name, kind in self.fields.items()}
        object.__setattr__(self, "lookup", both)


FieldType: TypeAlias = Scalar | Choice | Repeated | Table


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _strings(*names: str) -> dict[str, FieldType]:
    return dict.fromkeys(names, Scalar.STRING)


def _bools(*names: str) -> dict[str, FieldType]:
    return dict.fromkeys(names, Scalar.BOOL)


_COLOR = Table("type.googleapis.com/google.type.Color", dict.fromkeys(("red", "green", "blue", "alpha"), Scalar.FLOAT))
_LIGHTS = Table(
    f"{_FCM}LightSettings",
    {"color": _COLOR, "light_on_duration": Scalar.DURATION, "light_off_duration": Scalar.DURATION},
)
_LABEL = _strings("analytics_label")
_NOTIFICATION = Table(f"{_FCM}Notification", _strings("title", "body", "image"))
_ANDROID_NOTIFICATION = Table(
    f"{_FCM}AndroidNotification",
    _strings("title", "body", "icon", "color", "sound", "tag", "click_action", "body_loc_key", "title_loc_key")
    | _strings("channel_id", "ticker", "image")
    | _bools("sticky", "local_only", "default_sound", "default_vibrate_timings", "default_light_settings")
    | _bools("bypass_proxy_notification")
    | {
        "body_loc_args": Repeated(Scalar.STRING),
        "title_loc_args": Repeated(Scalar.STRING),
        "vibrate_timings": Repeated(Scalar.DURATION),
        "event_time": Scalar.TIMESTAMP,
        "notification_count": Scalar.INT32,
        "light_settings": _LIGHTS,
        "notification_priority": Choice(
            f"{_FCM}AndroidNotification.NotificationPriority",
            frozenset(f"PRIORITY_{n}" for n in ("UNSPECIFIED", "MIN", "LOW", "DEFAULT", "HIGH", "MAX")),
        ),
        "visibility": Choice(
            f"{_FCM}AndroidNotification.Visibility",
            frozenset({"VISIBILITY_UNSPECIFIED", "PRIVATE", "PUBLIC", "SECRET"}),
        ),
        "proxy": Choice(
            f"{_FCM}AndroidNotification.Proxy",
            frozenset({"PROXY_UNSPECIFIED", "ALLOW", "DENY", "IF_PRIORITY_LOWERED"}),
        ),
    },
)
_ANDROID = Table(
    f"{_FCM}AndroidConfig",
    _strings("collapse_key", "restricted_package_name")
    | _bools("direct_boot_ok", "bandwidth_constrained_ok", "restricted_satellite_ok")
    | {
        "priority": Choice(f"{_FCM}AndroidConfig.AndroidMessagePriority", frozenset({"NORMAL", "HIGH"})),
        "ttl": Scalar.DURATION,
        "data": Scalar.STRING_MAP,
        "notification": _ANDROID_NOTIFICATION,
        "fcm_options": Table(f"{_FCM}AndroidFcmOptions", _LABEL),
    },
)
_APNS = Table(
    f"{_FCM}ApnsConfig",
    {
        "headers": Scalar.STRING_MAP,
        "payload": Scalar.STRUCT,
        "fcm_options": Table(f"{_FCM}ApnsFcmOptions", _LABEL | _strings("image")),
        "live_activity_token": Scalar.STRING,
    },
)
_WEBPUSH = Table(
    f"{_FCM}WebpushConfig",
    {
        "headers": Scalar.STRING_MAP,
        "data": Scalar.STRING_MAP,
        "notification": Scalar.STRUCT,
        "fcm_options": Table(f"{_FCM}WebpushFcmOptions", _LABEL | _strings("link")),
    },
)
_MESSAGE = Table(
    f"{_FCM}Message",
    _strings("name", *_TARGETS)
    | {
        "data": Scalar.STRING_MAP,
        "notification": _NOTIFICATION,
        "android": _ANDROID,
        "apns": _APNS,
        "webpush": _WEBPUSH,
        "fcm_options": Table(f"{_FCM}FcmOptions", _LABEL),
    },
)
_REQUEST = Table(f"{_FCM}SendMessageRequest", {"message": _MESSAGE, "validate_only": Scalar.BOOL})

_DURATION = re.compile(r"-?\d{1,12}(\.\d{1,9})?s")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_COLOR_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_TOPIC = re.compile(r"[a-zA-Z0-9\-_.~%]{1,900}")
_ANALYTICS_LABEL = re.compile(r"[a-zA-Z0-9\-_.~%]{1,50}")
_REGISTRATION = re.compile(r"[!-~]{1,4096}")
_APNS_PUSH_TYPES = frozenset(
    {"alert", "background", "location", "voip", "complication", "controls", "fileprovider", "liveactivity", "mdm"}
    | {"pushtotalk", "widgets"}
)


def parse(body: bytes) -> Any:
    """The request's JSON, or the `Answer` to a body that is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return bad_request((Violation("", "Invalid JSON payload received. Unexpected token."),), by_fcm=False)


def peek_device(content: Any) -> str:
    """The device token or installation id of a request not yet checked; '' if there is none."""
    message = content.get("message") if isinstance(content, dict) else None
    if not isinstance(message, dict):
        return ""
    value = message.get("token") or message.get("fid")
    return value if isinstance(value, str) else ""


def check(content: Any) -> SendRequest | Answer:
    """Applies the gateway's rules and then FCM's to a parsed body."""
    violations: list[Violation] = []
    request = _checked(_REQUEST, content, "", violations)
    if violations:
        return bad_request(tuple(violations), by_fcm=False)
    message: dict[str, Any] = request.get("message") or {}
    target = _target(message)
    if not isinstance(target, Target):
        return target
    refusal = _refused_by_fcm(message, target) or _refused_by_apns(message.get("apns") or {})
    if refusal is not None:
        return refusal
    return SendRequest(content["message"], target, bool(request.get("validate_only")))


def _checked(kind: FieldType, value: Any, path: str, violations: list[Violation]) -> Any:
    """The value with proto names; adds what is wrong with it to `violations`, and then its result means nothing."""
    match kind:
        case Scalar.STRING_MAP:
            return _checked_map(value, path, violations)
        case Scalar():
            fault = _scalar_fault(kind, value)
            if fault is not None:
                violations.append(Violation(path, f"Invalid value at '{path}' ({kind.value}), {fault}"))
            return value
        case Choice():
            name = value.upper() if isinstance(value, str) else value
            if not isinstance(name, str) or name not in kind.names:
                violations.append(Violation(path, f"Invalid value at '{path}' ({kind.type_name}), {_shown(value)}"))
            return name
        case Repeated():
            if not isinstance(value, list):
                violations.append(Violation(path, f"Invalid value at '{path}' (repeated field), {_shown(value)}"))
                return value
            return [_checked(kind.item, item, f"{path}[{i}]", violations) for i, item in enumerate(value)]
        case Table():
            return _checked_table(kind, value, path, violations)
        case _:
            assert_never(kind)


def _checked_table(table: Table, value: Any, path: str, violations: list[Violation]) -> dict[str, Any]:
    if not isinstance(value, dict):
        at = f" at '{path}'" if path else ""
        violations.append(Violation(path, f"Invalid value{at} ({table.type_name}), {_shown(value)}"))
        return {}
    found: dict[str, Any] = {}
    for name, item in value.items():
        known = table.lookup.get(name)
        if known is None:
            at = f" at '{path}'" if path else ""
            text = f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.'
            violations.append(Violation(path, text))
            continue
        proto_name, kind = known
        if item is None:
            continue
        where = f"{path}.{proto_name}" if path else proto_name
        if isinstance(item, list) and not isinstance(kind, Repeated):
            text = (
                f"Invalid JSON payload received. Unknown name \"{name}\" at '{path}': "
                "Proto field is not repeating, cannot start list."
            )
            violations.append(Violation(path, text))
            continue
        if table is _MESSAGE and proto_name in _TARGETS and any(target in found for target in _TARGETS):
            text = f"Invalid value at '{path}' (oneof), oneof field 'target' is already set. Cannot set '{proto_name}'"
            violations.append(Violation(path, text))
        found[proto_name] = _checked(kind, item, where, violations)
    return found


def _checked_map(value: Any, path: str, violations: list[Violation]) -> dict[str, Any]:
    if not isinstance(value, dict):
        violations.append(Violation(path, f"Invalid value at '{path}' (map), {_shown(value)}"))
        return {}
    for index, item in enumerate(value.values()):
        if not isinstance(item, str):
            where = f"{path}[{index}].value"
            violations.append(Violation(where, f"Invalid value at '{where}' (TYPE_STRING), {_shown(item)}"))
    return value


def _scalar_fault(kind: Scalar, value: Any) -> str | None:
    """What an error says behind the type, or None if the value is of it."""
    good = True
    match kind:
        case Scalar.STRING:
            good = isinstance(value, str)
        case Scalar.BOOL:
            good = isinstance(value, bool)
        case Scalar.INT32:
            number = int(value) if isinstance(value, str) and re.fullmatch(r"-?\d{1,10}", value) else value
            good = isinstance(number, int) and not isinstance(number, bool) and -(2**31) <= number < 2**31
        case Scalar.FLOAT:
            good = isinstance(value, int | float) and not isinstance(value, bool)
        case Scalar.STRUCT:
            good = isinstance(value, dict)
        case Scalar.DURATION:
            if isinstance(value, str) and not value.endswith("s"):
                return "Illegal duration format; duration must end with 's'"
            good = isinstance(value, str) and _DURATION.fullmatch(value) is not None
        case Scalar.TIMESTAMP:
            good = isinstance(value, str) and _TIMESTAMP.fullmatch(value) is not None
        case Scalar.STRING_MAP:
            good = isinstance(value, dict)
        case _:
            assert_never(kind)
    return None if good else _shown(value)


def _shown(value: Any) -> str:
    return orjson.dumps(value).decode()


def _target(message: dict[str, Any]) -> Target | Answer:
    for kind in _TARGETS:
        if message.get(kind):
            return Target(kind, message[kind])
    return bad_request((Violation("message", "Recipient of the message is not set."),), by_fcm=True)


def _refused_by_fcm(message: dict[str, Any], target: Target) -> Answer | None:
    if target.is_device and not _REGISTRATION.fullmatch(target.value):
        return CATALOGUE["INVALID_TOKEN"]
    if target.kind == "topic" and not _TOPIC.fullmatch(target.value):
        return _refusal("message.topic", "Malformed topic name")
    for path, value in _fields(message):
        fault = _field_fault(path, value)
        if fault is not None:
            return _refusal(path, fault)
    limit = MAX_PAYLOAD if target.is_device else MAX_TOPIC_PAYLOAD
    for platform, size in _payload_sizes(message):
        if size > limit:
            return _refusal(f"message.{platform.lower()}", f"{platform} message is too big")
    return None


def _fields(message: dict[str, Any]) -> list[tuple[str, Any]]:
    """The fields whose values FCM has rules for, with their paths."""
    android = message.get("android") or {}
    webpush = message.get("webpush") or {}
    apns = message.get("apns") or {}
    found: list[tuple[str, Any]] = [
        ("message.data", message.get("data")),
        ("message.android.data", android.get("data")),
        ("message.webpush.data", webpush.get("data")),
        ("message.android.ttl", android.get("ttl")),
        ("message.android.notification.color", (android.get("notification") or {}).get("color")),
        ("message.webpush.fcm_options.link", (webpush.get("fcm_options") or {}).get("link")),
    ]
    for path, part in (("", message), (".android", android), (".webpush", webpush), (".apns", apns)):
        label = (part.get("fcm_options") or {}).get("analytics_label")
        found.append((f"message{path}.fcm_options.analytics_label", label))
    return [(path, value) for path, value in found if value is not None]


def _field_fault(path: str, value: Any) -> str | None:
    match path.rpartition(".")[2]:
        case "data":
            reserved = next((key for key in value if _is_reserved(key)), None)
            return None if reserved is None else f"Invalid data payload key: {reserved}"
        case "ttl" if not 0 <= float(value[:-1]) <= MAX_TTL_SECONDS:
            return f"Invalid TTL: it must be between 0s and {MAX_TTL_SECONDS}s"
        case "color" if not _COLOR_HEX.fullmatch(value):
            return "Color must be in the form #RRGGBB"
        case "link" if not value.startswith("https://"):
            return "Link must be an HTTPS URL"
        case "analytics_label" if not _ANALYTICS_LABEL.fullmatch(value):
            return "Invalid analytics label"
    return None


def _is_reserved(key: str) -> bool:
    return key in ("from", "message_type") or key.startswith(("google.", "gcm.notification."))


def _payload_sizes(message: dict[str, Any]) -> list[tuple[str, int]]:
    """Bytes of what each platform would be handed: keys and values of data, and the notification."""
    data = message.get("data") or {}
    sizes: list[tuple[str, int]] = []
    android = message.get("android") or {}
    notification = (message.get("notification") or {}) | (android.get("notification") or {})
    sizes.append(("Android", _size_of(android.get("data") or data) + _size_of(notification)))
    if message.get("apns"):
        payload = message["apns"].get("payload") or {}
        sizes.append(("APNs", len(orjson.dumps(payload)) + _size_of(data)))
    if message.get("webpush"):
        webpush = message["webpush"]
        text = orjson.dumps(webpush.get("notification") or {})
        sizes.append(("Webpush", len(text) + _size_of(webpush.get("data") or data)))
    return sizes


def _size_of(pairs: dict[str, Any]) -> int:
    values = (value if isinstance(value, str) else _shown(value) for value in pairs.values())
    return sum(map(_bytes, pairs)) + sum(map(_bytes, values))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _refused_by_apns(apns: dict[str, Any]) -> Answer | None:
    """FCM hands these headers on to APNs, which refuses what it does not know."""
    headers = {name.lower(): value for name, value in (apns.get("headers") or {}).items()}
    priority = headers.get("apns-priority", "10")
    push_type = headers.get("apns-push-type", "alert")
    if priority not in ("1", "5", "10") or (push_type == "background" and priority == "10"):
        return apns_rejection("BadPriority")
    if push_type not in _APNS_PUSH_TYPES:
        return apns_rejection("InvalidPushType")
    if _bytes(headers.get("apns-collapse-id", "")) > 64:
        return apns_rejection("BadCollapseId")
    if not re.fullmatch(r"\d{1,10}", headers.get("apns-expiration", "0")):
        return apns_rejection("BadExpirationDate")
    return None


def _refusal(path: str, description: str) -> Answer:
    return bad_request((Violation(path, description),), by_fcm=True)
