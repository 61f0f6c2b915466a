"""Functions called in a process of their own.

For what a test cannot do to the process it runs in: low limits, death, forks.
"""
from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parent.parent.parent


def call(
    function: Callable[..., None],
    *args: Any,
    under: Sequence[str] = (),
    status: int = 0,
) -> str:
    """Call `function`, which a module has, and return what it prints.

    The arguments must be JSON; `under` is a command like ``strace`` to run it
    under, `status` the exit status that is expected.
    """
    done = subprocess.run(
        [*under, *_command(function, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@contextmanager
def running(
    function: Callable[..., None], *args: Any
) -> Iterator[subprocess.Popen[str]]:
    """Call `function` beside us; kill its process at the end."""
    with subprocess.Popen(
        _command(function, args),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _command(function: Callable[..., None], args: Sequence[Any]) -> list[str]:
    name = f"{function.__module__}:{function.__qualname__}"
    return [sys.executable, "-m", __name__, name, json.dumps(args)]


if __name__ == "__main__":
    module, function = sys.argv[1].split(":")
    getattr(importlib.import_module(module), function)(*json.loads(sys.argv[2]))
