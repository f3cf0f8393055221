"""How faults are written down, and which requests meet them."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from pgherald.emulator.faults import Endpoint, Fault, FaultError, Faults, Wire, parse_fault, read_fault

NOW = datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("drop_after", {"do": "drop_after"}),
        ("drop_after,every=10", {"do": "drop_after", "every": 10}),
        ("status=503,fraction=0.1", {"do": "status", "status": 503, "fraction": 0.1}),
        ("latency=0.05", {"do": "latency", "seconds": 0.05}),
        ("latency=0.05-0.2", {"do": "latency", "seconds": [0.05, 0.2]}),
        ("drip=0.1,next=1", {"do": "drip", "seconds": 0.1, "next": 1}),
        (
            "code=QUOTA_EXCEEDED,next=3,retry_after=5",
            {"do": "status", "code": "QUOTA_EXCEEDED", "next": 3, "retry_after": 5},
        ),
        ("status=503,accepted=true,on=send", {"do": "status", "status": 503, "accepted": True}),
        ("silent,on=token", {"do": "silent", "on": "token"}),
        ("drop_before,token_prefix=ios-", {"do": "drop_before", "token_prefix": "ios-"}),
    ],
)
def test_the_command_line_and_json_say_the_same(text: str, content: dict[str, Any]) -> None:
    assert parse_fault(text) == read_fault(content)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "explode",
        "whole",
        "latency",
        "latency=soon",
        "latency=0.2-0.1",
        "latency=-1",
        "status",
        "status=99",
        "code=NO_SUCH",
        "drop_after,every",
        "drop_after,every=0",
        "drop_after,every=1.5",
        "drop_after,fraction=2",
        "drop_after,next=1,every=2",
        "drop_after,on=elsewhere",
        "drop_after,accepted=true",
        "drop_after,colour=red",
        "status=503,accepted=1",
        "status=503,retry_after=-1",
    ],
)
def test_a_fault_written_wrongly_is_refused(text: str) -> None:
    with pytest.raises(FaultError):
        parse_fault(text)


def test_the_refusal_of_what_is_no_json_object_shows_one_that_is() -> None:
    with pytest.raises(FaultError) as refused:
        read_fault("silent")
    shown = str(refused.value).partition("such as ")[2]
    assert read_fault(json.loads(shown)) == parse_fault("status=503,next=3")


@pytest.mark.parametrize("content", [None, [], "drop_after", {"do": 1}, {"do": "status", "status": "503"}])
def test_json_that_is_no_fault_is_refused(content: object) -> None:
    with pytest.raises(FaultError):
        read_fault(content)


def hit(faults: Faults, times: int, device: str = "") -> list[bool]:
    return [faults.draw(Endpoint.SEND, device).fault is not None for _ in range(times)]


def test_without_a_selector_every_request_meets_the_fault() -> None:
    faults = Faults()
    faults.set("drop_after")
    assert all(hit(faults, 5))


def test_next_meets_that_many_and_then_none() -> None:
    faults = Faults()
    faults.set("drop_after,next=2")
    assert hit(faults, 4) == [True, True, False, False]


def test_every_meets_each_kth() -> None:
    faults = Faults()
    faults.set("drop_after,every=3")
    assert hit(faults, 7) == [False, False, True, False, False, True, False]


def test_a_fraction_follows_from_the_seed() -> None:
    runs = []
    for seed in (1, 1, 2):
        faults = Faults(seed)
        faults.set("drop_after,fraction=0.3")
        runs.append(hit(faults, 1000))
    assert runs[0] == runs[1] != runs[2]
    assert 230 < sum(runs[0]) < 370


def test_only_the_endpoint_and_the_devices_named_are_met() -> None:
    faults = Faults()
    faults.set("drop_after,token_prefix=ios-,next=1", "silent,on=token")
    assert hit(faults, 2, "android-1") == [False, False]
    assert hit(faults, 2, "ios-1") == [True, False]
    found = faults.draw(Endpoint.TOKEN).fault
    assert found is not None
    assert found.wire is Wire.SILENT


def test_latencies_add_up_and_leave_the_answer_to_another_fault() -> None:
    faults = Faults()
    faults.set("latency=0.1", "latency=0.2-0.3", "drop_after,next=1", "silent")
    verdict = faults.draw(Endpoint.SEND)
    assert 0.3 <= verdict.delay <= 0.4
    assert verdict.fault is not None
    assert verdict.fault.wire is Wire.DROP_AFTER
    after = faults.draw(Endpoint.SEND).fault
    assert after is not None
    assert after.wire is Wire.SILENT


def test_a_set_with_a_wrong_fault_changes_nothing() -> None:
    faults = Faults()
    faults.set("drop_after")
    with pytest.raises(FaultError):
        faults.set("silent", {"do": "explode"})
    assert [fault["do"] for fault in faults.as_json()] == ["drop_after"]


def test_retry_after_comes_as_seconds_or_as_a_date() -> None:
    seconds = Fault(do="status", code="QUOTA_EXCEEDED", retry_after=30).answer(NOW)
    date = Fault(do="status", code="QUOTA_EXCEEDED", retry_after_date=30).answer(NOW)
    assert dict(seconds.headers)["retry-after"] == "30"
    assert dict(date.headers)["retry-after"] == "Sat, 31 Jan 2026 12:00:30 GMT"


def test_a_status_that_fcm_does_not_use_is_a_proxys_page() -> None:
    answer = Fault(do="status", status=504).answer(NOW)
    assert answer.status == 504
    assert b"<!DOCTYPE html>" in answer.body


def test_status_and_body_override_those_of_the_code() -> None:
    answer = Fault(do="status", status=200, code="UNAVAILABLE", body="{}").answer(NOW)
    assert (answer.status, answer.body) == (200, b"{}")
