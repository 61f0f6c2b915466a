"""What every queue promises, in PostgreSQL: the tests of ``tests/contract`` again.

500 processes are killed by default: 360 senders and 120 processors here, and 20 servers
in ``test_postgres_faults``. ``POSTCOMMIT_POSTGRES_KILLS`` is another number for all.
"""
from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.contract.test_kills import *  # noqa: F403
from tests.contract.test_machine import SETTINGS
from tests.contract.test_machine import Queue
from tests.contract.test_queue import *  # noqa: F403
from tests.support.postgres import KILLS
from tests.support.postgres import SERVER_KILLS
from tests.support.postgres import why_not
from tests.support.postgresplace import PostgresPlace


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


# Number of parts of a test, which run in different processes.
_PARTS = 8


@pytest.fixture
def kills() -> int:
    """A part's share: each of four tests has a quarter of the kills of processes."""
    return max(1, (KILLS - SERVER_KILLS) // 4 // _PARTS)


@pytest.fixture(params=range(_PARTS))
def part(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def place() -> Iterator[PostgresPlace]:
    made = PostgresPlace()
    yield made
    made.end()


class PostgresMachine(Queue):
    kind = PostgresPlace


TestMachine = PostgresMachine.TestCase
TestMachine.settings = SETTINGS
