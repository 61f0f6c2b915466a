"""Opens the queue at a place, for deliveries and processors."""
from __future__ import annotations

from postcommit._config.database import parse_database_url
from postcommit._drain.contract import IQueue
from postcommit._maildir.mark import check_queue_path
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


def name_of(place: str) -> str:
    """Return `place` for logs: a path as it is, a URL without user and password."""
    return parse_database_url(place).name if is_database_url(place) else place


def check_place(place: str) -> None:
    """Raise `QueueError` if there can be no queue at `place`. Creates no folder.

    Does not connect to a database, which may be away when an application starts.
    """
    if not is_database_url(place):
        check_queue_path(place)
