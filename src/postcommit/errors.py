"""Every exception class of postcommit, and how their texts show a value.

The root is `PostcommitError`. Each class is also a built-in error, for callers that do
not know this library. Its attributes have what its text says.
"""
from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING
from typing import Any
from typing import Literal
from typing import cast


if TYPE_CHECKING:
    from postcommit.interfaces import DeliveryReport
    from postcommit.interfaces import Reply


# Maximum number of characters of a value in the text of an error. A caller that mixes
# arguments up may pass a message of 25 MB as an address.
_MOST_SHOWN = 300

# Errors at which every other entry of a queue would fail, too: all descriptors are in
# use, the disk cannot be written to, or the file system lacks locks.
_OF_ALL_ENTRIES = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.EROFS,
        errno.ENOLCK,
        errno.EOPNOTSUPP,
    }
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def shown(value: object) -> str:
    """Return the repr of `value` for the text of an error, cut if it is long."""
    if isinstance(value, str | bytes | bytearray) and len(value) > _MOST_SHOWN:
        return f"{value[:_MOST_SHOWN]!r}... (length {len(value)})"
    text = repr(value)
    return text if len(text) <= 2 * _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


# An option with such a name never shows its value.
_SECRET = re.compile("passw|pwd|secret|token|credential", re.IGNORECASE)

# Options that hold an address, where the text before the @ is not a secret.
_ADDRESSES = ("default_sender", "--from")

# The value of an option that was not given.
MISSING = object()

# A query of a URL that shows no secret: no parameter, or the schema of a queue.
_PLAIN = re.compile(r"(?:postcommit_schema=\w+(?:#\w+)?)?")

# Shown in an error in place of a secret.
_MASK = "***"

# The scheme of a URL. A path of the file system may have lost the second slash.
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:/+")


def masked(name: str, value: object) -> object:
    """Return `value` of the option `name` as an error may show it.

    A password is replaced by ``***``, and so is anything before an @: a host name
    or a URL may have a user and a password there. An object that shows either is
    replaced by its type. None stays None, because there is nothing to hide.
    """
    if value is None:
        return None
    if _SECRET.search(name):
        return _MASK
    if name.endswith(_ADDRESSES):
        return value
    if isinstance(value, str):
        return without_userinfo(value)
    text = repr(value)
    return type(value) if "@" in text or _SECRET.search(text) else value


def without_userinfo(text: str) -> str:
    """Return a host name, URL or path without user, password and query."""
    found = _SCHEME.match(text)
    scheme = found[0] if found else ""
    rest = text[len(scheme) :]
    rest, _, query = rest.partition("?") if scheme else (rest, "", "")
    query = query if _PLAIN.fullmatch(query) else _MASK
    _, at, host = rest.rpartition("@")
    shown = f"{scheme}{_MASK}@{host}" if at else f"{scheme}{rest}"
    return f"{shown}?{query}" if query else shown


def is_url(text: str) -> bool:
    """Return whether `text` begins with the scheme of a URL."""
    return _SCHEME.match(text) is not None


def text_of(value: object) -> str:
    """Return `value` as text, or the name of its class if that is empty or fails.

    For example, ``str(MemoryError())`` is empty, and an exception of another library
    may raise when it is shown.
    """
    try:
        text = str(value)
    except Exception:
        text = ""
    return text if text.strip() else type(value).__name__


class PostcommitError(Exception):
    """The root of all errors that postcommit raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # By default a copy, or an error from another process, calls the class with the
        # text alone. The classes below need other arguments, so this would fail and
        # hide the error.
        kind, arguments, *state = cast(tuple[Any, ...], super().__reduce__())
        return (_restored, (kind, arguments), *state)


def _restored(kind: type[PostcommitError], arguments: tuple[Any, ...]) -> Any:
    error = kind.__new__(kind)
    super(PostcommitError, error).__init__(*arguments)
    return error


class OptionError(PostcommitError, ValueError):
    """The value of an option can never work.

    `name` is the option's name, `value` what was given (without a password, see
    `masked`), `reason` what is wrong with it. `value` is None if `MISSING` is passed.
    The text then leaves the value out. An error without a `name` is about all options.
    """

    def __init__(self, name: str, value: object, reason: str) -> None:
        self.name = name
        self.value: object = None if value is MISSING else masked(name, value)
        self.reason = reason
        given = name if value is MISSING else f"{name}={shown(self.value)}"
        super().__init__(f"{given}: {reason}" if given else reason)


class ConfigError(OptionError):
    """An option in a file or the environment that can never work.

    `source` is the file or variable. The other arguments are those of `OptionError`.
    """

    def __init__(self, source: str, name: str, value: object, reason: str) -> None:
        super().__init__(name, value, reason)
        self.source = source
        self.args: tuple[Any, ...] = (f"{source}: {self}",)


class AddressError(PostcommitError, ValueError):
    """An address that cannot be in an envelope, or an envelope without addresses.

    `address` is the value that was refused, or None if addresses are missing. `reason`
    says what is wrong.
    """

    def __init__(self, address: object, reason: str) -> None:
        self.address = address
        self.reason = reason
        named = f"{shown(address)} is not an envelope address: "
        super().__init__(reason if address is None else named + reason)


class AddressTypeError(AddressError, TypeError):
    """An address that is neither str nor bytes."""


class MessageError(PostcommitError, ValueError):
    """A message that cannot be sent without changes. `reason` says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class MessageTypeError(MessageError, TypeError):
    """A message that is not bytes, a str or an email.message.Message."""


class QueueError(PostcommitError, OSError):
    """A queue, or an entry in it, cannot be worked with.

    `path` is the folder, file or URL, `reason` what is wrong and what to do.
    ``errno`` and ``strerror`` are those of the cause, or None. `scope` is ``"queue"``
    if every other entry would fail in the same way, and ``"entry"`` otherwise. By
    default the cause decides. `is_full` says that the disk is full, so that removed
    entries make room.
    """

    def __init__(
        self,
        path: str,
        reason: str,
        cause: OSError | None = None,
        *,
        scope: Literal["entry", "queue"] | None = None,
    ) -> None:
        path = without_userinfo(path) if is_url(path) else path
        self.path = path
        self.reason = reason
        self._scope = scope
        if cause is None:
            super().__init__(f"{path}: {reason}")
        else:
            super().__init__(cause.errno, reason, path)

    def __str__(self) -> str:
        # Without the number that OSError begins with.
        return f"{self.path}: {self.reason}"

    @property
    def scope(self) -> Literal["entry", "queue"]:
        """``"queue"`` if every other entry would meet the same error."""
        if self._scope is not None:
            return self._scope
        return "queue" if self.errno in _OF_ALL_ENTRIES else "entry"

    @property
    def is_full(self) -> bool:
        """True if the disk is full."""
        return self.errno in _FULL


class MaildirError(QueueError, ValueError):
    """A Maildir cannot be opened or created.

    It is a ValueError as well, as in zope.sendmail.
    """


class NotAMaildirError(MaildirError, NotADirectoryError):
    """The path is not a folder with the folders ``tmp``, ``new`` and ``cur``."""


class NotAQueueError(QueueError, ValueError):
    """The Maildir is not a queue: it may be a person's mailbox."""


class PublishError(QueueError):
    """The commit was decided, but the entries are not safely in the queue.

    `names` are the entries that are still prepared: the files in ``tmp`` that could not
    be moved, or the ids of rows. They are complete and durable, and ``postcommit
    recover`` sends or drops them. If `names` is empty, all files were moved, but the
    moves may not be on the disk yet. `reason` replaces this text.
    """

    def __init__(
        self,
        path: str,
        names: tuple[str, ...],
        cause: OSError,
        *,
        reason: str | None = None,
    ) -> None:
        self.names = names
        if reason is not None:
            pass
        elif names:
            reason = f"{len(names)} entries stay in doubt, use 'postcommit recover'"
        else:
            reason = "all are in the queue, but a power failure now may undo that"
        super().__init__(path, f"{reason}: {cause}", cause)


class ForkedError(PostcommitError, RuntimeError):
    """A child process tries to commit the mail that its parent has sent."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class EntryError(PostcommitError, ValueError):
    """A file in the queue that is not an entry. `reason` says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class ItemError(PostcommitError, LookupError):
    """An id that does not mean exactly one entry.

    `id` is what was given, `reason` what is wrong with it. If it may mean several
    entries, `choices` has their ids. Otherwise `choices` is empty.
    """

    def __init__(self, id: str, reason: str, choices: tuple[str, ...] = ()) -> None:
        self.id = id
        self.reason = reason
        self.choices = choices
        super().__init__(f"{shown(id)} {reason}")


class MissingExtraError(PostcommitError, ImportError):
    """A part of postcommit needs what only an extra installs.

    `extra` is the extra's name, ``name`` that of the module that is missing.
    """

    def __init__(self, extra: str, module: str) -> None:
        self.extra = extra
        super().__init__(
            f"{module} is missing; install it: pip install 'postcommit[{extra}]'",
            name=module,
        )


class RelayError(PostcommitError, ConnectionError):
    """The relay itself is in trouble, whatever the message.

    `reply` is the relay's reply, or None if it did not answer. `is_lack` says that the
    relay does not offer what is required: STARTTLS, or a login.
    """

    is_lack = False

    def __init__(self, reason: str, reply: Reply | None = None) -> None:
        self.reason = reason
        self.reply = reply
        super().__init__(reason)

    @classmethod
    def of(cls, error: BaseException, reason: str = "") -> RelayError:
        """Return `error` if it is one, otherwise an error that has it as its cause.

        The default for `reason` is the class and the text of `error`.
        """
        if isinstance(error, RelayError):
            return error
        failure = cls(reason or f"{type(error).__name__}: {text_of(error)}")
        failure.__cause__ = error
        return failure


class TooManyConnections(RelayError):
    """The relay refuses one more connection while others of the mailer are in use."""


class DeliveryError(PostcommitError, OSError):
    """Not every recipient was sent. See `IDeliveryReport.raise_for_failure`.

    `report` is the whole report.
    """

    def __init__(self, report: DeliveryReport, reason: str) -> None:
        self.report = report
        super().__init__(reason)
