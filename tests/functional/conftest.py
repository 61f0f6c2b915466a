"""Fixtures with real servers."""
from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.functional.postfix import Postfix
from tests.functional.postfix import why_not


@pytest.fixture
def start_postfix() -> Iterator[Callable[..., Postfix]]:
    """A function that starts a Postfix, which is stopped after the test."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with ExitStack() as stack:

        def start(settings: dict[str, str] | None = None, **options: Any) -> Postfix:
            # Not in tmp_path, which other users, like its own, may not enter.
            folder = Path(tempfile.mkdtemp(prefix="postcommit-postfix-"))
            stack.callback(shutil.rmtree, folder)
            folder.chmod(0o755)
            return stack.enter_context(Postfix(folder, settings, **options))

        yield start


@pytest.fixture
def postfix(start_postfix: Callable[..., Postfix]) -> Postfix:
    """A Postfix with the users ann and bob at example.org."""
    return start_postfix()
