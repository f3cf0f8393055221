"""The operators' commands: what each takes, what it asks the database or FCM, and what a person then reads.

Called by `pgherald.cli`, which adds their parsers to its own. The questions themselves are in `pgherald.operate` (the
database), `pgherald.devices` (FCM) and `pgherald.doctor`; here is argparse on one side and text or JSON on the other. A
command returns its exit code: 0 good, 1 found a problem; wrong usage and configuration that cannot work are raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgherald.commands import devices, doctor, prompts, scenarios, status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgherald.commands.command import Commands


def add_parsers(commands: Commands) -> None:
    """Add the operators' commands to the program's."""
    for family in (status, scenarios, prompts, devices, doctor):
        family.add_parsers(commands)


def with_action(arguments: Sequence[str]) -> Sequence[str]:
    """The same arguments, with `list` where a command that has actions is called without one."""
    if arguments[:1] and arguments[0] in ("failed", "unknown", "tokens"):
        rest = arguments[1:]
        if not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
            return [arguments[0], "list", *rest]
    return arguments
