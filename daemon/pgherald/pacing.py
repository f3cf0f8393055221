"""How fast the daemon may send, and when it had better not: one token bucket, and six breakers.

Pure: `now` is a moment of `time.monotonic()` that the caller passes in, and never goes back. The worker asks
`allowance` before it claims, so what may not be sent now stays `ready` in the database, where any daemon can take it;
the dispatcher reports every answer through `on_answer`. Each daemon has its own: with several, `PGHERALD_MAX_RATE` is
for each.

The ramp: from idle, sending starts at a tenth of the maximum rate (or 1,000 a second, if that is more) and may grow to
all of it within 60 seconds of full use, as FCM asks of those who send thousands a second. The level falls back the same
way while less than half of it is used. With a maximum of 1,000 a second or less there is no ramp at all.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from pgherald.backoff import RETRY_BASE
from pgherald.model import Code, Platform
from pgherald.outcome import QUOTA_PAUSE, Accepted, Effect, Rejected, TokenInvalid, Unsure

if TYPE_CHECKING:
    from pgherald.outcome import Answer

RAMP_SECONDS: Final = 60.0
RAMP_START: Final = 0.1
RAMP_FLOOR: Final = 1000.0
"""Messages a second that need no ramp: a tenth of FCM's default quota."""

BURST_SECONDS: Final = 0.1
"""The bucket holds what a tenth of a second gives, so that no second has more than 1.1 times the rate."""

BATCH_SECONDS: Final = 0.02
"""What the bucket should hold before a sender that found it empty comes back: claims of one row are a waste."""

PERMISSION_WAIT: Final = RETRY_BASE
PERMISSION_WAIT_MAX: Final = 600.0
"""Seconds between probes of a closed door (403): ten at first, as before any retry; ten minutes once it stays closed,
so that a repaired IAM role is noticed before anybody has to restart anything."""

REFUSALS_MAX: Final = 5
"""401s and 404s in a row that mean the same as one 403. Each can be an accident; five without one push accepted in
between are a wrong project, endpoint or key, and every further prompt would fail for good."""

APNS_WAIT: Final = 60.0
APNS_WAIT_MAX: Final = 900.0
"""Seconds between probes with iOS pushes while the APNs key is bad: someone has to upload another one by hand."""

UNREACHABLE_STRIKES: Final = 3
UNREACHABLE_WAIT: Final = 1.0
UNREACHABLE_WAIT_MAX: Final = 30.0
"""Three sends in a row that found no connection or no access token stop the claiming: prompts keep their tries for when
FCM is reachable. A probe costs next to nothing, so an outage is over within half a minute of its end."""

NO_ANSWER_STRIKES: Final = 10
NO_ANSWER_WAIT: Final = 1.0
NO_ANSWER_WAIT_MAX: Final = 60.0
"""Ten sends in a row with no answer of FCM's (none in time, or a proxy's page) stop the claiming, for each of them ends
its prompt as unknown. So does every probe that fails: there are fewer of them than while FCM is unreachable. One
connection that breaks can be ten sends; then the first probe succeeds, a second later."""

PROBE_PATIENCE: Final = 30.0
"""Seconds after which a probe that brought no verdict (nothing to send, no answer) is given up and another one made."""

MISMATCHES_IN_A_ROW: Final = 5
MISMATCHES_IN_WINDOW: Final = 20
MISMATCH_WINDOW: Final = 600.0
"""SENDER_ID_MISMATCH says that a token belongs to another Firebase project. A person with an old app build is one or
two; with the wrong credentials it is everybody, and revoking would throw the whole address book away. Five without an
accepted push in between, or twenty within ten minutes, stop the revoking: five lost addresses are bearable, and a
genuine clean-up of more than two a minute can wait."""


class _Circuit:
    """Closed until it has taken enough strikes; then one probe at a time, ever more rarely, until one succeeds."""

    def __init__(self, strikes: int, wait: float, wait_max: float) -> None:
        self._strikes_max = strikes
        self._strikes = 0
        self._first_wait = wait
        self._wait_max = wait_max
        self._wait = 0.0
        self._probe_at = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._wait > 0.0

    def ready_in(self, now: float) -> float:
        return max(self._probe_at - now, 0.0) if self.is_open else 0.0

    def probe(self, now: float) -> None:
        """Something is sent while open: wait for its verdict."""
        if self.is_open:
            self._probing = True
            self._probe_at = now + PROBE_PATIENCE

    def take_back(self, now: float) -> None:
        """The probe was not sent after all."""
        if self._probing:
            self._probing = False
            self._probe_at = now

    def strike(self, now: float, weight: int = 1) -> None:
        """A failure. While open only a probe's counts: the others were on their way before."""
        if self.is_open:
            if self._is_verdict(now):
                self._open(now, min(self._wait * 2, self._wait_max))
            return
        self._strikes += weight
        if self._strikes >= self._strikes_max:
            self._open(now, self._first_wait)

    def _open(self, now: float, wait: float) -> None:
        self._wait = wait
        self._probe_at = now + wait
        self._probing = False

    def _is_verdict(self, now: float) -> bool:
        """Whether an answer can be a probe's: one was sent, or what comes now was sent since the wait is over."""
        return self._probing or now >= self._probe_at

    def succeed(self, now: float) -> None:
        """A success, which closes it; but what was on its way before it opened says nothing about now."""
        if self._wait == 0.0:
            self._strikes = 0
        elif self._is_verdict(now):
            self._strikes = 0
            self._wait = 0.0
            self._probing = False


class Pacing:
    """What one daemon may send at any moment; `max_rate` in messages a second.

    `ramp_seconds` of 0 means no ramp, for an endpoint on this machine.
    """

    def __init__(self, max_rate: float, *, ramp_seconds: float = RAMP_SECONDS) -> None:
        self._ramp_seconds = ramp_seconds
        self._shape(max_rate)
        self._level = self._start
        self._tokens = self._burst()
        self._at: float | None = None
        self._paused_until = float("-inf")
        self._permission = _Circuit(REFUSALS_MAX, PERMISSION_WAIT, PERMISSION_WAIT_MAX)
        self._unreachable = _Circuit(UNREACHABLE_STRIKES, UNREACHABLE_WAIT, UNREACHABLE_WAIT_MAX)
        self._no_answer = _Circuit(NO_ANSWER_STRIKES, NO_ANSWER_WAIT, NO_ANSWER_WAIT_MAX)
        self._circuits = (self._permission, self._unreachable, self._no_answer)  # each of which holds back everything
        self._apns = _Circuit(1, APNS_WAIT, APNS_WAIT_MAX)
        self._mismatches_in_a_row = 0
        self._mismatches: deque[float] = deque(maxlen=MISMATCHES_IN_WINDOW)

    def _shape(self, max_rate: float) -> None:
        ramp = self._ramp_seconds
        self._max_rate = max_rate
        self._start = min(max_rate, max(RAMP_FLOOR, max_rate * RAMP_START)) if ramp > 0 else max_rate
        self._slope = (max_rate - self._start) / ramp if ramp > 0 else 0.0

    def set_max_rate(self, now_mono: float, max_rate: float) -> None:
        """Another maximum from now on; pauses and breakers stay as they are."""
        self._advance(now_mono)
        self._shape(max_rate)
        self._set_level(self._level)
        self._tokens = min(self._tokens, self._burst())

    def allowance(self, now_mono: float, wanted: int) -> int:
        """How many messages may be sent now, at most `wanted`; with a circuit open that is one now and then, the probe.

        They count as sent: what is not, `give_back` returns.
        """
        self._advance(now_mono)
        if now_mono < self._paused_until or any(circuit.ready_in(now_mono) > 0 for circuit in self._circuits):
            return 0
        if any(circuit.is_open for circuit in self._circuits):
            wanted = min(wanted, 1)
        allowed = max(min(wanted, int(self._tokens + 1e-9)), 0)
        if allowed:
            self._spend(allowed)
            for circuit in self._circuits:
                circuit.probe(now_mono)
        return allowed

    def give_back(self, now_mono: float, count: int) -> None:
        """`count` messages of the last allowance were not sent, for want of prompts."""
        if count > 0:
            self._advance(now_mono)
            self._spend(-count)
            for circuit in self._circuits:
                circuit.take_back(now_mono)

    def charge(self, now_mono: float, count: int) -> None:
        """`count` messages went out without an allowance (a person's further devices): the next ones wait for them."""
        self._advance(now_mono)
        self._spend(count)

    def ready_in(self, now_mono: float) -> float:
        """Seconds until it is worth asking for an allowance again; 0 if it is now."""
        self._advance(now_mono)
        wait = max(self._paused_until - now_mono, *(circuit.ready_in(now_mono) for circuit in self._circuits))
        if self._tokens + 1e-9 < 1:
            enough = min(max(1.0, self._level * BATCH_SECONDS), self._burst())
            wait = max(wait, (enough - self._tokens) / self._level, 0.001)
        return max(wait, 0.0)

    def platforms(self, now_mono: float) -> frozenset[Platform]:
        """Whom to send to now. While the APNs key is bad, iOS is among them from when a probe is due to its answer.

        Asking consumes nothing, so what is sent to iOS in that time are as many probes.
        """
        return _ALL_BUT_IOS if self._apns.ready_in(now_mono) > 0 else _ALL

    def on_answer(self, answer: Answer, platform: Platform, now_mono: float) -> None:
        """Learn from what FCM said (or from its silence) about more than the one push."""
        match answer:
            case Accepted():
                self._permission.succeed(now_mono)
                self._mismatches_in_a_row = 0
                if platform is _IOS:
                    self._apns.succeed(now_mono)
            case TokenInvalid(Code.SENDER_ID_MISMATCH):
                self._mismatches_in_a_row += 1
                self._mismatches.append(now_mono)
            case TokenInvalid():
                self._permission.succeed(now_mono)
            case Rejected():
                self._on_rejected(answer, platform, now_mono)
            case _:
                pass
        if isinstance(answer, Unsure):
            self._no_answer.strike(now_mono)
        elif isinstance(answer, Rejected) and answer.code in (Code.NOT_CONNECTED, Code.NO_OAUTH_TOKEN):
            self._unreachable.strike(now_mono)
        else:
            self._unreachable.succeed(now_mono)
            self._no_answer.succeed(now_mono)

    def _on_rejected(self, answer: Rejected, platform: Platform, now: float) -> None:
        match answer.effect:
            case Effect.QUOTA:
                if now >= self._paused_until:
                    self._advance(now)
                    self._level = max(self._level / 2, self._start)
                    self._tokens = min(self._tokens, self._burst())
                wait = QUOTA_PAUSE if answer.retry_after is None else answer.retry_after
                self._paused_until = max(self._paused_until, now + wait)
            case Effect.CIRCUIT:
                self._permission.strike(now, REFUSALS_MAX)
            case Effect.CONFIG_ALARM | Effect.REAUTH:
                self._permission.strike(now)
            case Effect.PAUSE_IOS:
                if platform is Platform.IOS:
                    self._apns.strike(now)
            case Effect.NONE | Effect.PAYLOAD_ALARM | Effect.OVERLOAD:
                pass

    def may_revoke(self, now_mono: float, code: str) -> bool:
        """Whether a token found invalid may be revoked; ask after `on_answer` has counted it."""
        return code != Code.SENDER_ID_MISMATCH or not self._is_mismatch_burst(now_mono)

    def breakers(self, now_mono: float) -> dict[str, bool]:
        """Which breakers are open, by the name they have in the metrics."""
        return {
            "quota": now_mono < self._paused_until,
            "permission": self._permission.is_open,
            "unreachable": self._unreachable.is_open,
            "no_answer": self._no_answer.is_open,
            "apns_auth": self._apns.is_open,
            "sender_mismatch": self._is_mismatch_burst(now_mono),
        }

    def _is_mismatch_burst(self, now: float) -> bool:
        full = len(self._mismatches) == MISMATCHES_IN_WINDOW
        return self._mismatches_in_a_row >= MISMATCHES_IN_A_ROW or (
            full and now - self._mismatches[0] <= MISMATCH_WINDOW
        )

    def _burst(self) -> float:
        return max(1.0, self._level * BURST_SECONDS)

    def _advance(self, now: float) -> None:
        """Fill the bucket, and let the level fall, for the time since the last call."""
        passed = max(now - self._at, 0.0) if self._at is not None else 0.0
        self._at = now if self._at is None else max(now, self._at)
        gained = self._level * passed
        self._set_level(self._level - self._slope * passed)
        self._tokens = min(self._tokens + gained, self._burst())

    def _spend(self, count: int) -> None:
        """Take from the bucket. Sent at the full level, this raises the level twice as fast as time lowers it."""
        self._tokens = min(self._tokens - count, self._burst())
        self._set_level(self._level + 2 * self._slope * count / self._level)

    def _set_level(self, level: float) -> None:
        self._level = min(max(level, self._start), self._max_rate)


_IOS: Final = Platform.IOS
_ALL: Final = frozenset(Platform)
_ALL_BUT_IOS: Final = _ALL - {_IOS}
