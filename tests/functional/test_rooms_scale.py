"""Many scheduled entries and many bulk mails neither delay new mail nor fill memory.

How many scheduled entries: ``POSTCOMMIT_SCHEDULED``, 20,000 by default. The benchmark
``tests.benchmarks.rooms`` measures 1,000,000.
"""
from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from tests.benchmarks import rooms
from tests.benchmarks.relays import SBIN


log = logging.getLogger(__name__)

SCHEDULED = int(os.environ.get("POSTCOMMIT_SCHEDULED", "20000"))

needs_sink = pytest.mark.skipif(
    not any(os.path.exists(f"{folder}/smtp-sink") for folder in SBIN.split(":")),
    reason="smtp-sink of Postfix is not installed",
)


@needs_sink
def test_new_mail_is_sent_beside_all_that_waits(tmp_path: Path) -> None:
    figures = rooms.run(str(tmp_path), SCHEDULED, 500)
    log.info("%s", figures)
    assert figures.growth < 10
    # Far more than on a machine without other work.
    assert figures.while_reading < 5
    assert figures.beside_bulk < 2
