"""Many entries that wait in PostgreSQL neither delay the first one nor fill memory.

How many entries: ``POSTCOMMIT_POSTGRES_ENTRIES``, 20,000 by default. The benchmark
``tests.benchmarks.rowdepth`` measures 1,000,000.
"""
from __future__ import annotations

import os

import pytest
from tests.benchmarks import rowdepth
from tests.support.postgres import why_not


ENTRIES = os.environ.get("POSTCOMMIT_POSTGRES_ENTRIES", "20000")


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_deep_queue() -> None:
    options = ["--rounds", "2", "--count", "1000", "--depth", "16", ENTRIES]
    results = rowdepth.run(rowdepth.parser().parse_args(options))
    small, deep = (
        {one.figure: one.median for one in results if one.case["depth"] == depth}
        for depth in (16, int(ENTRIES))
    )
    # MiB: not one for each entry, and all claims of `_claims` are kept until the end.
    assert deep["peak memory"] - small["peak memory"] < 40
    assert 2.0 <= deep["dead entries"] < 2.2  # and some that were claimed and released
