"""Rules of the source that the import contract in ``setup.cfg`` cannot express."""
from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "postcommit"
FILES = sorted(SOURCE.rglob("*.py"))
PAGE = (ROOT / "docs" / "design.rst").read_text()

files = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: str(path.relative_to(SOURCE))
)


@files
def test_functions_stay_under_45_lines(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length < 45, f"{node.name}: {length} lines"


# The package exports names on first use. Through them, any module could reach any
# other one, and the import contract would not see it.
@files
def test_imports_name_the_module_that_a_class_is_in(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module in ("postcommit", "postcommit.testing"):
                folder = SOURCE.parent / node.module.replace(".", "/")
                there = {path.stem for path in folder.iterdir()}
                assert {alias.name for alias in node.names} <= there


# On Python 3.11, it takes a lock. A child that is forked meanwhile waits for ever.
@files
def test_no_cached_property_where_a_process_may_fork(path: Path) -> None:
    if path.name not in ("item.py", "outbox.py"):
        assert "cached_property" not in path.read_text()


def test_each_part_begins_with_what_it_is() -> None:
    for folder in {path.parent for path in FILES}:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring, folder


# The page on the design


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0]


def test_the_page_has_a_paragraph_for_each_part() -> None:
    shown = re.findall(r"^``(_?\w+(?:\.py|/))``$", PAGE, re.MULTILINE)
    there = {
        f"{part}/" if (SOURCE / part).is_dir() else part for part in map(part_of, FILES)
    }
    assert sorted(shown) == sorted(there - {"__init__.py"})


def test_each_file_that_the_page_names_is_there() -> None:
    named = {
        name
        for name in re.findall(r"``([\w/*.-]+)``", PAGE)
        if name.endswith((".py", ".rst", ".cfg", ".zcml")) or name.startswith("tests/")
    }
    assert len(named) > 40
    folders = (ROOT, SOURCE, ROOT / "docs")
    missing = [
        name
        for name in named
        if not any(list(folder.glob(name.rstrip("/"))) for folder in folders)
    ]
    assert missing == []


def test_no_change_of_the_door_test_opens_more_than_two_files() -> None:
    table = PAGE.partition("\nThe door test\n")[2].partition("\n\n\n")[0]
    row = re.compile(r"^   \* - (.+?)\n     - (.+?)(?=^   \* -|\Z)", re.S | re.M)
    rows = row.findall(table)
    changes = {change: re.findall(r"``([\w/]+\.py)``", files) for change, files in rows}
    changes.pop("change", None)
    assert len(changes) >= 10
    for change, opened in changes.items():
        assert 1 <= len(opened) <= 2, change


def test_the_picture_has_each_floor_of_the_import_contract() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read_string((ROOT / "setup.cfg").read_text())
    layers = setup["importlinter:contract:floors"]["layers"]
    picture = PAGE.partition("\nThe house\n")[2].partition("\nThe parts\n")[0]
    for name in re.findall(r"\w+", layers):
        assert re.search(rf"(?<!\w){name}(?!\w)", picture), name
