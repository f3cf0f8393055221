"""tests/expected/schema.sql: what all migrations and functions together make, so that a review shows the net change.

It is PostgreSQL 18's pg_dump of PostgreSQL 18, normalised: each version words some things its own way. `make expected`
writes it anew.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.postgres import Database

EXPECTED = Path(__file__).parents[1] / "expected" / "schema.sql"

HEADER = """\
-- What `pgherald migrate` makes in a database, as PostgreSQL 18's pg_dump tells it. Left out: the bodies of functions,
-- which are whole in sql/functions and sql/scenarios; comments; and `owner to herald_owner`, which every object has.
-- Written by `make expected`, read by reviewers, compared by tests/db/test_expected_schema.py.
"""


def dump(database: Database) -> str:
    return subprocess.run(
        [
            database.server.cluster.binaries / "pg_dump",
            "--schema-only",
            "--schema=herald",
            "--no-comments",
            "--restrict-key=none",
            database.dsn,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def normalised(dumped: str) -> str:
    """The statements of a dump without those that only a restore needs, with bodies of functions left out."""
    # A body first: what it holds must not be taken for a statement.
    text = re.sub(r"AS (\$\w*\$).*?\1", "AS $$...$$", dumped, flags=re.DOTALL)
    text = re.sub(r"^\s*BEGIN ATOMIC$.*?^\s*END;$", "BEGIN ATOMIC ... END;", text, flags=re.DOTALL | re.MULTILINE)
    kept = [
        line
        for line in text.splitlines()
        if not line.startswith(("--", "\\", "SET ", "SELECT pg_catalog.set_config"))
        and not re.fullmatch(r"ALTER .* OWNER TO herald_owner;", line)
    ]
    return HEADER + re.sub(r"\n{2,}", "\n\n", "\n" + "\n".join(kept).strip() + "\n")


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_the_migrated_schema_is_the_expected_one(database: Database, request: pytest.FixtureRequest) -> None:
    found = normalised(dump(database))
    if request.config.getoption("--update-expected"):
        EXPECTED.parent.mkdir(exist_ok=True)
        EXPECTED.write_text(found)
    assert found.splitlines() == EXPECTED.read_text().splitlines(), "if this is meant: make expected, and commit it"


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_a_change_of_a_table_a_grant_or_an_owner_shows(database: Database) -> None:
    before = normalised(dump(database))
    for change in (
        "alter table herald.prompt add column forgotten text",
        "grant select on herald.device_token to public",
        "alter table herald.prompt owner to migrator",
        "alter function herald.evaluate security invoker",
        "alter table herald.prompt no force row level security",
    ):
        database.connect().execute(change)
        after = normalised(dump(database))
        assert after != before
        before = after
