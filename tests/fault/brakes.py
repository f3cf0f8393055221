"""Whatever holds the database back at an exact moment: before a claim, before a commit, before a record."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fault.world import World

_CLAIMS: Final = """
create function public.hold_claim() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock_shared(77);
  return new;
end
$$;
create trigger hold_claim before update on herald.prompt for each row
  when (old.status = 'ready' and new.status = 'sending') execute function public.hold_claim();
"""

_COMMITS: Final = """
create function public.hold_commit() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock_shared(77);
  return null;
end
$$;
create constraint trigger hold_commit after insert on herald.scenario_notification
  deferrable initially deferred for each row execute function public.hold_commit();
"""

_DEADLOCKS: Final = """
create sequence public.tries;
grant usage on sequence public.tries to public;
create function public.fail_now_and_then() returns trigger language plpgsql as $$
begin
  -- Not an evaluation, which would be made up for by the next scheduled one.
  if current_query() !~ 'evaluate' and nextval('public.tries') % 3 = 0 then
    raise exception 'injected' using errcode = case when random() < 0.5 then '40P01' else '40001' end;
  end if;
  return null;
end
$$;
create trigger fail_now_and_then after update on herald.prompt
  for each statement execute function public.fail_now_and_then();
"""


@contextmanager
def claims_held_up(world: World) -> Iterator[None]:
    """While it lasts, a claim goes as far as its first row, and no further."""
    with _held_up(world, _CLAIMS):
        yield


@contextmanager
def commits_held_up(world: World) -> Iterator[None]:
    """While it lasts, a transaction that wrote a notification goes as far as its commit, and no further."""
    with _held_up(world, _COMMITS):
        yield


@contextmanager
def _held_up(world: World, trigger: str) -> Iterator[None]:
    world.db.execute(trigger.encode())
    with world.database.connect() as other:
        other.execute("select pg_advisory_lock(77)")
        yield
        other.execute("select pg_advisory_unlock(77)")


def is_held_up(world: World) -> bool:
    """Whether a session has come to where it is held up."""
    return bool(
        world.ask(
            "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' "
            "and wait_event = 'advisory'"
        )
    )


@contextmanager
def stuck_records(world: World) -> Iterator[None]:
    """While it lasts, notifications cannot be written: somebody holds their table."""
    with locked(world, "herald.scenario_notification", "share"):
        yield


@contextmanager
def locked(world: World, table: str, mode: str = "access exclusive") -> Iterator[None]:
    """While it lasts, somebody holds this table, as long as the server lives."""
    other = world.database.connect()
    other.autocommit = False
    other.execute(f"lock table {table} in {mode} mode".encode())
    yield
    with suppress(psycopg.OperationalError):
        other.rollback()
    other.close()


def deadlocks(world: World) -> None:
    """From now on every third statement that changes prompts fails, with a deadlock or a serialization error."""
    world.db.execute(_DEADLOCKS.encode())
