"""The pieces that the daemon runs on, as a library: real database, real HTTP to the emulator, dependencies injected."""

from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import pytest

import pgherald
from pgherald import backoff, dispatcher
from pgherald.config import LogLevel
from pgherald.dispatcher import (
    Dependencies,
    DispatchConfig,
    PushNotificationDispatcher,
    evaluate_and_dispatch,
)
from pgherald.emulator.service import Emulator
from pgherald.fcm import FcmClient
from pgherald.log import configure
from pgherald.metrics import Metrics
from pgherald.model import DispatchSummary, Failed, NoToken, Sent, TokenRevoked, UserId
from pgherald.oauth import OAuth, load_credentials
from pgherald.pacing import Pacing
from pgherald.recorder import Recorder
from pgherald.spool import Spool
from pgherald.store import CalledOff, Store
from pgherald.transport import HttpTransport
from tests.support.organisation import Organisation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path
    from uuid import UUID

    import psycopg

    from pgherald.model import Prompt
    from tests.support.postgres import Database

pytestmark = pytest.mark.anyio


@dataclass
class Bench:
    """Everything that a dispatcher works with, as the service puts it together."""

    store: Store
    spool: Spool
    recorder: Recorder
    dispatcher: PushNotificationDispatcher
    oauth: OAuth
    pacing: Pacing
    emulator: Emulator
    metrics: Metrics
    config: DispatchConfig

    async def claim(self) -> Sequence[Prompt]:
        return (await self.store.claim("a test", 100, self.config.lease)).prompts


@pytest.fixture
async def bench(database: Database, tmp_path: Path) -> AsyncIterator[Bench]:
    async with build(database, tmp_path) as made:
        yield made


@asynccontextmanager
async def build(
    database: Database, directory: Path, *, max_in_flight: int = 10, send_deadline: float = 30.0
) -> AsyncIterator[Bench]:
    metrics = Metrics()
    config = DispatchConfig(owner="a test", max_in_flight=max_in_flight, send_deadline=send_deadline)
    async with (
        Emulator.start() as emulator,
        Store(database.daemon_dsn) as store,
        HttpTransport(max_in_flight) as transport,
    ):
        credentials, project = load_credentials(emulator.credentials_path, None)
        spool = Spool.open(directory, metrics)
        try:
            recorder = Recorder(store, spool, metrics)
            oauth = OAuth(credentials)
            sender = FcmClient(transport, oauth, emulator.endpoint, project)
            pacing = Pacing(10_000)
            dispatcher = PushNotificationDispatcher(sender, recorder, pacing, metrics, config)
            yield Bench(store, spool, recorder, dispatcher, oauth, pacing, emulator, metrics, config)
        finally:
            await spool.close()


@pytest.fixture
def organisation(db: psycopg.Connection) -> Organisation:
    return Organisation(db)


def enqueue_all(organisation: Organisation, people: Sequence[UUID], **scenario: str) -> UUID:
    """One ready prompt for each of them, in this order."""
    scenario_id = organisation.scenario(**scenario)
    for place, person in enumerate(people):
        prompt_id, gate = organisation.enqueue(scenario_id, person)
        assert prompt_id is not None, gate
        organisation.db.execute(
            "update herald.prompt set not_before = now() - make_interval(secs => %s) where prompt_id = %s",
            (len(people) - place, prompt_id),
        )
    return scenario_id


async def test_three_prompts_sent_make_three_histories(bench: Bench, organisation: Organisation) -> None:
    people = [organisation.mentor(f"phone-{n}") for n in range(3)]
    enqueue_all(organisation, people)
    assert await bench.dispatcher.dispatch_prompts(await bench.claim()) == DispatchSummary(3, 0, 0)
    assert set(organisation.histories()) == {(person, "dispatched", None, 1) for person in people}
    assert len(organisation.histories()) == 3
    assert sorted(person for person, _, _ in organisation.notifications()) == sorted(people)
    assert len(bench.emulator.messages) == 3
    assert bench.spool.entries == 0


async def test_one_failure_never_stops_the_rest(bench: Bench, organisation: Organisation) -> None:
    people = [organisation.mentor("phone-1"), organisation.mentor("invalid-field-2"), organisation.mentor("phone-3")]
    enqueue_all(organisation, people)
    assert await bench.dispatcher.dispatch_prompts(await bench.claim()) == DispatchSummary(2, 1, 0)
    told = {person: status for person, status, _, _ in organisation.histories()}
    assert [told[person] for person in people] == ["dispatched", "failed", "dispatched"]
    assert {person for person, _, _ in organisation.notifications()} == {people[0], people[2]}


async def test_no_prompts_are_zeros_and_no_call(bench: Bench) -> None:
    assert await bench.dispatcher.dispatch_prompts([]) == DispatchSummary(0, 0, 0)
    assert bench.emulator.ledger.counters() == {
        "accepted": 0,
        "validated": 0,
        "access_tokens": 0,
        "rejected": {},
        "faults": {},
    }


@pytest.mark.usefixtures("process_log")
async def test_sent_but_unrecorded_is_told_and_never_sent_again(
    bench: Bench, organisation: Organisation, capfd: pytest.CaptureFixture[str]
) -> None:
    configure(LogLevel.INFO)
    person = organisation.mentor("phone-1")
    enqueue_all(organisation, [person])
    prompts = await bench.claim()
    organisation.db.execute("alter function herald.settle rename to settle_away")
    assert await bench.dispatcher.dispatch_prompts(prompts) == DispatchSummary(1, 0, 0)
    line = next(line for line in capfd.readouterr().err.splitlines() if "record_failed" in line)
    assert '"level":"critical"' in line
    for detail in (str(prompts[0].prompt_id), str(prompts[0].notification_id), bench.emulator.messages[0].name):
        assert detail in line
    assert "phone-1" not in line
    assert organisation.notifications() == []
    assert bench.spool.entries == 1
    organisation.db.execute("alter function herald.settle_away rename to settle")
    await bench.recorder.pay()
    assert [row[2] for row in organisation.notifications()] == [prompts[0].prompt_id]
    assert organisation.histories() == [(person, "dispatched", None, 1)]
    assert len(bench.emulator.messages) == 1
    assert bench.spool.entries == 0


async def test_without_a_device_token_a_prompt_is_skipped(bench: Bench, organisation: Organisation) -> None:
    person = organisation.mentor("phone-1")
    enqueue_all(organisation, [person])
    organisation.db.execute("delete from herald.device_token")
    prompts = await bench.claim()
    assert await bench.dispatcher.dispatch(prompts[0]) == NoToken()
    assert await bench.dispatcher.dispatch_prompts(prompts) == DispatchSummary(0, 0, 1)
    assert organisation.prompts() == {person: ("skipped", "no_device_token")}
    assert organisation.histories() == [(person, "skipped", "no_device_token", 1)]
    assert organisation.notifications() == []
    assert bench.emulator.messages == []


async def test_a_revoked_token_is_revoked_once_however_many_report_it(bench: Bench, organisation: Organisation) -> None:
    person = organisation.mentor("unregistered-1")
    for n in range(5):
        scenario_type = ["milestone", "follow_up", "inactivity", "expiry", "milestone"][n]
        params = [
            {"counts": [1]},
            {"activity_type": "contact", "after_days": 1},
            {"days": 1},
            {"days_before": [1]},
            {"counts": [2]},
        ][n]
        scenario_id = organisation.scenario(scenario_type, params)
        organisation.enqueue(scenario_id, person)
    prompts = await bench.claim()
    assert len(prompts) == 4  # of two scenarios of one type, one
    summary = await bench.dispatcher.dispatch_prompts(prompts)
    assert summary == DispatchSummary(0, 4, 0)
    assert bench.metrics.tokens_revoked_total.value("UNREGISTERED") == 1
    assert {row[1:3] for row in organisation.histories()} == {("failed", "UNREGISTERED")}
    assert organisation.notifications() == []
    row = organisation.db.execute("select revoked_reason from herald.device_token").fetchone()
    assert row == ("UNREGISTERED",)


async def test_a_device_that_came_back_meanwhile_is_not_revoked(bench: Bench, organisation: Organisation) -> None:
    person = organisation.mentor("unregistered-1")
    enqueue_all(organisation, [person])
    prompts = await bench.claim()
    organisation.db.execute("update herald.device_token set last_seen_at = now()")
    await bench.dispatcher.dispatch_prompts(prompts)
    assert organisation.db.execute("select revoked_at from herald.device_token").fetchone() == (None,)


async def test_the_next_device_is_tried_when_one_is_gone(bench: Bench, organisation: Organisation) -> None:
    person = organisation.mentor("phone-old", "unregistered-new")
    enqueue_all(organisation, [person])
    result = await bench.dispatcher.dispatch((await bench.claim())[0])
    assert isinstance(result, Sent)
    assert [each.device.token.reveal() for each in result.revoked] == ["unregistered-new"]
    assert [message.token for message in bench.emulator.messages] == ["phone-old"]


async def test_a_device_that_is_revoked_is_not_tried_again(bench: Bench, organisation: Organisation) -> None:
    person = organisation.mentor("phone-old", "unregistered-new")
    organisation.db.execute(
        "update herald.device_token set revoked_at = now(), revoked_reason = 'gone' where token = 'unregistered-new'"
    )
    enqueue_all(organisation, [person])
    (prompt,) = await bench.claim()
    assert [device.token.reveal() for device in prompt.devices] == ["phone-old"]


async def test_no_device_left_is_token_revoked_with_the_code_of_fcm(bench: Bench, organisation: Organisation) -> None:
    person = organisation.mentor("unregistered-1", "unregistered-2")
    enqueue_all(organisation, [person])
    result = await bench.dispatcher.dispatch((await bench.claim())[0])
    assert isinstance(result, TokenRevoked)
    assert (result.error_code, len(result.revoked)) == ("UNREGISTERED", 2)


@pytest.mark.parametrize(
    ("devices", "tokens"),
    [("all", ["phone-1", "phone-2", "phone-3"]), ("latest", ["phone-1", "unregistered-2", "unregistered-3"])],
)
async def test_further_devices_of_one_person_count_as_messages_to_the_rate(
    bench: Bench, organisation: Organisation, devices: str, tokens: list[str]
) -> None:
    person = organisation.mentor(*tokens)
    enqueue_all(organisation, [person], devices=devices)
    (prompt,) = await bench.claim()
    bench.pacing.set_max_rate(time.monotonic(), 0.01)
    assert bench.pacing.allowance(time.monotonic(), 1) == 1
    assert isinstance(await bench.dispatcher.dispatch(prompt), Sent)
    assert bench.pacing.ready_in(time.monotonic()) == pytest.approx(300, abs=60)


async def test_all_devices_means_each_once(bench: Bench, organisation: Organisation) -> None:
    person = organisation.mentor("phone-1", "unregistered-2", "phone-3")
    enqueue_all(organisation, [person], devices="all")
    assert await bench.dispatcher.dispatch_prompts(await bench.claim()) == DispatchSummary(1, 0, 0)
    assert {message.token for message in bench.emulator.messages} == {"phone-1", "phone-3"}
    assert len(bench.emulator.messages) == 2
    assert len(organisation.notifications()) == 1
    assert len(organisation.histories()) == 1


# Every row of FCM's table of answers, and what is not an answer of FCM's: what the prompt becomes, the code in the
# history, and whether the device is revoked.
@pytest.mark.parametrize(
    ("fault", "status", "code", "revoked"),
    [
        ("code=UNREGISTERED", "failed", "UNREGISTERED", True),
        ("code=NOT_FOUND", "failed", "NOT_FOUND", False),
        ("code=INVALID_TOKEN", "failed", "INVALID_ARGUMENT", True),
        ("code=INVALID_TOKEN_FIELD", "failed", "INVALID_ARGUMENT", True),
        ("code=INVALID_ARGUMENT", "failed", "INVALID_ARGUMENT", False),
        ("code=SENDER_ID_MISMATCH", "failed", "SENDER_ID_MISMATCH", True),
        ("code=PERMISSION_DENIED", "ready", "PERMISSION_DENIED", False),
        ("code=SERVICE_DISABLED", "ready", "PERMISSION_DENIED", False),
        ("code=THIRD_PARTY_AUTH_ERROR", "ready", "THIRD_PARTY_AUTH_ERROR", False),
        ("code=UNAUTHENTICATED", "ready", "UNAUTHENTICATED", False),
        ("code=QUOTA_EXCEEDED,retry_after=30", "ready", "QUOTA_EXCEEDED", False),
        ("code=RATE_LIMIT_EXCEEDED", "ready", "QUOTA_EXCEEDED", False),
        ("code=INTERNAL", "ready", "INTERNAL", False),
        ("code=UNAVAILABLE", "ready", "UNAVAILABLE", False),
        ("status=502", "unknown", "BAD_ANSWER", False),
        ("status=504", "unknown", "BAD_ANSWER", False),
        ("cut_body", "unknown", "BAD_ANSWER", False),
        ("drop_before", "unknown", "CONNECTION_LOST", False),
        ("drop_after", "unknown", "CONNECTION_LOST", False),
        ("silent", "unknown", "TIMEOUT", False),
    ],
)
async def test_what_fcm_answers_decides_what_becomes_of_a_prompt(
    database: Database,
    organisation: Organisation,
    tmp_path: Path,
    fault: str,
    status: str,
    code: str,
    revoked: bool,
) -> None:
    person = organisation.mentor("phone-1")
    enqueue_all(organisation, [person])
    async with build(database, tmp_path, send_deadline=2.0 if code == "TIMEOUT" else 30.0) as bench:
        bench.emulator.faults.set(fault)
        await bench.oauth.token()  # the time until a deadline is for the push
        assert await bench.dispatcher.dispatch_prompts(await bench.claim()) == DispatchSummary(0, 1, 0)
    assert organisation.prompts()[person][0] == status
    assert [row[1:3] for row in organisation.histories()] == [("unknown" if status == "unknown" else "failed", code)]
    assert organisation.notifications() == []
    device = organisation.db.execute("select revoked_reason from herald.device_token").fetchone()
    assert device == (code if revoked else None,)
    if status == "ready":
        row = organisation.db.execute("select not_before > now() + interval '5 seconds' from herald.prompt").fetchone()
        assert row == (True,)


@pytest.mark.usefixtures("process_log")
@pytest.mark.parametrize(("fault", "told"), [("NOT_FOUND", True), ("INVALID_ARGUMENT", True), ("INVALID_TOKEN", False)])
async def test_what_fcm_refuses_for_good_and_no_token_is_to_blame_for_is_an_error_in_the_log(
    bench: Bench, organisation: Organisation, capfd: pytest.CaptureFixture[str], fault: str, told: bool
) -> None:
    configure(LogLevel.ERROR)
    scenario_id = enqueue_all(organisation, [organisation.mentor("phone-1")])
    bench.emulator.faults.set(f"code={fault}")
    (prompt,) = await bench.claim()
    await bench.dispatcher.dispatch(prompt)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [{**line, "ts": None} for line in lines] == [
        {
            "ts": None,
            "level": "error",
            "event": "push_refused",
            "prompt_id": str(prompt.prompt_id),
            "scenario_id": str(scenario_id),
            "scenario_type": "milestone",
            "error_code": fault,
        }
    ] * told


@pytest.mark.usefixtures("process_log")
async def test_what_fcm_refuses_for_good_by_the_hundred_is_in_the_log_once_a_minute(
    bench: Bench, organisation: Organisation, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(LogLevel.ERROR)
    enqueue_all(organisation, [organisation.mentor(f"phone-{n}") for n in range(10)])
    prompts = await bench.claim()
    for fault in ("NOT_FOUND", "INVALID_ARGUMENT"):
        bench.emulator.faults.set(f"code={fault}")
        for prompt in prompts:
            await bench.dispatcher.dispatch(prompt)
    monkeypatch.setattr(backoff, "TELL_SECONDS", 0.0)
    await bench.dispatcher.dispatch(prompts[0])
    told = [json.loads(line)["error_code"] for line in capfd.readouterr().err.splitlines()]
    assert told == ["NOT_FOUND", "INVALID_ARGUMENT", "INVALID_ARGUMENT"]


async def test_no_more_than_max_in_flight_at_once(
    database: Database, organisation: Organisation, tmp_path: Path
) -> None:

    people = [organisation.mentor(f"phone-{n}") for n in range(12)]
    enqueue_all(organisation, people)
    async with build(database, tmp_path, max_in_flight=3) as bench:
        bench.emulator.faults.set("latency=0.05")
        most = 0.0
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, bench.metrics.in_flight.value())
                    await anyio.sleep(0.005)

            tasks.start_soon(watch)
            summary = await bench.dispatcher.dispatch_prompts(await bench.claim())
            tasks.cancel_scope.cancel()
    assert summary == DispatchSummary(12, 0, 0)
    assert most == 3


async def test_a_claim_that_was_slept_past_is_not_sent(bench: Bench, organisation: Organisation) -> None:
    person = organisation.mentor("phone-1")
    enqueue_all(organisation, [person])
    (prompt,) = await bench.claim()
    # So much is left that it could be sent, and not that the answer is there in time.
    slept = bench.config.lease.total_seconds() - bench.config.send_deadline / 2
    late = prompt._replace(claimed_mono=prompt.claimed_mono - slept)
    result = await bench.dispatcher.dispatch(late)
    assert isinstance(result, Failed)
    assert (result.error_code, result.transient) == ("LEASE_EXPIRED", True)
    assert bench.emulator.messages == []


async def test_a_cancelled_batch_gives_back_what_it_had_not_begun(
    database: Database, organisation: Organisation, tmp_path: Path
) -> None:

    people = [organisation.mentor(f"phone-{n}") for n in range(3)]
    enqueue_all(organisation, people)
    async with build(database, tmp_path, max_in_flight=1) as bench:
        bench.emulator.faults.set("silent")
        prompts = await bench.claim()
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bench.dispatcher.dispatch_prompts, prompts)
                await bench.emulator.wait_for(1)
                tasks.cancel_scope.cancel()
    statuses = sorted(status for status, _ in organisation.prompts().values())
    assert statuses == ["ready", "ready", "unknown"]
    assert [row[1] for row in organisation.histories()] == ["unknown"]


async def test_evaluate_and_dispatch_twice_is_one_push_and_one_notification(
    bench: Bench, organisation: Organisation
) -> None:
    organisation.scenario()
    person = UserId(organisation.mentor("phone-1"))
    organisation.activity(person)
    deps = Dependencies(bench.store, bench.dispatcher)
    assert await evaluate_and_dispatch(person, "milestone", bench.config, deps) == DispatchSummary(1, 0, 0)
    assert await evaluate_and_dispatch(person, "milestone", bench.config, deps) == DispatchSummary(0, 0, 0)
    assert len(bench.emulator.messages) == 1
    assert len(organisation.notifications()) == 1


async def test_two_evaluations_at_once_make_one_prompt(bench: Bench, organisation: Organisation) -> None:
    organisation.scenario()
    person = UserId(organisation.mentor("phone-1"))
    organisation.activity(person)
    deps = Dependencies(bench.store, bench.dispatcher)
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(evaluate_and_dispatch, person, "milestone", bench.config, deps)
    assert organisation.db.execute("select count(*) from herald.prompt").fetchone() == (1,)
    assert len(bench.emulator.messages) == 1
    assert len(organisation.notifications()) == 1


def test_everything_promised_can_be_imported_from_the_package() -> None:
    for name in pgherald.__all__:
        assert getattr(pgherald, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = pgherald.nothing_of_the_kind
    for name in ("Sent", "NoToken", "TokenRevoked", "Failed", "Unknown", "DispatchResult", "DispatchSummary"):
        assert getattr(dispatcher, name) is getattr(pgherald, name), "beside what returns it"


async def test_an_evaluator_that_never_ends_is_called_off_and_what_is_ready_goes_out(
    bench: Bench, organisation: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = organisation.db
    organisation.endless_scenario()
    person = organisation.mentor("phone-1")
    enqueue_all(organisation, [person])
    touched = db.execute("select user_id from herald.touched_user").fetchall()
    assert (person,) in touched
    monkeypatch.setattr("pgherald.store.CLAIM_PATIENCE", 0.2)
    with pytest.raises(CalledOff):
        await bench.store.claim("a test", 100, bench.config.lease, touched=100)
    monkeypatch.undo()
    assert db.execute("select user_id from herald.touched_user").fetchall() == touched
    assert await bench.dispatcher.dispatch_prompts(await bench.claim()) == DispatchSummary(1, 0, 0)


async def test_a_scenario_that_is_held_is_none_that_failed(bench: Bench, organisation: Organisation) -> None:
    organisation.scenario("milestone", {"counts": [1]}, max_prompts_per_run=1)
    for number in range(2):
        organisation.activity(organisation.mentor(f"phone-{number}"))
    claimed = await bench.store.claim("a test", 100, bench.config.lease, touched=100)
    assert (claimed.prompts, claimed.broken) == ((), ())
    _, runs = await bench.store.evaluate()
    assert [(run.held, run.failed) for run in runs] == [(True, False)]


async def test_slots_that_a_claim_did_not_need_are_free_again_for_whoever_waits(bench: Bench) -> None:
    dispatcher = bench.dispatcher
    assert await dispatcher.wait_free() == 10
    dispatcher.expect(10)
    found: list[int] = []

    async def wait() -> None:
        found.append(await dispatcher.wait_free())

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(0.1)  # longer than it waits for a quarter of all
            assert found == []
            dispatcher.expect(-4)
    assert found == [4]
