"""How the commands talk: ages, counts, tables that fit, and JSON for programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherald.screen import Colour, Screen, ago, as_json, columns, count, cut, listed, moment, short, span, visible

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0004, "0.4 ms"),
        (0.25, "250 ms"),
        (1, "1 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (172_800, "2 days"),
        (86_400 * 400, "400 days"),
    ],
)
def test_a_length_of_time_has_one_unit(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_an_age_looks_both_ways() -> None:
    assert ago(None, NOW) == "never"
    assert ago(NOW, NOW) == "now"
    assert ago(NOW - timedelta(seconds=12), NOW) == "12 s ago"
    assert ago(NOW + timedelta(hours=5), NOW) == "in 5 h"
    assert moment(NOW.astimezone()) == "2026-03-01 12:00"
    assert moment(None) == ""


def test_numbers_come_with_their_nouns() -> None:
    assert [count(number, "push", "pushes") for number in (0, 1, 1200)] == ["0 pushes", "1 push", "1,200 pushes"]
    assert count(2, "prompt") == "2 prompts"
    assert listed({"cooldown": 1, "opted_out": 3, "nothing": 0, "a": 1}) == "3 opted_out, 1 a, 1 cooldown"
    assert listed({}) == ""


def test_json_has_seconds_and_utc() -> None:
    content = {"took": timedelta(milliseconds=1500), "at": NOW, "id": UUID(int=1)}
    assert json.loads(as_json(content)) == {
        "took": 1.5,
        "at": "2026-03-01T12:00:00Z",
        "id": "00000000-0000-0000-0000-000000000001",
    }


def test_colour_is_there_only_where_there_is_colour() -> None:
    assert Screen().paint("red", Colour.RED) == "red"
    assert Screen(colour=True).paint("red", Colour.RED) == "\x1b[31mred\x1b[0m"
    assert Screen(colour=True).paint("", Colour.RED) == ""


def test_numbers_stand_to_the_right_and_the_widest_column_is_cut() -> None:
    table = Screen(60).table(("NAME", "N", "ABOUT"), [("one", 1, "x" * 100), ("two", 12, "y")], widest=2)
    head, first, second = table.splitlines()
    assert head == "NAME   N  ABOUT"
    assert first.startswith("one    1  xxx")
    assert first.endswith("...")
    assert len(first) == 60
    assert second == "two   12  y"
    assert Screen().table(("A", "B"), []) == "A  B"


def test_what_is_twice_as_wide_or_has_no_width_keeps_the_columns() -> None:
    names = ("静かなメンター🎉 30", "e\u0301te\u0301", "plain")
    head, *lines = Screen(60).table(("NAME", "N"), [(name, 1) for name in names]).splitlines()
    assert head == "NAME" + " " * 17 + "N"
    assert [columns(line) for line in lines] == [columns(head)] * 3
    assert lines[1] == "e\u0301te\u0301" + " " * 18 + "1"
    assert cut("静かなメンター", 14) == "静かなメンター"
    assert cut("静かなメンター", 13) == "静かなメン..."
    assert cut("静かなメンター", 12) == "静かなメ..."


@given(st.lists(st.tuples(st.text(max_size=200), st.integers(0, 10**6), st.text(max_size=200)), max_size=5))
def test_a_table_never_exceeds_the_screen_by_its_widest_column(rows: list[tuple[str, int, str]]) -> None:
    kept = [(cut(name, 20), number, text) for name, number, text in rows if text.isprintable() and name.isprintable()]
    table = Screen(60).table(("NAME", "N", "ABOUT"), kept, widest=2)
    assert all(columns(line) <= 60 for line in table.split("\n"))


@given(st.text(max_size=50), st.integers(0, 60))
def test_a_cut_text_fits_and_shows_that_it_was_cut(text: str, width: int) -> None:
    found = cut(text, width)
    assert found == text if columns(text) <= width else (columns(found) <= max(width, 3) and found.endswith("..."))


def test_an_id_is_short_enough_to_type() -> None:
    assert short(UUID("abcdef01-0000-0000-0000-000000000000")) == "abcdef01"


def test_a_text_of_somebody_else_gives_a_terminal_no_orders() -> None:
    assert visible("\x1b]0;mine\x07 a\rb\x08\x9b2J \u202egnp.exe\u2028") == (
        r"\u001b]0;mine\u0007 a\u000db\u0008\u009b2J \u202egnp.exe\u2028"
    )
    plain = "Bjørnø, \u05d0\u05d1, \U0001f469\u200d\U0001f4bb\nnext line"
    assert visible(plain) == plain
    painted = "".join(Screen(colour=True).paint(each.name, each) for each in Colour)
    assert visible(painted) == painted


@given(st.text())
def test_json_means_the_same_after_it(text: str) -> None:
    assert json.loads(visible(as_json({text: text}))) == {text: text}


def test_a_cell_of_a_table_is_one_line() -> None:
    assert Screen().table(("ABOUT",), [("one\ntwo\r",)]).splitlines() == ["ABOUT", r"one\u000atwo\u000d"]
