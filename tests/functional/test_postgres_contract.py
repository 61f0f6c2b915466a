"""What every queue promises, in PostgreSQL: the tests of ``tests/contract`` again."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.contract.test_kills import *  # noqa: F403
from tests.contract.test_machine import SETTINGS
from tests.contract.test_machine import Queue
from tests.contract.test_queue import *  # noqa: F403
from tests.support.postgres import why_not
from tests.support.postgresplace import PostgresPlace


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def place() -> Iterator[PostgresPlace]:
    made = PostgresPlace()
    yield made
    made.end()


class PostgresMachine(Queue):
    kind = PostgresPlace


TestMachine = PostgresMachine.TestCase
TestMachine.settings = SETTINGS
