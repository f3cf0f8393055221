"""The database as an operator sees it: one method for each function of schema `herald` that a command calls.

One synchronous connection, autocommit, nothing prepared in the session, so it may go through a pooler. Every error is
turned into one message without a traceback here: what the functions say about a mistake is shown as it is, with its
hint; of any other error the SQLSTATE alone, for its text may hold a value.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgherald import access
from pgherald.errors import ConfigError, HeraldError, UsageError
from pgherald.model import Device, DeviceId, Platform, Token, TokenKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date, datetime, timedelta

    from pgherald.model import Revoked

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario that a person named."""

    scenario_id: UUID
    name: str
    scenario_type: str
    title_key: str
    body_key: str
    presentation: str


@dataclass(frozen=True, slots=True)
class ScenarioStatus:
    """One scenario as `pgherald status` shows it; the counts are of the time asked for."""

    scenario_id: UUID
    name: str
    scenario_type: str
    organisation_id: UUID
    chapter_id: UUID | None
    sentence: str
    mode: str
    canary_percent: int | None
    paused_at: datetime | None
    held_at: datetime | None
    held_prompts: int | None
    evaluated_through: datetime
    last_run_at: datetime | None
    last_scheduled_at: datetime | None
    error_code: str | None
    due: int
    prompts: int
    suppressed: Mapping[str, int]
    waiting: int
    sent: int
    failed: int
    skipped: int
    unknown: int


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """The outbox as a whole. `cron`: pg_cron is in this database; `leader`: a daemon runs the schedule."""

    now: datetime
    schema_version: int
    prompts: Mapping[str, int]
    oldest_ready_seconds: float
    next_not_before: datetime | None
    paused_at: datetime | None
    touched: bool
    last_scheduled_at: datetime | None
    leader: bool
    cron: bool
    notify_queue_usage: float


@dataclass(frozen=True, slots=True)
class Run:
    """One scenario's evaluation."""

    scenario_id: UUID
    candidates: int
    prompts: int
    suppressed: Mapping[str, int]
    duration: timedelta
    error: str | None


@dataclass(frozen=True, slots=True)
class Previewed:
    """A candidate, and what would become of it."""

    user_id: UUID
    activity_ref: str
    due_at: datetime
    decision: str


@dataclass(frozen=True, slots=True)
class Backtested:
    """A day (`kind` is day) or a person (`kind` is person) of a backtest."""

    kind: str
    day: date | None
    user_id: UUID | None
    candidates: int
    sent: int


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `why`."""

    check_name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class FailedPrompt:
    """A prompt that was not sent, for certain."""

    prompt_id: UUID
    scenario_id: UUID
    scenario: str
    scenario_type: str
    user_id: UUID
    activity_ref: str
    due_at: datetime
    error_code: str | None
    attempts: int
    failed_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class UnknownPrompt:
    """A prompt of which nobody knows whether FCM accepted it."""

    prompt_id: UUID
    scenario_id: UUID
    scenario: str
    scenario_type: str
    user_id: UUID
    activity_ref: str
    due_at: datetime
    error_code: str | None
    attempts: int
    claimed_at: datetime
    notification_id: UUID


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a prompt that a command was to change."""

    prompt_id: UUID
    decision: str


@dataclass(frozen=True, slots=True)
class Paused:
    paused_at: datetime
    prompts: int


@dataclass(frozen=True, slots=True)
class Resumed:
    was_paused: bool
    was_held: bool
    prompts: int


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The devices of one platform and kind; `reasons` of the revoked ones."""

    platform: str
    kind: str
    live: int
    people: int
    unseen_30_days: int
    revoked: int
    reasons: Mapping[str, int]
    prunable: int


@dataclass(frozen=True, slots=True)
class _Pruned:
    prune_tokens: int


@dataclass(frozen=True, slots=True)
class _DeviceRow:
    device_id: UUID
    platform: str
    kind: str
    token: str
    last_seen_at: datetime


#: Errors with which the functions of the schema refuse what a person asked for; their texts name ids and settings only.
_REFUSALS: Final = (
    psycopg.errors.NoDataFound,
    psycopg.errors.NoData,
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.CheckViolation,
    psycopg.errors.NotNullViolation,
    psycopg.errors.ForeignKeyViolation,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.InvalidDatetimeFormat,
    psycopg.errors.DatetimeFieldOverflow,
    psycopg.errors.IntervalFieldOverflow,
)

_NOW: Final = sql.SQL("pg_catalog.now()")


class Operations:
    """What a command can ask of the database. Made by `open`."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, conninfo: str) -> Iterator[Operations]:
        """Connect; ConfigError where there is no connection."""
        with access.connect(conninfo, autocommit=True) as connection:
            yield cls(connection)

    @property
    def database(self) -> str:
        """The database's name."""
        return self._connection.info.dbname

    def scenario(self, what: str) -> Scenario:
        """The one scenario that a person means; UsageError if there is none, or more than one."""
        found = self._rows(Scenario, "find_scenario", what)
        if len(found) == 1:
            return found[0]
        if found:
            which = "; ".join(f"{each.scenario_id} ({each.name})" for each in found[:5])
            raise UsageError(f'"{what}" may be any of {len(found)} scenarios: {which}')
        raise UsageError(
            f'there is no scenario "{what}": give its name, its id, or the first four digits or more of it; '
            "`pgherald status` lists them"
        )

    def status(self, locale: str, since: timedelta) -> list[ScenarioStatus]:
        return self._rows(ScenarioStatus, "status", locale, since)

    def outbox(self) -> OutboxStatus:
        return self._row(OutboxStatus, "outbox_status")

    def evaluate(self, now: datetime | None, scenario: UUID | None, *, dry_run: bool) -> list[Run]:
        """Run the evaluation; with `dry_run` all that it wrote is rolled back."""
        with self._telling(), self._connection.transaction(force_rollback=dry_run):
            return self._rows(Run, "evaluate", now or _NOW, scenario)

    def is_interval(self, text: str) -> bool:
        """Whether Postgres takes this for a length of time."""
        with self._telling():
            try:
                self._connection.execute("select %s::pg_catalog.interval is null", (text,))
            except psycopg.DataError:
                return False
        return True

    def preview(self, what: UUID | Mapping[str, Any], now: datetime | None, window: str) -> list[Previewed]:
        """Of a scenario, or of a definition that was not saved."""
        subject = what if isinstance(what, UUID) else Jsonb(what)
        return self._rows(Previewed, "preview", subject, now or _NOW, window)

    def backtest(self, what: UUID | Mapping[str, Any], begin: datetime, end: datetime) -> list[Backtested]:
        """Of a scenario, or of a definition that was not saved."""
        if isinstance(what, UUID):
            return self._rows(Backtested, "backtest", what, begin, end)
        return self._rows(Backtested, "backtest_definition", Jsonb(what), begin, end)

    def why(self, user_id: UUID, scenario_type: str, now: datetime | None) -> list[Check]:
        return self._rows(Check, "explain", user_id, scenario_type, now or _NOW)

    def pause(self, scenario: UUID | None) -> Paused:
        return self._row(Paused, "pause", scenario)

    def resume(self, scenario: UUID | None) -> Resumed:
        return self._row(Resumed, "resume", scenario)

    def failed(self, scenario: UUID | None, error_code: str | None, limit: int | None) -> list[FailedPrompt]:
        return self._rows(FailedPrompt, "failed", scenario, error_code, limit)

    def retry(self, prompts: Sequence[UUID]) -> list[Decision]:
        return self._rows(Decision, "retry", list(prompts))

    def discard(self, prompts: Sequence[UUID]) -> list[Decision]:
        return self._rows(Decision, "discard", list(prompts))

    def unknown(self, scenario: UUID | None, limit: int | None) -> list[UnknownPrompt]:
        return self._rows(UnknownPrompt, "unknown", scenario, limit)

    def resolve(self, prompts: Sequence[UUID], *, sent: bool) -> list[Decision]:
        return self._rows(Decision, "resolve", list(prompts), sent)

    def token_counts(self, unseen: timedelta | None = None) -> list[TokenCount]:
        return self._rows(TokenCount, "token_counts", unseen)

    def prune_tokens(self, unseen: timedelta | None) -> int:
        """Delete devices unseen for so long (None: as the database is set to), batch by batch; how many it were."""
        deleted, batch = 0, 10_000
        while True:
            last = self._row(_Pruned, "prune_tokens", unseen, batch).prune_tokens
            deleted += last
            if last < batch:
                return deleted

    def devices_of(self, user_id: UUID) -> list[Device]:
        """Where a push to this person would go, in the order they would be tried."""
        return [_device(row) for row in self._rows(_DeviceRow, "devices_of", user_id)]

    def devices_to_verify(self, after: UUID, unseen: timedelta, limit: int) -> list[Device]:
        """Live devices unseen for so long, in the order of their ids, those behind `after`."""
        return [_device(row) for row in self._rows(_DeviceRow, "devices_to_verify", after, unseen, limit)]

    def revoke(self, revoked: Sequence[Revoked]) -> int:
        """Revoke devices as far as their rows are unchanged; how many it were."""
        with self._telling():
            return self._connection.execute(
                "select device_id from herald.revoke_devices(%s::uuid[], %s::timestamptz[], %s::text[])",
                (
                    [each.device.device_id for each in revoked],
                    [each.device.last_seen_at for each in revoked],
                    [each.error_code for each in revoked],
                ),
            ).rowcount

    def _row(self, kind: type[T], function: str, *arguments: Any) -> T:
        rows = self._rows(kind, function, *arguments)
        assert len(rows) == 1
        return rows[0]

    def _rows(self, kind: type[T], function: str, *arguments: Any) -> list[T]:
        """Call a function of the schema; its columns are the fields of `kind`."""
        columns = [sql.Identifier(field.name) for field in fields(kind)]  # type: ignore[arg-type]
        statement = sql.SQL("select {} from herald.{}({})").format(
            sql.SQL(", ").join(columns),
            sql.Identifier(function),
            sql.SQL(", ").join(each if isinstance(each, sql.SQL) else sql.Placeholder() for each in arguments),
        )
        values = [each for each in arguments if not isinstance(each, sql.SQL)]
        with self._telling(), self._connection.cursor(row_factory=class_row(kind)) as cursor:
            return cursor.execute(statement, values).fetchall()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn an error of the database into one message."""
        try:
            yield
        except psycopg.Error as error:
            raise explained(error, self._connection) from None


def explained(error: psycopg.Error, connection: psycopg.Connection) -> HeraldError:
    """The one message that a person is told of an error."""
    hint = f"\n  {error.diag.message_hint}" if error.diag.message_hint else ""
    said = f"{error.diag.message_primary or type(error).__name__}{hint}"
    match error:
        case psycopg.errors.UndefinedFunction() | psycopg.errors.InvalidSchemaName():
            return ConfigError(
                "pgherald is not installed in this database, or in another version than this program's: "
                "run `pgherald migrate` on it"
            )
        case psycopg.errors.InsufficientPrivilege():
            return ConfigError(": ".join(access.refused(connection, error)))
        case psycopg.errors.LockNotAvailable():
            return HeraldError(f"another session holds the rows that this needs: nothing was changed, try again{hint}")
        case psycopg.errors.ReadOnlySqlTransaction():
            return ConfigError(
                "the database only reads: is this a standby, then name the primary in PGHERALD_DATABASE_URL; "
                "or is default_transaction_read_only on, for this role or database?"
            )
        case error if isinstance(error, _REFUSALS):
            return UsageError(said)
        case psycopg.OperationalError() | psycopg.InterfaceError() if error.sqlstate is None or connection.broken:
            return HeraldError("the connection to Postgres was lost; look with `pgherald status` at what was done")
        case _:
            return HeraldError(
                f"the database refused with {type(error).__name__} (SQLSTATE {error.sqlstate}): its log says more"
            )


def _device(row: _DeviceRow) -> Device:
    return Device(
        DeviceId(row.device_id), Platform(row.platform), TokenKind(row.kind), Token(row.token), row.last_seen_at
    )
