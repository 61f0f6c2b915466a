"""A message with its envelope, as it waits in a queue."""
from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field


@dataclass(slots=True)
class Entry:
    """One message with its envelope, and what is known of earlier attempts."""

    sender: str
    recipients: tuple[str, ...]
    message: bytes = field(repr=False)
    attempts: int = 0
    last_reply: str = ""
    uncertain: int = 0
