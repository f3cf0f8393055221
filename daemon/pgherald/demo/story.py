"""The story: a small organisation in two chapters, its people by role, its rules, what happens, and how it must end.

Data and SQL only; `__init__` tells it, `witness` reads back what came of it. Nobody has a name, as nobody has one in
pgherald. Everything is done as it is done in earnest: the app inserts rows, phones call their functions with a JWT.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Final, LiteralString
from uuid import UUID

ORGANISATION: Final = UUID("00000000-0000-4000-8000-0000000000aa")
NORTH: Final = UUID("00000000-0000-4000-8000-0000000000c1")
SOUTH: Final = UUID("00000000-0000-4000-8000-0000000000c2")


@unique
class Ending(StrEnum):
    """What became of a person in one step."""

    PUSHED = "pushed"
    FAILED = "failed"
    SKIPPED = "skipped"
    WAITS = "waits"
    STOPPED = "stopped"
    NOT_DUE = "not due"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Device:
    """A phone of somebody. What its token begins with decides how the emulator answers."""

    platform: str
    token: str


@dataclass(frozen=True, slots=True)
class Person:
    """A peer mentor. `activities`: how many lie behind them when the story begins."""

    user_id: UUID
    role: str
    chapter: UUID
    devices: tuple[Device, ...]
    activities: int = 3
    status: str = "active"
    locale: str = "en"
    at_night: bool = False
    opted_out: bool = False


def _person(number: int, role: str, chapter: UUID, *devices: Device, **more: object) -> Person:
    return Person(UUID(f"00000000-0000-4000-8000-{number:012}"), role, chapter, devices, **more)  # type: ignore[arg-type]


# With the one of the first step nine activities, so that one more makes a milestone: the statements to try rely on it.
QUIET: Final = _person(1, "a mentor quiet for 30 days", NORTH, Device("android", "android-quiet"), activities=8)
OPTED_OUT: Final = _person(
    2, "a quiet mentor who opted out", NORTH, Device("android", "android-opted-out"), opted_out=True
)
NO_PHONE: Final = _person(3, "a quiet mentor without a phone", NORTH)
NEW_PHONE: Final = _person(
    4,
    "a quiet mentor with a dead token and a good one",
    NORTH,
    Device("android", "android-second"),
    Device("android", "unregistered-first"),  # registered later, so tried first
)
DEAD_PHONE: Final = _person(
    5, "a quiet mentor with nothing but a dead token", NORTH, Device("android", "unregistered-only")
)
AT_NIGHT: Final = _person(6, "a quiet mentor where it is night", NORTH, Device("ios", "iphone-at-night"), at_night=True)
ON_LEAVE: Final = _person(7, "a quiet mentor on leave", NORTH, Device("android", "android-on-leave"), status="paused")
ELSEWHERE: Final = _person(8, "a quiet mentor of the other chapter", SOUTH, Device("android", "android-elsewhere"))
TENTH: Final = _person(9, "a mentor at the tenth activity", SOUTH, Device("android", "android-tenth"), activities=9)
CONCERN: Final = _person(10, "a mentor after a worrying contact", SOUTH, Device("ios", "iphone-concern"), locale="nb")
NO_CONCERN: Final = _person(11, "a mentor after a contact that went well", SOUTH, Device("ios", "iphone-no-concern"))
CERTIFIED: Final = _person(12, "a mentor whose certificate runs out", NORTH, Device("android", "android-certified"))

PEOPLE: Final = (
    *(QUIET, OPTED_OUT, NO_PHONE, NEW_PHONE, DEAD_PHONE, AT_NIGHT, ON_LEAVE, ELSEWHERE),
    *(TENTH, CONCERN, NO_CONCERN, CERTIFIED),
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A rule, as a coordinator sets it. `chapter` of None: for the whole organisation."""

    scenario_type: str
    name: str
    chapter: UUID | None
    params: str


SCENARIOS: Final = (
    Scenario("inactivity", "Quiet mentors", NORTH, '{"days": 30}'),
    Scenario("milestone", "Milestones", None, '{"counts": [1, 10, 50]}'),
    Scenario("expiry", "Certificates", None, '{"days_before": [30, 7, 1], "kinds": ["first_aid"]}'),
    Scenario(
        "follow_up",
        "Worrying contacts",
        SOUTH,
        '{"activity_type": "contact", "after_days": 3, "first_only": true, "if_flag": "wellbeing_concern"}',
    ),
)

TEXTS: Final = (
    ("inactivity_title", "en", "It has been a while"),
    ("inactivity_body", "en", "How are you? Your coordinator would like to hear from you."),
    ("milestone_title", "en", "Thank you"),
    ("milestone_body", "en", "You have reached a milestone."),
    ("expiry_title", "en", "A certificate runs out soon"),
    ("expiry_body", "en", "Look for a course in time."),
    ("follow_up_title", "en", "How did it go?"),
    ("follow_up_body", "en", "Three days ago you had a contact that was a concern."),
    ("follow_up_title", "nb", "Hvordan gikk det?"),
    ("follow_up_body", "nb", "For tre dager siden hadde du en kontakt som ga grunn til bekymring."),
)


@dataclass(frozen=True, slots=True)
class End:
    """How a step must end for one person; `because` is the check or gate that decided."""

    person: Person
    ending: Ending
    because: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens: a statement of the app, run and shown as it stands, and who must be how afterwards.

    `by_clock`: what makes them due is not the statement but the time that passes after it, so the scheduled run is
    called a moment later instead of waiting up to a minute for it.
    """

    title: str
    scenario_type: str
    statement: LiteralString
    ends: tuple[End, ...]
    by_clock: bool = False


CLOCK: Final[LiteralString] = "select * from herald.evaluate()"
"""What pg_cron, or the daemon without it, runs each minute."""

STEPS: Final = (
    Step(
        "Time passes: for eight mentors the last activity is now 30 days ago",
        "inactivity",
        "insert into app.activity (user_id, activity_type, occurred_at)\n"
        "select user_id, 'visit', now() - interval '30 days' + interval '0.4 seconds'\n"
        "from app.peer_mentor where user_id <= '00000000-0000-4000-8000-000000000008'",
        (
            End(QUIET, Ending.PUSHED),
            End(OPTED_OUT, Ending.STOPPED, "opted_out"),
            End(NO_PHONE, Ending.SKIPPED, "no_device_token"),
            End(NEW_PHONE, Ending.PUSHED),
            End(DEAD_PHONE, Ending.FAILED, "UNREGISTERED"),
            End(AT_NIGHT, Ending.WAITS, "quiet_hours"),
            End(ON_LEAVE, Ending.STOPPED, "inactive_recipient"),
            End(ELSEWHERE, Ending.NOT_DUE),
        ),
        by_clock=True,
    ),
    Step(
        "A mentor logs the tenth activity",
        "milestone",
        "insert into app.activity (user_id, activity_type)\nvalues ('00000000-0000-4000-8000-000000000009', 'visit')",
        (End(TENTH, Ending.PUSHED),),
    ),
    Step(
        "The same mentor logs forty more at once: the fiftieth comes too soon after the tenth",
        "milestone",
        "insert into app.activity (user_id, activity_type)\n"
        "select '00000000-0000-4000-8000-000000000009', 'visit' from generate_series(1, 40)",
        (End(TENTH, Ending.STOPPED, "cooldown"),),
    ),
    Step(
        "Two mentors report a first contact, three days late: one was worrying",
        "follow_up",
        "insert into app.activity (user_id, activity_type, occurred_at, flags)\nvalues\n"
        "('00000000-0000-4000-8000-000000000010', 'contact', now() - interval '3 days', '{wellbeing_concern}'),\n"
        "('00000000-0000-4000-8000-000000000011', 'contact', now() - interval '3 days', '{}')",
        (End(CONCERN, Ending.PUSHED), End(NO_CONCERN, Ending.NOT_DUE)),
    ),
    Step(
        "A certificate is entered that expires in 30 days",
        "expiry",
        "insert into app.certification (user_id, kind, expires_at)\n"
        "values ('00000000-0000-4000-8000-000000000012', 'first_aid', now() + interval '30 days')",
        (End(CERTIFIED, Ending.PUSHED),),
    ),
)

TIME_ZONES: Final = (
    *("Europe/Oslo", "Asia/Kolkata", "Asia/Tokyo", "Pacific/Auckland"),
    *("Pacific/Honolulu", "America/Los_Angeles", "America/New_York"),
)
"""Places round the world: at any hour it is broad day in one of them, and night in another."""

COMMANDS: Final = ("status", "why 00000000-0000-4000-8000-000000000005 inactivity", "doctor")
"""Commands to try while the demo stays up."""

TO_TRY: Final = (
    (
        "a tenth activity: a push within milliseconds",
        "insert into app.activity (user_id, activity_type)\nvalues ('00000000-0000-4000-8000-000000000001', 'visit')",
    ),
    (
        "why has the mentor where it is night got nothing yet?",
        "select check_name, passed, detail\nfrom herald.explain('00000000-0000-4000-8000-000000000006', 'inactivity')",
    ),
    (
        "who would be reached by a rule that nobody has saved yet?",
        (
            'select * from herald.preview(\'{"scenario_type": "inactivity", "params": {"days": 25},\n'
            '  "name": "trial", "organisation_id": "00000000-0000-4000-8000-0000000000aa"}\'::jsonb)'
        ),
    ),
    ("the scheduled run, as often as you like: nobody gets it twice", CLOCK),
    ("everything that was recorded", "select * from herald.scenario_prompt_history order by history_id"),
)
"""What a person may paste into psql while the demo stays up: what it does, and the statement."""
