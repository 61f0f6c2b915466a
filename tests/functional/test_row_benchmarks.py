"""Each benchmark of PostgreSQL runs, and a contestant counts its mail right."""
from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest
from tests.benchmarks import rowclaims
from tests.benchmarks import rowdrain
from tests.benchmarks import rowenqueue
from tests.benchmarks.harness import Result
from tests.support.postgres import why_not


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def quickly(program: ModuleType, *arguments: str) -> list[Result]:
    options = program.parser().parse_args(["--quick", *arguments])
    results: list[Result] = program.run(options)
    assert all(result.values for result in results)
    return results


def subjects(results: Sequence[Result], figure: str) -> set[str]:
    return {one.subject for one in results if one.figure == figure}


def test_the_enqueueing() -> None:
    results = quickly(rowenqueue, "--threads", "2")
    assert subjects(results, "rate") == set(rowenqueue.NAMES)


def test_the_drain() -> None:
    results = quickly(rowdrain, "--processes", "2")
    names = {name for name, (_, _, place) in rowdrain.NAMES.items() if place != "tasks"}
    assert names <= subjects(results, "rate")
    # A mail is claimed and removed: two dead rows.
    dead = [one for one in results if one.figure == "dead entries"]
    assert min(one.median for one in dead) == 2.0


def test_the_designs_of_a_claim() -> None:
    results = quickly(rowclaims, "--processes", "2")
    dead = [one for one in results if one.figure == "dead entries"]
    assert {one.subject: one.values for one in dead} == {
        rowclaims.COLUMN: [2.0],
        rowclaims.TABLE: [1.0],
    }
