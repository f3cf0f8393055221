"""What a run reads: look-ups through indexes, as many as became due, however large the tables are.

auto_explain hands over the plan of every statement inside the functions, as it ran.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from tests.support.app import CHAPTER, App

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from tests.support.postgres import Database, Server

DAY = timedelta(days=1)
PEOPLE = 5_000
LARGE = "activity|peer_mentor|certification|device_token|scenario_notification|prompt"
END = datetime(2026, 6, 1, 12, tzinfo=UTC)

APP_ROWS = """
select herald.unwatch(t) from unnest(array['app.peer_mentor', 'app.activity', 'app.certification']::regclass[]) as t;
insert into app.peer_mentor (user_id, chapter_id, registered_at)
select ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, '{chapter}',
  timestamptz '{end}' - random() * interval '730 days'
from generate_series(1, {people}) as n;
insert into app.certification (user_id, kind, expires_at)
select m.user_id, 'first_aid', timestamptz '{end}' + (random() - 0.2) * interval '730 days' from app.peer_mentor as m;
insert into app.activity (user_id, activity_type, occurred_at)
select ('00000000-0000-4000-8000-' || lpad(to_hex(1 + n % {people}), 12, '0'))::uuid, 'contact',
  timestamptz '{end}' - random() * interval '730 days'
from generate_series(1, 40 * {people}) as n;
"""
HERALD_ROWS = """
insert into herald.device_token (user_id, token, platform)
select m.user_id, 'token-' || m.user_id, 'android' from app.peer_mentor as m;
insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, due_at, idempotency_key, status,
  not_before)
select s.scenario_id, s.scenario_type, m.user_id, 'old', timestamptz '{end}' - interval '100 days',
  encode(sha256((m.user_id::text || s.scenario_type)::bytea), 'hex'), 'sent', timestamptz '{end}'
from app.peer_mentor as m, herald.scenario as s;
insert into herald.scenario_notification (user_id, scenario_type, dispatched_at, idempotency_key, cooldown_window_start)
select p.user_id, p.scenario_type, p.due_at, p.idempotency_key, p.due_at
from herald.prompt as p
where p.activity_ref = 'old';
"""
SCENARIOS: dict[str, dict[str, object]] = {
    "inactivity": {"days": 30, "repeat_days": 30, "max_repeats": 2},
    "milestone": {"counts": [1, 10, 20]},
    "expiry": {"days_before": [30, 7, 1]},
    "follow_up": {"activity_type": "contact", "after_days": 3, "first_only": True},
}


class Plans:
    """The plans of all statements that a connection ran, nested ones too."""

    def __init__(self, db: psycopg.Connection) -> None:
        self.texts: list[str] = []
        db.execute("load 'auto_explain'")
        for name, value in {
            "log_min_duration": "0",
            "log_nested_statements": "on",
            "log_analyze": "on",
            "log_timing": "off",
        }.items():
            db.execute(f"set auto_explain.{name} = {value}")
        db.execute("set client_min_messages = log")
        db.add_notice_handler(lambda diag: self.texts.append(diag.message_primary or ""))

    def sequential(self) -> set[str]:
        """The large tables that were read from end to end, by a scan of the table or of a whole index."""
        found = set()
        for text in self.texts:
            found |= set(re.findall(rf"Seq Scan on ({LARGE})\b", text))
            for scan in re.finditer(
                rf"Scan (?:using \w+ )?on ({LARGE})\b.*\(actual (?:\S+ )?rows=([\d.]+) loops", text
            ):
                # An index read for its whole length gives rows by the thousand at once.
                if float(scan[2]) > PEOPLE / 2:
                    found.add(scan[1])
        return found


def load(app: App, rows: str) -> None:
    app.db.execute("set session_replication_role = replica")  # no look-up of a foreign key for each row
    app.db.execute("select setseed(0.5)")
    for statement in rows.format(chapter=CHAPTER, end=END, people=PEOPLE).split(";\n"):
        if statement.strip():
            app.db.execute(statement)
    app.db.execute("reset session_replication_role")


@pytest.fixture(scope="module", params=["pg18", "pg15"])
def sizeable(request: pytest.FixtureRequest) -> Iterator[Database]:
    """200 000 activities and 20 000 prompts; shared, so each test undoes what it wrote."""
    server: Server = request.getfixturevalue(request.param)
    with server.database() as database:
        app = App(database.connect()).create()
        for scenario_type, params in SCENARIOS.items():
            app.scenario(scenario_type, params, evaluated_through=END - 10 * DAY)
        load(app, APP_ROWS + HERALD_ROWS)
        app.db.execute("set default_statistics_target = 1000")  # all rows, and no sample of which a plan could depend
        app.db.execute("vacuum analyze")
        yield database


def person(number: int) -> UUID:
    return UUID(f"00000000-0000-4000-8000-{number:012x}")


def test_no_run_reads_a_large_table_from_end_to_end(sizeable: Database) -> None:
    db = sizeable.connect()
    app = App(db)
    scenarios = [row[0] for row in db.execute("select scenario_id from herald.scenario").fetchall()]
    with db.transaction(force_rollback=True):
        plans = Plans(db)
        minute = app.evaluate(END - 10 * DAY + timedelta(minutes=1))
        hour = app.evaluate(END - 10 * DAY + timedelta(hours=1))
        catch_up = app.evaluate(END - 9 * DAY)
        db.execute(
            "insert into herald.touched_user (user_id) select unnest(%s::uuid[])", ([person(n) for n in range(1, 101)],)
        )
        touched = app.evaluate_touched(END)
        for scenario in scenarios:
            db.execute("select * from herald.preview(%s, %s, '1 day')", (scenario, END)).fetchall()
            db.execute("select * from herald.enqueue(%s, %s, 'by hand')", (scenario, person(7)))
        for scenario_type in SCENARIOS:
            db.execute("select * from herald.explain(%s, %s, %s)", (person(8), scenario_type, END)).fetchall()
            db.execute("select * from herald.evaluate_person(%s, %s, %s)", (person(9), scenario_type, END)).fetchall()
        assert plans.sequential() == set()
        # It was not for nothing.
        assert not any(run.error for run in minute + hour + catch_up + touched)
        assert sum(run.prompts for run in hour + catch_up) > 50
        assert touched
        assert len(plans.texts) > 100


def test_the_same_eyes_see_a_scan_where_there_is_one(sizeable: Database) -> None:
    db = sizeable.connect()
    plans = Plans(db)
    db.execute("select count(*) from herald.source_activity where flags <> '{}'")
    db.execute("set enable_seqscan = off")
    db.execute("select count(distinct user_id) from herald.prompt")
    assert plans.sequential() == {"activity", "prompt"}


@pytest.mark.parametrize("server", ["pg18", "pg15"], indirect=True)
def test_plans_made_while_the_outbox_was_empty_stay_good_when_it_fills(database: Database) -> None:
    db = database.connect()
    app = App(db).create()
    for scenario_type, params in SCENARIOS.items():
        app.scenario(scenario_type, params, evaluated_through=END - 10 * DAY)
    load(app, APP_ROWS)
    db.execute("set default_statistics_target = 1000")
    db.execute("analyze")
    # autovacuum would have such plans made anew, in its time
    for table in ("prompt", "scenario_notification", "device_token"):
        db.execute(f"alter table herald.{table} set (autovacuum_enabled = off)")
    people = [person(n) for n in range(1, 101)]
    hand_over = "insert into herald.touched_user (user_id) select unnest(%s::uuid[])"
    db.execute(hand_over, (people,))
    runs = app.evaluate(END - 10 * DAY + timedelta(hours=1)) + app.evaluate_touched(END)
    assert sum(run.candidates for run in runs) > 5
    load(app, HERALD_ROWS)
    plans = Plans(db)
    db.execute(hand_over, (people,))
    app.evaluate(END - 10 * DAY + timedelta(hours=2))
    app.evaluate_touched(END + timedelta(hours=1))
    assert plans.sequential() == set()
    assert len(plans.texts) > 20


def test_a_day_on_which_everybodys_items_expire_costs_the_run_of_a_few_people_no_look_at_all_of_them(app: App) -> None:
    """The plan of such a run does not know the dates, and a range of unknown dates looks like few rows."""
    app.scenario("expiry", {"days_before": [30, 7, 1]}, evaluated_through=END - 10 * DAY)
    load(app, APP_ROWS)
    app.db.execute("truncate app.certification")
    app.db.execute(
        "insert into app.certification (user_id, kind, expires_at) select m.user_id, k.kind, %s "
        "from app.peer_mentor as m, unnest(array['first_aid', 'driving', 'guide', 'swimming']) as k (kind)",
        (END + 29 * DAY,),
    )
    app.db.execute("analyze")
    app.db.execute(
        "insert into herald.touched_user (user_id) select unnest(%s::uuid[])", ([person(n) for n in range(1, 21)],)
    )
    plans = Plans(app.db)
    (run,) = app.evaluate_touched(END)
    assert run.candidates == 20 * 4
    passed_over = [int(n) for text in plans.texts for n in re.findall(r"Rows Removed by Filter: (\d+)", text)]
    assert max(passed_over, default=0) < PEOPLE


@pytest.mark.parametrize("params", [{"days": 30, "repeat_days": 1}, {"days": 30, "repeat_days": 7, "max_repeats": 3}])
def test_an_odd_date_of_a_person_costs_no_step_for_every_day_since(app: App, params: dict[str, object]) -> None:
    person = app.person()
    app.db.execute(
        "insert into app.activity (user_id, activity_type, occurred_at) "
        "select %(person)s, 'contact', timestamptz '0001-01-01 00:00+00' "
        "union all select %(person)s, 'contact', %(end)s - n * interval '1 day' from generate_series(1, 100) as n",
        {"person": person, "end": END},
    )
    app.db.execute("set statement_timeout = '20s'")
    (plan,) = app.db.execute(
        "explain (analyze, timing off, format json) select * from herald.due_inactivity("
        "herald.scenario_from(%s, now()), tstzrange(%s, %s, '(]'), %s)",
        (app.definition("inactivity", params), END - 3 * DAY, END, [person]),
    ).fetchone() or ([],)
    read = max(node["Actual Rows"] * node["Actual Loops"] for node in _nodes(plan[0]["Plan"]))
    assert 0 < read < 2_000


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _nodes(inner)


def test_when_a_prompt_expires_is_worked_out_in_the_plan_and_no_function_called(db: psycopg.Connection) -> None:
    """A claim asks it twice a prompt."""
    plan = db.execute(
        "explain (verbose, costs off) "
        "select herald.expires_at(p.due_at, p.created_at, s.evaluated_from, s.started_at, s.expires_after) "
        "from herald.prompt as p join herald.scenario as s on s.scenario_id = p.scenario_id"
    ).fetchall()
    text = "\n".join(line for (line,) in plan)
    assert "GREATEST" in text
    assert "expires_at" not in text
