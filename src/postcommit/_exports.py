"""Public names that are imported on first use, so that importing a package is cheap.

The stub ``__init__.pyi`` of the package has each of its names once, with the module
that defines it. Type checkers read it, and so does `exports`.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


def exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions ``__getattr__`` and ``__dir__`` of `package` (PEP 562)."""

    @cache
    def homes() -> dict[str, str]:
        module: Any = sys.modules[package]
        path = f"{os.path.dirname(module.__file__)}/__init__.pyi"
        try:
            stub = module.__spec__.loader.get_data(path).decode()  # also from a zip
        except OSError as error:
            reason = "is missing, and the package needs it; install postcommit again"
            raise ImportError(f"{path} {reason}", name=package, path=path) from error
        imports = [line.split() for line in stub.splitlines() if line[:5] == "from "]
        return {name: module for _, module, _, name, *renamed in imports if renamed}

    def get(name: str) -> Any:
        if name == "__all__":
            return sorted(homes())
        if name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes()[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes())
