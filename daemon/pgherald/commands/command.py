"""What all operators' commands share: their parser, the kinds of arguments they take, and the way to the database."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from pgherald import screen
from pgherald.config import load_settings, read_settings_file
from pgherald.errors import HeraldError
from pgherald.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgherald.config import Settings
    from pgherald.operate import Operations

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no other name
    Action = Callable[[argparse.Namespace], int]

SCENARIO: Final = "the scenario's name, its id, or the first four digits or more of it"
NO_SCENARIOS: Final = "No scenarios yet: insert into herald.scenario (scenario_type, organisation_id, name, params) ..."
AT: Final = "a moment such as 2026-03-01T08:00+01:00; UTC where it names no zone"


def command(commands: Commands, name: str, run: Action, brief: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=brief, description=text)
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument(
        "--settings-file",
        type=Path,
        metavar="FILE",
        help="more variables, as NAME=value lines: the daemon's own, which go before those of the environment",
    )
    parser.set_defaults(run=run)
    return parser


def as_uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError("is not a uuid such as 6f1c8a52-0f43-4a77-9d35-2a4c3f3b1f10") from None


def as_moment(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("is not a moment such as 2026-03-01T08:00+01:00") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def whole(low: int, high: int, what: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"is not {what} from {low} to {high:,}")
        return int(text)

    return parse


def as_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("is not a number of seconds from 0.1 to 3600")
    return seconds


def as_window(text: str) -> str:
    """A duration for Postgres to read; a number without a unit would be seconds to it, and is hardly meant so."""
    if re.fullmatch(r"[-+.\d\s]*", text):
        raise argparse.ArgumentTypeError("has no unit; for example '2 days'")
    return text


def as_locale(text: str) -> str:
    """A language that sentences are said in, whose tag may name a country; nn and no are answered in nb."""
    if text.lower().replace("_", "-").split("-")[0] not in ("en", "nb", "nn", "no"):
        raise argparse.ArgumentTypeError("is not a language that sentences are said in: en or nb")
    return text.replace("_", "-")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings of the environment, or of the file that the arguments name, as `pgherald run` reads them."""
    path: Path | None = arguments.settings_file
    if path is not None:
        # With what is for libpq and OpenSSL: PGPASSFILE, SSL_CERT_FILE.
        os.environ.update(read_settings_file(path))
    return load_settings(os.environ)


@contextmanager
def connected(arguments: argparse.Namespace) -> Iterator[Operations]:
    """The database of the settings."""
    from pgherald.operate import Operations

    with Operations.open(settings_of(arguments).database_url) as operations:
        yield operations


def terminal() -> Screen:
    """Where the answer goes: as wide as the terminal, eighty columns without one."""
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((screen.WIDTH, 24)).columns if is_terminal else screen.WIDTH
    colour = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Screen(width, colour=colour)


def say(text: str) -> None:
    """Print at once, with escapes for what a terminal would obey.

    Raises BrokenPipeError where nobody reads it any more, HeraldError where it cannot be written.
    """
    try:
        sys.stdout.write(f"{screen.visible(text)}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is in its buffer would be tried again at the end of the interpreter, and fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise HeraldError(f"the answer cannot be written: {error.strerror}") from None


def scenario_id(operations: Operations, arguments: argparse.Namespace) -> UUID | None:
    """The scenario that the arguments name, if they name one."""
    return None if arguments.scenario is None else operations.scenario(arguments.scenario).scenario_id
