"""Opens the queue at a place: a folder, or a URL such as ``postgresql://host/db``.

This is the only module that knows which kinds there are. The modules of a database are
imported when its queue is opened, so an application without one never imports psycopg.
Those of a folder are imported at once. A command of root becomes the owner of a queue,
who may not be allowed to read them.
"""
from __future__ import annotations

from postcommit._config.database import parse_database_url
from postcommit._drain.contract import IQueue
from postcommit._maildir.item import IOperators
from postcommit._maildir.mark import check_queue_path
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.moving import IMoving
from postcommit._maildir.moving import MaildirMoving
from postcommit._maildir.store import Store
from postcommit.interfaces import is_database_url


def open_queue(place: str) -> IQueue:
    """Return the queue at `place`. A folder is created if it is missing.

    Raises `QueueError` if it cannot be opened.
    """
    if is_database_url(place):
        from postcommit._postgres.queue import PostgresQueue

        return PostgresQueue(place)
    return Store(place)


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


def name_of(place: str) -> str:
    """Return `place` for logs: a path as it is, a URL without user and password."""
    return parse_database_url(place).name if is_database_url(place) else place


def check_place(place: str) -> None:
    """Raise `QueueError` if there can be no queue at `place`. Creates no folder.

    Does not connect to a database, which may be away when an application starts.
    """
    if not is_database_url(place):
        check_queue_path(place)
