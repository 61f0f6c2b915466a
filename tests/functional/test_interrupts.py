"""An interrupt at each line of a commit, an abort, a savepoint and a `send`.

Ctrl-C, `sys.exit` in a signal handler, `gevent.Timeout` and MemoryError may arrive at
any line, also right after a system call that has succeeded. Afterwards the
application aborts, as it has to. Lines are those of postcommit and of the functions
of `transaction` that it calls; a second test takes those of `transaction` that call
us, and a third one a sample of all opcodes.
"""
from __future__ import annotations

import gc
import logging
import os
import random
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import transaction
from tests.support.transactions import AFTER
from tests.support.transactions import BEFORE
from tests.support.transactions import Mailer
from tests.support.transactions import Partner
from tests.support.transactions import PartnerFailed
from tests.support.transactions import explicit
from tests.support.transactions import failing
from tests.support.transactions import files
from tests.support.transactions import mail
from transaction import TransactionManager

import postcommit
from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit._mail.message import message_id_of
from postcommit._maildir.store import Store


# Python ignores what a destructor raises.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

OURS = os.path.dirname(postcommit.__file__)
THEIRS = os.path.dirname(transaction.__file__)

LINES = frozenset({"line"})
# Where Python looks for signals is among these.
OPCODES = frozenset({"call", "opcode", "return"})


class Timeout(BaseException):
    """As `gevent.Timeout`."""


INTERRUPTS = [KeyboardInterrupt, MemoryError]


@pytest.fixture(scope="module", autouse=True)
def _collect_only_new_objects() -> Iterator[None]:
    """Keep what the test run has loaded so far out of each ``gc.collect()``.

    An interrupted transaction is freed by the collector, here after each of thousands
    of cases. Without this fixture a collection also visits every test and module that
    is loaded, and the module takes minutes instead of seconds.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(OURS)


def is_ours_or_called_by_us(frame: FrameType) -> bool:
    is_theirs = frame.f_code.co_filename.startswith(THEIRS)
    return is_ours(frame) or (is_theirs and is_ours(frame.f_back))


def is_theirs_in_the_commit(frame: FrameType) -> bool:
    """Return whether it is one of `transaction` between the votes and the end."""
    is_theirs = frame.f_code.co_filename.startswith(THEIRS)
    return is_theirs and frame.f_code.co_name in ("_commitResources", "commit")


class Interrupter:
    """Interrupts a call at one of its points, and counts them."""

    def __init__(
        self,
        at: int,
        error: type[BaseException] = KeyboardInterrupt,
        events: frozenset[str] = LINES,
        traced: Callable[[FrameType], bool] = is_ours_or_called_by_us,
    ) -> None:
        self.points = 0
        self._at = at
        self._error = error
        self._events = events
        self._traced = traced

    @property
    def has_interrupted(self) -> bool:
        return self.points >= self._at

    def __call__(self, act: Callable[[], object]) -> None:
        """Call `act`; it raises the interrupt, or nothing."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            act()
        except self._error:
            assert self.has_interrupted
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not self._traced(frame):
            return None
        frame.f_trace_opcodes = "opcode" in self._events
        if event in self._events:
            self.points += 1
            if self.points == self._at:
                raise self._error
        return self._trace


class Case:
    """One transaction, with a queue of its own and perhaps a database."""

    def __init__(self, folder: Path, mails: int, with_database: bool) -> None:
        self.queue = folder / "queue"
        self.manager = explicit()
        self.manager.begin()
        self.database = Partner(BEFORE)
        if with_database:
            self.manager.get().join(self.database)
        self.delivery: Any = QueuedMailDelivery(
            str(self.queue), transaction_manager=self.manager
        )
        self.ids: list[str] = []
        for _ in range(mails):
            self.send()

    def send(self) -> None:
        self.ids.append(f"{len(self.ids)}@x.org")
        self.delivery.send("a@example.org", "b@example.org", mail(self.ids[-1]))

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


def cases(
    tmp_path: Path, mails: int, with_database: bool, **how: Any
) -> Iterator[tuple[Case, Interrupter]]:
    """Yield one case for each point, until there is no further point."""
    number = 0
    interrupter = None
    while interrupter is None or interrupter.has_interrupted:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        interrupter = Interrupter(number, **how)
        yield Case(folder, mails, with_database), interrupter


@pytest.mark.parametrize("error", [*INTERRUPTS, Timeout])
@pytest.mark.parametrize("mails", [1, 3])
def test_a_commit_that_is_interrupted_keeps_all_of_it_or_nothing(
    tmp_path: Path, mails: int, error: type[BaseException]
) -> None:
    decided, aborted = 0, 0
    for case, interrupt in cases(tmp_path, mails, with_database=True, error=error):
        interrupt(case.manager.commit)
        case.abort()
        assert_all_or_nothing(case)
        decided += case.has_committed
        aborted += not case.has_committed
    assert len(case.accepted) == mails
    assert min(decided, aborted) > 30, (decided, aborted)


def assert_all_or_nothing(case: Case) -> None:
    if case.has_committed:
        # Somebody can send what is in doubt: the log and ``status`` name it.
        assert len(case.accepted) + len(case.in_doubt) == len(case.ids)
        assert case.in_doubt + case.accepted == files(case.queue)
    else:
        assert files(case.queue) == []


def test_an_interrupt_in_transaction_itself_loses_nothing(tmp_path: Path) -> None:
    decided, in_doubt = 0, 0
    for case, interrupt in cases(
        tmp_path, 2, with_database=True, traced=is_theirs_in_the_commit
    ):
        interrupt(case.manager.commit)
        case.abort()
        if case.has_committed:
            assert_all_or_nothing(case)
            decided += 1
        else:
            # After the last vote nobody knows whether a resource was told to finish.
            assert case.accepted == []
            assert files(case.queue) == case.in_doubt
        in_doubt += bool(case.in_doubt)
    assert decided > 5
    assert in_doubt > 2


@pytest.mark.parametrize("mails", [1, 3])
def test_an_interrupt_at_any_opcode_keeps_all_of_it_or_nothing(
    tmp_path: Path, mails: int
) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    count = Interrupter(sys.maxsize, events=OPCODES)
    count(Case(folder, mails, with_database=True).manager.commit)
    chosen = random.Random(mails).sample(range(1, count.points + 1), 150)
    for number in chosen:
        folder = tmp_path / str(number)
        folder.mkdir()
        case = Case(folder, mails, with_database=True)
        Interrupter(number, events=OPCODES)(case.manager.commit)
        case.abort()
        assert_all_or_nothing(case)


@pytest.mark.parametrize("error", INTERRUPTS)
def test_alone_a_mail_is_accepted_or_gone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    outcomes = set()
    for case, interrupt in cases(tmp_path, 1, with_database=False, error=error):
        interrupt(case.manager.commit)
        case.abort()
        assert case.in_doubt == []
        assert len(files(case.queue)) == len(case.accepted) <= 1
        outcomes.add(len(case.accepted))
    assert outcomes == {0, 1}


@pytest.mark.parametrize("error", INTERRUPTS)
def test_a_refused_vote_that_is_interrupted_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    for case, interrupt in cases(tmp_path, 3, with_database=True, error=error):
        case.manager.get().join(failing("tpc_vote", AFTER))

        def commit(manager: TransactionManager = case.manager) -> None:
            with pytest.raises(PartnerFailed):
                manager.commit()

        interrupt(commit)
        case.abort()
        assert not case.has_committed
        assert files(case.queue) == []
    assert interrupt.points > 60


@pytest.mark.parametrize("error", INTERRUPTS)
def test_an_abort_that_is_interrupted_leaves_nothing_in_doubt(
    tmp_path: Path, error: type[BaseException]
) -> None:
    for case, interrupt in cases(tmp_path, 3, with_database=False, error=error):
        interrupt(case.manager.abort)
        case.abort()
        assert case.in_doubt == case.accepted == []
    assert files(case.queue) == []
    assert interrupt.points > 30


def test_a_rollback_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    for case, interrupt in cases(tmp_path, 1, with_database=False):
        savepoint = case.manager.savepoint()
        case.send()
        case.send()
        interrupt(savepoint.rollback)
        case.abort()
        assert files(case.queue) == []
    assert interrupt.points > 10


def test_a_send_that_is_interrupted_can_be_repeated(tmp_path: Path) -> None:
    for case, interrupt in cases(tmp_path, 1, with_database=True):
        interrupt(case.send)
        case.send()
        case.manager.commit()
        # The interrupted one may be part of the transaction, if it was complete.
        assert len(case.accepted) in (2, 3)
        assert case.in_doubt == []
    assert len(case.accepted) == 3


# Events


@pytest.mark.parametrize("events", [LINES, OPCODES], ids=["lines", "opcodes"])
def test_an_interrupt_after_the_commit_leaves_the_manager_usable(
    tmp_path: Path, events: frozenset[str]
) -> None:
    heard: list[Any] = []

    def dispatching(frame: FrameType) -> bool:
        return os.path.basename(frame.f_code.co_filename) in ("event.py", "repeats.py")

    def commit(number: int) -> Interrupter:
        case = DirectCase(tmp_path, 2, with_database=False)
        heard.clear()
        case.mailer.notify = heard.append
        interrupter = Interrupter(number, events=events, traced=dispatching)
        interrupter(case.manager.commit)
        case.manager.begin()  # it would raise if the transaction had not ended
        case.manager.abort()
        return interrupter

    points = range(1, commit(sys.maxsize).points + 1)
    if events is OPCODES:
        points = random.Random(0).sample(points, 150)
    both = 0
    for number in points:
        commit(number)
        both += len(heard) == 2
    assert both > len(points) / 4


# Direct delivery


class DirectCase(Case):
    """The same, with a direct delivery; mail is sent, or in the log."""

    def __init__(self, folder: Path, mails: int, with_database: bool) -> None:
        super().__init__(folder, 0, with_database)
        self.mailer = Mailer()
        self.delivery = DirectMailDelivery(
            self.mailer, transaction_manager=self.manager
        )
        for _ in range(mails):
            self.send()

    def abort(self) -> None:
        if self.manager._txn is not None:
            self.manager.abort()

    @property
    def sent(self) -> list[str]:
        return [message_id_of(message) for _, _, message in self.mailer.sent]


@pytest.mark.parametrize(
    ("error", "events"),
    [(KeyboardInterrupt, LINES), (KeyboardInterrupt, OPCODES), (MemoryError, OPCODES)],
    ids=["each line", "opcodes", "memory, opcodes"],
)
def test_a_direct_delivery_that_is_interrupted_leaves_a_trace(
    tmp_path: Path,
    error: type[BaseException],
    events: frozenset[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "postcommit")
    count = Interrupter(sys.maxsize, events=events)
    count(DirectCase(tmp_path, 2, with_database=True).manager.commit)
    points = range(1, count.points + 1)
    if events is OPCODES:
        points = random.Random(error.__name__).sample(points, 150)
    decided = 0
    for number in points:
        case = DirectCase(tmp_path, 2, with_database=True)
        caplog.clear()
        Interrupter(number, error, events)(case.manager.commit)
        case.abort()
        assert len(set(case.sent)) == len(case.sent), "sent twice"
        if case.has_committed:
            # `postcommit._log` goes on after an error in the log, such as MemoryError.
            traces = caplog.text + "".join(f"<{n}> to b@example.org" for n in case.sent)
            assert all(f"<{name}> to b@example.org" in traces for name in case.ids)
            decided += 1
        else:
            assert case.sent == []
    assert decided > 30
