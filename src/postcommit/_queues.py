"""Opens the queue at a place: a folder, or a URL such as ``postgresql://host/db``.

This is the only module that knows which kinds there are. The module of a kind is
imported when a queue of this kind is opened, so an application without a database never
imports psycopg.
"""
from __future__ import annotations

from postcommit._config.database import is_database_url
from postcommit._config.database import parse_database_url
from postcommit._drain.contract import IQueue
from postcommit._maildir.store import Store


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
