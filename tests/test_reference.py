"""The reference as a reader has it: the HTML that Sphinx builds of the pages."""
from __future__ import annotations

import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote
from urllib.parse import urldefrag

import pytest
from zope.interface.interface import InterfaceClass
from zope.schema.interfaces import IField

import postcommit
from postcommit import errors
from postcommit import interfaces
from postcommit import pyramid
from postcommit import testing
from postcommit.compat import repoze_sendmail
from postcommit.compat import zope_sendmail


DOCS = Path(__file__).parent.parent / "docs"

INTERFACES = [
    contract
    for name, contract in sorted(vars(interfaces).items())
    if isinstance(contract, InterfaceClass) and name != "Interface"
]


class Page(HTMLParser):
    """The anchors of a page, its links, and the text of each entry's signature."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.signatures: dict[str, str] = {}
        self._entry: str | None = None
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(found["id"])  # type: ignore[arg-type]
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])  # type: ignore[arg-type]
        if tag == "dt" and found.get("id"):
            self._entry = found["id"]
            self.signatures[self._entry or ""] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "dt":
            self._entry = None

    def handle_data(self, data: str) -> None:
        if self._entry is not None:
            self.signatures[self._entry] += data


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """All pages, by their names such as ``api.html``."""
    folder = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    # The theme does not matter here.
    command += ["-D", "html_theme=basic", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # Pyramid may warn of pkg_resources
    paths = folder.rglob("*.html")
    return {str(path.relative_to(folder)): Page(path) for path in paths}


def public(module: ModuleType) -> set[str]:
    """Return the classes and functions that `module` defines."""
    return {
        name
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def types() -> set[str]:
    """Return the types of ``postcommit.interfaces``."""
    source = Path(interfaces.__file__).with_name("interfaces.py").read_text()
    return set(re.findall(r"(?m)^from postcommit\._types import (\w+)", source))


# Each entry that must be there, by the module that it is imported from.
ENTRIES = {
    "postcommit": set(dir(postcommit)) - public(errors),
    "postcommit.testing": set(dir(testing)),
    # The functions are for the texts of errors.
    "postcommit.errors": {name for name in public(errors) if name[0].isupper()},
    # `postcommit` has an entry for classes that both export.
    "postcommit.interfaces": {
        name
        for name in types()
        if getattr(postcommit, name, None) is not getattr(interfaces, name)
    }
    | {contract.__name__ for contract in INTERFACES},
    # Of its classes, only objects are registered.
    "postcommit.pyramid": {name for name in public(pyramid) if name[0].islower()},
    "postcommit.vocabulary": {"MailDeliveryNames"},
    "postcommit.mailhost": {"replace", "restore", "SMTPMailer"},
    "postcommit.pyramid_mailer": {"replace", "restore", "SMTP_SSLMailer"},
    "postcommit.compat.zope_sendmail": public(zope_sendmail),
    "postcommit.compat.repoze_sendmail": public(repoze_sendmail),
}


@pytest.mark.parametrize("module", ENTRIES)
def test_each_public_name_has_an_entry(module: str, pages: Any) -> None:
    wanted = {f"{module}.{name}" for name in ENTRIES[module]}
    assert wanted - pages["api.html"].ids == set()


@pytest.mark.parametrize("contract", INTERFACES, ids=lambda contract: contract.__name__)
def test_each_member_of_an_interface_has_an_entry(contract: Any, pages: Any) -> None:
    entries = pages["api.html"].signatures
    for name in contract.names():
        entry = entries[f"postcommit.interfaces.{contract.__name__}.{name}"]
        field = contract[name]
        if not IField.providedBy(field):
            continue
        assert ": " in entry, f"{name} has no type"
        if field.default is not None or not field.required:
            assert repr(field.default) in entry, f"{name} has no default"


@pytest.mark.parametrize("contract", INTERFACES, ids=lambda contract: contract.__name__)
def test_each_method_says_the_types_of_its_arguments(contract: Any, pages: Any) -> None:
    entries = pages["api.html"].signatures
    for name in contract.names():
        if not IField.providedBy(contract[name]) and hasattr(
            contract[name], "getSignatureString"
        ):
            entry = entries[f"postcommit.interfaces.{contract.__name__}.{name}"]
            assert "→" in entry
            for argument in contract[name].positional:
                assert f"{argument}: " in entry


@pytest.mark.parametrize(
    "kind",
    [
        value
        for value in (getattr(postcommit, name) for name in dir(postcommit))
        if inspect.isclass(value) and not issubclass(value, Exception)
    ],
    ids=lambda kind: kind.__name__,
)
def test_each_method_of_a_class_has_an_entry(kind: type, pages: Any) -> None:
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_") and member.__module__.startswith("postcommit"):
            assert f"postcommit.{kind.__name__}.{name}" in pages["api.html"].ids


def test_no_page_links_into_nothing(pages: Any) -> None:
    broken = []
    for name, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            if ":" in target:
                continue
            if not target:
                target = Path(name).name
            path = (DOCS / name).parent / unquote(target)
            relative = str(path.resolve().relative_to(DOCS))
            if relative.endswith(".html"):
                found = pages.get(relative)
                if found is None or (anchor and unquote(anchor) not in found.ids):
                    broken.append(f"{name}: {link}")
    assert broken == []


def test_a_name_in_a_page_is_a_link(pages: Any) -> None:
    links = pages["changes.html"].links
    for name in ("QueuedMailDelivery", "SMTPMailer", "interfaces.ISMTPMailer.auth"):
        assert f"api.html#postcommit.{name}" in links


# An editor shows the docstring of the method that is called, not that of its interface.
@pytest.mark.parametrize(
    "kind",
    [
        postcommit.QueuedMailDelivery,
        postcommit.DirectMailDelivery,
        postcommit.OutboxMailDelivery,
        postcommit.AMQPMailer,
        postcommit.SMTPMailer,
        postcommit.SendmailMailer,
        postcommit.FileMailer,
        postcommit.FailoverMailer,
        testing.RecordingMailer,
        interfaces.MailDelivery,
        interfaces.BindableMailDelivery,
        interfaces.Mailer,
    ],
    ids=lambda kind: kind.__name__,
)
def test_the_docstring_of_send_says_what_it_takes(kind: Any) -> None:
    text = " ".join(inspect.getdoc(kind.send).split())
    for argument in ("fromaddr", "toaddrs", "message"):
        assert f"`{argument}` is" in text
    assert "None means the addresses of the header" in text
    assert "Raises" in text
