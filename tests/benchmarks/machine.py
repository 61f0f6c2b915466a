"""The machine, its programs and packages, without its name, and the commit."""
from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.relays import SBIN
from tests.support.postgres import PROGRAMS


PACKAGES = (
    "postcommit",
    "zope.sendmail",
    "repoze.sendmail",
    "pyramid_mailer",
    "transaction",
    "zope.interface",
    "psycopg",
)


def describe(folder: str = ".") -> dict[str, str]:
    """Return the rows of the page's table. `folder` is where the queues were."""
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": file_system(folder),
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    postgres = PROGRAMS[-1] / "postgres" if PROGRAMS else "postgres"
    found["PostgreSQL"] = _printed([str(postgres), "--version"], r"([\d.]+)")
    found["Postfix"] = _printed(["postconf", "-h", "mail_version"], r"(\S+)")
    found["stunnel"] = _printed(["stunnel", "-version"], r"stunnel (\S+)")
    return found


def commit() -> str:
    """Return the commit of this checkout, with a ``+`` if its source was changed."""
    git = ["git", "-C", str(Path(__file__).parents[2])]
    head = _printed([*git, "rev-parse", "--short", "HEAD"], r"^([0-9a-f]{7,})$")
    status = [*git, "status", "--porcelain", "--untracked-files=no", "--", "src"]
    changed = _printed(status, r"^ ?([MADR])") in {"M", "A", "D", "R"}
    return f"{head}+" if changed else head


def file_system(folder: str) -> str:
    """The type of the file system that `folder` is on."""
    at = Path(folder).resolve()
    mounts = {
        point: kind
        for _, point, kind, *_ in map(
            str.split, Path("/proc/self/mounts").read_text().splitlines()
        )
    }
    for parent in (at, *at.parents):
        if str(parent) in mounts:
            return mounts[str(parent)]
    return "unknown"


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory() -> str:
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemTotal:\s*(\d+) kB", text, re.MULTILINE)
    return f"{int(found[1]) / 1024 / 1024:.0f} GiB" if found else "unknown"


def _printed(command: list[str], pattern: str) -> str:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{SBIN}"}
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
    except FileNotFoundError:
        return "not installed"
    found = re.search(pattern, done.stdout)
    return found[1] if found else "unknown"
