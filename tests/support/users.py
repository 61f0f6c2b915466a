"""The command as another user: what a queue's owner sees after root was there.

A process of its own imports everything as the user that runs the tests, and becomes the
other user then: the interpreter may be in a folder that only the first one can read.
"""
from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from contextlib import suppress
from importlib import import_module

from postcommit._cli.main import main
from tests.support.service import PATIENCE
from tests.support.service import ROOT
from tests.support.service import environment


def as_user(uid: int, *argv: object) -> subprocess.CompletedProcess[str]:
    """Run ``postcommit`` with `argv` to its end, as the user and group `uid`."""
    # It may not write into our folder, so what it covers is not counted.
    variables = environment()
    variables.pop("COVERAGE_PROCESS_CONFIG", None)
    return subprocess.run(
        [sys.executable, "-m", __name__, str(uid), *map(str, argv)],
        cwd=ROOT,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def owners(folder: str) -> set[tuple[int, int]]:
    """Return the user and group of each file and folder in `folder`, and its own."""
    found = {folder}
    for path, folders, files in os.walk(folder):
        found |= {f"{path}/{name}" for name in folders + files}
    statuses = [os.lstat(path) for path in found]
    return {(status.st_uid, status.st_gid) for status in statuses}


def _main(uid: int, argv: list[str]) -> int:
    for package in ("postcommit._cli", "encodings", "email", "idna"):
        folder = import_module(package).__path__
        for module in pkgutil.iter_modules(folder, f"{package}."):
            with suppress(ImportError):
                import_module(module.name)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    return main(argv)


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), sys.argv[2:]))
