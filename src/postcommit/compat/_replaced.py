"""Puts other objects in the place of some names of a module, until it is undone."""
from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any


class Replacement:
    """The names of `place`, a module or class, with the objects that replace theirs.

    `replace` and `restore` may be called in any order, and again.
    """

    def __init__(self, place: Any, names: Mapping[str, Any]) -> None:
        self._place = place
        self._names = dict(names)
        self._older: dict[str, Any] = {}
        self._changing = threading.Lock()

    def older(self, name: str) -> Any:
        """Return what was at `name` before; only while the objects are in place."""
        return self._older[name]

    def replace(self) -> None:
        """Put the objects in place."""
        with self._changing:
            if not self._older:
                self._older = {name: vars(self._place)[name] for name in self._names}
                self._set(self._names)

    def restore(self) -> None:
        """Put back what was there before."""
        with self._changing:
            self._set(self._older)
            self._older = {}

    def _set(self, objects: Mapping[str, Any]) -> None:
        for name, found in objects.items():
            setattr(self._place, name, found)
