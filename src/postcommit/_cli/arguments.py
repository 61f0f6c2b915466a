"""Arguments that several commands take: ``--adopt``, and the options of a schema."""
from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from zope.schema import Bool
from zope.schema import Choice
from zope.schema import Float
from zope.schema import Int
from zope.schema import Password

from postcommit._config.options import fields_of
from postcommit._config.options import parsed
from postcommit.errors import OptionError
from postcommit.errors import shown


Parser = argparse.ArgumentParser
Group = argparse._ArgumentGroup


def adopt(parser: Parser) -> None:
    """Add the option for a folder that is a queue and may look like a mailbox."""
    told = "take the folder for a queue, even if it looks like a person's mailbox"
    parser.add_argument("--adopt", action="store_true", help=told)


def options_of(parser: Parser, title: str, schema: Any, *without: str) -> Group:
    """Add the options of `schema`, except for passwords and those of `without`.

    Returns the group of these options.
    """
    group = parser.add_argument_group(title)
    for name, field in fields_of(schema).items():
        if name in without or isinstance(field, Password):
            continue
        convert = _type(schema, field.__name__)
        kind: dict[str, Any] = {"metavar": _metavar(field), "type": convert}
        if isinstance(field, Bool):
            kind = {"action": argparse.BooleanOptionalAction}
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=None,
            help=_help(field).replace("%", "%%"),
            **kind,
        )
    return group


class Join(argparse.Action):
    """Joins the texts of a flag that is given several times with blanks."""

    def __call__(
        self, parser: Parser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        before = getattr(namespace, self.dest)
        joined = values if before is None else f"{before} {values}"
        setattr(namespace, self.dest, joined)


def _type(schema: Any, name: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parsed(schema, name, text)
        except OptionError as error:
            reason = f"{shown(error.value)}: {error.reason}"
        raise argparse.ArgumentTypeError(reason)

    return convert


def _metavar(field: Any) -> str:
    if isinstance(field, Choice):
        return "|".join(term.value for term in field.vocabulary)
    return "N" if isinstance(field, Int | Float) else "TEXT"


def _help(field: Any) -> str:
    told = str(field.description).rstrip(".")
    told = told[:1].lower() + told[1:] if told[1:2].islower() else told
    return f"{told} (default: {_shown(field.default)})"


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, float):
        return f"{default:.10g}"
    return "none" if default is None else str(default)
