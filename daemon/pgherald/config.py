"""The settings: one table of what they are, and the one place that reads them.

`SETTINGS` is the source of README's table and of `pgherald --help`. `load_settings` reads an environment once and
reports everything that is wrong with it together. No file but that of the settings is opened and no connection made
here: whether the credentials, the database or the state directory are usable is found out by whoever uses them. Called
by the commands, and by the service when it reloads.

No message of this module repeats a value, because any of them may be a password pasted into the wrong line.
"""

from __future__ import annotations

import difflib
import os
import pwd
import re
from dataclasses import dataclass, field
from enum import StrEnum, unique
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pgherald import values
from pgherald.errors import ConfigError
from pgherald.values import HostPort, Wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX: Final = "PGHERALD_"


@unique
class Scheduler(StrEnum):
    """Who calls `herald.evaluate()` on a schedule. Runs for touched users are made in each mode."""

    AUTO = "auto"
    INTERNAL = "internal"
    OFF = "off"


@unique
class LogLevel(StrEnum):
    """The least important lines to write; `critical` ones are always written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Settings:
    """What one daemon or command runs with, a field a setting; times in seconds, `max_rate` in messages a second.

    The two conninfo strings may hold a password, so they are no part of the repr. An empty one means libpq's own PG*
    variables. `fcm_credentials` of None means application default credentials, `fcm_project` of None the project that
    the credentials name.
    """

    database_url: str = field(repr=False)
    listen_url: str = field(repr=False)
    fcm_credentials: Path | None
    fcm_project: str | None
    fcm_endpoint: str
    max_in_flight: int
    send_deadline: float
    max_rate: float
    poll_interval: float
    metrics_listen: HostPort
    metrics_tls_certificate: Path | None
    metrics_tls_key: Path | None
    metrics_tls_client_ca: Path | None
    state_dir: Path
    scheduler: Scheduler
    log_level: LogLevel

    @property
    def sends_to_this_machine(self) -> bool:
        """Whether the endpoint is an emulator or a sink here, which needs no gentle beginning."""
        return values.is_loopback(urlsplit(self.fcm_endpoint).hostname or "")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: `default`, `accepts` and `example` as people read them, `parse` and `otherwise` as code.

    `otherwise` makes the value from the rest of the environment where the variable is not set, or blank. The field of
    `Settings` that the value is for has the name of the variable, in lower case and without the prefix.
    """

    name: str
    default: str
    meaning: str
    accepts: str
    example: str
    parse: Callable[[str], Any]
    otherwise: Callable[[Mapping[str, str]], Any]

    @property
    def field(self) -> str:
        return self.name.removeprefix(PREFIX).lower()


def _given_by_systemd(name: str) -> Callable[[Mapping[str, str]], Path | None]:
    """A credential of that name, if the unit hands one to the daemon (LoadCredential=)."""

    def find(environ: Mapping[str, str]) -> Path | None:
        directory = environ.get("CREDENTIALS_DIRECTORY", "")
        path = os.path.join(directory, name)
        try:
            return Path(path) if directory and os.stat(path) else None
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            raise Wrong(
                f"is not set, and what stands in its place, CREDENTIALS_DIRECTORY, cannot be read: {error.strerror}"
            ) from None

    return find


def _state_dir(environ: Mapping[str, str]) -> Path:
    # systemd gives several directories as one list; a relative XDG_STATE_HOME is to be ignored (XDG base directories).
    given = environ.get("STATE_DIRECTORY", "").split(":")[0].strip()
    if given:
        try:
            return values.directory(given)
        except Wrong as wrong:
            raise Wrong(f"is not set, and what stands in its place, STATE_DIRECTORY, {wrong}") from None
    xdg = environ.get("XDG_STATE_HOME", "")
    if xdg.startswith("/") and "\0" not in xdg:
        return Path(xdg) / "pgherald"
    home = environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = ""
    if not home.startswith("/") or "\0" in home:
        raise Wrong("is not set, and neither STATE_DIRECTORY, XDG_STATE_HOME nor HOME tells where state may be kept")
    return Path(home) / ".local" / "state" / "pgherald"


_CONNINFO: Final = "a libpq connection string, as a URL or as key=value pairs"

DATABASE_URL: Final = Setting(
    name="PGHERALD_DATABASE_URL",
    default="libpq's PG* variables",
    meaning=(
        "The database. Keep the password out of it and in a file that PGPASSFILE names: under systemd that can be a "
        "credential, `LoadCredential=pgpass:...` with `Environment=PGPASSFILE=%d/pgpass`"
    ),
    accepts=_CONNINFO,
    example="postgresql://pgherald@db.example.org/app",
    parse=values.conninfo,
    otherwise=lambda _environ: "",
)
LISTEN_URL: Final = Setting(
    name="PGHERALD_LISTEN_URL",
    default="PGHERALD_DATABASE_URL",
    meaning="The listener's own direct connection, needed if the first goes through a pooler: LISTEN needs a session",
    accepts=_CONNINFO,
    example="postgresql://pgherald@db.example.org:5432/app",
    parse=values.conninfo,
    otherwise=lambda environ: environ.get(DATABASE_URL.name, "").strip(),
)
FCM_CREDENTIALS: Final = Setting(
    name="PGHERALD_FCM_CREDENTIALS",
    default="$CREDENTIALS_DIRECTORY/fcm.json, else application default credentials",
    meaning="The service account that may send through FCM",
    accepts="the path of a JSON file from Google",
    example="/etc/pgherald/fcm.json",
    parse=values.credentials,
    otherwise=_given_by_systemd("fcm.json"),
)
FCM_PROJECT: Final = Setting(
    name="PGHERALD_FCM_PROJECT",
    default="from the credentials",
    meaning="The Firebase project to send through",
    accepts="the id of a Google Cloud project",
    example="my-project-123",
    parse=values.project,
    otherwise=lambda _environ: None,
)
FCM_ENDPOINT: Final = Setting(
    name="PGHERALD_FCM_ENDPOINT",
    default="https://fcm.googleapis.com",
    meaning="Where FCM is; an emulator's address to try things out",
    accepts="an https URL; plain http to this machine only (localhost, 127.0.0.0/8, [::1])",
    example="https://fcm.googleapis.com",
    parse=values.endpoint,
    otherwise=lambda _environ: "https://fcm.googleapis.com",
)
MAX_IN_FLIGHT: Final = Setting(
    name="PGHERALD_MAX_IN_FLIGHT",
    default="10",
    meaning="How many sends may be under way at once",
    accepts="a whole number from 1 to 10000",
    example="10",
    parse=values.whole(1, 10_000),
    otherwise=lambda _environ: 10,
)
SEND_DEADLINE: Final = Setting(
    name="PGHERALD_SEND_DEADLINE",
    default="3",
    meaning="How long one send may take as a whole, in seconds",
    accepts="a number of seconds from 0.001 to 60",
    example="3",
    parse=values.number(0.001, 60),
    otherwise=lambda _environ: 3.0,
)
MAX_RATE: Final = Setting(
    name="PGHERALD_MAX_RATE",
    default="10000",
    meaning="The most messages a second; FCM's own quota is 600,000 a minute for a project",
    accepts="a number from 0.001 to 1000000",
    example="10000",
    parse=values.number(0.001, 1_000_000),
    otherwise=lambda _environ: 10_000.0,
)
POLL_INTERVAL: Final = Setting(
    name="PGHERALD_POLL_INTERVAL",
    default="10",
    meaning="How often to look for work that no notification announced, in seconds",
    accepts="a number of seconds from 0.05 to 3600",
    example="10",
    parse=values.number(0.05, 3600),
    otherwise=lambda _environ: 10.0,
)
METRICS_LISTEN: Final = Setting(
    name="PGHERALD_METRICS_LISTEN",
    default="127.0.0.1:9477",
    meaning="Where /metrics, /healthz and /readyz are served; without a client CA, whoever reaches it may read them",
    accepts="an address and a port from 0 to 65535 (0: any free one), IPv6 in brackets",
    example="127.0.0.1:9477",
    parse=values.host_port,
    otherwise=lambda _environ: HostPort("127.0.0.1", 9477),
)
METRICS_TLS_CERTIFICATE: Final = Setting(
    name="PGHERALD_METRICS_TLS_CERTIFICATE",
    default="$CREDENTIALS_DIRECTORY/metrics.crt, else none: plain HTTP",
    meaning="Serve the metrics with TLS and this certificate, followed by those that lead from it to its root",
    accepts="the path of a PEM file",
    example="/etc/pgherald/metrics.crt",
    parse=values.pem_file,
    otherwise=_given_by_systemd("metrics.crt"),
)
METRICS_TLS_KEY: Final = Setting(
    name="PGHERALD_METRICS_TLS_KEY",
    default="$CREDENTIALS_DIRECTORY/metrics.key, else none",
    meaning="The private key of that certificate, without a passphrase",
    accepts="the path of a PEM file",
    example="/etc/pgherald/metrics.key",
    parse=values.pem_file,
    otherwise=_given_by_systemd("metrics.key"),
)
METRICS_TLS_CLIENT_CA: Final = Setting(
    name="PGHERALD_METRICS_TLS_CLIENT_CA",
    default="$CREDENTIALS_DIRECTORY/metrics-clients.crt, else none",
    meaning="Serve nobody without a client certificate that one of these has signed",
    accepts="the path of a PEM file",
    example="/etc/pgherald/metrics-clients.crt",
    parse=values.pem_file,
    otherwise=_given_by_systemd("metrics-clients.crt"),
)
STATE_DIR: Final = Setting(
    name="PGHERALD_STATE_DIR",
    default="$STATE_DIRECTORY, else $XDG_STATE_HOME/pgherald, else ~/.local/state/pgherald",
    meaning="Where accepted pushes are spooled until the database has them: on a local disk, for one daemon each",
    accepts="the absolute path of a directory",
    example="/var/lib/pgherald",
    parse=values.directory,
    otherwise=_state_dir,
)
SCHEDULER: Final = Setting(
    name="PGHERALD_SCHEDULER",
    default="auto",
    meaning="Scheduled runs: pg_cron where its job exists and the daemon otherwise, always the daemon, or neither",
    accepts="auto, internal or off",
    example="auto",
    parse=values.one_of(Scheduler),
    otherwise=lambda _environ: Scheduler.AUTO,
)
LOG_LEVEL: Final = Setting(
    name="PGHERALD_LOG_LEVEL",
    default="info",
    meaning="The least important log lines to write",
    accepts="debug, info, warning or error",
    example="info",
    parse=values.one_of(LogLevel),
    otherwise=lambda _environ: LogLevel.INFO,
)

SETTINGS: Final = (
    DATABASE_URL,
    LISTEN_URL,
    FCM_CREDENTIALS,
    FCM_PROJECT,
    FCM_ENDPOINT,
    MAX_IN_FLIGHT,
    SEND_DEADLINE,
    MAX_RATE,
    POLL_INTERVAL,
    METRICS_LISTEN,
    METRICS_TLS_CERTIFICATE,
    METRICS_TLS_KEY,
    METRICS_TLS_CLIENT_CA,
    STATE_DIR,
    SCHEDULER,
    LOG_LEVEL,
)

#: Read by few commands, which say what is wrong with them: here they are looked for only to list all problems together.
_FILES: Final = (FCM_CREDENTIALS, METRICS_TLS_CERTIFICATE, METRICS_TLS_KEY, METRICS_TLS_CLIENT_CA)


def load_settings(environ: Mapping[str, str]) -> Settings:
    """The settings of this environment; a variable that is blank counts as not set.

    Raises ConfigError with one line for each problem: the setting, what is wrong, what it may be, an example.
    """
    found: dict[str, Any] = {}
    problems = []
    for setting in SETTINGS:
        text = environ.get(setting.name, "").strip()
        try:
            found[setting.field] = setting.parse(text) if text else setting.otherwise(environ)
        except Wrong as wrong:
            problems.append(_problem(setting, str(wrong)))
    problems += _unknown_names(environ)
    if problems:
        problems += [
            _problem(setting, "names a file that is not there, or not for this user")
            for setting in _FILES
            if found.get(setting.field) is not None and not os.path.exists(found[setting.field])
        ]
        raise ConfigError("\n".join(problems), reason="settings")

    return Settings(**found)


def _problem(setting: Setting, wrong: str) -> str:
    return f"{setting.name}: {wrong}; it may be {setting.accepts}; for example {setting.name}={setting.example}"


def check_names(environ: Mapping[str, str]) -> None:
    """For what reads no setting: raises ConfigError all the same where there is one that nobody knows."""
    problems = _unknown_names(environ)
    if problems:
        raise ConfigError("\n".join(problems), reason="settings")


def read_settings_file(path: Path) -> dict[str, str]:
    """The variables of a settings file. Raises ConfigError with its path and what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the settings file {path}: {_why_unreadable(error)}",
            reason="settings_file_unreadable",
            path=path,
        ) from None
    return parse_environment_file(text, path)


def _why_unreadable(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "it is not UTF-8 text" if isinstance(error, UnicodeError) else "this is not a path"


def parse_environment_file(text: str, path: Path) -> dict[str, str]:
    """The variables of a file as systemd's EnvironmentFile= has it: NAME=value lines, perhaps quoted; # and ; comments.

    Raises ConfigError with the numbers of the lines that are neither, for they may hold a secret themselves.
    """
    found: dict[str, str] = {}
    wrong = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        matched = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)=(?:\"([^\"\\\\]*)\"|'([^']*)'|([^\"'\\\\]*))", stripped)
        if matched is None or "\0" in stripped:
            wrong.append(str(number))
        else:
            found[matched[1]] = next(part for part in matched.groups()[1:] if part is not None)
    if wrong:
        raise ConfigError(
            f"the settings file {path} has lines that are not NAME=value: {', '.join(wrong)}; a value with spaces may "
            "be in quotes, and no value goes on in the next line",
            reason="settings_file_lines",
            path=path,
        )
    return found


_KNOWN: Final = frozenset(setting.name for setting in SETTINGS)


def _unknown_names(environ: Mapping[str, str]) -> list[str]:
    return [_unknown(name) for name in sorted(environ) if name.upper().startswith(PREFIX) and name not in _KNOWN]


def _unknown(name: str) -> str:
    # A name longer than any setting, or of odd characters, can only be a value that lost its name.
    shown = name if re.fullmatch(r"[A-Za-z0-9_]{1,64}", name) else f"{PREFIX}..."
    if re.fullmatch(r"PGHERALD_(SERVICE_HOST|(SERVICE_)?PORT(_.+)?)", shown):
        return (
            f"{shown}: is not a setting; Kubernetes sets such variables for a Service named pgherald: "
            "set enableServiceLinks: false in the pod, or name the Service differently"
        )
    rest = {setting.name.removeprefix(PREFIX): setting.name for setting in SETTINGS}
    near = difflib.get_close_matches(shown.upper().removeprefix(PREFIX), rest, n=1, cutoff=0.4)
    if near:
        return f"{shown}: is not a setting; did you mean {rest[near[0]]}?"
    return f"{shown}: is not a setting; the settings are {', '.join(rest.values())}"
