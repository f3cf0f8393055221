"""Two claims, a sweep and a settle of one prompt, in every order in which their transactions can begin and commit."""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from tests.fault import naive_sql
from tests.fault.world import FULL
from tests.support.app import App

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from tests.support.postgres import Database

OPERATIONS: Final = ("claim a", "claim b", "sweep", "settle")


def schedules() -> list[tuple[str, ...]]:
    """Every order of eight moments, `begin` before `commit` of each, and the settle after the commit of its claim."""
    found: set[tuple[str, ...]] = set()
    slots = [operation for operation in OPERATIONS for _ in range(2)]

    def extend(done: tuple[str, ...], left: Counter[str]) -> None:
        if not left:
            found.add(done)
            return
        for operation in left:
            if operation == "settle" and done.count("claim a") < 2:
                continue
            rest = left.copy()
            rest[operation] -= 1
            extend((*done, operation), +rest)

    extend((), Counter(slots))
    return sorted(found)


class Session:
    """A connection in a thread, so that it can be found blocked."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn)
        self.pid = self.connection.info.backend_pid
        self._work: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.busy = False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._answers.put(self.connection.execute(work[0], work[1]).fetchall())
            except psycopg.Error as error:
                self._answers.put(error)

    def begin(self, statement: str, parameters: Any) -> None:
        self._work.put((statement, parameters))
        self.busy = True

    def done(self, seconds: float) -> Any | None:
        """The rows, once they are there; None while it is blocked."""
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
        self.busy = False
        if isinstance(answer, psycopg.Error):
            raise answer
        return answer

    def close(self) -> None:
        self._work.put(None)
        self.thread.join()
        self.connection.close()


CLAIM: Final = "select epoch from herald.claim(%s, 1, '1 second', %s) where decision = 'send'"
SETTLE: Final = (
    "select applied, status from herald.settle(array[%s::uuid], array[%s::bigint], array['sent'], array[null], "
    "array[now()], array[null::timestamptz], array[null::uuid], array['projects/p/messages/1'])"
)


class Stage:
    """One prompt at a time, four sessions."""

    def __init__(self, database: Database, *, resend: bool) -> None:
        self.db = database.connect()
        self.app = App(self.db).create()
        self.scenario = self.app.scenario(
            "milestone", {"counts": [1]}, title_key="t", body_key="b", on_unknown="resend" if resend else "drop"
        )
        self.resend = resend
        self.sessions = {name: Session(database.dsn) for name in OPERATIONS}
        self.blocked = 0

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()

    def play(self, schedule: tuple[str, ...]) -> list[str]:
        """Run one order; what is wrong afterwards. A moment that has to wait for a lock comes when the lock is gone."""
        self.db.execute("truncate herald.prompt, herald.scenario_notification, herald.scenario_prompt_history")
        row = self.db.execute(
            "insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, idempotency_key, due_at) "
            "values (%s, 'milestone', %s, '1', repeat('a', 64), now()) returning prompt_id",
            (self.scenario, self.person()),
        ).fetchone()
        assert row is not None
        prompt: UUID = row[0]
        later = self.db.execute("select now() + interval '1 hour', now() + interval '2 hours'").fetchone()
        assert later is not None
        results: dict[str, Any] = {}
        begun: set[str] = set()
        for operation in schedule:
            session = self.sessions[operation]
            if operation not in begun:
                begun.add(operation)
                if operation == "settle":
                    if not results.get("claim a"):
                        results["settle"] = []  # it got nothing, so it has nothing to say
                        continue
                    session.begin(SETTLE, (prompt, results["claim a"][0][0]))
                elif operation == "sweep":
                    session.begin("select status from herald.sweep('0', %s)", (later[0],))
                elif operation == "claim a":
                    session.begin(CLAIM, ("a", self.db.execute("select now()").fetchone()[0]))  # type: ignore[index]
                else:
                    session.begin(CLAIM, ("b", later[1]))
                answer = self._await(session)
                if answer is not None:
                    results[operation] = answer
            elif not session.busy:
                session.connection.commit()
                self._collect(results)
        for _ in range(4):
            self._collect(results)
            for operation, session in self.sessions.items():
                if not session.busy:
                    session.connection.commit()
                    results.setdefault(operation, [])
        return self._judge(prompt, schedule, results)

    def _await(self, session: Session) -> Any | None:
        """The answer, or None once the server says that it waits for another."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if (answer := session.done(0.01)) is not None:
                return answer
            row = self.db.execute("select cardinality(pg_blocking_pids(%s))", (session.pid,)).fetchone()
            if row is not None and row[0]:
                self.blocked += 1
                return None
        raise AssertionError("neither done nor blocked")

    def _collect(self, results: dict[str, Any]) -> None:
        """What was blocked may be done by now; then it commits at once."""
        for operation, session in self.sessions.items():
            if session.busy and (answer := self._await(session)) is not None:
                results[operation] = answer
                session.connection.commit()

    def person(self) -> Any:
        if not hasattr(self, "_person"):
            self._person = self.app.person()
        return self._person

    def _judge(self, prompt: UUID, schedule: tuple[str, ...], results: dict[str, Any]) -> list[str]:
        claims = [name for name in ("claim a", "claim b") if results.get(name)]
        sent = 1 if results.get("settle") else 0
        if "claim b" in claims:  # it sends too, and says so
            self.db.execute(SETTLE, (prompt, results["claim b"][0][0]))
            sent += 1
        elif "claim a" in claims and not sent:
            self.db.execute(SETTLE, (prompt, results["claim a"][0][0]))
            sent += 1
        row = self.db.execute(
            "select status, epoch, (select count(*) from herald.scenario_notification), "
            "(select count(*) from herald.scenario_prompt_history where delivery_status = 'unknown') from herald.prompt"
        ).fetchone()
        assert row is not None
        status, epoch, notes, doubts = row
        wrong = []
        if len(claims) > 1 + (doubts if self.resend else 0):
            wrong.append(f"claimed twice: {results}")
        if epoch != len(claims):
            wrong.append(f"{len(claims)} claims, epoch {epoch}")
        if sent and (status, notes) != ("sent", 1):
            wrong.append(f"accepted, and {status} with {notes} notifications")
        if not claims:
            wrong.append("nobody could claim it")
        return [f"{' '.join(schedule)}: {each}" for each in wrong]


def chosen() -> list[tuple[str, ...]]:
    return schedules() if FULL else some()


def some() -> list[tuple[str, ...]]:
    return random.Random(5).sample(schedules(), 60)


@pytest.fixture(params=[False, True], ids=["drop", "resend"])
def stage(database: Database, request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = Stage(database, resend=request.param)
    yield made
    made.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_every_interleaving_of_two_claims_a_sweep_and_a_settle_ends_well(stage: Stage) -> None:
    wrong = [each for schedule in chosen() for each in stage.play(schedule)]
    assert not wrong, "\n".join(wrong[:10])
    assert stage.blocked > 0, "no order in which one had to wait for another"


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_control_a_sweep_that_reclaims_hands_a_prompt_out_twice(database: Database) -> None:
    made = Stage(database, resend=False)
    naive_sql.spoil(made.db, "lease and reclaim")
    wrong = [each for schedule in some() for each in made.play(schedule)]
    made.close()
    assert any("claimed twice" in each for each in wrong)


def test_all_interleavings_are_there() -> None:
    every = schedules()
    assert len(every) == len(set(every))
    assert all(
        schedule.index("settle") > [n for n, each in enumerate(schedule) if each == "claim a"][1] for schedule in every
    )
    # eight moments in which each pair is in order, settle's after both of the first claim's
    assert len(every) == sum(
        1
        for order in set(itertools.permutations(["a", "a", "s", "s", "b", "b", "w", "w"]))
        if order.index("s") > len(order) - 1 - order[::-1].index("a")
    )
