"""What was accepted is written down before it is answered, and nothing else is."""

from __future__ import annotations

import datetime
import json
import os
from typing import TYPE_CHECKING

import pytest

from pgherald.emulator.ledger import Accepted, Ledger
from pgherald.emulator.messages import Target
from pgherald.errors import HeraldError

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.UTC)


def accept(ledger: Ledger, token: str = "t", kind: str = "token") -> Accepted:
    return ledger.accept("demo", Target(kind, token), {kind: token}, "1.1", NOW)


def test_the_file_has_a_line_for_each_acceptance_as_soon_as_it_is_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "accepted.jsonl"
    with Ledger(path) as ledger:
        first = accept(ledger, "a")
        assert json.loads(path.read_text()) == {
            "seq": 1,
            "id": first.id,
            "name": f"projects/demo/messages/{first.id}",
            "received_at": "2026-01-31T12:00:00+00:00",
            "project": "demo",
            "token": "a",
            "http_version": "1.1",
            "message": {"token": "a"},
        }
        accept(ledger, "b")
    with Ledger(path) as again:
        accept(again, "c")
    assert [json.loads(line)["token"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    assert path.stat().st_mode & 0o077 == 0


def test_a_topic_has_no_device_token() -> None:
    assert accept(Ledger(), "news", "topic").token is None


def test_a_full_disk_accepts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Ledger(tmp_path / "accepted.jsonl") as ledger:
        monkeypatch.setattr(os, "write", lambda *_: 3)
        with pytest.raises(OSError, match="part of an entry"):
            accept(ledger)
        assert (ledger.accepted, ledger.messages) == (0, [])


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(HeraldError, match="choose another --log file"):
        Ledger(tmp_path)


def test_the_newest_are_kept_and_all_are_counted() -> None:
    ledger = Ledger(keep=2)
    for name in "abcd":
        accept(ledger, name)
    assert [entry.token for entry in ledger.messages] == ["c", "d"]
    assert ledger.accepted == 4
    assert [entry.token for entry in ledger.since(0, 10)] == ["c", "d"]
    assert [entry.token for entry in ledger.since(3, 10)] == ["d"]
    assert ledger.since(4, 10) == []
    assert [entry.token for entry in ledger.since(0, 1)] == ["c"]
