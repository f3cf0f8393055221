"""What the metrics promise: names and labels of the contract, zero series from the start, a bounded number of them."""

from __future__ import annotations

import math
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pgherald.metrics import BREAKERS, METRICS, OTHER, Kind, Metrics
from pgherald.model import Code

# The contract, as it is written there. Labels whose values the contract names have them here.
CONTRACT: dict[str, dict[str, list[str] | None]] = {
    "pgherald_prompts_total": {"scenario_type": None, "outcome": ["sent", "failed", "skipped", "unknown", "expired"]},
    "pgherald_suppressed_total": {"scenario_type": None, "gate": None},
    "pgherald_fcm_responses_total": {"code": None},
    "pgherald_send_seconds": {},
    "pgherald_due_to_sent_seconds": {},
    "pgherald_in_flight": {},
    "pgherald_prompts": {"status": ["ready", "sending", "sent", "failed", "unknown", "skipped", "expired"]},
    "pgherald_oldest_ready_seconds": {},
    "pgherald_listener_up": {},
    "pgherald_listener_reconnects_total": {},
    "pgherald_wakeups_total": {"source": ["notify", "poll", "reconnect"]},
    "pgherald_evaluation_seconds": {"scenario_type": None},
    "pgherald_last_evaluation_timestamp_seconds": {},
    "pgherald_spool_entries": {},
    "pgherald_tokens_revoked_total": {"reason": None},
    "pgherald_oauth_expiry_timestamp_seconds": {},
    "pgherald_notify_queue_usage_ratio": {},
    "pgherald_breaker_open": {"breaker": None},
    "pgherald_build_info": {"version": None},
}
BEYOND_IT = {
    "pgherald_evaluation_errors_total",
    "pgherald_invariant_violations",
    "pgherald_paused",
    "pgherald_scenarios_held",
    "pgherald_spool_failing",
    "pgherald_spool_damaged_total",
}


def samples(metrics: Metrics) -> dict[str, float]:
    """What a scrape gives, as `name{label="value"}` -> number; ours only."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name.startswith("pgherald_"):
                labels = ",".join(f'{label}="{value}"' for label, value in sorted(sample.labels.items()))
                key = f"{sample.name}{{{labels}}}" if labels else sample.name
                assert key not in found, f"{key} is there twice"
                found[key] = sample.value
    return found


def test_the_table_equals_the_contract_and_says_what_is_beyond_it() -> None:
    assert {metric.name for metric in METRICS} == set(CONTRACT) | BEYOND_IT
    for metric in METRICS:
        for label, values in CONTRACT.get(metric.name, {}).items():
            assert label in metric.labels
            if values is not None:
                assert list(metric.labels[label]) == values
        if metric.name in CONTRACT:
            assert set(metric.labels) == set(CONTRACT[metric.name])


def test_each_metric_is_of_the_kind_its_name_promises() -> None:
    for metric in METRICS:
        assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total")
        assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert metric.help.endswith(".")


def test_the_buckets_span_what_a_push_can_take() -> None:
    buckets = {metric.name: metric.buckets for metric in METRICS}
    assert (buckets["pgherald_send_seconds"][0], buckets["pgherald_send_seconds"][-1]) == (0.001, 10)
    due = buckets["pgherald_due_to_sent_seconds"]
    assert (due[0], due[-1]) == (0.001, 3 * 86_400)


def test_every_series_is_there_at_zero_from_the_start() -> None:
    found = samples(Metrics("1.2.3"))
    assert found.pop('pgherald_build_info{version="1.2.3"}') == 1
    assert set(found.values()) == {0}
    for metric in METRICS:
        expected = math.prod(len(values) for values in metric.labels.values())
        if metric.name == "pgherald_build_info":
            continue
        name = f"{metric.name}_count" if metric.buckets else metric.name
        assert len([key for key in found if key.split("{")[0] == name]) == expected
    for code in Code:
        assert f'pgherald_fcm_responses_total{{code="{code}"}}' in found
    for breaker in BREAKERS:
        assert f'pgherald_breaker_open{{breaker="{breaker}"}}' in found
    for scenario_type in ("inactivity", "milestone", "expiry", "follow_up"):
        assert f'pgherald_prompts_total{{outcome="sent",scenario_type="{scenario_type}"}}' in found


def test_the_metrics_check_of_prometheus_finds_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    metrics = Metrics()
    metrics.know_scenario_type("anniversary")
    metrics.know_invariant("one_record_a_push")
    metrics.prompts_total.inc("nobody knows", "sent")
    metrics.send_seconds.observe(0.2)
    done = subprocess.run([promtool, "check", "metrics"], input=metrics.render(), capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_values_are_served_as_they_are() -> None:
    metrics = Metrics()
    metrics.prompts_total.inc("inactivity", "sent")
    metrics.prompts_total.inc("inactivity", "sent", by=2)
    metrics.prompts.set(7, "ready")
    metrics.in_flight.inc()
    metrics.in_flight.inc(by=-1)
    metrics.listener_up.set(True)
    metrics.oldest_ready_seconds.set(math.inf)
    found = samples(metrics)
    assert found['pgherald_prompts_total{outcome="sent",scenario_type="inactivity"}'] == 3
    assert found['pgherald_prompts{status="ready"}'] == 7
    assert found["pgherald_in_flight"] == 0
    assert found["pgherald_listener_up"] == 1
    assert found["pgherald_oldest_ready_seconds"] == math.inf


@given(st.lists(st.floats(min_value=0, max_value=1e6)))
def test_a_histogram_counts_each_observation_in_every_bucket_that_reaches_it(observed: list[float]) -> None:
    metrics = Metrics()
    for number in observed:
        metrics.send_seconds.observe(number)
    found = samples(metrics)
    for bound in metrics.send_seconds.metric.buckets:
        assert found[f'pgherald_send_seconds_bucket{{le="{bound}"}}'] == len([n for n in observed if n <= bound])
    assert found['pgherald_send_seconds_bucket{le="+Inf"}'] == found["pgherald_send_seconds_count"] == len(observed)
    assert found["pgherald_send_seconds_sum"] == pytest.approx(sum(observed))


def test_what_two_clocks_disagree_on_never_makes_a_sum_go_down() -> None:
    metrics = Metrics()
    for number in (-1.0, math.nan, math.inf, -math.inf):
        metrics.due_to_sent_seconds.observe(number)
    metrics.prompts_total.inc("inactivity", "sent", by=-1)
    found = samples(metrics)
    assert (found["pgherald_due_to_sent_seconds_count"], found["pgherald_due_to_sent_seconds_sum"]) == (1, 0)
    assert found['pgherald_prompts_total{outcome="sent",scenario_type="inactivity"}'] == 0


def test_a_registered_scenario_type_has_all_its_series_at_zero_before_anything_happens() -> None:
    metrics = Metrics()
    metrics.prompts_total.inc("inactivity", "sent")
    metrics.know_scenario_type("anniversary")
    metrics.know_scenario_type("anniversary")
    found = samples(metrics)
    assert found['pgherald_prompts_total{outcome="sent",scenario_type="inactivity"}'] == 1
    for outcome in ("sent", "failed", "skipped", "unknown", "expired"):
        assert found[f'pgherald_prompts_total{{outcome="{outcome}",scenario_type="anniversary"}}'] == 0
    assert found['pgherald_suppressed_total{gate="cooldown",scenario_type="anniversary"}'] == 0
    assert found['pgherald_evaluation_seconds_count{scenario_type="anniversary"}'] == 0


def test_a_registered_health_check_has_its_series() -> None:
    metrics = Metrics()
    metrics.know_invariant("one_record_a_push")
    metrics.invariant_violations.set(2, "one_record_a_push")
    assert samples(metrics)['pgherald_invariant_violations{invariant="one_record_a_push"}'] == 2


def test_values_that_nobody_foresaw_share_one_series() -> None:
    metrics = Metrics()
    before = len(samples(metrics))
    for i in range(1000):
        metrics.prompts_total.inc(f"made up {i}", "sent")
        metrics.fcm_responses_total.inc(f"CODE_{i}")
        metrics.tokens_revoked_total.inc(f"REASON_{i}")
    found = samples(metrics)
    assert len(found) == before + 2
    assert found[f'pgherald_prompts_total{{outcome="sent",scenario_type="{OTHER}"}}'] == 1000
    assert found[f'pgherald_tokens_revoked_total{{reason="{OTHER}"}}'] == 1000
    assert found['pgherald_fcm_responses_total{code="OTHER"}'] == 1000


def test_a_forgotten_label_is_an_error_of_the_program() -> None:
    with pytest.raises(TypeError, match="has 2 labels, not 1"):
        Metrics().prompts_total.inc("inactivity")


@given(st.text(min_size=1))
def test_any_name_of_a_scenario_type_or_version_leaves_the_text_readable(name: str) -> None:
    metrics = Metrics(name)
    metrics.know_scenario_type(name)
    assert len(metrics.render().decode().splitlines()) > 100


def test_the_process_itself_is_measured_too() -> None:
    text = Metrics().render().decode()
    assert "\nprocess_resident_memory_bytes " in text
    assert "\nprocess_open_fds " in text
    assert "_created" not in text
