"""The modules keep to the layers of ``docs/design.rst``, and stay small."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "postcommit"
ROW = re.compile(r"^   \* - (\d+)\n     - ``([\w/]+)``", re.MULTILINE)
FACES = {"zcml", "pyramid", "cli", "testing"}

MODULES = sorted(
    str(path.relative_to(SOURCE).with_suffix(""))
    for path in SOURCE.rglob("*.py")
    if path.name != "__init__.py"
)


def layers() -> dict[str, int]:
    text = (ROOT / "docs" / "design.rst").read_text()
    return {module: int(layer) for layer, module in ROW.findall(text)}


def imported(module: str) -> Iterator[str]:
    """Yield the modules of ours that `module` imports, wherever in its code.

    Imports for type checkers only do not count.
    """
    tree = ast.parse((SOURCE / f"{module}.py").read_text())
    for node in walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found = module_of(name)
            if found is not None:
                yield found


def walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not checking:
            yield from walk(child)


def module_of(name: str) -> str | None:
    """Return the module that the dotted `name` is, or is in."""
    parts = name.split(".")
    if parts[0] != "postcommit":
        return None
    while len(parts) > 1:
        module = "/".join(parts[1:])
        if module in MODULES:
            return module
        parts.pop()
    return None


def test_each_module_has_a_row_and_each_row_a_module() -> None:
    assert sorted(layers()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_to_a_lower_layer(module: str) -> None:
    layer = layers()
    wrong = [m for m in imported(module) if m != module and layer[m] >= layer[module]]
    assert not wrong, f"{module} ({layer[module]}) imports {wrong}"


@pytest.mark.parametrize("module", MODULES)
def test_queue_and_smtp_do_not_meet_and_nobody_imports_a_face(module: str) -> None:
    package, _, _ = module.partition("/")
    for other in imported(module):
        assert {package, other.partition("/")[0]} != {"queue", "smtp"}
        assert other.partition("/")[0] not in FACES - {package}


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_small(module: str) -> None:
    text = (SOURCE / f"{module}.py").read_text()
    assert text.count("\n") < (700 if module == "interfaces" else 350)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno
            assert length < 45, f"{module}.{node.name}: {length} lines"
