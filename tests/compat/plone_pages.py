"""Pages of Plone that send mail, to a real relay: direct, queued, refused, relay down.

``tox -e plone`` runs this module with zope.testrunner, because Plone's fixtures are
layers.
"""
from __future__ import annotations

import logging
import os
import tempfile
import threading
import unittest
from typing import Any

import transaction
import zope.sendmail.mailer
from plone.app.testing import PLONE_FIXTURE
from plone.app.testing import SITE_OWNER_NAME
from plone.app.testing import SITE_OWNER_PASSWORD
from plone.app.testing import TEST_USER_ID
from plone.app.testing import FunctionalTesting
from plone.app.testing import PloneSandboxLayer
from plone.autoinclude.loader import load_packages
from plone.registry.interfaces import IRegistry
from plone.testing.zope import Browser
from zope.component import getUtility

import postcommit.mailhost
from tests.support.smtpd import ScriptedRelay


SITE, ANN = "site@example.org", "ann@example.org"


class Sending(PloneSandboxLayer):
    """A Plone whose ZCML includes ours, as an installed package."""

    defaultBases = (PLONE_FIXTURE,)

    def setUpZope(self, app: Any, configurationContext: Any) -> None:
        self.loadZCML(package=postcommit.mailhost)

    def tearDownZope(self, app: Any) -> None:
        postcommit.mailhost.restore()


FIXTURE = Sending()
FUNCTIONAL = FunctionalTesting(bases=(FIXTURE,), name="postcommit:Functional")


class _Noticing(logging.Handler):
    """Sets `event` when a line with `text` is logged."""

    def __init__(self, text: str, event: threading.Event) -> None:
        super().__init__()
        self._text = text
        self._event = event

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._event.set()


class Pages:
    """The tests; direct and queued have them in common."""

    layer = FUNCTIONAL
    is_queued = False

    def setUp(self) -> None:
        self.relay = ScriptedRelay()
        self.relay.up()
        self.addCleanup(self.relay.__exit__)
        self.portal = self.layer["portal"]
        self.host = self.portal.MailHost
        registry = getUtility(IRegistry)
        registry["plone.smtp_host"] = "127.0.0.1"
        registry["plone.smtp_port"] = self.relay.port
        registry["plone.email_from_address"] = SITE
        registry["plone.email_from_name"] = "The Site"
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.host.smtp_queue = self.is_queued
        self.host.smtp_queue_directory = os.path.join(folder.name, "queue")
        self.addCleanup(self.host._stopQueueProcessorThread)
        member = self.portal.portal_membership.getMemberById(TEST_USER_ID)
        member.setMemberProperties({"email": ANN})
        transaction.commit()
        self.paused = threading.Event()
        noticing = _Noticing("paus", self.paused)
        logging.getLogger("postcommit").addHandler(noticing)
        self.addCleanup(logging.getLogger("postcommit").removeHandler, noticing)

    def browser(self, *, is_manager: bool = False) -> Any:
        browser = Browser(self.layer["app"])
        browser.raiseHttpErrors = False
        if is_manager:
            credentials = f"Basic {SITE_OWNER_NAME}:{SITE_OWNER_PASSWORD}"
            browser.addHeader("Authorization", credentials)
        return browser

    def click(self) -> Any:
        """Click on the button of the mail control panel."""
        browser = self.browser(is_manager=True)
        browser.open(f"{self.portal.absolute_url()}/@@mail-controlpanel")
        browser.getControl(name="form.buttons.test").click()
        return browser

    def reset(self) -> Any:
        """Ask for a new password."""
        browser = self.browser()
        browser.open(f"{self.portal.absolute_url()}/@@login-help")
        name = self.portal.portal_membership.getMemberById(TEST_USER_ID).getUserName()
        browser.getControl(name="form.widgets.reset_password").value = name
        browser.getControl(name="form.buttons.reset").click()
        return browser

    def contact(self) -> Any:
        """Write to the owner of the site."""
        browser = self.browser()
        browser.open(f"{self.portal.absolute_url()}/contact-info")
        browser.getControl(name="form.widgets.sender_fullname").value = "Ann Müller"
        browser.getControl(name="form.widgets.sender_from_address").value = ANN
        browser.getControl(name="form.widgets.subject").value = "Grüße"
        browser.getControl(name="form.widgets.message").value = "Schöne Grüße"
        browser.getControl(name="form.buttons.send").click()
        return browser

    def wait(self, count: int = 1) -> Any:
        """Return the messages at the relay when there are `count` of them."""
        self.relay.wait_until(lambda: len(self.relay.messages) >= count)
        return self.relay.messages

    def testTheTestMail(self) -> None:
        browser = self.click()
        assert "Success! Check your mailbox" in browser.contents
        [message] = self.wait()
        assert (message.sender, message.recipients) == (SITE, (SITE,))

    def testTheTestMailIsRefused(self) -> None:
        self.relay.reply("RCPT", "550 5.1.1 no such user")
        browser = self.click()
        assert "Unable to send test e-mail" in browser.contents
        assert "no such user" in browser.contents

    def testTheTestMailAndTheRelayIsDown(self) -> None:
        self.relay.down()
        browser = self.click()
        assert "Unable to send test e-mail" in browser.contents
        assert "Connection refused" in browser.contents

    def testANewPassword(self) -> None:
        browser = self.reset()
        assert "An email has been sent" in browser.contents
        [message] = self.wait()
        assert (message.sender, message.recipients) == (SITE, (ANN,))

    def testANewPasswordOfASiteWithALongName(self) -> None:
        # Plone folds its name within the address.
        name = "Ministerium für Wirtschaft, Innovation, Digitalisierung und Energie"
        getUtility(IRegistry)["plone.email_from_name"] = name
        transaction.commit()
        assert "An email has been sent" in self.reset().contents
        [message] = self.wait()
        assert (message.sender, message.recipients) == (SITE, (ANN,))

    def testTheContactForm(self) -> None:
        browser = self.contact()
        assert "A mail has now been sent" in browser.contents
        [message] = self.wait()
        assert (message.sender, message.recipients) == (SITE, (SITE,))
        assert b"Reply-To: ann@example.org" in message.data


class TestDirect(Pages, unittest.TestCase):
    def testARefusedMailDoesNotFailThePage(self) -> None:
        self.relay.reply("RCPT", "550 5.1.1 no such user")
        assert "An email has been sent" in self.reset().contents
        assert self.relay.messages == []

    def testTheRelayIsDown(self) -> None:
        self.relay.down()
        browser = self.contact()
        assert "A mail has now been sent" not in str(browser.contents)
        assert browser.headers["status"].startswith("500")

    def testTheSettingsAreThoseOfPlone(self) -> None:
        # Plone's own patch, around the constructor of the older mailer.
        module = zope.sendmail.mailer.SMTPMailer.__init__.__module__
        assert module == "Products.CMFPlone.patches.sendmail"
        assert self.host._makeMailer().port == self.relay.port
        assert self.host.smtp_port != self.relay.port


class TestQueued(Pages, unittest.TestCase):
    is_queued = True

    def testTheRelayIsDownForAWhile(self) -> None:
        self.relay.down()
        assert "An email has been sent" in self.reset().contents
        assert self.host.queueThreadAlive()
        assert self.paused.wait(20)
        self.relay.up()
        [message] = self.wait()
        assert message.recipients == (ANN,)

    def testARecipientIsRefusedForNow(self) -> None:
        self.relay.reply("RCPT", "450 4.2.0 greylisted", times=1)
        self.reset()
        self.relay.wait_until(
            lambda: any(line.startswith("RCPT") for line in self.relay.commands)
        )
        self.host._stopQueueProcessorThread()
        assert self.host.queueLength() == 1
        assert len(os.listdir(f"{self.host.smtp_queue_directory}/cur")) == 1

    def testTheTestMailDoesNotGoThroughTheQueue(self) -> None:
        self.click()
        assert not self.host.queueThreadAlive()


class TestInclusion(unittest.TestCase):
    def testPloneFindsThePackageByItself(self) -> None:
        assert "postcommit.mailhost" in load_packages("plone")
