"""The commands: what a person types, what it prints, and the exit code it ends with.

0 good, 1 found a problem, 2 wrong usage, 78 configuration that cannot work. A mistake of the user ends in one message
on stderr, never in a traceback. The work is done elsewhere; what does it is imported only when it is called for.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pgherald import commands as operators
from pgherald.commands.command import say
from pgherald.config import SETTINGS, check_names
from pgherald.errors import HeraldError, UsageError
from pgherald.screen import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no other name

_DESCRIPTION = """\
Turns what Postgres finds due into exactly one push through Firebase Cloud
Messaging, and one record."""

_EXIT_CODES = """\
exit codes:
  0 good, 1 found a problem, 2 wrong usage, 78 configuration that cannot work"""

_WRAPPED: Any = {"width": 80, "subsequent_indent": " " * 6, "break_on_hyphens": False}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    if sys.stdout is None:  # closed by whoever started this: nobody wants the answer
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as this lives
    try:
        arguments = _parser().parse_args(operators.with_action(sys.argv[1:] if argv is None else argv))
        run: Callable[[argparse.Namespace], int] = arguments.run
        return run(arguments)
    except HeraldError as error:
        return _refuse(error)
    except BaseExceptionGroup as group:
        refusals, rest = group.split(HeraldError)
        if refusals is None or rest is not None:
            raise
        return max(_refuse(error) for error in _leaves(refusals))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _refuse(error: HeraldError) -> int:
    print(visible(f"pgherald: {error}"), file=sys.stderr)
    return error.exit_code


def _leaves(group: BaseExceptionGroup[HeraldError]) -> list[HeraldError]:
    found: list[HeraldError] = []
    for each in group.exceptions:
        found += _leaves(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found


class _Parser(argparse.ArgumentParser):
    """One whose help, where it cannot be written, is an answer like any other."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            say(message.rstrip("\n"))
        else:
            super()._print_message(visible(message), file)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="pgherald",
        description=_DESCRIPTION,
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pgherald {importlib.metadata.version('pgherald')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_migrate(commands)
    _add_run(commands)
    operators.add_parsers(commands)
    _add_emulator(commands)
    return parser


def _settings_help() -> str:
    lines = ["settings (environment variables; an unknown PGHERALD_* is an error):"]
    for setting in SETTINGS:
        lines += textwrap.wrap(f"{setting.name} (default: {setting.default})", initial_indent="  ", **_WRAPPED)
        lines += textwrap.wrap(f"{setting.meaning}.", initial_indent="      ", **_WRAPPED)
    return "\n".join([*lines, "", _EXIT_CODES])


def _add_migrate(commands: Commands) -> None:
    parser = commands.add_parser(
        "migrate",
        help="install the schema, or bring it to this program's version",
        description="Brings schema `herald` to this program's version: all or nothing, repeatable, one at a time. "
        "Run it as a role with CREATEROLE that may create a schema in the database; a superuser is not needed.",
    )
    parser.add_argument("--dry-run", action="store_true", help="do it all, then roll back and say what was done")
    parser.add_argument(
        "--dump-sql", action="store_true", help="print the script instead, for psql on an empty database"
    )
    parser.add_argument(
        "--with-reference", action="store_true", help="also load the reference app (schema app), to try things out"
    )
    parser.add_argument("--json", action="store_true", help="report as JSON")
    parser.set_defaults(run=_migrate)


def _migrate(arguments: argparse.Namespace) -> int:
    from pgherald import schema
    from pgherald.config import load_settings

    if arguments.dump_sql:
        if arguments.dry_run or arguments.json:
            raise UsageError("--dump-sql prints a script and does nothing else: leave --dry-run and --json out")
        check_names(os.environ)
        say(schema.dump_sql(with_reference=arguments.with_reference).rstrip("\n"))
        return 0
    report = schema.migrate(
        load_settings(os.environ).database_url, with_reference=arguments.with_reference, dry_run=arguments.dry_run
    )
    if arguments.json:
        say(orjson.dumps(report).decode())
        return 0
    for name in report.applied:
        say(f"migration {name}: {'would be applied' if report.dry_run else 'applied'}")
    say(f"schema version {report.version}; functions {'would be' if report.dry_run else 'are'} as shipped")
    if report.cron:
        are = "would be" if report.dry_run else "are"
        say(f"pg_cron jobs herald-evaluate (each minute) and herald-maintain (nightly) {are} scheduled")
    for warning in report.warnings:
        say(f"note: {warning}")
    return 0


def _add_run(commands: Commands) -> None:
    parser = commands.add_parser(
        "run",
        help="run the daemon",
        description="Runs the daemon until SIGTERM or SIGINT: listens, claims, sends, records, serves metrics. "
        "Everything is set by environment variables; `pgherald --help` lists them. SIGHUP has the settings file and "
        "the credentials read again.",
    )
    parser.add_argument(
        "--settings-file",
        type=Path,
        metavar="FILE",
        help="more variables, as NAME=value lines; they go before those of the environment",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from pgherald import service

    return service.run(os.environ, arguments.settings_file)


def _add_demo(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="see it all at work: a Postgres, an app, an FCM emulator and the daemon in one command",
        description="Starts an embedded Postgres, the reference app, the FCM emulator and the daemon, inserts rows, "
        "and shows what becomes of each person. On a terminal it stays up until Ctrl-C, with statements to try.",
    )
    parser.add_argument("--once", action="store_true", help="end after the summary, on a terminal too")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from pgherald import demo

    check_names(os.environ)
    return demo.run(once=arguments.once)


def _add_emulator(commands: Commands) -> None:
    from pgherald.emulator import cli as emulator

    def run(arguments: argparse.Namespace) -> int:
        check_names(os.environ)
        return emulator.run(arguments)

    emulator.add_parser(commands).set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
