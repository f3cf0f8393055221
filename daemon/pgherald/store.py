"""The database as the daemon sees it: one method for each function of schema `herald` that it calls.

`Store` works over a pool whose transactions are short and never open during HTTP, so it may go through a pooler; what
belongs to a session is in `pgherald.sessions`. Nothing here decides or retries: psycopg's errors go up to whoever
called.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, LiteralString, NamedTuple
from uuid import UUID

import orjson
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool

from pgherald.errors import ConfigError
from pgherald.model import (
    Device,
    DeviceId,
    NotificationId,
    Platform,
    Presentation,
    Prompt,
    PromptId,
    ScenarioId,
    Token,
    TokenKind,
    UserId,
)
from pgherald.sessions import KEEPALIVES, STORE_ERRORS, is_pooled, set_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from datetime import timedelta

    from pgherald.model import Revoked

CLAIM_PATIENCE: Final = 15.0
"""Seconds that a claim may take, together with the evaluation of touched people before it. It is meant to take a tenth
of a second; by default a claim is not good for longer than this anyway."""

ANSWER_PATIENCE: Final = 60.0
"""Seconds that anything else may take but a scheduled run and a deletion."""

RUN_PATIENCE: Final = 3600.0
"""Seconds that these may take, where much has to be caught up or deleted."""

CANCEL_PATIENCE: Final = 5.0
"""Seconds that the server has to take a request to cancel, and as many again to say that it has cancelled. After that
the connection is given up: TCP finds nothing wrong with it where a pooler has lost its server."""


class SchemaBroke(ConfigError):
    """A migration that this program does not know, and that says it breaks such programs, is in the database."""

    def __init__(self) -> None:
        super().__init__(
            "the schema in the database was migrated to a version that this program does not know and that breaks it: "
            "upgrade pgherald"
        )


class CalledOff(TimeoutError):
    """A statement took too long and was cancelled: nothing was done."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A prompt that a claim did not hand out: expired, skipped by a gate, or deferred."""

    prompt_id: PromptId
    scenario_type: str
    decision: str
    gate: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim handed out, what it decided on the way, and the scenarios whose evaluation before it failed."""

    prompts: tuple[Prompt, ...]
    decided: tuple[Decided, ...]
    broken: tuple[ScenarioId, ...] = ()


class Settlement(NamedTuple):
    """One outcome to write; `outcome` is sent, failed, skipped, unknown, retry or release (see herald.settle)."""

    prompt_id: PromptId
    epoch: int
    outcome: str
    at: datetime
    error: str | None = None
    retry_at: datetime | None = None
    device_id: DeviceId | None = None
    message_name: str | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """What writing an outcome came to: not applied when the claim was settled before; `status` None: no such prompt."""

    applied: bool
    status: str | None


PLAIN: Final = Settled(applied=True, status="sent")
"""What nearly every outcome comes to."""


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one scenario in a scheduled run."""

    scenario_id: ScenarioId
    prompts: int
    held: bool  # by max_prompts_per_run, until a person looks
    failed: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is to be done now, when the next prompt is due, and the oldest transaction that is still running."""

    touched: bool
    ready: bool
    next_not_before: datetime | None
    oldest_running: int
    now: datetime


@dataclass(frozen=True, slots=True)
class State:
    """What the daemon measures between its claims; `runs` are the evaluations since the last time."""

    schema_version: int
    prompts: Mapping[str, int]
    oldest_ready_seconds: float
    paused: bool
    held: int
    last_evaluation_at: datetime | None
    seen: str
    runs: Sequence[Mapping[str, Any]]
    scenario_types: Sequence[str]
    notify_queue_usage: float
    now: datetime


# By value: to call an enumeration takes ten times as long.
_PRESENTATIONS: Final = {str(each): each for each in Presentation}
_PLATFORMS: Final = {str(each): each for each in Platform}
_KINDS: Final = {str(each): each for each in TokenKind}

_CLAIM_COLUMNS: Final = (
    "prompt_id, decision, gate, epoch, notification_id, scenario_id, scenario_type, user_id, activity_ref, "
    "presentation, title_key, body_key, priority, collapse_key, attempt, due_at, expires_at, claimed_at, all_devices, "
    "devices"
)

_CLAIMED_AT: Final = _CLAIM_COLUMNS.split(", ").index("claimed_at")

# The version is read in the claim's own snapshot: after a breaking migration has committed, nothing is claimed. Touched
# people are evaluated first, so that the prompts which that makes are claimed with it, in one statement and one commit.
_HELD: Final = "error like 'held:%%'"
_CLAIM: Final[LiteralString] = (
    "with run as materialized (select scenario_id, error from herald.evaluate_touched(%s)), failed as materialized ("
    f"select array_agg(scenario_id) filter (where not {_HELD}) as scenarios, count(*) as runs from run) "
    f"select {_CLAIM_COLUMNS}, f.scenarios, now(), v.breaking "
    "from failed as f cross join herald.schema_version(%s) as v left join lateral "
    "herald.claim(%s, case when v.breaking or f.runs < 0 then 0 else %s end, %s, clock_timestamp()) as c on true"
)
_CLAIM_PROMPTS: Final[LiteralString] = f"select {_CLAIM_COLUMNS} from herald.claim_prompts(%s, %s, %s)"
# What came to `PLAIN`, as nearly every outcome does, is left out of the answer.
_SETTLE: Final = (
    "select prompt_id, applied, status from herald.settle(%s::uuid[], %s::bigint[], %s::text[], %s::text[], "
    "%s::timestamptz[], %s::timestamptz[], %s::uuid[], %s::text[]) where not applied or status is distinct from 'sent'"
)
_REVOKE: Final = "select device_id, reason from herald.revoke_devices(%s::uuid[], %s::timestamptz[], %s::text[])"


class Store:
    """The functions of schema `herald`, over a small pool. Use as an async context manager."""

    def __init__(self, conninfo: str, *, program: int = 2**31 - 1, size: int = 5) -> None:
        """`program`: the schema version that the caller was made for; a newer one that breaks it lets it claim nothing.
        `size`: two claims, a settlement and the scheduled run may take long at once; the state is asked beside them.

        A pooler such as pgbouncer may stand in between: then nothing is prepared in the session.
        """
        self._program = program

        async def configure(connection: psycopg.AsyncConnection[Any]) -> None:
            set_json_loads(orjson.loads, connection)
            async with asyncio.timeout(ANSWER_PATIENCE):  # the pool itself would wait for ever
                if await is_pooled(connection):
                    connection.prepare_threshold = None
                else:
                    await set_up(connection)

        self._pool = AsyncConnectionPool(
            make_conninfo(conninfo, application_name="pgherald", client_encoding="UTF8", **KEEPALIVES),
            min_size=1,
            max_size=size,
            open=False,
            configure=configure,
            timeout=5.0,
            max_idle=300.0,
            reconnect_timeout=30.0,
            name="pgherald",
            kwargs={"autocommit": True, "prepare_threshold": 2},
        )

    async def __aenter__(self) -> Store:
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close(timeout=5.0)

    @asynccontextmanager
    async def _asked(self, patience: float | None = None) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection for a statement that may take so many seconds (None: ANSWER_PATIENCE). One that takes longer is
        cancelled, which raises CalledOff; where the server says nothing more at all, TimeoutError."""
        seconds = ANSWER_PATIENCE if patience is None else patience
        async with (
            self._pool.connection() as connection,
            # asyncio's own: anyio's would also cancel what psycopg does to call the statement off.
            asyncio.timeout(seconds + 2 * CANCEL_PATIENCE),
            _called_off_after(seconds, connection),
        ):
            yield connection

    async def claim(self, owner: str, limit: int, lease: timedelta, *, touched: int = 0) -> Claimed:
        """Evaluate up to `touched` touched rows' people, then claim up to `limit` ready prompts; committed when this
        returns. Raises SchemaBroke, and CalledOff: then nothing was done."""
        return await self._claim(_CLAIM, (touched, self._program, owner, limit, lease))

    async def claim_prompts(self, owner: str, prompts: Sequence[PromptId], lease: timedelta) -> Claimed:
        """Claim these prompts, as far as they are ready."""
        return await self._claim(_CLAIM_PROMPTS, (owner, list(prompts), lease))

    async def _claim(self, statement: LiteralString, parameters: tuple[Any, ...]) -> Claimed:
        before = time.monotonic()
        async with self._asked(CLAIM_PATIENCE) as connection:
            cursor = await connection.execute(statement, parameters, binary=True)
            rows = await cursor.fetchall()
        broken: Sequence[ScenarioId] = ()
        if statement is _CLAIM:
            if rows[0][-1]:
                raise SchemaBroke
            broken = rows[0][-3] or ()
            rows = [row for row in rows if row[0] is not None]
            if rows:  # the claim itself began after the evaluation
                before += (rows[0][_CLAIMED_AT] - rows[0][-2]).total_seconds()
        return Claimed(
            tuple(_prompt(row, before) for row in rows if row[1] == "send"),
            tuple(Decided(row[0], row[6], row[1], row[2]) for row in rows if row[1] != "send"),
            tuple(broken),
        )

    async def is_broken(self) -> bool:
        """Whether the schema has a migration that breaks this program, as far as the database can be asked."""
        try:
            async with self._asked() as connection:
                cursor = await connection.execute("select breaking from herald.schema_version(%s)", (self._program,))
                row = await cursor.fetchone()
        except (*STORE_ERRORS, TimeoutError):
            return False
        return row is not None and bool(row[0])

    async def settle(
        self, settlements: Sequence[Settlement], revoked: Sequence[Revoked] = ()
    ) -> tuple[Mapping[PromptId, Settled], Mapping[DeviceId, str]]:
        """Write outcomes and revoke devices in one transaction. Says what each came to, but for what was sent and is so
        now, and which devices it was that this call revoked, with the reason."""
        parameters = (
            _array([s.prompt_id.hex for s in settlements]),
            _array([str(s.epoch) for s in settlements]),
            _array([s.outcome for s in settlements]),
            _array([_quoted(s.error) for s in settlements]),
            _array([f'"{s.at}"' for s in settlements]),
            _array(["null" if s.retry_at is None else f'"{s.retry_at}"' for s in settlements]),
            _array(["null" if s.device_id is None else s.device_id.hex for s in settlements]),
            _array([_quoted(s.message_name) for s in settlements]),
        )
        gone: list[tuple[DeviceId, str]] = []
        async with self._asked() as connection, AsyncExitStack() as stack:
            if revoked:
                await stack.enter_async_context(connection.transaction())
                cursor = await connection.execute(
                    _REVOKE,
                    (
                        [each.device.device_id for each in revoked],
                        [each.device.last_seen_at for each in revoked],
                        [each.error_code for each in revoked],
                    ),
                )
                gone = await cursor.fetchall()
            cursor = await connection.execute(_SETTLE, parameters)
            rows = await cursor.fetchall()
        return {row[0]: Settled(row[1], row[2]) for row in rows}, dict(gone)

    async def evaluate(self) -> tuple[datetime | None, list[Run]]:
        """The scheduled run of all scenarios, and up to when it was; None where there is none to run."""
        async with self._asked(RUN_PATIENCE) as connection:
            cursor = await connection.execute(
                f"select now(), scenario_id, prompts, coalesce({_HELD}, false), coalesce(not {_HELD}, false) "
                "from herald.evaluate()"
            )
            rows = await cursor.fetchall()
        return (rows[0][0] if rows else None), [Run(*row[1:]) for row in rows]

    async def evaluate_person(self, user_id: UserId, scenario_type: str) -> list[PromptId]:
        """Evaluate the scenarios of one type for one person; the prompts that may be claimed now."""
        async with self._asked() as connection:
            cursor = await connection.execute(
                "select unnest(prompt_ids) from herald.evaluate_person(%s, %s)", (user_id, scenario_type)
            )
            return [row[0] for row in await cursor.fetchall()]

    async def sweep(self, grace: timedelta) -> list[tuple[PromptId, str, str]]:
        """Turn claims whose owner is gone to unknown (or ready): prompt, scenario type, status."""
        async with self._asked() as connection:
            cursor = await connection.execute("select prompt_id, scenario_type, status from herald.sweep(%s)", (grace,))
            return await cursor.fetchall()

    async def waiting(self) -> Waiting:
        """Whether there is work, by a few index probes."""
        async with self._asked() as connection:
            cursor = await connection.execute(
                "select touched, ready, least(next_not_before, now() + interval '1 day'), "
                "oldest_running::text::bigint, now() from herald.work_waiting()"
            )
            row = await cursor.fetchone()
        assert row is not None
        return Waiting(*row)

    async def state(self, seen: str | None) -> State:
        """One row of measurements; `runs`: those that the state which gave `seen` did not see (None: no runs)."""
        async with self._asked() as connection:
            cursor = await connection.execute(
                "select schema_version, prompts, oldest_ready_seconds, paused, held, last_evaluation_at, seen, "
                "runs, scenario_types, notify_queue_usage, now from herald.daemon_state(%s)",
                (seen,),
            )
            row = await cursor.fetchone()
        assert row is not None
        return State(*row)

    async def maintain(self) -> bool:
        """Delete one batch of what is past its retention; True while there is more."""
        async with self._asked(RUN_PATIENCE) as connection:
            cursor = await connection.execute("select herald.maintain_batch(now(), 10000)")
            row = await cursor.fetchone()
        return row is not None and bool(row[0])

    async def invariants(self) -> dict[str, int]:
        """Rows that must not be, by invariant; all zero is good."""
        async with self._asked() as connection:
            cursor = await connection.execute("select invariant, violations from herald.invariants()")
            return dict(await cursor.fetchall())

    async def has_cron(self) -> bool:
        """Whether pg_cron lives in this database; whether it works shows in the runs."""
        async with self._asked() as connection:
            cursor = await connection.execute("select from pg_catalog.pg_extension where extname = 'pg_cron'")
            return await cursor.fetchone() is not None


@asynccontextmanager
async def _called_off_after(seconds: float, connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """Have the server cancel the statement in the block if it takes so long. Its answer is awaited even then: what it
    had committed by that time, as when it only waits for a standby, is not lost."""
    cancelling: list[asyncio.Task[None]] = []
    timer = asyncio.get_running_loop().call_later(
        seconds, lambda: cancelling.append(asyncio.create_task(connection.cancel_safe(timeout=CANCEL_PATIENCE)))
    )
    try:
        yield
    except psycopg.errors.QueryCanceled as error:  # or by the login's statement_timeout, or an administrator
        raise CalledOff from error
    finally:
        timer.cancel()
        for each in cancelling:
            with suppress(psycopg.Error):
                await each


def _array(elements: Iterable[str]) -> str:
    """The text of an array. psycopg's own way, with an adapter for each element, took as long as all else of a
    settlement."""
    return f"{{{','.join(elements)}}}"


def _quoted(text: str | None) -> str:
    """An element of an array that may hold anything but a zero byte, which psycopg refuses."""
    if text is None:
        return "null"
    return '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'


def _prompt(row: tuple[Any, ...], claimed_mono: float) -> Prompt:
    return Prompt(
        prompt_id=PromptId(row[0]),
        epoch=row[3],
        notification_id=NotificationId(row[4]),
        scenario_id=ScenarioId(row[5]),
        scenario_type=row[6],
        user_id=UserId(row[7]),
        activity_ref=row[8],
        presentation=_PRESENTATIONS[row[9]],
        title_key=row[10],
        body_key=row[11],
        priority=row[12],
        collapse_key=row[13],
        attempt=row[14],
        due_at=row[15],
        expires_at=row[16],
        claimed_at=row[17],
        all_devices=row[18],
        devices=tuple(_device(each) for each in row[19]),
        claimed_mono=claimed_mono,
    )


def _device(row: Mapping[str, Any]) -> Device:
    return Device(
        device_id=DeviceId(UUID(row["device_id"])),
        platform=_PLATFORMS[row["platform"]],
        kind=_KINDS[row["kind"]],
        token=Token(row["token"]),
        last_seen_at=datetime.fromisoformat(row["last_seen_at"]),
    )
