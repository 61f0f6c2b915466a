"""The modules are those of ``docs/design.rst``, and import no circles."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "postcommit"
ROW = re.compile(r"^   \* - ``([\w/]+)``$", re.MULTILINE)
FACES = {"zcml", "pyramid", "cli", "testing"}

FILES = sorted(
    str(path.relative_to(SOURCE).with_suffix("")) for path in SOURCE.rglob("*.py")
)
MODULES = [name for name in FILES if not name.endswith("__init__")]
PACKAGES = [name for name in FILES if name.endswith("__init__")]


def imported(module: str) -> list[str]:
    """Return the modules of ours that `module` imports, wherever in its code.

    Imports for type checkers only do not count.
    """
    return imports_of((SOURCE / f"{module}.py").read_text())


def imports_of(code: str) -> list[str]:
    names: list[str] = []
    for node in walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            names += [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
    found = (module_of(name) for name in names)
    return [module for module in found if module is not None]


def walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking(child.test):
            for other in child.orelse:
                yield from walk(other)
        else:
            yield from walk(child)


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def module_of(name: str) -> str | None:
    """Return the module of ours that the dotted `name` is, or is in.

    For a name that a package hands out, it is the package's ``__init__``.
    """
    parts = name.split(".")
    if parts[0] != "postcommit":
        return None
    while len(parts) > 1:
        module = "/".join(parts[1:])
        for found in (module, f"{module}/__init__"):
            if found in FILES:
                return found
        parts.pop()
    return "__init__"


def test_each_module_has_a_row_and_each_row_a_module() -> None:
    design = (ROOT / "docs" / "design.rst").read_text()
    assert sorted(ROW.findall(design.partition("\nModules\n")[2])) == MODULES


# Through the names that a package hands out on first use, any layer could reach
# any other one.
@pytest.mark.parametrize("module", MODULES)
def test_imports_name_a_module(module: str) -> None:
    wrong = [other for other in imported(module) if other in PACKAGES]
    assert not wrong, f"{module} imports from {wrong}"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_nothing_of_ours(package: str) -> None:
    assert imported(package) == []


def test_imports_have_no_circles() -> None:
    others = {module: set(imported(module)) - {module} for module in FILES}
    graph = TopologicalSorter(others)
    graph.prepare()  # raises CycleError, which names the circle
    assert graph.is_active()


@pytest.mark.parametrize("module", MODULES)
def test_queue_and_smtp_do_not_meet_and_nobody_imports_a_face(module: str) -> None:
    package, _, _ = module.partition("/")
    for other in imported(module):
        assert {package, other.partition("/")[0]} != {"queue", "smtp"}
        assert other.partition("/")[0] not in FACES - {package}


# On Python 3.11, it takes a lock. A child that is forked meanwhile waits for ever.
@pytest.mark.parametrize("module", sorted({*FILES} - {"testing/outbox"}))
def test_no_cached_property_where_a_process_may_fork(module: str) -> None:
    assert "cached_property" not in (SOURCE / f"{module}.py").read_text()


@pytest.mark.parametrize("module", FILES)
def test_functions_stay_small(module: str) -> None:
    text = (SOURCE / f"{module}.py").read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length < 45, f"{module}.{node.name}: {length} lines"


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import postcommit.queue.store", ["queue/store"]),
        ("import postcommit.queue.store as store, os", ["queue/store"]),
        ("from postcommit.queue import store", ["queue/store"]),
        ("from postcommit.queue.store import Store", ["queue/store"]),
        ("from postcommit import errors, zcml", ["errors", "zcml"]),
        ("import postcommit", ["__init__"]),
        ("from postcommit import SMTPMailer", ["__init__"]),
        ("from postcommit.testing import Mail", ["testing/__init__"]),
        ("def f():\n    from postcommit.zcml import x", ["zcml"]),
        ("async def f():\n    import postcommit.cli", ["cli"]),
        ("import_module('postcommit.zcml')", ["zcml"]),
        ("importlib.import_module('postcommit.zcml')", ["zcml"]),
        ("import os\nimport_module('os')\nimport_module(name)", []),
        ("if TYPE_CHECKING:\n    import postcommit.cli", []),
        ("if typing.TYPE_CHECKING:\n    import postcommit.cli", []),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import postcommit.cli", ["cli"]),
        ("if not TYPE_CHECKING:\n    import postcommit.cli", ["cli"]),
        ("import postcommitted", []),
    ],
)
def test_this_reads_imports_in_any_form(code: str, modules: list[str]) -> None:
    assert imports_of(code) == modules
