"""How long `import postcommit` takes, beside importing its Zope dependencies.

Less what an interpreter takes that imports nothing.
``python -m tests.benchmarks.import_time --help``.
"""
from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from tests.benchmarks.harness import LIMIT
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import program


_NOTHING = "pass"
_CODE = {
    "its dependencies alone": (
        "import transaction, zope.interface, zope.schema, zope.component, zope.event,"
        " zope.i18nmessageid",
        LIMIT,
    ),
    "import postcommit": ("import postcommit", OURS),
    "delivery and mailer": (
        "import postcommit; postcommit.QueuedMailDelivery; postcommit.SMTPMailer",
        OURS,
    ),
    "zope.sendmail, delivery and mailer": (
        "import zope.sendmail.delivery, zope.sendmail.mailer",
        PEER,
    ),
    "repoze.sendmail, delivery and mailer": (
        "import repoze.sendmail.delivery, repoze.sendmail.mailer",
        PEER,
    ),
}


def parser() -> argparse.ArgumentParser:
    return common_options(__doc__, rounds=15)


def run(options: argparse.Namespace) -> list[Result]:
    nothing: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in _CODE}
    for _ in range(1 if options.quick else options.rounds):
        nothing.append(_milliseconds(_NOTHING))
        for name, (code, _) in _CODE.items():
            times[name].append(_milliseconds(code))
    base = statistics.median(nothing)
    return [
        Result("import", name, "time", "ms", [t - base for t in taken], _CODE[name][1])
        for name, taken in times.items()
    ]


def _milliseconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    program(parser(), run)
