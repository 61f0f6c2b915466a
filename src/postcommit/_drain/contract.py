"""The contract between draining and the place where entries are.

A queue is on disk (`_maildir.store`), or in PostgreSQL (`_postgres.queue`). Draining
knows only what is written here: it knows no paths, locks or file times.

The phases of one entry, in the order of their calls:

===============  ===========================================  =====================
by               call                                         when
===============  ===========================================  =====================
the delivery     `IQueue.stage`                               in ``send()``
data manager     `IBatch`: prepare, then publish or discard   vote, finish or abort
a worker         `IConsumer.take`, `IClaim.read`              the entry is due
a worker         `IConsumer.settle`, or release               after an attempt
===============  ===========================================  =====================

A forked child takes no part in a consumer, a claim or a batch of its parent. Its copies
do nothing. All times are the queue's own, in seconds since the epoch.
"""
from __future__ import annotations

import enum
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zope.interface import Attribute
from zope.interface import Interface

from postcommit._drain.schedule import Schedule
from postcommit._mail.entry import Entry
from postcommit._mail.terms import Terms as Terms
from postcommit.interfaces import Batch


@dataclass(frozen=True)
class Settlement:
    """The change to a claimed entry after an attempt, done as one step if possible.

    `rejected` is a dead letter for the recipients that were rejected. `uncertain` is
    one for those that may have the message, and are not tried again. `left` is the
    entry with all other recipients, tried again at `due`. `is_part` says that some of
    them were not tried: then the consumer takes it again without another look. Without
    `left` the entry is removed.
    """

    rejected: Entry | None = None
    uncertain: Entry | None = None
    left: Entry | None = None
    due: float = 0.0
    is_part: bool = False


class Settled(enum.Enum):
    """The result of a settlement."""

    DONE = "done"
    #: Somebody removed the entry during the attempt: nothing is left to try again.
    REMOVED = "removed"
    #: The claim was lost. Another processor may send the message, too.
    TAKEN = "taken"


class IClaim(Interface):
    """The right to send one entry. No other processor has it at the same time."""

    key: Hashable = Attribute("The entry's identity, for as long as the entry lives.")
    name: str = Attribute("The entry's name, for logs: a path, for example.")
    accepted: float = Attribute("When the entry was accepted.")
    expires: float | None = Attribute(
        "When the entry expires, once it was read; None if it does not."
    )
    entry: Entry = Attribute("The entry, once `read` has returned it.")

    def read() -> Entry:
        """Return the entry and keep it as `entry`.

        Raises `EntryError` if this is not an entry, and `QueueError` if it cannot be
        read now.
        """

    def beginning() -> bytes:
        """Return the first bytes of the entry as they are, 4 MB at most."""


class IQueue(Interface):
    """Where committed mail waits. Any thread may call any method.

    One object for each queue and process is enough, but several do no harm.
    """

    name: str = Attribute("A path, or a URL without its password; for logs.")

    def batch() -> Batch:
        """Return a batch: the entries that one transaction accepts together."""

    def stage(
        sender: str,
        recipients: tuple[str, ...],
        message: Sequence[bytes | memoryview],
        *,
        terms: Terms | None = None,
        is_first: bool = False,
    ) -> Any:
        """Return a new entry, as an item for a `batch` of this queue.

        `message` is in pieces, which are not copied. `is_first` says that it is the
        first item of its batch, which may cost less. Raises `QueueError` if it cannot
        be kept, or the queue cannot keep `terms`. Then nothing is left.
        """

    def cancel(message_id: str, staged: Sequence[Any] = ()) -> Any | None:
        """Claim what waits of a message, as an item for a `batch` of this queue.

        When the batch is published, the entries are removed. When it is discarded, they
        are released. `staged` has the items of the running transaction, which may be
        called off as well. Returns None if nothing of the message waits, or all of it
        is being sent. Raises `QueueError`.
        """

    def consumer(
        schedule: Schedule, clock: Callable[[], float] | None = None
    ) -> IConsumer:
        """Begin a drain.

        `schedule` has the bounds of deferrals. `clock` replaces the queue's own.
        Raises `QueueError` if the queue is missing or may not be worked on.
        """


class IConsumer(Interface):
    """One drain, as the queue sees it: all that ends with the drain."""

    quick_seconds: float = Attribute(
        "A worker claims several entries at a time while each takes less than this."
    )

    last_sign: float = Attribute("When the last sign of life was given (monotonic).")

    def now() -> float:
        """Return the queue's time. Any thread."""

    def take(most: int, avoid: Collection[Hashable] = ()) -> list[IClaim]:
        """Claim up to `most` due entries. Return [] if none is due. Any thread.

        What is accepted after the last `wait` of the feeder rings, and may be left to
        the next round.

        New entries come first, then scheduled, deferred and bulk entries, each of them
        by time. An entry accepted in the last 0.2 s may come after a deferred entry.
        Scheduled and bulk entries may have to be let in first, see `let_in`.

        Returns fewer than `most` if more cannot be found quickly, and [] also during a
        rest after a look at many deferred entries: `seconds_to_wait` says when to ask
        again. `avoid` holds the keys of entries not to claim: suspects, for example, or
        what was released in this pass and would be taken again at once.

        A claim is returned also for an entry that cannot be opened: its `read` raises
        the error. Raises `QueueError` if all entries fail, whatever its `scope`. Then
        nothing is claimed.
        """

    def let_in() -> bool:
        """Let `take` find the next scheduled entries that are due, or bulk entries.

        Only the feeder calls it, when `take` has found nothing. Bulk entries come if no
        scheduled entry is due. They come in portions, so that a new entry soon has its
        turn. Returns True if the feeder should call `take` and this again without a
        sleep. A queue whose `take` finds these entries itself returns False. Never
        raises, but logs.
        """

    def is_sure(claim: IClaim) -> bool:
        """Return whether no other processor can have the entry now.

        Asked before each transmission. Any thread. Never raises, and does no I/O.
        """

    def begin_removal(claim: IClaim) -> bool:
        """Begin to remove an entry of which all recipients were sent the message.

        Returns True if the removal goes on while the caller sends the next message.
        Then the caller has to call `settle` with an empty `Settlement`, which ends it.
        If this process is killed before, the removal still takes place. Never raises.
        """

    def settle(claim: IClaim, settlement: Settlement) -> Settled:
        """Apply `settlement` and end the claim.

        Raises `QueueError`: then the claim is kept, and the same call may be repeated,
        also if the first took effect and only its answer was lost.
        """

    def postpone(claim: IClaim, due: float) -> None:
        """Make the entry due at `due` without writing it, and end the claim.

        For a full disk. Raises `QueueError`: then the claim is kept.
        """

    def bury_unreadable(claim: IClaim, reason: str) -> None:
        """Make what is not an entry a dead letter, and end the claim.

        Raises `QueueError`: then it stays where it is, and the claim is ended as well.
        """

    def release(claims: Iterable[IClaim]) -> None:
        """End `claims`. The entries stay as they are. Never raises, but logs."""

    def seconds_to_wait() -> float:
        """Return for how many seconds nothing known becomes due, inf if nothing waits.

        Only the feeder calls it. Raises `QueueError`.
        """

    def reserve(rate: float) -> float:
        """Take the next slot of `rate` slots per second. Return the seconds until it.

        Any thread. A slot that is not used is lost. Raises `QueueError`.
        """

    def wait(timeout: float) -> None:
        """Sleep until the bell rings, `timeout` seconds at most. Calls `give_sign`.

        Only the feeder calls it. Never raises.
        """

    def give_sign() -> None:
        """Show that the feeder does not hang. Only it calls this. Never raises."""

    def ring() -> None:
        """Wake the feeder. Any thread and any signal handler. Never raises."""

    def stop() -> None:
        """Make `take` return [] from now on, also in a look now. Then `ring`."""

    def post(reason: object, seconds: float) -> None:
        """Show others that the drain pauses, for `seconds`, because of `reason`.

        Never raises. One thread at a time calls this and `clear`.
        """

    def clear() -> None:
        """Show that the drain does not pause any more. Never raises."""

    def sweep() -> None:
        """Remove what dead senders have left. Once an hour. Raises `QueueError`."""

    def close() -> None:
        """Release all claims and leave no note. Never raises. May be called again."""
