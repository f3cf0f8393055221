"""pgspot for `make check`, told about functions with a standard SQL body: `return ...`, `begin atomic`.

Postgres binds the names of such a body when the function is made, so what counts is the search path of the script,
which pgspot knows: the body is read as part of the script. Without this, pgspot gives up on the whole file.
Run as `python -m tests.pgspot_sql`, with pgspot's own arguments.
"""

from __future__ import annotations

from typing import Any

from pgspot import cli, visitors

_visit_function = visitors.SQLVisitor.visit_CreateFunctionStmt


def _visit(visitor: Any, ancestors: Any, node: Any) -> Any:
    if node.sql_body is None:
        return _visit_function(visitor, ancestors, node)
    return None  # go on to what is inside


if __name__ == "__main__":
    visitors.SQLVisitor.visit_CreateFunctionStmt = _visit
    cli.run()
