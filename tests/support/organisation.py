"""A small organisation in the reference app, for tests: people with devices, and scenarios to find them due."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from tests.support import canaries

if TYPE_CHECKING:
    import psycopg


@dataclass(slots=True)
class Organisation:
    """One organisation with one chapter; every method writes through `db` as the app or a DBA would."""

    db: psycopg.Connection
    organisation_id: UUID = field(default_factory=uuid4)
    chapter_id: UUID = field(default_factory=uuid4)

    def __post_init__(self) -> None:
        self.db.execute(
            "insert into app.organisation (id, name) values (%s, %s)", (self.organisation_id, canaries.NAME)
        )
        self.db.execute(
            "insert into app.chapter (id, organisation_id, name) values (%s, %s, %s)",
            (self.chapter_id, self.organisation_id, canaries.EMAIL),
        )

    def mentor(self, *tokens: str, platform: str = "android", registered: str = "200 days", **columns: Any) -> UUID:
        """A peer mentor with a device for each token, the last one seen last."""
        user_id = uuid4()
        row = {"user_id": user_id, "chapter_id": self.chapter_id, **columns}
        self.db.execute(
            f"insert into app.peer_mentor ({', '.join(row)}, registered_at) "
            f"values ({', '.join(['%s'] * len(row))}, now() - %s::interval)",
            (*row.values(), registered),
        )
        for place, token in enumerate(tokens):
            self.device(user_id, token, platform, place)
        return user_id

    def mentors(self, count: int) -> list[UUID]:
        """Many peer mentors, each with one Android device whose token is a canary."""
        people = [uuid4() for _ in range(count)]
        self.db.execute(
            "insert into app.peer_mentor (user_id, chapter_id, registered_at) "
            "select unnest(%s::uuid[]), %s, now() - interval '200 days'",
            (people, self.chapter_id),
        )
        self.db.execute(
            "insert into herald.device_token (user_id, token, platform) "
            "select u, %s || u, 'android' from unnest(%s::uuid[]) as u",
            (canaries.DEVICE_TOKEN, people),
        )
        return people

    def device(self, user_id: UUID, token: str, platform: str = "android", place: int = 0) -> UUID:
        """One more device of a person."""
        row = self.db.execute(
            "insert into herald.device_token (user_id, token, platform, last_seen_at) "
            "values (%s, %s, %s, now() - interval '1 hour' + make_interval(mins => %s)) returning id",
            (user_id, canaries.plant(token), platform, place),
        ).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def scenario(self, scenario_type: str = "milestone", params: Any = None, **columns: Any) -> UUID:
        """A scenario of the whole organisation; by default the first activity of a person."""
        row = {
            "scenario_type": scenario_type,
            "organisation_id": self.organisation_id,
            "name": f"a {scenario_type}",
            "params": json.dumps({"counts": [1]} if params is None else params),
            **columns,
        }
        found = self.db.execute(
            f"insert into herald.scenario ({', '.join(row)}) values ({', '.join(['%s'] * len(row))}) "
            "returning scenario_id, title_key",
            tuple(row.values()),
        ).fetchone()
        assert found is not None
        self.db.execute(
            "insert into herald.message_text values (%s, 'en', %s) on conflict do nothing", (found[1], canaries.TEXT)
        )
        return UUID(str(found[0]))

    def endless_scenario(self) -> UUID:
        """A scenario of a type whose evaluator never ends."""
        self.db.execute(
            "create function public.due_never(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] "
            "default null) returns setof herald.candidate language plpgsql stable as "
            "$$ begin perform pg_sleep(3600); end $$"
        )
        self.db.execute(
            """select herald.register_scenario_type('never', 'public.due_never', '{"en": "Send never"}', '{}')"""
        )
        return self.scenario("never", {})

    def activity(self, user_id: UUID, activity_type: str = "contact", ago: str = "0", **columns: Any) -> UUID:
        """Something a person did."""
        row = {"user_id": user_id, "activity_type": activity_type, "flags": [canaries.TOLD], **columns}
        found = self.db.execute(
            f"insert into app.activity ({', '.join(row)}, occurred_at) "
            f"values ({', '.join(['%s'] * len(row))}, now() - %s::interval) returning id",
            (*row.values(), ago),
        ).fetchone()
        assert found is not None
        return UUID(str(found[0]))

    def large_history(self) -> None:
        """20,000 activities of 100 people, one a minute, and statistics of them."""
        self.db.execute(
            "insert into app.activity (user_id, activity_type, occurred_at) "
            "select (%s::uuid[])[1 + n %% 100], 'contact', now() - n * interval '1 minute' "
            "from generate_series(1, 20000) as n",
            (self.mentors(100),),
        )
        self.db.execute("analyze app.activity")

    def enqueue(self, scenario_id: UUID, user_id: UUID, ref: str = "by-hand") -> tuple[UUID | None, str | None]:
        """What herald.enqueue answers: the prompt and the gate."""
        row = self.db.execute(
            "select prompt_id, gate from herald.enqueue(%s, %s, %s)", (scenario_id, user_id, ref)
        ).fetchone()
        assert row is not None
        return row[0], row[1]

    def histories(self) -> list[tuple[UUID, str, str | None, int]]:
        """(person, delivery_status, error_code, attempt), oldest first."""
        return self.db.execute(
            "select peer_mentor_id, delivery_status, error_code, attempt from herald.scenario_prompt_history "
            "order by history_id"
        ).fetchall()

    def notifications(self) -> list[tuple[UUID, str, UUID]]:
        """(person, scenario type, prompt)."""
        return self.db.execute(
            "select user_id, scenario_type, prompt_id from herald.scenario_notification order by dispatched_at"
        ).fetchall()

    def prompts(self) -> dict[UUID, tuple[str, str | None]]:
        """Status and gate of each person's prompt."""
        rows = self.db.execute("select user_id, status, gate from herald.prompt").fetchall()
        return {row[0]: (row[1], row[2]) for row in rows}
