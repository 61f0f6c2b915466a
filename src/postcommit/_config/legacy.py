"""Names and TLS switches of the older libraries, and our options for them.

There is one `Library` for each kind of file. ZCML, the settings of Pyramid and ini
files use `translated`.
"""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any
from typing import NamedTuple

from postcommit._config.options import Given
from postcommit._config.options import truth
from postcommit.interfaces import TLSMode


class Switch(NamedTuple):
    """A truth value that chooses the mode of TLS.

    `on` has the modes that go with true, the preferred mode first, and `off` those that
    go with false. Without `off`, false rules out the preferred mode only.
    """

    on: tuple[TLSMode, ...]
    off: tuple[TLSMode, ...] = ()


_NO_TLS = Switch((TLSMode.NONE,))
_IMPLICIT = Switch((TLSMode.IMPLICIT,))

# The switches for TLS of each library. In repoze.sendmail, `ssl` is enough for
# `force_tls`. In pyramid_mailer, `tls` may also be one of our modes, and `ssl` may be
# true although `tls` is false.
_SWITCHES = {
    "zope.sendmail": {
        "implicit_tls": _IMPLICIT,
        "force_tls": Switch((TLSMode.STARTTLS,)),
        "no_tls": _NO_TLS,
    },
    "repoze.sendmail": {
        "force_tls": Switch((TLSMode.STARTTLS, TLSMode.IMPLICIT)),
        "no_tls": _NO_TLS,
        "ssl": _IMPLICIT,
    },
    "pyramid_mailer": {
        "tls": Switch((TLSMode.STARTTLS,), (TLSMode.NONE, TLSMode.IMPLICIT)),
        "ssl": _IMPLICIT,
    },
}


@dataclass(frozen=True)
class Library:
    """The options of an older library in one kind of file.

    `names` maps its names to ours, and `switches` has the truth values for TLS.
    `refused` has the options without a counterpart, each with a remedy. They may only
    be false.
    """

    switches: Mapping[str, Switch]
    names: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> tuple[str, ...]:
        """All names of the library."""
        return (*self.names, *self.switches, *self.refused)


# Options of the scripts of both libraries, by the same name as ours.
_SAME = {
    name: name for name in ("hostname", "port", "username", "password", "queue_path")
}

# The directives of zope.sendmail. All other attributes have our names.
ZOPE_SENDMAIL = Library(_SWITCHES["zope.sendmail"])

# The ini files of the script of zope.sendmail.
ZOPE_SENDMAIL_SCRIPT = Library(
    _SWITCHES["zope.sendmail"], {**_SAME, "interval": "polling_interval"}
)

# The ini files of the script of repoze.sendmail.
REPOZE_SENDMAIL_SCRIPT = Library(
    _SWITCHES["repoze.sendmail"],
    _SAME,
    refused={"debug_smtp": "remove it; there is --log-level debug"},
)

# The settings of pyramid_mailer.
PYRAMID_MAILER = Library(
    _SWITCHES["pyramid_mailer"],
    {
        "host": "hostname",
        "sendmail_app": "sendmail_command",
        "top_level_directory": "folder",
    },
    refused={
        "sendmail_template": "the program gets its arguments; name it in sendmail_app",
        "debug": "set the level of the logger 'postcommit' instead",
    },
)

# Our names for names that people may know from elsewhere, to suggest in an error. The
# first rows are attributes of Products.MailHost.
INSTEAD = {
    "smtp_host": "hostname",
    "smtp_port": "port",
    "smtp_uid": "username",
    "smtp_pwd": "password",
    "smtp_queue_directory": "queue_path",
    "host": "hostname",
    "failover_mailers": "failover",
    "interval": "polling_interval",
    "implicit_tls": "tls",
    "force_tls": "tls",
    "no_tls": "tls",
    "ssl": "tls",
}


def translated(given: Mapping[str, Given], library: Library) -> dict[str, Given]:
    """Return `given` with the options of `library` by our names.

    Raises `OptionError` for an option without a counterpart, for an option that is
    given by two names, and for switches that contradict each other.
    """
    ours: dict[str, Given] = {}
    for name, one in given.items():
        if name in library.refused:
            if truth(one.value) is not False:
                raise one.refused(library.refused[name])
        elif name not in library.switches:
            known = library.names.get(name, name)
            if known in ours:
                raise one.refused(f"{ours[known].name} is the same")
            ours[known] = _milliseconds(one) if name == "interval" else one
    tls = _tls(given, library.switches)
    return ours if tls is None else {**ours, "tls": tls}


def _tls(given: Mapping[str, Given], switches: Mapping[str, Switch]) -> Given | None:
    """Return the option that chooses the mode, with the mode as its value.

    None if it is missing, so that the mode is the default.
    """
    allowed = tuple(TLSMode)
    chosen: Given | None = None
    seen: list[str] = []
    for name in dict.fromkeys((*switches, "tls")):
        if name in given:
            one = given[name]
            modes = _modes(name, one.value, switches)
            if not modes and name == "tls":
                return one  # The schema refuses it, and says what it may be.
            if not modes:
                raise one.refused("must be true or false")
            if not set(allowed) & set(modes):
                raise one.refused(f"contradicts {' and '.join(seen)}; remove one")
            narrowed = tuple(mode for mode in modes if mode in allowed)
            chosen = chosen if narrowed == allowed else one
            allowed = narrowed
            seen.append(f"{one.name}={one.value!r}")
    return chosen and replace(chosen, value=allowed[0].value)


def _modes(
    name: str, value: Any, switches: Mapping[str, Switch]
) -> tuple[TLSMode, ...]:
    """Return the modes that go with an option, none if its value means nothing."""
    meant = truth(value) if name in switches else None
    if meant is None:
        return tuple(mode for mode in TLSMode if name == "tls" and mode == value)
    on, off = switches[name]
    return on if meant else off or tuple(mode for mode in TLSMode if mode != on[0])


def _milliseconds(interval: Given) -> Given:
    with suppress(ValueError, OverflowError):
        return replace(interval, value=round(float(interval.value) * 1000))
    raise interval.refused("must be a number of seconds")
