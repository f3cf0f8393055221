"""What must hold after every fault, held against what FCM really accepted: one checker for all tests.

It raises `Broken` with every violation, each beginning with the name of its invariant. A test's negative control is the
same run with a naive variant (tests/fault/naive.py), for which this very check has to fail.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tests.fault.claims import doubts
from tests.fault.world import wait_until
from tests.support import canaries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from tests.fault.world import World


CLOCK_TOLERANCE: Final = 60.0
"""Seconds between FCM's acceptance and the time in its record at most: a daemon may have been stopped in between."""


class Broken(AssertionError):
    """The promise does not hold."""

    def __init__(self, violations: list[str], finding: Finding) -> None:
        shown = "\n".join(violations[:20])
        super().__init__(f"{len(violations)} violations:\n{shown}")
        self.violations = violations
        self.finding = finding


@dataclass(frozen=True, slots=True)
class Finding:
    """The numbers of one run. `lost`: accepted and spooled, or never begun, and yet without a record or an outcome;
    `unknown_accepted`: of those unknown, what FCM accepted."""

    prompts: int
    pushes: int
    duplicates: int
    lost: int
    unknown: int
    unknown_accepted: int
    failed: int
    canaries: int


def check_invariants(
    world: World,
    *,
    unknown: Iterable[UUID] | None = None,
    unknown_at_most: Iterable[UUID] | None = None,
    resend: bool = False,
    metrics: bool = True,
) -> Finding:
    """Check everything, at rest.

    `unknown`: exactly the people whose prompt must be unknown, because the answer was lost; `unknown_at_most`: nobody
    but these may be; without either, exactly those whose owner lost touch (see tests.fault.claims). `resend`: the
    scenarios say on_unknown = 'resend', so a second copy is allowed for each lost answer, if it replaces the first on
    the device.
    """
    broken: list[str] = []
    prompts = world.ask(
        "select prompt_id, user_id, status, notification_id, attempts, collapse_key, gate, scenario_type "
        "from herald.prompt"
    )
    notes = world.ask(
        "select n.id, n.prompt_id, n.user_id, n.scenario_type, n.idempotency_key, n.cooldown_window_start, "
        "n.message_name, n.dispatched_at from herald.scenario_notification as n"
    )
    history = world.ask("select prompt_id, delivery_status, count(*) from herald.scenario_prompt_history group by 1, 2")
    told = {(row[0], row[1]): row[2] for row in history}
    pushes = world.pushes()
    by_notification = {row[3]: row for row in prompts}

    # accepted pushes per prompt and device
    copies = Counter((push.notification_id, push.token) for push in pushes)
    duplicates = 0
    for (notification_id, token), count in copies.items():
        prompt = by_notification.get(notification_id)
        if prompt is None:
            broken.append(f"no prompt: a push to {token} of a prompt that is not there")
            continue
        allowed = 1 + (told.get((prompt[0], "unknown"), 0) if resend else 0)
        duplicates += max(0, count - allowed)
        if count > allowed:
            broken.append(f"pushed twice: {count} accepted pushes of prompt {prompt[0]} to {token}, {prompt[2]}")
    for push in pushes:
        prompt = by_notification.get(push.notification_id)
        if prompt is not None and push.collapse not in ("", prompt[5]):
            broken.append(f"collapse key: a copy of {prompt[0]} would not replace the first")

    # notifications per key, per prompt, per cooldown window; and each implies an accepted push
    for what, column in (("idempotency key", 4), ("prompt", 1)):
        for value, count in Counter(row[column] for row in notes).items():
            if count > 1:
                broken.append(f"noted twice: {count} notifications of one {what} {value}")
    for key, count in Counter((row[2], row[3], row[5]) for row in notes).items():
        if count > 1:
            broken.append(f"cooldown: {count} notifications in one window of {key[0]}")
    close = world.ask(
        "select n.user_id from herald.scenario_notification as n join herald.scenario_notification as m "
        "on m.user_id = n.user_id and m.scenario_type = n.scenario_type and m.id < n.id "
        "join herald.scenario as s on s.scenario_id = n.scenario_id "
        "where abs(extract(epoch from n.dispatched_at - m.dispatched_at)) < extract(epoch from s.cooldown)"
    )
    broken += [f"cooldown: two notifications of {row[0]} too close to each other" for row in close]
    accepted = {push.notification_id for push in pushes}
    received = {(push.notification_id, push.name): push.received_at for push in pushes}
    for row in notes:
        if row[0] not in accepted:
            broken.append(f"never accepted: notification {row[0]} without a push")
        elif (row[0], row[6]) not in received:
            broken.append(f"never answered: notification {row[0]} does not carry the name that FCM gave the message")
        elif abs((row[7] - received[row[0], row[6]]).total_seconds()) > CLOCK_TOLERANCE:
            broken.append(f"clock: notification {row[0]} says {row[7]}, and FCM {received[row[0], row[6]]}")
    expiries = dict(
        world.ask(
            "select p.notification_id, greatest(p.due_at, s.started_at) + s.expires_after from herald.prompt as p "
            "join herald.scenario as s on s.scenario_id = p.scenario_id where isfinite(p.due_at)"
        )
    )
    for push in pushes:
        expires_at = expiries.get(push.notification_id)
        if expires_at is not None and (push.received_at - expires_at).total_seconds() > 4 * world.deadline:
            broken.append(f"late: a push of {push.notification_id} after it had expired")

    # what reached a spool, and what was accepted at all
    noted = {row[1] for row in notes}
    lost = len(world.spooled - noted)
    broken += [f"lost: {prompt_id} was in the spool and has no notification" for prompt_id in world.spooled - noted]
    for prompt in prompts:
        prompt_id, user_id, status = prompt[:3]
        was_accepted = prompt[3] in accepted
        if (status == "sent") != (prompt_id in noted):
            broken.append(f"sent without its notification or the reverse: {prompt_id} is {status}")
            lost += status == "sent"
        if was_accepted and status not in ("sent", "unknown"):
            broken.append(f"lost: {prompt_id} was accepted and is {status}")
            lost += 1
        if status in ("ready", "sending") and prompt[6] != "quiet_hours":
            broken.append(f"not at rest: {prompt_id} of {user_id} is {status}")
            lost += 1
        if status == "failed" and not told.get((prompt_id, "failed")):
            broken.append(f"no history: {prompt_id} failed without a row")
        if status == "sent" and told.get((prompt_id, "dispatched")) != 1:
            broken.append(f"no history: {prompt_id} was sent with {told.get((prompt_id, 'dispatched'), 0)} rows")
        if status == "unknown" and not told.get((prompt_id, "unknown")):
            broken.append(f"no history: {prompt_id} is unknown without a row")
    (touched,) = world.ask("select count(*) from herald.touched_user")[0]
    if touched:
        broken.append(f"not at rest: {touched} touched rows")
    have = {row[1] for row in prompts}
    missing = [person for person in world.acted if person not in have]
    lost += len(missing)
    broken += [f"lost: {person} acted and has no prompt" for person in missing]

    # unknown: exactly those whose answer was lost
    lost_answers = {row[1] for row in prompts if row[2] == "unknown"}
    if unknown is not None and lost_answers != set(unknown):
        expected = set(unknown)
        broken.append(f"unknown: {len(lost_answers - expected)} too many, {len(expected - lost_answers)} too few")
    if unknown_at_most is not None and not lost_answers <= set(unknown_at_most):
        broken.append(f"unknown: {len(lost_answers - set(unknown_at_most))} whose answer was not lost")
    doubted = doubts(world, told=unknown or unknown_at_most or ())
    broken += doubted.broken
    if metrics:
        broken += _unsaid(world, len(lost_answers), sum(n for (_, what), n in told.items() if what == "unknown"))

    canaries = list(_canaries(world))
    broken += canaries
    for daemon in world.daemons.values():
        if "Traceback" in daemon.log or "Fatal Python error" in daemon.log:
            broken.append(f"crash: {daemon.name}: {daemon.log[daemon.log.find('Traceback') :][:1500]}")
    finding = Finding(
        len(prompts),
        len(pushes),
        duplicates,
        lost,
        doubted.count,
        doubted.accepted,
        sum(row[2] == "failed" for row in prompts),
        len(canaries),
    )
    if broken:
        raise Broken(broken, finding)
    return finding


def _unsaid(world: World, unknown: int, ever: int) -> Iterator[str]:
    """Daemons whose metrics do not say what is unknown: each now, and all together what ever was."""
    running = [daemon for daemon in world.daemons.values() if daemon.running]
    for daemon in running:
        gauge = partial(daemon.metric, 'pgherald_prompts{status="unknown"}')
        try:
            wait_until(lambda gauge=gauge: gauge() == unknown, "gauge", 60)  # type: ignore[misc]
        except TimeoutError:
            yield f"metric: {daemon.name} does not say that {unknown} are unknown"
    if world.first_lives != len(running) or any(daemon.lives > 1 for daemon in running):
        return

    def counted() -> float:
        series = [daemon.series("pgherald_prompts_total") for daemon in running]
        return sum(number for each in series for labels, number in each.items() if 'outcome="unknown"' in labels)

    try:
        wait_until(lambda: counted() == ever, "counters", 60)
    except TimeoutError:
        yield f"metric: pgherald_prompts_total counts {counted():.0f} unknown, and the history has {ever}"


def _canaries(world: World) -> Iterator[str]:
    """Every place where a secret shows, in any usual disguise."""
    places: dict[str, str | bytes] = {"Postgres's log": world.postgres_log()}
    for name, daemon in world.daemons.items():
        places[f"log of {name}"] = daemon.log_path.read_text(errors="replace") if daemon.log_path.exists() else ""
        if daemon.running:
            for page in ("/metrics", "/healthz", "/readyz"):
                places[f"{page} of {name}"] = daemon.get(page)[1]
        for path in daemon.state_dir.rglob("*"):
            if path.is_file():
                places[f"{path.name} of {name}"] = path.read_bytes()
    for table in ("scenario_prompt_history", "scenario_notification", "evaluation_run"):
        rows: list[Any] = world.ask(f"select t::text from herald.{table} as t")
        places[table] = "\n".join(row[0] for row in rows)
    places["NOTIFY"] = "\n".join(world.payloads)
    for found in canaries.shown(places, world.secrets()):
        yield f"canary: {found}"
