"""The views that herald_reader reads: what they count, and that they name nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support import two_chapters as world
from tests.support.two_chapters import healthy

if TYPE_CHECKING:
    from tests.support.postgres import Database


def test_statistics_count_what_is_there_and_name_nobody(database: Database) -> None:
    db = healthy(database)
    db.execute(
        "insert into herald.evaluation_run "
        "(scenario_id, source, started_at, evaluated, candidates, prompts, error, duration) "
        "values (%s, 'touched', now(), '(2026-06-01,2026-06-02]', 0, 0, '22P02: secret', '1 s'), "
        "(%s, 'schedule', now(), '(2026-06-01,2026-06-02]', 7, 0, 'held: 7 prompts would exceed it', '1 s')",
        (world.SCENARIO_A, world.SCENARIO_B),
    )
    reader = database.connect("herald_reader")
    told = ""
    for view in ("scenario_statistics", "outbox_statistics", "delivery_statistics", "device_statistics"):
        rows = reader.execute(f"select to_jsonb(v)::text from herald.{view} as v order by 1").fetchall()
        assert rows, view
        told += "".join(text for (text,) in rows)
    assert '"last_error_code": "22P02"' in told
    for secret in ("secret", world.TOKEN_A1, str(world.A1), str(world.B1)):
        assert secret not in told
    standing = "select runs, failed_runs, last_error_code, mode from herald.scenario_statistics where scenario_id = %s"
    assert reader.execute(standing, (world.SCENARIO_A,)).fetchone() == (2, 1, "22P02", "on")
    assert reader.execute(standing, (world.SCENARIO_B,)).fetchone() == (2, 0, None, "on"), "held is not failed"
    assert reader.execute("select sum(devices), sum(people) from herald.device_statistics").fetchone() == (5, 5)
    assert reader.execute("select sum(prompts) from herald.outbox_statistics where status = 'sent'").fetchone() == (2,)
