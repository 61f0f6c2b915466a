"""The options of a command: from its arguments, the environment and a file.

The first of these sources that has an option wins:

1. The command line.
2. The environment. For example, ``POSTCOMMIT_PORT`` is the option ``port``.
3. For a password, the file of its name in systemd's ``$CREDENTIALS_DIRECTORY``, such
   as ``amqp_password``.
4. The file that ``--config``, or ``POSTCOMMIT_CONFIG``, names.
5. The default in `postcommit.interfaces`.

There may be several relays. ``--failover`` names hosts that are used with the same
options as the first one. A section ``[postcommit:NAME]`` of the file is a relay that
has the options of this section, and no others.
"""
from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from typing import NoReturn

from zope.schema import Password

from postcommit._amqp.mailer import AMQPMailer
from postcommit._amqp.receiver import QueueReceiver
from postcommit._build import build
from postcommit._build import consistent
from postcommit._build import twin
from postcommit._cli import arguments as args
from postcommit._cli.owner import is_root
from postcommit._config import sources
from postcommit._config.options import Given
from postcommit._config.options import fields_of
from postcommit._config.options import parsed
from postcommit._mailers.failover import FailoverMailer
from postcommit._processor import QueueProcessor
from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import MISSING
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.interfaces import IAMQPMailer
from postcommit.interfaces import IFailoverMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IQueueReceiver
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import SupportsSend


LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("text", "json")

_CHOICES = {"log_level": LEVELS, "log_format": FORMATS}

# Names of the options in an ini file. The environment has `config`, too.
_KNOWN = (
    *fields_of(ISMTPMailer),
    *fields_of(IMailQueueProcessor),
    *fields_of(IFailoverMailer),
    *fields_of(IAMQPMailer),
    *fields_of(IQueueReceiver),
    "failover",
    "password_file",
    "amqp_password_file",
    "receive_password_file",
    *_CHOICES,
)

# The host and the port of a further relay. Without a match, the port is missing.
_PLACE = re.compile(r"(\[[^]]*\]|[^:]*)(?::([^:]*))?")

# A URL with a user and a password.
_HAS_PASSWORD = re.compile(r"[^/]*//[^@/]*:[^@]*@")

_READABLE = "everybody on this machine can read a command line"

_INSTEAD = "--password-file, POSTCOMMIT_PASSWORD_FILE or systemd's LoadCredential"


def arguments(parser: argparse.ArgumentParser, *, level: str) -> None:
    """Add the options of a relay and of the log. `level` is the default level."""
    group = parser.add_argument_group("configuration")
    told = "ini file with more options, in its section [postcommit]"
    group.add_argument("--config", metavar="FILE", help=told)
    told = "file that has the relay's password in its only line"
    group.add_argument("--password-file", metavar="FILE", help=told)
    group.add_argument("--password", nargs="?", action=_Refuse, help=argparse.SUPPRESS)
    args.options_of(parser, "relay", ISMTPMailer)
    title = "further relays, for when the first one fails"
    group = args.options_of(parser, title, IFailoverMailer)
    told = (
        "hosts that are used with the same options, and the same login, if the relay"
        " fails; an ini file may have a section [postcommit:NAME] for each further"
        " relay with options of its own"
    )
    group.add_argument("--failover", metavar="HOST[:PORT]", action=args.Join, help=told)
    title = "a RabbitMQ broker, to which the mail is handed over, in place of a relay"
    broker_arguments(parser, title, IAMQPMailer)
    log_arguments(parser, level=level)


def broker_arguments(
    parser: argparse.ArgumentParser, title: str, schema: Any, *without: str
) -> None:
    """Add the options of a broker, except for those of `without`."""
    group = args.options_of(parser, title, schema, *without)
    [name] = [n for n, f in fields_of(schema).items() if isinstance(f, Password)]
    flag = f"--{name.replace('_', '-')}"
    told = "file that has the password for the broker in its only line"
    group.add_argument(f"{flag}-file", metavar="FILE", help=told)


def log_arguments(parser: argparse.ArgumentParser, *, level: str) -> None:
    """Add the options of the log. `level` is the default level."""
    group = parser.add_argument_group("log, on standard error")
    told = f"least level that is logged (default: {level})"
    group.add_argument("--log-level", choices=LEVELS, help=told)
    told = "json: an object in each line (default: text)"
    group.add_argument("--log-format", choices=FORMATS, help=told)


def queue_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the queue, and the options that say how to drain it."""
    told = "folder of the queue, or its URL, such as postgresql://host/db; the option"
    told += " queue_path elsewhere is the same"
    parser.add_argument("queue_path", metavar="QUEUE", nargs="?", help=told)
    told = "create the queue where it is missing; its parent must be there"
    parser.add_argument("--create", action="store_true", help=told)
    args.adopt(parser)
    args.options_of(parser, "processor", IMailQueueProcessor, "queue_path")


class _Refuse(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser.error(f"no password here, {_READABLE}; give it by {_INSTEAD}")


class Configuration:
    """The options of all sources. Raises `ConfigError`, or OSError for a file."""

    def __init__(
        self, options: argparse.Namespace, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._given, self._further = _collected(options, environ)
        self._log = {name: self._chosen(name) for name in _CHOICES}
        self._given = consistent(self._given)

    def _chosen(self, name: str) -> str | None:
        given = self._given.pop(name, None)
        if given is None:
            return None
        chosen = str(given.value).strip().lower()
        if chosen not in _CHOICES[name]:
            raise given.refused(f"must be one of {', '.join(_CHOICES[name])}")
        return chosen

    def log_level(self, default: str) -> str:
        return self._log["log_level"] or default

    @property
    def log_format(self) -> str:
        return self._log["log_format"] or FORMATS[0]

    @property
    def queue_path(self) -> str:
        """The path of the queue. Raises `OptionError` if it is missing."""
        given = self._given.get("queue_path")
        if given is None:
            reason = "name the queue, or have queue_path in the file of --config"
            raise OptionError("queue_path", MISSING, reason)
        return str(given.value).strip()

    def mailer(self) -> SMTPMailer | FailoverMailer | AMQPMailer:
        """Return the mailer. Raises `OptionError`, with the place of the option."""
        if "amqp_url" in self._given:
            return self._amqp_mailer()
        for name in fields_of(IAMQPMailer).keys() & self._given.keys():
            reason = "has no effect without amqp_url, the broker"
            raise self._given[name].refused(reason)
        relays = [relay for _, relay in self.named_relays()]
        mailer: SMTPMailer | FailoverMailer = relays[0]
        if len(relays) > 1:
            mailer = build(IFailoverMailer, self._given, mailers=relays)
        else:
            for name in fields_of(IFailoverMailer).keys() & self._given.keys():
                reason = "has no effect without a second relay; name it by --failover"
                raise self._given[name].refused(reason)
        _read_early(mailer)
        return mailer

    def _amqp_mailer(self) -> AMQPMailer:
        for name in ("hostname", "failover"):
            if name in self._given:
                reason = "has no effect with amqp_url; remove one"
                raise self._given[name].refused(reason)
        if "receive_url" in self._given:
            reason = "would hand over all that receive_url receives; use another file"
            raise self._given["amqp_url"].refused(reason)
        mailer: AMQPMailer = build(IAMQPMailer, self._given)
        _read_early(mailer)
        return mailer

    def receiver(self) -> QueueReceiver:
        """Return the receiver. Raises `OptionError`, as `mailer`."""
        if "receive_url" not in self._given:
            reason = "name the broker, or have receive_url in the file of --config"
            raise OptionError("receive_url", MISSING, reason)
        made: QueueReceiver = build(
            IQueueReceiver,
            self._given,
            kind=_receiver,
            queuePath=self.queue_path,
        )
        _read_early(made)
        return made

    def named_relays(self) -> list[tuple[str, SMTPMailer]]:
        """Return the name and the mailer of each relay.

        The name is the section of the file, or "postcommit". A relay of ``--failover``
        has its host and port. Raises `OptionError`, as `mailer`.
        """
        if "username" in self._given and sources.SECRET not in self._given:
            reason = f"is needed with a username; give it by {_INSTEAD}"
            raise OptionError(sources.SECRET, MISSING, reason)
        first: SMTPMailer = build(ISMTPMailer, self._given)
        relays = [(sources.OURS, first)]
        if failover := self._given.get("failover"):
            for text in str(failover.value).replace(",", " ").split():
                relay = self._relay_at(failover, text)
                _check_is_new(relay, relays, failover)
                relays.append((str(relay.relay), relay))
        for name, options in self._further.items():
            if "username" in options and sources.SECRET not in options:
                reason = "needs a password or a password_file in the same section"
                raise options["username"].refused(reason)
            relay = build(ISMTPMailer, options)
            _check_is_new(relay, relays, options["hostname"])
            relays.append((name, relay))
        return relays

    def _relay_at(self, failover: Given, text: str) -> SMTPMailer:
        """Return a mailer with the options of the first mailer, for another host."""
        try:
            options = {**self._given, **_host(failover, text)}
            relay: SMTPMailer = build(ISMTPMailer, options)
        except OptionError as error:
            if error.name != failover.name:
                raise
            # The whole value is shown, because a part may be a password.
            reason = error.reason
        else:
            return relay
        raise failover.refused(reason)

    def processor(self, mailer: SupportsSend) -> QueueProcessor:
        """Return a processor of the queue. Raises `OptionError`, as `mailer`."""
        path = self.queue_path
        made: QueueProcessor = build(
            IMailQueueProcessor, self._given, queuePath=path, mailer=mailer
        )
        return made


def _read_early(made: SMTPMailer | FailoverMailer | AMQPMailer | QueueReceiver) -> None:
    """Read the certificates now, as root.

    Later we act as the owner of the queue, who may not be allowed to read them. If this
    fails, it fails again with the first connection.
    """
    if is_root():
        with suppress(RelayError):
            made.read_certificates()


def _receiver(*, queue: str | None = None, **options: Any) -> QueueReceiver:
    return QueueReceiver(queue=queue or IQueueReceiver["queue"].default, **options)


def _check_is_new(
    relay: SMTPMailer, relays: list[tuple[str, SMTPMailer]], given: Given
) -> None:
    """Raise `OptionError` if one of `relays` is the same, with the same login."""
    for name, other in relays:
        if twin(relay, [other]):
            reason = f"the relay {relay.relay} is there twice, first as [{name}]"
            raise given.refused(reason)


def _host(failover: Given, text: str) -> dict[str, Given]:
    """Return the options of a relay that is given as ``host`` or ``host:port``.

    An IPv6 address with a port has brackets, as in a URL.
    """
    split = _PLACE.fullmatch(text)
    host, port = split.groups() if split else (text, None)
    found = {"hostname": replace(failover, value=host.strip("[]"))}
    if not port:
        return found
    try:
        parsed(ISMTPMailer, "port", port)
    except OptionError as error:
        raise failover.refused(f"the port {error.reason}") from None
    return {**found, "port": replace(failover, value=port)}


def _collected(
    options: argparse.Namespace, environ: Mapping[str, str]
) -> tuple[dict[str, Given], dict[str, dict[str, Given]]]:
    """Return the options of all sources, each from the first source that has it.

    The second value has the options of each further relay, by its section.
    """
    told = sources.from_arguments(vars(options), _KNOWN)
    for name in told.keys() & sources.URLS:
        if _HAS_PASSWORD.match(str(told[name].value)):
            raise told[name].refused(f"must be without a password, {_READABLE}")
    variables = sources.from_environment(environ, (*_KNOWN, "config"))
    config = variables.pop("config", None)
    found = {**variables, **told}
    found |= sources.credentials(environ, found)
    path = options.config or (config and config.value)
    further: dict[str, dict[str, Given]] = {}
    if path:
        found = {**sources.from_file(path, _KNOWN), **found}
        further = sources.further_relays(path, fields_of(ISMTPMailer))
    # An empty argument is like a missing argument, but wins over the other sources.
    return {name: one for name, one in found.items() if one.value != ""}, further
