"""Nothing is skipped in CI, and no test depends on inherited signal dispositions."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.slow import SLOW


ROOT = Path(__file__).parent.parent

SKIPPED = {
    "call": "import pytest\ndef test_it(): pytest.skip('because')",
    "mark": "import pytest\n@pytest.mark.skip(reason='because')\ndef test_it(): pass",
    "fixture": (
        "import pytest\n"
        "@pytest.fixture\n"
        "def it(): pytest.skip('because')\n"
        "def test_it(it): pass"
    ),
    "module": "import pytest\npytest.skip('because', allow_module_level=True)",
}


def run(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    options = ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder)],
        env={**environment, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    for name, code in SKIPPED.items():
        (tmp_path / f"test_{name}.py").write_text(f"{code}\n")
    passing = "import pytest\ndef test_it(): pass\n"
    expected = "@pytest.mark.xfail\ndef test_that(): assert not 'ready'\n"
    (tmp_path / "test_good.py").write_text(passing + expected)
    return tmp_path


def test_what_is_skipped_fails_in_ci_with_its_reason(suite: Path) -> None:
    done = run(suite, CI="true")
    assert done.returncode != 0
    for name in SKIPPED:
        line = rf"skipped in CI: .*test_{name}.py.*because"
        assert re.search(line, done.stdout), name
    counts = done.stdout.splitlines()[-1]
    assert " skipped" not in counts
    # What is expected to fail does not.
    assert "1 passed, 1 xfailed" in counts


def test_elsewhere_it_is_skipped(suite: Path) -> None:
    done = run(suite)
    assert done.returncode == 0
    assert "4 skipped" in done.stdout


IGNORED = """\
import os, signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"])
"""

DISPOSITIONS = """\
import signal, subprocess, sys
SHOW = "import signal as s; print(*(s.getsignal(n) is s.SIG_IGN for n in (1, 2, 15)))"
def test_it():
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True)
    assert done.stdout.split() == ["False"] * 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_no_program_inherits_signals_that_are_ignored(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_signals.py").write_text(DISPOSITIONS)
    done = subprocess.run(
        [sys.executable, "-c", IGNORED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("begins", SLOW)
def test_each_slow_test_is_there(begins: str) -> None:
    path, _, name = begins.partition("::")
    assert (ROOT / path).exists()
    assert not name or f"def {name}" in (ROOT / path).read_text()
