"""Sources of options: command line, environment, ini file and Pyramid's settings.

Each function returns the options of one source, by the names of `fields_of`. The values
are texts, or objects if they are from a program. An empty value counts as missing.
The functions raise `OptionError` for an unknown name, and for a file that cannot be
parsed.

====================  ====================================================
section of a file     keys
====================  ====================================================
``postcommit``        the options that are `known` to the caller
``postcommit:NAME``   those of a further relay, see `further_relays`
``app:zope-sendmail`` those of the script of zope.sendmail
``app:qp``            those of the script of repoze.sendmail
====================  ====================================================

Other sections are ignored, because they belong to other programs.
"""
from __future__ import annotations

import configparser
import difflib
import os
import re
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from typing import NoReturn

from postcommit._config import legacy
from postcommit._config.options import Given
from postcommit._config.options import setting_name
from postcommit.errors import MISSING
from postcommit.errors import ConfigError
from postcommit.errors import OptionError


# Beginning of the names of variables in the environment.
PREFIX = "POSTCOMMIT_"

SECRET = "password"  # noqa: S105
_FILE = "password_file"

# The options that are URLs, which may have a password.
URLS = ("amqp_url", "receive_url")

# The options that are passwords. Each may be in a file, which ``_file`` behind its name
# says.
_SECRETS = (SECRET, "amqp_password", "receive_password")

OURS = "postcommit"
# The word that the name of a section begins with.
_WORD = re.compile(r"\W*([\w-]*)")
# A variable that other programs replace in ini files.
_VARIABLE = re.compile(r"%\(\w+\)s")
_SCRIPTS = {
    "app:zope-sendmail": legacy.ZOPE_SENDMAIL_SCRIPT,
    "app:qp": legacy.REPOZE_SENDMAIL_SCRIPT,
}


def from_arguments(values: Mapping[str, Any], known: Iterable[str]) -> dict[str, Given]:
    """Return the arguments of a command line. None in `values` means missing."""
    return with_password(
        {
            name: Given("command line", f"--{name.replace('_', '-')}", values[name])
            for name in known
            if values.get(name) is not None
        }
    )


def from_environment(
    environ: Mapping[str, str], known: Iterable[str]
) -> dict[str, Given]:
    """Return the variables such as ``POSTCOMMIT_PORT``."""
    known = list(known)
    found = {}
    for variable, value in environ.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            if name not in known:
                error = unknown(name, known)
                raise ConfigError("environment", variable, error.value, error.reason)
            if value.strip():
                found[name] = Given("environment", variable, value)
    return with_password(found)


def credentials(
    environ: Mapping[str, str], found: Collection[str]
) -> dict[str, Given]:
    """Return the passwords in systemd's ``$CREDENTIALS_DIRECTORY``, by their names.

    Those in `found`, from a source that wins over this one, are not read.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return {}
    paths = {name: os.path.join(folder, name) for name in _SECRETS if name not in found}
    return with_password(
        {
            f"{name}_file": Given("credentials", f"{name}_file", path)
            for name, path in paths.items()
            if os.path.exists(path)
        }
    )


def from_settings(
    settings: Mapping[str, Any], prefix: str, known: Iterable[str]
) -> dict[str, Given]:
    """Return the settings of an application that begin with `prefix`.

    The names of pyramid_mailer are understood, too, and become ours.
    """
    library = legacy.PYRAMID_MAILER
    known = (*known, *library.names, *library.switches)
    given: dict[str, Given] = {}
    for whole, value in settings.items():
        if whole.startswith(prefix):
            name = whole.removeprefix(prefix)
            value = value.strip() if isinstance(value, str) else value
            if value not in (None, ""):
                if name not in (*known, *library.refused):
                    raise unknown(name, known, prefix)
                given[name] = Given("", whole, value, may_be_alone=name == "username")
    return legacy.translated(given, library)


def unknown(name: str, known: Iterable[str], prefix: str = "") -> OptionError:
    """Return the error for an option `name` that is not one of `known`.

    It does not show the value, because the name may be a misspelt ``password``.
    `prefix` is the beginning of all names in the settings.
    """
    spelt = setting_name(name)
    known = list(known)
    elsewhere = [old for old, new in legacy.INSTEAD.items() if new in known]
    near = [spelt, *difflib.get_close_matches(spelt, [*known, *elsewhere], 1)]
    near = [o if o in known else legacy.INSTEAD.get(o, o) for o in near]
    meant = next((other for other in near if other in known), None)
    hint = f"; do you mean {prefix}{meant}?" if meant else ""
    return OptionError(f"{prefix}{name}", "***", f"there is no such option{hint}")


# Ini files


def from_file(path: str, known: Iterable[str]) -> dict[str, Given]:
    """Return the options of the ini file at `path`.

    Raises `ConfigError`, or OSError if the file cannot be read.
    """
    names = [OURS, *_SCRIPTS]
    parser = _parsed(path, configparser.RawConfigParser(default_section="\n"))
    known = list(known)
    for section in parser.sections():
        _check_spelling(path, section, {*parser.options(section)} & {*known})
    found = [name for name in names if parser.has_section(name)]
    if len(found) != 1:
        has = " and ".join(f"[{name}]" for name in found)
        reason = f"remove all but one of {has}" if has else f"add a section [{OURS}]"
        others = ", ".join(f"[{name}]" for name in names)
        raise ConfigError(path, "", MISSING, f"{reason}; these are read: {others}")
    [section] = found
    source = f"{path}, [{section}]"
    if section == OURS:
        return _ours(source, parser.items(section), known)
    # The scripts of the older libraries read [DEFAULT] and interpolate.
    library = _SCRIPTS[section]
    older = _parsed(path, configparser.ConfigParser())
    inherited = older.defaults().keys() - parser.options(section)
    values = _interpolated(source, older, section)
    own = [(k, v) for k, v in values if k in library.known or k not in inherited]
    given = _known(source, own, library.known)
    return legacy.translated(
        {
            name: replace(one, may_be_alone=True)
            for name, one in given.items()
            if one.value.strip() != "None"
        },
        library,
    )


def _check_spelling(path: str, section: str, options: Collection[str]) -> None:
    """Raise `ConfigError` if `section` is probably meant as one of ours.

    A section of another program may have a similar name, so a misspelt name counts only
    with some of our `options`. For example, ``pre-commit`` is not ours.
    """
    if section == OURS or section.startswith(f"{OURS}:"):
        if section.strip() == f"{OURS}:":
            reason = f"[{section}] has no name; name it, such as [{OURS}:second]"
            raise ConfigError(path, "", MISSING, reason)
        return
    found = _WORD.match(section)
    word = found[1] if found else ""
    rest = section[found.end() :].strip(" :.-_/") if found else ""
    if word.startswith(f"{OURS}-"):
        word, rest = OURS, section.strip()[len(OURS) + 1 :]
    is_near = difflib.get_close_matches(word.lower(), [OURS], 1, 0.85)
    if word.lower() == OURS or (is_near and options):
        meant = f"[{OURS}:{rest}]" if rest else f"[{OURS}]"
        reason = f"[{section}] is not read; do you mean {meant}?"
        raise ConfigError(path, "", MISSING, reason)


def further_relays(path: str, known: Iterable[str]) -> dict[str, dict[str, Given]]:
    """Return the options of each section ``postcommit:NAME``, in their order.

    Raises as `from_file` does, and `ConfigError` for a section without a host.
    """
    parser = _parsed(path, configparser.RawConfigParser(default_section="\n"))
    known = (*known, _FILE)
    found = {}
    for section in parser.sections():
        if section.startswith(f"{OURS}:"):
            source = f"{path}, [{section}]"
            options = _ours(source, parser.items(section), known)
            if "hostname" not in options:
                raise ConfigError(source, "hostname", MISSING, "name the relay")
            found[section] = options
    return found


def _parsed(
    path: str, parser: configparser.RawConfigParser
) -> configparser.RawConfigParser:
    # The errors of the parser would show the line, which may have a password.
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except UnicodeDecodeError:
        _refuse(path, "is not a text in UTF-8")
    except configparser.MissingSectionHeaderError as error:
        _refuse(path, f"line {error.lineno} comes before the first [section]")
    except configparser.ParsingError as error:
        _refuse(path, f"line {error.errors[0][0]} is not «key = value»")
    except configparser.DuplicateOptionError as error:
        _refuse(path, f"line {error.lineno}: {error.option} is there already")
    except configparser.DuplicateSectionError as error:
        _refuse(path, f"line {error.lineno}: [{error.section}] is there already")
    return parser


def _refuse(path: str, reason: str) -> NoReturn:
    raise ConfigError(path, "", MISSING, reason) from None


def _interpolated(
    source: str, parser: configparser.RawConfigParser, section: str
) -> Iterator[tuple[str, str]]:
    for key in parser.options(section):
        try:
            yield key, parser.get(section, key)
        except configparser.InterpolationError:
            reason = "a % that stands for itself is written %%"
            raise ConfigError(source, key, "***", reason) from None


def _ours(
    source: str, items: Iterable[tuple[str, str]], known: Iterable[str]
) -> dict[str, Given]:
    """Return the options of a section of ours, which is not interpolated."""
    items = list(items)
    for name, _ in items:
        relay, dot, _ = name.partition(".")
        if dot:
            reason = f"a further relay is a section of its own, [{OURS}:{relay}]"
            raise ConfigError(source, name, "***", reason)
    found = _known(source, items, known)
    for name, one in found.items():
        variable = _VARIABLE.search(one.value)
        if variable is not None and name not in (*_SECRETS, *URLS):
            raise one.refused(f"{variable[0]} is not replaced here; write it out")
    return with_password(found)


def _known(
    source: str, items: Iterable[tuple[str, str]], known: Iterable[str]
) -> dict[str, Given]:
    known = list(known)
    found = {}
    for name, value in items:
        if name not in known:
            error = unknown(name, known)
            raise ConfigError(source, name, error.value, error.reason)
        if value.strip():
            found[name] = Given(source, name, value)
    return found


# Passwords in files


def with_password(found: dict[str, Given]) -> dict[str, Given]:
    """Return `found` with each password in place of the file that it is in."""
    for name in _SECRETS:
        file = found.pop(f"{name}_file", None)
        if file is None:
            continue
        if name in found:
            raise file.refused(f"{found[name].name} is there as well; remove one")
        password, more = _read_password(file)
        if not password or more:
            raise file.refused("must have the password in its only line")
        found = {**found, name: Given(file.source, file.name, password)}
    return found


def _read_password(file: Given) -> tuple[str, str]:
    """Return the first line of a password file, and what follows it.

    An error shows the path only if it is in a folder that exists. Otherwise it may be
    the password itself, given in place of a path.
    """
    path = str(file.value).strip()
    try:
        with open(path, encoding="utf-8") as lines:
            return lines.readline().rstrip("\r\n"), lines.read().strip()
    except OSError as error:
        folder = os.path.dirname(path)
        is_path = folder.strip("/") and os.path.isdir(folder)
        shown = f"the file {path!r}" if is_path else "the file"
        reason = f"{shown} cannot be read: {error.strerror}"
        if not os.path.isabs(path):
            reason += "; a relative path is below the working directory"
    except ValueError:
        reason = "must be the path of a text file in UTF-8"
    raise file.refused(reason)
