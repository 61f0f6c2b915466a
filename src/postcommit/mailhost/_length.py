"""The length of a mail host's queue, as its form shows it."""
from __future__ import annotations

import html
import shlex
import xmlrpc.client
from typing import Any

from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Survey
from postcommit._maildir.mending import MaildirOperators
from postcommit.errors import QueueError


# Seconds for looking at the queue. The form needs the counts only.
_PATIENCE = 0.1

_WAITING = (
    EntryState.WAITING,
    EntryState.SCHEDULED,
    EntryState.DEFERRED,
    EntryState.BULK,
    EntryState.HELD,
)

_SHOWN = {
    EntryState.SCHEDULED: ("scheduled", "scheduled"),
    EntryState.DEFERRED: ("deferred", "deferred"),
    EntryState.HELD: ("held", "held"),
    EntryState.FAILED: ("dead letter", "dead letters"),
    EntryState.IN_DOUBT: ("in doubt", "in doubt"),
}


class QueueLength(int):
    """The number of entries that wait. As text, it says if some need attention.

    For example, ``5 (1 deferred, 2 dead letters; see: postcommit status /queue)``: five
    entries wait, and one of these is deferred. Dead letters are not among the five.
    """

    def __new__(cls, survey: Survey, path: str) -> QueueLength:
        counts = survey.counts
        waiting = sum(counts[state] for state in _WAITING)
        length = super().__new__(cls, waiting)
        notes = [
            f"{counts[state]} {words[counts[state] != 1]}"
            for state, words in _SHOWN.items()
            if counts[state]
        ]
        if survey.pause is not None or survey.stopped is not None:
            notes.append("paused")
        length._text = str(waiting)
        if notes:
            command = html.escape(f"postcommit status {shlex.quote(path)}")
            length._text += f" ({', '.join(notes)}; see: {command})"
        return length

    _text: str

    def __str__(self) -> str:
        return self._text

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        """Copy and pickle a plain number, so that no cache needs this class."""
        return int, (int(self),)


# Zope answers with the number by XML-RPC. The library refuses subclasses of int.
xmlrpc.client.Marshaller.dispatch[QueueLength] = xmlrpc.client.Marshaller.dump_long


def queue_length(self: Any) -> QueueLength | str:
    """Return the length of the queue of a mail host, or what is wrong with it."""
    path = self.smtp_queue_directory
    try:
        return QueueLength(MaildirOperators(path).survey(_PATIENCE), path)
    except QueueError:
        return f"n/a - {path} is not a maildir - please verify your configuration"
