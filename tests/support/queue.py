"""Prompts written as a DBA would, what herald.open_prompt makes of them, and the daemon's claims and settlements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from uuid import UUID

    import psycopg

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
