"""What the README says is so."""
from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import transaction
import zope.component
import zope.event
from BTrees.OOBTree import OOBTree
from ZODB.DB import DB
from zope.component.testing import PlacelessSetup
from zope.schema.interfaces import IField

from postcommit._transaction.event import MailRejectedEvent
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import ISMTPMailer
from tests.support.ports import free_port


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text()
BLOCKS = re.findall(
    r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README, re.MULTILINE
)
EXAMPLE, REGISTER, LOOK_UP, SUBSCRIBE = map(textwrap.dedent, BLOCKS)
ARGUMENTS = {"hostname", "port", "username", "password", "queuePath", "mailer"}
OPTIONS = {"SMTPMailer": ISMTPMailer, "QueueProcessor": IMailQueueProcessor}


@pytest.fixture
def components():
    setup = PlacelessSetup()
    setup.setUp()
    yield
    setup.tearDown()


def test_the_example(tmp_path):
    script = tmp_path / "example.py"
    assert EXAMPLE.count("8025") == 2
    script.write_text(EXAMPLE.replace("8025", str(free_port())))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.count("Subject: Your teapot") == 1
    assert "It is on its way." in done.stdout
    assert re.search(r"<MailSentEvent \S+ to ann@example.org>", done.stdout)
    assert done.stdout.endswith("Tally(sent=1, deferred=0, rejected=0, uncertain=0)\n")
    assert "bob@" not in done.stdout
    assert [p for p in tmp_path.glob("mail-queue/*/*") if p.is_file()] == []


def test_the_example_is_as_short_as_promised():
    code = [line for line in EXAMPLE.splitlines() if line and line[0] != "#"]
    assert len(code) <= 22


@pytest.mark.usefixtures("components")
def test_register_and_look_up(tmp_path):
    names = {}
    exec(REGISTER.replace("/var/spool/shop", str(tmp_path / "queue")), names)
    exec(LOOK_UP, names)
    with transaction.manager:
        message_id = names["confirm"]("teapot", "ann@example.org")
    [entry] = (tmp_path / "queue" / "new").iterdir()
    written = entry.read_text()
    assert written.startswith(
        "X-Zope-From: shop@example.org\nX-Zope-To: ann@example.org\n"
    )
    assert message_id in written
    direct = zope.component.getUtility(IMailDelivery, "direct")
    assert direct.mailer.hostname == "relay.example.org"


@pytest.mark.usefixtures("components")
def test_a_subscriber_writes_to_the_database():
    db = DB(None)
    with db.transaction() as connection:
        connection.root()["unreachable"] = OOBTree()
    exec(SUBSCRIBE, {"db": db})
    event = MailRejectedEvent("1@x", "550 No", recipients=("bob@example.org",))
    zope.event.notify(event)
    with db.transaction() as connection:
        found = dict(connection.root()["unreachable"])
    assert found == {"bob@example.org": "550 No"}
    db.close()


def test_the_options_have_the_defaults_of_the_code():
    told = set()
    for name, schema in OPTIONS.items():
        table = README.partition(f"   * - ``{name}``\n     - default\n")[2]
        table = table.partition("\n\n")[0]
        for row in re.findall(r"   \* - (.*)\n     - (.*)\n", table):
            options, defaults = (re.findall("``(.*?)``", cell) for cell in row)
            for option, default in zip(options, defaults, strict=True):
                assert repr(schema[option].default) == default, option
                told.add((name, option))
    assert told == {
        (name, option)
        for name, schema in OPTIONS.items()
        for option, field in schema.namesAndDescriptions(all=True)
        if IField.providedBy(field) and option not in ARGUMENTS
    }


def test_the_commands():
    commands = re.findall(r"::\n\n    (python3 .*)\n", README)
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install -q '.[demo]'"
        " && .venv/bin/postcommit demo",
        "python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox",
    ]
    for command in commands:
        assert shlex.split(command)
    assert commands[1] in (ROOT / ".ci" / "run").read_text()
