"""A message with its envelope, as it waits in a queue."""
from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field


@dataclass(slots=True)
class Entry:
    """One message with its envelope, and what is known of earlier attempts.

    `uncertain` is the number of attempts in which a recipient was uncertain. If it is
    not the same for all recipients, it is the largest one, and `doubts` has those of
    all, in the order of `recipients`. `not_before` and `expires` are the times between
    which it may be sent, in seconds since the epoch. `name` is the entry's name in its
    queue, which is the same in each attempt.
    """

    sender: str
    recipients: tuple[str, ...]
    message: bytes = field(repr=False)
    attempts: int = 0
    last_reply: str = ""
    uncertain: int = 0
    doubts: tuple[int, ...] = ()
    not_before: float | None = None
    expires: float | None = None
    name: str = field(default="", compare=False, repr=False)

    def uncertain_by_recipient(self) -> dict[str, int]:
        """Return the number of uncertain attempts of each recipient."""
        if self.doubts:
            return dict(zip(self.recipients, self.doubts, strict=True))
        return dict.fromkeys(self.recipients, self.uncertain)
