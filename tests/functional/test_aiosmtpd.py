"""From one process through another to aiosmtpd."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from tests.support.ports import free_port


SENDER = """
import sys
import transaction
from postcommit import QueuedMailDelivery

delivery = QueuedMailDelivery(sys.argv[1])
with transaction.manager:
    delivery.send("shop@example.org", ["ann@example.org", "bob@example.org"],
                  "Subject: committed\\n\\nW\\u00f6rter.\\n")
with transaction.manager:
    delivery.send("shop@example.org", "ann@example.org", "Subject: aborted\\n\\n")
    transaction.doom()
"""

PROCESSOR = """
import sys
from postcommit import QueueProcessor, SMTPMailer

processor = QueueProcessor(sys.argv[1], SMTPMailer("127.0.0.1", int(sys.argv[2])))
print(*processor.flush())
"""


class Mailbox:
    """A handler for aiosmtpd that keeps what it gets."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 Kept"


@pytest.fixture
def server() -> Iterator[Controller]:
    controller = Controller(Mailbox(), hostname="127.0.0.1", port=free_port())
    controller.start()
    yield controller
    controller.stop()


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_what_is_committed_in_one_process_is_delivered_by_another(
    server: Controller, tmp_path: Path
) -> None:
    queue = str(tmp_path / "queue")
    done = run(SENDER, queue)
    assert "DoomedTransaction" in done.stderr
    told = run(PROCESSOR, queue, str(server.port))
    assert told.stdout == "2 0 0 0\n", told.stderr
    [envelope] = server.handler.envelopes
    assert envelope.mail_from == "shop@example.org"
    assert envelope.rcpt_tos == ["ann@example.org", "bob@example.org"]
    message = message_from_bytes(envelope.content)
    assert message["Subject"] == "committed"
    assert envelope.content.endswith("\r\n\r\nWörter.\r\n".encode())
