"""The message that is enqueued: 4 KB. Its module imports nothing."""
from __future__ import annotations


MESSAGE = (
    b"From: sender@example.org\nTo: recipient@example.org\nSubject: x\n"
    b"Message-Id: <1@example.org>\nDate: Mon, 23 Nov 2026 12:00:00 +0000\n\n"
) + b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\n" * 62
