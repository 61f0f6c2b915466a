"""Writes the Python examples of README.rst and docs as modules, for type checkers.

``python -m tests.typed.examples FOLDER`` writes the package ``examples`` into FOLDER:
a module for each block of the README, and a module for each page of the docs. An
example whose result is a traceback is left out: its call is wrong on purpose.
"""
from __future__ import annotations

import doctest
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parent.parent.parent

_BLOCK = re.compile(
    r"^\.\. (?P<kind>testsetup|testcode|testcleanup|code-block)::"
    r"(?: (?P<language>\w+))?\n"
    r"(?:   +:.*\n)*"
    r"\n(?P<code>(?:   .*\n|\n)+)",
    re.MULTILINE,
)

# The hidden set-up of a page may be anywhere in it.
_ORDER = {"testsetup": 0, "testcleanup": 2}

# What a page takes for granted: names of the reader's application, and imports that
# another block of the same page has.
_GIVEN = {
    "README": "db: Any = None",
    "docs/moving-repoze-sendmail": (
        "Message: Any = None\nAttachment: Any = None\n"
        "request: Any = None\ndata: Any = None"
    ),
    "docs/postgres": "session: Any = None\nmessage = ''",
    "docs/rabbitmq": "delivery: Any = None\nmessage_about: Any = None",
    "docs/scheduling": "from datetime import UTC",
    "docs/pyramid": "from postcommit.interfaces import IMailQueueProcessor",
    "docs/smtp": "import ssl\nCLIENT_ID = TENANT_ID = CLIENT_SECRET = ''",
    "docs/testing": (
        "import pytest\nimport transaction\nimport webtest\n"
        "main: Any = None\nsettings: dict[str, str] = {}"
    ),
    "docs/zope": (
        "from postcommit.interfaces import IMailRejectedEvent\n"
        "from zope.component.hooks import getSite\nshop: Any = None"
    ),
}

# The examples of the docs leave annotations out, show results, and go on with names
# that earlier ones have used for something else. Pyramid and ZODB have no types, and
# pyright takes attributes of theirs for None where they begin as None. It takes a task
# of Celery for a function.
_PYRIGHT = """{
  "typeCheckingMode": "standard",
  "reportFunctionMemberAccess": "none",
  "reportMissingImports": "none",
  "reportRedeclaration": "none",
  "reportUnusedExpression": "none",
  "useLibraryCodeForTypes": false
}
"""


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Return (line, kind, code) of the Python examples of a page, in its order.

    `kind` is the directive that the code is in, or ``doctest``.
    """
    found = []
    for match in _BLOCK.finditer(text):
        if match["language"] in (None, "python"):
            line = text.count("\n", 0, match.start("code")) + 1
            found.append((line, match["kind"], textwrap.dedent(match["code"])))
    for example in doctest.DocTestParser().get_examples(text):
        if example.exc_msg is None:
            found.append((example.lineno + 1, "doctest", example.source))
    return sorted(found, key=lambda block: (_ORDER.get(block[1], 1), block[0]))


def modules() -> Iterator[tuple[str, str]]:
    """Yield (path, source) of each module."""
    for number, block in enumerate(blocks((ROOT / "README.rst").read_text())):
        yield f"readme/block_{number}.py", _module("README", [block])
    for path in sorted((ROOT / "docs").glob("*.rst")):
        found = blocks(path.read_text())
        if found:
            # Without "page_", the page about Celery would be the module celery.
            name = "page_" + path.stem.replace("-", "_")
            yield f"docs/{name}.py", _module(f"docs/{path.stem}", found)


def _module(page: str, found: list[tuple[int, str, str]]) -> str:
    lines = ["from __future__ import annotations", "from typing import Any"]
    lines += ["import os", _GIVEN.get(page, "")]
    for line, _, code in found:
        lines += [f"# {page}.rst:{line}", code.rstrip(), ""]
    return "\n".join(lines)


def main(folder: str) -> None:
    """Write the package ``examples`` into `folder`, and the options for pyright."""
    package = Path(folder) / "examples"
    shutil.rmtree(package, ignore_errors=True)
    for part in (package, package / "readme", package / "docs"):
        part.mkdir(parents=True)
        (part / "__init__.py").touch()
    for name, source in modules():
        (package / name).write_text(source)
    (Path(folder) / "pyrightconfig.json").write_text(_PYRIGHT)


if __name__ == "__main__":
    main(sys.argv[1])
