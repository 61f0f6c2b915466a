"""The command as another user: what a queue's owner sees after root was there.

A process of its own imports everything as the user that runs the tests, and becomes the
other user then: the interpreter may be in a folder that only the first one can read.
"""
from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from postcommit._cli.main import main
from tests.support.service import PATIENCE
from tests.support.service import ROOT
from tests.support.service import environment


# A user without rights, and without a name.
OTHER = 47110


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


@contextmanager
def without_rights(queue: Path, *paths: Path, mode: int) -> Iterator[None]:
    """Act as a user who may do with `paths` what `mode` says, also if we are root.

    All else below `queue` is open to everybody.
    """
    before = [path.stat().st_mode for path in paths]
    for path in (queue, *queue.rglob("*")):
        path.chmod(0o777)
    for path in paths:
        path.chmod(mode)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(OTHER)
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path, old in zip(paths, before, strict=True):
            path.chmod(old)


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
