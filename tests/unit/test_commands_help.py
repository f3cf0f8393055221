"""Every command says what it is for, and each that a program may read has --json."""

from __future__ import annotations

import argparse

import pytest

from pgherald import cli, commands
from pgherald.devices import MASS_LEAST, MASS_SHARE
from tests.support.command import Command


def leaves(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], set[str]]:
    """The commands without further ones below them, each with its options."""
    below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]  # noqa: SLF001
    if not below:
        return {path: {option for each in parser._actions for option in each.option_strings}}  # noqa: SLF001
    found: dict[tuple[str, ...], set[str]] = {}
    for name, child in below[0].choices.items():
        found |= leaves(child, (*path, name))
    return found


def operators() -> dict[tuple[str, ...], set[str]]:
    parser = argparse.ArgumentParser()
    commands.add_parsers(parser.add_subparsers())
    return leaves(parser)


def test_the_commands_are_those_of_the_contract() -> None:
    assert {" ".join(path) for path in operators()} == {
        "status",
        "evaluate",
        "preview",
        "backtest",
        "why",
        "describe",
        "failed list",
        "failed retry",
        "failed discard",
        "unknown list",
        "unknown resolve",
        "pause",
        "resume",
        "send-test",
        "tokens list",
        "tokens verify",
        "tokens prune",
        "doctor",
    }


@pytest.mark.parametrize("path", operators(), ids=" ".join)
def test_each_command_has_help_json_and_the_daemon_s_settings_file(path: tuple[str, ...]) -> None:
    assert {"--help", "--json", "--settings-file"} <= operators()[path]
    answer = Command({"COLUMNS": "80"})(*path, "--help")
    assert (answer.code, answer.err) == (0, "")
    usage, _, text = answer.out.partition("\n\n")
    assert usage.startswith(f"usage: pgherald {' '.join(path)}")
    assert len(text.split("\n\n")[0]) > 40, "a sentence or two on what it does"
    assert max(map(len, answer.out.splitlines())) <= 80


def test_the_help_of_a_verification_says_when_it_stops() -> None:
    text = " ".join(Command({})("tokens", "verify", "--help").out.split())
    assert MASS_SHARE == 1 / 3
    assert f"If more than {MASS_LEAST}, and more than a third, are invalid it stops" in text


@pytest.mark.parametrize("command", [(), ("fcm-emulator",), ("migrate",), ("run",), ("demo",)])
def test_help_fits_a_terminal_of_eighty_columns(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert [line for line in lines if len(line) > 80] == []
