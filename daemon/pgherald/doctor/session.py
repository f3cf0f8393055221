"""How the doctor asks a database: read-only, with a time-out, and so that no function but Postgres's own answers to an
unqualified name. Used by `database` and `flow`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

if TYPE_CHECKING:
    import psycopg


def ask(connection: psycopg.Connection, statement: LiteralString, *values: Any) -> list[tuple[Any, ...]]:
    """Ask in a read-only transaction, under a path on which every unqualified name is Postgres's own."""
    with connection.transaction():
        connection.execute("set transaction read only")
        connection.execute("set local search_path = pg_catalog, pg_temp")
        connection.execute("set local statement_timeout = '15s'")
        return connection.execute(statement, values or None).fetchall()
