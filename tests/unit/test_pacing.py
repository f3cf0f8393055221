"""The daemon sends no faster than it was told, pauses when FCM asks, and stops revoking before it does harm."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgherald import pacing
from pgherald.metrics import BREAKERS
from pgherald.model import Code, Platform
from pgherald.outcome import QUOTA_PAUSE, Accepted, Answer, Effect, Rejected, TokenInvalid, Unsure
from pgherald.pacing import Pacing

ACCEPTED = Accepted("projects/p/messages/1")
FORBIDDEN = Rejected(Code.PERMISSION_DENIED, True, None, Effect.CIRCUIT)
UNAUTHENTICATED = Rejected(Code.UNAUTHENTICATED, True, None, Effect.REAUTH)
NOT_FOUND = Rejected(Code.NOT_FOUND, False, None, Effect.CONFIG_ALARM)
BAD_APNS_KEY = Rejected(Code.THIRD_PARTY_AUTH_ERROR, True, None, Effect.PAUSE_IOS)
BAD_PAYLOAD = Rejected(Code.INVALID_ARGUMENT, False, None, Effect.PAYLOAD_ALARM)
OVERLOADED = Rejected(Code.UNAVAILABLE, True, 30.0, Effect.OVERLOAD)
NOT_CONNECTED = Rejected(Code.NOT_CONNECTED, True)
NO_OAUTH_TOKEN = Rejected(Code.NO_OAUTH_TOKEN, True)
MISMATCH = TokenInvalid(Code.SENDER_ID_MISMATCH)
UNREGISTERED = TokenInvalid(Code.UNREGISTERED)
SILENCE = Unsure(Code.TIMEOUT)


def quota(retry_after: float | None) -> Rejected:
    return Rejected(Code.QUOTA_EXCEEDED, True, retry_after, Effect.QUOTA)


def drain(pace: Pacing, begin: float, seconds: float, tick: float = 0.01) -> list[tuple[float, int]]:
    """Send as much as is allowed, for so many seconds: (when, how many)."""
    ticks = round(seconds / tick)
    return [(now := begin + n * tick, pace.allowance(now, 10**6)) for n in range(ticks)]


def total(sent: list[tuple[float, int]], begin: float, end: float) -> int:
    return sum(count for when, count in sent if begin <= when < end)


rates = st.floats(0.2, 50_000) | st.sampled_from([1.0, 10_000.0, 1_000_000.0])
steps = st.lists(
    st.tuples(
        st.floats(0, 0.3) | st.floats(0, 100),
        st.integers(-3, 10_000),
        st.floats(0, 1),
        st.sampled_from([None, ACCEPTED, quota(0.5), OVERLOADED, SILENCE]),
    ),
    max_size=60,
)


@given(rates, steps)
@example(3.0, [(0.25, 100, 0.0, None)] * 40)
def test_no_second_ever_has_more_than_the_rate_and_one_burst(
    rate: float, script: list[tuple[float, int, float, Answer | None]]
) -> None:
    pace, now = Pacing(rate), 1000.0
    sent: list[tuple[float, int]] = []
    for wait, wanted, unused, answer in script:
        now += wait
        allowed = pace.allowance(now, wanted)
        assert 0 <= allowed <= max(wanted, 0)
        back = int(allowed * unused)
        pace.give_back(now, back)
        sent.append((now, allowed - back))
        if answer is not None:
            pace.on_answer(answer, Platform.ANDROID, now)
    burst = max(1.0, rate * pacing.BURST_SECONDS)
    for begin, _ in sent:
        assert total(sent, begin, begin + 1.0) <= rate + burst + 1e-6 * rate


@given(rates, steps)
def test_whoever_waits_as_told_gets_something(
    rate: float, script: list[tuple[float, int, float, Answer | None]]
) -> None:
    pace, now = Pacing(rate), 5.0
    for wait, wanted, _, answer in script:
        now += wait
        pace.allowance(now, wanted)
        if answer is not None:
            pace.on_answer(answer, Platform.IOS, now)
        ready = pace.ready_in(now)
        assert 0 <= ready <= max(1 / rate, QUOTA_PAUSE) + 0.01
    for _ in range(3):
        now += pace.ready_in(now)
    assert pace.allowance(now, 1) == 1


def test_the_rate_is_reached_and_kept() -> None:
    pace = Pacing(500.0)
    sent = drain(pace, 0.0, 20.0)
    assert total(sent, 0, 20) == pytest.approx(10_000, rel=0.01)


def test_messages_beyond_an_allowance_are_paid_for_later() -> None:
    pace = Pacing(100.0)
    assert pace.allowance(0.0, 1) == 1
    pace.charge(0.0, 59)
    assert pace.allowance(0.4, 10) == 0
    assert pace.ready_in(0.4) == pytest.approx(0.12)
    assert total(drain(pace, 0.4, 10.0), 0, 11) == pytest.approx(990, abs=2)


def test_an_allowance_given_back_can_be_had_at_once() -> None:
    pace = Pacing(10.0)
    assert pace.allowance(0.0, 5) == 1
    assert pace.allowance(0.0, 5) == 0
    pace.give_back(0.0, 1)
    assert pace.allowance(0.0, 5) == 1


def test_from_idle_it_takes_a_minute_of_full_use_to_reach_the_full_rate() -> None:
    sent = drain(Pacing(10_000.0), 0.0, 90.0)
    seconds = [total(sent, n, n + 1) for n in range(90)]
    assert seconds[0] <= 1000 + 150 + 100
    assert seconds[30] == pytest.approx(5500, rel=0.05)
    assert seconds[58] < 10_000
    assert all(second == pytest.approx(10_000, rel=0.01) for second in seconds[62:])
    assert all(later >= earlier * 0.98 for earlier, later in pairwise(seconds[1:]))


def test_after_idling_the_ramp_begins_again() -> None:
    pace = Pacing(10_000.0)
    drain(pace, 0.0, 70.0)
    half = total(drain(pace, 100.0, 1.0), 100, 101)
    assert 4_000 < half < 6_500
    assert total(drain(pace, 300.0, 1.0), 300, 301) <= 1000 + 150 + 100


@pytest.mark.parametrize("rate", [0.5, 1.0, 10.0, 999.0, 1000.0])
def test_a_small_installation_never_notices_the_ramp(rate: float) -> None:
    assert total(drain(Pacing(rate), 0.0, 10.0, 0.001), 0, 10) >= rate * 10 - 1


def test_an_endpoint_that_is_not_googles_needs_no_ramp() -> None:
    assert total(drain(Pacing(20_000.0, ramp_seconds=0), 0.0, 1.0), 0, 1) >= 20_000


def test_a_429_pauses_everything_for_as_long_as_it_asks() -> None:
    pace = Pacing(100.0)
    pace.on_answer(quota(30.0), Platform.ANDROID, 10.0)
    assert pace.breakers(10.0)["quota"]
    assert pace.ready_in(10.0) == 30.0
    assert pace.allowance(39.9, 5) == 0
    assert pace.allowance(40.0, 5) == 5
    assert not pace.breakers(40.0)["quota"]


def test_a_429_that_names_no_time_pauses_for_a_minute() -> None:
    pace = Pacing(100.0)
    pace.on_answer(quota(None), Platform.ANDROID, 0.0)
    assert pace.ready_in(0.0) == QUOTA_PAUSE


def test_the_longest_of_many_429s_counts_and_they_slow_the_daemon_down_once() -> None:
    pace = Pacing(10_000.0)
    drain(pace, 0.0, 70.0)
    for wait in (5.0, 20.0, 10.0, 1.0):
        pace.on_answer(quota(wait), Platform.IOS, 70.0)
    assert pace.ready_in(70.0) == 20.0
    # Half of 10,000, less what twenty seconds of rest take off.
    assert total(drain(pace, 90.0, 1.0), 90, 91) == pytest.approx(5000 - 3000, rel=0.2)


def test_a_403_closes_the_door_and_one_probe_that_gets_through_opens_it() -> None:
    pace = Pacing(100.0)
    pace.on_answer(FORBIDDEN, Platform.ANDROID, 0.0)
    assert pace.breakers(0.0)["permission"]
    assert pace.allowance(pacing.PERMISSION_WAIT - 0.1, 5) == 0
    now = pacing.PERMISSION_WAIT
    assert pace.ready_in(0.0) == now
    assert pace.allowance(now, 5) == 1
    assert pace.allowance(now, 5) == 0, "one probe at a time"
    pace.on_answer(ACCEPTED, Platform.ANDROID, now + 0.1)
    assert not pace.breakers(now)["permission"]
    assert pace.allowance(now + 0.2, 5) == 5


def test_probes_that_fail_come_ever_more_rarely_but_for_ever() -> None:
    pace, now, waits = Pacing(100.0), 0.0, []
    pace.on_answer(FORBIDDEN, Platform.ANDROID, now)
    for _ in range(10):
        waits.append(pace.ready_in(now))
        now += waits[-1]
        assert pace.allowance(now, 9) == 1
        pace.on_answer(FORBIDDEN, Platform.ANDROID, now)
    assert waits[:4] == [10.0, 20.0, 40.0, 80.0]
    assert waits[-1] == pacing.PERMISSION_WAIT_MAX


def test_what_was_on_its_way_when_the_door_closed_neither_opens_nor_bars_it() -> None:
    pace = Pacing(100.0)
    for _ in range(200):
        pace.on_answer(FORBIDDEN, Platform.ANDROID, 0.0)
    pace.on_answer(ACCEPTED, Platform.ANDROID, 0.1)
    assert pace.breakers(0.1)["permission"]
    assert pace.ready_in(0.0) == pacing.PERMISSION_WAIT


@pytest.mark.parametrize("verdict", [None, SILENCE, BAD_PAYLOAD, OVERLOADED])
def test_a_probe_without_a_verdict_is_followed_by_another(verdict: Answer | None) -> None:
    pace = Pacing(100.0)
    pace.on_answer(FORBIDDEN, Platform.ANDROID, 0.0)
    assert pace.allowance(20.0, 5) == 1
    if verdict is not None:
        pace.on_answer(verdict, Platform.ANDROID, 20.1)
    assert pace.allowance(20.0 + pacing.PROBE_PATIENCE - 0.1, 5) == 0
    assert pace.allowance(20.0 + pacing.PROBE_PATIENCE, 5) == 1


@pytest.mark.parametrize("trouble", [FORBIDDEN, NOT_CONNECTED, SILENCE])
def test_a_probe_for_which_there_was_no_prompt_is_still_to_be_had(trouble: Answer) -> None:
    pace = Pacing(100.0)
    for _ in range(pacing.NO_ANSWER_STRIKES):
        pace.on_answer(trouble, Platform.ANDROID, 0.0)
    assert pace.allowance(20.0, 5) == 1
    pace.give_back(20.0, 1)
    assert pace.ready_in(20.0) == 0
    assert pace.allowance(20.0, 5) == 1


@pytest.mark.parametrize("refusal", [NOT_FOUND, UNAUTHENTICATED])
def test_refusals_of_everything_in_a_row_close_the_door_as_well(refusal: Answer) -> None:
    pace = Pacing(100.0)
    for _ in range(3):
        for _ in range(pacing.REFUSALS_MAX - 1):
            pace.on_answer(refusal, Platform.ANDROID, 0.0)
        pace.on_answer(ACCEPTED, Platform.ANDROID, 0.0)
    assert not pace.breakers(0.0)["permission"]
    for _ in range(pacing.REFUSALS_MAX):
        pace.on_answer(refusal, Platform.ANDROID, 0.0)
    assert pace.breakers(0.0)["permission"]


@pytest.mark.parametrize("trouble", [NOT_CONNECTED, NO_OAUTH_TOKEN])
def test_while_fcm_cannot_be_reached_prompts_keep_their_tries(trouble: Answer) -> None:
    pace, now, waits = Pacing(100.0), 0.0, []
    for _ in range(pacing.UNREACHABLE_STRIKES - 1):
        pace.on_answer(trouble, Platform.ANDROID, now)
    assert pace.allowance(now, 5) == 5
    pace.on_answer(trouble, Platform.ANDROID, now)
    for _ in range(7):
        waits.append(pace.ready_in(now))
        now += waits[-1]
        assert pace.allowance(now, 50) == 1
        pace.on_answer(trouble, Platform.ANDROID, now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    now += 30.0
    assert pace.allowance(now, 50) == 1
    pace.on_answer(OVERLOADED, Platform.ANDROID, now)
    assert pace.allowance(now + 1, 5) == 5
    assert not any(pace.breakers(now).values())


def test_while_fcm_gives_no_answer_few_prompts_end_in_doubt() -> None:
    pace, now, spent = Pacing(100.0), 0.0, 0
    while now < 3600.0:
        claimed = pace.allowance(now, 10)
        for _ in range(claimed):
            pace.on_answer(SILENCE, Platform.ANDROID, now)
        spent += claimed
        now += pace.ready_in(now)
    assert spent < 80  # in an hour
    assert pace.breakers(now)["no_answer"]
    assert pace.allowance(now, 10) == 1
    pace.on_answer(UNREGISTERED, Platform.ANDROID, now)  # whatever it says, it is an answer
    assert pace.allowance(now + 1, 10) == 10
    assert not any(pace.breakers(now + 1).values())


def test_a_connection_that_breaks_with_many_pushes_on_it_costs_a_second() -> None:
    pace = Pacing(1000.0)
    for _ in range(100):
        pace.on_answer(SILENCE, Platform.ANDROID, 0.0)
    assert pace.ready_in(0.0) == pacing.NO_ANSWER_WAIT
    assert pace.allowance(pacing.NO_ANSWER_WAIT, 100) == 1
    pace.on_answer(ACCEPTED, Platform.ANDROID, 1.1)
    assert pace.allowance(2.0, 100) == 100


def test_doubt_now_and_then_holds_back_nothing() -> None:
    pace = Pacing(100.0)
    for _ in range(20):
        for _ in range(pacing.NO_ANSWER_STRIKES - 1):
            pace.on_answer(SILENCE, Platform.ANDROID, 0.0)
        pace.on_answer(OVERLOADED, Platform.ANDROID, 0.0)
    assert pace.ready_in(0.0) == 0


def test_a_bad_apns_key_holds_back_ios_alone() -> None:
    pace = Pacing(100.0)
    pace.on_answer(BAD_APNS_KEY, Platform.IOS, 0.0)
    assert pace.breakers(0.0)["apns_auth"]
    assert pace.platforms(1.0) == {Platform.ANDROID, Platform.WEB}
    assert pace.allowance(1.0, 5) == 5
    pace.on_answer(ACCEPTED, Platform.ANDROID, 1.0)
    assert pace.platforms(pacing.APNS_WAIT - 1) == {Platform.ANDROID, Platform.WEB}


def test_ios_goes_on_once_a_probe_got_through() -> None:
    pace, now, waits = Pacing(100.0), 0.0, []
    pace.on_answer(BAD_APNS_KEY, Platform.IOS, now)
    for _ in range(6):
        begun = now
        while Platform.IOS not in pace.platforms(now):
            now += 1.0
        waits.append(now - begun)
        pace.on_answer(ACCEPTED, Platform.ANDROID, now)
        assert Platform.IOS in pace.platforms(now), "asking is no probe, and Android's pushes are none"
        for _ in range(5):
            pace.on_answer(BAD_APNS_KEY, Platform.IOS, now)
    assert waits == [60.0, 120.0, 240.0, 480.0, 900.0, 900.0]
    now += 900.0
    assert Platform.IOS in pace.platforms(now)
    pace.on_answer(ACCEPTED, Platform.IOS, now)
    assert pace.platforms(now) == set(Platform)
    assert not pace.breakers(now)["apns_auth"]


@pytest.mark.parametrize("platform", [Platform.ANDROID, Platform.WEB])
def test_a_key_that_is_not_apples_holds_back_nobody(platform: Platform) -> None:
    pace = Pacing(100.0)
    pace.on_answer(BAD_APNS_KEY, platform, 0.0)
    assert pace.platforms(0.0) == set(Platform)


def test_one_stale_app_build_is_cleaned_up() -> None:
    pace = Pacing(100.0)
    for n in range(50):
        pace.on_answer(MISMATCH, Platform.ANDROID, n * 60.0)
        assert pace.may_revoke(n * 60.0, Code.SENDER_ID_MISMATCH)
        pace.on_answer(ACCEPTED, Platform.ANDROID, n * 60.0)


def test_wrong_credentials_cost_a_handful_of_tokens_and_not_the_address_book() -> None:
    pace, revoked = Pacing(100.0), 0
    for n in range(1000):
        pace.on_answer(MISMATCH, Platform.ANDROID, n * 3600.0)
        revoked += pace.may_revoke(n * 3600.0, Code.SENDER_ID_MISMATCH)
    assert revoked == pacing.MISMATCHES_IN_A_ROW - 1
    assert pace.breakers(1e9)["sender_mismatch"]
    pace.on_answer(ACCEPTED, Platform.ANDROID, 1e9)
    assert pace.may_revoke(1e9, Code.SENDER_ID_MISMATCH)
    assert not pace.breakers(1e9)["sender_mismatch"]


def test_a_burst_between_accepted_pushes_stops_the_revoking_until_it_has_passed() -> None:
    pace, revoked = Pacing(100.0), 0
    for _ in range(100):
        pace.on_answer(MISMATCH, Platform.ANDROID, 50.0)
        revoked += pace.may_revoke(50.0, Code.SENDER_ID_MISMATCH)
        pace.on_answer(ACCEPTED, Platform.ANDROID, 50.0)
    assert revoked == pacing.MISMATCHES_IN_WINDOW - 1
    assert not pace.may_revoke(50.0 + pacing.MISMATCH_WINDOW, Code.SENDER_ID_MISMATCH)
    assert pace.may_revoke(50.1 + pacing.MISMATCH_WINDOW, Code.SENDER_ID_MISMATCH)


@given(st.sampled_from([UNREGISTERED, TokenInvalid(Code.INVALID_ARGUMENT)]))
def test_tokens_that_fcm_calls_dead_are_always_revoked(answer: TokenInvalid) -> None:
    pace = Pacing(100.0)
    for _ in range(100):
        pace.on_answer(MISMATCH, Platform.ANDROID, 0.0)
        pace.on_answer(answer, Platform.ANDROID, 0.0)
        assert pace.may_revoke(0.0, answer.code)


ANSWERS: list[Answer] = [
    *(ACCEPTED, FORBIDDEN, UNAUTHENTICATED, NOT_FOUND, BAD_APNS_KEY, BAD_PAYLOAD, OVERLOADED, NOT_CONNECTED),
    *(NO_OAUTH_TOKEN, MISMATCH, UNREGISTERED, SILENCE, quota(None), quota(0.0), quota(3600.0)),
]


@given(
    st.lists(
        st.tuples(st.floats(0, 700), st.integers(0, 20), st.sampled_from(ANSWERS), st.sampled_from(Platform)),
        max_size=80,
    )
)
def test_whatever_happened_the_daemon_comes_back_to_full_speed(
    script: list[tuple[float, int, Answer, Platform]],
) -> None:
    pace, now = Pacing(50.0), 0.0
    for wait, wanted, answer, platform in script:
        now += wait
        if pace.allowance(now, wanted) == 0:
            pace.give_back(now, 0)
        pace.platforms(now)
        pace.on_answer(answer, platform, now)
        assert math.isfinite(pace.ready_in(now))
    for _ in range(200):
        now += pace.ready_in(now) + 10.0
        claimed = pace.allowance(now, 5)
        for platform in pace.platforms(now) if claimed else ():
            pace.on_answer(ACCEPTED, platform, now)
    now += pacing.MISMATCH_WINDOW
    assert pace.breakers(now) == dict.fromkeys(BREAKERS, False)
    assert pace.allowance(now, 5) == 5
    assert pace.platforms(now) == set(Platform)
