"""For applications of pyramid_mailer: ``config.include("postcommit.pyramid_mailer")``.

It is included in place of ``pyramid_mailer``, or beside it, in either order. The mailer
of pyramid_mailer, ``request.mailer`` and the settings stay as they are. Below, mail is
sent by postcommit: `replace` puts the classes of `postcommit.compat.repoze_sendmail`
into the module ``pyramid_mailer.mailer``, and `restore` takes them out.
"""
from __future__ import annotations

import smtplib
from typing import Any

import pyramid_mailer.mailer as older
from pyramid.config import Configurator
from pyramid.interfaces import IRequestExtensions
from pyramid.registry import Registry
from pyramid_mailer import get_mailer
from pyramid_mailer import mailer_factory_from_settings
from pyramid_mailer.interfaces import IMailer

from postcommit.compat import repoze_sendmail
from postcommit.compat._relay import check_environment
from postcommit.compat._replaced import Replacement


_OLDER_SMTP = older.SMTPMailer
_OLDER_SMTP_SSL = older.SMTP_SSLMailer
_OLDER_SENDMAIL = older.SendmailMailer


class SMTP_SSLMailer(repoze_sendmail.SMTPMailer):
    """Speaks TLS from the first byte, with the arguments of pyramid_mailer.

    `certfile` and `keyfile` are the certificate that it shows to the relay, and its
    key.
    """

    # For code that looks at them. They are not used to send.
    smtp: Any = smtplib.SMTP_SSL
    smtp_factory = older.SMTP_SSLMailer.smtp_factory

    def __init__(
        self,
        *args: Any,
        keyfile: str | None = None,
        certfile: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.ssl = True
        self.keyfile = keyfile
        self.certfile = certfile


_replacement = Replacement(
    older,
    {
        "SMTPMailer": repoze_sendmail.SMTPMailer,
        "SMTP_SSLMailer": SMTP_SSLMailer,
        "SendmailMailer": repoze_sendmail.SendmailMailer,
        "DirectMailDelivery": repoze_sendmail.DirectMailDelivery,
        "QueuedMailDelivery": repoze_sendmail.QueuedMailDelivery,
    },
)


def replace() -> None:
    """Let every ``pyramid_mailer.mailer.Mailer`` that is made from now on use ours.

    `includeme` does so. It is for programs without a configurator, such as scripts.
    Raises `OptionError` for a variable in the environment that can never work.
    """
    check_environment()
    _replacement.replace()


def restore() -> None:
    """Undo `replace`. A ``Mailer`` that exists stays as it is."""
    _replacement.restore()


def includeme(config: Configurator) -> None:
    """Register a ``Mailer`` that uses ours, and ``request.mailer``.

    Each ``Mailer`` that is registered already, also under another name, is rebuilt with
    the same options. Another kind of mailer, as that of ``pyramid_mailer.testing`` or
    ``pyramid_mailer.debug``, stays.
    """
    replace()
    registry = config.registry
    for name, found in list(registry.getUtilitiesFor(IMailer)):
        if type(found) is older.Mailer:
            registry.registerUtility(_rebuilt(found), IMailer, name)
    if registry.queryUtility(IMailer) is None:
        settings = registry.settings
        prefix = settings.get("pyramid_mailer.prefix", "mail.")
        mailer = mailer_factory_from_settings(settings, prefix)
        registry.registerUtility(mailer, IMailer)
    # Later, because pyramid_mailer adds it, too, which would be a conflict.
    config.action("postcommit.pyramid_mailer", _add_to_request, args=(registry,))


def _rebuilt(mailer: Any) -> Any:
    return older.Mailer(
        smtp_mailer=_converted(mailer.smtp_mailer),
        sendmail_mailer=_converted(mailer.sendmail_mailer),
        queue_path=mailer.queue_path,
        default_sender=mailer.default_sender,
        transaction_manager=mailer.transaction_manager,
    )


def _converted(mailer: Any) -> Any:
    """Return a mailer of ours like one of repoze.sendmail; others stay."""
    if type(mailer) is _OLDER_SENDMAIL:
        template = vars(mailer).get("sendmail_template")
        return repoze_sendmail.SendmailMailer(mailer.sendmail_app, template)
    names = ["hostname", "port", "username", "password", "no_tls", "force_tls"]
    names += ["debug_smtp"]
    options: Any = {name: getattr(mailer, name, None) for name in names}
    if type(mailer) is _OLDER_SMTP:
        return repoze_sendmail.SMTPMailer(**options, ssl=mailer.ssl)
    if type(mailer) is _OLDER_SMTP_SSL:
        return SMTP_SSLMailer(
            **options, keyfile=mailer.keyfile, certfile=mailer.certfile
        )
    return mailer


def _add_to_request(registry: Registry) -> None:
    extensions = registry.queryUtility(IRequestExtensions)
    if extensions is None or "mailer" not in extensions.descriptors:
        at_once = Configurator(registry=registry, autocommit=True)
        at_once.add_request_method(get_mailer, "mailer", reify=True)
