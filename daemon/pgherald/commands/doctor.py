"""`pgherald doctor`. The examination itself is the package `pgherald.doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgherald.commands.command import command, say, settings_of, terminal
from pgherald.screen import as_json

if TYPE_CHECKING:
    import argparse

    from pgherald.commands.command import Commands


def add_parsers(commands: Commands) -> None:
    """Add the command to the program's."""
    parser = command(
        commands,
        "doctor",
        _doctor,
        "examine the whole chain, with a remedy for each finding",
        "Examines everything between a changed row and a push: the database and the way to it, LISTEN, schema, rights, "
        "triggers, schedule, indexes, transactions, clocks, the state directory, and FCM by a message that it only "
        "checks (validate_only). Nothing is changed, nobody gets anything. Run it with the daemon's own settings. The "
        "exit code is 1 if there is a problem.",
    )
    parser.add_argument(
        "--dba-url",
        metavar="CONNINFO",
        help="also look with the eyes of this role, such as the one that ran migrate or a superuser, at what the "
        "daemon may not see (pg_cron's jobs, other sessions); keep the password out of it (PGPASSFILE)",
    )
    parser.add_argument(
        "--verbose", "-v", action="store_true", help="each check on a line, those that found nothing too"
    )


def _doctor(arguments: argparse.Namespace) -> int:
    from pgherald import doctor

    findings = doctor.examine(settings_of(arguments), arguments.dba_url)
    bad = any(finding.state is doctor.State.PROBLEM for finding in findings)
    if arguments.json:
        say(as_json(doctor.document(findings)))
    else:
        say(doctor.report(findings, terminal(), verbose=arguments.verbose))
    return int(bad)
