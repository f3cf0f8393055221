"""What `pgherald doctor` finds, by the name of the check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.command import Answer, Command

on_18 = pytest.mark.parametrize("server", ["pg18"], indirect=True)


def findings(answer: Answer, state: str) -> dict[str, tuple[str, str]]:
    """check -> (what, remedy) of the findings of a state; one of each check."""
    return {each["check"]: (each["what"], each["remedy"]) for each in answer.json["findings"] if each["state"] == state}


def problems(doctor: Command, *arguments: str) -> dict[str, tuple[str, str]]:
    answer = doctor("doctor", "--json", *arguments)
    found = findings(answer, "problem")
    assert answer.code == (1 if found else 0)
    assert answer.json["problems"] == sum(each["state"] == "problem" for each in answer.json["findings"])
    return found


def warnings(doctor: Command, *arguments: str) -> dict[str, tuple[str, str]]:
    return findings(doctor("doctor", "--json", *arguments), "warning")
