"""`pgherald demo`: rows turn into pushes and records before one's eyes, on real parts, and the story checks itself.

Told here; `story` is what happens and how it must end, `stage` the Postgres, emulator and daemon that it happens on,
`witness` reads back what came of it, `screen` is how it looks. Only the command imports this package.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg

from pgherald.demo import story
from pgherald.demo.screen import Screen, Style
from pgherald.demo.stage import Stage
from pgherald.demo.story import Ending
from pgherald.demo.witness import Speaker, Witness
from pgherald.errors import HeraldError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from pgherald.demo.story import End
    from pgherald.demo.witness import Event, Fate, Mark

_STYLES: Final = {
    Speaker.APP: Style.NAME,
    Speaker.CLOCK: Style.NAME,
    Speaker.PHONE: Style.NAME,
    Speaker.POSTGRES: Style.HEADING,
    Speaker.FCM: Style.GOOD,
    Speaker.RECORD: Style.GOOD,
    Speaker.DAEMON: Style.FAINT,
}

_ENDINGS: Final = {
    Ending.PUSHED: Style.GOOD,
    Ending.FAILED: Style.BAD,
    Ending.SKIPPED: Style.COPING,
    Ending.WAITS: Style.COPING,
    Ending.STOPPED: Style.COPING,
    Ending.NOT_DUE: Style.FAINT,
    Ending.UNKNOWN: Style.BAD,
}

_A_MOMENT: Final = 0.45
"""Seconds after which those of the first step are due: a little more than its statement says."""

_LOOK_SECONDS: Final = 0.2
"""How often to look for what a person who tries things has set off."""


def run(*, once: bool) -> int:
    """Tell the story; 0 if all of it came true, else 1. On a terminal, and unless `once`, stay until Ctrl-C."""
    screen = Screen()
    began = time.monotonic()
    screen.paragraph(
        "pgherald demo: a Postgres of its own, a small app, an FCM emulator and the real daemon. Nothing leaves this "
        "machine, and what is shown is read back from the database, the emulator's log and the daemon's.",
        Style.HEADING,
    )
    screen.line()
    with _ended_by_one_ctrl_c(), Stage(lambda text: screen.paragraph(text, indent=2, hang=4)) as stage:
        _set_up(stage, screen)
        witness = Witness(stage)
        told: list[tuple[End, Fate]] = []
        for number, step in enumerate(story.STEPS, 1):
            screen.line()
            screen.paragraph(f"{number}  {step.title}", Style.HEADING, hang=3)
            told += _tell(step, stage, witness, screen)
        _read_on_the_phone(stage, screen, len(story.STEPS) + 1)
        kept = _sum_up(witness, told, screen)
        screen.line()
        screen.line(f"That took {time.monotonic() - began:.1f} s.", Style.FAINT)
        if screen.is_terminal and not once:
            _stay(stage, witness, screen)
    return 0 if kept else 1


@contextmanager
def _ended_by_one_ctrl_c() -> Iterator[None]:
    """The first Ctrl-C ends the demo, whatever trips over it on the way; more of them change nothing."""
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody wants it otherwise
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except (psycopg.Error, OSError, HeraldError):
        if interrupted:
            raise KeyboardInterrupt from None
        raise


def _set_up(stage: Stage, screen: Screen) -> None:
    """People, phones, opt-outs and rules, each through the door that it has in earnest; then the daemon."""
    database = stage.database
    day, night = _zones(database)
    with database.transaction():
        database.execute("insert into app.organisation (id, name) values (%s, 'Peer support')", (story.ORGANISATION,))
        for chapter, name in ((story.NORTH, "North"), (story.SOUTH, "South")):
            database.execute("insert into app.chapter values (%s, %s, %s)", (chapter, story.ORGANISATION, name))
        for person in story.PEOPLE:
            database.execute(
                "insert into app.peer_mentor (user_id, chapter_id, locale, time_zone, status, registered_at) "
                "values (%s, %s, %s, %s, %s, now() - interval '200 days')",
                (person.user_id, person.chapter, person.locale, night if person.at_night else day, person.status),
            )
            database.execute(
                "insert into app.activity (user_id, activity_type, occurred_at) "
                "select %s, 'visit', now() - (39 + n) * interval '1 day' from generate_series(1, %s) as n",
                (person.user_id, person.activities),
            )
        for key, locale, text in story.TEXTS:
            database.execute("insert into herald.message_text values (%s, %s, %s)", (key, locale, text))
    for person in story.PEOPLE:
        for device in person.devices:
            _call(
                database, person.user_id, "select herald.register_device_token(%s, %s)", device.token, device.platform
            )
        if person.opted_out:
            _call(database, person.user_id, "select herald.set_opt_out(null, true)")
    screen.line()
    chapters = len({person.chapter for person in story.PEOPLE})
    devices = sum(len(person.devices) for person in story.PEOPLE)
    screen.paragraph(
        f"An organisation with {chapters} chapters, {len(story.PEOPLE)} peer mentors and {devices} phones, where it is "
        f"day now ({day}; one lives in {night}). Its coordinators have set {len(story.SCENARIOS)} scenarios:"
    )
    for scenario in story.SCENARIOS:
        (scenario_id,) = _row(
            database,
            "insert into herald.scenario "
            "(scenario_type, organisation_id, chapter_id, name, params, quiet_from, quiet_until) "
            "values (%s, %s, %s, %s, %s, '21:00', '08:00') returning scenario_id",
            *(scenario.scenario_type, story.ORGANISATION, scenario.chapter, scenario.name, scenario.params),
        )
        (sentence,) = _row(database, "select herald.describe(%s)", scenario_id)
        screen.paragraph(f"{scenario.name}: {sentence}.", indent=2, hang=4)
    screen.line()
    stage.start_daemon()


def _tell(step: story.Step, stage: Stage, witness: Witness, screen: Screen) -> list[tuple[End, Fate]]:
    mark = witness.mark()
    stage.database.execute(step.statement)
    screen.event("0 ms", Speaker.APP, step.statement, _STYLES[Speaker.APP])
    due_at = time.monotonic() + _A_MOMENT
    witness.wait_until_quiet()
    # On a busy machine the daemon may look at these people only when they are due, and leave nothing to the clock.
    if step.by_clock and not witness.anything_new(mark):
        time.sleep(max(0.0, due_at - time.monotonic()))
        mark = witness.mark()
        stage.database.execute(story.CLOCK)
        screen.event("0 ms", Speaker.CLOCK, story.CLOCK, _STYLES[Speaker.CLOCK])
        witness.wait_until_quiet()
    _show(witness, mark, screen)
    return [(end, witness.fate(end.person, step.scenario_type, mark)) for end in step.ends]


def _show(witness: Witness, mark: Mark, screen: Screen) -> None:
    for event in witness.events(mark):
        when = "" if event.at is None else f"{(event.at - mark.at) / timedelta(milliseconds=1):+.1f} ms"
        screen.event(when, event.speaker, event.text, _STYLES[event.speaker])


def _read_on_the_phone(stage: Stage, screen: Screen, number: int) -> None:
    """What left the house are keys and ids; the phone asks for the rest, with its owner's JWT."""
    person = story.CONCERN
    message = next(entry["message"] for entry in stage.emulator.messages() if entry["token"] == person.devices[0].token)
    notification_id = message["data"]["notification_id"]
    screen.line()
    screen.paragraph(
        f"{number}  The push to {person.role} carries no text: the phone asks for it", Style.HEADING, hang=3
    )
    screen.event("", Speaker.FCM, json.dumps(message), _STYLES[Speaker.FCM])
    (title, body) = _call(
        stage.database, person.user_id, "select title, body from herald.notification_content(%s)", notification_id
    )
    screen.event("", Speaker.PHONE, f"herald.notification_content -> {title} {body}", _STYLES[Speaker.PHONE])
    _call(stage.database, person.user_id, "select herald.mark_opened(%s)", notification_id)
    (opened,) = _row(
        stage.database,
        "select extract(epoch from opened_at - dispatched_at) * 1000 from herald.scenario_notification where id = %s",
        notification_id,
    )
    screen.event("", Speaker.RECORD, f"opened {opened:.0f} ms after FCM accepted it", _STYLES[Speaker.RECORD])


def _sum_up(witness: Witness, told: list[tuple[End, Fate]], screen: Screen) -> bool:
    screen.line()
    screen.paragraph("What happened to whom, and why (the numbers are those of herald.explain)", Style.HEADING)
    screen.table(
        (
            fate.person.role,
            fate.scenario_type,
            fate.ending,
            _ENDINGS[fate.ending],
            f"{fate.because}: {fate.why}" if fate.because else fate.why,
        )
        for _, fate in told
    )
    totals = witness.totals()
    screen.line()
    for what, counter in (("prompts", totals.prompts), ("history", totals.history)):
        counts = ", ".join(f"{count} {status}" for status, count in sorted(counter.items()))
        screen.line(f"  {what:<8}  {counts}")
    refused = ", ".join(f"{count} {code}" for code, count in totals.refused.items())
    screen.line(f"  FCM       {totals.accepted} accepted; refused: {refused or 'none'}")
    screen.line(f"  records   {totals.notifications} notifications, {totals.revoked} tokens revoked")
    screen.line()
    screen.line("Checked", Style.HEADING)
    all_kept = True
    for promise, kept in witness.verify(told):
        all_kept = all_kept and kept
        screen.paragraph(
            f"{'ok    ' if kept else 'NOT SO'}  {promise}", Style.PLAIN if kept else Style.BAD, indent=2, hang=8
        )
    return all_kept


def _stay(stage: Stage, witness: Witness, screen: Screen) -> None:
    """Leave it running, say what to try, and show what happens, until Ctrl-C."""
    done = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: done.set())
    _invite(stage, screen)
    mark = witness.mark()
    shown: set[Event] = set()
    while not done.wait(_LOOK_SECONDS):
        if stage.daemon.has_ended:
            raise HeraldError(stage.daemon.last_words())
        if not witness.anything_new(mark):
            continue
        mark, before = witness.mark(), mark
        found = witness.events(before)
        for event in found:
            if event not in shown:
                when = "" if event.at is None else f"{event.at.astimezone():%H:%M:%S.%f}"[:-3]
                screen.event(when, event.speaker, event.text, _STYLES[event.speaker])
        shown = set(found)
    screen.line()
    screen.line("Stopping and removing everything.", Style.FAINT)


def _invite(stage: Stage, screen: Screen) -> None:
    programs = {"pgherald": Path(sys.executable).parent, "psql": stage.psql.parent}
    not_found = [str(directory) for name, directory in programs.items() if not shutil.which(name)]
    listen = stage.daemon.said("starting")["listen"]
    settings = stage.settings | {"PGHERALD_DATABASE_URL": stage.dsn, "PGHERALD_METRICS_LISTEN": listen}
    screen.line()
    screen.paragraph("It goes on running, and shows here what happens. In another terminal:", Style.HEADING)
    for name, value in settings.items():
        screen.line(f"export {name}='{value}'")
    if not_found:
        screen.line(f'export PATH="$PATH:{":".join(not_found)}"')
    for command in story.COMMANDS:
        screen.line(f"pgherald {command}")
    screen.line(f"curl http://{listen}/metrics")
    screen.line(f"curl {stage.emulator.endpoint}/emulator/messages")
    screen.line('psql "$PGHERALD_DATABASE_URL"')
    screen.line()
    screen.paragraph("and in that psql, for example:", Style.HEADING)
    for comment, statement in story.TO_TRY:
        screen.line(f"-- {comment}", Style.FAINT)
        screen.line(f"{statement};")
    screen.line()
    screen.line("Ctrl-C stops it and removes everything.", Style.HEADING)


def _zones(database: psycopg.Connection) -> tuple[str, str]:
    """A time zone where it is day now and stays so for hours, and one where it is night."""
    (day, night) = _row(
        database,
        "select (array_agg(z order by z <> 'Europe/Oslo') filter (where h between 9 and 17))[1], "
        "(array_agg(z order by h) filter (where h >= 22 or h < 6))[1] "
        "from (select z, extract(hour from now() at time zone z) as h from unnest(%s::text[]) as z) as clock",
        list(story.TIME_ZONES),
    )
    return day, night


def _call(database: psycopg.Connection, person: UUID, statement: Any, *values: object) -> Any:
    """Run a statement as the API does for a person's JWT; its first row."""
    with database.transaction():
        database.execute("select set_config('request.jwt.claims', %s, true)", (json.dumps({"sub": str(person)}),))
        database.execute("set local role authenticated")
        return database.execute(statement, values).fetchone()


def _row(database: psycopg.Connection, statement: Any, *values: object) -> Any:
    return database.execute(statement, values).fetchone()
