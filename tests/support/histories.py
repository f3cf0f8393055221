"""Random histories of people of the reference app, for property tests: who did what when, near awkward clocks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.app import App

DAY = timedelta(days=1)
# Around the changes of the clocks in Oslo and a leap day: a day has 24 hours all the same.
ANCHORS = (
    datetime(2026, 3, 29, 1, tzinfo=UTC),
    datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2028, 2, 29, 23, 30, tzinfo=UTC),
)
TIME_ZONES = ("UTC", "Europe/Oslo", "America/St_Johns")
TYPES = ("contact", "visit")
FLAGS = ("wellbeing_concern", "urgent")


@dataclass(frozen=True, slots=True)
class Activity:
    id: UUID
    at: datetime
    kind: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Item:
    id: UUID
    kind: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Person:
    id: UUID
    registered_at: datetime
    activities: tuple[Activity, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Case:
    people: tuple[Person, ...]
    lower: datetime
    upper: datetime
    cuts: tuple[datetime, ...]
    time_zone: str
    some: frozenset[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    anchor = draw(st.sampled_from(ANCHORS))
    # A coarse grid with a second or a microsecond to either side, so that ties and exact borders are common.
    moments = st.builds(
        lambda days, slip: anchor + days * DAY + slip,
        st.integers(-6, 6),
        st.sampled_from(
            [
                timedelta(),
                timedelta(seconds=1),
                timedelta(seconds=-1),
                timedelta(microseconds=1),
                timedelta(hours=1),
                timedelta(hours=-13),
            ]
        ),
    )
    ids = iter(range(1, 1_000_000))

    def new_id() -> UUID:
        # Not in the order of time: ties are broken by the id.
        return UUID(int=(next(ids) * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128)

    people = []
    for number in range(draw(st.integers(1, 12))):
        activities = tuple(
            Activity(new_id(), at, kind, tuple(flags))
            for at, kind, flags in draw(
                st.lists(
                    st.tuples(moments, st.sampled_from(TYPES), st.lists(st.sampled_from(FLAGS), unique=True)),
                    max_size=5,
                )
            )
        )
        items = tuple(
            Item(new_id(), kind, at)
            for at, kind in draw(
                st.lists(st.tuples(moments, st.sampled_from(("first_aid", "driving", "assignment"))), max_size=4)
            )
        )
        people.append(Person(UUID(int=number + 1), draw(moments), activities, items))
    lower, upper = sorted(draw(st.tuples(moments, moments)))
    cuts = sorted({at for at in draw(st.lists(moments, max_size=4)) if lower < at < upper})
    return Case(
        tuple(people),
        lower,
        upper,
        tuple(cuts),
        draw(st.sampled_from(TIME_ZONES)),
        draw(st.frozensets(st.integers(0, 11))),
    )


def optional(strategies: dict[str, st.SearchStrategy[Any]], **required: st.SearchStrategy[Any]) -> Any:
    return st.fixed_dictionaries(required, optional=strategies)


PARAMS: dict[str, Any] = {
    "inactivity": optional(
        {"repeat_days": st.integers(1, 3), "max_repeats": st.integers(1, 3)}, days=st.integers(1, 4)
    ).map(lambda p: p if "repeat_days" in p else {"days": p["days"]}),
    "milestone": optional(
        {"activity_types": st.lists(st.sampled_from(TYPES), min_size=1, max_size=4)},
        counts=st.sets(st.integers(1, 4), min_size=1).map(sorted),
    ),
    "expiry": optional(
        {"kinds": st.lists(st.sampled_from(("first_aid", "assignment")), min_size=1, max_size=4)},
        days_before=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    ),
    "follow_up": optional(
        {"first_only": st.booleans(), "if_flag": st.sampled_from(FLAGS)},
        activity_type=st.sampled_from(TYPES),
        after_days=st.integers(0, 4),
    ),
}


def load(app: App, people: Sequence[Person]) -> None:
    app.create()
    app.db.execute(
        "insert into app.peer_mentor (user_id, chapter_id, registered_at) "
        "select u.user_id, u.chapter, u.at "
        "from unnest(%s::uuid[], %s::uuid[], %s::timestamptz[]) as u (user_id, chapter, at)",
        ([p.id for p in people], [app.chapter] * len(people), [p.registered_at for p in people]),
    )
    activities = [(a.id, p.id, a.kind, a.at, ",".join(a.flags)) for p in people for a in p.activities]
    app.db.execute(
        "insert into app.activity (id, user_id, activity_type, occurred_at, flags) "
        "select a.id, a.user_id, a.kind, a.at, string_to_array(a.flags, ',') "
        "from unnest(%s::uuid[], %s::uuid[], %s::text[], %s::timestamptz[], %s::text[]) "
        "as a (id, user_id, kind, at, flags)",
        [list(column) for column in zip(*activities, strict=True)] or [[], [], [], [], []],
    )
    items = [(i.id, p.id, i.kind, i.expires_at) for p in people for i in p.items]
    columns = [list(column) for column in zip(*items, strict=True)] or [[], [], [], []]
    app.db.execute(
        "with i as ("
        "select * from unnest(%s::uuid[], %s::uuid[], %s::text[], %s::timestamptz[]) as i (id, user_id, kind, at)), "
        "c as (insert into app.certification (id, user_id, kind, expires_at) "
        "select id, user_id, kind, at from i where kind <> 'assignment') "
        "insert into app.assignment (id, user_id, ends_at) select id, user_id, at from i where kind = 'assignment'",
        columns,
    )
