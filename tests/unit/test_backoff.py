"""Retries wait long enough for FCM, not for ever, and not all for the same moment."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherald.backoff import RECONNECT_BASE, RECONNECT_CAP, RETRY_BASE, RETRY_CAP, reconnect_delay, retry_delay

seeds = st.integers(0, 2**32)


@given(st.integers(-5, 10**9), st.none() | st.floats(0, 10**12), seeds)
def test_no_retry_comes_sooner_than_ten_seconds_nor_later_than_an_hour(
    attempt: int, retry_after: float | None, seed: int
) -> None:
    assert RETRY_BASE <= retry_delay(attempt, retry_after, rng=Random(seed)) <= RETRY_CAP


@given(st.integers(1, 40), st.floats(0, RETRY_CAP), seeds)
def test_a_retry_after_is_honoured_in_full(attempt: int, retry_after: float, seed: int) -> None:
    assert retry_delay(attempt, retry_after, rng=Random(seed)) >= retry_after


@pytest.mark.parametrize(("attempt", "ceiling"), [(1, 20), (2, 40), (3, 80), (8, 2560), (9, 3600), (30, 3600)])
def test_the_ceiling_doubles_with_every_try(attempt: int, ceiling: float) -> None:
    rng = Random(7)
    delays = [retry_delay(attempt, None, rng=rng) for _ in range(2000)]
    assert max(delays) <= ceiling
    assert max(delays) > ceiling * 0.97
    assert min(delays) < RETRY_BASE + ceiling * 0.03


def test_those_told_the_same_moment_do_not_all_come_back_in_it() -> None:
    rng = Random(7)
    delays = [retry_delay(1, 120, rng=rng) for _ in range(1000)]
    assert min(delays) >= 120
    assert max(delays) - min(delays) > 9


@given(st.integers(-5, 10**9), seeds)
def test_a_reconnect_waits_from_a_twentieth_of_a_second_to_ten(failures: int, seed: int) -> None:
    assert RECONNECT_BASE / 2 <= reconnect_delay(failures, Random(seed)) <= RECONNECT_CAP


@pytest.mark.parametrize(("failures", "ceiling"), [(1, 0.1), (2, 0.2), (5, 1.6), (8, 10), (50, 10)])
def test_reconnects_double_up_to_ten_seconds(failures: int, ceiling: float) -> None:
    rng = Random(7)
    delays = [reconnect_delay(failures, rng) for _ in range(500)]
    assert ceiling / 2 <= min(delays) <= max(delays) <= ceiling
    assert max(delays) > ceiling * 0.97
