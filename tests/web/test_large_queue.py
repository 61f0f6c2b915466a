"""A large queue: each page is there soon, and its process stays small.

``POSTCOMMIT_ENTRIES`` is the number of entries, by default few. The benchmark
``tests.benchmarks.page`` measures it with 200,000.
"""
from __future__ import annotations

import os
from pathlib import Path

from tests.benchmarks import page


ENTRIES = int(os.environ.get("POSTCOMMIT_ENTRIES", "3000"))

# MiB, with 200,000 entries, too; and seconds on a busy machine.
_MOST_MEMORY = 60
_MOST_SECONDS = 5


def test_the_pages_of_a_large_queue(tmp_path: Path) -> None:
    path = str(tmp_path / "queue")
    page.fill(path, ENTRIES)
    measured, mebibytes = page.measure(path)
    assert mebibytes < _MOST_MEMORY
    assert all(each.seconds < _MOST_SECONDS for each in measured)
    assert len(measured) == 5
    for each in measured:
        assert each.length < 200_000


def test_the_benchmark_prints_its_figures(capsys: object) -> None:
    page.main(300)
    shown = capsys.readouterr().out  # type: ignore[attr-defined]
    assert "memory at most" in shown
    assert "300 entries" in shown
