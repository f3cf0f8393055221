"""Everything that the people and the coordinator of chapter A can ask, and what they are answered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from tests.support.two_chapters import (
    A1,
    A2,
    B1,
    B2,
    CHAPTER_A,
    CHAPTER_B,
    COORDINATOR_A,
    NOBODY,
    NOTIFICATION_A1,
    NOTIFICATION_B1,
    NOW,
    ORGANISATION,
    PLACES,
    SCENARIO_A,
    SCENARIO_ALL,
    SCENARIO_B,
    SCENARIO_C,
    SCENARIO_OTHER_ALL,
    TOKEN_B1,
    answer_as,
    insert,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    import psycopg


#: Everything that a person or coordinator of chapter A can ask: (as whom, statement, values).
QUESTIONS: Final[list[tuple[UUID, str, tuple[object, ...]]]] = [
    (COORDINATOR_A, "select * from herald.scenario order by scenario_id", ()),
    (COORDINATOR_A, "select count(*) from herald.scenario", ()),
    (COORDINATOR_A, "select * from herald.scenario_type order by scenario_type", ()),
    (COORDINATOR_A, "select * from herald.my_scopes() order by 1, 2", ()),
    (COORDINATOR_A, "select * from herald.my_chapters() order by 1", ()),
    (COORDINATOR_A, "select * from herald.my_organisations()", ()),
    *(
        (COORDINATOR_A, query, (scenario,))
        for scenario in (SCENARIO_A, SCENARIO_ALL, SCENARIO_B, SCENARIO_C, SCENARIO_OTHER_ALL, NOBODY)
        for query in (
            "select herald.describe(%s)",
            "select herald.describe(%s, 'nb')",
            f"select * from herald.preview(%s::uuid, '{NOW}', '60 days')",
            f"select * from herald.backtest(%s, '{NOW}'::timestamptz - interval '60 days', '{NOW}')",
            "update herald.scenario set name = name where scenario_id = %s",
            "delete from herald.scenario where scenario_id = %s",
            "select herald.enqueue(%s, null, null)",
        )
    ),
    *(
        (
            COORDINATOR_A,
            f"select * from {function}",
            (
                json.dumps(
                    {
                        "scenario_type": "inactivity",
                        "organisation_id": str(ORGANISATION),
                        "chapter_id": None if chapter is None else str(chapter),
                        "name": "draft",
                        "params": {"days": 30},
                    }
                ),
            ),
        )
        for chapter in (CHAPTER_A, CHAPTER_B, None, NOBODY)
        for function in (
            f"herald.preview(%s::jsonb, '{NOW}', '60 days')",
            "herald.describe_definition(%s::jsonb)",
            f"herald.backtest_definition(%s::jsonb, '{NOW}'::timestamptz - interval '60 days', '{NOW}')",
        )
    ),
    *(
        (COORDINATOR_A, f"select * from herald.explain(%s, '{kind}', '{NOW}')", (person,))
        for person in (A1, A2, B1, B2, NOBODY)
        for kind in ("inactivity", "expiry")
    ),
    *((COORDINATOR_A, insert(o, c), ()) for o, c in PLACES.values()),
    *(
        (A1, query, values)
        for query, values in (
            ("select * from herald.notification_content(%s)", (NOTIFICATION_A1,)),
            ("select * from herald.notification_content(%s)", (NOTIFICATION_B1,)),
            ("select herald.mark_opened(%s)", (NOTIFICATION_B1,)),
            ("select herald.register_device_token(%s, 'ios')", (TOKEN_B1,)),
            ("select herald.register_device_token('new', 'ios', %s)", (TOKEN_B1,)),
            ("select herald.unregister_device_token(%s)", (TOKEN_B1,)),
            ("select herald.set_opt_out('expiry', true)", ()),
            ("select * from herald.scenario", ()),
            (f"select * from herald.explain(%s, 'inactivity', '{NOW}')", (A1,)),
            (f"select * from herald.explain(%s, 'inactivity', '{NOW}')", (B1,)),
        )
    ),
]


def answers(db: psycopg.Connection, questions: Sequence[tuple[UUID, str, tuple[object, ...]]] = QUESTIONS) -> list[str]:
    with db.transaction(force_rollback=True):
        return [answer_as(db, person, query, values) for person, query, values in questions]
