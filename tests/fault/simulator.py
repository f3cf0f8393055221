"""The protocol as pure decisions, driven at random: claim, POST, answer, spool, settle, sweep, and all that goes wrong.

No database and no clock: a seed decides everything, so a failing one can be run again. What the database decides is
`judge` and `swept`, which tests/fault/test_simulator.py holds against the real SQL functions, case by case; what the
daemon decides is in `Simulation`, as DESIGN's section on the protocol has it. `mistakes` are the negative controls.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

LEASE: Final = 12.0
GRACE: Final = 3.0
SEND: Final = 3.0
ATTEMPTS_MAX: Final = 3

STATUSES: Final = ("ready", "sending", "sent", "failed", "unknown", "skipped", "expired")
OUTCOMES: Final = ("sent", "failed", "skipped", "unknown", "retry", "release")


def judge(
    outcome: str, against: int, status: str, *, may_resend: bool, noted: bool = False, another_open: bool = False
) -> str | None:
    """What herald.settle makes of a prompt; None: nothing. `against` is the outcome's epoch minus the row's.

    `may_resend`: on_unknown = 'resend', with tries and time left. `noted`: a notification of an earlier epoch is there.
    """
    if against == 0 and status == "sending":
        if noted and outcome != "sent":
            return "sent"
        if outcome in ("retry", "release"):
            return "ready"
        return "ready" if outcome == "unknown" and may_resend else outcome
    if outcome == "sent":
        if status in ("unknown", "failed", "ready", "skipped", "expired"):
            return "sent"
        if status == "sending":
            return "sending" if against < 0 else "sent"
        return None
    if against == 0 and status == "unknown":
        if outcome in ("failed", "skipped"):
            return outcome
        if outcome in ("retry", "release"):
            return "failed" if another_open else "ready"
    return None


def swept(*, may_resend: bool, noted: bool) -> str:
    """What herald.sweep makes of a claim that is past its deadline and the grace."""
    if noted:
        return "sent"
    return "ready" if may_resend else "unknown"


@dataclass(slots=True)
class Row:
    """A prompt in the database."""

    resend: bool
    status: str = "ready"
    epoch: int = 0
    attempts: int = 0
    deadline: float = 0.0
    not_before: float = 0.0
    notes: int = 0
    doubts: int = 0  # history rows 'unknown'
    by_its_owner: bool = True  # whether it is ready by the word of the last claim's owner, or by the sweep

    @property
    def may_resend(self) -> bool:
        return self.resend and self.attempts < ATTEMPTS_MAX


@dataclass(slots=True)
class Held:
    """A claim in a daemon's memory."""

    prompt: int
    epoch: int
    at: float  # monotonic
    phase: str = "claimed"  # posted, accepted, or the outcome that is to be settled


@dataclass(slots=True)
class Process:
    """A daemon: what dies with it, and its spool, which does not."""

    alive: bool = True
    frozen: bool = False
    held: list[Held] = field(default_factory=list)
    spool: dict[tuple[int, int], bool] = field(default_factory=dict)
    owed: list[tuple[int, int, str]] = field(default_factory=list)


class Violation(AssertionError):
    """The promise does not hold; the text says which part."""


class Simulation:
    """One seed's run."""

    def __init__(
        self, seed: int, *, prompts: int = 3, daemons: int = 3, mistakes: frozenset[str] = frozenset()
    ) -> None:
        self.random = random.Random(seed)
        self.rows = [Row(resend=self.random.random() < 0.3) for _ in range(prompts)]
        self.daemons = [Process() for _ in range(daemons)]
        self.accepted = [0] * prompts
        self.spooled: set[int] = set()
        self.monotonic = 0.0
        self.skew = 0.0  # the database's clock against this machine's monotonic one
        self.away = False
        self.peace = False
        self.steps = 0
        self.mistakes = mistakes

    @property
    def now(self) -> float:
        return self.monotonic + self.skew

    def run(self, steps: int) -> None:
        """So many steps of anything, then peace, then rest; every step is followed by the invariants."""
        for _ in range(steps):
            self.step()
            self.check()
        self.heal()

    def step(self) -> None:
        self.steps += 1
        what = self.random.random()
        if what < 0.03:
            self.away = not self.away
        elif what < 0.05:
            self.skew += self.random.choice((-7200.0, -5.0, 5.0, 20.0, 7200.0))
        elif what < 0.20:
            self.monotonic += self.random.choice((0.1, 1.0, 3.0, 8.0, 20.0))
        elif what < 0.30:
            self.sweep()
        else:
            self.act(self.random.choice(self.daemons))

    def act(self, daemon: Process) -> None:
        """What a daemon does next, or what is done to it."""
        what = self.random.random()
        if not daemon.alive:
            if what < 0.5:
                self.restart(daemon)
            return
        if what < 0.06:
            self.crash(daemon)
        elif what < 0.10:
            daemon.frozen = not daemon.frozen
        elif daemon.frozen:
            return
        elif what < 0.35 or not (daemon.held or daemon.owed):
            self.claim(daemon)
        elif what < 0.45 and daemon.owed:
            self.pay(daemon)
        elif daemon.held:
            self.go_on(daemon, self.random.choice(daemon.held))

    def crash(self, daemon: Process) -> None:
        """SIGKILL: what is in memory is gone. What was under way at FCM may still be accepted."""
        for held in daemon.held:
            if held.phase == "posted" and self.random.random() < 0.5:
                self.accept(held.prompt)
        daemon.alive, daemon.frozen = False, False
        daemon.held, daemon.owed = [], []
        if "no spool" in self.mistakes:
            daemon.spool = {}

    def restart(self, daemon: Process) -> None:
        daemon.alive = True
        daemon.owed = [(prompt, epoch, "sent") for prompt, epoch in daemon.spool]
        self.pay(daemon)

    def claim(self, daemon: Process) -> None:
        if self.away or (daemon.owed and len(daemon.owed) > 2):
            return
        ready = [n for n, row in enumerate(self.rows) if row.status == "ready" and row.not_before <= self.now]
        if not ready:
            return
        prompt = self.random.choice(ready)
        row = self.rows[prompt]
        if not row.by_its_owner:
            raise Violation(f"claimed beside its owner: prompt {prompt}, {row}")
        row.status, row.deadline = "sending", self.now + LEASE
        row.epoch += 1
        row.attempts += 1
        if not self.peace and self.random.random() < 0.05:
            return  # the claim's answer is lost on its way
        daemon.held.append(Held(prompt, row.epoch, self.monotonic))

    def go_on(self, daemon: Process, held: Held) -> None:
        """The next thing of one claim: POST, hear, spool, settle."""
        if held.phase == "claimed":
            if self.monotonic - held.at + SEND > LEASE and "no lease" not in self.mistakes:
                held.phase = "retry"
            elif self.peace:
                held.phase = "posted"
            else:
                held.phase = self.random.choice(("posted", "posted", "posted", "retry", "failed", "skipped", "release"))
        elif held.phase == "posted":
            self.answer(held)
        elif held.phase == "accepted":
            daemon.spool[held.prompt, held.epoch] = True
            self.spooled.add(held.prompt)
            held.phase = "sent"
        else:
            daemon.held.remove(held)
            daemon.owed.append((held.prompt, held.epoch, held.phase))
            self.pay(daemon)

    def answer(self, held: Held) -> None:
        what = 0.0 if self.peace else self.random.random()
        if what < 0.6:
            self.accept(held.prompt)
            held.phase = "accepted"
        elif what < 0.75:
            held.phase = "failed" if what < 0.65 else "retry"
        else:  # the answer is lost
            if what < 0.9:
                self.accept(held.prompt)
            held.phase = "claimed" if "retry on doubt" in self.mistakes else "unknown"

    def accept(self, prompt: int) -> None:
        self.accepted[prompt] += 1

    def pay(self, daemon: Process) -> None:
        """Write what is owed; the COMMIT's answer may be lost, and then it is written again later."""
        owed, daemon.owed = daemon.owed, []
        for prompt, epoch, outcome in owed:
            if self.away:
                daemon.owed.append((prompt, epoch, outcome))
                continue
            self.settle(prompt, epoch, outcome)
            if not self.peace and self.random.random() < 0.1:
                daemon.owed.append((prompt, epoch, outcome))
            else:
                daemon.spool.pop((prompt, epoch), None)

    def settle(self, prompt: int, epoch: int, outcome: str) -> None:
        row = self.rows[prompt]
        against = 0 if "no epoch" in self.mistakes else (epoch > row.epoch) - (epoch < row.epoch)
        becomes = judge(outcome, against, row.status, may_resend=row.may_resend, noted=row.epoch > 1 and row.notes > 0)
        if becomes is None:
            return
        row.status = becomes
        if outcome == "sent":
            row.notes = max(row.notes, 1)
        if outcome == "unknown":
            row.doubts += 1
        if outcome == "release":
            row.attempts -= 1
        if becomes == "ready":
            row.by_its_owner = epoch == row.epoch
            row.not_before = self.now + self.random.choice((0.0, 10.0, 30.0))

    def sweep(self) -> None:
        if self.away:
            return
        for row in self.rows:
            if row.status == "sending" and row.deadline < self.now - GRACE:
                row.status = (
                    "ready"
                    if "reclaim" in self.mistakes
                    else swept(may_resend=row.may_resend, noted=row.epoch > 1 and row.notes > 0)
                )
                row.doubts += row.status != "sent" and "reclaim" not in self.mistakes
                row.not_before, row.by_its_owner = self.now, True

    def heal(self) -> None:
        """Everybody is back, the clock is right, and nothing goes wrong any more, until all is at rest."""
        self.away, self.peace, self.skew = False, True, 0.0
        for _ in range(5000):
            self.monotonic += LEASE + GRACE + 60
            self.sweep()
            for daemon in self.daemons:
                daemon.frozen = False
                if not daemon.alive:
                    self.restart(daemon)
                self.claim(daemon)
                while daemon.held:
                    self.go_on(daemon, daemon.held[0])
                self.pay(daemon)
            self.check()
            idle = not any(each.held or each.owed for each in self.daemons)
            if idle and all(row.status not in ("ready", "sending") for row in self.rows):
                break
        self.check_rest()

    def check(self) -> None:
        """What holds at any moment."""
        for prompt, row in enumerate(self.rows):
            if self.accepted[prompt] > 1 + (row.doubts if row.resend else 0):
                raise Violation(f"pushed twice: prompt {prompt} accepted {self.accepted[prompt]} times, {row}")
            if row.notes and not self.accepted[prompt]:
                raise Violation(f"never accepted: prompt {prompt}, {row}")
            if row.status == "sent" and not row.notes:
                raise Violation(f"sent without its notification: prompt {prompt}, {row}")
            if row.notes and row.status not in ("sent", "sending"):
                raise Violation(f"noted, and taken back: prompt {prompt}, {row}")

    def check_rest(self) -> None:
        """What holds once all is at rest."""
        for prompt, row in enumerate(self.rows):
            if row.status in ("ready", "sending"):
                raise Violation(f"not at rest: prompt {prompt}, {row}")
            if prompt in self.spooled and not row.notes:
                raise Violation(f"lost: prompt {prompt} was in a spool, {row}")
            # With resend a first copy may have been accepted in doubt, and a later try refused for certain.
            doubted = row.resend and row.doubts > 0
            if self.accepted[prompt] and row.status not in ("sent", "unknown") and not doubted:
                raise Violation(f"lost: prompt {prompt} was accepted, {row}")
