"""A device token stays out of sight, and what a push became is a closed set."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherald.errors import ConfigError, HeraldError, UsageError
from pgherald.model import Code, Device, DeviceId, Platform, Revoked, Sent, Token, TokenKind, TokenRevoked

SECRET = "dQw4w9WgXcQ:APA91bH-secret"
DEVICE = Device(
    DeviceId(UUID(int=1)), Platform.IOS, TokenKind.TOKEN, Token(SECRET), datetime(2026, 1, 31, 12, tzinfo=UTC)
)


@pytest.mark.parametrize(
    "shown",
    [
        repr(DEVICE),
        str(DEVICE.token),
        f"{DEVICE.token!r:>20}",
        "%s" % DEVICE.token,  # noqa: UP031 - the old way of formatting must not show it either
        repr(Sent("projects/p/messages/1", DEVICE.device_id, (Revoked(DEVICE, "UNREGISTERED"),))),
        repr(TokenRevoked("UNREGISTERED", (Revoked(DEVICE, "UNREGISTERED"),))),
        repr([{DEVICE.token: DEVICE}]),
    ],
)
def test_a_token_is_in_no_text_made_of_what_holds_it(shown: str) -> None:
    assert SECRET not in shown
    assert "***" in shown or "device_id" in shown


def test_a_token_is_revealed_only_when_asked() -> None:
    assert DEVICE.token.reveal() == SECRET


def test_a_token_is_never_pickled() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(DEVICE)
    with pytest.raises(TypeError, match="not pickled"):
        copy.deepcopy(DEVICE.token)


@given(st.text(), st.text())
def test_tokens_are_equal_by_value(one: str, other: str) -> None:
    assert (Token(one) == Token(other)) is (one == other)
    assert hash(Token(one)) == hash(Token(one))
    assert Token(one) != one


def test_values_cannot_be_changed_after_they_are_made() -> None:
    with pytest.raises(AttributeError):
        DEVICE.kind = TokenKind.FID  # type: ignore[misc]
    assert DEVICE._replace(kind=TokenKind.FID).kind is TokenKind.FID
    assert list(DEVICE._fields) == ["device_id", "platform", "kind", "token", "last_seen_at"]


def test_codes_say_themselves_so_that_labels_and_history_agree() -> None:
    assert all(code.value == code.name for code in Code)


def test_exit_codes_are_those_of_the_contract() -> None:
    assert (HeraldError.exit_code, UsageError.exit_code, ConfigError.exit_code) == (1, 2, 78)
