"""Rows of the reference app for tests of the SQL: an organisation with chapters, its people and what they do.

Everything goes through plain inserts, so the triggers of `herald.watch` fire as they do for an app.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import psycopg

ORGANISATION = UUID("00000000-0000-0000-0000-0000000000aa")
CHAPTER = UUID("00000000-0000-0000-0000-0000000000c1")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of an evaluator."""

    user_id: UUID
    activity_ref: str
    due_at: datetime


@dataclass(frozen=True, slots=True)
class App:
    """The reference app in one test's database, seen through one connection."""

    db: psycopg.Connection
    organisation: UUID = ORGANISATION
    chapter: UUID = CHAPTER

    def create(self) -> App:
        """Make the organisation and its first chapter."""
        self.db.execute("insert into app.organisation (id, name) values (%s, 'Kirkens')", (self.organisation,))
        self.db.execute(
            "insert into app.chapter (id, organisation_id, name) values (%s, %s, 'north')",
            (self.chapter, self.organisation),
        )
        return self

    def another_chapter(self, organisation: UUID | None = None) -> UUID:
        """A further chapter, of this organisation or a new one."""
        chapter = uuid4()
        if organisation is not None:
            self.db.execute("insert into app.organisation (id, name) values (%s, 'other')", (organisation,))
        self.db.execute(
            "insert into app.chapter (id, organisation_id, name) values (%s, %s, 'south')",
            (chapter, organisation or self.organisation),
        )
        return chapter

    def people(
        self,
        count: int = 1,
        *,
        registered_at: datetime | None = None,
        chapter: UUID | None = None,
        time_zone: str = "Europe/Oslo",
        status: str = "active",
        device: bool = True,
    ) -> list[UUID]:
        """People, each with a device unless told otherwise."""
        made = [
            row[0]
            for row in self.db.execute(
                "insert into app.peer_mentor (chapter_id, time_zone, status, registered_at) "
                "select %s, %s, %s, coalesce(%s, now() - interval '1000 days') from generate_series(1, %s) "
                "returning user_id",
                (chapter or self.chapter, time_zone, status, registered_at, count),
            ).fetchall()
        ]
        if device:
            self.devices(made)
        return made

    def person(self, **options: Any) -> UUID:
        return self.people(1, **options)[0]

    def devices(self, people: Iterable[UUID], platform: str = "android") -> None:
        self.db.execute(
            "insert into herald.device_token (user_id, token, platform) "
            "select u, 'token-' || gen_random_uuid(), %s from unnest(%s::uuid[]) as u",
            (platform, list(people)),
        )

    def activity(self, person: UUID, at: datetime, activity_type: str = "contact") -> UUID:
        row = self.db.execute(
            "insert into app.activity (user_id, activity_type, occurred_at) values (%s, %s, %s) returning id",
            (person, activity_type, at),
        ).fetchone()
        assert row is not None
        found: UUID = row[0]
        return found

    def certificate(self, person: UUID, expires_at: datetime, kind: str = "first_aid") -> UUID:
        row = self.db.execute(
            "insert into app.certification (user_id, kind, expires_at) values (%s, %s, %s) returning id",
            (person, kind, expires_at),
        ).fetchone()
        assert row is not None
        found: UUID = row[0]
        return found

    def scenario(self, scenario_type: str, params: dict[str, Any], **columns: Any) -> UUID:
        """Insert a scenario for the whole organisation; `columns` are those of herald.scenario."""
        values = {"organisation_id": self.organisation, "name": scenario_type, **columns}
        names = ["scenario_type", "params", *values]
        row = self.db.execute(
            f"insert into herald.scenario ({', '.join(names)}) "
            f"values ({', '.join(['%s'] * len(names))}) returning scenario_id",
            (scenario_type, Jsonb(params), *values.values()),
        ).fetchone()
        assert row is not None
        found: UUID = row[0]
        return found

    def definition(self, scenario_type: str, params: dict[str, Any], **columns: Any) -> Jsonb:
        """The same scenario as a JSON object, for herald.preview(jsonb) and its like."""
        plain = {k: v if isinstance(v, str | int | bool | None) else str(v) for k, v in columns.items()}
        return Jsonb(
            {
                "scenario_type": scenario_type,
                "params": params,
                "organisation_id": str(self.organisation),
                "name": scenario_type,
                **plain,
            }
        )

    def candidates(
        self,
        scenario: Jsonb,
        lower: datetime,
        upper: datetime,
        users: Sequence[UUID] | None = None,
    ) -> list[Candidate]:
        """What the evaluator returns for (lower, upper]."""
        rows = self.db.execute(
            "select c.user_id, c.activity_ref, c.due_at from unnest(herald.candidates("
            "herald.scenario_from(%s, now()), tstzrange(%s, %s, '(]'), %s)) as c",
            (scenario, lower, upper, None if users is None else list(users)),
        ).fetchall()
        return [Candidate(*row) for row in rows]

    def evaluate(self, now: datetime, scenario: UUID | None = None) -> list[Run]:
        """A scheduled run; fails on an error unless it is looked at."""
        return _runs(self.db, "select * from herald.evaluate(%s, %s)", (now, scenario))

    def evaluate_touched(self, now: datetime, limit: int = 1000) -> list[Run]:
        return _runs(self.db, "select * from herald.evaluate_touched(%s, %s)", (limit, now))

    def prompts(self) -> list[Prompt]:
        rows = self.db.execute(
            "select user_id, activity_ref, status, gate, due_at, not_before, scenario_id, prompt_id from herald.prompt "
            "order by created_at, user_id, activity_ref"
        ).fetchall()
        return [Prompt(*row) for row in rows]

    def sent(self, prompt: UUID, at: datetime) -> None:
        """Make a prompt sent at a moment, with its notification, as a settle would."""
        self.db.execute(
            """
            with p as (
              update herald.prompt set status = 'sent', settled_at = %(at)s where prompt_id = %(id)s returning *
            )
            insert into herald.scenario_notification (id, user_id, scenario_type, scenario_id, dispatched_at,
              idempotency_key, cooldown_window_start, prompt_id)
            select notification_id, user_id, scenario_type, scenario_id, %(at)s,
              idempotency_key, cooldown_window_start, prompt_id
            from p
            """,
            {"at": at, "id": prompt},
        )


@dataclass(frozen=True, slots=True)
class Run:
    """A row of herald.evaluate()."""

    scenario_id: UUID
    candidates: int
    prompts: int
    suppressed: dict[str, int]
    duration: timedelta = field(compare=False)
    error: str | None


@dataclass(frozen=True, slots=True)
class Prompt:
    user_id: UUID
    activity_ref: str
    status: str
    gate: str | None
    due_at: datetime
    not_before: datetime
    scenario_id: UUID
    prompt_id: UUID


def _runs(db: psycopg.Connection, query: str, values: tuple[Any, ...]) -> list[Run]:
    return [Run(*row) for row in db.execute(query, values).fetchall()]


def only(runs: list[Run]) -> Run:
    assert len(runs) == 1
    return runs[0]


def now() -> datetime:
    return datetime.now(UTC)
