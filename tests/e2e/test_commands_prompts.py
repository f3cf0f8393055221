"""failed, unknown, pause, resume: what a person does about prompts, down to the push that comes of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.support.daemon import running_daemon, wait_for
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    import psycopg

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.command import Command
    from tests.support.postgres import Database

pytestmark = pytest.mark.parametrize("server", ["pg18"], indirect=True)


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


def end_as(organisation: Organisation, status: str, code: str, count: int = 1) -> list[UUID]:
    """Prompts, of a scenario each, that were claimed and ended so."""
    db = organisation.db
    for _ in range(count):
        organisation.enqueue(organisation.scenario(name=f"scenario {uuid4()}"), organisation.mentor(str(uuid4())))
    rows = db.execute("select prompt_id from herald.claim('test', 100, '1 minute')").fetchall()
    prompts = [row[0] for row in rows]
    for prompt in prompts:
        db.execute(
            "select herald.settle(array[%s]::uuid[], array[1]::bigint[], array[%s], array[%s], array[now()], "
            "array[null]::timestamptz[], array[null]::uuid[], array[null]::text[])",
            (prompt, status, code),
        )
    return prompts


def test_failed_prompts_are_listed_with_what_a_person_needs_to_decide(
    pgherald: Command, organisation: Organisation
) -> None:
    assert pgherald("failed", "list").out == "no failed prompts\n"
    first, second = end_as(organisation, "failed", "UNAVAILABLE", 2)
    organisation.db.execute("update herald.prompt set error_code = 'INTERNAL' where prompt_id = %s", (second,))
    assert re.search(
        rf"^{first}  UNAVAILABLE, (now|\d+ s ago), 1 attempt", pgherald("failed", "list").out, re.MULTILINE
    )
    organisation.db.execute("update herald.prompt set settled_at = settled_at - interval '5 minutes'")
    answer = pgherald("failed", "list")
    assert answer.code == 0
    assert f"{first}  UNAVAILABLE, 5 min ago, 1 attempt" in answer.out
    assert "may be retried until" in answer.out
    assert answer.out.endswith("2 failed prompts\n")
    assert max(map(len, answer.out.splitlines())) <= 80
    assert [each["prompt_id"] for each in pgherald("failed", "list", "--code", "INTERNAL", "--json").json] == [
        str(second)
    ]
    assert "1 of 2 failed prompts (--limit, --json)" in pgherald("failed", "list", "--limit", "1").out


def test_retried_prompts_are_sent_once_and_the_rest_stays(
    pgherald: Command, organisation: Organisation, database: Database, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    first, second = end_as(organisation, "failed", "UNAVAILABLE", 2)
    organisation.db.execute("update herald.prompt set error_code = 'INTERNAL' where prompt_id = %s", (second,))
    with running_daemon(database.daemon_dsn, emulator, tmp_path):
        assert pgherald("failed", "retry", "--all", "--code", "UNAVAILABLE").out == "1 prompt ready again\n"
        emulator.wait_for(1)
        wait_for(lambda: organisation.notifications())
        assert len(emulator.messages()) == 1
    again = pgherald("failed", "retry", first, second)
    assert again.code == 1
    assert f"{first}  not failed (any more)" in again.out
    assert again.out.endswith("1 prompt ready again\n")


def test_discarded_prompts_are_gone_for_good(pgherald: Command, organisation: Organisation) -> None:
    prompts = end_as(organisation, "failed", "UNAVAILABLE", 3)
    answer = pgherald("failed", "discard", *prompts[:2], "--json")
    assert answer.code == 0
    assert {each["decision"] for each in answer.json} == {"discarded"}
    assert pgherald("failed", "discard", "--all").out == "1 prompt discarded\n"
    assert pgherald("failed", "list", "--json").json == []
    assert {gate for _, gate in organisation.prompts().values()} == {"discarded"}


def test_unknown_prompts_are_listed_and_settled_by_a_person_s_word(
    pgherald: Command, organisation: Organisation
) -> None:
    sent, not_sent = end_as(organisation, "unknown", "TIMEOUT", 2)
    answer = pgherald("unknown", "list")
    assert answer.code == 0
    assert re.search(rf"^{sent}  TIMEOUT, sent off (now|\d+ s ago)", answer.out, re.MULTILINE)
    assert "notification_id" in answer.out
    assert pgherald("unknown", "resolve", "--sent", sent).out == "1 prompt settled as sent\n"
    assert [row[2] for row in organisation.notifications()] == [sent]
    told = pgherald("unknown", "resolve", "--not-sent", "--all")
    assert (told.code, told.out) == (0, "1 prompt settled as not sent (pgherald failed retry sends them)\n")
    assert [each["prompt_id"] for each in pgherald("failed", "list", "--json").json] == [str(not_sent)]
    assert pgherald("unknown", "resolve", "--sent", sent).code == 1


def test_pausing_one_scenario_holds_back_its_pushes_and_no_others(
    pgherald: Command, organisation: Organisation, database: Database, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    paused, other = organisation.scenario(name="paused"), organisation.scenario(name="other")
    held_back, told = organisation.mentor("device-held-back"), organisation.mentor("device-told")
    answer = pgherald("pause", "paused")
    assert (answer.code, answer.out) == (
        0,
        "\"paused\" is paused; 0 prompts wait. To go on: pgherald resume 'paused'\n",
    )
    organisation.enqueue(paused, held_back)
    organisation.enqueue(other, told)
    with running_daemon(database.daemon_dsn, emulator, tmp_path):
        assert [each["token"] for each in emulator.wait_for(1)] == ["device-told"]
        assert pgherald("status", "--json").json["scenarios"][1]["waiting"] == 1
        assert pgherald("resume", "paused").out == '"paused" goes on; 1 prompt to be sent\n'
        assert [each["token"] for each in emulator.wait_for(2)] == ["device-told", "device-held-back"]


def test_pausing_everything_and_going_on(
    pgherald: Command, organisation: Organisation, database: Database, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    organisation.scenario(name="by itself")
    assert "everything is paused; 0 prompts wait" in pgherald("pause").out
    assert pgherald("pause", "--json").json["prompts"] == 0
    pgherald("pause", "by itself")
    assert "note: everything is paused; pgherald resume" in pgherald("resume", "by itself").out
    pgherald("pause", "by itself")
    pgherald("resume")
    with running_daemon(database.daemon_dsn, emulator, tmp_path):
        pgherald("pause")
        organisation.enqueue(organisation.scenario(name="other"), organisation.mentor("device"))
        assert "PAUSED since" in pgherald("status").out
        ((resumed_at,),) = organisation.db.execute("select clock_timestamp()").fetchall()
        answer = pgherald("resume")
        assert "everything goes on; 1 prompt to be sent" in answer.out
        assert 'note: "by itself" is paused by itself: pgherald resume' in answer.out
        emulator.wait_for(1)
        ((sent_at,),) = wait_for(
            lambda: organisation.db.execute("select dispatched_at from herald.scenario_notification").fetchall()
        )
        assert sent_at > resumed_at
    assert pgherald("resume").out.startswith("everything was not paused")


def test_a_scenario_that_a_run_keeps_is_not_paused_and_the_command_says_what_is_meanwhile(
    pgherald: Command, organisation: Organisation, database: Database
) -> None:
    organisation.scenario(name="busy")
    organisation.db.execute("alter function herald.pause set lock_timeout = '50ms'")
    run = database.connect()
    with run.transaction():
        run.execute("select * from herald.evaluate()")
        answer = pgherald("pause", "busy")
        assert (answer.code, answer.out) == (1, "")
        assert "nothing was changed, try again" in answer.err
        assert "pgherald pause, without a scenario, waits for none" in answer.err
        assert "everything is paused" in pgherald("pause").out


def test_resuming_a_held_scenario_says_that_its_next_run_decides(pgherald: Command, organisation: Organisation) -> None:
    organisation.scenario(name="flood", max_prompts_per_run=1)
    for person in organisation.mentors(2):
        organisation.activity(person)
    assert pgherald("evaluate").code == 1
    answer = pgherald("resume", "flood")
    assert (answer.code, answer.out) == (
        0,
        '"flood" is released\nits next run, within a minute, decides on what was held\n',
    )
    assert pgherald("evaluate", "--json").json["runs"][0]["prompts"] == 2


@pytest.mark.parametrize("command", ["failed", "unknown", "tokens"])
def test_without_an_action_it_lists(pgherald: Command, organisation: Organisation, command: str) -> None:
    end_as(organisation, "failed", "UNAVAILABLE")
    end_as(organisation, "unknown", "TIMEOUT")
    listed = pgherald(command, "--json")
    assert len(listed.json) >= 1
    assert listed == pgherald(command, "list", "--json")
    assert (pgherald(command).code, pgherald(command).err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["failed", "retry"], "--all"),
        (["failed", "retry", "--all", "00000000-0000-0000-0000-000000000001"], "either the ids of prompts, or --all"),
        (["failed", "retry", "one"], "is not a uuid"),
        (["failed", "list", "--limit", "-1"], "from 1 to"),
        (["failed", "list", "--scenario", "nowhere"], 'there is no scenario "nowhere"'),
        (["unknown", "resolve", "--all"], "--sent --not-sent"),
        (["unknown", "resolve", "--sent"], "--all"),
        (["unknown", "resolve", "--sent", "--not-sent", "--all"], "not allowed with"),
        (["pause", "nowhere"], 'there is no scenario "nowhere"'),
        (["resume", "nowhere"], 'there is no scenario "nowhere"'),
    ],
)
def test_a_mistake_is_one_message_with_exit_2(pgherald: Command, arguments: list[str], said: str) -> None:
    answer = pgherald(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_an_unknown_id_is_told_and_ends_with_1(pgherald: Command) -> None:
    stranger = uuid4()
    answer = pgherald("failed", "retry", stranger)
    assert (answer.code, answer.out) == (1, f"{stranger}  no such prompt\n0 prompts ready again\n")
