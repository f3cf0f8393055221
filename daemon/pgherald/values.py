"""What the text of a setting may be: one parser for each kind of value. Used by `pgherald.config`.

No message of this module repeats a value, because any of them may be a password pasted into the wrong line.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from psycopg import Error as PsycopgError
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Callable

E = TypeVar("E", bound=StrEnum)
N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where to listen. Port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Wrong(Exception):
    """What is wrong with one value, in words that do not repeat it."""


def conninfo(text: str) -> str:
    """A libpq conninfo, kept as it was written; libpq's own complaint is not shown, it quotes parts of the password."""
    try:
        parts = conninfo_to_dict(text)
    except (PsycopgError, ValueError):
        parts = None
    if parts is None or "\0" in text:  # raised out here, so that libpq's complaint is not even its context
        raise Wrong("libpq cannot read it")
    # libpq takes what follows an unescaped @ or / of a password for the host, port or database, and names it aloud
    # when it cannot connect.
    authority, _, rest = text.partition("://")[2].partition("/")
    at = authority.count("@") + rest.partition("?")[0].count("@")
    if at > authority.count("@") or at > 1 or re.fullmatch(r"[0-9,]*", str(parts.get("port") or "")) is None:
        raise Wrong(
            "special characters of a password are not written as %XX (@ is %40, / is %2F), or the port is wrong"
        )
    return text


def path(text: str) -> Path:
    if "\0" in text:
        raise Wrong("holds a NUL character")
    return Path(text)


def credentials(text: str) -> Path:
    if text.startswith("{"):
        raise Wrong("is the content of a credentials file, where its path belongs")
    return path(text)


def pem_file(text: str) -> Path:
    """The path of a file of certificates or of a key."""
    if "-----BEGIN" in text:
        raise Wrong("is the content of a PEM file, where its path belongs")
    return path(text)


def directory(text: str) -> Path:
    found = path(text)
    if not found.is_absolute():
        raise Wrong("is a relative path")
    return found


def project(text: str) -> str:
    # Google's ids are 6 to 30 of [a-z0-9-], with a domain and a colon before them in old ones; numbers work as well.
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,99}", text) is None:
        raise Wrong("is not the id of a project")
    return text


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return len(text) <= 253 and re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?", text) is not None
    return "%" not in text  # a scoped IPv6 address is good on one link only, and unreadable in a URL


def endpoint(text: str) -> str:
    """Scheme, host and perhaps a path, without a slash at the end. The access token goes there."""
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError:
        host, port = "", None
    if not _is_host(host) or port == 0 or re.search(r"[^\x21-\x7e]", text):
        raise Wrong("is not a URL with a host")
    if url.username is not None or url.password is not None or url.query or url.fragment:
        raise Wrong("has a user, a query or a fragment, and must have none")
    if url.scheme == "http" and not is_loopback(host):
        raise Wrong("is plain http to another machine, and whoever listens on the way could take the access token")
    if url.scheme not in ("http", "https"):
        raise Wrong("is neither https nor http")
    return text.rstrip("/")


def number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", text) is None:
            raise Wrong("is not a plain number (digits, perhaps a point; no unit, no sign)")
        return _within(float(text), low, high)

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,12}", text) is None:
            raise Wrong("is not a whole number (digits only)")
        return _within(int(text), low, high)

    return parse


def _within(value: N, low: N, high: N) -> N:
    if value < low:
        raise Wrong("is too small")
    if value > high:
        raise Wrong("is too large")
    return value


def one_of(choices: type[E]) -> Callable[[str], E]:
    def parse(text: str) -> E:
        for choice in choices:
            if choice.value == text.lower():
                return choice
        raise Wrong("is none of the choices")

    return parse


def host_port(text: str) -> HostPort:
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})", text)
    if found is None:
        raise Wrong("is not an address, a colon and a port")
    host, port = found[1] or found[2], int(found[3])
    if not _is_host(host) or (found[1] is not None and ":" not in host):
        raise Wrong("has no host name or IP address before the port")
    if port > 65535:
        raise Wrong("has a port above 65535")
    return HostPort(host, port)
