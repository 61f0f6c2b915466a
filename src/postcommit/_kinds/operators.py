"""Opens the operators' half of the queue at a place.

Deliveries and processors do without these modules.
"""
from __future__ import annotations

from postcommit._maildir.item import IOperators
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.moving import IMoving
from postcommit._maildir.moving import MaildirMoving
from postcommit.interfaces import is_database_url


def open_operators(place: str, *, adopt: bool = False) -> IOperators:
    """Return the operators' half of the queue at `place`, which must exist.

    `adopt` makes a Maildir a queue, whatever is in it. Raises `QueueError` if there is
    no queue.
    """
    if is_database_url(place):
        from postcommit._postgres.operators import PostgresOperators

        return PostgresOperators(place)
    return MaildirOperators(place, adopt=adopt)


def open_moving(place: str) -> IMoving:
    """Return what moves entries out of, or into, the queue at `place`.

    A folder is created if it is missing. Raises `QueueError`.
    """
    if is_database_url(place):
        from postcommit._postgres.moving import PostgresMoving

        return PostgresMoving(place)
    return MaildirMoving(place)
