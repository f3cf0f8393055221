"""What the daemon says: one JSON object a line on stderr, a constant event name and fields of an allow-list.

An error means that a person must act, a warning that the daemon is coping, info is the life cycle and batches, debug
each prompt. What must never be written cannot be: there is no free text, every field is in `FIELDS` with the shape its
values have, and a value of another shape is dropped (raised, where `strict` is on, as in the tests). That holds for
tokens, names, texts, connection strings and the texts of exceptions, other people's libraries included: `configure`
takes over the standard library's logging, its warnings and the hooks for uncaught exceptions.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import select
import sys
import threading
import traceback
import warnings
from datetime import UTC, datetime
from enum import Enum, auto, unique
from errno import errorcode
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeAlias, assert_never
from uuid import UUID

import orjson

from pgherald.config import LogLevel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

Field: TypeAlias = str | int | float | bool | UUID | datetime | PurePath | None


@unique
class Shape(Enum):
    """What the values of a field look like; None is allowed everywhere."""

    ID = auto()  # a uuid
    NUMBER = auto()  # or a boolean
    WORD = auto()  # a code, a class or file name, an address to listen at: up to 100 characters, no space, no @
    TIME = auto()  # a datetime that knows its zone
    TAG = auto()  # what `token_tag` returns
    NAME = auto()  # FCM's name of an accepted message
    PATH = auto()  # a file or directory of ours


_SHAPES: Final[Mapping[Shape, str]] = {
    Shape.ID: "device_id notification_id prompt_id scenario_id",
    Shape.NUMBER: """
        bytes claimed count dispatched dropped entries epoch failed failures offset pid prompts seconds skipped
    """,
    Shape.WORD: """
        breaker channel error_code exception invariant library_level listen logger outcome project reason scenario_type
        scheduler setting signal source status thread version where
    """,
    Shape.TIME: "dispatched_at",
    Shape.TAG: "token_tag",
    Shape.NAME: "message_name",
    Shape.PATH: "path",
}

FIELDS: Final[Mapping[str, Shape]] = {name: shape for shape, names in _SHAPES.items() for name in names.split()}

_WORD: Final = re.compile(r"[A-Za-z0-9_.,:;/#+%*<>?()\[\]-]{0,100}")
_TAG: Final = re.compile(r"[0-9a-f]{8}")
_NAME: Final = re.compile(r"projects/[!-~]{1,128}/messages/[!-~]{1,256}")
_EVENT: Final = re.compile(r"[a-z][a-z0-9_]{1,63}")


def _fits(shape: Shape, value: Field) -> bool:
    if value is None:
        return True
    match shape:
        case Shape.ID:
            return isinstance(value, UUID)
        case Shape.NUMBER:
            return isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**63)
        case Shape.WORD:
            return isinstance(value, str) and _WORD.fullmatch(value) is not None
        case Shape.TIME:
            return isinstance(value, datetime) and value.tzinfo is not None
        case Shape.TAG:
            return isinstance(value, str) and _TAG.fullmatch(value) is not None
        case Shape.NAME:
            return isinstance(value, str) and _NAME.fullmatch(value) is not None
        case Shape.PATH:
            return isinstance(value, PurePath)
        case _:
            assert_never(shape)


STALL_PATIENCE: Final = 1.0
"""Seconds for which the daemon stands still, once, for a reader that does not take its lines: one that is only slow
loses none, and behind one that has stopped reading everything goes on without a log."""

_RANKS: Final = {LogLevel.DEBUG: 10, LogLevel.INFO: 20, LogLevel.WARNING: 30, LogLevel.ERROR: 40}


class Log:
    """Writes events to a stream; `lost` counts lines that the stream did not take, which is no reason to stop. The next
    line that it takes says how many.

    `strict` turns a misuse (an unknown field, a value of the wrong shape, an odd event name) into a ValueError.
    """

    def __init__(self, level: LogLevel = LogLevel.INFO, stream: TextIO | None = None, *, strict: bool = False) -> None:
        self.strict = strict
        self.lost = 0
        self._told = 0  # of those lost
        self._stalled = False  # whoever reads has stopped to
        self._stream = stream
        self._rank = _RANKS[level]

    def set_up(self, level: LogLevel, stream: TextIO | None, *, strict: bool | None = None) -> None:
        """Change what is written and where to; a stream of None is whatever `sys.stderr` is at the time."""
        self._rank, self._stream = _RANKS[level], stream
        if strict is not None:
            self.strict = strict

    def debug(self, event: str, /, **fields: Field) -> None:
        """Each prompt."""
        if self._rank <= 10:
            self._write("debug", event, fields)

    def info(self, event: str, /, **fields: Field) -> None:
        """The life cycle, and batches."""
        if self._rank <= 20:
            self._write("info", event, fields)

    def warning(self, event: str, /, **fields: Field) -> None:
        """The daemon is coping with something."""
        if self._rank <= 30:
            self._write("warning", event, fields)

    def error(self, event: str, /, **fields: Field) -> None:
        """A person must act."""
        self._write("error", event, fields)

    def critical(self, event: str, /, **fields: Field) -> None:
        """A person must act now: a record or the daemon itself is at stake."""
        self._write("critical", event, fields)

    def crash(self, exc: BaseException, /, event: str = "crash", **fields: Field) -> None:
        """An exception that nothing foresaw: its class and where it came from, and what led to it; no message."""
        self._write("critical", event, {"exception": describe_exception(exc), **fields}, traceback=_traces(exc))

    def _write(self, level: str, event: str, fields: Mapping[str, Field], **extra: Any) -> None:
        line: dict[str, Any] = {"ts": datetime.now(UTC), "level": level, "event": event}
        dropped = 0
        if _EVENT.fullmatch(event) is None:
            self._misused("the name of an event is constant, of a-z, 0-9 and _")
            line["event"] = "unnamed"
        for name, value in fields.items():
            shape = FIELDS.get(name)
            if shape is not None and _fits(shape, value):
                line[name] = value
            else:
                self._misused(f"{event}: {name} is no field for the log, or its value has another shape")
                dropped += 1
        if dropped:
            line["fields_dropped"] = dropped
        lost = self.lost
        if lost > self._told:
            line["lines_lost"] = lost - self._told
        if self._put(orjson.dumps(line | extra, default=_plain, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)):
            self._told = lost
        else:
            self.lost += 1

    def _misused(self, how: str) -> None:
        if self.strict:
            raise ValueError(how)

    def _put(self, line: bytes) -> bool:
        """Write it; False if the stream does not take it."""
        stream = sys.stderr if self._stream is None else self._stream
        try:
            if not self._has_room(stream):
                return False
            binary = getattr(stream, "buffer", None)
            if binary is None:
                stream.write(line.decode())
                stream.flush()
            else:
                binary.write(line)
                binary.flush()
        except (OSError, ValueError, AttributeError):  # closed, full, gone, or no stderr at all
            return False
        return True

    def _has_room(self, stream: TextIO) -> bool:
        """Whether a line can be written without waiting for whoever reads it; a file or a buffer always has room."""
        try:
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
        except (OSError, ValueError, AttributeError):
            return True
        self._stalled = not poll.poll(0 if self._stalled else STALL_PATIENCE * 1000)
        return not self._stalled


def _plain(value: object) -> str:
    """Whatever orjson does not know by itself: a path, whose bytes need not be text."""
    return str(value).encode("utf-8", "backslashreplace").decode()


log: Final = Log()

_key = secrets.token_bytes(32)


def token_tag(token: str) -> str:
    """Eight hex digits that stand for a device token in the log: the same for the same token until the process ends."""
    return hmac.digest(_key, token.encode("utf-8", "surrogatepass"), "sha256").hex()[:8]


def describe_exception(exc: BaseException) -> str:
    """The class of an exception and its machine-readable code, if it has one; never its text, which may hold a value.

    `UniqueViolation[23505]` for psycopg's, `OSError[ENOSPC]` for the system's, `ExceptionGroup[A,B]` for a group.
    """
    name = type(exc).__name__
    sqlstate = getattr(exc, "sqlstate", None)
    inner = ""
    if isinstance(exc, BaseExceptionGroup):
        inner = ",".join(sorted({describe_exception(each) for each in exc.exceptions}))
    elif isinstance(sqlstate, str) and re.fullmatch(r"[0-9A-Z]{5}", sqlstate):
        inner = sqlstate
    elif isinstance(exc, OSError) and isinstance(exc.errno, int):
        inner = errorcode.get(exc.errno, "")
    text = f"{name}[{inner}]" if inner else name
    text = re.sub(r"[^A-Za-z0-9_.,\[\]]", "?", text)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _frames(tb: TracebackType | None) -> list[str]:
    return [f"{_place(frame.f_code.co_filename)}:{line}" for frame, line in traceback.walk_tb(tb)]


def _place(filename: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.<>/-]", "?", "/".join(PurePath(filename).parts[-2:]))[-80:]


def _traces(exc: BaseException) -> list[dict[str, Any]]:
    """This exception, then what a group holds and what led to each, as class and frames; at most 12 of them."""
    found: list[dict[str, Any]] = []
    waiting: list[BaseException] = [exc]
    seen: set[int] = set()
    while waiting and len(found) < 12:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        found.append({"exception": describe_exception(each), "frames": _frames(each.__traceback__)[-40:]})
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        led_to_it = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        if led_to_it is not None:
            waiting.append(led_to_it)
    return found


class _Capture(logging.Handler):
    """Turns what libraries log into events: who, how grave, which line, which class of exception; not what."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        log.warning(
            "library_warning",
            logger=_as_word(record.name),
            library_level=_as_word(record.levelname.lower()),
            where=_as_word(f"{record.filename}:{record.lineno}"),
            exception=None if kind is None else _as_word(kind.__name__),
        )

    def handleError(self, record: logging.LogRecord) -> None:  # the standard one prints the message
        log.lost += 1


def _as_word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.:<>-]", "?", text)[:100]


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    where = f"{_place(filename)}:{lineno}"
    log.warning("library_warning", logger="warnings", where=where, exception=_as_word(category.__name__))


def _uncaught(_kind: type[BaseException], exc: BaseException, _tb: TracebackType | None) -> None:
    log.crash(exc)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        log.crash(args.exc_value, thread=_as_word(args.thread.name) if args.thread else None)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is not None:
        log.crash(args.exc_value, "crash_ignored")


def configure(level: LogLevel, stream: TextIO | None = None, *, strict: bool | None = None) -> None:
    """Set up the one `log` of the process and route everything else that would write to stderr through it.

    Called once by a command that runs as a daemon; calling it again changes level and stream. Below `level` nothing of
    the libraries is lost either: they are heard from WARNING on, as the event `library_warning`; psycopg's pool from
    ERROR on.
    """
    log.set_up(level, stream, strict=strict)
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Capture):
            root.removeHandler(handler)
    root.addHandler(_Capture(logging.WARNING))
    # It warns of each try to connect while a database is away, which the worker and the listener tell once.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    warnings.showwarning = _show_warning
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable
