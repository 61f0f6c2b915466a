"""Runs contestants in turn, and collects what they tell.

A *contestant* is a command that does a piece of work in a process of its own and
prints one line of JSON: its figures, each with a unit. They run interleaved, A B C
C B A, because the speed of a shared machine drifts, and because what ran just before
leaves its traces: a disk that is busy, or rested.

A *program* is a module here with ``parser()`` and ``run(options)``, which returns
a list of `Result`; `program` makes a command line of both. ``--json FILE`` appends
the results to a file, one a line. ``tests.benchmarks.__main__`` runs all programs,
and ``tests.benchmarks.report`` makes the page of their results.
"""
from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field


# What a contestant is: the package, one to be compared with, or the limit.
OURS, PEER, LIMIT = "ours", "peer", "limit"


@dataclass(frozen=True)
class Result:
    """One figure of one contestant: a value for each round.

    `run` is what was measured ("drain"), `case` how it was varied
    (``{"size": 4096}``); results of one run and case are compared with each
    other. Where a figure is a distribution ("latency"), `values` are the samples of
    all rounds, or evenly spaced quantiles of them.
    """

    run: str
    subject: str
    figure: str
    unit: str
    values: Sequence[float]
    kind: str = OURS
    case: dict[str, float | str] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def line(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclass
class Contestant:
    """`prepare` makes the work, out of the measured time, and gives the command."""

    name: str
    prepare: Callable[[], list[str]]
    kind: str = OURS
    case: dict[str, float | str] = field(default_factory=dict)

    def run(self) -> dict[str, tuple[str, float | list[float]]]:
        """Figure to unit and value, as `tell` printed them."""
        command = self.prepare()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{self.name}: {command} ended with {done.returncode}")
        told = json.loads(done.stdout.splitlines()[-1])
        return {figure: (unit, value) for figure, (unit, value) in told.items()}


# In a program


def interleave(
    run: str, contestants: Sequence[Contestant], rounds: int
) -> list[Result]:
    """Run all of them in turn, `rounds` times; a result for each of their figures."""
    told: list[dict[str, tuple[str, list[float]]]] = [{} for _ in contestants]
    turns = list(zip(contestants, told, strict=True))
    for number in range(1, rounds + 1):
        for contestant, figures in turns:
            for figure, (unit, value) in contestant.run().items():
                values = figures.setdefault(figure, (unit, []))[1]
                values += value if isinstance(value, list) else [value]
        turns.reverse()
        print(f"{run}: round {number} of {rounds}", file=sys.stderr)
    return [
        Result(run, one.name, figure, unit, values, one.kind, one.case)
        for one, figures in zip(contestants, told, strict=True)
        for figure, (unit, values) in figures.items()
    ]


def versions(contestants: Sequence[Contestant], checkout: str) -> list[Contestant]:
    """Our own contestants twice: with this checkout's ``src``, and with another's.

    `checkout` is the folder of the other one, which may be an older commit. Without
    it the contestants are returned as they are. Raises SystemExit if Python would
    not import the package from there.
    """
    if not checkout:
        return list(contestants)
    ours = [one for one in contestants if one.kind == OURS]
    places = {"here": os.getcwd(), "there": os.path.abspath(checkout)}
    for place in places.values():
        _check_version(place)
    return [
        dataclasses.replace(
            one,
            name=f"{one.name}, {name}",
            prepare=functools.partial(_at, one.prepare, place),
            kind=OURS if name == "here" else PEER,
        )
        for one in ours
        for name, place in places.items()
    ]


def _at(prepare: Callable[[], list[str]], checkout: str) -> list[str]:
    path = os.pathsep.join([os.path.join(checkout, "src"), os.getcwd()])
    return ["env", f"PYTHONPATH={path}", *prepare()]


def _check_version(checkout: str) -> None:
    show = [sys.executable, "-c", "import postcommit; print(postcommit.__file__)"]
    command = _at(lambda: show, checkout)
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip()
    source = os.path.join(checkout, "src")
    if not shown.startswith(source + os.sep):
        raise SystemExit(f"{checkout}: no postcommit in its src, but {shown!r}")
    # As pip does when it installs a package. Otherwise each process would compile the
    # modules, and its peak memory would be that of the compiler.
    subprocess.run([sys.executable, "-m", "compileall", "-q", source], check=True)


def print_ratios(results: Sequence[Result]) -> None:
    """Print each figure of this checkout divided by that of the other one.

    A ratio is the median of the rounds' ratios, with the lowest and the highest. For
    a distribution of samples it is the ratio of the medians.
    """
    ours = [one for one in results if one.subject.endswith(", here")]
    if not ours:
        raise SystemExit(f"{results[0].run} does not compare checkouts")
    for one in ours:
        subject = one.subject.removesuffix("here") + "there"
        key = (one.run, subject, one.figure, one.case)
        [other] = [r for r in results if (r.run, r.subject, r.figure, r.case) == key]
        if one.figure == "latency":
            ratios = [one.median / other.median]
        else:
            ratios = [a / b for a, b in zip(one.values, other.values, strict=True)]
        middle = statistics.median(ratios)
        case = " ".join(f"{name} {value}" for name, value in one.case.items())
        print(
            f"{one.run:9} {one.figure:15} {middle:5.2f}"
            f"  ({min(ratios):.2f} to {max(ratios):.2f})  {subject[:-7]} {case}"
        )


def common_options(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with what every program takes.

    ``quick`` asks for one round of the least work that shows that it runs.
    """
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--quick", action="store_true", help="little work, one round")
    made.add_argument("--folder", default=".", help="where queues are made")
    made.add_argument("--json", metavar="FILE", help="append the results to FILE")
    made.add_argument(
        "--against",
        default="",
        metavar="CHECKOUT",
        help="compare only ourselves, with the version in another checkout",
    )
    made.add_argument("--contestant", help=argparse.SUPPRESS)
    return made


def program(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], list[Result]],
    contest: Callable[[argparse.Namespace], None] | None = None,
) -> None:
    """The command line of a program: run it, print tables, write ``--json``.

    With ``--contestant`` it is a contestant itself, and `contest` is what it does.
    """
    options = parser.parse_args()
    if options.contestant and contest:
        return contest(options)
    results = run(options)
    print_tables(results)
    if options.against:
        print_ratios(results)
    if options.json:
        with open(options.json, "a") as file:
            file.writelines(result.line() + "\n" for result in results)


def print_tables(results: Sequence[Result]) -> None:
    """A table for each run and case: contestants by figures, medians."""
    tables: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        case = [f"{name} {value}" for name, value in result.case.items()]
        subjects = tables.setdefault(", ".join([result.run, *case]), {})
        subjects.setdefault(result.subject, []).append(result)
    for title, subjects in tables.items():
        print(f"\n{title}")
        for subject, figures in subjects.items():
            cells = [f"{one.figure} {one.median:.4g} {one.unit}" for one in figures]
            print(f"  {subject:34}", "  ".join(f"{cell:26}" for cell in cells))
