"""For Pyramid: ``config.include("postcommit.web.pyramid")``.

It includes `postcommit.pyramid`, and adds the page for the queues and mailboxes of the
application: those of its deliveries, processors and of each mailer ``file``.

=====================  ===============================================================
setting                meaning
=====================  ===============================================================
``mail.web_path``      the path of the page, such as ``/mail``
``mail.web_hosts``     the names by which browsers reach the application, separated by
                       blanks. Without it, only this machine
``mail.web_insecure``  true: there is no security policy, and everybody may see the
                       page. For development only
=====================  ===============================================================

The user needs the permission ``postcommit.manage``.
"""
from __future__ import annotations

import functools
from typing import Any

from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import ISecurityPolicy
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.request import call_app_with_subpath_as_path_info
from pyramid.response import Response
from pyramid.security import NO_PERMISSION_REQUIRED

from postcommit.errors import OptionError
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.pyramid import PAGE
from postcommit.pyramid import SETTINGS
from postcommit.web._app import WebApp
from postcommit.web._app import make_app


PERMISSION = "postcommit.manage"

_ROUTE = "postcommit.web"
_USER = "postcommit.web.pyramid.user"


def includeme(config: Configurator) -> None:
    """Add the page at the path that the settings name.

    Raises `ConfigurationError` for a setting that can never work, and when the
    configuration is committed without a security policy.
    """
    config.registry[PAGE] = True
    config.include("postcommit.pyramid")
    try:
        settings = config.registry[SETTINGS]
        page = settings.page()
    except OptionError as error:
        raise ConfigurationError(str(error)) from error
    app = functools.cache(lambda: _app(config.registry, page.hosts))

    def view(request: Request) -> Any:
        user = request.authenticated_userid
        request.environ[_USER] = "anonymous" if user is None else str(user)
        served = call_app_with_subpath_as_path_info(request, app())
        return _AsItIs(
            app_iter=served.app_iter,
            headerlist=served.headerlist,
            status=served.status,
        )

    # Two routes, because "/mail*subpath" would also match "/mailing".
    for name, pattern in ((_ROUTE, page.path), (f"{_ROUTE}.", f"{page.path}/*subpath")):
        config.add_route(name, pattern)
        config.add_view(
            view,
            route_name=name,
            permission=NO_PERMISSION_REQUIRED if page.insecure else PERMISSION,
            require_csrf=False,  # the page has its own token
        )
    if not page.insecure:
        config.action(_ROUTE, _check_policy, args=(config.registry, settings.prefix))


class _AsItIs(Response):  # type: ignore[misc]
    """A response whose ``Location`` stays a path.

    WebOb would make it a whole URL, with the wrong scheme behind a proxy with TLS.
    """

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        start_response(self.status, self.headerlist)
        return self.app_iter


def _check_policy(registry: Registry, prefix: str) -> None:
    if registry.queryUtility(ISecurityPolicy) is None:
        raise ConfigurationError(
            f"postcommit.web.pyramid: there is no security policy, so everybody could"
            f" read and delete mail; set one, or {prefix}web_insecure = true"
        )


def _app(registry: Registry, hosts: tuple[str, ...]) -> WebApp:
    """Return the page for all that is registered when the first request comes."""
    utilities = [
        utility
        for contract in (IMailDelivery, IMailQueueProcessor, IMailer)
        for _, utility in registry.getUtilitiesFor(contract)
    ]
    return make_app(
        _each(utilities, "queuePath"),
        authorize=lambda request: request.environ[_USER],
        mailboxes=_each(utilities, "folder"),
        hosts=hosts,
    )


def _each(utilities: list[Any], name: str) -> list[str]:
    """Return the different values of an attribute that some utilities have."""
    values = (getattr(utility, name, None) for utility in utilities)
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))
