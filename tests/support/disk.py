"""What the calls of a process do to files, in pieces that a disk may lose."""
from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import TypeAlias

from tests.support.syscalls import Call


# What is on the disk: for each path its data and mtime; None for a folder.
State: TypeAlias = "dict[str, tuple[bytes, float | None] | None]"

_FOLDERS = ("mkdir", "mkdirat", "rmdir")
_RENAMES = ("rename", "renameat", "renameat2")
_UNLINKS = ("unlink", "unlinkat")
_BY_PATH = ("open", "openat", "linkat", *_FOLDERS, *_RENAMES, *_UNLINKS)
_TIME = re.compile(r"tv_sec=(\d+), tv_nsec=(\d+)")


@dataclass(eq=False)
class Node:
    """A file or a folder, whatever its name; `names` are what is in a folder now."""

    is_folder: bool
    names: dict[str, Node] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Effect:
    """One piece of a change; without its `cause` it is not on the disk either."""

    node: Node
    begin: int
    end: int
    name: str = ""
    target: Node | None = None
    data: tuple[int, bytes] | None = None
    mtime: float | None = None
    cause: Effect | None = None


@dataclass(frozen=True)
class Sync:
    node: Node
    begin: int
    end: int


class Disk:
    """What `calls` did to the folder `root`; all that was in it is durable.

    `marks` are the lines that the process printed, each with its place in the order.
    """

    def __init__(self, root: Path, before: State, calls: Sequence[Call]) -> None:
        self.marks: list[tuple[int, str]] = []
        self._root_path = str(root)
        self._prefix = f"{root}/".encode()
        self.root = Node(is_folder=True)
        self.effects: list[Effect] = []
        self.syncs: list[Sync] = []
        self._open: dict[int, Node] = {}
        self._offsets: dict[int, int] = {}
        self._load(before)
        # A descriptor is free as soon as its close begins, and taken when an
        # open ends; a name is there when its call ends.
        for call in sorted(
            calls, key=lambda c: c.end if c.name in _BY_PATH else c.begin
        ):
            self._replay(call)

    @property
    def moments(self) -> list[int]:
        """When the power may fail so that something is different from before."""
        places = {0}
        for one in (*self.effects, *self.syncs):
            places |= {one.begin, one.end}
        places |= {place for place, _ in self.marks}
        return sorted(place for place in places if place >= 0)

    # Replay

    def _load(self, before: State) -> None:
        for path, found in sorted(before.items()):
            folder, name = self._folder(f"{self._root_path}/{path}")
            assert folder is not None
            node = Node(is_folder=found is None)
            self._change(folder, -1, -1, name, node)
            if found is not None:
                self.effects.append(Effect(node, -1, -1, data=(0, found[0])))
                self.effects.append(Effect(node, -1, -1, mtime=found[1]))

    def _folder(self, path: str) -> tuple[Node | None, str]:
        """Return the folder in which `path` is, None if it is not below the root."""
        if not path.startswith(f"{self._root_path}/"):
            return None, ""
        *parents, name = path.removeprefix(f"{self._root_path}/").split("/")
        node = self.root
        for parent in parents:
            node = node.names[parent]
        return node, name

    def _node(self, path: str) -> Node | None:
        if path == self._root_path:
            return self.root
        folder, name = self._folder(path)
        return folder.names.get(name) if folder is not None else None

    def _change(
        self,
        folder: Node,
        begin: int,
        end: int,
        name: str,
        target: Node | None,
        cause: Effect | None = None,
    ) -> Effect:
        if target is None:
            del folder.names[name]
        else:
            folder.names[name] = target
        effect = Effect(folder, begin, end, name, target, cause=cause)
        self.effects.append(effect)
        return effect

    def _replay(self, call: Call) -> None:
        name = call.name
        if name in ("openat", "open"):
            self._opened(call)
        elif name == "close":
            self._open.pop(call.descriptor, None)
        elif name == "write" and call.descriptor == 1:
            self.marks.append((call.end, call.strings[0].decode()))
        elif name in ("write", "fsync", "fdatasync"):
            self._wrote_or_synced(call)
        elif name == "utimensat":
            self._dated(call)
        elif name == "linkat":
            self._linked(call)
        elif any(path.startswith(self._prefix) for path in call.strings):
            self._named(call)

    def _opened(self, call: Call) -> None:
        folder, name = self._folder(call.path)
        self._open.pop(call.result, None)
        if folder is None:
            if call.path == self._root_path:
                self._open[call.result] = self.root
            return
        assert "O_TRUNC" not in call.arguments
        assert "O_APPEND" not in call.arguments
        if "O_TMPFILE" in call.arguments:
            self._open[call.result] = Node(is_folder=False)
            self._offsets[call.result] = 0
            return
        if name not in folder.names and "O_CREAT" in call.arguments:
            self._change(folder, call.begin, call.end, name, Node(is_folder=False))
        if name in folder.names:  # and not a pipe, which is no data
            self._open[call.result] = folder.names[name]
            self._offsets[call.result] = 0

    def _wrote_or_synced(self, call: Call) -> None:
        node = self._open.get(call.descriptor)
        if node is None:
            return
        if call.name == "write":
            offset = self._offsets[call.descriptor]
            data = offset, call.strings[0][: call.result]
            self._offsets[call.descriptor] += call.result
            self.effects.append(Effect(node, call.begin, call.end, data=data))
        else:
            self.syncs.append(Sync(node, call.begin, call.end))

    def _dated(self, call: Call) -> None:
        node = (
            self._node(call.path)
            if call.strings
            else self._open.get(call.descriptor)
        )
        if node is not None:
            times = _TIME.findall(call.arguments)
            mtime = int(times[1][0]) + int(times[1][1]) / 1e9 if times else None
            self.effects.append(Effect(node, call.begin, call.end, mtime=mtime))

    def _linked(self, call: Call) -> None:
        """A file without a name gets one, by a link to its descriptor."""
        of, path = (string.decode() for string in call.strings)
        folder, name = self._folder(path)
        if folder is not None:
            node = self._open[int(of.removeprefix("/proc/self/fd/"))]
            self._change(folder, call.begin, call.end, name, node)

    def _named(self, call: Call) -> None:
        folder, name = self._folder(call.path)
        assert folder is not None
        if call.name in ("mknod", "mknodat"):
            return  # a pipe, which is made again when it is missing
        at = folder, call.begin, call.end, name
        if call.name in ("mkdir", "mkdirat"):
            self._change(*at, Node(is_folder=True))
        elif call.name in (*_UNLINKS, "rmdir"):
            self._change(*at, None)
        else:
            assert call.name in _RENAMES, call
            to, new_name = self._folder(call.strings[1].decode())
            assert to is not None
            node = folder.names[name]
            made = self._change(to, call.begin, call.end, new_name, node)
            self._change(*at, None, made)


# Real folders


def read(root: Path) -> State:
    """Return what is in the folder `root`."""
    state: State = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() or path.is_dir():
            found = None
            if path.is_file():
                found = path.read_bytes(), path.stat().st_mtime
            state[str(path.relative_to(root))] = found
    return state


def write(state: State, root: Path) -> None:
    """Have just that in the folder `root`."""
    root.mkdir(exist_ok=True)
    # Files are made again, folders are kept: to make them takes long.
    for path in sorted(root.rglob("*"), reverse=True):
        wanted = state.get(str(path.relative_to(root)), "nothing")
        if not path.is_dir():
            path.unlink()
        elif wanted is not None:
            path.rmdir()
    for name, found in sorted(state.items()):
        if found is None:
            (root / name).mkdir(0o700, exist_ok=True)
        else:
            (root / name).write_bytes(found[0])
            (root / name).chmod(0o600)
            if found[1] is not None:
                os.utime(root / name, (found[1], found[1]))
