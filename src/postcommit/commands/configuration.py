"""What a command is told: by its arguments, the environment and a file.

What comes first in this list wins:

1. the command line;
2. the environment: ``POSTCOMMIT_PORT`` is the option ``port``; the password may
   also be the file ``password`` in systemd's ``$CREDENTIALS_DIRECTORY``;
3. the file that ``--config``, or ``POSTCOMMIT_CONFIG``, names;
4. the default in `postcommit.interfaces`.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from typing import NoReturn

from postcommit.commands import arguments as args
from postcommit.commands import inifile
from postcommit.commands.inifile import Given
from postcommit.commands.owner import is_root
from postcommit.errors import ConfigError
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import ISMTPMailer
from postcommit.queue.runner import QueueProcessor
from postcommit.settings import fields_of
from postcommit.settings import mailer_from
from postcommit.settings import processor_from
from postcommit.settings import setting_name
from postcommit.settings import unknown
from postcommit.settings import without_lone_username
from postcommit.smtp.mailer import SMTPMailer


PREFIX = "POSTCOMMIT_"

LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("text", "json")

_CHOICES = {"log_level": LEVELS, "log_format": FORMATS}

_SMTP = tuple(fields_of(ISMTPMailer))
_PROCESSOR = tuple(fields_of(IMailQueueProcessor))

# What a file may have; the environment has `config` besides.
_KNOWN = (*_SMTP, *_PROCESSOR, "password_file", *_CHOICES)

_SECRET = "password"  # noqa: S105

_INSTEAD = "--password-file, POSTCOMMIT_PASSWORD_FILE or systemd's LoadCredential"


def arguments(parser: argparse.ArgumentParser, *, level: str) -> None:
    """Have `parser` take a relay, and how to log; by default from `level` on."""
    group = parser.add_argument_group("configuration")
    told = "ini file with more options, in its section [postcommit]"
    group.add_argument("--config", metavar="FILE", help=told)
    told = "file that has the relay's password in its only line"
    group.add_argument("--password-file", metavar="FILE", help=told)
    group.add_argument("--password", nargs="?", action=_Refuse, help=argparse.SUPPRESS)
    args.options_of(parser, "relay", ISMTPMailer)
    group = parser.add_argument_group("log, on standard error")
    told = f"least level that is logged (default: {level})"
    group.add_argument("--log-level", choices=LEVELS, help=told)
    told = "json: an object in each line (default: text)"
    group.add_argument("--log-format", choices=FORMATS, help=told)


def queue_arguments(parser: argparse.ArgumentParser) -> None:
    """Have `parser` take a queue and how to drain it."""
    told = "folder of the queue; the option queue_path elsewhere is the same"
    parser.add_argument("queue_path", metavar="QUEUE", nargs="?", help=told)
    told = "create the queue where it is missing; its parent must be there"
    parser.add_argument("--create", action="store_true", help=told)
    args.adopt(parser)
    args.options_of(parser, "processor", IMailQueueProcessor, "queue_path")


class _Refuse(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        reason = "everybody on this machine can read a command line"
        parser.error(f"no password here, {reason}; give it by {_INSTEAD}")


class Configuration:
    """The options that count. Raises `ConfigError`, or OSError for a file."""

    def __init__(
        self, options: argparse.Namespace, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._given: dict[str, Given] = {}
        for found in _sources(options, environ):
            for name, given in found.items():
                self._given.setdefault(name, given)
        self._log = {name: self._chosen(name) for name in _CHOICES}
        self._check_login()

    def _check_login(self) -> None:
        """Refuse half a login, unless it is in a file of an older library."""
        username, password = map(self._given.get, ("username", _SECRET))
        if username and username.is_older:
            self._given = without_lone_username(self._given, username.source)
        elif password and not username:
            if not password.is_older:
                raise password.refused("has no effect without a username")
            del self._given[_SECRET]

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
        """The queue. Raises `OptionError` where there is none."""
        given = self._given.get("queue_path")
        if given is None:
            reason = "name the queue, or have queue_path in the file of --config"
            raise OptionError("queue_path", None, reason)
        return str(given.value).strip()

    def mailer(self, **others: Any) -> SMTPMailer:
        """Return the mailer; `others` are as for `mailer_from`."""
        try:
            mailer = mailer_from(self._values(_SMTP), **others)
        except OptionError as error:
            caught = error
        else:
            if is_root():
                # The owner of the queue, whom we act as, may not be allowed to.
                with suppress(RelayError):  # it comes again with the first connection
                    mailer.read_certificates()
            return mailer
        raise self._placed(caught)

    def processor(self, mailer: IMailer) -> QueueProcessor:
        """Return a processor of the queue."""
        values = self._values(_PROCESSOR) | {"queue_path": self.queue_path}
        try:
            return processor_from(values, mailer)
        except OptionError as error:
            caught = error
        raise self._placed(caught)

    def _values(self, names: tuple[str, ...]) -> dict[str, Any]:
        given = self._given
        return {name: given[name].value for name in names if name in given}

    def _placed(self, error: OptionError) -> OptionError:
        """Return `error` with the place where the option was given."""
        name = setting_name(error.name)
        if name == _SECRET and name not in self._given:
            reason = f"is needed with a username; give it by {_INSTEAD}"
            return OptionError(name, None, reason)
        given = self._given.get(name)
        if given is None:
            # It is the default that does not go with another option.
            other = next(g for n, g in self._given.items() if f"{n}=" in error.reason)
            return ConfigError(other.source, name, error.value, error.reason)
        return given.refused(error.reason)


# Where options come from


def _sources(
    options: argparse.Namespace, environ: Mapping[str, str]
) -> Iterator[dict[str, Given]]:
    """Yield what each source has, the one that wins first."""
    told = _of_command_line(options)
    yield _with_password(told)
    variables = _of_environment(environ)
    config = variables.pop("config", None)
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if _SECRET not in told and not {_SECRET, "password_file"} & variables.keys():
        variables |= _of_credentials(folder)
    yield _with_password(variables)
    path = options.config or (config and config.value)
    if path:
        yield _with_password(inifile.read(path, _KNOWN))


def _of_command_line(options: argparse.Namespace) -> dict[str, Given]:
    values = vars(options)
    return {
        name: Given("command line", f"--{name.replace('_', '-')}", values[name])
        for name in _KNOWN
        if values.get(name) is not None
    }


def _of_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    known = (*_KNOWN, "config")
    found = {}
    for variable, value in environ.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            if name not in known:
                error = unknown(name, known)
                raise ConfigError("environment", variable, error.value, error.reason)
            if value.strip():
                found[name] = Given("environment", variable, value)
    return found


def _of_credentials(folder: str | None) -> dict[str, Given]:
    path = os.path.join(folder, _SECRET) if folder else ""
    if not os.path.exists(path):
        return {}
    return {"password_file": Given("credentials", "password_file", path)}


def _with_password(found: dict[str, Given]) -> dict[str, Given]:
    """Have the password in place of the file that it is in."""
    file = found.pop("password_file", None)
    if file is None:
        return found
    if _SECRET in found:
        raise file.refused(f"{found[_SECRET].name} is there as well; remove one")
    password, more = _read_password(file)
    if not password or more:
        raise file.refused("must have the password in its only line")
    return {**found, _SECRET: Given(file.source, file.name, password)}


def _read_password(file: Given) -> tuple[str, str]:
    """Return the first line of a password file, and what follows it.

    The path is not shown in an error: it may be the password itself, which was
    given in place of a path.
    """
    try:
        with open(str(file.value).strip(), encoding="utf-8") as lines:
            return lines.readline().rstrip("\r\n"), lines.read().strip()
    except OSError as error:
        reason = f"the file cannot be read: {error.strerror}"
    except ValueError:
        reason = "must be the path of a text file in UTF-8"
    raise file.refused(reason)
