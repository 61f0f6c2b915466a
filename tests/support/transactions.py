"""Resources, mailers and a look into queues, for tests of transactions."""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transaction
import zope.event
from transaction import TransactionManager
from transaction.interfaces import IDataManager
from transaction.interfaces import ITransactionManager
from zope.interface import implementer

from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._maildir.store import Claim
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailer
from postcommit.interfaces import Status


STAGES = ("tpc_begin", "commit", "tpc_vote", "tpc_finish")

# Sort keys before and after all of ours.
BEFORE, AFTER = "a partner", "~~a partner"


def explicit() -> TransactionManager:
    """Return a manager like Pyramid's."""
    return TransactionManager(explicit=True)


# The kinds of manager there are.
MANAGERS: dict[str, Callable[[], ITransactionManager]] = {
    "explicit": explicit,
    "implicit": TransactionManager,
    "thread-local": lambda: transaction.manager,
}


@contextmanager
def begun(kind: str) -> Iterator[ITransactionManager]:
    """Begin a transaction of a manager of this kind; what is left of it aborts."""
    manager = MANAGERS[kind]()
    manager.begin()
    yield manager
    if not manager.explicit or manager._txn is not None:
        manager.abort()


class PartnerFailed(Exception):
    """What a partner raises when it is told to."""


@implementer(IDataManager)
class Partner:
    """A resource that does something else at some of the stages.

    `calls` has what it was called for.
    """

    transaction_manager = None

    def __init__(self, sort_key: str, **acts: Callable[[], object]) -> None:
        self._sort_key = sort_key
        self._acts = acts
        self.calls: list[str] = []

    def _at(self, stage: str) -> None:
        self.calls.append(stage)
        if stage in self._acts:
            self._acts[stage]()

    def abort(self, transaction: Any) -> None:
        self._at("abort")

    def tpc_begin(self, transaction: Any) -> None:
        self._at("tpc_begin")

    def commit(self, transaction: Any) -> None:
        self._at("commit")

    def tpc_vote(self, transaction: Any) -> None:
        self._at("tpc_vote")

    def tpc_finish(self, transaction: Any) -> None:
        self._at("tpc_finish")

    def tpc_abort(self, transaction: Any) -> None:
        self._at("tpc_abort")

    def sortKey(self) -> str:
        return self._sort_key


def fail() -> None:
    raise PartnerFailed


def failing(stage: str, sort_key: str) -> Partner:
    return Partner(sort_key, **{stage: fail})


@implementer(IMailer)
class Mailer:
    """Takes every message, or fares as it is told to.

    `sent` has what it was handed; `notify` is what it announces with.
    """

    def __init__(
        self,
        status: Status = Status.SENT,
        reply: Reply | None = None,
        notify: Callable[[Any], object] = zope.event.notify,
    ) -> None:
        self.sent: list[tuple[str, tuple[str, ...], bytes]] = []
        self.notify = notify
        self._status = status
        self._reply = reply or Reply(250, "2.0.0", "Ok")

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> IDeliveryReport:
        self.sent.append((fromaddr, toaddrs, message))
        return DeliveryReport.alike(
            message_id_of(message), toaddrs, self._status, self._reply
        )


def mail(message_id: str = "1@example.org", text: str = "Text.") -> bytes:
    head = f"Message-Id: <{message_id}>\r\nSubject: x\r\n"
    date = "Date: Mon, 23 Nov 2026 12:00:00 +0000\r\n\r\n"
    return f"{head}{date}{text}\r\n".encode()


def files(queue: Path) -> list[str]:
    """Return every file of a queue, as ``folder/name``."""
    folders = [f for f in ("tmp", "new", "cur") if (queue / f).exists()]
    return [f"{f}/{p.name}" for f in folders for p in sorted((queue / f).iterdir())]


def entries(queue: Path, folder: str = "new") -> list[Entry]:
    """Return the entries of a queue in the order of their names."""
    if not queue.exists():
        return []
    found = []
    for path in sorted((queue / folder).iterdir()):
        claim = Claim.take(str(path))
        assert claim is not None, "it is claimed"
        found.append(claim.read())
        claim.release()
    return found


def accepted(queue: Path) -> list[str]:
    """Return the message ids of the entries in ``new``."""
    return [message_id_of(entry.message) for entry in entries(queue)]


class Hearing(list[Any]):
    """A subscriber: a list of the events that it has heard."""

    def __call__(self, event: Any) -> None:
        self.append(event)
