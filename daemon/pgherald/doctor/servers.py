"""Which minor releases of Postgres have a bug that matters here: a table, and one question to it.

Sources: the notes of the release that fixed it (postgresql.org/docs/release/), and postgresql.org/support/security.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Bug:
    """`fixed_in`: major release -> the first minor without it; of others it is not known to be there."""

    what: str
    fixed_in: Mapping[int, int]
    serious: bool


BUGS: Final = (
    Bug(
        "row-level security may apply the wrong role's policy in plans that are used again (CVE-2024-10976)",
        {15: 9, 16: 5, 17: 1},
        serious=True,
    ),
    Bug(
        "row-level security may apply the wrong role's policy in inlined functions (CVE-2023-2455)",
        {15: 3},
        serious=True,
    ),
    Bug(
        "a backend that listens can fail with `could not access status of transaction` after a VACUUM, and then "
        "hears nothing",
        {15: 16, 16: 12, 17: 8, 18: 2},
        serious=False,
    ),
    Bug(
        "statistics may show values of rows that row-level security hides (CVE-2025-8713)",
        {15: 14, 16: 10, 17: 6},
        serious=False,
    ),
    Bug(
        "row-level security may go by the roles of before in plans that are used again, after a role was granted or "
        "changed (CVE-2026-14666)",
        {15: 19, 16: 15, 17: 11, 18: 5},
        serious=False,
    ),
    Bug(
        "some kinds of indexes may give wrong results: REINDEX after the update (its release notes say which)",
        {15: 5, 16: 1},
        serious=False,
    ),
)


def bugs_of(server_version: int) -> list[Bug]:
    """The bugs of a server, by its server_version_num (150020 is 15.20)."""
    major, minor = divmod(server_version, 10_000)
    return [bug for bug in BUGS if minor < bug.fixed_in.get(major, 0)]
