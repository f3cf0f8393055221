"""The scenario type that sql/README.md walks through, run as it is printed there."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.app import App

if TYPE_CHECKING:
    from tests.support.postgres import Database

SQL = Path(__file__).parents[2] / "sql"
README = SQL / "README.md"
DAY = timedelta(days=1)


def example(name: str = "worked-example") -> str:
    found = re.search(rf"```sql {name}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_a_type_of_ones_own_has_all_that_the_built_in_ones_have(database: Database) -> None:
    database.connect("migrator").execute(example())
    app = App(database.connect()).create()
    db = app.db
    now = datetime.now(UTC)
    person, answered = app.people(2)
    scenario = app.scenario("unanswered_request", {"days": 2}, evaluated_through=now - DAY, cooldown="0")
    with pytest.raises(psycopg.errors.CheckViolation, match='parameter "days" must be at least 1'):
        app.scenario("unanswered_request", {"days": 0})
    for user, at in ((person, None), (answered, now)):
        db.execute(
            "insert into app.request (user_id, asked_at, answered_at) values (%s, %s, %s)", (user, now - 2 * DAY, at)
        )
    assert db.execute("select herald.describe(%s), herald.describe(%s, 'nb')", (scenario, scenario)).fetchone() == (
        "Send 2 days after a request that nobody answered; at most once a day (UTC)",
        "Send 2 dager etter et ubesvart spørsmål; høyst én gang om dagen (UTC)",
    )
    preview = "select user_id, decision from herald.preview(%s::uuid, %s, '1 day')"
    assert db.execute(preview, (scenario, now)).fetchall() == [(person, "send")]
    checks: dict[str, bool] = dict(
        db.execute(
            "select check_name, passed from herald.explain(%s, 'unanswered_request', %s)", (person, now)
        ).fetchall()
    )
    assert checks["due"]
    assert checks["decision"]
    backtest = "select user_id, sent from herald.backtest(%s, %s, %s) where kind = 'person'"
    assert db.execute(backtest, (scenario, now - 5 * DAY, now)).fetchall() == [(person, 1)]
    # The table is watched: the change itself is looked at, and by the schedule too.
    assert [run.prompts for run in app.evaluate_touched(now)] == [1]
    assert [run.suppressed for run in app.evaluate(now)] == [{"duplicate": 1}]
    assert [p.user_id for p in app.prompts()] == [person]
    types = db.execute("select scenario_types from herald.daemon_state()").fetchone()
    assert types is not None
    assert "unanswered_request" in types[0]


def test_the_example_is_some_twenty_lines() -> None:
    assert len(example().splitlines()) <= 24


def test_the_explain_that_is_printed_shows_the_plan_of_the_query_and_not_the_call_of_a_function(
    database: Database,
) -> None:
    app = App(database.connect()).create()
    app.scenario("inactivity", {"days": 30}, name="quiet mentors")
    statement, gexec, _ = example("explain").partition("\\gexec")
    rows = app.db.execute(statement.encode()).fetchall()
    plan = app.db.execute(rows[0][0].encode()).fetchall() if gexec else rows
    text = "\n".join(line for (line,) in plan)
    assert "Function Scan on due_inactivity" not in text
    assert "on activity" in text


def test_the_table_of_files_names_every_file() -> None:
    text = README.read_text()
    for file in sorted((SQL / "functions").glob("*.sql")):
        assert f"`functions/{file.name}`" in text
    for name in re.findall(r"`(functions/\w+\.sql)`", text):
        assert (SQL / name).exists(), name


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "Birthday"}, psycopg.errors.InvalidParameterValue, "cannot be called"),
        ({"description": {"nb": "Send"}}, psycopg.errors.InvalidParameterValue, "no sentence in English"),
        (
            {"description": {"en": "Send", "nb": None}},
            psycopg.errors.InvalidParameterValue,
            'sentence "nb" .* is not a text',
        ),
        ({"description": {"en": ""}}, psycopg.errors.InvalidParameterValue, 'sentence "en" .* is not a text'),
        ({"description": {"en": "Send {dayz}"}}, psycopg.errors.InvalidParameterValue, 'unknown parameter "dayz"'),
        ({"description": None}, psycopg.errors.InvalidParameterValue, "needs an evaluator, a description"),
        ({"description": {"en": "Send {days"}}, psycopg.errors.InvalidParameterValue, 'sentence "en" .* is not closed'),
        ({"description": {"en": "[days:{days}|now"}}, psycopg.errors.InvalidParameterValue, "is not closed"),
        (
            {"schema": {"type": "object", "properties": {"days": {"type": "int"}}}},
            psycopg.errors.InvalidParameterValue,
            'parameter "days" of scenario type "birthday" has the unknown type int',
        ),
        (
            {"schema": {"properties": {"days": {"type": "array", "items": {"type": ["integer", "null"]}}}}},
            psycopg.errors.InvalidParameterValue,
            'parameter "days" .* has the unknown type',
        ),
        (
            {"schema": {"properties": {"days": {"type": "integer"}}, "required": "days"}},
            psycopg.errors.InvalidParameterValue,
            'the params_schema of scenario type "birthday" makes no sense',
        ),
        (
            {"schema": {"properties": {"days": {"type": "string", "pattern": "("}}, "examples": [{"days": "x"}]}},
            psycopg.errors.InvalidParameterValue,
            'the params_schema of scenario type "birthday" makes no sense',
        ),
        ({"evaluator": "pg_catalog.now"}, psycopg.errors.InvalidFunctionDefinition, "evaluator now has the wrong form"),
        ({"evaluator": "app.private"}, psycopg.errors.InsufficientPrivilege, "herald_owner may not call app.private"),
        ({"evaluator": "app.volatile"}, psycopg.errors.InvalidFunctionDefinition, "wrong form"),
    ],
)
def test_a_type_that_cannot_work_is_refused_when_it_is_registered(
    database: Database, change: dict[str, object], error: type[psycopg.Error], message: str
) -> None:
    db = database.connect("migrator")
    for name, volatility in (("good", "stable"), ("private", "stable"), ("volatile", "volatile")):
        db.execute(
            f"create function app.{name}(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null) "
            f"returns setof herald.candidate language sql {volatility} as "
            "'select null::uuid, null::text, null::timestamptz where false'"
        )
    db.execute("revoke execute on function app.private from public")
    values = {
        "name": "birthday",
        "evaluator": "app.good",
        "description": {"en": "Send {days}"},
        "schema": {"type": "object", "properties": {"days": {"type": "integer"}}},
        **change,
    }
    db.execute("set role herald_owner")
    with pytest.raises(error, match=message):
        db.execute(
            "select herald.register_scenario_type(%s, %s::regproc, %s, %s)",
            (
                values["name"],
                values["evaluator"],
                Jsonb(values["description"]) if values["description"] is not None else None,
                Jsonb(values["schema"]),
            ),
        )


def test_only_the_owner_registers_types(database: Database) -> None:
    for role in ("authenticated", "service_role", "herald_daemon", "herald_reader"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.connect(role).execute("select herald.register_scenario_type('x', null, null, null)")
