"""What goes wrong on demand: the faults there are, how they are written down, and which request meets one.

Pure: no I/O and no clock but the one handed in. `app` asks for each request; `http1` and `http2` carry out `Wire`.

A fault is a JSON object, or on the command line `WHAT[,key=value...]` with the same keys:

| key | what |
|---|---|
| `do` | `latency`, `status`, or one of `Wire` |
| `seconds` | latency: a number, or `[from, to]` (command line `0.1-0.5`); drip: the pause before each byte (1) |
| `status`, `code` | status: an HTTP status, or a name of `answers.CATALOGUE` |
| `retry_after`, `retry_after_date` | status: Retry-After so many seconds ahead, as seconds or as an HTTP date |
| `body` | status: this text instead of the answer's own body |
| `accepted` | status: true = the message is accepted all the same (FCM has done so with 503) |
| `on` | `send` (default) or `token`, the OAuth endpoint |
| `token_prefix` | only messages to a device token (or fid) that begins so |
| `next`, `every`, `fraction` | only the next n, every k-th, or this share (seeded) of those requests; default: all |
"""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass, fields, replace
from email.utils import format_datetime
from enum import StrEnum
from typing import Any, Final

from pgherald.emulator.answers import BY_STATUS, CATALOGUE, Answer, page

LATENCY: Final = "latency"
STATUS: Final = "status"


class Endpoint(StrEnum):
    SEND = "send"
    TOKEN = "token"


class Wire(StrEnum):
    """What becomes of an answer on its way out. HTTP/1.1 has no GOAWAY: there the nearest thing is done, as noted."""

    WHOLE = "whole"  # it arrives
    DROP_BEFORE = "drop_before"  # the connection is reset, and nothing was accepted
    DROP_AFTER = "drop_after"  # accepted, then the connection is reset without an answer
    CUT_HEADERS = "cut_headers"  # accepted; the connection closes in the middle of the answer's head
    CUT_BODY = "cut_body"  # accepted; the connection closes in the middle of the answer's body
    SILENT = "silent"  # accepted; no answer, the connection stays open
    DRIP = "drip"  # accepted; the answer comes byte by byte
    GOAWAY = "goaway"  # answered, then GOAWAY: the connection takes no new streams (1.1: Connection: close)
    GOAWAY_BEFORE = "goaway_before"  # GOAWAY that excludes this stream, which was not accepted (1.1: drop_before)
    GOAWAY_AFTER = "goaway_after"  # accepted, then GOAWAY and close without an answer (1.1: drop_after)

    @property
    def accepts(self) -> bool:
        return self not in (Wire.DROP_BEFORE, Wire.GOAWAY_BEFORE)


class FaultError(ValueError):
    """A fault that is written wrongly; the text says how."""


@dataclass(frozen=True, slots=True)
class Fault:
    do: str
    seconds: tuple[float, float] | None = None
    status: int | None = None
    code: str | None = None
    retry_after: float | None = None
    retry_after_date: float | None = None
    body: str | None = None
    accepted: bool = False
    on: Endpoint = Endpoint.SEND
    token_prefix: str = ""
    next: int | None = None
    every: int | None = None
    fraction: float | None = None

    @property
    def wire(self) -> Wire:
        return Wire.WHOLE if self.do in (LATENCY, STATUS) else Wire(self.do)

    def answer(self, now: datetime.datetime) -> Answer:
        """The answer of a `status` fault; `now` is UTC, for a Retry-After date."""
        name = self.code or BY_STATUS.get(self.status or 0)
        answer = page(self.status or 500) if name is None else CATALOGUE[name]
        if self.body is not None:
            answer = replace(answer, body=self.body.encode())
        if self.status is not None:
            answer = replace(answer, status=self.status)
        if self.retry_after is not None:
            answer = answer.with_headers(("retry-after", f"{self.retry_after:g}"))
        if self.retry_after_date is not None:
            at = now + datetime.timedelta(seconds=self.retry_after_date)
            answer = answer.with_headers(("retry-after", format_datetime(at, usegmt=True)))
        return answer

    def as_json(self) -> dict[str, Any]:
        """The keys that differ from their default."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a request meets: seconds to wait, and the fault, if any, that shapes its answer."""

    delay: float = 0.0
    fault: Fault | None = None


@dataclass(slots=True)
class _Armed:
    """A fault with what it has seen."""

    fault: Fault
    left: int | None
    seen: int = 0
    hits: int = 0


NO_FAULT: Final = Verdict()


class Faults:
    """The faults in force. Latencies add up; of the others the first that applies decides."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._armed: list[_Armed] = []

    def set(self, *faults: Fault | dict[str, Any] | str) -> None:
        """Replaces all faults; each counts from here. Raises FaultError and changes nothing if one is wrong."""
        self._armed = [_Armed(fault, fault.next) for fault in map(_as_fault, faults)]

    def clear(self) -> None:
        self._armed = []

    def seed(self, seed: int) -> None:
        self._random = random.Random(seed)

    def as_json(self) -> list[dict[str, Any]]:
        return [armed.fault.as_json() | {"hits": armed.hits} for armed in self._armed]

    def draw(self, endpoint: Endpoint, device: str = "") -> Verdict:
        """What the next request to `endpoint` meets; `device` is the token it sends to."""
        if not self._armed:
            return NO_FAULT
        delay = 0.0
        found: Fault | None = None
        for armed in self._armed:
            fault = armed.fault
            if fault.on is not endpoint or not device.startswith(fault.token_prefix):
                continue
            if fault.do != LATENCY and found is not None:
                continue
            if not self._hits(armed):
                continue
            armed.hits += 1
            if fault.do == LATENCY:
                low, high = fault.seconds or (0.0, 0.0)
                delay += low if low == high else self._random.uniform(low, high)
            else:
                found = fault
        return Verdict(delay, found)

    def _hits(self, armed: _Armed) -> bool:
        fault = armed.fault
        armed.seen += 1
        if armed.left is not None:
            if armed.left == 0:
                return False
            armed.left -= 1
        if fault.every is not None and armed.seen % fault.every:
            return False
        return fault.fraction is None or self._random.random() < fault.fraction


def parse_fault(text: str) -> Fault:
    """Reads the command line's form: `drop_after,every=10`, `status=503,fraction=0.1`, `latency=0.1-0.5`."""
    first, *rest = text.split(",")
    what, _, value = first.partition("=")
    content: dict[str, Any] = {"do": what}
    if value:
        key = {LATENCY: "seconds", Wire.DRIP: "seconds", STATUS: "status"}.get(what, what)
        content[key] = _literal(key, value)
        if what == "code":
            content["do"] = STATUS
    for pair in rest:
        key, equals, value = pair.partition("=")
        if not equals:
            raise FaultError(f"{pair!r} is not key=value")
        content[key] = _literal(key, value)
    return read_fault(content)


def read_fault(content: object) -> Fault:
    """Reads the JSON form."""
    if not isinstance(content, dict):
        raise FaultError('a fault is a JSON object such as {"do": "status", "status": 503, "next": 3}')
    known = {f.name for f in fields(Fault)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise FaultError(f"unknown {', '.join(map(repr, unknown))}; known are {', '.join(sorted(known))}")
    do = content.get("do")
    kinds = [LATENCY, STATUS, *(wire for wire in Wire if wire is not Wire.WHOLE)]
    if do not in kinds:
        raise FaultError(f"do is {do!r}; it may be {', '.join(kinds)}")
    endpoints = list(Endpoint)
    if content.get("on", Endpoint.SEND) not in endpoints:
        raise FaultError(f"on is {content['on']!r}; it may be {' or '.join(endpoints)}")
    fault = Fault(
        do=str(do),
        seconds=_range(content.get("seconds")),
        status=_number(content, "status", int, 100, 599),
        code=_text(content, "code"),
        retry_after=_number(content, "retry_after", float, 0),
        retry_after_date=_number(content, "retry_after_date", float, 0),
        body=_text(content, "body"),
        accepted=_flag(content, "accepted"),
        on=Endpoint(content.get("on", Endpoint.SEND)),
        token_prefix=_text(content, "token_prefix") or "",
        next=_number(content, "next", int, 1),
        every=_number(content, "every", int, 1),
        fraction=_number(content, "fraction", float, 0, 1),
    )
    _check_together(fault)
    return fault


def _check_together(fault: Fault) -> None:
    if sum(selector is not None for selector in (fault.next, fault.every, fault.fraction)) > 1:
        raise FaultError("only one of next, every and fraction")
    if fault.do == LATENCY and fault.seconds is None:
        raise FaultError("latency needs seconds")
    if fault.do == STATUS and fault.status is None and fault.code is None:
        raise FaultError("status needs status or code")
    if fault.code is not None and fault.code not in CATALOGUE:
        raise FaultError(f"code is {fault.code!r}; it may be {', '.join(CATALOGUE)}")
    if fault.do != STATUS and (fault.accepted or fault.body is not None or fault.code or fault.status):
        raise FaultError("status, code, body and accepted belong to do = status")


def _as_fault(fault: Fault | dict[str, Any] | str) -> Fault:
    match fault:
        case Fault():
            return fault
        case str():
            return parse_fault(fault)
        case _:
            return read_fault(fault)


def _literal(key: str, value: str) -> object:
    if key in ("on", "code", "body", "token_prefix"):
        return value
    if value in ("true", "false"):
        return value == "true"
    try:
        numbers = [float(part) if "." in part else int(part) for part in value.split("-")]
    except ValueError:
        raise FaultError(f"{key} is {value!r}, which is no number") from None
    return numbers if key == "seconds" and len(numbers) > 1 else numbers[0]


def _range(value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    ends = value if isinstance(value, list | tuple) else (value, value)
    if len(ends) != 2 or not all(_is_number(end) for end in ends) or not 0 <= ends[0] <= ends[1]:
        raise FaultError(f"seconds is {value!r}; it may be a number or [from, to], from 0 on")
    return float(ends[0]), float(ends[1])


def _number(content: dict[str, Any], key: str, kind: type, low: float, high: float = float("inf")) -> Any:
    value = content.get(key)
    if value is None:
        return None
    if not _is_number(value) or not low <= value <= high or kind(value) != value:
        raise FaultError(f"{key} is {value!r}; it may be {low:g} or more" + (f", to {high:g}" if high < 1e9 else ""))
    return kind(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(content: dict[str, Any], key: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise FaultError(f"{key} is {value!r}, which is no text")
    return value


def _flag(content: dict[str, Any], key: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise FaultError(f"{key} is {value!r}; it may be true or false")
    return value
