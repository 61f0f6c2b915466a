"""Checks a built wheel: it has every file, and imports with nothing else there.

``python tests/check_wheel.py DIST``, from the checkout that it was built from.
"""
from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path


# These want an extra, or pytest.
EXTRAS = (
    "postcommit._amqp",
    "postcommit._cli.demo",
    "postcommit._postgres",
    "postcommit._zcml",
    "postcommit.mailhost",
    "postcommit.pyramid",
    "postcommit.testing.plugin",
    "postcommit.testing.relay",
    "postcommit.web",
)


def main(dist: str) -> None:
    [wheel] = Path(dist).glob("*.whl")
    source = Path("src")
    wanted = {
        str(path.relative_to(source))
        for path in source.glob("postcommit/**/*")
        if path.is_file() and path.suffix != ".pyc"
    }
    missing = wanted - set(zipfile.ZipFile(wheel).namelist())
    assert not missing, f"not in the wheel: {sorted(missing)}"
    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in sorted(wanted)
        if name.endswith(".py")
    ]
    importable = [name for name in modules if not name.startswith(EXTRAS)]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python"
        subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True)
        for name in ("postcommit", *importable):
            subprocess.run([python, "-c", f"import {name}"], check=True, cwd=folder)
    print(f"{wheel.name}: {len(wanted)} files, {len(importable)} modules import")


if __name__ == "__main__":
    main(sys.argv[1])
