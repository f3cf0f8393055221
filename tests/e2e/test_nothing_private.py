"""Nothing private gets out: whatever happens to a daemon, no secret can be read in anything that it or Postgres wrote.

The secrets and the search are in tests/support/canaries.py, what happens is in tests/support/secret_story.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgherald.emulator.client import emulator_process
from tests.support import canaries, secret_story
from tests.support.daemon import running_daemon
from tests.support.postgres import DEBIAN_15, running_server
from tests.support.secret_story import IN_AN_ERROR, SILENT, TALKATIVE, Written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.postgres import Server


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["18", "15"])
def talkative(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that logs every statement with every parameter."""
    if request.param == "15":
        request.getfixturevalue("pg15")
    binaries = DEBIAN_15 if request.param == "15" else None
    with (
        running_server(f"talkative{request.param}", binaries=binaries, settings=TALKATIVE) as server,
        server.template(),
    ):
        yield server


@pytest.fixture(scope="module")
def written(talkative: Server, tmp_path_factory: pytest.TempPathFactory) -> Written:
    with emulator_process() as emulator:
        return secret_story.tell(talkative, emulator, tmp_path_factory.mktemp("s"))


def without(secrets: dict[str, str], *left_out: str) -> dict[str, str]:
    return {kind: secret for kind, secret in secrets.items() if secret not in left_out}


def test_neither_log_nor_spool_nor_systemd_gets_a_secret_from_the_daemon(written: Written) -> None:
    canaries.assert_nothing_shown(written.daemon, written.secrets)


def test_no_page_that_the_daemon_serves_has_a_secret(written: Written) -> None:
    canaries.assert_nothing_shown(written.pages, written.secrets)


def test_no_record_and_no_notification_has_a_secret(written: Written) -> None:
    # What an evaluator raised is kept in the run's record, closed to all but the owner, for the DBA who must mend it.
    kept = {"evaluation_run": written.rows["evaluation_run"]}
    canaries.assert_nothing_shown(kept, without(written.secrets, IN_AN_ERROR))
    canaries.assert_nothing_shown({place: t for place, t in written.rows.items() if place not in kept}, written.secrets)


def test_no_command_says_a_secret_whatever_it_is_given(written: Written) -> None:
    # The name is that of the scenario, which a coordinator chose and operators ask for.
    canaries.assert_nothing_shown(written.commands, without(written.secrets, canaries.NAME))


def test_no_statement_of_ours_has_a_secret_in_its_text_or_its_parameters(written: Written) -> None:
    # What the app's own functions raise is in Postgres's log as ever; a scenario is asked for by its name.
    secrets = without(written.secrets, IN_AN_ERROR, canaries.NAME)
    canaries.assert_nothing_shown({"Postgres's log": written.postgres}, secrets)


def test_all_of_it_happened(written: Written) -> None:
    """The story is what it says: every way to fail is in the history, and each place has what it is to have."""
    assert written.codes == {
        *("UNREGISTERED", "INVALID_ARGUMENT", "SENDER_ID_MISMATCH", "THIRD_PARTY_AUTH_ERROR", "UNAVAILABLE"),
        *("QUOTA_EXCEEDED", "PERMISSION_DENIED", "BAD_ANSWER", "CONNECTION_LOST", "TIMEOUT", "OTHER", "OWNER_LOST"),
        *("no_device_token", None),
    }
    log = written.daemon["log of one"]
    for event in (
        *("prompt_settled", "token_invalid", "record_failed", "evaluation_failed", "listener_lost", "database_away"),
        *("oauth_refresh_failed", "reload_refused", "setting_refused", "reloaded", "spool_opened", "ready"),
    ):
        assert f'"event":"{event}"'.encode() in log, event
    assert log.count(b'"event":"starting"') == 2, "killed, and started again"
    assert b"(most recent call first)" in log, "aborted, and told where each thread stood"
    assert all(b'"traceback":' in text for place, text in written.daemon.items() if place.startswith("log of a bug"))
    assert any(b"notification_id" in text for place, text in written.daemon.items() if "no record is taken" in place)
    assert b"READY=1" in written.daemon["what systemd heard"]
    assert b"STATUS=sending: " in written.daemon["what systemd heard"]
    assert {place.split()[0] for place in written.pages} == {"/metrics", "/readyz", "/healthz"}
    assert b"''" in written.rows["NOTIFY"], "it rang"
    assert len(written.commands) > 100
    assert all(written.commands.values())
    for traced in (b"herald.settle(", b"herald.claim(", b"herald.revoke_devices(", b"DETAIL:  ", b"arameters: $1 = "):
        assert traced in written.postgres, traced


def test_a_statement_that_has_a_token_is_found_in_postgres_s_log(talkative: Server) -> None:
    """The control: this server does log what a statement is given, whether it is text or a parameter."""
    with talkative.database() as database, talkative.captured_log() as log:
        database.connect(options=SILENT).execute("select %s", (canaries.NAME,))
        naive = database.connect()
        naive.execute("select %s", (canaries.DEVICE_TOKEN,))
        naive.execute(f"select '{canaries.BEARER}'")
        assert list(canaries.shown({"it": log.text}, canaries.SECRETS)) == ["device token in it", "bearer token in it"]


def test_a_block_with_a_daemon_fails_when_a_secret_shows_in_what_it_wrote(talkative: Server, tmp_path: Path) -> None:
    """The control of what every test with a daemon holds."""
    with talkative.database() as database, emulator_process() as emulator:

        def leave(secret: str, place: str) -> None:
            with running_daemon(database.daemon_dsn, emulator, tmp_path / place.replace("/", "-")) as daemon:
                path = daemon.log_path.parent / place
                path.write_bytes((path.read_bytes() if path.exists() else b"") + secret.encode().hex().encode())

        with pytest.raises(AssertionError, match="bearer token in its log"):
            leave(canaries.BEARER, "daemon.log")
        with pytest.raises(AssertionError, match="e-mail in note"):
            leave(canaries.EMAIL, "state/note")
