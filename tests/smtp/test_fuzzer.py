"""Dialogues with a relay that misbehaves; an oracle compares reports and record.

``POSTCOMMIT_DIALOGUES`` is how many dialogues are played, and ``POSTCOMMIT_SEED`` the
seed of the first one. To play one of them again, and see all that was said::

    python -m tests.fuzzer.oracle SEED
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import postcommit
from tests.fuzzer.oracle import run


ROOT = Path(__file__).parent.parent.parent

DIALOGUES = int(os.environ.get("POSTCOMMIT_DIALOGUES", "2000"))
FIRST = int(os.environ.get("POSTCOMMIT_SEED", "0"))

# Defects that the oracle has to find: a module, a text in it, and the text instead.
MUTANTS = {
    "sent although the final dot had no reply": (
        "_smtp/dialogue.py",
        "account.settle(transmission.indices, Status.UNCERTAIN, ",
        "account.settle(transmission.indices, Status.SENT, ",
    ),
    "outcomes that are void": (
        "_smtp/dialogue.py",
        "        self.account.reopen(self.indices)\n",
        "",
    ),
    "a rejected recipient is forgotten": (
        "_smtp/dialogue.py",
        "Outcome(self.recipients[index], status, reply)",
        "Outcome(self.recipients[index], Status.SENT, reply)",
    ),
    "a stray reply is not noticed": (
        "_smtp/mailer.py",
        "if stray := connection.stray:\n",
        "if stray := '':\n",
    ),
    "dots are not doubled": (
        "_smtp/dialogue.py",
        'stuffed.replace(b"\\n.", b"\\n..")',
        "stuffed",
    ),
}


def test_every_report_is_true():
    seen = Counter()
    wrong = []
    for plan, oracle, _ in run(range(FIRST, FIRST + DIALOGUES)):
        seen += oracle.seen
        if oracle.faults:
            wrong.append((str(plan), oracle.faults))
    assert wrong == []
    # Otherwise the dialogues would not show what they are for.
    assert set(seen) == {"sent", "deferred", "rejected", "uncertain", "relay"}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_oracle_finds_a_mutant(tmp_path, mutant):
    module, good, bad = MUTANTS[mutant]
    package = tmp_path / "postcommit"
    shutil.copytree(Path(postcommit.__file__).parent, package)
    text = (package / module).read_text()
    assert text.count(good) == 1
    (package / module).write_text(text.replace(good, bad))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzzer.oracle", "0", "400", "--first"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert str(package) in done.stdout
