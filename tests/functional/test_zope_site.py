"""A real Zope over HTTP, with our line and without it.

Without it, mail goes through zope.sendmail, and what these tests promise does not hold.
"""
from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.smtpd import ScriptedRelay


pytest.importorskip("Products.MailHost")

from tests.compat.site import Site


A, B = "a@example.org", "b@example.org"

# Seconds between two looks of zope.sendmail into its queue.
_INTERVAL = 3.0


@pytest.fixture(scope="module")
def everywhere() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        yield relay


@pytest.fixture(scope="module")
def started(
    everywhere: ScriptedRelay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with Site(folder / "zope", everywhere.port, with_line=True) as site:
        yield site


@pytest.fixture
def site(started: Site, everywhere: ScriptedRelay) -> Iterator[Site]:
    everywhere.messages.clear()
    yield started
    everywhere.script.rules.clear()


def test_direct_mail_leaves_with_the_request(
    site: Site, everywhere: ScriptedRelay
) -> None:
    assert site.send("direct", A, B) == 200
    [message] = everywhere.messages
    assert message.recipients == (A, B)
    assert site.send("direct", A, fail="1") == 500
    assert len(everywhere.messages) == 1


def test_immediate_mail_leaves_before_the_request_ends(
    site: Site, everywhere: ScriptedRelay
) -> None:
    assert site.send("direct", A, immediate="1", fail="1") == 500
    assert len(everywhere.messages) == 1


def test_direct_mail_that_is_refused_does_not_fail_the_request(
    site: Site, everywhere: ScriptedRelay
) -> None:
    everywhere.reply("RCPT", "550 5.1.1 no such user", address=A, times=1)
    assert site.send("direct", A) == 200
    assert f"to {A}: rejected: 550 5.1.1" in site.log


def test_immediate_mail_that_is_refused_fails_the_request(
    site: Site, everywhere: ScriptedRelay
) -> None:
    everywhere.reply("RCPT", "550 5.1.1 no such user", address=A, times=1)
    assert site.send("direct", A, immediate="1") == 500


def test_queued_mail_leaves_at_once(site: Site, everywhere: ScriptedRelay) -> None:
    site.send("queued", A)
    everywhere.wait_until(lambda: len(everywhere.messages) == 1)
    assert site.send("queued", A, mails=20) == 200
    began = time.monotonic()
    everywhere.wait_until(lambda: len(everywhere.messages) == 21)
    # An interval passes before zope.sendmail looks again.
    assert time.monotonic() - began < _INTERVAL / 2
    assert site.send("queued", A, fail="1") == 500


def test_a_recipient_that_is_refused_for_now_is_deferred(
    site: Site, everywhere: ScriptedRelay
) -> None:
    everywhere.reply("RCPT", "450 4.2.0 greylisted", address=A, times=1)
    assert site.send("queued", A, B) == 200
    everywhere.wait_until(lambda: everywhere.messages)
    assert everywhere.messages[0].recipients == (B,)
    until = time.monotonic() + 10
    while not site.entries("cur"):
        assert time.monotonic() < until
        time.sleep(0.01)
    [name] = site.entries("cur")
    entry = (site.queue / "cur" / name).read_text()
    assert f"X-Zope-To: {A}\n" in entry
    form = site.get("/queued/manage_main")[1]
    assert f"1 (1 deferred; see: postcommit status {site.queue})" in form
    (site.queue / "cur" / name).unlink()


def test_a_relay_that_comes_back_gets_its_mail(
    site: Site, everywhere: ScriptedRelay
) -> None:
    everywhere.down()
    assert site.send("queued", A) == 200
    until = time.monotonic() + 10
    while "paus" not in site.log:
        assert time.monotonic() < until, site.log
        time.sleep(0.01)
    assert site.send("direct", A) == 500  # its vote asks the relay
    everywhere.up()
    everywhere.wait_until(lambda: everywhere.messages, timeout=20)


def test_without_the_line_it_is_the_older_library(tmp_path: Path) -> None:
    with (
        ScriptedRelay() as relay,
        Site(tmp_path / "zope", relay.port, with_line=False) as site,
    ):
        assert site.send("direct", A) == 200
        assert len(relay.messages) == 1
        relay.reply("RCPT", "450 4.2.0 greylisted", address=A)
        assert site.send("queued", A, B) == 200
        assert site.send("queued", A) == 200
        relay.wait_until(lambda: len(relay.messages) == 2)
        until = time.monotonic() + 10 * _INTERVAL
        while not [name for name in site.entries("new") if "rejected" in name]:
            assert time.monotonic() < until
            time.sleep(0.1)
        # The one that was refused for now has no second try.
        assert site.entries("cur") == []
        assert "postcommit" not in site.log
