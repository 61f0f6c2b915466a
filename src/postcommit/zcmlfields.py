"""Fields of the contracts, as the attributes of ZCML directives.

Their errors say what would be right, and ZCML adds file and line.
"""
from __future__ import annotations

from typing import Any

from zope.configuration.fields import Path
from zope.interface import implementer
from zope.schema import Field
from zope.schema import getFieldsInOrder
from zope.schema.interfaces import IFromUnicode
from zope.schema.interfaces import InvalidValue

from postcommit.errors import OptionError
from postcommit.errors import is_url
from postcommit.errors import without_userinfo
from postcommit.interfaces import is_path
from postcommit.settings import option


class FilePath(Path):  # type: ignore[misc]
    """A path of the file system; a relative one begins at the folder of the file.

    An empty path is refused, because it would be that folder itself.
    """

    def fromUnicode(self, value: str) -> Any:
        if not value.strip():
            raise InvalidValue("it is empty").with_field_and_value(self, value)
        if is_url(value):
            shown = repr(without_userinfo(value))
            raise InvalidValue(f"{shown}: must be a path, not a URL")
        return super().fromUnicode(value)


@implementer(IFromUnicode)
class Option(Field):
    """The option `name` of `contract`, converted and checked as in settings.

    The fields of zope.schema would repeat a value that they refuse, and the value
    may be a password.
    """

    def __init__(self, contract: Any, name: str, **details: Any) -> None:
        super().__init__(**details)
        self._contract = contract
        self._name = name

    def fromUnicode(self, value: str) -> Any:
        try:
            return option(self._contract, self._name, value)
        except OptionError as error:
            reason = str(error)
        raise InvalidValue(reason)


def attributes(contract: Any, *without: str) -> dict[str, Field]:
    """Return the fields of `contract` as attributes of a directive, by their names."""
    return {
        name: _attribute(contract, field)
        for name, field in getFieldsInOrder(contract)
        if name not in without
    }


def _attribute(contract: Any, field: Field) -> Any:
    details = {
        "title": field.title,
        "description": field.description,
        "required": field.required and field.default is None,
    }
    if is_path(field):
        return FilePath(**details)
    return Option(contract, field.__name__, default=field.default, **details)
