"""An exception at each line that a worker runs while it holds a claim.

Memory may run out anywhere, and a mailer or a subscriber may raise SystemExit.
Afterwards every claim is free, nothing is lost, and nothing is sent twice except
what was on its way at that moment.
"""
from __future__ import annotations

import dis
import fcntl
import linecache
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipelineMailer

import postcommit
from postcommit import QueueProcessor
from postcommit._mail.message import message_id_of
from postcommit._maildir.files import FileLock
from postcommit._maildir.store import Store


# Python ignores what is raised by an object that goes.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

OURS = os.path.dirname(postcommit.__file__)

NOP = dis.opmap["NOP"]
LOAD_CONST = dis.opmap["LOAD_CONST"]

RECIPIENTS = ("ann@x.org", "later@x.org", "never@x.org", "lost@x.org", "bob@x.org")


class Raiser:
    """Raises in a worker, at the line number `at` that it runs while it has a claim.

    `lines` is how many there were, `before` what was in ``new`` then.
    """

    def __init__(self, queue: Path, at: int, error: type[BaseException]) -> None:
        self._queue = queue
        self._at = at
        self._error = error
        self._held: set[int] = set()
        self.lines = 0
        self.unsettled: list[bytes] | None = None

    def __enter__(self) -> Raiser:
        self._before = threading.gettrace()
        threading.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        threading.settrace(self._before)  # type: ignore[arg-type]

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(OURS):
            return None
        if code is FileLock.__init__.__code__:  # which other open files have, too
            file = frame.f_locals["self"]
            if isinstance(file, FileLock):
                self._held.add(id(file))
        if event == "return" and code is FileLock.release.__code__:
            self._held.discard(id(frame.f_locals["self"]))
        if event == "line" and self._held and _can_fail(frame):
            self.lines += 1
            if self.lines == self._at:
                # In ``cur``, too, as long as it was not rewritten.
                paths = [*self._queue.glob("new/*"), *self._queue.glob("cur/*")]
                found = [path.read_bytes() for path in paths]
                self.unsettled = [d for d in found if b"X-Zope-Attempts" not in d]
                raise self._error
        return self._trace


def _can_fail(frame: FrameType) -> bool:
    """Return whether an error can come from the instruction that is next.

    None comes from one that does nothing, nor from those at the end of a ``with``
    before ``__exit__`` is called, nor from the release of a lock that was acquired with
    a time-out, for which there is no ``with``. After an error there, the lock would be
    held.
    """
    instruction = frame.f_code.co_code[frame.f_lasti]
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
    is_end_of_with = instruction == LOAD_CONST and line.startswith("with ")
    is_release = line.startswith("self._looking.release()")
    return instruction != NOP and not is_end_of_with and not is_release


def _send(queue: Path) -> None:
    store = Store(str(queue))
    for number, recipient in enumerate(RECIPIENTS):
        message = b"Message-Id: <%d@x.org>\n\nText.\n" % number
        store.stage("shop@x.org", (recipient,), [message]).commit()


def _is_free(path: Path) -> bool:
    with open(path, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _attempted(mailer: ScriptedMailer) -> Counter[str]:
    return Counter(message_id_of(taken.message) for taken in mailer.attempts)


def _all_is_well_after(
    queue: Path, mailer: ScriptedMailer, at: int, error: type[BaseException]
) -> bool:
    """Drain `queue` with an error at that line; tell whether there was one."""
    _send(queue)
    processor = QueueProcessor(str(queue), mailer, workers=1)
    with Raiser(queue, at, error) as raiser:
        processor.flush()
    assert processor.stop(30), at
    for folder in ("new", "cur", ".Failed/new"):
        for path in (queue / folder).glob("*"):
            assert _is_free(path), (at, path)
    # What was tried, and not settled, when the error came.
    on_the_way = {
        message_id
        for message_id in _attempted(mailer)
        for data in raiser.unsettled or []
        if message_id.encode() in data
    }
    QueueProcessor(str(queue), mailer, workers=1).flush()
    attempted = _attempted(mailer)
    twice = {message_id for message_id, times in attempted.items() if times > 1}
    left = "".join(path.read_text() for path in queue.glob("*/*") if path.is_file())
    gone = {f"{number}@x.org" for number in range(len(RECIPIENTS))} - attempted.keys()
    assert all(message_id in left for message_id in gone), (at, "lost", gone)
    assert twice <= on_the_way, (at, twice, on_the_way)
    assert max(attempted.values()) <= 2, (at, attempted)
    return raiser.unsettled is not None


@pytest.mark.parametrize("kind", [ScriptedMailer, ScriptedPipelineMailer])
@pytest.mark.parametrize(("error", "step"), [(MemoryError, 7), (SystemExit, 31)])
def test_an_error_at_any_line_of_an_attempt_keeps_no_claim_and_loses_nothing(
    tmp_path: Path, kind: type[ScriptedMailer], error: type[BaseException], step: int
) -> None:
    at = 1
    while _all_is_well_after(tmp_path / str(at), kind(), at, error):
        at += step
    assert at > 200, at


def test_the_lines_are_those_of_a_worker(tmp_path: Path) -> None:
    _send(tmp_path / "queue")
    with Raiser(tmp_path / "queue", 0, MemoryError) as raiser:
        QueueProcessor(str(tmp_path / "queue"), ScriptedMailer()).flush()
    assert raiser.lines > 200
    assert sys.gettrace() is not raiser._trace
