"""What the commands print: sizes, times, tables."""
from __future__ import annotations

import io

import pytest

from postcommit.commands.output import Column
from postcommit.commands.output import Table
from postcommit.commands.output import addresses
from postcommit.commands.output import coloured
from postcommit.commands.output import duration
from postcommit.commands.output import is_terminal
from postcommit.commands.output import moment
from postcommit.commands.output import printable
from postcommit.commands.output import size
from postcommit.commands.output import timestamp


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
    assert moment(1795459728.25)[:5] == "2026-"
    assert moment(1795459728.25)[-6] in "+-"


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable("naïve, 茶") == "naïve, 茶"
    assert printable("\x1b[2J\r\udcff") == r"\x1b[2J\r\udcff"


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


COLUMNS = (Column("ID", 4), Column("WHO", 10, cut=True), Column("N", 3, right=True))


def printed(stream: io.StringIO, *rows: list[str]) -> list[str]:
    table = Table(COLUMNS, stream)
    for row in rows:
        table.row(row)
    return stream.getvalue().splitlines()


def test_a_table_without_rows_is_nothing() -> None:
    assert printed(io.StringIO()) == []


def test_a_table_in_a_file_is_whole() -> None:
    lines = printed(io.StringIO(), ["1", "x" * 99, "7"], ["2", "y", "8"])
    assert lines == [
        "ID    WHO           N",
        f"1     {'x' * 99}    7",
        "2     y             8",
    ]


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        (40, f"1     {'x' * 28}…    7"),
        (19, "1     xxxxxxx…    7"),
        (12, "1     xxxxxx"),
    ],
)
def test_a_table_on_a_terminal_fits(
    monkeypatch: pytest.MonkeyPatch, columns: int, row: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(Screen(), ["1", "x" * 99, "7"])[1] == row


def test_a_row_may_have_a_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    Table(COLUMNS, screen).row(["1", "x", "7"], "yellow")
    titles, row = screen.getvalue().splitlines()
    assert titles.startswith("\x1b[1mID")
    assert row.startswith("\x1b[33m1 ")
