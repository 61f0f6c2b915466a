"""An interrupt (Ctrl-C, or `sys.exit` in a signal handler) at each line of a commit.

It may come at any of ours, also right after a system call that was done. Then the
application aborts, as it would. (Those of `transaction` itself can do worse: an
interrupt at the first line of its `abort` is an UnboundLocalError.)
"""
from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from types import FrameType
from types import FunctionType
from typing import Any

import pytest
from tests.support.transactions import AFTER
from tests.support.transactions import BEFORE
from tests.support.transactions import Partner
from tests.support.transactions import PartnerFailed
from tests.support.transactions import explicit
from tests.support.transactions import failing
from tests.support.transactions import files
from tests.support.transactions import mail
from transaction import TransactionManager

import postcommit
from postcommit import QueuedMailDelivery
from postcommit.datamanager import DataManager
from postcommit.queue.store import Store


# Python ignores what is raised by an object that goes.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

OURS = os.path.dirname(postcommit.__file__)


def _begins_at(function: FunctionType) -> tuple[CodeType, int]:
    """The code of a function, and the line of its first statement."""
    code = function.__code__
    lines = {line for _, _, line in code.co_lines() if line is not None}
    return code, min(lines - {code.co_firstlineno})


# Before this line, it is an interrupt of `transaction`, in the middle of its loop over
# the resources: then nobody can know that others were told already.
NOT_TOLD = _begins_at(DataManager.tpc_finish)


def interrupted(act: Callable[[], object], lines: int) -> bool:
    """Call `act`, interrupted after so many `lines`; tell whether it had as many."""
    left = lines

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line" and (frame.f_code, frame.f_lineno) != NOT_TOLD:
            left -= 1
            if not left:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


class Case:
    """One transaction, with a queue of its own and perhaps a database."""

    def __init__(self, folder: Path, mails: int, with_database: bool) -> None:
        self.queue = folder / "queue"
        self.manager = explicit()
        self.manager.begin()
        self.database = Partner(BEFORE)
        if with_database:
            self.manager.get().join(self.database)
        delivery = QueuedMailDelivery(
            str(self.queue), transaction_manager=self.manager
        )
        for number in range(mails):
            delivery.send("a@example.org", "b@example.org", mail(f"{number}@x.org"))

    def abort(self) -> None:
        if self.manager._txn is not None:
            self.manager.abort()
        gc.collect()

    @property
    def has_committed(self) -> bool:
        return "tpc_finish" in self.database.calls

    @property
    def in_doubt(self) -> list[str]:
        return [f"tmp/{os.path.basename(p)}" for p in Store(str(self.queue)).in_doubt()]

    @property
    def accepted(self) -> list[str]:
        return [name for name in files(self.queue) if name.startswith("new/")]


def cases(tmp_path: Path, mails: int, with_database: bool) -> Iterator[Case]:
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        yield Case(folder, mails, with_database)


@pytest.mark.parametrize("mails", [1, 3])
def test_a_commit_that_is_interrupted_keeps_all_of_it_or_nothing(
    tmp_path: Path, mails: int
) -> None:
    decided, aborted = 0, 0
    for lines, case in enumerate(cases(tmp_path, mails, with_database=True), 1):
        if not interrupted(case.manager.commit, lines):
            break
        case.abort()
        if case.has_committed:
            # What is in doubt is told, and somebody can send it.
            assert len(case.accepted) + len(case.in_doubt) == mails, lines
            assert case.in_doubt + case.accepted == files(case.queue), lines
            decided += 1
        else:
            assert files(case.queue) == [], lines
            aborted += 1
    assert len(case.accepted) == mails
    assert min(decided, aborted) > 30, (decided, aborted)


def test_alone_a_mail_is_accepted_or_gone(tmp_path: Path) -> None:
    outcomes = set()
    for lines, case in enumerate(cases(tmp_path, 1, with_database=False), 1):
        if not interrupted(case.manager.commit, lines):
            break
        case.abort()
        assert case.in_doubt == []
        assert len(files(case.queue)) == len(case.accepted) <= 1, lines
        outcomes.add(len(case.accepted))
    assert outcomes == {0, 1}


def test_a_refused_vote_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    for lines, case in enumerate(cases(tmp_path, 3, with_database=True), 1):
        case.manager.get().join(failing("tpc_vote", AFTER))

        def commit(manager: TransactionManager = case.manager) -> None:
            with pytest.raises(PartnerFailed):
                manager.commit()

        was_interrupted = interrupted(commit, lines)
        case.abort()
        assert not case.has_committed
        assert files(case.queue) == [], lines
        if not was_interrupted:
            break
    assert lines > 60


def test_an_abort_that_is_interrupted_leaves_nothing_in_doubt(tmp_path: Path) -> None:
    for lines, case in enumerate(cases(tmp_path, 3, with_database=False), 1):
        if not interrupted(case.manager.abort, lines):
            break
        case.abort()
        assert case.in_doubt == case.accepted == []
    assert files(case.queue) == []
    assert lines > 30
