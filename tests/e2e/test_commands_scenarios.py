"""status, evaluate, preview, backtest, why, describe: what they answer, at 80 columns and as JSON, and how they end."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from pgherald.operate import Operations
from tests.support.command import Command
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path
    from uuid import UUID

    import psycopg

    from pgherald.operate import ScenarioStatus
    from tests.support.postgres import Database


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


def due_person(organisation: Organisation, token: str = "device") -> UUID:
    """Somebody whose first activity is about to be found due."""
    person = organisation.mentor(token)
    organisation.activity(person)
    return person


def test_status_of_an_empty_database_says_what_to_do_first(pgherald: Command) -> None:
    answer = pgherald("status")
    assert (answer.code, answer.err) == (0, "")
    assert "No scenarios yet: insert into herald.scenario" in answer.out


def test_a_first_run_that_is_still_to_come_is_said_to_come(
    pgherald: Command, organisation: Organisation, database: Database
) -> None:
    organisation.scenario()
    assert "next as soon as somebody makes them" in pgherald("status").text
    with database.connect("herald_daemon_login") as leader:
        leader.execute("select pg_try_advisory_lock(1751479908, 2)")
        answer = pgherald("status").text
    assert "no run yet, next within a minute" in answer


def test_status_shows_each_scenario_with_its_sentence_and_numbers_at_80_columns(
    pgherald: Command, organisation: Organisation
) -> None:
    organisation.scenario(name="first steps", quiet_from="21:00", quiet_until="08:00")
    organisation.scenario("inactivity", {"days": 30}, name="a name that goes on and on " * 6, mode="off")
    due_person(organisation)
    organisation.db.execute("insert into herald.opt_out (user_id) values (%s)", (due_person(organisation, "other"),))
    assert pgherald("evaluate").code == 0
    answer = pgherald("status")
    assert (answer.code, answer.err) == (0, "")
    assert max(map(len, answer.out.splitlines())) <= 80
    assert "Send at a person's 1st activity; at most once a week; not between 21:00 and 08:00" in answer.text
    assert "due 2, sent 0, waiting 1" in answer.text
    assert "not sent: 1 opted_out" in answer.out
    assert "no runs; due 0" in answer.out
    assert re.search(r"Schedule  last run (now|\d+ s ago), next in \d+ s", answer.out)


def test_status_as_json_has_the_same_and_the_next_run(pgherald: Command, organisation: Organisation) -> None:
    scenario = organisation.scenario()
    due_person(organisation)
    pgherald("evaluate")
    content = pgherald("status", "--json", "--locale", "nb").json
    (found,) = content["scenarios"]
    assert found["scenario_id"] == str(scenario)
    assert found["sentence"].startswith("Send ved en persons 1. aktivitet")
    assert (found["due"], found["waiting"], found["sent"], found["suppressed"]) == (1, 1, 0, {})
    assert content["queue"]["prompts"]["ready"] == 1
    assert content["schedule"]["next_run_at"] > content["schedule"]["last_run_at"]
    assert (content["paused_at"], content["schedule"]["late"]) == (None, False)


def test_status_tells_of_what_is_paused_held_failing_and_late(pgherald: Command, organisation: Organisation) -> None:
    db = organisation.db
    held = organisation.scenario(name="held", max_prompts_per_run=1)
    for at in range(2):
        due_person(organisation, f"device-{at}")
    organisation.scenario("inactivity", {"days": 30}, name="broken")
    db.execute(
        "create or replace view herald.source_expiry as select null::text as item_id, null::uuid as user_id, "
        "null::text as kind, (1 / (1 - 1))::text::timestamptz as expires_at"
    )
    organisation.scenario("expiry", {"days_before": [1]}, name="failing")
    pgherald("evaluate")
    pgherald("pause")
    pgherald("pause", "broken")
    db.execute("update herald.evaluation_run set started_at = started_at - interval '10 minutes'")
    text = pgherald("status").text
    assert "PAUSED since" in text
    assert "nothing is sent until `pgherald resume`" in text
    assert re.search(r"HELD since .*: a run would have made 2 prompts\. Look: pgherald preview", text)
    assert f"pgherald resume {str(held)[:8]}" in text
    assert "FAILED with SQLSTATE 22012: pgherald evaluate --dry-run --scenario" in text
    assert re.search(r"LATE: the last run was \d+ min ago", text)


def test_a_run_that_is_made_while_the_status_is_read_is_none_of_the_future(
    pgherald: Command, organisation: Organisation
) -> None:
    organisation.scenario()
    read = Operations.status

    def after_a_run(operations: Operations, locale: str, since: timedelta) -> list[ScenarioStatus]:
        organisation.db.execute("select pg_sleep(1.1)")  # the least that is told from "now"
        organisation.db.execute("select * from herald.evaluate()")
        return read(operations, locale, since)

    with mock.patch.object(Operations, "status", after_a_run):
        assert re.search(r"last run (now|\d+ s ago), next in", pgherald("status").text.partition("Scenarios")[2])


def test_status_calls_nothing_late_where_every_scenario_is_off(pgherald: Command, organisation: Organisation) -> None:
    organisation.scenario()
    pgherald("evaluate")
    organisation.db.execute("update herald.evaluation_run set started_at = started_at - interval '10 minutes'")
    assert "LATE" in pgherald("status").text
    organisation.db.execute("update herald.scenario set mode = 'off'")
    assert "Schedule nothing to run; by a daemon, once one runs" in pgherald("status").text
    assert pgherald("status", "--json").json["schedule"]["late"] is False


def test_status_watch_shows_it_again_until_it_is_interrupted(pgherald: Command, organisation: Organisation) -> None:
    organisation.scenario()
    with mock.patch("pgherald.commands.status.time.sleep", side_effect=[None, None, KeyboardInterrupt]) as slept:
        answer = pgherald("status", "--watch", "0.5", "--json")
    assert answer.code == 0
    assert [json.loads(line)["hours"] for line in answer.out.splitlines()] == [24, 24, 24]
    assert [call.args for call in slept.call_args_list] == [(0.5,)] * 3


def test_evaluate_runs_it_and_prints_a_table(pgherald: Command, organisation: Organisation) -> None:
    scenario = organisation.scenario(name="first steps")
    organisation.scenario("inactivity", {"days": 30}, name="other")
    due_person(organisation)
    answer = pgherald("evaluate", "--scenario", "first steps")
    assert answer.code == 0
    assert re.search(r"^first steps +1 +1 ", answer.out, re.MULTILINE)
    assert "other" not in answer.out
    assert organisation.db.execute("select scenario_id from herald.prompt").fetchall() == [(scenario,)]
    assert pgherald("evaluate", "--json").json["runs"][0].keys() == {
        "scenario_id",
        "candidates",
        "prompts",
        "suppressed",
        "duration",
        "error",
    }


def test_every_gate_of_a_run_is_named_in_full_to_a_pipe(pgherald: Command, organisation: Organisation) -> None:
    organisation.scenario(name="those who have just taken their first steps")
    organisation.activity(organisation.mentor())
    organisation.activity(organisation.mentor("a-device", status="paused"))
    assert "1 inactive_recipient, 1 no_device_token\n" in pgherald("evaluate").out


def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing(pgherald: Command, organisation: Organisation) -> None:
    organisation.scenario(name="first steps")
    due_person(organisation)
    answer = pgherald("evaluate", "--dry-run")
    assert answer.code == 0
    assert re.search(r"^first steps +1 +1 ", answer.out, re.MULTILINE)
    assert "rolled back: nothing was written" in answer.out
    assert organisation.db.execute("select count(*) from herald.prompt").fetchall() == [(0,)]
    assert organisation.db.execute("select count(*) from herald.evaluation_run").fetchall() == [(0,)]


def test_evaluate_ends_with_1_and_the_reason_when_a_scenario_is_held(
    pgherald: Command, organisation: Organisation
) -> None:
    organisation.scenario(name="held", max_prompts_per_run=1)
    for at in range(2):
        due_person(organisation, f"device-{at}")
    answer = pgherald("evaluate")
    assert answer.code == 1
    assert "held: held: 2 prompts would exceed max_prompts_per_run = 1" in answer.text


def test_evaluate_refuses_a_future_in_which_nobody_would_be_found_before(
    pgherald: Command, organisation: Organisation
) -> None:
    organisation.scenario()
    answer = pgherald("evaluate", "--now", "2999-01-01")
    assert (answer.code, answer.out) == (2, "")
    assert "--dry-run" in answer.err
    assert pgherald("evaluate", "--now", "2999-01-01", "--dry-run").code == 0


def test_preview_shows_who_would_get_it_and_which_gate_stops_the_others(
    pgherald: Command, organisation: Organisation
) -> None:
    organisation.scenario(name="first steps")
    person, nobody = due_person(organisation), organisation.mentor()
    organisation.activity(nobody)
    answer = pgherald("preview", "first steps")
    assert answer.code == 0
    assert "1 push to 1 person" in answer.out
    assert "not, or not at once: 1 no_device_token" in answer.out
    assert re.search(rf"send +{person}", answer.out)
    assert {(each["user_id"], each["decision"]) for each in pgherald("preview", "first steps", "--json").json} == {
        (str(person), "send"),
        (str(nobody), "no_device_token"),
    }


def test_a_long_name_is_broken_between_words(pgherald: Command, organisation: Organisation) -> None:
    name = "Oppfølging etter besøk når det var bekymring for trivselen hos den som ble besøkt, alle avdelinger"
    organisation.scenario("milestone", {"counts": [1]}, name=name)
    for command in (("status",), ("preview", name), ("backtest", name), ("describe",)):
        answer = pgherald(*command)
        assert max(len(line) for line in answer.out.splitlines()) <= 80
        assert "status" in command or name in answer.text


def test_what_a_preview_is_about_is_told_in_full_to_a_pipe(pgherald: Command, organisation: Organisation) -> None:
    organisation.scenario("follow_up", {"activity_type": "contact", "after_days": 3}, name="contacts")
    activity = organisation.activity(organisation.mentor("device"), activity_type="contact", ago="3 days")
    answer = pgherald("preview", "contacts")
    assert re.search(rf"send .* {activity}$", answer.out, re.MULTILINE), answer.out


def test_preview_of_a_definition_that_is_not_saved(
    pgherald: Command, organisation: Organisation, tmp_path: Path
) -> None:
    person = due_person(organisation)
    path = tmp_path / "scenario.json"
    definition = {
        "scenario_type": "milestone",
        "organisation_id": str(organisation.organisation_id),
        "name": "draft",
        "params": {"counts": [1]},
    }
    path.write_text(json.dumps(definition))
    answer = pgherald("preview", "--definition", path)
    assert (answer.code, answer.err) == (0, "")
    assert "draft: due within 7 days: 1" in answer.out
    assert str(person) in answer.out
    with mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes()))):
        assert len(pgherald("preview", "--definition", "-", "--json").json) == 1
    assert pgherald("backtest", "--definition", path).code == 0
    path.write_text(json.dumps(definition | {"params": {"counts": [3, 0]}}))
    refused = pgherald("preview", "--definition", path)
    assert refused.code == 2
    assert 'parameter "counts" has an element that must be at least 1' in refused.err
    assert "for example" in refused.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"a": 1}', 'unknown column "a"'),
        (r'{"name": "a\u0000b"}', r"scenario.json: a text in it has a \u0000, which Postgres"),
        (r'{"params": {"\\\u0000": [1]}}', r"a text in it has a \u0000"),
        (r'{"a\\u0000": 1}', r'unknown column "a\u0000"'),
    ],
)
def test_a_definition_that_is_none_is_refused(
    pgherald: Command, tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "scenario.json"
    if content is not None:
        path.write_text(content)
    answer = pgherald("preview", "--definition", path)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_backtest_draws_days_and_names_whom_it_would_have_reached_most(
    pgherald: Command, organisation: Organisation
) -> None:
    organisation.scenario("follow_up", {"activity_type": "contact", "after_days": 1}, name="after a contact")
    often, once = organisation.mentor("one"), organisation.mentor("two")
    for days in (2, 4, 12, 20):
        organisation.activity(often, ago=f"{days} days")
    organisation.activity(once, ago="4 days")
    answer = pgherald("backtest", "after a contact", "--days", "10")
    assert "3 candidates, 2 pushes" in answer.out
    assert "no push for 1: within the cooldown or the same UTC day, opted out, not active" in answer.text
    answer = pgherald("backtest", "after a contact", "--days", "30", "--to", "2001-01-01")
    assert answer.out.splitlines()[1] == "  0 candidates, 0 pushes"
    answer = pgherald("backtest", "after a contact", "--days", "30")
    assert answer.code == 0
    assert "5 candidates, 4 pushes" in answer.out
    assert re.search(r"^  20\d\d-\d\d-\d\d +2 +2  #+$", answer.out, re.MULTILINE)
    assert re.search(rf"{often} +3 +4", answer.out)
    assert max(map(len, answer.out.splitlines())) <= 80
    rows = pgherald("backtest", "after a contact", "--days", "30", "--json").json
    assert sum(row["sent"] for row in rows if row["kind"] == "day") == 4
    assert len(pgherald("backtest", "after a contact", "--days", "365").out.splitlines()) < 30


def test_a_backtest_over_more_days_than_there_are_is_refused(pgherald: Command, organisation: Organisation) -> None:
    organisation.scenario(name="first steps")
    longest = pgherald("backtest", "first steps", "--from", "2015-01-01", "--to", "2025-01-08")
    assert (longest.code, longest.err) == (0, "")
    for arguments in (("--from", "0001-01-01"), ("--from", "2015-01-01", "--to", "2025-01-09")):
        answer = pgherald("backtest", "first steps", *arguments)
        assert (answer.code, answer.out) == (2, "")
        assert "--from lies more than 3,660 days before the end" in answer.err
    answer = pgherald("backtest", "first steps", "--to", "0001-01-02")
    assert (answer.code, answer.out) == (2, "")
    assert "--to lies too early" in answer.err


def test_why_lists_every_check_with_its_numbers(pgherald: Command, organisation: Organisation) -> None:
    organisation.scenario("inactivity", {"days": 30}, name="quiet mentors")
    person = organisation.mentor("device", registered="29 days 23 hours")
    answer = pgherald("why", person, "inactivity")
    assert answer.code == 0
    assert re.search(r"NO due .*needs 30 days", answer.text)
    assert re.search(r"^yes +device_token ", answer.out, re.MULTILINE)
    checks = pgherald("why", person, "inactivity", "--json").json
    assert {"check_name": "opt_out", "passed": True, "detail": "not opted out"} in checks


def test_without_scenarios_describe_says_so_and_how_to_make_one(pgherald: Command) -> None:
    assert pgherald("describe").out.startswith("No scenarios yet: insert into herald.scenario")
    assert pgherald("describe", "--json").json == []


def test_describe_says_it_in_the_language_asked_for(pgherald: Command, organisation: Organisation) -> None:
    organisation.scenario(name="first steps")
    assert pgherald("describe", "first steps").out == "Send at a person's 1st activity; at most once a week\n"
    assert pgherald("describe", "--locale", "nb").out.splitlines()[1].startswith("  Send ved en persons 1. aktivitet")
    assert pgherald("describe", "first steps", "--locale", "nb_NO").out.startswith("Send ved en persons 1. aktivitet")
    assert pgherald("describe", "first steps", "--locale", "NN").out.startswith("Send ved en persons 1. aktivitet")
    assert pgherald("describe", "first steps", "--locale", "en-GB").out.startswith("Send at a person's 1st activity")
    assert pgherald("describe", "--json").json[0]["name"] == "first steps"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "--watch", "0"], "0.1 to 3600"),
        (["status", "--locale", "de"], "--locale: is not a language that sentences are said in: en or nb"),
        (["describe", "--locale", "xx"], "--locale: is not a language that sentences are said in: en or nb"),
        (["describe", "--locale", "nbx"], "--locale: is not a language that sentences are said in: en or nb"),
        (["evaluate", "--scenario", "nowhere"], 'there is no scenario "nowhere"'),
        (["evaluate", "--now", "soon"], "2026-03-01T08:00+01:00"),
        (["preview"], "give either a SCENARIO or --definition FILE"),
        (["preview", "x", "--definition", "y"], "give either a SCENARIO or --definition FILE"),
        (["backtest", "x", "--days", "28", "--from", "2026-03-01"], "--from: not allowed with argument --days"),
        (["why", "somebody", "inactivity"], "is not a uuid"),
        (["why", "00000000-0000-0000-0000-000000000001", "boredom"], "known: expiry, follow_up, inactivity, milestone"),
        (["describe", "nowhere"], 'there is no scenario "nowhere"'),
    ],
)
def test_a_mistake_is_one_message_with_exit_2(pgherald: Command, arguments: list[str], said: str) -> None:
    answer = pgherald(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_two_scenarios_of_one_name_are_told_apart(pgherald: Command, organisation: Organisation) -> None:
    ids = [organisation.scenario(name="twins") for _ in range(2)]
    answer = pgherald("pause", "twins")
    assert answer.code == 2
    assert all(str(each) in answer.err for each in ids)
    assert pgherald("pause", ids[0]).code == 0


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_a_window_that_is_none_is_refused_as_such(pgherald: Command, organisation: Organisation) -> None:
    organisation.scenario(name="first steps")
    for window in ("a while", "5 foos", "99999999999999 years"):
        answer = pgherald("preview", "first steps", "--window", window)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err == f"pgherald: --window '{window}' is no length of time; for example --window '7 days'\n"
    longer = pgherald("preview", "first steps", "--window", "2 years")
    assert (longer.code, longer.out) == (2, "")
    assert "a window of up to a year" in longer.err
    seconds = pgherald("preview", "first steps", "--window", "2")  # to Postgres that is two seconds
    assert (seconds.code, seconds.out) == (2, "")
    assert "has no unit; for example '2 days'" in seconds.err


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_a_database_without_pgherald_or_a_role_without_rights_is_told_with_its_remedy(
    database: Database, empty_database: Database
) -> None:
    nothing = Command({"PGHERALD_DATABASE_URL": empty_database.dsn})("status")
    assert (nothing.code, nothing.out) == (78, "")
    assert "run `pgherald migrate`" in nothing.err
    stranger = Command({"PGHERALD_DATABASE_URL": database.dsn_as("authenticator")})("status")
    assert (stranger.code, stranger.out) == (78, "")
    assert 'grant herald_daemon to "authenticator"' in stranger.err
    nowhere = Command({"PGHERALD_DATABASE_URL": "postgresql://me:secret@127.0.0.1:1/app"})("status")
    assert nowhere.code == 78
    assert "nothing listens there" in nowhere.err
    assert "secret" not in nowhere.err


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_the_settings_of_the_daemon_s_file_serve_the_commands_too(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "pgherald.env"
    path.write_text(f"# the daemon's\nPGHERALD_DATABASE_URL='{database.daemon_dsn}'\n")
    assert Command({})("status", "--settings-file", path).code == 0
    nowhere = Command({})("status", "--settings-file", tmp_path / "nowhere")
    assert (nowhere.code, nowhere.out) == (78, "")
    assert f"the settings file {tmp_path / 'nowhere'}: No such file or directory" in nowhere.err
    path.write_text("no setting\n")
    broken = Command({})("status", "--settings-file", path)
    assert (broken.code, broken.out) == (78, "")
    assert f"the settings file {path} has lines that are not NAME=value: 1;" in broken.err
