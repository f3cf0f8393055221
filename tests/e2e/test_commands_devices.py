"""send-test and tokens: what FCM says of devices, with no token in what is printed, and what is revoked for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.support.command import Command
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    import psycopg

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.postgres import Database

pytestmark = pytest.mark.parametrize("server", ["pg18"], indirect=True)


@pytest.fixture
def pgherald(database: Database, emulator: EmulatorProcess) -> Command:
    return Command({"PGHERALD_DATABASE_URL": database.daemon_dsn, **emulator.environment})


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


def live(organisation: Organisation) -> set[str]:
    rows = organisation.db.execute("select token from herald.device_token where revoked_at is null").fetchall()
    return {row[0] for row in rows}


def test_a_test_message_is_only_checked_unless_it_is_really_meant(
    pgherald: Command, organisation: Organisation, emulator: EmulatorProcess
) -> None:
    person = organisation.mentor("secret-token-1", "secret-token-2")
    answer = pgherald("send-test", person)
    assert answer.code == 0
    assert answer.out.count("would be accepted") == 2
    assert "only checked, nothing was sent; to send it: --really" in answer.out
    assert emulator.messages() == []
    assert emulator.counters()["validated"] == 2
    answer = pgherald("send-test", person, "--really")
    assert answer.code == 0
    assert re.search(r"^android token [0-9a-f]{8}, seen .* UTC: accepted$", answer.out, re.MULTILINE)
    assert {each["token"] for each in emulator.messages()} == {"secret-token-1", "secret-token-2"}
    assert organisation.prompts() == {}, "nothing is recorded"
    assert "secret-token" not in answer.out + answer.err


def test_a_test_message_can_have_the_texts_of_a_scenario(
    pgherald: Command, organisation: Organisation, emulator: EmulatorProcess
) -> None:
    organisation.scenario(name="first steps", title_key="hello", body_key="there")
    pgherald("send-test", organisation.mentor("one"), "--really")
    pgherald("send-test", organisation.mentor("two"), "--really", "--scenario", "first steps")
    keys = [each["message"]["android"]["notification"]["title_loc_key"] for each in emulator.messages()]
    assert keys == ["test_title", "hello"]


def test_a_test_message_that_would_not_arrive_ends_with_1_and_the_reason(
    pgherald: Command, organisation: Organisation
) -> None:
    person = organisation.mentor("good", "unregistered-1")
    answer = pgherald("send-test", person)
    assert answer.code == 1
    assert "UNREGISTERED: FCM no longer knows this token" in answer.text
    told = pgherald("send-test", person, "--json").json
    assert [(each["code"], each["accepted"], each["sent"]) for each in told] == [
        ("UNREGISTERED", False, False),
        ("OK", True, False),
    ]
    assert live(organisation) == {"good", "unregistered-1"}, "a test revokes nothing"
    nobody = pgherald("send-test", uuid4())
    assert (nobody.code, "this person has no device" in nobody.out) == (1, True)


def test_without_an_access_token_it_says_why_and_ends_with_78(
    pgherald: Command, organisation: Organisation, emulator: EmulatorProcess
) -> None:
    person = organisation.mentor("device")
    emulator.set_faults({"do": "status", "code": "invalid_grant", "on": "token"})
    for command in (("send-test", person), ("tokens", "verify")):
        answer = pgherald(*command)
        assert (answer.code, answer.out) == (78, "")
        assert "Google does not accept the key" in answer.err


def test_tokens_are_counted_and_never_shown(pgherald: Command, organisation: Organisation) -> None:
    assert "no devices yet" in pgherald("tokens", "list").out
    organisation.mentor("secret-token-1", platform="ios")
    organisation.mentor("secret-token-2")
    answer = pgherald("tokens", "list")
    assert answer.code == 0
    assert re.search(r"^ios +token +1 +1 +0 +0$", answer.out, re.MULTILINE)
    assert [each["live"] for each in pgherald("tokens", "list", "--json").json] == [1, 1]
    assert "secret" not in answer.out


def test_verifying_revokes_what_fcm_no_longer_knows_and_nothing_else(
    pgherald: Command, organisation: Organisation, emulator: EmulatorProcess
) -> None:
    organisation.mentors(30)
    gone = {f"unregistered-{at}" for at in range(3)} | {"invalid-1"}
    for token in sorted(gone):
        organisation.mentor(token)
    organisation.mentor("apns-auth-1", platform="ios")  # refused for a reason of ours: not its fault
    dry = pgherald("tokens", "verify", "--dry-run")
    assert dry.code == 0
    assert "35 tokens checked: 30 good, 4 invalid\n  3 UNREGISTERED, 1 INVALID_ARGUMENT; would be revoked" in dry.out
    assert len(live(organisation)) == 35
    answer = pgherald("tokens", "verify")
    assert (answer.code, answer.err) == (0, "")
    assert "3 UNREGISTERED, 1 INVALID_ARGUMENT; revoked 4" in answer.out
    assert "1 could not be told (left as they are): 1 THIRD_PARTY_AUTH_ERROR" in answer.out
    assert live(organisation).isdisjoint(gone)
    assert emulator.messages() == [], "nobody got anything"
    assert pgherald("tokens", "verify", "--json").json == {
        "checked": 31,
        "good": 30,
        "invalid": {},
        "inconclusive": {"THIRD_PARTY_AUTH_ERROR": 1},
        "revoked": 0,
        "stopped": None,
    }


def test_a_mass_of_invalid_tokens_trips_the_breaker_before_any_is_revoked(
    pgherald: Command, organisation: Organisation
) -> None:
    for at in range(12):
        organisation.mentor(f"sender-mismatch-{at}")
    organisation.mentors(3)
    answer = pgherald("tokens", "verify")
    assert answer.code == 1
    assert "12 of 15 tokens are invalid" in answer.text
    assert "is this the right Firebase project?" in answer.text
    assert len(live(organisation)) == 15
    assert "revoked 12" in pgherald("tokens", "verify", "--even-if-many").out
    assert len(live(organisation)) == 3


@pytest.mark.parametrize("code", ["SERVICE_DISABLED", "NOT_FOUND"])
def test_when_fcm_refuses_us_verification_stops_and_touches_no_token(
    pgherald: Command, organisation: Organisation, emulator: EmulatorProcess, code: str
) -> None:
    organisation.mentors(200)
    emulator.set_faults({"do": "status", "code": code})
    answer = pgherald("tokens", "verify")
    assert answer.code == 1
    assert "stopped: FCM refuses all we send" in answer.text
    assert emulator.counters()["rejected"][code] < 30
    assert len(live(organisation)) == 200


def test_an_fcm_that_errs_ends_a_verification_soon(
    pgherald: Command, organisation: Organisation, emulator: EmulatorProcess
) -> None:
    organisation.mentors(200)
    emulator.set_faults({"do": "status", "status": 502})
    answer = pgherald("tokens", "verify")
    assert answer.code == 1
    assert "FCM does not answer well (BAD_ANSWER)" in answer.text
    assert len(live(organisation)) == 200


def test_only_devices_long_unseen_are_verified_if_one_says_so(
    pgherald: Command, organisation: Organisation, emulator: EmulatorProcess
) -> None:
    people = organisation.mentors(5)
    organisation.db.execute(
        "update herald.device_token set last_seen_at = now() - interval '31 days' where user_id = any (%s)",
        (people[:2],),
    )
    assert pgherald("tokens", "verify", "--unseen-for", "30", "--json").json["checked"] == 2
    assert pgherald("tokens", "verify", "--limit", "3", "--json").json["checked"] == 3
    assert emulator.counters()["validated"] == 5


def test_pruning_deletes_devices_past_the_retention(pgherald: Command, organisation: Organisation) -> None:
    people = organisation.mentors(3)
    organisation.db.execute(
        "update herald.device_token set last_seen_at = now() - interval '271 days' where user_id = %s", (people[0],)
    )
    organisation.db.execute(
        "update herald.device_token set last_seen_at = now() - interval '31 days' where user_id = %s", (people[1],)
    )
    assert pgherald("tokens", "prune", "--dry-run").out == "1 device would be deleted\n"
    assert pgherald("tokens", "prune", "--json").json == {"dry_run": False, "devices": 1}
    assert pgherald("tokens", "prune", "--unseen-for", "29").code == 2
    assert pgherald("tokens", "prune", "--unseen-for", "30").out == "1 device deleted\n"
    assert len(live(organisation)) == 1
