"""The removal of one entry: sent to the server, which answers later.

A worker sends the next message while the server commits the removal of the one before.
The server executes a statement that it has got, also if this process is killed. So a
removal that was begun is not in danger. At most two of each worker have no answer.

This is a level below the cursors of psycopg. A cursor waits for its answer, except in a
pipeline, which takes more processor time than the wait.
"""
from __future__ import annotations

import uuid

import psycopg
from psycopg import generators
from psycopg.pq import ExecStatus

from postcommit._postgres.connections import Connections


_DELETE = "delete from {schema}.entry where id = $1 and holder = $2"

# The number of the type uuid, and of the binary format.
_UUID = 2950
_BINARY = 1


class Removal:
    """Sends the DELETE of the entry `id`, which `held` has claimed.

    Raises `QueueError` or an error of psycopg if it cannot be sent.
    """

    def __init__(
        self, connections: Connections, id: uuid.UUID, held: uuid.UUID
    ) -> None:
        self._connections = connections
        self._connection = connections.take()
        self._connection.pgconn.send_query_params(
            connections.sql(_DELETE),
            [id.bytes, held.bytes],
            param_types=[_UUID, _UUID],
            param_formats=[_BINARY, _BINARY],
        )
        self._connection.pgconn.flush()

    def end(self) -> int | None:
        """Wait for the answer. Return the number of rows that were deleted.

        None if the answer was lost, or the server refused the statement.
        """
        connection = self._connection
        try:
            [result] = connection.wait(generators.execute(connection.pgconn))
        except psycopg.Error:
            connection.close()
            return None
        self._connections.give_back(connection)
        if result.status != ExecStatus.COMMAND_OK:
            return None
        return result.command_tuples or 0
