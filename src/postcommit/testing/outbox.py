"""The mail that was sent: parsed messages, each with its envelope."""
from __future__ import annotations

import functools
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes
from email import policy
from email.message import EmailMessage
from typing import TYPE_CHECKING
from typing import ClassVar
from typing import overload


if TYPE_CHECKING:
    from postcommit.testing.mailer import RecordingMailer


@dataclass(frozen=True)
class Mail:
    """One message, as a relay accepted it.

    `sender` and `recipients` are the envelope, without refused recipients. `data` is
    the message in bytes. `not_before`, `expires` and `bulk` are what was given to
    `send`; times are in UTC.
    """

    sender: str
    recipients: tuple[str, ...]
    message_id: str
    data: bytes
    not_before: datetime | None = None
    expires: datetime | None = None
    bulk: bool = False

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(sender={self.sender!r}, subject={self.subject!r},"
            f" recipients={self.recipients!r}, message_id={self.message_id!r})"
        )

    @functools.cached_property
    def message(self) -> EmailMessage:
        """The parsed message. Lines of text end with a line feed."""
        data = self.data.replace(b"\r\n", b"\n")
        return message_from_bytes(data, policy=policy.default)

    @property
    def subject(self) -> str:
        """The decoded subject, or an empty str."""
        return str(self.message["Subject"] or "")

    @property
    def text(self) -> str:
        """The decoded plain text of the body, or an empty str."""
        return self._body("plain")

    @property
    def html(self) -> str:
        """The decoded HTML of the body, or an empty str."""
        return self._body("html")

    def _body(self, subtype: str) -> str:
        body = self.message.get_body((subtype,))
        return str(body.get_content()) if body is not None else ""


class Outbox(Sequence[Mail]):
    """The mails, in the order in which they were sent. Threads may share it.

    `mailer` is the `RecordingMailer` that made the outbox, for example to let it refuse
    a recipient.
    """

    def __init__(self, mailer: RecordingMailer | None = None) -> None:
        self._mailer = mailer
        self._mails: list[Mail] = []

    @property
    def mailer(self) -> RecordingMailer:
        """The mailer that fills this outbox. Raises LookupError without a mailer."""
        if self._mailer is None:
            raise LookupError("this outbox was made without a mailer")
        return self._mailer

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._mails!r}>"

    def __len__(self) -> int:
        return len(self._mails)

    def __iter__(self) -> Iterator[Mail]:
        return iter(self._mails.copy())

    @overload
    def __getitem__(self, index: int) -> Mail: ...

    @overload
    def __getitem__(self, index: slice) -> list[Mail]: ...

    def __getitem__(self, index: int | slice) -> Mail | list[Mail]:
        return self._mails[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Sequence) else other)

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def add(self, mail: Mail) -> None:
        """Add `mail` at the end."""
        self._mails.append(mail)

    def remove(self, mail: Mail) -> None:
        """Remove `mail`, if it is there."""
        if mail in self._mails:
            self._mails.remove(mail)

    def clear(self) -> None:
        """Remove all mails."""
        self._mails.clear()

    def to(self, address: str) -> list[Mail]:
        """Return the mails that have `address` among their recipients."""
        return [mail for mail in self if address in mail.recipients]
