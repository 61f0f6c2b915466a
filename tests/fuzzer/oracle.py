"""Plays dialogues, and compares what the mailer reports with what the relay took."""
from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import postcommit
from postcommit._mail.message import to_crlf
from postcommit._smtp.mailer import SMTPMailer
from postcommit.interfaces import IDeliveryReport
from tests.fuzzer.plan import Mail
from tests.fuzzer.plan import Plan
from tests.fuzzer.relay import Record
from tests.fuzzer.relay import Relay
from tests.support.certificates import Authority
from tests.support.mailers import send_all


# Times that a message is tried, as a queue would.
_ATTEMPTS = 3

# Dialogues at a time, because some wait.
_LANES = 6

# Dialogues with the same relay, one after the other.
_LOT = 20

# Seconds after which a dialogue hangs.
_PATIENCE = 60.0


class Oracle:
    """Compares the reports of one dialogue with the relay's record.

    `faults` has what is wrong, in words; `seen` counts the outcomes.
    """

    def __init__(self, plan: Plan, record: Record) -> None:
        self._plan = plan
        self._record = record
        self._most: Counter[tuple[str, str]] = Counter()
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []

    def compare(
        self,
        mails: list[Mail],
        reports: list[IDeliveryReport],
        before: Counter[tuple[str, str]],
    ) -> list[Mail]:
        """Check the reports of one attempt; return what is to be tried again.

        `before` is what the relay had taken before the attempt.
        """
        if len(reports) != len(mails):
            self.faults.append(f"{len(reports)} reports for {len(mails)} messages")
            return []
        again = []
        for mail, report in zip(mails, reports, strict=True):
            left = tuple(self._check(mail, report, before))
            if left:
                again.append(Mail(mail.sender, left, mail.message))
        return again

    def _check(
        self, mail: Mail, report: IDeliveryReport, before: Counter[tuple[str, str]]
    ) -> Iterator[str]:
        if report.relay_failure is not None:
            statuses = dict.fromkeys(mail.recipients, "relay")
            statuses |= {o.recipient: o.status.value for o in report.outcomes}
            if report.outcomes and len(mail.recipients) <= self._plan.recipients:
                self.faults.append(f"{mail.sender}: a relay failure with outcomes")
        else:
            statuses = {o.recipient: o.status.value for o in report.outcomes}
            told = [outcome.recipient for outcome in report.outcomes]
            if told != list(mail.recipients):
                self.faults.append(f"{mail.sender}: outcomes for {told}")
                return
        for recipient, status in statuses.items():
            key = (mail.sender, recipient)
            self.seen[status] += 1
            taken = self._record.taken[key] - before[key]
            if taken not in _ALLOWED[status]:
                self.faults.append(f"{key} is {status}, and taken {taken} times")
            if status == "rejected" and key not in self._record.refused:
                self.faults.append(f"{key} is rejected, and was never refused")
            if status not in ("sent", "rejected"):
                yield recipient

    def close(self) -> None:
        """Check what was taken, after the last attempt."""
        self.faults += self._record.faults
        for mail in self._plan.mails:
            for content in self._record.contents.get(mail.sender, ()):
                expected = to_crlf(mail.message)
                if not expected.endswith(b"\r\n"):
                    expected += b"\r\n"
                if content != expected:
                    self.faults.append(f"{mail.sender}: the content was changed")


# How often a recipient may have been taken in an attempt with an outcome.
_ALLOWED = {"sent": {1}, "uncertain": {0, 1}, "rejected": {0}, "deferred": {0}}
_ALLOWED["relay"] = {0}


def play(plan: Plan, relay: Relay, cafile: str) -> tuple[Oracle, Record]:
    """Play one dialogue: the messages of `plan`, and again what was not final."""
    record = relay.begin(plan)
    oracle = Oracle(plan, record)
    began = time.monotonic()
    mailer = SMTPMailer(
        "127.0.0.1",
        relay.port,
        tls=plan.tls,
        cafile=None if plan.tls == "none" else cafile,
        timeout=plan.timeout,
        final_timeout=plan.timeout,
        messages_per_connection=plan.messages_per_connection,
        recipients_per_transaction=plan.recipients,
        protocol=plan.protocol,
    )
    mails = plan.mails
    for _ in range(_ATTEMPTS):
        before = Counter(record.taken)
        batch = [(mail.sender, mail.recipients, mail.message) for mail in mails]
        first, second = batch[: plan.first_batch], batch[plan.first_batch :]
        reports = [*send_all(mailer, first), *send_all(mailer, second)]
        mailer.close()
        relay.wait()
        record.transcript += [f"* {report}" for report in reports]
        mails = oracle.compare(mails, reports, before)
        if not mails:
            break
    oracle.close()
    if time.monotonic() - began > _PATIENCE:
        oracle.faults.append("it hung")
    return oracle, record


def run(seeds: Iterable[int]) -> Iterator[tuple[Plan, Oracle, Record]]:
    """Play the dialogues of `seeds`, several at a time, and yield what came of each."""
    log = logging.getLogger("postcommit")
    level = log.level
    log.setLevel(logging.CRITICAL)  # every failure would be logged
    over = threading.Event()

    def lane(mine: list[int]) -> list[tuple[Plan, Oracle, Record]]:
        with Relay(authority.server()) as relay:
            plans = (Plan(seed) for seed in mine if not over.is_set())
            return [(plan, *play(plan, relay, authority.cafile)) for plan in plans]

    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(_LANES) as pool,
    ):
        authority = Authority(Path(folder))
        rest = iter(seeds)
        lots = iter(lambda: list(itertools.islice(rest, _LOT)), [])
        try:
            for results in pool.map(lane, lots):
                yield from results
        finally:
            over.set()
            log.setLevel(level)


def main(first: int, last: int, *, is_enough: bool) -> int:
    """Play, and print what is wrong; return how many dialogues were.

    With `is_enough`, the first one that is wrong is enough.
    """
    print(f"playing {postcommit.__file__}")
    wrong = played = 0
    seen: Counter[str] = Counter()
    for plan, oracle, record in run(range(first, last)):
        played += 1
        seen += oracle.seen
        if last - first == 1:
            print(*record.transcript, sep="\n")
        if oracle.faults:
            wrong += 1
            print(plan, *oracle.faults, sep="\n    ")
            if is_enough:
                break
    print(f"{played} dialogues, {wrong} of them wrong; {dict(seen)}")
    return wrong


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("seed", type=int)
    words.add_argument("end", type=int, nargs="?", help="the seed to stop before")
    words.add_argument("--first", action="store_true", help="stop at the first fault")
    told = words.parse_args()
    last = told.seed + 1 if told.end is None else told.end
    sys.exit(main(told.seed, last, is_enough=told.first) > 0)
