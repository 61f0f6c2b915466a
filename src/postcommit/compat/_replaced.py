"""Puts other objects in the place of some names of a module, until it is undone."""
from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any


class Replacement:
    """The names of `place`, a module or class, with the objects that replace theirs.

    `replace` and `restore` may be called in any order, and again. Other packages may
    put objects of their own in the same place.
    """

    def __init__(self, place: Any, names: Mapping[str, Any]) -> None:
        self._place = place
        self._names = dict(names)
        self._older: dict[str, Any] = {}
        self._is_in_place = False
        self._changing = threading.Lock()

    def older(self, name: str) -> Any:
        """Return what was at `name` before `replace`, also after `restore`."""
        return self._older[name]

    def replace(self) -> None:
        """Put the objects in place, also where another package has replaced them."""
        with self._changing:
            if not self._is_in_place:
                self._older = {name: vars(self._place)[name] for name in self._names}
                self._is_in_place = True
            for name, ours in self._names.items():
                setattr(self._place, name, ours)

    def restore(self) -> None:
        """Put back what was there before, where our objects still are."""
        with self._changing:
            self._is_in_place = False
            for name, older in self._older.items():
                if vars(self._place)[name] is self._names[name]:
                    setattr(self._place, name, older)
