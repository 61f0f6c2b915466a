"""What a power failure may leave on a disk.

Nothing is promised but what POSIX says of fsync:

- That of a file covers its data and its times; that of a folder covers the names
  that were created, renamed and removed in it. Both cover what was complete
  before the fsync began, and nothing is certain until it has ended.
- What is not covered may be on the disk or not, each piece by itself, in any
  order: a file may have its name but none of its data, half of them, or their
  size and zeros.
- A rename never loses a file: its old name goes no sooner than the new one is
  there. With `atomic` names that is one step, as in any file system with a
  journal; without, a file may have both names, even in different folders.
"""
from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TypeAlias

from tests.support.disk import Disk
from tests.support.disk import Effect
from tests.support.disk import Node
from tests.support.disk import State


# The names that there are, and the file of each with its data and mtime.
Names: TypeAlias = "dict[tuple[Node, str], tuple[Node, tuple[bytes, float | None]]]"


def states(
    disk: Disk, moment: int, *, atomic: bool, most: int, dice: random.Random
) -> Iterator[State]:
    """Yield what may be on the `disk` if the power fails at this `moment`.

    Every state, or a sample of `most` where there are more.
    """
    issued = [effect for effect in disk.effects if effect.begin <= moment]
    pending = _pending(disk, issued, moment)
    if atomic:
        # What is half on the disk is there as a whole.
        pending -= {e for e in pending if e.cause and e.cause not in pending}
        pending -= {e.cause for e in issued if e.cause and e not in pending}
    parts = [list(_outcomes(part, pending, atomic)) for part in _parts(issued)]
    for choice in _choices(parts, most, dice):
        names: Names = {}
        for outcome in choice:
            names |= outcome
        yield _state(disk.root, names)


def _pending(disk: Disk, issued: list[Effect], moment: int) -> set[Effect]:
    """Return the effects that no sync has covered."""
    covered: dict[Node, int] = {}
    for sync in disk.syncs:
        if sync.end <= moment:
            covered[sync.node] = max(sync.begin, covered.get(sync.node, -1))
    return {
        effect
        for effect in issued
        if effect.end >= 0 and effect.end > covered.get(effect.node, -1)
    }


def _parts(effects: list[Effect]) -> list[list[Effect]]:
    """Divide effects into those that have nothing to do with each other."""
    parent: dict[object, object] = {}

    def root(key: object) -> object:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for effect in effects:
        first, *others = _keys(effect)
        for other in others:
            parent[root(other)] = root(first)
    parts: defaultdict[object, list[Effect]] = defaultdict(list)
    for effect in effects:
        parts[root(_keys(effect)[0])].append(effect)
    return list(parts.values())


def _keys(effect: Effect) -> list[object]:
    """Return the name and the file that an effect is about."""
    if not effect.name:
        return [effect.node]
    keys: list[object] = [(effect.node, effect.name)]
    if effect.target is not None and not effect.target.is_folder:
        keys.append(effect.target)
    if effect.cause is not None:
        keys += _keys(effect.cause)
    return keys


def _outcomes(
    part: list[Effect], pending: set[Effect], atomic: bool
) -> Iterator[Names]:
    """Yield each different thing that may become of the names of one part."""
    seen: list[Names] = []
    fates = [_variants(e) if e in pending else ("whole",) for e in part]
    for fate in itertools.product(*fates):
        what = dict(zip(part, fate, strict=True))
        if any(_is_impossible(effect, what, atomic) for effect in part):
            continue
        outcome = _names(what)
        if outcome not in seen:
            seen.append(outcome)
            yield outcome


def _variants(effect: Effect) -> tuple[str, ...]:
    if effect.data is not None and len(effect.data[1]) > 1:
        return ("lost", "half", "zeros", "whole")
    return ("lost", "whole")


def _is_impossible(effect: Effect, what: dict[Effect, str], atomic: bool) -> bool:
    if effect.cause is None:
        return False
    gone, there = what[effect] == "whole", what[effect.cause] == "whole"
    return gone != there if atomic else gone and not there


def _names(what: dict[Effect, str]) -> Names:
    nodes: dict[tuple[Node, str], Node] = {}
    data: defaultdict[Node, bytearray] = defaultdict(bytearray)
    mtimes: dict[Node, float | None] = {}
    for effect, fate in what.items():
        if fate == "lost":
            continue
        if effect.data is not None:
            _write(data[effect.node], *effect.data, fate)
        elif not effect.name:
            mtimes[effect.node] = effect.mtime
        elif effect.target is not None:
            nodes[effect.node, effect.name] = effect.target
        else:
            nodes.pop((effect.node, effect.name), None)
    return {
        name: (node, (bytes(data[node]), mtimes.get(node)))
        for name, node in nodes.items()
    }


def _write(file: bytearray, offset: int, data: bytes, fate: str) -> None:
    if fate == "half":
        data = data[: len(data) // 2]
    elif fate == "zeros":
        data = bytes(len(data))
    file.extend(bytes(max(0, offset + len(data) - len(file))))
    file[offset : offset + len(data)] = data


def _choices(
    parts: list[list[Names]], most: int, dice: random.Random
) -> Iterator[Sequence[Names]]:
    if math.prod(map(len, parts)) <= most:
        yield from itertools.product(*parts)
    else:
        for _ in range(most):
            yield [dice.choice(part) for part in parts]


def _state(root: Node, names: Names) -> State:
    below: defaultdict[Node, list[str]] = defaultdict(list)
    for folder, name in names:
        below[folder].append(name)
    state: State = {}

    def walk(folder: Node, prefix: str) -> None:
        for name in below[folder]:
            node, content = names[folder, name]
            state[prefix + name] = None if node.is_folder else content
            if node.is_folder:
                walk(node, f"{prefix}{name}/")

    walk(root, "")
    return state
