"""FCM's answers lost, late, wrong or not there: one push at most, and `unknown` for exactly those who lost theirs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pgherald.emulator.client import emulator_process
from tests.fault.conftest import lacks, needs
from tests.fault.invariants import Broken, check_invariants
from tests.fault.promise import with_control
from tests.fault.world import FULL, wait_until

if TYPE_CHECKING:
    from uuid import UUID

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.promise import Promise, Worlds
    from tests.fault.world import World


LOST: Final[dict[str, dict[str, Any]]] = {
    "odd-reset-after-": {"do": "drop_after"},
    "odd-reset-before-": {"do": "drop_before"},
    "odd-head-": {"do": "cut_headers"},
    "odd-body-": {"do": "cut_body"},
    "odd-silent-": {"do": "silent"},
    "odd-502-": {"do": "status", "status": 502, "body": "<html>bad gateway</html>"},
    "odd-500-": {"do": "status", "status": 500, "body": "<html>oops</html>"},
    "odd-503-": {"do": "status", "status": 503, "body": "<html>busy</html>", "accepted": True},
    "odd-empty-": {"do": "status", "status": 200, "body": "", "accepted": True},
    "odd-goaway-": {"do": "goaway_after"},
}
"""By how the tokens of those begin whom it befalls: an answer from which nobody can tell whether FCM accepted."""

NOT_ACCEPTED: Final = {"odd-reset-before-", "odd-502-", "odd-500-"}

REFUSED: Final[dict[str, dict[str, Any]]] = {
    "odd-unavailable-": {"do": "status", "code": "UNAVAILABLE", "next": 4},
    "odd-internal-": {"do": "status", "code": "INTERNAL", "next": 4},
    "odd-quota-": {"do": "status", "code": "QUOTA_EXCEEDED", "retry_after": 1, "next": 2},
    "odd-date-": {"do": "status", "code": "QUOTA_EXCEEDED", "retry_after_date": 2, "next": 2},
}
"""Not sent for certain, and FCM says so."""


def befall(world: World, fcm: EmulatorProcess, faults: dict[str, dict[str, Any]]) -> list[UUID]:
    """Three people for each fault, and thirty whom nothing befalls; those of the faults are returned."""
    world.scenario()
    unlucky = [person for prefix in faults for person in world.people(3, prefix=prefix)]
    others = world.people(30)
    fcm.set_faults(*(fault | {"token_prefix": prefix} for prefix, fault in faults.items()), seed=1)
    world.act([*unlucky, *others])
    return unlucky


def test_a_lost_answer_is_unknown_and_never_sent_again(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess
) -> None:
    with make_world() as world:
        daemon = world.daemon()
        unlucky = befall(world, fcm, LOST)
        world.rest()
        promise(world, unknown=unlucky)
        counted = 'pgherald_prompts_total{scenario_type="milestone",outcome="%s"}'
        wait_until(lambda: daemon.metric(counted % "unknown") == len(unlucky), "the doubts are counted")
        wait_until(lambda: daemon.metric(counted % "sent") == 30, "the pushes are counted")


def test_control_a_dispatcher_that_retries_on_doubt_is_found_out(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess
) -> None:
    with make_world() as world:
        world.daemon(variant="retries_on_doubt")
        befall(
            world, fcm, {prefix: fault | {"next": 3} for prefix, fault in LOST.items() if prefix not in NOT_ACCEPTED}
        )
        world.rest()
        with pytest.raises(Broken, match="pushed twice") as found:
            promise(world, metrics=False)
        twice = [each for each in found.value.violations if each.startswith("pushed twice")]
        for prefix in set(LOST) - NOT_ACCEPTED:
            assert any(prefix in each for each in twice), prefix


def test_while_a_proxy_answers_in_its_place_few_prompts_end_in_doubt(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess
) -> None:
    with make_world() as world:
        world.scenario()
        daemon = world.daemon(max_in_flight="10")
        fcm.set_faults({"do": "status", "status": 502, "body": "<html>bad gateway</html>"})
        world.act(world.people(300))
        wait_until(lambda: "breaker_no_answer" in daemon.get("/readyz")[1], "it says so")
        fcm.set_faults()
        world.rest()
        wait_until(lambda: "breaker_no_answer" not in daemon.get("/readyz")[1], "working again")
        doubts = [user for (user,) in world.ask("select user_id from herald.prompt where status = 'unknown'")]
        promise(world, unknown=doubts)
        assert len(doubts) <= 40
        assert world.statuses() == {"unknown": len(doubts), "sent": 300 - len(doubts)}


def test_with_resend_a_second_copy_replaces_the_first_and_there_are_three_at_most(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess
) -> None:
    with make_world() as world:
        world.daemon()
        world.scenario(on_unknown="resend")
        once, always = world.people(4, prefix="odd-once-"), world.people(4, prefix="odd-always-")
        fcm.set_faults(
            {"do": "drop_after", "token_prefix": "odd-once-", "next": 4},
            {"do": "cut_body", "token_prefix": "odd-always-"},
        )
        world.act([*once, *always])
        world.rest(time_passes=True)
        finding = promise(world, unknown=always, resend=True)
        assert finding.pushes == 2 * len(once) + 3 * len(always)
        with pytest.raises(Broken, match="pushed twice"):
            check_invariants(world, unknown=always)  # without the leave the check tells that they were sent again


def test_what_fcm_refused_is_retried_and_sent_once(make_world: Worlds, promise: Promise, fcm: EmulatorProcess) -> None:
    with make_world() as world:
        daemon = world.daemon()
        befall(world, fcm, REFUSED)
        world.rest(time_passes=True)
        promise(world, unknown=())
        assert world.statuses() == {"sent": 30 + 3 * len(REFUSED)}
        series = 'pgherald_fcm_responses_total{code="QUOTA_EXCEEDED"}'
        wait_until(lambda: daemon.metric(series) >= 2, "two refusals")


def test_control_a_daemon_that_takes_a_refusal_for_doubt_is_found_out(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess
) -> None:
    with make_world() as world:
        world.daemon(variant="doubts_everything")
        befall(world, fcm, REFUSED)
        world.rest(time_passes=True)
        with pytest.raises(Broken, match="unknown: "):
            promise(world, unknown=())


@with_control("takes_no_connection_for_doubt")
@pytest.mark.parametrize("lacking", ["connection", "DNS", "TLS"])
def test_no_road_to_fcm_means_not_sent_for_certain(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, lacking: str, variant: str | None
) -> None:
    speaks_no_tls = f"https://127.0.0.1:{fcm.endpoint.rpartition(':')[2]}"
    nowhere = {"connection": "http://127.0.0.1:9", "DNS": "https://fcm.invalid", "TLS": speaks_no_tls}
    with make_world() as world:
        world.scenario()
        people = world.people(6)
        world.act(people)
        daemon = world.daemon(variant=variant, start=False, fcm_endpoint=nowhere[lacking])
        daemon.start(ready=False)
        wait_until(lambda: len(daemon.events("prompt_settled")) >= len(people), "a try of each")
        assert daemon.stop() == 0
        assert world.pushes() == []
        world.daemon(variant=variant)
        world.rest(time_passes=True)
        if variant is None:
            promise(world, unknown=())
            assert world.statuses() == {"sent": len(people)}
        else:
            with pytest.raises(Broken, match="unknown: "):
                promise(world, unknown=())


@with_control("doubts_everything")
def test_without_oauth_nothing_is_sent_and_everything_once_it_is_back(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, variant: str | None
) -> None:
    with make_world() as world:
        world.scenario()
        fcm.set_faults({"do": "status", "status": 503, "on": "token"})
        daemon = world.daemon(start=False, variant=variant)
        world.act(world.people(8))
        daemon.start(ready=False)
        wait_until(lambda: len(daemon.events("prompt_settled")) >= 8, "a try of each")
        assert {each["error_code"] for each in daemon.events("prompt_settled")} == {"NO_OAUTH_TOKEN"}
        assert world.pushes() == []
        fcm.set_faults()
        world.rest(time_passes=True)
        if variant is None:
            promise(world, unknown=())
            assert world.statuses() == {"sent": 8}
        else:
            with pytest.raises(Broken, match="unknown: "):
                promise(world, unknown=())


@with_control("knows_no_deadline")
def test_one_byte_a_second_holds_nobody_up(
    make_world: Worlds, promise: Promise, fcm: EmulatorProcess, variant: str | None
) -> None:
    count = (5000 if FULL else 1000) if variant is None else 200
    with make_world() as world:
        world.scenario()
        slow, others = world.people(10, prefix="odd-slow-"), world.people(count)
        fcm.set_faults({"do": "drip", "seconds": 1.0, "token_prefix": "odd-slow-"})
        world.act([*slow, *others])
        world.daemon(variant=variant, start=False).start(ready=False)
        if variant is None:
            world.rest(120)
            promise(world, unknown=slow)
        else:
            with pytest.raises(TimeoutError):
                world.rest(8)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("hours", "variant"),
    [
        pytest.param("-2h", "brings_its_token", id="slow"),
        pytest.param("+2h", "brings_its_token", id="fast"),
        pytest.param("-2h", "trusts_its_clock", id="control"),
    ],
)
def test_a_clock_two_hours_off_changes_no_time_in_the_records(
    make_world: Worlds, promise: Promise, tmp_path: Path, hours: str, variant: str
) -> None:
    needs("faketime", "a clock that is wrong")
    library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
    if not Path(library).exists():
        lacks("a clock that is wrong: no libfaketime")
    log = tmp_path / "other.jsonl"
    with (
        emulator_process("--log", str(log)) as other,
        make_world(fcm=other, fcm_log=log) as world,
    ):
        world.scenario()
        people = world.people(10)
        world.act(people)
        # Google refuses assertions of a wrong clock, and so does the emulator: nothing is sent for certain.
        wrong: Any = {"LD_PRELOAD": library, "FAKETIME": hours, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        daemon = world.daemon(start=False, **wrong)
        daemon.start(ready=False)
        wait_until(lambda: len(daemon.events("prompt_settled")) >= len(people), "a try of each")
        assert world.pushes() == []
        assert daemon.stop() == 0
        # With a token from elsewhere the wrong clock sends, and records by the database's.
        world.daemon("one", variant=variant, **wrong)
        world.rest(time_passes=True)
        if variant == "brings_its_token":
            promise(world, unknown=(), metrics=False)
            assert world.statuses() == {"sent": len(people)}
        else:
            with pytest.raises(Broken, match="clock: "):
                promise(world, unknown=(), metrics=False)


@pytest.mark.thorough
@pytest.mark.parametrize("variant", [None, "retries_on_doubt"], ids=["promise", "control"])
def test_a_killed_fcm_leaves_unknown_for_those_under_way_and_no_one_else(
    make_world: Worlds, promise: Promise, tmp_path: Path, variant: str | None
) -> None:
    log = tmp_path / "other.jsonl"
    with (
        emulator_process("--log", str(log), "--latency", "0.5") as other,
        make_world(fcm=other, fcm_log=log) as world,
    ):
        world.scenario()
        people = world.people(60)
        world.daemon(variant=variant)
        world.act(people)
        world.wait_for_pushes(10)
        other.kill()
        under_way = len(world.pushes())
        port = int(other.endpoint.rpartition(":")[2])
        with emulator_process(
            "--log", str(log), "--credentials", str(other.credentials_path), listen=f"127.0.0.1:{port}"
        ):
            world.rest(time_passes=True)
            if variant is None:
                finding = promise(world, unknown_at_most=people)
                assert finding.unknown_accepted <= under_way
                assert finding.unknown <= 10
            else:
                with pytest.raises(Broken, match="pushed twice"):
                    promise(world, metrics=False)
