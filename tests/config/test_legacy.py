"""The older libraries' names of options, and their switches for TLS."""
from __future__ import annotations

import itertools
from typing import Any

import pytest

from postcommit._config import legacy
from postcommit._config.legacy import Library
from postcommit._config.legacy import translated
from postcommit._config.options import Given
from postcommit.errors import ConfigError
from postcommit.errors import OptionError
from postcommit.interfaces import TLSMode


LIBRARIES = [
    legacy.ZOPE_SENDMAIL,
    legacy.ZOPE_SENDMAIL_SCRIPT,
    legacy.REPOZE_SENDMAIL_SCRIPT,
    legacy.PYRAMID_MAILER,
]


def given(**values: Any) -> dict[str, Given]:
    return {name: Given("shop.ini", name, value) for name, value in values.items()}


def mode(library: Library, **values: Any) -> str | None:
    """Return the mode that the switches choose, None if they contradict each other."""
    try:
        found = translated(given(**values), library).get("tls")
    except ConfigError as error:
        return None if "contradicts" in error.reason else error.reason
    return "auto" if found is None else str(found.value)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("values", [*itertools.product([None, True, False], repeat=3)])
def test_every_combination_of_switches(library: Library, values: Any) -> None:
    """One is true: its mode. Two are true: only what the library itself allows."""
    pairs = zip(library.switches, values, strict=False)
    told = {name: value for name, value in pairs if value is not None}
    on = {name for name, value in told.items() if value}
    found = mode(library, **told)
    if library is legacy.PYRAMID_MAILER and told.get("tls") is False:
        assert found == ("implicit" if on else "none")
    elif not on:
        assert found == "auto"
    elif len(on) == 1:
        [name] = on
        assert found == library.switches[name].on[0].value
    elif library is legacy.REPOZE_SENDMAIL_SCRIPT and on == {"ssl", "force_tls"}:
        assert found == "implicit"
    else:
        assert found is None


@pytest.mark.parametrize("library", [legacy.ZOPE_SENDMAIL, legacy.PYRAMID_MAILER])
@pytest.mark.parametrize("tls", list(TLSMode))
def test_the_mode_itself_has_to_agree_with_the_switches(
    library: Library, tls: TLSMode
) -> None:
    assert mode(library, tls=tls.value) == tls
    for name, switch in library.switches.items():
        if name != "tls":
            is_same = tls == switch.on[0]
            assert mode(library, **{name: "yes"}, tls=tls.value) == (
                tls if is_same else None
            )
            assert mode(library, **{name: "no"}, tls=tls.value) == (
                None if is_same else tls
            )


def test_the_mode_is_from_the_switch_that_decided() -> None:
    options = given(no_tls="yes", ssl="no", force_tls="0")
    found = translated(options, legacy.REPOZE_SENDMAIL_SCRIPT)["tls"]
    assert (found.source, found.name, found.value) == ("shop.ini", "no_tls", "none")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_switch_that_is_neither_true_nor_false(library: Library) -> None:
    for name in library.switches.keys() - {"tls"}:
        for value in ("maybe", "starttls", 2):
            with pytest.raises(ConfigError, match=f"{name}=.*: must be true or false"):
                translated(given(**{name: value}), library)
    # The schema says which modes there are.
    assert translated(given(tls="ssl"), library) == given(tls="ssl")


@pytest.mark.parametrize("library", LIBRARIES)
def test_names(library: Library) -> None:
    for theirs, ours in library.names.items():
        options = given(**{theirs: "5", "other": "x"})
        found = translated(options, library)
        assert found[ours].name == theirs
        assert found["other"] == options["other"]
        if ours != theirs:
            with pytest.raises(ConfigError, match=f"{theirs} is the same"):
                translated({**options, **given(**{ours: "6"})}, library)
    for name, remedy in library.refused.items():
        for value in ("false", False, "0"):
            assert translated(given(**{name: value}), library) == {}
        for value in ("true", "x.pem"):
            with pytest.raises(OptionError) as caught:
                translated(given(**{name: value}), library)
            assert caught.value.reason == remedy


def test_seconds_become_milliseconds() -> None:
    found = translated(given(interval="1.5"), legacy.ZOPE_SENDMAIL_SCRIPT)
    assert found["polling_interval"].value == 1500
