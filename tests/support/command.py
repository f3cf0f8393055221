"""`pgherald` as a person types it, in this process: what it prints and its exit code, with settings of its own."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from pgherald import cli

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def text(self) -> str:
        """Standard output as one line, however it was wrapped."""
        return " ".join(self.out.split())


@dataclass(frozen=True, slots=True)
class Command:
    """Runs commands with these settings, and no other PGHERALD_* or PG* variable."""

    settings: Mapping[str, str]

    def __call__(self, *arguments: object, **settings: str) -> Answer:
        """Run `pgherald ARGUMENTS`; `settings` go before those of this object."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PGHERALD_", "PG"))}
        environment |= {**self.settings, **settings}
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                code = cli.main([str(each) for each in arguments])
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
        answer = Answer(code, out.getvalue(), err.getvalue())
        assert "Traceback" not in answer.err
        return answer
