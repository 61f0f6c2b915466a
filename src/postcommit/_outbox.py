"""A delivery that inserts mail by the application's own session of SQLAlchemy.

The row is part of the application's transaction. So a savepoint, an abort, a retry and
the COMMIT do the same to the mail as to the data. Mail is lost only together with the
data, and it cannot be in doubt.
"""
from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import transaction
from zope.interface import implementer

from postcommit._config.options import checked
from postcommit._config.options import checked_manager
from postcommit._config.options import checked_sender
from postcommit._config.readonly import ReadOnlyOptions
from postcommit._mail.message import compose
from postcommit._mail.row import row
from postcommit.errors import MissingExtraError
from postcommit.errors import OptionError
from postcommit.errors import QueueError
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IDefaultSender
from postcommit.interfaces import IOutboxMailDelivery
from postcommit.interfaces import Sendable
from postcommit.interfaces import TransactionManager


@implementer(IOutboxMailDelivery)
class OutboxMailDelivery(ReadOnlyOptions):
    """Accepts messages by `session`, see `IOutboxMailDelivery`.

    `session` is a `Session` or `scoped_session` of SQLAlchemy, on the database of the
    queue. If it is not registered with zope.sqlalchemy, it joins the transaction of
    `transaction_manager`. Raises `MissingExtraError` without zope.sqlalchemy, and
    `OptionError` for an object that is not a session.
    """

    session: Any
    schema: str
    default_sender: str | None
    transaction_manager: TransactionManager

    def __init__(
        self,
        session: Any,
        *,
        schema: str = IOutboxMailDelivery["schema"].default,
        default_sender: str | None = IDefaultSender["default_sender"].default,
        transaction_manager: TransactionManager | None = None,
    ) -> None:
        if transaction_manager is None:
            transaction_manager = transaction.manager
        if not callable(getattr(session, "execute", None)) or isinstance(session, type):
            raise OptionError("session", session, "must be a session of SQLAlchemy")
        self.session = session
        self.schema = checked(IOutboxMailDelivery, "schema", schema)
        self.default_sender = checked_sender(default_sender)
        self.transaction_manager = checked_manager(transaction_manager)
        self._insert, self._mark_changed = _sqlalchemy(self.schema)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.schema}>"

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
    ) -> str:
        """Insert `message` now, and return its message id. See `IMailDelivery`.

        `fromaddr` is the envelope's sender, for example ``"shop@example.org"``, and
        ``""`` is the null sender. `toaddrs` is one address or an iterable of them. None
        means the addresses of the header. `message` is an `EmailMessage`, bytes, or a
        str with header and body.

        Raises `AddressError` or `MessageError` for what cannot be sent, and
        `QueueError` if the database is not PostgreSQL or has no tables of a queue. Also
        raises the exceptions of SQLAlchemy. Then the transaction has failed, as after
        any other statement.
        """
        composed = compose(fromaddr, toaddrs, message, self.default_sender)
        message_id: str = composed.message_id
        session = self.session
        if hasattr(session, "registry"):
            session = session()  # that of this thread
        dialect = session.get_bind().dialect.name
        name = f"the schema {self.schema}"
        if dialect != "postgresql":
            raise QueueError(name, f"must be in PostgreSQL, not {dialect}")
        values = row(name, composed.sender, composed.recipients, composed.message)
        try:
            # Not by the session, which would flush the application's objects first.
            # They may be incomplete.
            session.connection().execute(self._insert, values)
        except Exception as error:
            if _is_table_missing(error):
                reason = "has no tables of a queue in the database of the session; run"
                raise QueueError(name, f"{reason} 'postcommit migrate URL'") from error
            raise
        self._mark_changed(session, self.transaction_manager)
        return message_id


def _sqlalchemy(schema: str) -> tuple[Any, Callable[..., None]]:
    """Return the INSERT of an entry, and what says that a session has changed."""
    try:
        mark_changed = import_module("zope.sqlalchemy").mark_changed
        sa = import_module("sqlalchemy")
        types = import_module("sqlalchemy.dialects.postgresql")
    except ModuleNotFoundError as error:
        raise MissingExtraError("sqlalchemy", "zope.sqlalchemy") from error
    table = sa.table(
        "entry",
        sa.column("id", types.UUID(as_uuid=True)),
        sa.column("sender", sa.Text),
        sa.column("recipients", types.ARRAY(sa.Text)),
        sa.column("message_id", sa.Text),
        sa.column("message", sa.LargeBinary),
        schema=schema,
    )
    return table.insert(), mark_changed


def _is_table_missing(error: Exception) -> bool:
    """Return whether a statement failed because the table or its schema is missing."""
    cause: Any = getattr(error, "orig", None)
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state in ("42P01", "3F000")
