"""Options from an ini file: ours, or one of an older library's script.

====================  ====================================================
section               keys
====================  ====================================================
``postcommit``        the options, ``password_file``, ``log_level`` and
                      ``log_format``
``app:zope-sendmail`` those of the script of zope.sendmail
``app:qp``            those of the script of repoze.sendmail
====================  ====================================================

Other sections belong to somebody else.
"""
from __future__ import annotations

import configparser
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any
from typing import NoReturn

from postcommit.errors import ConfigError
from postcommit.interfaces import TLSMode
from postcommit.settings import truth
from postcommit.settings import unknown


OURS = "postcommit"

_ZOPE = (
    "interval",
    "hostname",
    "port",
    "username",
    "password",
    "force_tls",
    "no_tls",
    "queue_path",
)
_OLDER = {
    "app:zope-sendmail": _ZOPE,
    "app:qp": (*_ZOPE[1:], "ssl", "debug_smtp"),
}


@dataclass(frozen=True)
class Given:
    """An option as it was given, with its `name` there; `source` is where.

    `is_older` is true in a section of an older library.
    """

    source: str
    name: str
    value: Any = field(repr=False)
    is_older: bool = False

    def refused(self, reason: str) -> ConfigError:
        """Return the error that says what is wrong with it."""
        return ConfigError(self.source, self.name, self.value, reason)


def read(path: str, known: Iterable[str]) -> dict[str, Given]:
    """Return the options that the file at `path` has, by their names in settings.

    `known` is what they may be called. An empty one is like one that is not
    there. Raises `ConfigError`, or OSError where the file cannot be read.
    """
    names = [OURS, *_OLDER]
    parser = _parsed(path, configparser.RawConfigParser(default_section="\n"))
    found = [name for name in names if parser.has_section(name)]
    if len(found) != 1:
        has = " and ".join(f"[{name}]" for name in found)
        reason = f"remove all but one of {has}" if has else f"add a section [{OURS}]"
        others = ", ".join(f"[{name}]" for name in names)
        raise ConfigError(path, "section", None, f"{reason}; these are read: {others}")
    [section] = found
    source = f"{path}, [{section}]"
    if section == OURS:
        return _checked(source, parser.items(section), known)
    # Their scripts know [DEFAULT] and interpolate.
    older = _parsed(path, configparser.ConfigParser())
    inherited = older.defaults().keys() - parser.options(section)
    values = _interpolated(source, older, section)
    mine = [(k, v) for k, v in values if k in _OLDER[section] or k not in inherited]
    return _translated(_checked(source, mine, _OLDER[section]))


def _parsed(
    path: str, parser: configparser.RawConfigParser
) -> configparser.RawConfigParser:
    # What the parser says repeats the line, which may have a password.
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except UnicodeDecodeError:
        _refuse(path, "is no text in UTF-8")
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
    raise ConfigError(path, "ini file", None, reason) from None


def _interpolated(
    source: str, parser: configparser.RawConfigParser, section: str
) -> Iterator[tuple[str, str]]:
    for key in parser.options(section):
        try:
            yield key, parser.get(section, key)
        except configparser.InterpolationError:
            reason = "a % that stands for itself is written %%"
            raise ConfigError(source, key, "***", reason) from None


def _checked(
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


# From theirs to ours


def _translated(theirs: Mapping[str, Given]) -> dict[str, Given]:
    ours = {
        name: replace(given, is_older=True)
        for name, given in theirs.items()
        if name in _ZOPE and given.value.strip() != "None"
    }
    for name in ("force_tls", "no_tls"):
        ours.pop(name, None)
    if "interval" in ours:
        interval = ours.pop("interval")
        ours["polling_interval"] = _changed(interval, _milliseconds)
    if "debug_smtp" in theirs and _is_true(theirs["debug_smtp"]):
        raise theirs["debug_smtp"].refused("remove it; there is --log-level debug")
    return ours | _tls(theirs)


def _tls(theirs: Mapping[str, Given]) -> dict[str, Given]:
    """Return the mode that their switches mean; without, it is the default."""
    modes = {
        "force_tls": TLSMode.STARTTLS,
        "no_tls": TLSMode.NONE,
        "ssl": TLSMode.IMPLICIT,
    }
    on = [name for name in modes if name in theirs and _is_true(theirs[name])]
    if on == ["force_tls", "ssl"]:
        on = ["ssl"]  # encrypted from the first byte
    if len(on) > 1:
        raise theirs[on[1]].refused(f"contradicts {on[0]}; remove one")
    if not on:
        return {}
    mode = modes[on[0]].value
    return {"tls": _changed(theirs[on[0]], lambda _: mode)}


def _is_true(given: Given) -> bool:
    meant = truth(given.value.strip())
    if meant is None:
        raise given.refused("must be true or false")
    return meant


def _milliseconds(text: str) -> int:
    return round(float(text) * 1000)


def _changed(given: Given, convert: Callable[[str], Any]) -> Given:
    try:
        return Given(given.source, given.name, convert(given.value))
    except (ValueError, OverflowError):
        raise given.refused("must be a number of seconds") from None
