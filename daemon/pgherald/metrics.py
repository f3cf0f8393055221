"""What the daemon measures: one table of metrics with closed label sets, and one object that holds their values.

`METRICS` is the source of README's table. `Metrics` has an attribute for each of its rows, named without `pgherald_`;
every series is there from the start, at zero, so a rate or an alert never begins with a gap. A label value outside its
closed set is counted as `other`, so whatever FCM or a newer schema says, the number of series is bounded.

The values are kept here and not in prometheus_client's own metrics for two reasons: they are updated several times a
push, and the contract has a counter `pgherald_prompts_total` beside a gauge `pgherald_prompts`, which one of its
registries refuses. For the same reason the text is served in Prometheus' text format only, never as OpenMetrics.
prometheus_client adds the `process_*` metrics. Updated on the event loop's thread; rendered by the exporter.
"""

from __future__ import annotations

import importlib.metadata
import itertools
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass, field
from enum import StrEnum, unique
from math import isfinite
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from pgherald.model import Code

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"

SCENARIO_TYPES: Final = ("inactivity", "milestone", "expiry", "follow_up")
OUTCOMES: Final = ("sent", "failed", "skipped", "unknown", "expired")
STATUSES: Final = ("ready", "sending", "sent", "failed", "unknown", "skipped", "expired")
GATES: Final = (
    "opted_out",
    "cooldown",
    "duplicate",
    "inactive_recipient",
    "unknown_recipient",
    "quiet_hours",
    "no_device_token",
    "no_longer_due",
    "expired",
    "daily_cap",
    "canary",
    "shadow",
    "held",
)
CODES: Final = tuple(str(code) for code in Code)
WAKEUP_SOURCES: Final = ("notify", "poll", "reconnect")
REVOKED_REASONS: Final = (str(Code.UNREGISTERED), str(Code.INVALID_ARGUMENT), str(Code.SENDER_ID_MISMATCH))
BREAKERS: Final = ("quota", "permission", "unreachable", "no_answer", "apns_auth", "sender_mismatch")

_SEND: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
_DUE_TO_SENT: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0),
)
_EVALUATION: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


@unique
class Kind(StrEnum):
    """Prometheus' word for what a metric is."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table: `labels` maps each label to its closed set, `buckets` are a histogram's upper bounds."""

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()


METRICS: Final = (
    Metric(
        "pgherald_prompts_total",
        Kind.COUNTER,
        "Prompts that came to an outcome in this daemon's hands; a failed one that is tried again counts each time, "
        "and those that a run skips or finds expired count as suppressed.",
        {"scenario_type": SCENARIO_TYPES, "outcome": OUTCOMES},
    ),
    Metric(
        "pgherald_suppressed_total",
        Kind.COUNTER,
        "Candidates of scheduled runs and of those for touched users, whoever made them, that a gate stopped or "
        "deferred.",
        {"scenario_type": SCENARIO_TYPES, "gate": GATES},
    ),
    Metric(
        "pgherald_fcm_responses_total", Kind.COUNTER, "What became of each request to FCM, by code.", {"code": CODES}
    ),
    Metric("pgherald_send_seconds", Kind.HISTOGRAM, "How long each request to FCM took.", buckets=_SEND),
    Metric(
        "pgherald_due_to_sent_seconds",
        Kind.HISTOGRAM,
        "From when a prompt was due until FCM accepted it.",
        buckets=_DUE_TO_SENT,
    ),
    Metric("pgherald_in_flight", Kind.GAUGE, "Requests to FCM under way."),
    Metric("pgherald_prompts", Kind.GAUGE, "Prompts in the database by status.", {"status": STATUSES}),
    Metric(
        "pgherald_oldest_ready_seconds",
        Kind.GAUGE,
        "How long the oldest prompt that may be sent has waited; 0 while all is paused.",
    ),
    Metric("pgherald_listener_up", Kind.GAUGE, "1 while LISTEN is known to work; 0 while only polling finds work."),
    Metric("pgherald_listener_reconnects_total", Kind.COUNTER, "How often the listener had to connect again."),
    Metric(
        "pgherald_wakeups_total",
        Kind.COUNTER,
        "Why the daemon looked for work.",
        {"source": WAKEUP_SOURCES},
    ),
    Metric(
        "pgherald_evaluation_seconds",
        Kind.HISTOGRAM,
        "How long each evaluation of a scenario took, by its type, whoever made it.",
        {"scenario_type": SCENARIO_TYPES},
        _EVALUATION,
    ),
    Metric(
        "pgherald_last_evaluation_timestamp_seconds",
        Kind.GAUGE,
        "When the last scheduled run was, whoever made it; 0 before the first, now where no scenario is to run.",
    ),
    Metric("pgherald_spool_entries", Kind.GAUGE, "Accepted pushes whose record is not in the database yet."),
    Metric(
        "pgherald_tokens_revoked_total",
        Kind.COUNTER,
        "Device tokens revoked because FCM called them invalid.",
        {"reason": REVOKED_REASONS},
    ),
    Metric(
        "pgherald_oauth_expiry_timestamp_seconds",
        Kind.GAUGE,
        "When the access token for FCM expires; 0 while there is none.",
    ),
    Metric(
        "pgherald_notify_queue_usage_ratio",
        Kind.GAUGE,
        "How full the NOTIFY queue of the server is; at 1 every commit with a NOTIFY fails.",
    ),
    Metric(
        "pgherald_breaker_open",
        Kind.GAUGE,
        "1 while a breaker holds sends back, or for sender_mismatch the revoking of tokens.",
        {"breaker": BREAKERS},
    ),
    Metric("pgherald_build_info", Kind.GAUGE, "1, with the version of the daemon.", {"version": ()}),
    # Beyond the contract: what an alert needs besides.
    Metric(
        "pgherald_evaluation_errors_total",
        Kind.COUNTER,
        "Evaluations that failed, by type of scenario, whoever made them.",
        {"scenario_type": SCENARIO_TYPES},
    ),
    Metric(
        "pgherald_invariant_violations",
        Kind.GAUGE,
        "Rows that a health check of the database found; 0 is healthy.",
        {"invariant": ()},
    ),
    Metric("pgherald_paused", Kind.GAUGE, "1 while an operator has paused sending."),
    Metric("pgherald_scenarios_held", Kind.GAUGE, "Scenarios held back until a person looks at them."),
    Metric(
        "pgherald_spool_failing", Kind.GAUGE, "1 while the spool cannot be written or is full, so nothing is claimed."
    ),
    Metric("pgherald_spool_damaged_total", Kind.COUNTER, "Damaged places found in the spool's files at start."),
)

_BY_NAME: Final = {metric.name: metric for metric in METRICS}


class _Series(ABC):
    """The label sets of one metric, and the exact label values that are in them."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._closed = {label: dict.fromkeys(values) for label, values in metric.labels.items()}

    def know(self, label: str, value: str) -> None:
        """Add a value to a label's set, and the series with it at zero."""
        if value not in self._closed[label]:
            self._closed[label][value] = None
            self.start()

    def start(self) -> None:
        """Make every series that the closed sets allow."""
        for values in itertools.product(*self._closed.values()):
            self.add_series(values)

    @abstractmethod
    def add_series(self, values: tuple[str, ...]) -> None:
        """Make the series with these label values, if it is not there."""

    def within(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """The same values with `other` for each that is in no closed set; adds that series."""
        if len(values) != len(self._closed):
            raise TypeError(f"{self.metric.name} has {len(self._closed)} labels, not {len(values)}")
        known = tuple(
            value if value in closed else Code.OTHER if Code.OTHER in closed else OTHER
            for value, closed in zip(values, self._closed.values(), strict=True)
        )
        self.add_series(known)
        return known

    def selector(self, values: tuple[str, ...], *more: str) -> str:
        pairs = [f'{label}="{_escaped(value)}"' for label, value in zip(self._closed, values, strict=True)]
        pairs += more
        return f"{{{','.join(pairs)}}}" if pairs else ""

    @abstractmethod
    def samples(self) -> Iterator[str]:
        """The lines with the numbers."""

    def render(self) -> Iterator[str]:
        """This metric's lines of Prometheus' text format."""
        yield f"# HELP {self.metric.name} {self.metric.help}"
        yield f"# TYPE {self.metric.name} {self.metric.kind}"
        yield from self.samples()


class _Single(_Series):
    """One number for each combination of label values."""

    def __init__(self, metric: Metric) -> None:
        super().__init__(metric)
        self._values: dict[tuple[str, ...], float] = {}
        self.start()

    def add_series(self, values: tuple[str, ...]) -> None:
        self._values.setdefault(values, 0.0)

    def samples(self) -> Iterator[str]:
        for values, number in self._values.items():
            yield f"{self.metric.name}{self.selector(values)} {_number(number)}"

    def value(self, *labels: str) -> float:
        """What is served for these label values now."""
        return self._values[labels]

    def total(self, last: str) -> float:
        """The sum over all series whose last label has this value."""
        return sum(number for values, number in self._values.items() if values[-1] == last)


class Counter(_Single):
    """Only ever goes up."""

    def inc(self, *labels: str, by: float = 1.0) -> None:
        """Count one more, or `by` more, under these label values in the table's order."""
        values = labels if labels in self._values else self.within(labels)
        if by > 0:
            self._values[values] += by


class Gauge(_Single):
    """A number as it is now."""

    def set(self, number: float, *labels: str) -> None:
        """The number as it is now, under these label values in the table's order."""
        self._values[labels if labels in self._values else self.within(labels)] = float(number)

    def inc(self, *labels: str, by: float = 1.0) -> None:
        """`by` more; less, if negative."""
        self._values[labels if labels in self._values else self.within(labels)] += by


class Histogram(_Series):
    """How often a number was up to each of some bounds, its sum and its count."""

    def __init__(self, metric: Metric) -> None:
        super().__init__(metric)
        self._bounds = metric.buckets
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self.start()

    def add_series(self, values: tuple[str, ...]) -> None:
        self._sums.setdefault(values, 0.0)
        self._counts.setdefault(values, [0] * (len(self._bounds) + 1))

    def observe(self, number: float, *labels: str) -> None:
        """Count one observation; less than zero, as between two clocks, counts as zero."""
        if not isfinite(number):
            return
        values = labels if labels in self._sums else self.within(labels)
        number = max(number, 0.0)
        self._counts[values][bisect_left(self._bounds, number)] += 1
        self._sums[values] += number

    def count(self, *labels: str) -> int:
        """How many observations there were."""
        return sum(self._counts[labels])

    def samples(self) -> Iterator[str]:
        name = self.metric.name
        for values, counts in self._counts.items():
            total = 0
            for bound, count in zip([*map(_number, self._bounds), "+Inf"], counts, strict=True):
                total += count
                selector = self.selector(values, f'le="{bound}"')
                yield f"{name}_bucket{selector} {total}"
            yield f"{name}_sum{self.selector(values)} {_number(self._sums[values])}"
            yield f"{name}_count{self.selector(values)} {total}"


def _number(number: float) -> str:
    return repr(number) if isfinite(number) else {"inf": "+Inf", "-inf": "-Inf"}.get(repr(number), "NaN")


def _escaped(value: str) -> str:
    text = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return text.encode("utf-8", "replace").decode()


S = TypeVar("S", Counter, Gauge, Histogram)


class Metrics:
    """All values of one daemon. Each attribute is the row of `METRICS` with `pgherald_` before its name."""

    def __init__(self, version: str | None = None) -> None:
        self._all: dict[str, Counter | Gauge | Histogram] = {}
        self.prompts_total = self._made(Counter, "prompts_total")
        self.suppressed_total = self._made(Counter, "suppressed_total")
        self.fcm_responses_total = self._made(Counter, "fcm_responses_total")
        self.send_seconds = self._made(Histogram, "send_seconds")
        self.due_to_sent_seconds = self._made(Histogram, "due_to_sent_seconds")
        self.in_flight = self._made(Gauge, "in_flight")
        self.prompts = self._made(Gauge, "prompts")
        self.oldest_ready_seconds = self._made(Gauge, "oldest_ready_seconds")
        self.listener_up = self._made(Gauge, "listener_up")
        self.listener_reconnects_total = self._made(Counter, "listener_reconnects_total")
        self.wakeups_total = self._made(Counter, "wakeups_total")
        self.evaluation_seconds = self._made(Histogram, "evaluation_seconds")
        self.last_evaluation_timestamp_seconds = self._made(Gauge, "last_evaluation_timestamp_seconds")
        self.spool_entries = self._made(Gauge, "spool_entries")
        self.tokens_revoked_total = self._made(Counter, "tokens_revoked_total")
        self.oauth_expiry_timestamp_seconds = self._made(Gauge, "oauth_expiry_timestamp_seconds")
        self.notify_queue_usage_ratio = self._made(Gauge, "notify_queue_usage_ratio")
        self.breaker_open = self._made(Gauge, "breaker_open")
        self.build_info = self._made(Gauge, "build_info")
        self.evaluation_errors_total = self._made(Counter, "evaluation_errors_total")
        self.invariant_violations = self._made(Gauge, "invariant_violations")
        self.paused = self._made(Gauge, "paused")
        self.scenarios_held = self._made(Gauge, "scenarios_held")
        self.spool_failing = self._made(Gauge, "spool_failing")
        self.spool_damaged_total = self._made(Counter, "spool_damaged_total")
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        version = _installed_version() if version is None else version
        self.build_info.know("version", version)
        self.build_info.set(1, version)

    def _made(self, kind: type[S], name: str) -> S:
        metric = _BY_NAME[f"pgherald_{name}"]
        made = kind(metric)
        self._all[metric.name] = made
        return made

    def know_scenario_type(self, name: str) -> None:
        """Give a registered scenario type series of its own, wherever scenarios are counted by type."""
        for series in self._all.values():
            if "scenario_type" in series.metric.labels:
                series.know("scenario_type", name)

    def know_invariant(self, name: str) -> None:
        """Give a health check of the database a series of its own."""
        self.invariant_violations.know("invariant", name)

    def render(self) -> bytes:
        """Everything in Prometheus' text format, `CONTENT_TYPE`."""
        lines = [line for metric in METRICS for line in self._all[metric.name].render()]
        return "\n".join(lines).encode() + b"\n" + generate_latest(self._process)


def _installed_version() -> str:
    try:
        return importlib.metadata.version("pgherald")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
