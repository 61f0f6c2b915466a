"""Options that stay as the constructor has set them.

A mailer makes its connections from its options, and a processor its threads. An option
that was assigned later would show in the repr, without effect. So it is refused.
"""
from __future__ import annotations

import functools
from typing import TYPE_CHECKING
from typing import Any
from typing import cast

from zope.interface import implementedBy
from zope.interface.interface import Method


# What may be assigned: it is read each time, and takes effect with the next event.
_ASSIGNABLE = frozenset({"notify"})


@functools.lru_cache(maxsize=256)
def _options_of(kind: type) -> frozenset[str]:
    """Return the names of all attributes in the interfaces of a class."""
    contracts = cast(Any, implementedBy)(kind)
    return frozenset(
        name
        for contract in contracts.flattened()
        for name, member in contract.namesAndDescriptions()
        if not isinstance(member, Method) and name not in _ASSIGNABLE
    )


class ReadOnlyOptions:
    """A base of classes whose options cannot be assigned after the constructor.

    The options are the attributes in the interfaces of the class, except `notify`. The
    first assignment sets an option, and another one raises AttributeError.
    """

    if TYPE_CHECKING:
        ...  # with a __setattr__, a type checker would take any name
    else:

        def __setattr__(self, name: str, value: Any) -> None:
            if name in self.__dict__ and name in _options_of(type(self)):
                kind = type(self).__name__
                raise AttributeError(
                    f"{kind}.{name} cannot be changed; make a new {kind} with another"
                    f" {name}"
                )
            super().__setattr__(name, value)
