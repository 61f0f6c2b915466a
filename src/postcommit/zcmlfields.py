"""Fields of the contracts, as the attributes of ZCML directives.

Their errors say what would be right, and ZCML adds file and line.
"""
from __future__ import annotations

import copy
from typing import Any

from zope.configuration.fields import Bool
from zope.configuration.fields import Path
from zope.schema import Bool as SchemaBool
from zope.schema import Choice
from zope.schema import Field
from zope.schema import Password
from zope.schema import Text
from zope.schema import getFieldsInOrder
from zope.schema.interfaces import ConstraintNotSatisfied
from zope.schema.interfaces import InvalidValue


# Relative ones begin at the file that they are written in.
_PATHS = ("cafile", "command", "folder", "queuePath")


class FilePath(Path):  # type: ignore[misc]
    """A path that is not empty, which would be the folder of the file itself."""

    def fromUnicode(self, value: str) -> Any:
        if not value.strip():
            raise InvalidValue("it is empty").with_field_and_value(self, value)
        return super().fromUnicode(value)


class NamedChoice(Choice):
    """A choice that says what there is to choose from."""

    def fromUnicode(self, value: str) -> Any:
        try:
            return super().fromUnicode(value)
        except ConstraintNotSatisfied:
            choices = ", ".join(term.value for term in self.vocabulary)
            error = InvalidValue(f"{value!r} is none of {choices}")
            raise error.with_field_and_value(self, value) from None


def attributes(contract: Any, *without: str) -> dict[str, Field]:
    """Return the fields of `contract` as attributes of a directive, by their names."""
    return {
        name: _attribute(field)
        for name, field in getFieldsInOrder(contract)
        if name not in without
    }


def _attribute(field: Field) -> Any:
    """Return `field` of a contract as an attribute of a directive."""
    needed = field.required and field.default is None
    words = {"title": field.title, "description": field.description}
    if field.__name__ in _PATHS:
        return FilePath(required=needed, **words)
    if isinstance(field, SchemaBool):
        # The field of zope.schema takes all but "true" for false.
        return Bool(required=needed, default=field.default, **words)
    if isinstance(field, Password):
        # What a field refuses it repeats; the mailer checks without doing so.
        return Text(required=needed, **words)
    if isinstance(field, Choice):
        values = [term.value for term in field.vocabulary]
        words["default"] = field.default
        return NamedChoice(values=values, required=needed, **words)
    made = copy.copy(field)
    made.required = needed
    return made
