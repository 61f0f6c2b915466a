"""A queue, and relays that see no breach of the protocol."""
from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from postcommit.queue.store import Store
from tests.support.certificates import Authority
from tests.support.service import environment
from tests.support.service import logging_restored
from tests.support.smtpd import ScriptedRelay
from tests.support.smtpd import well_treated


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the outside configures a command, and none disturbs our log."""
    kept = environment()
    for name in set(os.environ) - set(kept):
        monkeypatch.delenv(name)
    with logging_restored():
        yield


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
