"""Mistakes in the database's functions, put into one test's database: what the checks of tests/fault must find.

Some are functions of their own, some a change of a few words in what is there. Nothing here is ever shipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import psycopg

_SWEEP_RECLAIMS: Final = """
create or replace function herald.sweep(p_grace interval, p_now timestamptz default now())
returns table (prompt_id uuid, scenario_type text, status text)
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  update herald.prompt as p
  set status = 'ready', owner = null, deadline = null, not_before = p_now
  where p.status = 'sending' and p.deadline < p_now - p_grace
  returning p.prompt_id, p.scenario_type, p.status;
$$
"""

_SWEEP_RECORDS: Final = """
create or replace function herald.sweep(p_grace interval, p_now timestamptz default now())
returns table (prompt_id uuid, scenario_type text, status text)
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  with swept as (
    update herald.prompt as p
    set status = 'sent', owner = null, deadline = null, settled_at = p_now
    where p.status = 'sending' and p.deadline < p_now - p_grace
    returning p.*
  ), noted as (
    insert into herald.scenario_notification (id, user_id, scenario_type, scenario_id, dispatched_at, idempotency_key,
      cooldown_window_start, prompt_id, activity_ref)
    select s.notification_id, s.user_id, s.scenario_type, s.scenario_id, p_now, s.idempotency_key,
      s.cooldown_window_start, s.prompt_id, s.activity_ref
    from swept as s
  )
  select s.prompt_id, s.scenario_type, s.status from swept as s;
$$
"""

_SWEEP_NEVER: Final = """
create or replace function herald.sweep(p_grace interval, p_now timestamptz default now())
returns table (prompt_id uuid, scenario_type text, status text)
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.prompt_id, p.scenario_type, p.status from herald.prompt as p where false;
$$
"""

_FUNCTIONS: Final = {
    "lease and reclaim": _SWEEP_RECLAIMS,
    "record what was only claimed": _SWEEP_RECORDS,
    "no sweep": _SWEEP_NEVER,
}

_CHANGES: Final[dict[str, tuple[tuple[str, str, str], ...]]] = {
    "claims are not on disk": (
        ("claim_rows", "'synchronous_commit', 'on'", "'synchronous_commit', 'off'"),
        ("settle", "'synchronous_commit', 'on'", "'synchronous_commit', 'off'"),
    ),
    "what is settled is settled again": (
        ("settle", "o.epoch = l.epoch and l.status = 'sending' then", "o.epoch = l.epoch then"),
    ),
    "locks are not waited for": (
        ("evaluate_touched", "SET lock_timeout TO '5s'", "SET lock_timeout TO '1ms'"),
        ("evaluate_touched", "'lock_timeout', '10ms'", "'lock_timeout', '1ms'"),
    ),
    "nothing expires": (
        ("claim_rows", "s.expires_after) <= p_now then 'expired'", "s.expires_after) <= '-infinity' then 'expired'"),
    ),
    "what was sent is armed again": (
        (
            "gate",
            "(p.status in ('ready', 'sending', 'sent', 'unknown')",
            "(p.status in ('ready', 'sending', 'unknown')",
        ),
        (
            "decide",
            "q.status in ('failed', 'skipped', 'expired')",
            "q.status in ('failed', 'skipped', 'expired', 'sent')",
        ),
    ),
    "each run looks at everything": (
        ("evaluate", "for no key update skip locked", ""),
        (
            "evaluate",
            "set evaluated_through = greatest(s.evaluated_through, p_now)",
            "set evaluated_through = s.evaluated_through",
        ),
    ),
}
"""Function, what is in it, what it becomes."""


def spoil(db: psycopg.Connection, what: str) -> None:
    """Put a mistake into this database's functions."""
    if what in _FUNCTIONS:
        db.execute(_FUNCTIONS[what].encode())
    for name, right, wrong in _CHANGES.get(what, ()):
        rows = db.execute(
            "select pg_get_functiondef(p.oid) from pg_proc as p "
            "where p.pronamespace = 'herald'::regnamespace and p.proname = %s",
            (name,),
        ).fetchall()
        if not any(right in row[0] for row in rows):
            raise LookupError(f"herald.{name} has no {right!r} (any more)")
        for row in rows:
            db.execute(row[0].replace(right, wrong).encode())
