"""`pgherald doctor` on this machine and on FCM: what is broken is named, with what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pgherald.config import load_settings
from pgherald.devices import token_giver
from pgherald.doctor import host
from pgherald.doctor.finding import State
from pgherald.emulator.client import emulator_process
from pgherald.oauth import load_credentials
from tests.support.certificates import Authority, Identity
from tests.support.command import Command
from tests.support.daemon import PATIENCE
from tests.support.doctor import findings, on_18, problems, warnings

if TYPE_CHECKING:
    from pgherald.emulator.client import EmulatorProcess

FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


# This machine.


@on_18
def test_the_metrics_certificate_is_looked_at_before_prometheus_does(doctor: Command, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "ca")

    def with_tls(identity: Identity) -> Command:
        tls = {"CERTIFICATE": identity.certificate, "KEY": identity.key, "CLIENT_CA": authority.certificate}
        return Command({**doctor.settings, **{f"PGHERALD_METRICS_TLS_{name}": str(p) for name, p in tls.items()}})

    good, soon, late = (authority.server(f"for-{days}", days=days) for days in (90, 5, -1))
    told = findings(with_tls(good)("doctor", "--json"), "ok")["metrics_tls"][0]
    assert "the metrics are served over TLS to clients with a certificate, until 2" in told
    assert "runs out in 4 days" in warnings(with_tls(soon))["metrics_tls"][0]
    for of_no_use in (late, authority.client()):
        what, remedy = problems(with_tls(of_no_use))["metrics_tls"]
        assert "has run out, or is not one for a server" in what
        assert remedy == "put a new one there, and reload the daemon"
    what, remedy = problems(with_tls(Identity(good.certificate, soon.key)))["metrics_tls"]
    assert what == f"the daemon will not start: {soon.key}: it is not the key of the certificate {good.certificate}"
    assert remedy == "mend the file, or PGHERALD_METRICS_TLS_KEY"


@on_18
def test_a_state_directory_of_no_use_is_a_problem(doctor: Command, tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    what, remedy = problems(Command({**doctor.settings, "PGHERALD_STATE_DIR": str(blocked)}))["state_directory"]
    assert str(blocked) in what
    assert "PGHERALD_STATE_DIR" in remedy


def test_a_state_directory_that_this_user_may_not_look_into_is_a_problem(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "state").mkdir(parents=True)
    closed.chmod(0o000)
    settings = load_settings({"PGHERALD_STATE_DIR": str(closed / "state")})
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        (found,) = host.examine(settings)
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o700)
    assert (found.check, found.state) == ("state_directory", State.PROBLEM)
    assert found.what.startswith(f"the state directory {closed / 'state'} is of no use: ")


@on_18
def test_a_damaged_spool_is_told(doctor: Command, tmp_path: Path) -> None:
    spool = tmp_path / "state" / "spool"
    spool.mkdir(parents=True)
    (spool / "0000000000000001.spool.damaged").write_bytes(b"?")
    assert "1 spool file could not be read whole" in problems(doctor)["spool_damaged"][0]


@on_18
@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed")
def test_a_clock_two_hours_off_is_found_and_blamed_for_the_key_that_google_refuses(
    settings: dict[str, str],
) -> None:
    answer = _as_a_process(
        settings, LD_PRELOAD=str(FAKETIME), FAKETIME="+2h", FAKETIME_DONT_FAKE_MONOTONIC="1", FAKETIME_NO_CACHE="1"
    )
    found = {each["check"]: each for each in answer["findings"] if each["state"] == "problem"}
    assert set(found) == {"database_clock", "fcm_clock", "oauth"}
    assert re.search(r"the database's clock is (2 h|120 min) behind this machine's", found["database_clock"]["what"])
    assert re.search(r"FCM's clock is (2 h|120 min) behind this machine's", found["fcm_clock"]["what"])
    no_token = r"127\.0\.0\.1:\d+ gives no access token, because this machine's clock is (2 h|120 min) off"
    assert re.match(no_token, found["oauth"]["what"])
    assert found["oauth"]["remedy"] == "timedatectl set-ntp true"


def _as_a_process(settings: dict[str, str], **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "pgherald.cli", "doctor", "--json"],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == ""
    return json.loads(done.stdout)


# Firebase Cloud Messaging.


@pytest.mark.parametrize(
    ("token_uri", "giver"),
    [
        ("https://oauth2.googleapis.com/token", "Google"),
        ("https://accounts.google.com/o/oauth2/token", "Google"),
        ("https://notgoogle.com/token", "notgoogle.com"),
        ("http://127.0.0.1:9499/token", "127.0.0.1:9499"),
    ],
)
def test_google_is_named_only_where_it_is_google_that_gives_access_tokens(
    emulator: EmulatorProcess, tmp_path: Path, token_uri: str, giver: str
) -> None:
    path = tmp_path / "fcm.json"
    path.write_text(json.dumps({**json.loads(emulator.credentials_path.read_text()), "token_uri": token_uri}))
    credentials, _ = load_credentials(path, None)
    assert token_giver(credentials) == giver


@on_18
def test_a_wrong_key_is_found(settings: dict[str, str], tmp_path: Path) -> None:
    """Of another emulator: the account is unknown to this one."""
    with emulator_process("--credentials", str(tmp_path / "other.json"), "--project", "other") as other:
        key = json.loads(other.credentials_path.read_text())
    mine = json.loads(Path(settings["PGHERALD_FCM_CREDENTIALS"]).read_text())
    (tmp_path / "wrong.json").write_text(json.dumps({**mine, "private_key": key["private_key"]}))
    doctor = Command({**settings, "PGHERALD_FCM_CREDENTIALS": str(tmp_path / "wrong.json")})
    what, remedy = problems(doctor)["oauth"]
    assert re.match(r"127\.0\.0\.1:\d+ gives no access token: it does not accept this key", what)
    assert "Generate new private key" in remedy
    answer = doctor("doctor")
    assert "PRIVATE KEY" not in answer.out
    missing = problems(Command({**settings, "PGHERALD_FCM_CREDENTIALS": str(tmp_path / "none.json")}))
    assert "there is no such file" in missing["fcm_credentials"][0]


@on_18
def test_a_project_without_the_api_and_one_without_the_right_are_told_apart(
    doctor: Command, emulator: EmulatorProcess
) -> None:
    emulator.set_faults({"do": "status", "code": "SERVICE_DISABLED"})
    what, remedy = problems(doctor)["fcm_send"]
    assert "the Firebase Cloud Messaging API is not enabled in project demo" in what
    assert remedy == "gcloud services enable fcm.googleapis.com --project=demo"
    emulator.set_faults()
    what, remedy = problems(Command({**doctor.settings, "PGHERALD_FCM_PROJECT": "another-project"}))["fcm_send"]
    assert "may not send in project another-project" in what
    assert re.search(r"add-iam-policy-binding another-project --member=serviceAccount:\S+@\S+ ", remedy)


@on_18
@pytest.mark.parametrize(
    ("fault", "state", "said"),
    [
        ({"do": "status", "code": "NOT_FOUND"}, "problem", "there is no project demo at this endpoint"),
        ({"do": "status", "code": "UNAVAILABLE"}, "warning", "FCM has trouble of its own"),
        ({"do": "status", "code": "QUOTA_EXCEEDED"}, "warning", "the quota is used up"),
        ({"do": "status", "status": 502}, "problem", "BAD_ANSWER"),
    ],
)
def test_what_fcm_itself_says_is_told(
    doctor: Command, emulator: EmulatorProcess, fault: dict[str, Any], state: str, said: str
) -> None:
    emulator.set_faults(fault)
    assert said in findings(doctor("doctor", "--json"), state)["fcm_send"][0]


@on_18
def test_an_endpoint_that_is_not_there_is_told_step_by_step(doctor: Command) -> None:
    nobody = {**doctor.settings, "PGHERALD_FCM_ENDPOINT": "http://127.0.0.1:1"}
    assert "nothing listens on port 1 of 127.0.0.1" in problems(Command(nobody))["fcm_endpoint"][0]
    nowhere = {**doctor.settings, "PGHERALD_FCM_ENDPOINT": "https://fcm.invalid"}
    assert "the name fcm.invalid is not known here" in problems(Command(nowhere))["fcm_endpoint"][0]


@on_18
def test_settings_that_cannot_be_read_are_no_finding_but_exit_78(doctor: Command) -> None:
    answer = doctor("doctor", PGHERALD_MAX_RATE="fast")
    assert (answer.code, answer.out) == (78, "")
    assert "PGHERALD_MAX_RATE" in answer.err
