"""The system calls of a child that touch files, in the order of their completion."""
from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import children


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace, a Debian package"
)

_CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
_UNFINISHED = re.compile(r"^(\d+) +(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$")
_PATH = re.compile(r'"([^"]*)"|<([^>]*)>')

_TRACED = "write,fsync,fdatasync,rename,renameat2,linkat,mkdir,unlink"


def trace(
    function: Callable[..., None],
    *args: Any,
    below: Path,
    scratch: Path,
    traced: str = _TRACED,
    inject: str = "",
) -> list[str]:
    """Return what `function` does to files, like ``rename tmp/1 new/1``.

    Only the calls that are `traced`, to what is below the folder `below`, and what it
    prints; paths are relative to it. `inject` is an error, as strace has it.
    """
    output = scratch / "trace"
    strace = ["strace", "-f", "-y", "-s", "1000", "-e", f"trace={traced}"]
    if inject:
        strace += ["-e", f"inject={inject}"]
    children.call(function, *args, under=[*strace, "-o", str(output)])
    calls = (_short(line, below) for line in _whole(output.read_text()))
    return [call for call in calls if call]


def _whole(text: str) -> list[str]:
    """Join the halves of calls that others ran beside, where they completed."""
    unfinished = {}
    lines = []
    for line in text.splitlines():
        if begun := _UNFINISHED.match(line):
            unfinished[begun[1]] = line.removesuffix(" <unfinished ...>")
        elif resumed := _RESUMED.match(line):
            lines.append(unfinished.pop(resumed[1]) + resumed[2])
        else:
            lines.append(line)
    return lines


def _short(line: str, below: Path) -> str | None:
    called = _CALL.match(line)
    if called is None or called[3].startswith("-"):
        return None
    name, arguments = called[1].replace("renameat2", "rename"), called[2]
    if name == "write" and arguments.startswith("1<"):
        printed = re.match(r'1<[^>]*>, "(\w+)', arguments)
        return f"print {printed[1]}" if printed else None
    if name == "write":
        arguments = arguments.partition(">")[0] + ">"
    # An open file that gets a name by a link to its descriptor.
    arguments = re.sub(r'AT_FDCWD<[^>]*>|"/proc/self/fd/\d+"', "", arguments)
    paths = [one or other for one, other in _PATH.findall(arguments)]
    if not paths or not all(path.startswith(str(below)) for path in paths):
        return None
    return " ".join([name, *(str(Path(p).relative_to(below)) for p in paths)])
