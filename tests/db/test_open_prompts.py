"""herald.open_prompt, the queue: right whoever writes herald.prompt, whose indexes no claim or settlement writes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgherald import schema
from tests.support.organisation import Organisation
from tests.support.postgres import DAEMON_LOGIN, wait_until_blocked

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.postgres import Database

WRONG = """
with meant as (
  select user_id, scenario_type, prompt_id, scenario_id, priority, not_before,
    case status when 'sending' then deadline end
  from herald.prompt where status in ('ready', 'sending')
)
select count(*)::int from (
  (select * from meant except select * from herald.open_prompt)
  union all
  (select * from herald.open_prompt except select * from meant)
) as x
"""
INSERT = """
insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, idempotency_key, status, gate, origin)
values (%s, 'milestone', %s, %s, encode(sha256(gen_random_uuid()::text::bytea), 'hex'), %s, 'a test', 'enqueue')
returning prompt_id
"""


class Queue:
    """Prompts of one scenario, inserted as a DBA would, and what is in the queue."""

    def __init__(self, db: psycopg.Connection) -> None:
        self.db = db
        self.organisation = Organisation(db)
        self.scenario = self.organisation.scenario()

    def insert(self, user: UUID, ref: str = "1", status: str = "ready", db: psycopg.Connection | None = None) -> UUID:
        row = (db or self.db).execute(INSERT, (self.scenario, user, ref, status)).fetchone()
        assert row is not None
        found: UUID = row[0]
        return found

    def fill(self, count: int) -> list[UUID]:
        people = self.organisation.mentors(count)
        with self.db.cursor() as cursor:
            cursor.execute(
                "insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, idempotency_key) "
                "select %s, 'milestone', u, '1', encode(sha256(u::text::bytea), 'hex') from unnest(%s::uuid[]) as u",
                (self.scenario, people),
            )
        return people

    def is_right(self) -> bool:
        return self.db.execute(WRONG).fetchone() == (0,)

    def count(self) -> int:
        row = self.db.execute("select count(*)::int from herald.open_prompt").fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def queue(db: psycopg.Connection) -> Queue:
    return Queue(db)


def claim(db: psycopg.Connection, limit: int = 500) -> list[tuple[UUID, int]]:
    return db.execute(
        "select prompt_id, epoch from herald.claim('a test', %s, '1 minute') where decision = 'send'", (limit,)
    ).fetchall()


def settle(db: psycopg.Connection, claimed: list[tuple[UUID, int]], outcome: str) -> None:
    count = len(claimed)
    db.execute(
        "select herald.settle(%s::uuid[], %s::bigint[], array_fill(%s::text, array[%s]), "
        "array_fill(null::text, array[%s]), array_fill(now(), array[%s]), array_fill(now(), array[%s]), "
        "array_fill(null::uuid, array[%s]), array_fill(null::text, array[%s]))",
        ([row[0] for row in claimed], [row[1] for row in claimed], outcome, *[count] * 6),
    )


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


def spoil(db: psycopg.Connection) -> None:
    db.execute("alter table herald.prompt disable trigger user")
    db.execute("update herald.prompt set status = 'sent', settled_at = now() where activity_ref = '1'")
    db.execute("update herald.prompt set status = 'ready' where activity_ref = '2'")
    db.execute("update herald.prompt set not_before = 'infinity' where activity_ref = '3'")
    db.execute("alter table herald.prompt enable trigger user")


def test_a_queue_that_went_wrong_is_counted_and_mended(queue: Queue, db: psycopg.Connection) -> None:
    for person, ref, status in zip(
        queue.organisation.mentors(4), "1234", ("ready", "failed", "ready", "ready"), strict=True
    ):
        queue.insert(person, ref, status)
    spoil(db)
    assert not queue.is_right()
    found = {name: count for name, count in db.execute("select * from herald.invariants()") if count}
    assert found == {"open_prompt_disagrees": 3}
    db.execute("select herald.mend_open_prompts()")
    assert queue.is_right()
    assert db.execute("select sum(violations) from herald.invariants()").fetchone() == (0,)


def opened_twice(queue: Queue, claimed: tuple[int, ...]) -> list[tuple[UUID, int]]:
    """Two prompts of one person opened while the triggers are off, oldest first, those of `claimed` claimed."""
    (person,) = queue.organisation.mentors(1)
    queue.db.execute("alter table herald.prompt disable trigger user")
    prompts = [queue.insert(person, ref) for ref in "12"]
    for n in claimed:
        queue.db.execute("select herald.claim_prompts('a test', array[%s], '1 minute')", (prompts[n],))
    queue.db.execute("alter table herald.prompt enable trigger user")
    return [(prompt, int(n in claimed)) for n, prompt in enumerate(prompts)]


def states(db: psycopg.Connection, prompts: list[tuple[UUID, int]]) -> list[tuple[str, str | None]]:
    query = "select status, coalesce(gate, error_code) from herald.prompt where prompt_id = %s"
    return [row for prompt, _ in prompts for row in db.execute(query, (prompt,))]


@pytest.mark.parametrize(
    ("claimed", "mended"),
    [
        ((), [("ready", "a test"), ("skipped", "duplicate")]),
        ((1,), [("skipped", "duplicate"), ("sending", None)]),
        ((0, 1), [("sending", None), ("unknown", "OWNER_LOST")]),
    ],
)
@pytest.mark.parametrize("queued", [None, 0, 1])
def test_of_two_open_prompts_of_a_person_and_type_mending_leaves_one_open(
    queue: Queue,
    db: psycopg.Connection,
    claimed: tuple[int, ...],
    mended: list[tuple[str, str | None]],
    queued: int | None,
) -> None:
    prompts = opened_twice(queue, claimed)
    if queued is not None:
        db.execute(
            "insert into herald.open_prompt (user_id, scenario_type, prompt_id, scenario_id, priority, not_before, "
            "deadline) select user_id, scenario_type, prompt_id, scenario_id, priority, not_before, deadline "
            "from herald.prompt where prompt_id = %s",
            prompts[queued][:1],
        )
    db.execute("select herald.mend_open_prompts()")
    assert states(db, prompts) == mended
    assert queue.is_right()
    assert db.execute("select sum(violations) from herald.invariants()").fetchone() == (0,)
    told = db.execute("select delivery_status, error_code from herald.scenario_prompt_history").fetchall()
    assert told == [state for state in mended if state[0] in ("skipped", "unknown")]
    assert db.execute("select herald.mend_open_prompts()").fetchone() == (0,)


@pytest.mark.parametrize(("outcome", "becomes"), [("sent", "sent"), ("retry", "failed"), ("unknown", "unknown")])
def test_what_mending_closed_on_its_way_still_takes_its_owners_answer(
    queue: Queue, db: psycopg.Connection, outcome: str, becomes: str
) -> None:
    prompts = opened_twice(queue, (0, 1))
    db.execute("select herald.mend_open_prompts()")
    settle(db, prompts[1:], outcome)
    assert [status for status, _ in states(db, prompts)] == ["sending", becomes]
    settle(db, prompts[:1], "retry")
    assert [status for status, _ in states(db, prompts)] == ["ready", becomes]
    assert queue.is_right()
    assert db.execute("select sum(violations) from herald.invariants()").fetchone() == (0,)


def test_mending_forgets_no_push_that_was_accepted(queue: Queue, db: psycopg.Connection) -> None:
    db.execute("update herald.scenario set on_unknown = 'resend', cooldown = '0'")
    (person,) = queue.organisation.mentors(1)
    first = queue.insert(person, "1")
    for outcome in ("unknown", "sent"):  # its first copy turns out to be accepted while the second is on its way
        claimed = db.execute(
            "select prompt_id, epoch from herald.claim('a test', 1, '1 minute', now() + interval '1 minute')"
        ).fetchall()
        settle(db, [(first, 1)], outcome)
    assert claimed == [(first, 2)]
    db.execute("alter table herald.prompt disable trigger user")
    queue.db.execute("select herald.claim_prompts('a test', array[%s], '1 minute')", (queue.insert(person, "2"),))
    db.execute("update herald.prompt set created_at = now() + interval '1 second' where prompt_id = %s", (first,))
    db.execute("alter table herald.prompt enable trigger user")
    db.execute("select herald.mend_open_prompts()")
    assert states(db, [(first, 2)]) == [("sent", None)]
    assert queue.is_right()
    assert db.execute("select sum(violations) from herald.invariants()").fetchone() == (0,)


def test_migrate_mends_a_queue_in_which_a_person_has_two_prompts_open(
    queue: Queue, database: Database, db: psycopg.Connection
) -> None:
    db.execute("drop trigger open_prompt_insert on herald.prompt")
    (person,) = queue.organisation.mentors(1)
    for ref in "12":
        queue.insert(person, ref)
    schema.migrate(database.migrator_dsn)
    assert queue.count() == 1
    assert queue.is_right()


def test_migrate_brings_a_dropped_trigger_back_and_mends_the_queue(
    queue: Queue, database: Database, db: psycopg.Connection
) -> None:
    queue.fill(2)
    db.execute("drop trigger open_prompt_update on herald.prompt")
    db.execute("update herald.prompt set priority = 3")
    assert not queue.is_right()
    schema.migrate(database.migrator_dsn)
    assert queue.is_right()
    db.execute("update herald.prompt set priority = 4")
    assert queue.is_right()
