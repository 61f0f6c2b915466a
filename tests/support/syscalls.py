"""Every system call by which a child changes files, with all that it wrote."""
from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import children


# Also those that postcommit does not make: should it begin to, a model of the
# disk must not overlook them. Some have no such call, hence the question mark.
_TRACED = (
    "openat,close,write,fsync,fdatasync,?open,?creat,?rename,renameat,?renameat2,"
    "?unlink,unlinkat,?rmdir,?mkdir,mkdirat,?mknod,mknodat,utimensat,pwrite64,writev,"
    "pwritev,ftruncate,truncate,fallocate,?link,linkat,?symlink,symlinkat,sync,syncfs,"
    "sync_file_range,sendfile,copy_file_range"
)

_CALL = re.compile(r"(\w+)\((.*)\) += (\d+)(?:<|$)", re.DOTALL)
_LINE = re.compile(r"(\d+) +(.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Call:
    """A system call that succeeded.

    `begin` and `end` are its places in the order in which all threads began
    and completed their calls; `strings` are its paths and data.
    """

    name: str
    arguments: str
    strings: tuple[bytes, ...]
    result: int
    begin: int
    end: int

    @property
    def descriptor(self) -> int:
        """The first argument, where that is an open file."""
        return int(self.arguments.partition(",")[0])

    @property
    def path(self) -> str:
        return self.strings[0].decode()


def record(function: Callable[..., None], *args: Any, scratch: Path) -> list[Call]:
    """Return the calls of a child that calls `function`, in order of their begin."""
    output = scratch / "calls"
    strace = ["strace", "-f", "--seccomp-bpf", "-xx", "-s", "1000000"]
    strace += ["-e", f"trace={_TRACED}", "-e", "signal=none", "-o", str(output)]
    children.call(function, *args, under=strace)
    return sorted(_calls(output.read_text()), key=lambda call: call.begin)


def _calls(text: str) -> Iterator[Call]:
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(text.splitlines()):
        found = _LINE.fullmatch(line)
        assert found is not None, line
        thread, rest = found.groups()
        if rest.endswith("<unfinished ...>"):
            begun[thread] = number, rest.removesuffix("<unfinished ...>").rstrip()
            continue
        begin = number
        if resumed := _RESUMED.match(rest):
            begin, first = begun.pop(thread)
            rest = first + resumed[1]
        called = _CALL.match(rest)
        if called is not None:
            name, arguments, result = called.groups()
            strings = tuple(
                bytes.fromhex(s.replace(r"\x", "")) for s in _STRING.findall(arguments)
            )
            yield Call(name, arguments, strings, int(result), begin, number)
