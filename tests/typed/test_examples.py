"""The examples that type checkers read are those of the pages."""
from __future__ import annotations

from pathlib import Path

import pytest

from tests.typed import examples


MARKS = ("\n>>> ", "\n.. code-block:: python", "\n.. testcode::")


def test_each_example_is_in_a_module(tmp_path: Path) -> None:
    examples.main(str(tmp_path))
    readme = (examples.ROOT / "README.rst").read_text()
    blocks = list((tmp_path / "examples" / "readme").glob("block_*.py"))
    assert len(blocks) == readme.count(".. code-block:: python\n") > 3
    pages = {path.stem for path in (tmp_path / "examples" / "docs").glob("[!_]*.py")}
    assert pages == {
        "page_" + path.stem.replace("-", "_")
        for path in (examples.ROOT / "docs").glob("*.rst")
        if any(mark in path.read_text() for mark in MARKS)
    }
    for path in tmp_path.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")


@pytest.mark.parametrize(
    ("page", "wanted"),
    [
        (">>> x = 1\n>>> x\n1\n", ["x = 1\n", "x\n"]),
        (">>> f(1)\nTraceback (most recent call last):\n...\nTypeError\n", []),
        (".. code-block:: ini\n\n   a = 1\n", []),
        (".. code-block:: python\n\n   a = 1\n\nText.\n", ["a = 1\n\n"]),
        (">>> x\n\n.. testsetup::\n   :hide:\n\n   x = 1\n", ["x = 1\n", "x\n"]),
    ],
)
def test_a_page(page: str, wanted: list[str]) -> None:
    assert [code for _, _, code in examples.blocks(page)] == wanted
