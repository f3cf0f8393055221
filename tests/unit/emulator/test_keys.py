"""Credentials that point at the emulator; a file that is somebody else's stays as it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pgherald.emulator.keys import ensure_service_account
from pgherald.errors import HeraldError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_file_is_a_service_account_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "credentials.json"
    account = ensure_service_account(path, "demo", "http://127.0.0.1:1/token")
    content = json.loads(path.read_text())
    assert (content["type"], content["project_id"]) == ("service_account", "demo")
    assert content["client_email"] == account.client_email
    assert content["token_uri"] == "http://127.0.0.1:1/token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["credentials.json"]


def test_a_file_of_the_emulators_keeps_its_key_and_gets_the_new_address(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    ensure_service_account(path, "demo", "http://127.0.0.1:1/token")
    before = json.loads(path.read_text())
    ensure_service_account(path, "demo", "http://127.0.0.1:2/token")
    assert json.loads(path.read_text()) == before | {"token_uri": "http://127.0.0.1:2/token"}


@pytest.mark.parametrize(
    "content",
    ['{"type": "service_account", "client_email": "me@real.iam.gserviceaccount.com"}', "{}", "[]", "no json", ""],
)
def test_a_file_that_is_somebody_elses_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(content)
    with pytest.raises(HeraldError, match="choose another --credentials file"):
        ensure_service_account(path, "demo", "http://127.0.0.1:1/token")
    assert path.read_text() == content


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HeraldError, match="cannot be written"):
        ensure_service_account(tmp_path / "file" / "credentials.json", "demo", "http://127.0.0.1:1/token")
