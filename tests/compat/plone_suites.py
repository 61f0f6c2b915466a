"""Plone's own tests of mail, with our classes in Products.MailHost.

``tox -e plone`` runs this module, and sets ``REPLACE`` for the import.
"""
from __future__ import annotations

from pathlib import Path

import Products.CMFPlone
from zope.testrunner import run

import tests.compat.replacing  # noqa: F401


MODULES = (
    "test_controlpanel_bbb_mail_adapter",
    "test_controlpanel_browser_mail",
    "test_controlpanel_mail",
    "test_login_help",
    "test_mails",
    "test_passwordreset",
    "testRegistrationTool",
)

if __name__ == "__main__":
    folder = Path(Products.CMFPlone.__file__).parent.parent.parent
    names = f"^({'|'.join(MODULES)})$"
    chosen = ("-s", "Products.CMFPlone", "--tests-pattern", names)
    run(["--test-path", str(folder), *chosen])
