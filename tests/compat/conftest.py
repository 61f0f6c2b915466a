"""Relays, queues and transactions for the classes of the older libraries."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transaction

from postcommit.compat._relay import ENVIRONMENT
from tests.support.certificates import Authority
from tests.support.smtpd import ScriptedRelay


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        yield relay


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable from outside is an option, and no transaction is left over."""
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)
    transaction.abort()
    yield
    transaction.abort()
