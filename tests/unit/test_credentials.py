"""Credentials are found where they are, and those that cannot work say so, and nothing else."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherald.errors import ConfigError
from pgherald.oauth import load_credentials
from tests.support.service_account import EC, RSA, key_file
from tests.support.stopwatch import Stopwatch


def test_credentials_of_a_service_account_name_their_project(tmp_path: Path) -> None:
    path = key_file(tmp_path / "fcm.json")
    credentials: Any
    credentials, project = load_credentials(path, None)
    assert (credentials.service_account_email, project) == ("herald@my-project.iam.gserviceaccount.com", "my-project")
    assert credentials.scopes == ["https://www.googleapis.com/auth/firebase.messaging"]
    assert load_credentials(path, "another")[1] == "another"


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9099/token", "http://localhost:9099/token", "http://[::1]:9099/token"]
)
def test_a_token_endpoint_on_this_machine_needs_no_tls(tmp_path: Path, uri: str) -> None:
    load_credentials(key_file(tmp_path / "fcm.json", token_uri=uri), None)


BAD_KEYS: list[tuple[str, dict[str, Any], str]] = [
    ("another kind", {"type": "authorized_user"}, "not the JSON key of a service account"),
    ("no kind", {"type": None}, "not the JSON key of a service account"),
    ("no private key", {"private_key": None}, "has no private_key"),
    ("no address", {"client_email": None, "token_uri": ""}, "has no client_email, token_uri"),
    ("an address of no text", {"client_email": ["SECRET"]}, "has no client_email"),
    ("an empty key", {"private_key": "SECRET"}, "private_key cannot be read as an RSA key"),
    ("a cut key", {"private_key": RSA[:300]}, "private_key cannot be read as an RSA key"),
    ("a key of another kind", {"private_key": EC}, "private_key cannot be read as an RSA key"),
    ("an open token endpoint", {"token_uri": "http://oauth2.example.org/SECRET"}, "token_uri is not an https"),
    ("a token endpoint in a file", {"token_uri": "file:///SECRET"}, "token_uri is not an https"),
    ("no token endpoint at all", {"token_uri": "https://[SECRET/"}, "token_uri is not an https"),
]


@pytest.mark.parametrize(("changes", "wrong"), [row[1:] for row in BAD_KEYS], ids=[row[0] for row in BAD_KEYS])
def test_a_key_that_cannot_work_is_named_with_the_remedy(tmp_path: Path, changes: dict[str, Any], wrong: str) -> None:
    path = key_file(tmp_path / "fcm.json", **changes)
    message = problem_with(path)
    assert wrong in message
    assert "SECRET" not in message


def problem_with(path: Path) -> str:
    """What load_credentials says of a file; every message names it, says what to do, and repeats nothing of it."""
    with pytest.raises(ConfigError) as caught:
        load_credentials(path, None)
    message = str(caught.value)
    assert str(path) in message
    assert len(message) > len(str(path)) + 40
    assert "PRIVATE KEY" not in message
    return message


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"SECRET", "is not JSON"),
        (b'{"type": "service_account", "private_key": "SECRET', "is not JSON"),
        (b"\xff\xfe\x00SECRET", "is not JSON"),
        (b'["SECRET"]', "not the JSON key of a service account"),
        (b'{"type":"service_account","x":"' + b"SECRET" * 20_000 + b'"}', "not the JSON key of a service account"),
    ],
)
def test_a_file_that_is_no_key_is_named_with_the_remedy(tmp_path: Path, content: bytes, wrong: str) -> None:
    path = tmp_path / "fcm.json"
    path.write_bytes(content)
    message = problem_with(path)
    assert wrong in message
    assert "SECRET" not in message


def test_a_missing_file_and_what_is_no_file_are_named(tmp_path: Path) -> None:
    assert "no such file" in problem_with(tmp_path / "missing.json")
    assert "cannot be read as a file" in problem_with(tmp_path)
    assert "cannot be read as a file" in problem_with(Path("a\0b"))


def test_a_file_of_somebody_else_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    assert "may not be read" in problem_with(tmp_path / "fcm.json")


def test_credentials_without_a_project_need_the_setting(tmp_path: Path) -> None:
    path = key_file(tmp_path / "fcm.json", project_id=None)
    with pytest.raises(ConfigError, match="Set PGHERALD_FCM_PROJECT"):
        load_credentials(path, None)
    assert load_credentials(path, "given")[1] == "given"


values = st.none() | st.booleans() | st.integers() | st.text(max_size=30) | st.lists(st.text(max_size=3), max_size=2)
fields = st.sampled_from(["type", "project_id", "private_key", "client_email", "token_uri", "universe_domain", "x"])


@given(st.dictionaries(fields, values, max_size=4) | st.binary(max_size=80))
def test_no_file_makes_the_reading_fail_in_another_way(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any] | bytes
) -> None:
    path = tmp_path_factory.mktemp("keys") / "fcm.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        key_file(path, **content)
    with suppress(ConfigError):
        load_credentials(path, None)


@pytest.fixture
def no_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine without application default credentials."""
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "CLOUDSDK_", "GCLOUD_", "GCE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    return monkeypatch


def test_default_credentials_that_are_not_there_say_what_to_set(no_defaults: pytest.MonkeyPatch) -> None:
    no_defaults.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    with pytest.raises(ConfigError, match="PGHERALD_FCM_CREDENTIALS is not set"):
        load_credentials(None, None)


def test_looking_for_a_metadata_server_takes_about_a_second(no_defaults: pytest.MonkeyPatch) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        no_defaults.setattr(
            "google.auth.compute_engine._metadata._GCE_DEFAULT_MDS_IP", f"127.0.0.1:{mute.getsockname()[1]}"
        )
        with Stopwatch() as took, pytest.raises(ConfigError, match="PGHERALD_FCM_CREDENTIALS is not set"):
            load_credentials(None, None)
        assert took.seconds < 2.5


def test_default_credentials_are_found_where_google_looks(tmp_path: Path, no_defaults: pytest.MonkeyPatch) -> None:
    no_defaults.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file(tmp_path / "fcm.json")))
    credentials: Any
    credentials, project = load_credentials(None, None)
    assert (credentials.service_account_email, project) == ("herald@my-project.iam.gserviceaccount.com", "my-project")


def test_default_credentials_that_are_broken_are_named(tmp_path: Path, no_defaults: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.json"
    no_defaults.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    for content in ("", "SECRET", '{"type":"service_account","private_key":"SECRET"}'):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"broken\.json, which is not a usable") as caught:
            load_credentials(None, None)
        assert "SECRET" not in str(caught.value)
