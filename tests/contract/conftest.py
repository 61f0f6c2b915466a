"""The place of a queue, of each implementation in turn."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.places import PLACES
from tests.contract.places import Place


@pytest.fixture(params=PLACES, ids=lambda kind: kind.__name__)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    made: Place = request.param()
    yield made
    made.end()
