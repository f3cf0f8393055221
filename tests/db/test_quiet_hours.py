"""When it is quiet for a person: by their own clock, over midnight, and through the nights in which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    import psycopg

    from tests.support.app import App

HOUR = timedelta(hours=1)


def quiet_end(db: psycopg.Connection, at: datetime, start: time, end: time, zone: str | None) -> datetime | None:
    row = db.execute("select herald.quiet_end(%s, %s, %s, %s)", (at, start, end, zone)).fetchone()
    assert row is not None
    found: datetime | None = row[0]
    return found.astimezone(UTC) if found else None


OSLO = ZoneInfo("Europe/Oslo")


def oslo(*parts: int) -> datetime:
    """A moment by the clock in Oslo."""
    return datetime(*parts, tzinfo=OSLO)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("local", "end"),
    [
        (oslo(2026, 6, 1, 20, 59, 59), None),
        (oslo(2026, 6, 1, 21), oslo(2026, 6, 2, 8)),
        (oslo(2026, 6, 1, 23, 59), oslo(2026, 6, 2, 8)),
        (oslo(2026, 6, 2, 0), oslo(2026, 6, 2, 8)),
        (oslo(2026, 6, 2, 7, 59, 59), oslo(2026, 6, 2, 8)),
        (oslo(2026, 6, 2, 8), None),
        # The nights in which the clocks change are an hour shorter and longer.
        (oslo(2026, 3, 28, 22), oslo(2026, 3, 29, 8)),
        (oslo(2026, 10, 24, 22), oslo(2026, 10, 25, 8)),
        # Over the new year and a leap day.
        (oslo(2026, 12, 31, 23), oslo(2027, 1, 1, 8)),
        (oslo(2028, 2, 28, 23), oslo(2028, 2, 29, 8)),
    ],
)
def test_quiet_hours_over_midnight_end_by_the_clock_of_the_person(
    db: psycopg.Connection, local: datetime, end: datetime | None
) -> None:
    found = quiet_end(db, local, time(21), time(8), "Europe/Oslo")
    assert found == (end.astimezone(UTC) if end else None)


def test_a_changed_clock_changes_the_length_of_the_night(db: psycopg.Connection) -> None:
    nights = []
    for day in (oslo(2026, 3, 28, 21), oslo(2026, 10, 24, 21), oslo(2026, 6, 1, 21)):
        start = day.astimezone(UTC)
        end = quiet_end(db, start, time(21), time(8), "Europe/Oslo")
        assert end is not None
        nights.append(end - start)
    assert nights == [10 * HOUR, 12 * HOUR, 11 * HOUR]


@given(
    at=st.integers(0, 365 * 24 * 3600).map(
        lambda seconds: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    ),
    start=st.times().map(lambda t: t.replace(microsecond=0)),
    end=st.times().map(lambda t: t.replace(microsecond=0)),
    zone=st.sampled_from(["Europe/Oslo", "UTC", "America/St_Johns", "Pacific/Chatham", "Asia/Kathmandu"]),
)
@settings(max_examples=300)
def test_a_push_is_quiet_exactly_when_the_persons_clock_says_so(
    pg18_connection: psycopg.Connection, at: datetime, start: time, end: time, zone: str
) -> None:
    found = quiet_end(pg18_connection, at, start, end, zone)
    local = at.astimezone(ZoneInfo(zone)).time()
    quiet = start <= local < end if start < end else (local >= start or local < end)
    if start == end:
        return
    assert (found is not None) == quiet
    if found is not None:
        assert at < found <= at + 25 * HOUR
        # When it ends, it has ended.
        assert quiet_end(pg18_connection, found, start, end, zone) is None


@pytest.fixture(scope="module")
def pg18_connection(pg18: object) -> object:
    from tests.support.postgres import Server

    assert isinstance(pg18, Server)
    with pg18.database() as database:
        yield database.connect()


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", None, "DROP TABLE"])
def test_an_unknown_time_zone_counts_as_utc(app: App, zone: str | None) -> None:
    found = quiet_end(app.db, datetime(2026, 6, 1, 22, tzinfo=UTC), time(21), time(8), zone)
    assert found == datetime(2026, 6, 2, 8, tzinfo=UTC)
