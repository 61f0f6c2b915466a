"""Functions called in a process of their own.

For what a test cannot do to the process it runs in: low limits, death, forks.
`call` and `running` start a new interpreter; a `Nursery` has one that has imported
everything and runs no thread, and forks a child of it for each scenario.
"""
from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from typing import NoReturn
from typing import TypeVar


ROOT = Path(__file__).parent.parent.parent

# Slow machines are slow.
_PATIENCE = 60

_Nursery = TypeVar("_Nursery", bound="Nursery")


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
        timeout=_PATIENCE,
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


class Nursery:
    """A context manager: the module of its class, run as a process.

    That reads an order from each line of its standard input, and answers in lines;
    both are JSON.
    """

    def __enter__(self: _Nursery) -> _Nursery:
        # Its children end too suddenly to save which branches they took: to trace
        # them would only take time.
        environment = os.environ.copy()
        environment.pop("COVERAGE_PROCESS_CONFIG", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", type(self).__module__],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_PATIENCE)
        self._process.stdout.close()

    def say(self, words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery is dead"
        return json.loads(line)


def live(scenario: Callable[[], None], tell: Callable[..., None]) -> NoReturn:
    """Run `scenario` in a child that was forked, and end; tell if it failed."""
    try:
        scenario()
    except BaseException:
        tell("failed", traceback.format_exc())
    finally:
        os._exit(0)


def check(ledger: list[list[str]]) -> None:
    """Raise AssertionError for the ledger of a scenario that failed."""
    failed = [words for words in ledger if words[0] == "failed"]
    assert not failed, failed[0][1]


if __name__ == "__main__":
    module, function = sys.argv[1].split(":")
    getattr(importlib.import_module(module), function)(*json.loads(sys.argv[2]))
