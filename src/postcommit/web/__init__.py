"""A page for queues and mailboxes, as a WSGI application.

`make_app` makes the application for any WSGI server or dispatcher, and
`postcommit.web.pyramid` includes it in a Pyramid application. ``postcommit web`` serves
it on this machine. It needs WebOb and Chameleon, which the extra ``web`` installs.
"""
from __future__ import annotations

from postcommit.errors import MissingExtraError


try:
    import chameleon  # noqa: F401
    import webob  # type: ignore[import-untyped]  # noqa: F401
except ModuleNotFoundError as _missing:
    raise MissingExtraError("web", str(_missing.name)) from _missing

from postcommit.web._app import Authorize as Authorize
from postcommit.web._app import make_app as make_app
