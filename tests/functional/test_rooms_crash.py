"""Mail that waits in a room, at each kill and at each power failure.

How many states of the disk at each moment: ``POSTCOMMIT_DISK_STATES``, 12 by default.
"""
from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import disk
from tests.support import rooms
from tests.support.disk import Disk
from tests.support.disk import State
from tests.support.outage import MOST
from tests.support.power import states
from tests.support.strace import needs_strace
from tests.support.syscalls import Call
from tests.support.syscalls import record
from tests.support.zygote import Zygote


actions = pytest.mark.parametrize("action", rooms.ACTIONS)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@actions
def test_a_kill_at_each_call_loses_nothing_and_doubles_nothing(
    zygote: Zygote, tmp_path: Path, action: str
) -> None:
    number, is_killed = 0, True
    while is_killed:
        number += 1
        queue = tmp_path / str(number) / "queue"
        queue.parent.mkdir()
        rooms.fill(str(queue), action)
        fate = zygote.run("act", kill_at=number, queue=str(queue), action=action)
        is_killed = fate.killed
        rooms.check(queue, action, [word for word, *_ in fate.ledger])
    assert number > 10


Recorded = tuple[list[Call], dict[str, State], Path]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    base = tmp_path_factory.mktemp("recorded")
    before = {}
    for number, action in enumerate(rooms.ACTIONS):
        (base / str(number)).mkdir()
        rooms.fill(f"{base}/{number}/queue", action)
        before[action] = disk.read(base / str(number))
    calls = record(rooms.record_all, str(base), scratch=base)
    return calls, before, base


@needs_strace
@actions
def test_a_power_failure_loses_nothing_and_doubles_nothing(
    recorded: Recorded, tmp_path: Path, action: str
) -> None:
    calls, before, base = recorded
    root = base / str(list(rooms.ACTIONS).index(action))
    found = Disk(root, before[action], calls)
    dice = random.Random(MOST)
    seen = set()
    for moment in found.moments:
        lines = [line.split("|") for at, line in found.marks if at <= moment]
        told = [words[0] for name, *words in lines if name == action]
        for state in states(found, moment, atomic=True, most=MOST, dice=dice):
            key = repr((told, state))
            if key not in seen:
                seen.add(key)
                disk.write(state, tmp_path / "state")
                rooms.check(tmp_path / "state" / "queue", action, told)
    assert len(seen) > 5
