"""A hundred thousand steps of the protocol at random, and the proof that the simulator decides as the SQL does."""

from __future__ import annotations

import itertools
import json
import os
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.fault.simulator import OUTCOMES, STATUSES, Simulation, Violation, judge, swept
from tests.fault.world import FULL
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    import psycopg

SEEDS: Final = 10_000 if FULL else 1_000
STEPS: Final = 150
FOUND_ONCE: Final = (0, 1, 2)
"""Seeds that failed once; each is run for ever."""


def test_a_hundred_thousand_steps_keep_the_promise() -> None:
    first = int(os.environ.get("FAULT_SEED", "0"))
    failed: dict[int, str] = {}
    steps = 0
    for seed in (*FOUND_ONCE, *range(first, first + SEEDS)):
        simulation = Simulation(seed)
        try:
            simulation.run(STEPS)
        except Violation as violation:
            failed[seed] = str(violation)
        steps += simulation.steps
    if failed:
        kept = ROOT / "bench-results" / "failing-seeds.json"
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(failed, indent=1))
    assert not failed, (
        f"{len(failed)} of {SEEDS} seeds, kept in bench-results: {dict(itertools.islice(failed.items(), 5))}"
    )
    assert steps >= 100_000


@pytest.mark.parametrize(
    ("mistake", "finds"),
    [
        ("reclaim", "pushed twice"),
        ("retry on doubt", "pushed twice"),
        ("no spool", "lost"),
        ("no epoch", "claimed beside its owner"),
    ],
)
def test_control_each_usual_mistake_is_found_out(mistake: str, finds: str) -> None:
    def run() -> None:
        for seed in range(300):
            Simulation(seed, mistakes=frozenset({mistake})).run(STEPS)

    with pytest.raises(Violation, match=finds):
        run()


def test_the_same_seed_is_the_same_run() -> None:
    def trace() -> list[Any]:
        simulation = Simulation(17)
        simulation.run(STEPS)
        return [simulation.rows, simulation.accepted, simulation.monotonic]

    assert str(trace()) == str(trace())


def test_the_simulator_settles_as_the_database_does(db: psycopg.Connection) -> None:
    cases = [
        case
        for case in itertools.product(OUTCOMES, (-1, 0, 1), STATUSES, (False, True), (False, True), (False, True))
        # nothing else of the kind can be open beside an open one; a note without 'sent' is of an earlier epoch's
        if not (case[5] and case[2] in ("ready", "sending")) and not (case[4] and case[2] != "sending")
    ]
    numbers = prepare(db, cases)
    rows = db.execute(
        "with want as (select * from unnest(%s::int[], %s::text[], %s::bigint[]) as w (n, outcome, epoch)) "
        "select w.n, s.applied, s.status from want as w, herald.settle("
        "  array[(select p.prompt_id from herald.prompt as p where p.activity_ref = 'case-' || w.n)], array[w.epoch], "
        "  array[w.outcome], array['X'], array[now()], array[now()], array[null::uuid], "
        "  array['projects/p/messages/1']) as s",
        (list(numbers), [case[0] for case in cases], [5 + case[1] for case in cases]),
    ).fetchall()
    found = {row[0]: row[2] if row[1] else None for row in rows}
    for number, (outcome, against, status, resend, noted, open_) in zip(numbers, cases, strict=True):
        expected = judge(outcome, against, status, may_resend=resend, noted=noted, another_open=open_)
        assert found[number] == expected, (outcome, against, status, resend, noted, open_)


def test_the_simulator_sweeps_as_the_database_does(db: psycopg.Connection) -> None:
    cases = [("sent", 0, "sending", resend, noted, False) for resend in (False, True) for noted in (False, True)]
    numbers = prepare(db, cases)
    db.execute("select * from herald.sweep('0', now() + interval '1 hour')")
    found: dict[str, str] = dict(db.execute("select activity_ref, status from herald.prompt").fetchall())
    for number, case in zip(numbers, cases, strict=True):
        assert found[f"case-{number}"] == swept(may_resend=case[3], noted=case[4]), case


def prepare(db: psycopg.Connection, cases: list[Any]) -> range:
    """A prompt for each case, each of another person, at epoch 5."""
    db.execute("insert into app.organisation (id, name) values ('00000000-0000-0000-0000-0000000000aa', 'o')")
    scenarios = {
        resend: row[0]
        for resend in (False, True)
        for row in db.execute(
            "insert into herald.scenario (scenario_type, params, organisation_id, name, title_key, body_key, "
            "on_unknown) "
            "values ('milestone', '{\"counts\": [1]}', '00000000-0000-0000-0000-0000000000aa', 's', 't', 'b', %s) "
            "returning scenario_id",
            ("resend" if resend else "drop",),
        ).fetchall()
    }
    for number, (_, _, status, resend, noted, another_open) in enumerate(cases):
        row = db.execute(
            "insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, idempotency_key, status, "
            "epoch, attempts, owner, claimed_at, deadline, gate, cooldown_window_start, settled_at) "
            "values (%(scenario)s, 'milestone', gen_random_uuid(), 'case-' || %(n)s, "
            "encode(sha256(convert_to(%(n)s::text, 'UTF8')), 'hex'), %(status)s, 5, 1, 'a', now(), now(), "
            "case when %(status)s = 'skipped' then 'x' end, now(), now()) "
            "returning user_id, notification_id, prompt_id",
            {"scenario": scenarios[resend], "n": number, "status": status},
        ).fetchone()
        assert row is not None
        if noted:
            db.execute(
                "insert into herald.scenario_notification (id, user_id, scenario_type, dispatched_at, idempotency_key, "
                "cooldown_window_start, prompt_id) values (%s, %s, 'milestone', now(), %s, now(), %s)",
                (row[1], row[0], f"note-{number}", row[2]),
            )
        if another_open:
            db.execute(
                "insert into herald.prompt (scenario_id, scenario_type, user_id, activity_ref, idempotency_key) values "
                "(%s, 'milestone', %s, 'other', encode(sha256(convert_to('other' || %s, 'UTF8')), 'hex'))",
                (scenarios[resend], row[0], number),
            )
    return range(len(cases))
