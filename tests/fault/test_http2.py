"""FCM over HTTP/2, as in production, where a hundred pushes share a connection and so its end: still one push at most.

The other fault tests speak HTTP/1.1, for there a lost answer is lost to one push alone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from pgherald.emulator.client import emulator_process
from tests.fault.invariants import Broken
from tests.fault.test_fcm import befall

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pgherald.emulator.client import EmulatorProcess
    from tests.fault.promise import Promise, Worlds
    from tests.fault.world import Daemon, World


ALONE: Final[dict[str, dict[str, Any]]] = {
    "odd-silent-": {"do": "silent"},
    "odd-502-": {"do": "status", "status": 502, "body": "<html>bad gateway</html>"},
    "odd-503-": {"do": "status", "status": 503, "body": "<html>busy</html>", "accepted": True},
    "odd-empty-": {"do": "status", "status": 200, "body": "", "accepted": True},
}
"""By how the tokens of those begin whom it befalls: an answer that is lost to nobody else on the connection."""

SHARED: Final[dict[str, dict[str, Any]]] = {
    "odd-reset-after-": {"do": "drop_after", "next": 1},
    "odd-reset-before-": {"do": "drop_before", "next": 1},
    "odd-head-": {"do": "cut_headers", "next": 1},
    "odd-body-": {"do": "cut_body", "next": 1},
    "odd-goaway-": {"do": "goaway_after", "next": 1},
}
"""What ends the connection, and so takes the answers of all who share it."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "accepted.jsonl"


@pytest.fixture
def fcm(log: Path) -> Iterator[EmulatorProcess]:
    with emulator_process("--log", str(log), "--tls-listen", "127.0.0.1:0") as emulator:
        yield emulator


@pytest.fixture
def world(make_world: Worlds, fcm: EmulatorProcess, log: Path) -> Iterator[World]:
    with make_world(fcm=fcm, fcm_log=log) as made:
        yield made
    versions = {json.loads(line)["http_version"] for line in log.read_text().splitlines()}
    assert versions == {"2"}


def daemon(world: World, fcm: EmulatorProcess, variant: str | None = None) -> Daemon:
    """One that speaks HTTP/2 with this FCM, many pushes at once."""
    assert fcm.tls_endpoint is not None
    return world.daemon(
        variant=variant, fcm_endpoint=fcm.tls_endpoint, max_in_flight="50", SSL_CERT_FILE=str(fcm.certificate_path)
    )


def test_what_fcm_says_goodbye_to_is_sent_once_all_the_same(
    world: World, promise: Promise, fcm: EmulatorProcess
) -> None:
    fcm.set_faults({"do": "goaway", "every": 150}, {"do": "goaway_before", "every": 220})
    world.scenario()
    people = world.people(600)
    world.act(people)
    daemon(world, fcm)
    world.rest(time_passes=True)
    promise(world, unknown=())
    assert world.statuses() == {"sent": len(people)}
    # Nobody had to wait for a second try: what a goodbye excludes goes out at once, on another connection.
    assert world.ask("select max(attempts) from herald.prompt") == [(1,)]


def test_an_answer_that_is_lost_alone_is_unknown_and_the_others_on_the_connection_are_sent(
    world: World, promise: Promise, fcm: EmulatorProcess
) -> None:
    daemon(world, fcm)
    unlucky = befall(world, fcm, ALONE)
    world.rest()
    promise(world, unknown=unlucky)


def test_the_end_of_a_connection_is_doubt_for_those_under_way_on_it_and_nothing_is_sent_again(
    world: World, promise: Promise, fcm: EmulatorProcess
) -> None:
    daemon(world, fcm)
    befall(world, fcm, SHARED)
    world.rest(time_passes=True)
    under_way = list(world.acted)
    world.act(world.people(50))
    world.rest()
    finding = promise(world, unknown_at_most=under_way)
    assert finding.unknown > 0


def test_control_a_dispatcher_that_retries_on_doubt_is_found_out(
    world: World, promise: Promise, fcm: EmulatorProcess
) -> None:
    daemon(world, fcm, variant="retries_on_doubt")
    befall(world, fcm, ALONE | SHARED)
    world.rest(time_passes=True)
    with pytest.raises(Broken, match="pushed twice"):
        promise(world, metrics=False)
