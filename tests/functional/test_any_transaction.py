"""Any transaction that hypothesis comes up with, against a model in memory."""
from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from tests.support.transactions import AFTER
from tests.support.transactions import BEFORE
from tests.support.transactions import STAGES
from tests.support.transactions import Mailer
from tests.support.transactions import PartnerFailed
from tests.support.transactions import accepted
from tests.support.transactions import explicit
from tests.support.transactions import failing
from tests.support.transactions import files
from tests.support.transactions import mail

from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit._mail.message import message_id_of


KINDS = ("queued", "direct")

STEPS = st.one_of(
    st.sampled_from(KINDS),
    st.just("savepoint"),
    st.tuples(st.just("rollback"), st.integers(0, 5)),
)

ENDINGS = st.one_of(
    st.sampled_from(["commit", "abort"]),
    st.tuples(st.sampled_from(STAGES), st.sampled_from([BEFORE, AFTER])),
)

TRANSACTIONS = st.lists(st.tuples(st.lists(STEPS, max_size=12), ENDINGS), max_size=4)


class Model:
    """What is sent, if all is as it should be."""

    def __init__(self) -> None:
        self.sent: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.pending: list[tuple[str, str]] = []
        self.savepoints: list[int] = []

    def rollback(self, number: int) -> None:
        del self.pending[self.savepoints[number] :]
        del self.savepoints[number + 1 :]

    def end(self, *, sends: bool) -> None:
        for kind, message_id in self.pending if sends else ():
            self.sent[kind].append(message_id)
        self.pending, self.savepoints = [], []


class World:
    """The same steps, with deliveries, files and `transaction`."""

    def __init__(self, queue: Path) -> None:
        self.queue = queue
        self.manager = explicit()
        self.mailer = Mailer()
        self.deliveries: dict[str, Any] = {
            "queued": QueuedMailDelivery(str(queue), transaction_manager=self.manager),
            "direct": DirectMailDelivery(
                self.mailer, transaction_manager=self.manager
            ),
        }
        self.savepoints: list[Any] = []
        self.count = 0

    def send(self, kind: str) -> str:
        self.count += 1
        message = mail(f"{self.count}@example.org")
        message_id: str = self.deliveries[kind].send(
            "ann@example.org", "bob@example.org", message
        )
        return message_id

    def rollback(self, number: int) -> None:
        self.savepoints[number].rollback()
        del self.savepoints[number + 1 :]

    def end(self, ending: Any) -> None:
        self.savepoints = []
        if isinstance(ending, str):
            getattr(self.manager, ending)()
            return
        self.manager.get().join(failing(*ending))
        try:
            self.manager.commit()
        except PartnerFailed:
            self.manager.abort()

    @property
    def sent(self) -> dict[str, list[str]]:
        assert not [name for name in files(self.queue) if not name.startswith("new/")]
        direct = [message_id_of(message) for _, _, message in self.mailer.sent]
        return {"queued": accepted(self.queue), "direct": direct}


@settings(max_examples=100, deadline=None)
@given(TRANSACTIONS)
def test_what_is_sent_is_what_was_committed(transactions: Any) -> None:
    folder = tempfile.mkdtemp()
    try:
        world, model = World(Path(folder, "queue")), Model()
        for steps, ending in transactions:
            world.manager.begin()
            for step in steps:
                _take(step, world, model)
            world.end(ending)
            model.end(sends=ending in ("commit", ("tpc_finish", AFTER)))
            assert world.sent == model.sent
    finally:
        shutil.rmtree(folder)


def _take(step: Any, world: World, model: Model) -> None:
    if step in KINDS:
        model.pending.append((step, world.send(step)))
    elif step == "savepoint":
        world.savepoints.append(world.manager.savepoint())
        model.savepoints.append(len(model.pending))
    elif step[1] < len(world.savepoints):
        world.rollback(step[1])
        model.rollback(step[1])
