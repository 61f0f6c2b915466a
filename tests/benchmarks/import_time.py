"""How long `import postcommit` takes, beside importing its Zope dependencies.

``python -m tests.benchmarks.import_time``: medians of processes that run in
turn, less what an interpreter takes that imports nothing.
"""
from __future__ import annotations

import statistics
import subprocess
import sys
import time


_NOTHING = "pass"
_DEPENDENCIES = (
    "import transaction, zope.interface, zope.schema, zope.component, zope.event,"
    " zope.i18nmessageid"
)
_PACKAGE = "import postcommit"
_NAMES = "import postcommit; postcommit.QueuedMailDelivery; postcommit.SMTPMailer"

_ROUNDS = 15


def main() -> None:
    times: dict[str, list[float]] = {}
    for _ in range(_ROUNDS):
        for code in (_NOTHING, _DEPENDENCIES, _PACKAGE, _NAMES):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.setdefault(code, []).append(time.perf_counter() - started)
    median = {code: statistics.median(taken) for code, taken in times.items()}
    base = median[_NOTHING]
    whole = median[_DEPENDENCIES] - base
    for code in (_DEPENDENCIES, _PACKAGE, _NAMES):
        took = median[code] - base
        print(f"{took * 1000:7.1f} ms  {took / whole:5.2f}  {code}")


if __name__ == "__main__":
    main()
