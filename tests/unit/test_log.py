"""What the log promises: one JSON object a line, allow-listed fields only, and nothing of anybody else's texts."""

from __future__ import annotations

import ast
import inspect
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherald.config import LogLevel
from pgherald.log import FIELDS, Log, Shape, configure, describe_exception, token_tag

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "Kari Nordmann s3cr3t"
PROMPT = UUID(int=1)


class Lines(io.StringIO):
    def parsed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def last(self) -> dict[str, Any]:
        return self.parsed()[-1]


@pytest.fixture
def out() -> Lines:
    return Lines()


@pytest.fixture
def configured(process_log: Log, out: Lines) -> Lines:
    """The process-wide log, set up as the daemon does it."""
    configure(LogLevel.DEBUG, out, strict=True)
    return out


def test_an_event_is_one_json_object_on_one_line(out: Lines) -> None:
    before = datetime.now(UTC)
    Log(LogLevel.DEBUG, out).info(
        "batch_settled",
        prompt_id=PROMPT,
        outcome="sent",
        count=3,
        seconds=0.25,
        dispatched_at=before,
        path=Path("/var/x"),
    )
    assert out.getvalue().count("\n") == 1
    line = out.last()
    written = datetime.fromisoformat(line.pop("ts"))
    assert before <= written <= datetime.now(UTC)
    assert line == {
        "level": "info",
        "event": "batch_settled",
        "prompt_id": str(PROMPT),
        "outcome": "sent",
        "count": 3,
        "seconds": 0.25,
        "dispatched_at": before.isoformat().replace("+00:00", "Z"),
        "path": "/var/x",
    }


@pytest.mark.parametrize(
    ("level", "written"),
    [
        (LogLevel.DEBUG, ["debug", "info", "warning", "error", "critical"]),
        (LogLevel.INFO, ["info", "warning", "error", "critical"]),
        (LogLevel.WARNING, ["warning", "error", "critical"]),
        (LogLevel.ERROR, ["error", "critical"]),
    ],
)
def test_a_level_writes_itself_and_what_is_graver(level: LogLevel, written: list[str], out: Lines) -> None:
    each = Log(level, out)
    for write in (each.debug, each.info, each.warning, each.error, each.critical):
        write("something_happened")
    assert [line["level"] for line in out.parsed()] == written


def test_an_unknown_field_is_dropped_and_counted_in_production_and_raised_in_tests(out: Lines) -> None:
    Log(LogLevel.INFO, out).info("prompt_sent", prompt_id=PROMPT, title=SECRET, token="abc")
    assert "title" not in out.last()
    assert out.last()["fields_dropped"] == 2
    assert SECRET not in out.getvalue()
    with pytest.raises(ValueError, match="title is no field") as caught:
        Log(LogLevel.INFO, out, strict=True).info("prompt_sent", title=SECRET)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("error_code", "duplicate key value violates unique constraint"),
        ("error_code", "postgresql://u:p@host/db"),
        ("reason", "x" * 101),
        ("reason", "a\nb"),
        ("reason", 3),
        ("prompt_id", "00000000-0000-0000-0000-000000000001"),
        ("count", "3"),
        ("count", 2**63),
        ("dispatched_at", datetime(2026, 1, 31)),  # noqa: DTZ001 - it must be refused
        ("token_tag", "dGhpcyBpcyBhIHRva2Vu"),
        ("message_name", "Kari Nordmann"),
        ("path", "/var/lib"),
    ],
)
def test_a_value_of_another_shape_than_its_field_never_gets_out(field: str, value: Any, out: Lines) -> None:
    Log(LogLevel.INFO, out).info("something_happened", **{field: value})
    assert field not in out.last()
    assert out.last()["fields_dropped"] == 1
    with pytest.raises(ValueError, match=field):
        Log(LogLevel.INFO, out, strict=True).info("something_happened", **{field: value})


PACKAGE = Path(inspect.getfile(Log)).parent


def logging_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
                and node.func.attr in ("debug", "info", "warning", "error", "critical", "crash")
            ):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def fields_passed() -> Iterator[str]:
    """Every field that a call of the log names, be it through another name of the method or a dict made elsewhere."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and says(node.value)]
        aliases = {target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)}
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and (says(call.func) or getattr(call.func, "id", None) in aliases):
                for keyword in call.keywords:
                    if keyword.arg is not None:
                        yield keyword.arg
                    else:
                        assert isinstance(keyword.value, ast.Call)
                        assert isinstance(keyword.value.func, ast.Name)
                        for made in ast.walk(functions[keyword.value.func.id]):
                            if isinstance(made, ast.Dict):
                                yield from (str(ast.literal_eval(key)) for key in made.keys if key is not None)


def says(node: ast.expr) -> bool:
    """Whether a method of the log is this expression, or one of its choices."""
    match node:
        case ast.Attribute(value=ast.Name(id="log"), attr=attr):
            return attr in ("debug", "info", "warning", "error", "critical", "crash")
        case ast.IfExp(body=body, orelse=other):
            return says(body) or says(other)
        case _:
            return False


def test_the_list_of_allowed_fields_is_that_of_the_fields_passed() -> None:
    assert set(fields_passed()) - {"event"} == set(FIELDS)


def test_every_event_of_the_program_has_a_constant_name_and_allowed_fields_only() -> None:
    calls = list(logging_calls())
    assert len(calls) > 5
    for place, call in calls:
        assert isinstance(call.func, ast.Attribute)
        names = call.args[1:] if call.func.attr == "crash" else call.args
        assert call.func.attr == "crash" or len(names) == 1, place
        for name in names:
            constant = name.value if isinstance(name, ast.Constant) else None
            assert isinstance(constant, str), f"{place}: the name of the event is not constant"
            assert re.fullmatch(r"[a-z][a-z0-9_]+", constant), place
        unknown = {keyword.arg for keyword in call.keywords if keyword.arg is not None} - set(FIELDS) - {"event"}
        assert unknown == set(), f"{place}: not in FIELDS"


GOOD: dict[Shape, list[Any]] = {
    Shape.ID: [PROMPT],
    Shape.NUMBER: [0, -1, 1.5, True, float("nan"), float("inf")],
    Shape.WORD: ["", "UNREGISTERED", "UniqueViolation[23505]", "[::1]:9477", "a/b.py:3", "ExceptionGroup[A,B]"],
    Shape.TIME: [datetime.now(UTC), datetime.now(timezone(timedelta(hours=2)))],
    Shape.TAG: [token_tag("x")],
    Shape.NAME: ["projects/p-1/messages/0:1500415314455276%31bd1c9631bd1c96"],
    Shape.PATH: [Path("/var/lib/pgherald"), Path(os.fsdecode(b"/not\xff-utf8"))],
}


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_field_takes_the_values_of_its_shape(field: str, out: Lines) -> None:
    for value in [None, *GOOD[FIELDS[field]]]:
        Log(LogLevel.INFO, out, strict=True).info("something_happened", **{field: value})
        assert field in out.last()


@pytest.mark.parametrize("name", ["Prompt sent", "sent to Kari", "x" * 70, "", "sent\n{}"])
def test_an_event_without_a_constant_name_is_written_without_it(name: str, out: Lines) -> None:
    Log(LogLevel.INFO, out).info(name, count=1)
    assert out.last()["event"] == "unnamed"
    assert out.last()["count"] == 1
    with pytest.raises(ValueError, match="constant"):
        Log(LogLevel.INFO, out, strict=True).info(name)


@given(
    st.text(),
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(FIELDS)), st.text()),
        st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.uuids(), st.datetimes()),
    ),
)
def test_whatever_is_passed_a_line_of_json_comes_out_and_nothing_is_raised(event: str, fields: dict[str, Any]) -> None:
    out = Lines()
    Log(LogLevel.INFO, out).info(event, **fields)
    assert out.getvalue().count("\n") == 1
    assert set(orjson.loads(out.getvalue())) <= {*FIELDS, "ts", "level", "event", "fields_dropped"}


def test_a_stream_that_takes_no_more_does_not_stop_the_daemon() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    each = Log(LogLevel.INFO, stream)
    each.info("something_happened")
    assert each.lost == 1
    with pytest.raises(BrokenPipeError):
        stream.close()
    each.info("something_happened")
    assert each.lost == 2


def test_a_reader_that_stops_reading_does_not_stop_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgherald.log.STALL_PATIENCE", 0.05)
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "w") as stream:
        each = Log(LogLevel.INFO, stream)

        def talk() -> None:
            for i in range(2000):
                each.info("something_happened", count=i)

        talking = threading.Thread(target=talk)
        talking.start()
        talking.join(30)
        waited = talking.is_alive()
        os.set_blocking(read, False)
        while talking.is_alive():
            reader.read()
        assert not waited

        taken = [json.loads(line)["count"] for line in reader.read().splitlines()]
        assert taken == list(range(len(taken))), "whole lines, and none from the middle"
        assert 0 < len(taken) < 2000
        assert each.lost == 2000 - len(taken)

        each.info("something_happened", count=1)
        each.info("something_happened", count=2)
        after = [json.loads(line) for line in reader.read().splitlines()]
        assert [line["count"] for line in after] == [1, 2]
        assert [line.get("lines_lost") for line in after] == [each.lost, None]


def test_a_reader_that_is_slow_gets_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # It is slow, and does not stall: on a busy machine neither.
    monkeypatch.setattr("pgherald.log.STALL_PATIENCE", 60.0)
    read, write = os.pipe()
    taken: list[bytes] = []

    def sip() -> None:
        with os.fdopen(read, "rb", buffering=0) as reader:
            while some := reader.read(4096):
                taken.append(some)
                time.sleep(0.001)

    sipping = threading.Thread(target=sip)
    sipping.start()
    with os.fdopen(write, "w") as stream:
        each = Log(LogLevel.INFO, stream)
        for i in range(2000):
            each.info("something_happened", count=i)
    sipping.join()
    assert each.lost == 0
    assert [json.loads(line)["count"] for line in b"".join(taken).splitlines()] == list(range(2000))


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        each = Log(LogLevel.INFO, stream)

        def write() -> None:
            for i in range(200):
                each.info("something_happened", count=i)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 800
    assert all(json.loads(line)["event"] == "something_happened" for line in lines)


def test_a_token_is_named_by_a_tag_that_says_nothing_about_it() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}", token_tag("abc"))
    assert token_tag("abc") == token_tag("abc")
    assert token_tag("abc") != token_tag("abd")
    assert token_tag("\ud800")  # a lone surrogate is still some token


def test_the_tag_of_a_token_differs_between_processes_so_it_cannot_be_looked_up() -> None:
    code = "from pgherald.log import token_tag; print(token_tag('abc'))"
    tags = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(tags) == 2


def raised(exc: Exception) -> Exception:
    with pytest.raises(type(exc)) as caught:
        raise exc
    return caught.value


@pytest.mark.parametrize(
    ("exc", "described"),
    [
        (ValueError(SECRET), "ValueError"),
        (psycopg.errors.UniqueViolation(SECRET), "UniqueViolation[23505]"),
        (psycopg.OperationalError(SECRET), "OperationalError"),
        (OSError(28, SECRET), "OSError[ENOSPC]"),
        (ConnectionRefusedError(111, SECRET), "ConnectionRefusedError[ECONNREFUSED]"),
        (
            ExceptionGroup(SECRET, [KeyError(SECRET), OSError(5, SECRET), KeyError()]),
            "ExceptionGroup[KeyError,OSError[EIO]]",
        ),
        (type("X" * 200, (Exception,), {})(), "X" * 97 + "..."),
        (type("Kari Nordmann", (Exception,), {})(), "Kari?Nordmann"),
    ],
)
def test_an_exception_is_described_by_class_and_code_and_never_by_its_text(exc: Exception, described: str) -> None:
    assert describe_exception(exc) == described


def test_a_crash_shows_classes_and_places_and_what_led_to_it_but_no_message(out: Lines) -> None:
    inner = raised(psycopg.errors.UniqueViolation(f"Key (token)=({SECRET}) already exists."))
    group = ExceptionGroup(SECRET, [inner, raised(KeyError(SECRET))])
    outer = raised(RuntimeError(SECRET))
    outer.__cause__ = group
    Log(LogLevel.INFO, out, strict=True).crash(outer, prompt_id=PROMPT)
    line = out.last()
    assert (line["level"], line["event"], line["exception"]) == ("critical", "crash", "RuntimeError")
    assert line["prompt_id"] == str(PROMPT)
    assert [each["exception"] for each in line["traceback"]] == [
        "RuntimeError",
        "ExceptionGroup[KeyError,UniqueViolation[23505]]",
        "UniqueViolation[23505]",
        "KeyError",
    ]
    assert all(re.fullmatch(r"unit/test_log\.py:\d+", frame) for each in line["traceback"] for frame in each["frames"])
    assert "Nordmann" not in out.getvalue()


def test_a_crash_whose_causes_form_a_ring_is_still_written(out: Lines) -> None:
    first, second = raised(ValueError()), raised(KeyError())
    first.__cause__, second.__cause__ = second, first
    Log(LogLevel.INFO, out).crash(first)
    assert len(out.last()["traceback"]) == 2


def test_what_libraries_log_is_heard_from_warning_on_without_their_words(configured: Lines) -> None:
    library = logging.getLogger("urllib3.connection")
    library.info("hello %s", SECRET)
    library.warning("error connecting: %s", SECRET)
    library.error(SECRET, exc_info=raised(ConnectionError(SECRET)))
    lines = configured.parsed()
    assert [(line["event"], line["level"], line["logger"]) for line in lines] == [
        ("library_warning", "warning", "urllib3.connection")
    ] * 2
    assert [line["library_level"] for line in lines] == ["warning", "error"]
    assert [line["exception"] for line in lines] == [None, "ConnectionError"]
    assert all(re.fullmatch(r"test_log\.py:\d+", line["where"]) for line in lines)
    assert "Nordmann" not in configured.getvalue()


def test_the_pool_s_tries_while_a_database_is_away_do_not_fill_the_log(configured: Lines) -> None:
    pool = logging.getLogger("psycopg.pool")
    pool.warning("error connecting in 'pool-1': %s", SECRET)
    assert configured.parsed() == []
    pool.error("broken")
    assert [(line["logger"], line["library_level"]) for line in configured.parsed()] == [("psycopg.pool", "error")]


def test_configuring_twice_does_not_say_things_twice(configured: Lines) -> None:
    configure(LogLevel.INFO, configured)
    logging.getLogger("x").warning("y")
    assert len(configured.parsed()) == 1


def test_a_python_warning_becomes_an_event_with_its_class(configured: Lines) -> None:
    warnings.showwarning(SECRET, DeprecationWarning, "/x/y/z.py", 3)
    assert {**configured.last(), "ts": ""} == {
        "ts": "",
        "level": "warning",
        "event": "library_warning",
        "logger": "warnings",
        "where": "y/z.py:3",
        "exception": "DeprecationWarning",
    }


def test_an_exception_in_a_thread_becomes_a_crash(configured: Lines) -> None:
    def fail() -> None:
        raise RuntimeError(SECRET)

    thread = threading.Thread(target=fail, name="Kari Nordmann")
    thread.start()
    thread.join()
    line = configured.last()
    assert (line["event"], line["exception"], line["thread"]) == ("crash", "RuntimeError", "Kari?Nordmann")
    assert "s3cr3t" not in configured.getvalue()


SCRIPT = """
import asyncio, gc, logging, sys, warnings
from pgherald.config import LogLevel
from pgherald.log import configure
configure(LogLevel.INFO)
secret = "Kari Nordmann"

class Bad:
    def __del__(self):
        raise RuntimeError(secret)

Bad()
warnings.warn(secret)
logging.getLogger("x").error("%d", secret)

async def main():
    async def fail():
        raise LookupError(secret)
    task = asyncio.ensure_future(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
    gc.collect()

asyncio.run(main())
raise ValueError(secret)
"""


def test_a_process_that_dies_of_an_exception_writes_nothing_but_json_and_no_value() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=False, text=True)
    assert done.returncode == 1
    assert "Nordmann" not in done.stderr + done.stdout
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["exception"]) for line in lines] == [
        ("crash_ignored", "RuntimeError"),
        ("library_warning", "UserWarning"),
        ("library_warning", None),
        ("library_warning", "LookupError"),
        ("crash", "ValueError"),
    ]
    assert lines[-1]["traceback"] == [{"exception": "ValueError", "frames": ["<string>:26"]}]
