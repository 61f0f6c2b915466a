"""One worker of a drain, without threads: its results are noted, nothing pauses."""
from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from collections.abc import Sequence
from operator import sub
from typing import Any
from typing import NamedTuple

from postcommit._drain.breaker import Breaker
from postcommit._drain.contract import IClaim
from postcommit._drain.schedule import Schedule
from postcommit._drain.settle import Settler
from postcommit._drain.worker import Worker
from postcommit.interfaces import IMailer
from postcommit.interfaces import Tally


class Result(NamedTuple):
    """What the breaker was told after an attempt, and what was counted before."""

    tally: Tally = Tally()
    trouble: Any = None
    silent: bool = False


class NotingBreaker(Breaker):
    """A breaker that only takes notes, and stays closed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.results: list[Result] = []
        self.settler: Settler
        self._counted = Tally()

    def note(
        self, trouble: object, *, answered: bool = False, since: int | None = None
    ) -> None:
        tally = self.settler.tally
        new = Tally(*map(sub, tally, self._counted))
        self._counted = tally
        silent = trouble is None and not answered
        self.results.append(Result(new, trouble, silent))


class Bench:
    """A worker on the queue `store`; close it at the end."""

    def __init__(
        self,
        store: Any,
        mailer: Any,
        schedule: Schedule,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.store = store
        self.consumer = store.consumer(schedule, clock)
        self.breaker = NotingBreaker(store.name)
        mailer_: IMailer = mailer
        self.settler = Settler(self.consumer, mailer_, schedule, self.breaker)
        self.breaker.settler = self.settler
        self.worker = Worker(
            self.consumer, mailer_, self.breaker, self.settler, self._take
        )
        self._only: Sequence[str] | None = None

    def close(self) -> None:
        self.consumer.close()

    def work(self, paths: Sequence[str] | None = None) -> list[Result]:
        """Have the worker work once on what is due, or on just these `paths`."""
        self._only = paths
        self.breaker.skipped = frozenset()
        self.breaker.results = []
        self.worker.work(10**6)
        return self.breaker.results

    def abandon(self) -> Tally:
        """Settle for the last time; return what was counted by it."""
        before = self.settler.tally
        self.settler.abandon()
        return Tally(*map(sub, self.settler.tally, before))

    def _take(self, most: int, avoid: Collection[Hashable] = ()) -> list[IClaim]:
        if self._only is not None:
            wanted = {_key(path) for path in self._only}
            others = {_key(path) for path in self.store.maildir} - wanted
            avoid = {*avoid, *others}
        claims: list[IClaim] = self.consumer.take(most, avoid)
        return claims


def _key(path: str) -> str:
    return os.path.basename(path).partition(":2,")[0]
