"""`pgherald fcm-emulator` as a process: what it says, how it ends, and what it leaves behind."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pgherald.emulator import cli
from pgherald.emulator.client import emulator_process
from tests.support.daemon import PATIENCE
from tests.support.fcm_wire import RawHttp1, access_token, listening_port, message_to

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-m", "pgherald.emulator"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_what_to_set_and_ends_well_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "credentials.json"
    command = [*COMMAND, "--listen", "127.0.0.1:0", "--credentials", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(6)]
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    said = "".join(lines)
    endpoint = lines[0].split()[-1]
    assert f"export PGHERALD_FCM_ENDPOINT={endpoint}\n" in said
    assert f"export PGHERALD_FCM_CREDENTIALS={path}\n" in said
    assert out == "Accepted 0 messages; rejected none.\n"
    assert (process.returncode, err) == (0, "")
    assert json.loads(path.read_text())["token_uri"] == f"{endpoint}/token"


def test_a_taken_port_is_said_in_one_line_with_exit_1() -> None:
    with listening_port() as port:
        done = subprocess.run(
            [*COMMAND, "--listen", f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"pgherald fcm-emulator: 127.0.0.1:{port} is taken by another program")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [["--listen", "9499"], ["--fault", "explode"], ["--latency", "soon"], ["--keep", "-1"], ["--token-lifetime", "x"]],
)
def test_wrong_usage_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_certificate_without_the_tls_port_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = ["--listen", "192.0.2.1:1"]  # where nothing can listen: it ends, whatever it makes of the rest
    assert cli.main([*nowhere, "--tls-certificate", str(tmp_path / "cert.pem")]) == 2
    assert capsys.readouterr().err.startswith("pgherald fcm-emulator: --tls-certificate is that of the TLS port: give ")


def test_it_mounts_as_a_command_of_another_parser() -> None:
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers(dest="command"))
    args = parser.parse_args(["fcm-emulator", "--latency", "0.1-0.2", "--fault", "drop_after,every=2"])
    assert args.command == "fcm-emulator"
    assert args.latency.seconds == (0.1, 0.2)
    assert [fault.every for fault in args.fault] == [2]


def test_flags_are_faults_and_the_project_is_what_was_asked(tmp_path: Path) -> None:
    with emulator_process("--project", "other", "--fault", "status=503,next=1", "--latency", "0.01") as emulator:
        token = access_token(emulator.credentials_path)
        path = "/v1/projects/other/messages:send"
        with RawHttp1(emulator.endpoint, token) as connection:
            statuses = [connection.request(path=path, content=message_to()).status for _ in range(2)]
        assert statuses == [503, 200]
        assert [entry["project"] for entry in emulator.wait_for(1)] == ["other"]
        assert emulator.stop() == 0
        assert not emulator.credentials_path.exists()


def test_what_it_accepted_is_in_its_log_even_when_it_is_killed_before_the_answer(tmp_path: Path) -> None:
    log = tmp_path / "accepted.jsonl"
    with emulator_process("--log", str(log), "--fault", "latency=60,token_prefix=slow") as emulator:
        token = access_token(emulator.credentials_path)
        with RawHttp1(emulator.endpoint, token) as connection:
            assert connection.send(message_to("quick")).status == 200
            assert connection.send(message_to("slow"), patience=0.2).end == "silence"
            emulator.wait_for(2)
            emulator.kill()
            assert connection.read().end in ("eof", "reset")
    assert [json.loads(line)["token"] for line in log.read_text().splitlines()] == ["quick", "slow"]


def test_waiting_for_messages_that_do_not_come_ends_in_a_timeout() -> None:
    with emulator_process() as emulator, pytest.raises(TimeoutError, match="0 of 1 messages"):
        emulator.wait_for(1, timeout=0.1)
