"""pgspot for `make check`, told about two things in which it gives up on the whole file.

A standard SQL body (`return ...`, `begin atomic`): Postgres binds its names when the function is made, so it is
the search path of the script that counts, which pgspot knows; the body is read as part of the script.
A variable of a table's type: the parser without a database does not know its fields; it is read as a record.
Run as `python -m tests.pgspot_sql`, with pgspot's own arguments.
"""

from __future__ import annotations

import re
from typing import Any

from pgspot import cli, visitors

_visit_function = visitors.SQLVisitor.visit_CreateFunctionStmt
_parse_plpgsql = visitors.parse_plpgsql


def _visit(visitor: Any, ancestors: Any, node: Any) -> Any:
    if node.sql_body is None:
        return _visit_function(visitor, ancestors, node)
    return None  # go on to what is inside


def _parse(text: str) -> Any:
    declaration = r"^(\s*v_\w+ (?:constant )?)herald\.\w+(?=\s*(?:;|:=))"
    return _parse_plpgsql(re.sub(declaration, r"\1record", text, flags=re.MULTILINE))


if __name__ == "__main__":
    visitors.SQLVisitor.visit_CreateFunctionStmt = _visit
    visitors.parse_plpgsql = _parse
    cli.run()
