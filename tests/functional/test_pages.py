"""Applications from nothing but the pages, through Postfix to its mailboxes.

What a reader has to fill in is filled in: where the relay is.
"""
from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
import transaction
from tests.functional import pyramid_shop
from tests.functional.postfix import Postfix
from tests.support import children
from zope.component import getUtilitiesFor
from zope.component.testing import PlacelessSetup
from zope.configuration import xmlconfig

from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor


DOCS = children.ROOT / "docs"

# The relay is at another place, and wants no login.
FILLED_IN = {
    "relay.example.org": "127.0.0.1",
    "starttls": "auto",
    "587": "{port}",
}


def blocks(page: str, directive: str) -> list[str]:
    """Return the blocks of `page` that follow `directive`."""
    found = re.findall(
        rf"^\.\. {directive}\n\n((?:   .*\n|\n)+)",
        (DOCS / page).read_text(),
        re.MULTILINE,
    )
    return [textwrap.dedent(block) for block in found]


def fill_in(text: str, port: int) -> str:
    for old, new in FILLED_IN.items():
        assert old in text
        text = text.replace(old, new.format(port=port))
    return text


def test_the_application_of_the_page_pyramid(
    start_postfix: Callable[..., Postfix], tmp_path: Path
) -> None:
    postfix = start_postfix()
    program = blocks("pyramid.rst", "testcode::")[0]
    _, settings = blocks("pyramid.rst", "code-block:: ini")
    settings = fill_in(settings, postfix.port)
    settings = re.sub(r"(?m)^mail\.(username|password) = .*\n", "", settings)
    (tmp_path / "shop.py").write_text(program)
    (tmp_path / "shop.ini").write_text(settings)
    with children.running(pyramid_shop.serve_folder, str(tmp_path)) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        url = f"http://127.0.0.1:{port}/order?customer=ann@example.org"
        with urllib.request.urlopen(url, timeout=30) as response:
            said = response.read().decode()
        [message] = postfix.wait_for("ann", 1)
    assert message["Subject"] == "Your teapot"
    assert message["Return-Path"] == "<shop@example.org>"
    assert message["Message-Id"].strip("<>") in said
    parts = [part.get_payload() for part in message.get_payload()]
    assert parts == ["It is on its way.\n", "<p>It is <b>on its way</b>.</p>\n"]
    assert (tmp_path / "queue" / "new").is_dir()


@pytest.fixture
def components() -> Iterator[None]:
    setup = PlacelessSetup()
    setup.setUp()
    yield
    for _, processor in getUtilitiesFor(IMailQueueProcessor):
        assert processor.stop(30)
    for _, mailer in getUtilitiesFor(IMailer):
        mailer.close()
    setup.tearDown()


@pytest.mark.usefixtures("components")
def test_the_site_of_the_page_zope(
    start_postfix: Callable[..., Postfix], tmp_path: Path
) -> None:
    postfix = start_postfix()
    [site, *_] = blocks("zope.rst", "code-block:: xml")
    site = fill_in(site, postfix.port)
    site = re.sub(r' +(username|password)=".*"\n', "", site)
    (tmp_path / "site.zcml").write_text(site)
    xmlconfig.file(str(tmp_path / "site.zcml"))
    text = (DOCS / "zope.rst").read_text()
    example = text[text.index(">>> from") : text.index("The directive has started")]
    code = "".join(line[4:] + "\n" for line in example.splitlines())
    exec(code, {"transaction": transaction})
    [message] = postfix.wait_for("ann", 1)
    assert message["Subject"] == "Your teapot"
    assert message.get_payload() == "It is on its way.\n"
    assert (tmp_path / "queue" / "new").is_dir()


def test_the_tests_of_the_page_testing(tmp_path: Path) -> None:
    shop, refused, pyramid = blocks("testing.rst", "code-block:: python")
    example = (DOCS / "testing.rst").read_text().partition(">>> def order")[2]
    order = "def order" + example.partition("\n\n")[0].replace("\n... ", "\n")
    imports = (
        "import transaction\nfrom zope.component import getUtility\n"
        "from postcommit.interfaces import IMailDelivery\n"
    )
    (tmp_path / "test_shop.py").write_text(f"{imports}{order}\n\n{shop}\n{refused}")
    [program, *_] = blocks("pyramid.rst", "testcode::")
    given = "import pytest, webtest\nsettings = {'mail.queue_path': 'queue'}\n"
    (tmp_path / "test_pyramid.py").write_text(f"{program}\n{given}{pyramid}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "3 passed" in done.stdout, done.stdout


def test_the_include_of_the_page_moving_is_the_one_of_the_site() -> None:
    [include, *_] = blocks("moving-zope-sendmail.rst", "code-block:: xml")
    [site, *_] = blocks("zope.rst", "code-block:: xml")
    assert include.strip() in site
