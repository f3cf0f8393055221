"""What an app, or its people, have put into texts: no command hands a terminal anything that it would obey."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.organisation import Organisation

if TYPE_CHECKING:
    import psycopg

    from tests.support.command import Command

EVIL = "\x1b]0;mine\x07\r\x08a\u202eb\x9b2J\u2028\x7f"
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_no_command_gives_a_terminal_orders_of_an_app(
    pgherald: Command, doctor: Command, db: psycopg.Connection
) -> None:
    organisation = Organisation(db)
    scenario_id = organisation.scenario(name="\u202etxt.exe")
    person = organisation.mentor("phone-1", time_zone=EVIL)
    prompt_id, _ = organisation.enqueue(scenario_id, person, EVIL)
    failed = "update herald.prompt set status = %s, settled_at = now(), claimed_at = now() where prompt_id = %s"
    for command in (
        ["why", person, "milestone"],
        ["status"],
        ["preview", scenario_id],
        ["backtest", scenario_id],
        ["describe", scenario_id],
        ["evaluate", "--dry-run"],
        ["failed", "list"],
        ["unknown", "list"],
        ["doctor"],
        ["describe", EVIL],
        ["why", person, EVIL],
        [EVIL],
    ):
        if command[0] in ("failed", "unknown"):
            db.execute(failed, (command[0], prompt_id))
        run = doctor if command == ["doctor"] else pgherald
        plain = run(*command)
        assert OBEYED.findall(plain.out + plain.err) == [], command
        program = run(*command, "--json")
        assert OBEYED.findall(program.out + program.err) == [], command
        if program.out:
            json.loads(program.out)
        if command[0] in ("failed", "unknown"):
            assert program.json[0]["activity_ref"] == EVIL
    assert r"\u001b]0;mine\u0007" in pgherald("unknown", "list").out
