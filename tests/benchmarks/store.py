"""The results of all runs in one file, each with the machine that it ran on."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

from tests.benchmarks.harness import Result


@dataclass
class Run:
    """The results of one run: its date, its commit, its rounds and its machine."""

    date: str
    commit: str
    rounds: int
    machine: dict[str, str]
    results: Sequence[Result] = field(default_factory=list)


def load(path: Path) -> dict[str, Run]:
    """Return all runs in the file, by name. Without the file there are none."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return {
        name: Run(**{**run, "results": [Result(**one) for one in run["results"]]})
        for name, run in stored.items()
    }


def save(path: Path, runs: dict[str, Run]) -> None:
    """Write the file. Each result is a line, so that differences are short."""
    parts = []
    for name, run in sorted(runs.items()):
        about = {
            "date": run.date,
            "commit": run.commit,
            "rounds": run.rounds,
            "machine": run.machine,
        }
        head = json.dumps(about)[1:-1]
        lines = ",\n".join(result.line() for result in run.results)
        parts.append(f'{json.dumps(name)}: {{{head}, "results": [\n{lines}\n]}}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
