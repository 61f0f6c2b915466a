"""Relays, queues and transactions for the classes of the older libraries."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import transaction

from postcommit._config.sources import PREFIX
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
    for variable in list(os.environ):
        if variable.startswith(PREFIX):
            monkeypatch.delenv(variable)
    transaction.abort()
    yield
    transaction.abort()
