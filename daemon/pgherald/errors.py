"""The errors that end a command, each with its exit code.

A message says what is wrong, where, and what to do about it. It is shown to a person without a traceback, so it never
carries a secret: no token, no DSN, no content of a credentials file, no text of a foreign exception.
Expected outcomes of a push are values (`pgherald.model`), not exceptions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class HeraldError(Exception):
    """A command found a problem that it can name."""

    exit_code = 1


class UsageError(HeraldError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class ConfigError(HeraldError):
    """Configuration that cannot work, however often it is tried: settings, credentials, schema version, a taken spool.

    Exit code 78 is EX_CONFIG of sysexits.h; the systemd unit does not restart on it. `reason`, one constant word, and
    `path`, the file that is at fault, are for the log, which takes no text.
    """

    exit_code = 78

    def __init__(self, message: str, *, reason: str | None = None, path: Path | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.path = path
