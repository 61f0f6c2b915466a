"""A queue, and relays that see no breach of the protocol."""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from postcommit._maildir.store import Store
from tests.support.certificates import Authority
from tests.support.smtpd import ScriptedRelay
from tests.support.smtpd import well_treated


@pytest.fixture(autouse=True)
def _apart(commands_apart: None) -> None:
    """Every test here calls a command."""


@pytest.fixture
def start() -> Iterator[Callable[..., ScriptedRelay]]:
    """See `well_treated`."""
    with well_treated() as start:
        yield start


@pytest.fixture
def relay(start: Callable[..., ScriptedRelay]) -> ScriptedRelay:
    return start()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))
