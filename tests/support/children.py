"""Functions called in a process of their own.

For what a test cannot do to the process it runs in: low limits, death, forks.
"""
from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Sequence
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
    name = f"{function.__module__}:{function.__qualname__}"
    done = subprocess.run(
        [*under, sys.executable, "-m", __name__, name, json.dumps(args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


if __name__ == "__main__":
    module, function = sys.argv[1].split(":")
    getattr(importlib.import_module(module), function)(*json.loads(sys.argv[2]))
