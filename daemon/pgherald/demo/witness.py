"""What came of a step, read back: from the tables, from `herald.explain`, from the emulator's log, from the daemon's.

Nothing here is told from memory: what the demo shows and checks is what these four say.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum, unique
from typing import TYPE_CHECKING, Any, Final

from psycopg.rows import namedtuple_row

from pgherald.demo.stage import PATIENCE
from pgherald.demo.story import PEOPLE, TEXTS, Ending
from pgherald.errors import HeraldError
from pgherald.screen import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from uuid import UUID

    from pgherald.demo.stage import Stage
    from pgherald.demo.story import End, Person

_POLL_SECONDS: Final = 0.005

_ROLES: Final = {person.user_id: person.role for person in PEOPLE}
_BY_TOKEN: Final = {device.token: f"{device.platform}: {person.role}" for person in PEOPLE for device in person.devices}

_CHECK_OF_GATE: Final = {
    "opted_out": "opt_out",
    "inactive_recipient": "recipient",
    "cooldown": "cooldown",
    "duplicate": "duplicate",
    "no_device_token": "device_token",
    "UNREGISTERED": "device_token",
    "quiet_hours": "quiet_hours",
}
"""Which check of `herald.explain` has the numbers behind a gate or an error code."""


@unique
class Speaker(StrEnum):
    """Who says what is shown."""

    APP = "app"
    CLOCK = "clock"
    POSTGRES = "Postgres"
    FCM = "FCM"
    RECORD = "record"
    DAEMON = "daemon"
    PHONE = "phone"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was found out; `at` is None where its time is not known."""

    at: datetime | None
    speaker: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a person in a step; `why` has the numbers, in the words of the database."""

    person: Person
    scenario_type: str
    ending: Ending
    because: str
    why: str

    def differs_from(self, told: End) -> bool:
        """Whether this is not how the story says it ends."""
        return (self.ending, self.because) != (told.ending, told.because)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where the sources stood before a step."""

    at: datetime
    run: int
    history: int
    seq: int
    refused: Counter[str]
    batches: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Everything that happened, counted where it is recorded."""

    accepted: int
    refused: Counter[str]
    notifications: int
    prompts: Counter[str]
    history: Counter[str]
    revoked: int


class Witness:
    """Reads from the processes of a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def mark(self) -> Mark:
        """Where the sources stand now."""
        run, history = self._one(
            "select coalesce((select max(run_id) from herald.evaluation_run), 0), "
            "coalesce((select max(history_id) from herald.scenario_prompt_history), 0)"
        )
        messages = self._stage.emulator.messages()
        return Mark(
            datetime.now(UTC),
            run,
            history,
            messages[-1]["seq"] if messages else 0,
            self._refused(),
            len(self._batches()),
        )

    def anything_new(self, since: Mark) -> bool:
        """Whether a run found somebody, or a prompt came to something, after `since`."""
        (run, history) = self._one(
            "select (select max(run_id) from herald.evaluation_run where candidates > 0 or error is not null), "
            "(select max(history_id) from herald.scenario_prompt_history)"
        )
        return bool((run or 0) > since.run or (history or 0) > since.history or len(self._batches()) > since.batches)

    def wait_until_quiet(self) -> None:
        """Return once nobody is touched, no prompt waits to be sent now, and the daemon has said what it did."""
        deadline = time.monotonic() + PATIENCE
        while True:
            (busy, claims) = self._one(
                "select exists (select from herald.touched_user) or exists (select from herald.prompt "
                "where status = 'sending' or (status = 'ready' and not_before <= clock_timestamp())), "
                "(select coalesce(sum(attempts), 0) from herald.prompt)"
            )
            if not busy and sum(line["claimed"] for line in self._batches()) >= claims:
                return
            if self._stage.daemon.has_ended or time.monotonic() > deadline:
                raise HeraldError(f"the daemon does not do its work; {self._stage.daemon.last_words()}")
            time.sleep(_POLL_SECONDS)

    def events(self, since: Mark) -> list[Event]:
        """What happened after `since`, in the order in which it happened."""
        found = [*self._runs(since), *self._waiting(since), *self._accepted(since)]
        found += [*self._revoked(since), *self._recorded(since), *self._said(since)]
        found.sort(key=lambda event: event.at or since.at)
        return _with_refusals(found, self._refusals(since))

    def fate(self, person: Person, scenario_type: str, since: Mark) -> Fate:
        """What became of somebody after `since`: by their prompt if there is one, else by `herald.explain`."""
        checks = self._explained(person, scenario_type)
        prompt = self._rows(
            "select status, gate, error_code from herald.prompt where user_id = %s and scenario_type = %s "
            "and (created_at >= %s or settled_at >= %s) order by created_at desc limit 1",
            (person.user_id, scenario_type, since.at, since.at),
        )
        decision = checks.get("decision", "")
        if prompt:
            (status, gate, error_code) = prompt[0]
            ending, because = {
                "sent": (Ending.PUSHED, ""),
                "failed": (Ending.FAILED, error_code),
                "skipped": (Ending.SKIPPED, gate),
                "ready": (Ending.WAITS, gate or error_code),
            }.get(status, (Ending.UNKNOWN, status))
        elif "decision" not in checks or decision.startswith("nothing to send"):
            ending, because = Ending.NOT_DUE, ""
        else:
            ending, because = Ending.STOPPED, decision.removeprefix("not sent: ")
        why = checks.get(_CHECK_OF_GATE.get(because, "due"), checks.get("scenario", ""))
        return Fate(person, scenario_type, ending, because, re.split("; (?:due |not due)", why)[0])

    def totals(self) -> Totals:
        """The sums over all that happened."""
        (notifications, revoked) = self._one(
            "select (select count(*) from herald.scenario_notification), "
            "(select count(*) from herald.device_token where revoked_at is not null)"
        )
        prompts = self._rows("select status, count(*) from herald.prompt group by status")
        history = self._rows(
            "select delivery_status, count(*) from herald.scenario_prompt_history group by delivery_status"
        )
        return Totals(
            self._stage.emulator.counters()["accepted"],
            self._refused(),
            notifications,
            Counter(dict(prompts)),
            Counter(dict(history)),
            revoked,
        )

    def verify(self, told: Iterable[tuple[End, Fate]]) -> Iterator[tuple[str, bool]]:
        """Each promise that the demo makes, and whether it was kept."""
        endings = list(told)
        strayed = [
            f"{fate.person.role}: {fate.ending} {fate.because}" for end, fate in endings if fate.differs_from(end)
        ]
        yield (
            f"each of the {len(endings)} endings is as the story tells it"
            + "".join(f"; not so: {it}" for it in strayed),
            not strayed,
        )
        totals = self.totals()
        pushed = sum(end.ending is Ending.PUSHED for end, _ in endings)
        yield (
            (
                f"{pushed} pushes told, {totals.accepted} accepted by FCM, {totals.notifications} notifications, "
                f"{totals.history['dispatched']} dispatched in the history"
            ),
            pushed == totals.accepted == totals.notifications == totals.history["dispatched"],
        )
        messages = [entry["message"] for entry in self._stage.emulator.messages()]
        ids = sorted(message["data"]["notification_id"] for message in messages)
        recorded = sorted(str(row[0]) for row in self._rows("select id from herald.scenario_notification"))
        yield "the ids that FCM accepted are those of the notifications, each once", ids == recorded
        told_out = [leaf for message in messages for leaf in _leaves(message)]
        private = [*(text for _, _, text in TEXTS), *(str(person.user_id) for person in PEOPLE)]
        yield (
            "no text and nobody's id left the house",
            not any(each in leaf for leaf in told_out for each in private)
            and all(set(message["data"]) == {"notification_id", "scenario_type"} for message in messages),
        )
        yield (
            f"{totals.refused['UNREGISTERED']} tokens refused as UNREGISTERED, {totals.revoked} revoked",
            totals.refused == {"UNREGISTERED": totals.revoked},
        )
        complaints = [line["event"] for line in self._stage.daemon.said_all() if line["level"] in ("error", "critical")]
        yield "the daemon logged no error" + "".join(f"; it did: {event}" for event in complaints), not complaints

    def _runs(self, since: Mark) -> Iterator[Event]:
        for run in self._rows(
            "select s.name, r.source, r.candidates, r.prompts, r.suppressed, r.error, r.duration, "
            "r.started_at + r.duration as at "
            "from herald.evaluation_run as r join herald.scenario as s using (scenario_id) "
            "where r.run_id > %s and (r.candidates > 0 or r.error is not null) order by r.run_id",
            (since.run,),
        ):
            gates = ", ".join(f"{gate} {number}" for gate, number in run.suppressed.items())
            text = f"{run.name}: {count(run.candidates, 'candidate')} -> {count(run.prompts, 'prompt')}"
            text += f" ({gates})" if gates else ""
            yield Event(run.at, Speaker.POSTGRES, run.error or text)

    def _waiting(self, since: Mark) -> Iterator[Event]:
        for prompt in self._rows(
            "select p.user_id, p.gate, coalesce(e.started_at + e.duration, p.created_at) as at, "
            "to_char(p.not_before at time zone r.time_zone, 'HH24:MI ') || r.time_zone as until "
            "from herald.prompt as p join herald.source_recipient as r using (user_id) "
            "left join herald.evaluation_run as e on e.scenario_id = p.scenario_id and e.started_at = p.created_at "
            "where p.created_at >= %s and p.status = 'ready' and p.not_before > clock_timestamp()",
            (since.at,),
        ):
            role = _role(prompt.user_id)
            yield Event(prompt.at, Speaker.POSTGRES, f"waits until {prompt.until} ({prompt.gate}): {role}")

    def _accepted(self, since: Mark) -> Iterator[Event]:
        for entry in self._stage.emulator.messages(since.seq):
            at = datetime.fromisoformat(entry["received_at"])
            yield Event(at, Speaker.FCM, f"accepted, {_BY_TOKEN.get(entry['token'], 'a device that came later')}")

    def _refusals(self, since: Mark) -> list[Event]:
        refused = self._refused() - since.refused
        return [Event(None, Speaker.FCM, f"refused: {number} x {code}") for code, number in refused.items()]

    def _revoked(self, since: Mark) -> Iterator[Event]:
        for device in self._rows(
            "select user_id, platform, revoked_at, revoked_reason from herald.device_token where revoked_at >= %s "
            "order by user_id",
            (since.at,),
        ):
            role = _role(device.user_id)
            yield Event(device.revoked_at, Speaker.RECORD, f"token revoked, {device.revoked_reason}: {role}")

    def _recorded(self, since: Mark) -> Iterator[Event]:
        for row in self._rows(
            "select h.peer_mentor_id, h.delivery_status, h.error_code, n.id is not null as noted, "
            "coalesce(e.started_at + e.duration, p.settled_at) as at "
            "from herald.scenario_prompt_history as h join herald.prompt as p using (prompt_id) "
            "left join herald.evaluation_run as e on e.scenario_id = p.scenario_id and e.started_at = p.settled_at "
            "left join herald.scenario_notification as n using (prompt_id) "
            "where h.history_id > %s order by h.history_id",
            (since.history,),
        ):
            what = row.delivery_status + (f", {row.error_code}" if row.error_code else "")
            noted = " and one notification" if row.noted else ""
            yield Event(row.at, Speaker.RECORD, f"history {what}{noted}: {_role(row.peer_mentor_id)}")

    def _said(self, since: Mark) -> Iterator[Event]:
        for line in self._batches()[since.batches :]:
            text = "batch_dispatched: " + ", ".join(
                f"{line[name]} {name}" for name in ("dispatched", "failed", "skipped")
            )
            yield Event(datetime.fromisoformat(line["ts"]), Speaker.DAEMON, text)

    def _explained(self, person: Person, scenario_type: str) -> dict[str, str]:
        rows = self._rows("select check_name, detail from herald.explain(%s, %s)", (person.user_id, scenario_type))
        return dict(rows)

    def _refused(self) -> Counter[str]:
        return Counter(self._stage.emulator.counters()["rejected"])

    def _batches(self) -> list[dict[str, Any]]:
        return [line for line in self._stage.daemon.said_all() if line.get("event") == "batch_dispatched"]

    def _rows(self, query: Any, values: Sequence[object] = ()) -> list[Any]:
        with self._stage.database.cursor(row_factory=namedtuple_row) as cursor:
            return cursor.execute(query, values).fetchall()

    def _one(self, query: Any) -> Any:
        return self._stage.database.execute(query).fetchone()


def _role(user_id: UUID) -> str:
    """Who that is; whoever tries things out may have added people of their own."""
    return _ROLES.get(user_id, f"user {user_id}")


def _with_refusals(events: list[Event], refusals: list[Event]) -> list[Event]:
    """The refusals, whose time the emulator does not keep, put where they belong: before what was recorded of them."""
    told = (Speaker.FCM, Speaker.DAEMON)
    first = next((place for place, event in enumerate(events) if event.speaker in told), len(events))
    return [*events[:first], *refusals, *events[first:]]


def _leaves(content: Any) -> Iterator[str]:
    match content:
        case dict():
            for value in content.values():
                yield from _leaves(value)
        case list():
            for value in content:
                yield from _leaves(value)
        case _:
            yield str(content)
