"""What the commands print: sizes, times, tables."""
from __future__ import annotations

import io
import time
from collections.abc import Callable

import pytest

from postcommit._cli.output import EXTRA
from postcommit._cli.output import Column
from postcommit._cli.output import Table
from postcommit._cli.output import addresses
from postcommit._cli.output import coloured
from postcommit._cli.output import is_terminal
from postcommit._cli.output import printable
from postcommit._queue.values import duration
from postcommit._queue.values import entries
from postcommit._queue.values import moment
from postcommit._queue.values import size
from postcommit._queue.values import timestamp


TO = "ann@example.or"
WHY = "y" * 30


class Screen(io.StringIO):
    """A stream that somebody looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.6, "1m"),
        (90, "1m30s"),
        (3600, "1h"),
        (3 * 86400 + 4 * 3600 + 59, "3d4h"),
        (3 * 86400 + 59, "3d"),
        (-75, "-1m15s"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (12_345, "12K"),
        (1_600_000, "1.5M"),
        (5 << 30, "5.0G"),
        (5 << 40, "5120G"),
    ],
)
def test_sizes(count: int, told: str) -> None:
    assert size(count) == told


def test_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timestamp(None) is None
    assert timestamp(1795459728.25) == "2026-11-23T18:48:48.250000+00:00"


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        ("UTC", "2026-11-23 18:48:48 UTC"),
        ("Europe/Berlin", "2026-11-23 18:48:48 UTC (19:48:48 CET)"),
        ("Asia/Tokyo", "2026-11-23 18:48:48 UTC (2026-11-24 03:48:48 JST)"),
        ("America/Sao_Paulo", "2026-11-23 18:48:48 UTC (15:48:48 -03)"),
    ],
)
def test_moments_for_people(
    monkeypatch: pytest.MonkeyPatch, zone: str, shown: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert moment(1795459728.25) == shown
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_file_may_have_any_time() -> None:
    assert moment(1e18) == f"{10**18} s after 1970"


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable("naïve, 茶") == "naïve, 茶"
    assert printable("\x1b[2J\r\udcff") == r"\x1b[2J\r\udcff"


def test_counts() -> None:
    assert [entries(n) for n in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]


def test_recipients() -> None:
    assert addresses(()) == ""
    assert addresses(("a@x.org",)) == "a@x.org"
    assert addresses(("a@x.org", "b@x.org", "c@x.org")) == "a@x.org +2"


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert coloured("x", "red", io.StringIO()) == "x"
    assert coloured("x", "red", Screen()) == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("x", "red", Screen()) == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Screen())


COLUMNS = (
    Column("ID", 4, rank=0),
    Column("FROM", 3, rank=3),
    Column("WHO", 5, rank=1),
    Column("N", 3, rank=2, right=True),
    Column("WHY", 8, rank=2, may_be_cut=True),
)


def printed(stream: io.StringIO, *rows: list[str], wide: bool = False) -> list[str]:
    with Table(COLUMNS, stream, wide=wide) as table:
        for row in rows:
            table.row(row)
    return stream.getvalue().splitlines()


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda columns: monkeypatch.setenv("COLUMNS", str(columns))


def test_a_table_without_rows_is_nothing() -> None:
    assert printed(io.StringIO()) == printed(Screen()) == []


@pytest.mark.parametrize("stream", [io.StringIO(), Screen()])
def test_a_table_in_a_file_is_whole_and_so_is_a_wide_one(
    stream: io.StringIO, columns: Callable[[int], None]
) -> None:
    columns(20)
    rows = [["1", "s", "x" * 99, "7", "y" * 50], ["2", "t", "y", "8", "z"]]
    assert printed(stream, *rows, wide=isinstance(stream, Screen)) == [
        "ID    FROM  WHO      N  WHY",
        f"1     s     {'x' * 99}    7  {'y' * 50}",
        "2     t     y        8  z",
    ]


@pytest.mark.parametrize(
    ("room", "titles", "row"),
    [
        (80, "ID FROM WHO N WHY", f"1     s     {TO}    7  {WHY}"),
        (45, "ID FROM WHO N WHY", f"1     s     {TO}    7  {'y' * 11}…"),
        (41, "ID FROM WHO N WHY", f"1     s     {TO}    7  {'y' * 7}…"),
        (40, "ID WHO N WHY", f"1     {TO}    7  {'y' * 12}…"),
        (35, "ID WHO N WHY", f"1     {TO}    7  {'y' * 7}…"),
        (29, "ID WHO N", f"1     {TO}    7"),
        (24, "ID WHO", f"1     {TO}"),
        (20, "ID WHO", f"1     {TO}"),
    ],
)
def test_on_a_terminal_the_useful_columns_are_whole(
    columns: Callable[[int], None], room: int, titles: str, row: str
) -> None:
    columns(room)
    made = printed(Screen(), ["1", "s", TO, "7", WHY])
    assert (made[0].split(), made[1]) == (titles.split(), row)
    assert all(len(line) <= room for line in made)


def test_a_longer_cell_takes_the_room_of_the_next_or_gets_a_line(
    columns: Callable[[int], None],
) -> None:
    columns(46)
    rows = [["1", "", "a@x", "7", WHY] for _ in range(20)]
    rows.append(["2", "", TO, "8", WHY])
    rows.append(["3", "", "z" * 40, "9", WHY])
    rows.append(["4", "", "z" * 44, "", ""])
    rows.append(["5", "", "z" * 45, "", ""])
    assert printed(Screen(), *rows)[20:] == [
        "1           a@x      7  yyyyyyyyyyyyyyyyyyyyy…",
        f"2           {TO}    8  yyyyyyyyyyyy…",
        "3                    9  yyyyyyyyyyyyyyyyyyyyy…",
        f"      {'z' * 40}",
        "4",
        f"  {'z' * 44}",
        "5",
        f"  {'z' * 43}…",
    ]


def test_an_extra_column_takes_no_room_of_a_long_cell(
    columns: Callable[[int], None],
) -> None:
    table = (*COLUMNS[:1], Column("FROM", 3, rank=EXTRA), *COLUMNS[2:])
    rows = [["1", "s", "a@x", "7", WHY] for _ in range(9)]
    for length, is_shown in ((33, True), (34, False)):
        columns(60)
        screen = Screen()
        with Table(table, screen) as made:
            for row in [*rows, ["2", "s", "z" * length, "8", WHY]]:
                made.row(row)
        assert ("FROM" in screen.getvalue()) == is_shown
        assert f"  {'z' * length}    8" in screen.getvalue()


def test_a_terminal_may_be_of_any_width(columns: Callable[[int], None]) -> None:
    for room in range(1, 60):
        columns(room)
        made = printed(Screen(), ["1", "s", TO, "7", WHY], ["2", "s", TO * 5, "8", WHY])
        assert all(len(line) <= room for line in made), room


def test_rows_wait_only_as_long_as_others_follow_soon(
    columns: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns(80)
    monkeypatch.setattr("postcommit._cli.output._ROWS_WAIT", 3600.0)
    screen, wiped = Screen(), []
    with Table(COLUMNS, screen, before=lambda: wiped.append(1)) as table:
        table.row(["1", "s", "x", "7", "y"])
        table.look()
        assert (screen.getvalue(), wiped) == ("", [])
        monkeypatch.setattr("postcommit._cli.output._ROWS_WAIT", -1.0)
        table._until = 0.0
        table.look()
        assert screen.getvalue().count("\n") == 2
        table.row(["2", "s", "x", "7", "y"])
        assert screen.getvalue().count("\n") == 3
    assert wiped == [1, 1]


def test_a_row_may_have_a_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    with Table(COLUMNS, screen) as table:
        table.row(["1", "s", "x", "7", "y"], "yellow")
    titles, row = screen.getvalue().splitlines()
    assert titles.startswith("\x1b[1mID")
    assert row.startswith("\x1b[33m1 ")
