"""Builds mailers, deliveries and processors from options, text or not.

ZCML, settings and commands make their objects here. So a value or a pair of values that
cannot work is refused in the same way, with its place.
"""
from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from postcommit._amqp.mailer import AMQPMailer
from postcommit._config.options import Given
from postcommit._config.options import fields_of
from postcommit._config.options import parsed
from postcommit._delivery.direct import DirectMailDelivery
from postcommit._delivery.queued import QueuedMailDelivery
from postcommit._log import Log
from postcommit._mailers.failover import FailoverMailer
from postcommit._mailers.file import FileMailer
from postcommit._mailers.sendmail import SendmailMailer
from postcommit._processor import QueueProcessor
from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import OptionError
from postcommit.errors import masked
from postcommit.errors import shown
from postcommit.interfaces import IAMQPMailer
from postcommit.interfaces import IDirectMailDelivery
from postcommit.interfaces import IFailoverMailer
from postcommit.interfaces import IFileMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IQueuedMailDelivery
from postcommit.interfaces import ISendmailMailer
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import SupportsSend
from postcommit.interfaces import TLSMode


log = Log("postcommit.build")

# The mailers that settings can choose, by name.
MAILERS = {
    "smtp": ISMTPMailer,
    "sendmail": ISendmailMailer,
    "file": IFileMailer,
    "amqp": IAMQPMailer,
}

_CLASSES: dict[Any, Callable[..., Any]] = {
    ISMTPMailer: SMTPMailer,
    ISendmailMailer: SendmailMailer,
    IFileMailer: FileMailer,
    IAMQPMailer: AMQPMailer,
    IFailoverMailer: FailoverMailer,
    IDirectMailDelivery: DirectMailDelivery,
    IQueuedMailDelivery: QueuedMailDelivery,
    IMailQueueProcessor: QueueProcessor,
}


def build(
    contract: Any,
    given: Mapping[str, Given],
    *,
    kind: Callable[..., Any] | None = None,
    **others: Any,
) -> Any:
    """Return the object of `contract` with its options among `given`.

    `kind` is its class, if `contract` is not one of those that settings choose.

    `given` has the names of `fields_of`, and may have options of other objects.
    `others` are arguments that no text can give, such as `mailer`. Raises
    `OptionError`, which says where the option was given.
    """
    if contract is ISMTPMailer:
        given = consistent(given)
    fields = fields_of(contract)
    mine = {fields[name].__name__: one for name, one in given.items() if name in fields}
    try:
        values = {name: parsed(contract, name, one.value) for name, one in mine.items()}
        return (kind or _CLASSES[contract])(**{**values, **others})
    except OptionError as error:
        refused = _placed(error, mine)
    raise refused


def _placed(error: OptionError, given: Mapping[str, Given]) -> OptionError:
    """Return `error` with the place where the option was given.

    If the option was not given, its default contradicts another option. The error is
    then about the other option.
    """
    if error.name in given:
        return given[error.name].refused(error.reason)
    for name, one in given.items():
        if f"{name}=" in error.reason:
            return one.refused(f"{error.name}={shown(error.value)} {error.reason}")
    return error


# Options that depend on each other


def twin(mailer: SupportsSend, others: Iterable[SupportsSend]) -> SupportsSend | None:
    """Return the first of `others` that has the same relay and login, or None.

    It would fail together with `mailer`, so neither is of use for the other.
    """
    place = _place(mailer)
    return next((other for other in others if place and _place(other) == place), None)


def _place(mailer: SupportsSend) -> tuple[object, ...] | None:
    if not isinstance(mailer, SMTPMailer):
        return None
    port = None if mailer.relay.is_unix else mailer.port
    return mailer.hostname.lower(), port, mailer.username, mailer.source_address


def consistent(given: Mapping[str, Given]) -> dict[str, Given]:
    """Check the options of an `ISMTPMailer` that depend on each other.

    Returns `given`, without half a login that may be ignored. zope.sendmail,
    repoze.sendmail and pyramid_mailer do not log in if the password is missing. A site
    that moves from these libraries may depend on this.

    Raises `OptionError` for a password without a user name, and for a login that would
    never be sent, because it needs TLS.
    """
    kept = dict(given)
    username, password = kept.get("username"), kept.get("password")
    if username and password:
        _check_login_is_sent(username, kept)
    elif username and username.may_be_alone:
        told = "%s: a username without a password is ignored: no login"
        log.warning(told, username.source or username.name)
        del kept["username"]
    elif password:
        if not password.may_be_alone:
            raise password.refused("has no effect without a username")
        del kept["password"]
    return kept


def _check_login_is_sent(username: Given, given: Mapping[str, Given]) -> None:
    tls, hostname = given.get("tls"), given.get("hostname")
    host = str(hostname.value).strip() if hostname else "localhost"
    if tls and str(tls.value).strip() == TLSMode.NONE and not _may_be_loopback(host):
        raise username.refused(
            f"a login is never sent in clear to {masked('hostname', host)!r}, and"
            f" {tls.name} forbids TLS; set tls to 'starttls' or 'implicit', or omit the"
            " login. If the relay is on this machine, set hostname to 127.0.0.1"
        )


def _may_be_loopback(host: str) -> bool:
    """Tell whether `host` may be this machine, without asking the DNS.

    The path of a unix socket is on this machine.
    """
    if host.startswith("/"):
        return True
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback or address.is_unspecified
    # The name of this machine, with or without its domain, is often 127.0.1.1.
    own = socket.gethostname().lower().partition(".")[0]
    return "localhost" in host.lower() or host.lower().partition(".")[0] == own
