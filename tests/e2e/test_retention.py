"""Retention: what is old goes, in batches, what dedupes stays, and the tables do not grow for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.bench import bloat
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from tests.support.postgres import Database

TABLES = (
    ("herald.prompt", "created_at, settled_at", "90 days"),
    ("herald.scenario_prompt_history", "dispatched_at", "400 days"),
    ("herald.scenario_notification", "dispatched_at", "800 days"),
    ("herald.evaluation_run", "started_at", "30 days"),
    ("herald.device_token", "last_seen_at", "270 days"),
)


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    """Five people with a prompt of each status that an end has, and a run."""
    organisation = Organisation(db)
    scenario = organisation.scenario()
    for outcome in ("sent", "failed", "skipped", "unknown"):
        organisation.enqueue(scenario, organisation.mentor(f"phone-{outcome}"))
        for prompt_id, epoch in db.execute("select prompt_id, epoch from herald.claim('t', 9, '9 s')").fetchall():
            db.execute(
                "select herald.settle(%s, %s, %s, array['why'], array[now()], array[null::timestamptz], "
                "array[null::uuid], array[null])",
                ([prompt_id], [epoch], [outcome]),
            )
    organisation.enqueue(scenario, organisation.mentor("phone-waiting"))
    db.execute("select herald.evaluate()")
    return organisation


def count(db: psycopg.Connection, table: str) -> int:
    row = db.execute(f"select count(*) from {table}").fetchone()
    assert row is not None
    return int(row[0])


def age(db: psycopg.Connection, by: str) -> None:
    """Let everything be so much older."""
    for table, columns, _ in TABLES:
        moved = ", ".join(f"{column} = {column} - interval '{by}'" for column in columns.split(", "))
        db.execute(f"update {table} set {moved}")


@pytest.mark.parametrize(("table", "kept"), [(table, kept) for table, _, kept in TABLES])
def test_each_table_is_kept_as_long_as_its_setting_says(organisation: Organisation, table: str, kept: str) -> None:
    db = organisation.db
    age(db, f"{kept} -2 hours")
    before = count(db, table)
    assert before > 0
    db.execute("call herald.maintain()")
    assert count(db, table) == before
    age(db, "3 hours")
    db.execute("call herald.maintain()")
    # What is open, or whose fate a person has to settle, has no age.
    assert count(db, table) == (2 if table == "herald.prompt" else 0)
    if table == "herald.prompt":
        assert sorted(status for status, _ in organisation.prompts().values()) == ["ready", "unknown"]


def test_a_setting_changes_how_long_things_are_kept(organisation: Organisation) -> None:
    db = organisation.db
    age(db, "35 days")
    db.execute("update herald.setting set run_retention = '60 days', history_retention = '34 days'")
    db.execute("call herald.maintain()")
    assert count(db, "herald.evaluation_run") == 1
    assert count(db, "herald.scenario_prompt_history") == 0


def test_what_keeps_a_second_push_away_stays_as_long_as_it_may_be_needed(organisation: Organisation) -> None:
    db = organisation.db
    db.execute("update herald.scenario set cooldown = '1000 days', expires_after = '2 days'")
    db.execute("update herald.setting set notification_retention = '1 day', prompt_retention = '1 day'")
    age(db, "900 days")
    db.execute("call herald.maintain()")
    assert count(db, "herald.scenario_notification") == 1
    assert "sent" in [status for status, _ in organisation.prompts().values()]


def test_a_long_cooldown_of_one_scenario_keeps_nothing_of_another(organisation: Organisation) -> None:
    db = organisation.db
    organisation.scenario("inactivity", {"days": 30}, cooldown="36500 days", expires_after="36500 days")
    age(db, "1000 days")
    db.execute("call herald.maintain()")
    assert count(db, "herald.scenario_notification") == 0
    assert sorted(status for status, _ in organisation.prompts().values()) == ["ready", "unknown"]


def test_deleting_is_done_in_batches_that_commit(organisation: Organisation) -> None:
    db = organisation.db
    age(db, "1000 days")
    assert db.execute("select herald.maintain_batch(now(), 1)").fetchone() == (True,)
    assert count(db, "herald.scenario_prompt_history") == 3
    db.execute(
        """
        create table public.deleted (transaction xid8);
        create function public.note() returns trigger language plpgsql security definer as
          $$ begin insert into public.deleted values (pg_current_xact_id()); return null; end $$;
        create trigger note after delete on herald.scenario_prompt_history for each row execute function public.note()
        """
    )
    db.execute("call herald.maintain(p_batch => 1)")
    assert count(db, "herald.scenario_prompt_history") == 0
    found = db.execute("select count(*), count(distinct transaction) from public.deleted").fetchone()
    assert found == (3, 3)


@pytest.mark.parametrize("batch", [0, -1, None])
def test_batches_of_nothing_are_refused_and_not_deleted_for_ever(db: psycopg.Connection, batch: int | None) -> None:
    db.execute("set statement_timeout = '5s'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="a batch of at least 1 row") as refused:
        db.execute("call herald.maintain(p_batch => %s::integer)", (batch,))
    assert refused.value.diag.message_hint == "call herald.maintain(p_batch => 10000)"


def test_a_daemon_without_pg_cron_maintains_in_batches_as_its_own_role(
    organisation: Organisation, database: Database
) -> None:
    age(organisation.db, "1000 days")
    daemon = database.connect("herald_daemon_login")
    turns = 0
    while daemon.execute("select herald.maintain_batch(now(), 2)").fetchone() == (True,):
        turns += 1
    assert turns > 1
    assert count(organisation.db, "herald.scenario_notification") == 0


def test_pg_crons_own_record_of_our_jobs_is_kept_short(cron_database: Database) -> None:
    from pgherald import schema

    assert schema.migrate(cron_database.migrator_dsn).cron
    db = cron_database.connect()
    db.execute("select cron.schedule('of somebody else', '0 0 1 1 *', 'select 1')")
    db.execute(
        "insert into cron.job_run_details (jobid, runid, username, status, start_time, end_time) "
        "select j.jobid, 1000000 + j.jobid * 10 + d, j.username, 'succeeded', now() - d * interval '20 days', "
        "now() - d * interval '20 days' from cron.job as j, generate_series(1, 2) as d"
    )
    mine = "select count(*) from cron.job_run_details where runid > 1000000 and end_time < now() - interval '30 days'"
    assert db.execute(mine).fetchone() == (3,)
    cron_database.connect("migrator").execute("call herald.maintain()")  # as the job does
    assert db.execute(mine).fetchone() == (1,)
    kept = db.execute("select count(*) from cron.job_run_details where runid > 1000000").fetchone()
    assert kept == (4,)


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_prompts_leave_no_lasting_bloat(database: Database) -> None:
    """A small measure of what `python -m tests.bench.bloat` does with a million."""
    db = database.connect()
    scenario = bloat.prepare(db, 3000)
    found: list[dict[str, int]] = []
    growing = set(bloat.TABLES)
    # A transaction of somebody else's keeps old rows for a while, and one wave larger: what stays grows with each wave.
    for number in range(1, 9):
        bloat.wave(db, scenario, 3000, number)
        # What autovacuum does when it comes by; its own turn is a minute away.
        for table in bloat.TABLES:
            db.execute(f"vacuum herald.{table}")
        found.append(bloat.sizes(db))
        growing = {table for table in growing if number < 3 or found[-1][table] > found[-2][table]}
        if not growing:
            break
    assert not growing, [(table, [each[table] for each in found]) for table in growing]
