"""The search for secrets finds each in each disguise and whatever company, or its zero hits would mean nothing."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING
from unittest import mock
from urllib.parse import quote, quote_plus

import pytest

from pgherald.emulator.keys import ensure_service_account
from tests.support import canaries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def base64_of(before: int, after: int) -> Callable[[str], str]:
    return lambda secret: base64.b64encode(b"\xfb" * before + secret.encode() + b"\xfe" * after).decode()


def url_safe_base64_of(before: int) -> Callable[[str], str]:
    return lambda secret: base64.urlsafe_b64encode(b"\xfb" * before + secret.encode()).decode().rstrip("=")


#: How a secret may come to be written; here by other code than that which searches.
WAYS: dict[str, Callable[[str], str]] = {
    "plain": lambda secret: f'{{"event": "x", "token": {json.dumps(secret)}}}',
    "URL": lambda secret: f"https://x.example/?token={quote(secret, safe='')}&more=1",
    "form": lambda secret: f"grant_type=x&assertion={quote_plus(secret)}",
    "path": lambda secret: f"/v1/{quote(secret)}/x",
    "every byte by percent": lambda secret: "".join(f"%{byte:02x}" for byte in secret.encode()),
    "hex": lambda secret: f"\\x{('<' + secret + '>').encode().hex()}",
    "hex in capitals": lambda secret: secret.encode().hex().upper(),
    "all capitals": lambda secret: secret.upper(),
    **{f"base64 after {b} and before {a} bytes": base64_of(b, a) for b in range(4) for a in range(3)},
    **{f"URL-safe base64 after {before} bytes": url_safe_base64_of(before) for before in range(3)},
}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    key = ensure_service_account(tmp_path_factory.mktemp("key") / "fcm.json", "demo", "http://127.0.0.1:9/token")
    with mock.patch.dict(canaries.PLANTED, clear=True):
        canaries.plant("phone-1")
        return canaries.secrets_of(key.path, "postgresql://u:pass%2Fw+rd%3F@db/app", "host=db")


@pytest.mark.parametrize("way", WAYS)
def test_every_secret_is_found_in_every_disguise_and_no_other(secrets: dict[str, str], way: str) -> None:
    for kind, secret in secrets.items():
        text = f"something before {WAYS[way](secret)} and after"
        assert list(canaries.shown({"the log": "fine", "the spool": text.encode()}, secrets)) == [
            f"{kind} in the spool"
        ], text


def test_a_secret_with_a_capital_beyond_ascii_is_found() -> None:
    for text in ("<Ødegård>", "<ØDEGåRD>", "Ødegård".encode().hex(), quote("Ødegård")):
        assert [*canaries.shown({"it": text}, {"name": "Ødegård"})] == ["name in it"], text


def test_what_holds_no_secret_shows_none(secrets: dict[str, str]) -> None:
    harmless = "tok3n canary, Kanari, " + base64.b64encode(b"device 7f9c1d, phone 1, 51").decode() + b"phone".hex()
    canaries.assert_nothing_shown({"the log": harmless, "empty": b""}, secrets)


def test_every_kind_of_secret_is_searched(secrets: dict[str, str]) -> None:
    assert {kind.partition(",")[0] for kind in secrets if "phone" not in kind} == {
        *("device token", "name", "e-mail", "text", "what somebody told", "bearer token"),
        *("private key", "database password 0"),
    }
    assert secrets["database password 0"] == "pass/w+rd?"


def test_ordinary_words_are_not_searched() -> None:
    with mock.patch.dict(canaries.PLANTED, clear=True):
        for word in ("device", "one", "prompt", "unregistered"):
            assert canaries.plant(word) == word
        assert canaries.PLANTED == {}


def test_files_in_all_folders_are_searched(tmp_path: Path, secrets: dict[str, str]) -> None:
    for name in ("a/one", "b/one"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("fine" if name.startswith("b") else canaries.EMAIL)
    with pytest.raises(AssertionError, match="e-mail in a/one"):
        canaries.assert_nothing_shown(dict(canaries.files_under(tmp_path)), secrets)
