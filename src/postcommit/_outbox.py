"""A delivery that inserts mail by the application's own session of SQLAlchemy.

The row is part of the application's transaction. So a savepoint, an abort, a retry and
the COMMIT do the same to the mail as to the data. Mail is lost only together with the
data, and it cannot be in doubt.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

import transaction
from zope.interface import implementer

from postcommit._config.options import checked
from postcommit._config.options import checked_manager
from postcommit._config.options import checked_message_id
from postcommit._config.options import checked_sender
from postcommit._config.readonly import ReadOnlyOptions
from postcommit._mail.message import compose
from postcommit._mail.row import check_version
from postcommit._mail.row import indexed
from postcommit._mail.row import row
from postcommit._mail.terms import in_utc
from postcommit._mail.terms import terms_of
from postcommit.errors import MissingExtraError
from postcommit.errors import OptionError
from postcommit.errors import QueueError
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IDefaultSender
from postcommit.interfaces import IOutboxMailDelivery
from postcommit.interfaces import Moment
from postcommit.interfaces import Sendable
from postcommit.interfaces import TransactionManager


# The schemas whose version was checked, by the pool of their connections. A request may
# have a delivery, a session and an engine of its own, but not a pool.
_checked: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()

_MAY_READ = "select has_table_privilege(to_regclass(:table), 'select')"


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
        self._insert, self._cancel, self._mark_changed = _sqlalchemy(self.schema)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.schema}>"

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
        *,
        not_before: Moment | None = None,
        expires: Moment | None = None,
        bulk: bool = False,
    ) -> str:
        """Insert `message` now, and return its message id. See `IMailDelivery`.

        The mail waits until `not_before`. It becomes a dead letter if it was not sent
        before `expires`. With `bulk` it comes after all other mail. A time is an aware
        datetime, the seconds since the epoch, or a timedelta from now.

        `fromaddr` is the envelope's sender, for example ``"shop@example.org"``, and
        ``""`` is the null sender. `toaddrs` is one address or an iterable of them. None
        means the addresses of the header. `message` is an `EmailMessage`, bytes, or a
        str with header and body.

        Raises `AddressError` or `MessageError` for what cannot be sent, `OptionError`
        for times at which it never could be, and `QueueError` if the database is not
        PostgreSQL, or has no tables of a queue or those of another version. Also raises
        the exceptions of SQLAlchemy. Then the transaction has failed, as after any
        other statement.
        """
        terms = terms_of(not_before, expires, bulk, time.time())
        composed = compose(fromaddr, toaddrs, message, self.default_sender)
        message_id: str = composed.message_id
        values = row(
            self._name, composed.sender, composed.recipients, composed.message
        )
        if terms is not None:
            begin = in_utc(terms.not_before)
            values |= {"not_before": begin, "expires": in_utc(terms.expires)}
            values["bulk"] = terms.bulk
            if begin is not None:
                values["due"] = begin
        self._execute(self._insert, values)
        return message_id

    def cancel(self, message_id: str) -> bool:
        """Delete a mail that has not been sent, when the transaction commits.

        `message_id` is what `send` returned. Returns False if the mail is being sent,
        was sent, or is unknown. Needs the rights to select, update and delete entries.
        Errors are those of `send`. See `IScheduledMailDelivery`.
        """
        wanted = {"wanted": indexed(checked_message_id(message_id))}
        return bool(self._execute(self._cancel, wanted).rowcount)

    @property
    def _name(self) -> str:
        return f"the schema {self.schema}"

    def _execute(self, statement: Any, values: dict[str, Any]) -> Any:
        """Execute a statement in the transaction of the application."""
        session = self.session
        if hasattr(session, "registry"):
            session = session()  # that of this thread
        dialect = session.get_bind().dialect.name
        if dialect != "postgresql":
            raise QueueError(self._name, f"must be in PostgreSQL, not {dialect}")
        try:
            # Not by the session, which would flush the application's objects first.
            # They may be incomplete.
            connection = session.connection()
            self._check_version(connection)
            done = connection.execute(statement, values)
        except Exception as error:
            if _is_table_missing(error):
                reason = "has no tables of a queue in the database of the session; run"
                reason += " 'postcommit migrate URL'"
                raise QueueError(self._name, reason) from error
            raise
        self._mark_changed(session, self.transaction_manager)
        return done

    def _check_version(self, connection: Any) -> None:
        """Check the version of the tables, once for each pool of connections.

        An outbox needs no right to read the version. A statement that is refused would
        end the transaction of the application, so the right is looked up first. Without
        it, nothing is checked.
        """
        known = _checked.setdefault(connection.engine.pool, set())
        if self.schema in known:
            return
        sa = import_module("sqlalchemy")
        table = {"table": f'"{self.schema}".version'}
        may_read = connection.execute(sa.text(_MAY_READ), table).scalar()
        if may_read is None:
            return  # there is no table: the statement of the caller says what to do
        if may_read:
            version = sa.table("version", sa.column("number"), schema=self.schema)
            number = connection.execute(sa.select(version.c.number)).scalar()
            check_version(self._name, number or 0)
        known.add(self.schema)


def _sqlalchemy(schema: str) -> tuple[Any, Any, Callable[..., None]]:
    """Return the INSERT of an entry, the DELETE of one, and `mark_changed`.

    The latter says that a session has changed.
    """
    try:
        mark_changed = import_module("zope.sqlalchemy").mark_changed
        sa = import_module("sqlalchemy")
        types = import_module("sqlalchemy.dialects.postgresql")
    except ModuleNotFoundError as error:
        raise MissingExtraError("sqlalchemy", "zope.sqlalchemy") from error
    moment = sa.DateTime(timezone=True)
    table = sa.table(
        "entry",
        sa.column("id", types.UUID(as_uuid=True)),
        sa.column("sender", sa.Text),
        sa.column("recipients", types.ARRAY(sa.Text)),
        sa.column("message_id", sa.Text),
        sa.column("message", sa.LargeBinary),
        *(sa.column(name, moment) for name in ("due", "not_before", "expires")),
        sa.column("bulk", sa.Boolean),
        sa.column("state", sa.Text),
        sa.column("holder", types.UUID(as_uuid=True)),
        schema=schema,
    )
    # A processor passes over a locked row, and this over one that is being sent.
    waiting = (
        sa.select(table.c.id)
        .where(table.c.message_id == sa.bindparam("wanted"))
        .where(table.c.holder.is_(None), table.c.state.in_(["queued", "held"]))
        .with_for_update(skip_locked=True)
    )
    cancel = table.delete().where(table.c.id.in_(waiting))
    return table.insert(), cancel, mark_changed


def _is_table_missing(error: Exception) -> bool:
    """Return whether a statement failed because the table or its schema is missing."""
    cause: Any = getattr(error, "orig", None)
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state in ("42P01", "3F000")
