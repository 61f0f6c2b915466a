"""Two pages as a reader has them: their files are saved and run as they stand."""
from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "tutorial.rst").read_text()
PYRAMID = (DOCS / "pyramid.rst").read_text()

# Pyramid imports cgi or pkg_resources, depending on the Python and on setuptools.
OF_PYRAMID = ("-W", "ignore::DeprecationWarning", "-W", "ignore::UserWarning")


def blocks(directive: str, page: str = PAGE) -> list[str]:
    found = re.findall(
        rf"^\.\. {directive}\n\n((?:   .*\n|\n)+)", page, re.MULTILINE
    )
    return [textwrap.dedent(block).strip() + "\n" for block in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the page, under the names that it gives them."""
    names = re.findall(r"Save this\s+as ``(\w+\.py)``", PAGE)
    for name, program in zip(names, blocks("code-block:: python"), strict=True):
        (tmp_path / name).write_text(program)
    return tmp_path


def run(folder: Path, *arguments: str, logged: str = r"\Z") -> str:
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(logged, done.stderr)
    return done.stdout


def test_the_programs_print_what_the_page_shows(folder: Path) -> None:
    shop, bounce = blocks("code-block:: text")
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


@pytest.fixture
def pyramid_folder(tmp_path: Path) -> Path:
    """A folder with the three files that the page about Pyramid saves."""
    names = re.findall(r"Save\s+this\s+as\s+``([\w.]+)``", PYRAMID)
    shop = blocks("testcode::", PYRAMID)[0]
    settings = blocks("code-block:: ini", PYRAMID)[0]
    test = blocks("code-block:: python", PYRAMID)[0]
    assert names == ["shop.py", "development.ini", "test_shop.py"]
    for name, text in zip(names, (shop, settings, test), strict=True):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_tests_of_the_page_about_pyramid_pass(pyramid_folder: Path) -> None:
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py")
    assert "2 passed" in run(pyramid_folder, *OF_PYRAMID, *arguments)


# What is done in place of pserve and curl. The processor writes the file of the mail.
_ORDER = """
import os, time
import webtest
from paste.deploy import loadapp
from postcommit.interfaces import IMailQueueProcessor
app = loadapp(f"config:{os.path.abspath('development.ini')}")
print(webtest.TestApp(app).get("/order?customer=ann@example.org").json["mail"])
end = time.monotonic() + 60
while not (os.path.isdir("mails") and os.listdir("mails")) and time.monotonic() < end:
    time.sleep(0.01)
assert app.registry.getUtility(IMailQueueProcessor).stop(60)
"""


def test_the_settings_of_the_page_about_pyramid(pyramid_folder: Path) -> None:
    message_id = run(pyramid_folder, *OF_PYRAMID, "-c", _ORDER, logged="").strip()
    [path] = (pyramid_folder / "mails").glob("*.eml")
    text = path.read_text()
    assert f"Message-Id: <{message_id}>" in text
    assert "<b>on its way</b>" in text
