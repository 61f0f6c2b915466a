"""Run all benchmarks, one after another, and write the pages of their results.

``tox -e bench``, or ``tox -e bench -- --only drain --rounds 5``. The other runs keep
their results. All of them take about an hour. With ``--against CHECKOUT`` they compare
this checkout with another one, and the pages stay as they are.
"""
from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from types import ModuleType

from tests.benchmarks import broker
from tests.benchmarks import bulk
from tests.benchmarks import drain
from tests.benchmarks import enqueue
from tests.benchmarks import idle
from tests.benchmarks import import_time
from tests.benchmarks import latency
from tests.benchmarks import machine
from tests.benchmarks import mixed
from tests.benchmarks import report
from tests.benchmarks import rowclaims
from tests.benchmarks import rowdepth
from tests.benchmarks import rowdrain
from tests.benchmarks import rowenqueue
from tests.benchmarks import scale
from tests.benchmarks import store
from tests.benchmarks import together
from tests.benchmarks.harness import print_ratios
from tests.benchmarks.harness import print_tables


# A program for each run, and its arguments. ``SECTIONS`` has the text of each run.
RUNS: dict[str, tuple[ModuleType, list[str]]] = {
    "drain": (drain, ["--size", "1024", "4096", "102400", "1048576"]),
    "tls": (drain, ["--run", "tls", "--tls", "starttls", "implicit"]),
    "distance": (drain, ["--run", "distance", "--delay", "20", "100"]),
    "enqueue": (enqueue, []),
    "bulk": (bulk, []),
    "latency": (latency, []),
    "idle": (idle, []),
    "mixed": (mixed, []),
    "scale": (scale, []),
    "together": (together, []),
    "rowenqueue": (rowenqueue, []),
    "rowdrain": (rowdrain, []),
    "rowdepth": (rowdepth, []),
    "rowclaims": (rowclaims, []),
    "broker": (broker, []),
    "import": (import_time, []),
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--only", nargs="+", default=list(RUNS), choices=RUNS)
    made.add_argument("--rounds", type=int, help="default: each program's own")
    made.add_argument(
        "--quick", action="store_true", help="only show that each runs; keep nothing"
    )
    made.add_argument("--folder", default=".", help="where queues are made")
    made.add_argument(
        "--against",
        default="",
        metavar="CHECKOUT",
        help="compare with the version in another checkout; keep nothing",
    )
    made.add_argument("--docs", type=Path, default=Path("docs"))
    return made


def measure(name: str, options: argparse.Namespace) -> store.Run:
    program, arguments = RUNS[name]
    if name != "enqueue":
        arguments = [*arguments, "--folder", options.folder]
    if options.rounds:
        arguments = [*arguments, "--rounds", str(options.rounds)]
    if options.quick:
        arguments = [*arguments, "--quick"]
    if options.against:
        arguments = [*arguments, "--against", options.against]
    asked = program.parser().parse_args(arguments)
    today = datetime.date.today().isoformat()
    on = machine.describe(options.folder)
    return store.Run(today, machine.commit(), asked.rounds, on, program.run(asked))


def main() -> None:
    options = parser().parse_args()
    path = options.docs / report.RESULTS
    for name in options.only:
        run = measure(name, options)
        print_tables(run.results)
        if options.against:
            print_ratios(run.results)
        elif not options.quick:
            # At once: what was measured is not lost when the next one fails.
            runs = store.load(path)
            runs[name] = run
            store.save(path, runs)
    if not (options.quick or options.against):
        report.write(options.docs)


if __name__ == "__main__":
    main()
