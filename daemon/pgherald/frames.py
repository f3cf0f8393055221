"""How an accepted push stands in a file of the spool: entries to bytes and back, whatever a crash or a bad disk left.

A segment is a sequence of frames, and a frame is

    4 bytes  ff 48 53 01, which no UTF-8 text contains: where to go on reading after a damaged place
    4 bytes  length of the payload, little-endian
    4 bytes  CRC-32 of the payload
    4 bytes  CRC-32 of the 12 bytes before
    payload  JSON, UTF-8

A frame cut off at the end of a segment is what a crash during an append leaves: nobody was told that it is safe, so it
is dropped and counted. Anything else unreadable is damage, which is read past. No I/O; used by `spool` and `segments`.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from pgherald.model import DeviceId, NotificationId, PromptId

_MAGIC: Final = b"\xffHS\x01"
_HEAD: Final = struct.Struct("<4sII")
_HEAD_BYTES: Final = _HEAD.size + 4
_MOST_PAYLOAD: Final = 65_536


class Entry(NamedTuple):
    """One push that FCM accepted. `dispatched_at` is in UTC."""

    prompt_id: PromptId
    epoch: int
    notification_id: NotificationId
    device_id: DeviceId
    message_name: str
    dispatched_at: datetime


def frame(entry: Entry) -> bytes:
    """The bytes of an entry."""
    name = entry.message_name[:1024]
    if not name.isascii():  # FCM's word, so of any content; nothing of it may keep the entry from being written
        name = name.encode("utf-8", "replace").decode()
    content: dict[str, Any] = {
        "v": 1,
        "prompt_id": entry.prompt_id,
        "epoch": entry.epoch,
        "notification_id": entry.notification_id,
        "device_id": entry.device_id,
        "message_name": name,
        "dispatched_at": entry.dispatched_at,
    }
    payload = orjson.dumps(content, option=orjson.OPT_NAIVE_UTC)
    head = _HEAD.pack(_MAGIC, len(payload), zlib.crc32(payload))
    return head + zlib.crc32(head).to_bytes(4, "little") + payload


def _entry(payload: bytes) -> Entry | None:
    """The entry of an intact payload, or None if another version of the program wrote it."""
    try:
        content = orjson.loads(payload)
        if content["v"] != 1:
            return None
        entry = Entry(
            prompt_id=PromptId(UUID(content["prompt_id"])),
            epoch=int(content["epoch"]),
            notification_id=NotificationId(UUID(content["notification_id"])),
            device_id=DeviceId(UUID(content["device_id"])),
            message_name=str(content["message_name"]),
            dispatched_at=datetime.fromisoformat(content["dispatched_at"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return entry if entry.dispatched_at.tzinfo is not None else None


def _payload_at(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the payload of an intact frame at this place begins and ends, or None if there is no such frame."""
    start = at + _HEAD_BYTES
    if not _head_is_intact(data[at:start]):
        return None
    _, length, checksum = _HEAD.unpack_from(data, at)
    end = start + length
    if length > _MOST_PAYLOAD or end > len(data) or zlib.crc32(data[start:end]) != checksum:
        return None
    return start, end


def _is_torn(rest: bytes) -> bool:
    """Whether the end of a segment, in which no frame is intact, looks like one that was being written in a crash.

    Either its bytes stop before the frame does, or the file had grown already and the missing bytes are zeros.
    """
    there = rest.rstrip(b"\0")
    if len(there) < _HEAD_BYTES:  # or the checksum ends in zero bytes
        return _MAGIC.startswith(there[: len(_MAGIC)])
    if not _head_is_intact(rest):
        return False
    length: int = _HEAD.unpack_from(rest)[1]
    # JSON does not end in a zero byte, so a payload that does was not written to its end.
    return len(there) < _HEAD_BYTES + length


def _head_is_intact(data: bytes) -> bool:
    head, checksum = data[: _HEAD.size], data[_HEAD.size : _HEAD_BYTES]
    return len(checksum) == 4 and head.startswith(_MAGIC) and zlib.crc32(head) == int.from_bytes(checksum, "little")


@dataclass(frozen=True, slots=True)
class Content:
    """What a segment's bytes hold: entries, the size of a cut-off end, and (offset, size) of damaged places."""

    entries: list[Entry]
    torn: int
    damaged: list[tuple[int, int]]


def read(data: bytes) -> Content:
    """Whatever can be read of a segment."""
    content, at, torn = Content([], 0, []), 0, 0
    while at < len(data):
        place = _payload_at(data, at)
        if place is not None:
            entry = _entry(data[place[0] : place[1]])
            if entry is None:
                content.damaged.append((at, place[1] - at))
            else:
                content.entries.append(entry)
            at = place[1]
            continue
        further = data.find(_MAGIC, at + 1)
        while further >= 0 and _payload_at(data, further) is None:
            further = data.find(_MAGIC, further + 1)
        end = further if further >= 0 else len(data)
        if further < 0 and _is_torn(data[at:]):
            torn = end - at
        else:
            content.damaged.append((at, end - at))
        at = end
    return Content(content.entries, torn, content.damaged)
