"""Many entries that wait in PostgreSQL neither delay the first one nor fill memory.

How many entries: ``POSTCOMMIT_POSTGRES_ENTRIES``, 20,000 by default. The benchmark
``tests.benchmarks.depth`` measures 1,000,000.
"""
from __future__ import annotations

import logging
import os

import pytest
from tests.benchmarks import depth
from tests.support.postgres import cluster
from tests.support.postgres import why_not


log = logging.getLogger(__name__)

ENTRIES = int(os.environ.get("POSTCOMMIT_POSTGRES_ENTRIES", "20000"))

# Number of entries that are sent.
_MAILS = 1000


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_deep_queue() -> None:
    figures = depth.run(cluster(), ENTRIES, _MAILS)
    log.info("%s", figures)
    assert figures.growth < 40  # MiB: more than one for each thread
    assert figures.dead_per_mail < 2.2  # and some that were claimed and released
