"""Secrets that are easy to recognise, and the search for them: in whatever is written, as they are or in disguise.

`SECRETS` are planted by the tests wherever such a thing has its place; `secrets_of` adds what a run's own credentials
hold, and `plant` what one test makes up. `shown` looks for each of them plain, URL-encoded, in hex and in base64,
whatever stands beside it.
"""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus

from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

DEVICE_TOKEN: Final = "tok3n-canary-7f9c1d"
NAME: Final = "Kanari-Navnesen-51"
EMAIL: Final = "kanari.navnesen@canary-51.example"
TEXT: Final = "Kanarifuglen: 7 dager?"
TOLD: Final = "canary-wellbeing-concern-88"
BEARER: Final = "ya29.emulator-"  # every access token of the emulator begins so

SECRETS: Final[Mapping[str, str]] = {
    "device token": DEVICE_TOKEN,
    "name": NAME,
    "e-mail": EMAIL,
    "text": TEXT,
    "what somebody told": TOLD,
    "bearer token": BEARER,
}

PLANTED: Final[dict[str, None]] = {}
"""The device tokens that tests of this process made up, in order."""


def plant(token: str) -> str:
    """Remember a test's own device token; one that is an ordinary word could be found anywhere, and is not kept."""
    if len(token) >= 7 and not token.isalpha():
        PLANTED[token] = None
    return token


def secrets_of(credentials: Path, *conninfos: str) -> dict[str, str]:
    """All secrets of a run: the canaries, the service account's key, the passwords, the tokens that were planted."""
    found = dict(SECRETS)
    key = json.loads(credentials.read_text())["private_key"].splitlines()
    found |= {f"private key, line {at}": key[at] for at in (1, len(key) // 2)}
    for at, conninfo in enumerate(conninfos):
        password = conninfo_to_dict(conninfo).get("password")
        if password:
            found[f"database password {at}"] = str(password)
    return found | {f"device token {token}": token for token in PLANTED}


def _inside(encode: Callable[[bytes], bytes], offset: int) -> Callable[[str], Iterable[str]]:
    """Base64 of a secret that stands `offset` bytes after a multiple of three, and nothing of its company."""

    def form(secret: str) -> Iterable[str]:
        return (encode(b"\0" * offset + secret.encode()).decode().rstrip("=")[(0, 2, 3)[offset] : -1],)

    return form


ENCODINGS: Final[Mapping[str, Callable[[str], Iterable[str]]]] = {
    "plain": lambda secret: (secret,),
    "URL-encoded": lambda secret: (
        quote(secret, safe=""),
        quote_plus(secret),
        quote(secret),
        "".join(f"%{byte:02X}" for byte in secret.encode()),
    ),
    "hex": lambda secret: (secret.encode().hex(),),
    **{f"base64, offset {offset}": _inside(base64.b64encode, offset) for offset in range(3)},
    **{f"URL-safe base64, offset {offset}": _inside(base64.urlsafe_b64encode, offset) for offset in range(3)},
}


CASELESS: Final = ("plain", "URL-encoded", "hex")


def disguised(secret: str) -> set[str]:
    """The forms of a secret; all but base64 are searched without regard to case."""
    return {form for encode in ENCODINGS.values() for form in encode(secret)}


def shown(places: Mapping[str, str | bytes], secrets: Mapping[str, str]) -> Iterator[str]:
    """Where which secret can be read, one line each: `device token in the log`."""
    forms = {kind: _forms(secret) for kind, secret in secrets.items()}
    for place, content in places.items():
        text = content.encode() if isinstance(content, str) else content
        lower = text.lower()
        for kind, (exact, caseless) in forms.items():
            if any(form in text for form in exact) or any(form in lower for form in caseless):
                yield f"{kind} in {place}"


@cache
def _forms(secret: str) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """The forms whose case matters, and those whose case does not, in lower case (of ASCII, as of bytes)."""
    caseless = {form for name in CASELESS for form in ENCODINGS[name](secret)}
    return (
        frozenset(form.encode() for form in disguised(secret) - caseless),
        frozenset(form.encode().lower() for form in caseless),
    )


def files_under(directory: Path) -> dict[str, bytes]:
    """The content of every file below a directory, for `shown`; a daemon that is at work may remove one meanwhile."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with suppress(FileNotFoundError):
                found[str(path.relative_to(directory))] = path.read_bytes()
    return found


def assert_nothing_shown(places: Mapping[str, str | bytes], secrets: Mapping[str, str]) -> None:
    """Fail with where which secret can be read."""
    found = list(shown(places, secrets))
    assert found == [], "\n".join(found)
