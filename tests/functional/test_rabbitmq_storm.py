"""Mail through a broker while publisher, receiver and broker are killed.

Nothing may be lost. In the first half of the kills, all that arrives waits on the mail
node, and no copy of it may be accepted. In the second half it is sent at once, so a
copy of what was in flight at a kill is not recognised. These are counted.

``POSTCOMMIT_STORM=10000/100`` is 10,000 mails and 100 kills.
"""
from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.functional.rabbitmq import Node
from tests.functional.rabbitmq import ready
from tests.functional.rabbitmq_children import publish
from tests.functional.rabbitmq_children import receive
from tests.support.children import running
from tests.support.queues import RECIPIENTS
from tests.support.queues import SENDER
from tests.support.service import eventually

from postcommit._mail.message import message_id_of
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.store import Store


MAILS, KILLS = map(int, os.environ.get("POSTCOMMIT_STORM", "2000/20").split("/"))

# Maximum number of seconds between the first sign of work and a kill.
_LATEST = 0.2


class Child:
    """A process that is started again after each kill."""

    def __init__(self, function: Callable[..., None], *args: str) -> None:
        self._function, self._args = function, args
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        self._process: subprocess.Popen[str] = self._stack.enter_context(
            running(self._function, *self._args)
        )

    def kill(self) -> None:
        self._stack.close()
        self._process.wait()

    def kill_and_start(self) -> None:
        self.kill()
        self.start()


class MailNode:
    """Takes what has arrived out of the queue, as a processor does."""

    def __init__(self, path: str) -> None:
        self.store = Store(path)
        self.arrived: Counter[str] = Counter()
        self.seen = 0

    def has_grown(self) -> bool:
        """Return whether something has arrived since the last call."""
        before, self.seen = self.seen, len(os.listdir(self.store.maildir.new))
        return self.seen > before

    def take(self) -> None:
        for path in list(self.store.maildir.paths("new")):
            entry = parse_entry(Path(path).read_bytes())
            self.arrived[message_id_of(entry.message)] += 1
            os.unlink(path)
        self.seen = 0


@pytest.mark.slow
def test_nothing_is_lost(node: Node, queue: str, tmp_path: Path) -> None:
    web = Store(str(tmp_path / "web"))
    mail = MailNode(str(tmp_path / "mail"))
    eventually(lambda: node.keeps(queue))
    publisher = Child(publish, node.url(), queue, web.path)
    receiver = Child(receive, node.url(), queue, mail.store.path)
    dice = random.Random(26)
    kinds: Counter[str] = Counter()
    staged = 0
    try:
        for kill in range(1, KILLS + 1):
            while staged < MAILS * kill // KILLS:
                accept(web, staged)
                staged += 1
            eventually(mail.has_grown)
            time.sleep(dice.uniform(0, _LATEST))  # the moment of the kill is the test
            # The broker takes seconds to start again.
            kind = "broker" if kill % 10 == 5 else dice.choice(["web", "mail"])
            kinds[kind] += 1
            if kind == "broker":
                node.stop()
                node.start_again()
            else:
                (publisher if kind == "web" else receiver).kill_and_start()
            if kill >= KILLS // 2:
                mail.take()
            if kill == KILLS // 2:
                assert max(mail.arrived.values()) == 1

        def is_over() -> bool:
            mail.take()
            return len(mail.arrived) == MAILS and not list(web.maildir)

        eventually(is_over)
    finally:
        publisher.kill()
        receiver.kill()
    assert ready(node, queue) == 0
    copies = sum(mail.arrived.values()) - MAILS
    print(f"\n{MAILS} mails, kills: {dict(kinds)}, lost: 0, twice: {copies}")
    assert set(mail.arrived) == {f"{number}@storm" for number in range(MAILS)}
    # Each kill can repeat what was received and sent, and not yet acknowledged, or what
    # was published and not yet confirmed.
    assert copies <= KILLS * (128 + 4 * 64)


def accept(store: Store, number: int) -> None:
    message = b"Message-Id: <%d@storm>\n\n%b\n" % (number, b"x" * 1000)
    store.stage(SENDER, RECIPIENTS, [message]).commit()
