"""The tutorial as a reader has it: its files are saved and run as they stand."""
from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


PAGE = (Path(__file__).parent.parent / "docs" / "tutorial.rst").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(
        rf"^\.\. code-block:: {language}\n\n((?:   .*\n|\n)+)", PAGE, re.MULTILINE
    )
    return [textwrap.dedent(block).strip() + "\n" for block in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the page, under the names that it gives them."""
    names = re.findall(r"Save this\s+as ``(\w+\.py)``", PAGE)
    for name, program in zip(names, blocks("python"), strict=True):
        (tmp_path / name).write_text(program)
    return tmp_path


def run(folder: Path, *arguments: str, logged: str = r"\Z") -> str:
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert re.match(logged, done.stderr)
    return done.stdout


def test_the_programs_print_what_the_page_shows(folder: Path) -> None:
    shop, bounce = blocks("text")
    assert run(folder, "shop.py") == shop
    logged = r"<\S+> to eve@example.org: rejected: 550 5.1.1 No such user\n\Z"
    assert run(folder, "bounce.py", logged=logged) == bounce
    command = "import sys; from postcommit._cli.main import main; sys.exit(main())"
    printed = run(folder, "-c", command, "list", "mail-queue", "--failed")
    assert "550 5.1.1 No such user" in printed


def test_the_tests_pass(folder: Path) -> None:
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py")
    printed = run(folder, *arguments)
    assert "2 passed" in printed
