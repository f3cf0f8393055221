"""What the doctor says: one finding for each thing looked at, how bad it is, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique


@unique
class State(StrEnum):
    """How a thing is. `unseen`: this login may not look, so nobody knows."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    UNSEEN = "unseen"


@unique
class Part(StrEnum):
    """A stretch of the way from a changed row to a push, in its order."""

    CONNECTION = "The way to the database"
    SCHEMA = "Schema, rights, triggers, sources"
    SCHEDULE = "Schedule and queue"
    LOAD = "Indexes and transactions"
    HOST = "This machine"
    FCM = "Firebase Cloud Messaging"


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is its name for programs, `remedy` the very statement, command or setting that mends it."""

    part: Part
    check: str
    state: State
    what: str
    remedy: str | None = None


def ok(part: Part, check: str, what: str) -> Finding:
    return Finding(part, check, State.OK, what)


def warning(part: Part, check: str, what: str, remedy: str) -> Finding:
    return Finding(part, check, State.WARNING, what, remedy)


def problem(part: Part, check: str, what: str, remedy: str) -> Finding:
    return Finding(part, check, State.PROBLEM, what, remedy)


def unseen(part: Part, check: str, what: str, remedy: str) -> Finding:
    return Finding(part, check, State.UNSEEN, what, remedy)
