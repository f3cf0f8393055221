"""herald.open_prompt, the queue: right whoever writes herald.prompt, whose indexes no claim or settlement writes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.postgres import DAEMON_LOGIN, wait_until_blocked
from tests.support.queue import Queue, claim, settle

if TYPE_CHECKING:
    from tests.support.postgres import Database


@pytest.fixture
def queue(db: psycopg.Connection) -> Queue:
    return Queue(db)


@pytest.mark.parametrize("indexed", [None, "status", "not_before"])
def test_claims_and_settlements_write_no_index_of_the_outbox(
    queue: Queue, database: Database, db: psycopg.Connection, indexed: str | None
) -> None:
    if indexed is not None:  # the control
        db.execute(f"create index on herald.prompt ({indexed})")
    # A transaction of anybody on this server can keep old versions from being pruned. Let one, in every run of this
    # test, and give each page room for all the versions of its rows, so that only an index can forbid a HOT update.
    database.connect().execute("begin; select pg_current_xact_id()")
    db.execute("alter table herald.prompt set (fillfactor = 10)")
    queue.fill(2000)
    db.execute("select pg_stat_force_next_flush()")
    db.execute("select pg_stat_reset()")
    db.execute("update herald.prompt set not_before = not_before - interval '1 second'")
    updates = 2000
    # every kind of claim and outcome that does not end failed or unknown
    for outcome in ("retry", "release", "sent"):
        while claimed := claim(db):
            settle(db, claimed, outcome)
            updates += 2 * len(claimed)
            if outcome != "sent" and updates % 4000 == 2000:
                break
    db.execute("select pg_stat_force_next_flush()")
    row = db.execute("select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'prompt'").fetchone()
    assert row is not None
    assert row[0] == updates > 6000
    assert (row[0] == row[1]) == (indexed is None)


@pytest.mark.parametrize(
    "statement",
    [
        "update herald.prompt set not_before = now() + interval '1 day', priority = 7",
        "update herald.prompt set not_before = 'infinity' where activity_ref = '1'",
        (
            "update herald.prompt set status = 'sending', owner = 'me', claimed_at = now(), "
            "deadline = now() + interval '1 hour'"
        ),
        "update herald.prompt set status = 'sent', settled_at = now()",
        "update herald.prompt set status = 'ready' where status in ('failed', 'sending')",
        "update herald.prompt set status = case status when 'ready' then 'expired' else 'ready' end",
        "update herald.prompt set user_id = gen_random_uuid()",
        "update herald.prompt set user_id = gen_random_uuid(), prompt_id = gen_random_uuid(), status = 'ready'",
        "update herald.prompt set scenario_type = scenario_type || '_2', status = 'expired' where status <> 'sent'",
        (
            "insert into herald.scenario select (jsonb_populate_record(s, jsonb_build_object('scenario_id', "
            "'00000000-0000-4000-8000-000000000001'))).* from herald.scenario as s;"
            "update herald.prompt set scenario_id = '00000000-0000-4000-8000-000000000001'"
        ),
        "update herald.prompt set error_code = 'X'",
        (
            "insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, idempotency_key, status) "
            "select scenario_id, scenario_type, gen_random_uuid(), '9', encode(sha256(prompt_id::text::bytea), 'hex'), "
            "s from herald.prompt, unnest(array['ready', 'failed']) as s on conflict do nothing"
        ),
        (
            "insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, idempotency_key) "
            "select scenario_id, scenario_type, user_id, activity_ref, idempotency_key from herald.prompt "
            "on conflict (idempotency_key) do update set not_before = now() + interval '1 hour'"
        ),
        "delete from herald.prompt where activity_ref = '1'",
        "delete from herald.prompt",
        "truncate herald.prompt",
        "truncate herald.prompt cascade",
    ],
)
def test_whoever_writes_prompts_the_queue_has_what_is_open(
    queue: Queue, db: psycopg.Connection, statement: str
) -> None:
    people = queue.organisation.mentors(6)
    statuses = ("ready", "ready", "ready", "sent", "failed", "skipped")
    for n, (person, status) in enumerate(zip(people, statuses, strict=True)):
        queue.insert(person, str(n % 2), status)
    claim(db, 1)
    assert queue.is_right()
    assert queue.count() == 3
    with db.transaction():
        for each in statement.split(";"):
            db.execute(each.encode())
        assert queue.is_right()
    row = db.execute("select count(*)::int from herald.prompt where status in ('ready', 'sending')").fetchone()
    assert row == (queue.count(),)


def test_what_was_rolled_back_is_as_it_was(queue: Queue, db: psycopg.Connection) -> None:
    queue.fill(3)
    with db.transaction(force_rollback=True):
        db.execute("update herald.prompt set status = 'sent', settled_at = now()")
        assert queue.count() == 0
    assert queue.count() == 3
    assert queue.is_right()


def test_a_second_open_prompt_of_a_person_and_type_is_refused(queue: Queue, db: psycopg.Connection) -> None:
    (person,) = queue.organisation.mentors(1)
    queue.insert(person, "1")
    failed = queue.insert(person, "2", "failed")
    with pytest.raises(psycopg.errors.UniqueViolation, match="prompt_open"):
        queue.insert(person, "3")
    with pytest.raises(psycopg.errors.UniqueViolation, match="prompt_open"):
        db.execute("update herald.prompt set status = 'ready' where prompt_id = %s", (failed,))
    claim(db)
    with pytest.raises(psycopg.errors.UniqueViolation, match="prompt_open"):
        queue.insert(person, "3")
    db.execute("update herald.prompt set status = 'sent', settled_at = now() where status = 'sending'")
    queue.insert(person, "3")
    assert queue.is_right()


@pytest.mark.parametrize("commits", [True, False])
def test_of_two_prompts_opened_at_once_one_stays(
    queue: Queue, database: Database, db: psycopg.Connection, commits: bool
) -> None:
    (person,) = queue.organisation.mentors(1)
    first, second = database.connect(), database.connect()
    with ThreadPoolExecutor() as pool:
        with first.transaction(force_rollback=not commits):
            queue.insert(person, "1", db=first)
            waiting = pool.submit(queue.insert, person, "2", db=second)
            wait_until_blocked(db, second.info.backend_pid)
        if commits:
            with pytest.raises(psycopg.errors.UniqueViolation):
                waiting.result()
        else:
            waiting.result()
    assert queue.count() == 1
    assert queue.is_right()


def test_enqueue_says_duplicate_when_another_day_opened_one_meanwhile(
    queue: Queue, database: Database, db: psycopg.Connection
) -> None:
    (person,) = queue.organisation.mentors(1)
    first, second = database.connect(), database.connect()

    def enqueue() -> Any:
        return second.execute("select * from herald.enqueue(%s, %s, '2')", (queue.scenario, person)).fetchone()

    with ThreadPoolExecutor() as pool:
        with first.transaction():
            queue.insert(person, "1", db=first)  # its key is none of today's
            waiting = pool.submit(enqueue)
            wait_until_blocked(db, second.info.backend_pid)
        assert waiting.result() == (None, "duplicate")
    assert queue.is_right()


def test_enqueue_waits_only_a_moment_for_a_run_that_is_not_over_and_says_so(
    queue: Queue, database: Database, db: psycopg.Connection
) -> None:
    """It is called in a transaction of the app."""
    (person,) = queue.organisation.mentors(1)
    enqueue = "select gate from herald.enqueue(%s, %s, '2')"
    run = database.connect()
    db.execute("set lock_timeout = '50ms'")
    with run.transaction(force_rollback=True), db.transaction():
        queue.insert(person, "1", db=run)
        with (
            pytest.raises(psycopg.errors.LockNotAvailable, match="in the hands of another transaction") as told,
            db.transaction(),
        ):
            db.execute(enqueue, (queue.scenario, person))
        assert db.execute("show lock_timeout").fetchone() == ("50ms",)
    assert told.value.diag.message_hint == "call herald.enqueue() again in a moment"
    assert db.execute(enqueue, (queue.scenario, person)).fetchone() == (None,)


@pytest.mark.parametrize(("patience", "waits"), [("0", "5s"), ("10min", "5s"), ("5s", "5s"), ("200ms", "200ms")])
def test_enqueue_waits_5_s_and_no_longer_than_the_app_does_itself(
    queue: Queue, db: psycopg.Connection, patience: str, waits: str
) -> None:
    db.execute(
        """
        create function pg_temp.tell() returns trigger language plpgsql as
          $$ begin raise notice '%', current_setting('lock_timeout'); return new; end $$;
        create trigger tell before insert on herald.prompt for each row execute function pg_temp.tell()
        """
    )
    told: list[str | None] = []
    db.add_notice_handler(lambda notice: told.append(notice.message_primary))
    db.execute("select set_config('lock_timeout', %s, false)", (patience,))
    with db.transaction():
        for person in queue.organisation.mentors(2):
            assert queue.organisation.enqueue(queue.scenario, person)[1] is None
        assert db.execute("show lock_timeout").fetchone() == (patience,)
    assert told == [waits, waits]
    assert db.execute("show lock_timeout").fetchone() == (patience,)


def test_a_run_counts_a_duplicate_when_another_day_opened_one_meanwhile(
    queue: Queue, database: Database, db: psycopg.Connection
) -> None:
    person, other = queue.organisation.mentors(2)
    for each in (person, other):
        db.execute("insert into app.activity (user_id, activity_type) values (%s, 'contact')", (each,))
    first, second = database.connect(), database.connect()

    def evaluate() -> Any:
        return second.execute("select candidates, prompts, suppressed, error from herald.evaluate_touched()").fetchall()

    with ThreadPoolExecutor() as pool:
        with first.transaction():
            queue.insert(person, "by hand", db=first)
            waiting = pool.submit(evaluate)
            wait_until_blocked(db, second.info.backend_pid)
        assert waiting.result() == [(2, 1, {"duplicate": 1}, None)]
    assert queue.is_right()
    assert queue.count() == 2


def test_the_highest_priority_is_claimed_first_and_of_each_who_has_waited_longest(
    queue: Queue, db: psycopg.Connection
) -> None:
    waiting = [("late", 0, 1), ("high", 5, 2), ("early", 0, 3), ("low", -1, 4)]
    for person, (ref, priority, minutes) in zip(queue.organisation.mentors(4), waiting, strict=True):
        db.execute(
            "update herald.prompt set priority = %s, not_before = now() - make_interval(mins => %s) "
            "where prompt_id = %s",
            (priority, minutes, queue.insert(person, ref)),
        )
    claimed = "select activity_ref, decision from herald.claim('a test', 1, '1 minute')"
    assert [db.execute(claimed).fetchall() for _ in range(5)] == [
        *([(ref, "send")] for ref in ("high", "early", "late", "low")),
        [],
    ]


def test_claims_do_not_wait_for_claims(queue: Queue, database: Database) -> None:
    queue.fill(3)
    first, second = database.connect(DAEMON_LOGIN), database.connect(DAEMON_LOGIN)
    second.execute("set lock_timeout = '1ms'")
    with first.transaction():
        assert len(claim(first, 2)) == 2
        assert len(claim(second, 3)) == 1
        assert claim(second, 3) == []
    assert queue.is_right()


READ = """
select sum(pg_stat_get_xact_tuples_returned(c) + pg_stat_get_xact_tuples_fetched(c))::int from unnest(array[
  'herald.prompt', 'herald.open_prompt', 'herald.prompt_pkey', 'herald.prompt_once', 'herald.prompt_open',
  'herald.prompt_ready', 'herald.prompt_sending']::regclass[]) as c
"""


@pytest.mark.parametrize(
    ("statement", "most"),
    [
        ("update herald.prompt set priority = 1 where user_id = any (%s)", 1_500),
        ("delete from herald.prompt where user_id = any (%s)", 1_500),
        ("select * from herald.claim('a test', cardinality(%s::uuid[]) / 10, '1 minute')", 200),
        ("select * from herald.claim('under a cap', cardinality(%s::uuid[]) / 10, '1 minute')", 300),
        ("select count(*) from unnest(%s::uuid[]) as u, herald.pushes_today(u, now(), 'UTC')", 500),
        ("select count(*) from unnest(%s::uuid[]) as u, herald.pushes_planned(u, now(), 'UTC')", 500),
        ("select * from herald.evaluate_touched(1000 + 0 * cardinality(%s::uuid[]))", 500),
    ],
)
def test_what_is_read_follows_the_rows_not_the_time_at_which_it_was_planned(
    queue: Queue, db: psycopg.Connection, statement: str, most: int
) -> None:
    db.execute("vacuum analyze herald.prompt")
    db.execute("vacuum analyze herald.open_prompt")
    db.execute("alter table herald.prompt set (autovacuum_enabled = off)")
    db.execute("alter table herald.open_prompt set (autovacuum_enabled = off)")
    if "pushes" in statement:
        db.execute("set enable_seqscan = off")  # as gates and claims have it, who call these
    if "cap" in statement:
        db.execute("update herald.setting set daily_cap = 9")
    acting = queue.organisation.mentors(9)
    for person in acting[:8]:  # the session's plans are made while all is empty
        db.execute("insert into app.activity (user_id, activity_type) values (%s, 'contact')", (person,))
        db.execute(statement, ([queue.scenario],))
    people = queue.fill(300)
    db.execute("truncate herald.touched_user")
    db.execute("insert into herald.touched_user select unnest(%s::uuid[])", (people[:10],))
    db.execute("insert into app.activity (user_id, activity_type) values (%s, 'contact')", acting[8:])
    with db.transaction():
        db.execute(statement, (people[:100],))
        row = db.execute(READ).fetchone()
    assert row is not None
    assert 0 < row[0] < most
    assert queue.is_right()
