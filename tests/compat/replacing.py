"""A plugin of pytest that puts our classes into the packages that are imported.

``REPLACE`` in the environment names those packages, separated by spaces.
"""
from __future__ import annotations

import os
from importlib import import_module


def _zope_sendmail() -> None:
    """Replace the names in all modules, as an import hook could do."""
    from postcommit.compat import zope_sendmail as ours

    for name in ("delivery", "maildir", "mailer", "queue", "zcml"):
        module = import_module(f"zope.sendmail.{name}")
        for found in set(ours.__all__) & set(vars(module)):
            setattr(module, found, getattr(ours, found))


for package in os.environ.get("REPLACE", "").split():
    if package == "zope.sendmail":
        _zope_sendmail()
    else:
        import_module(f"postcommit.{package}").replace()
