"""The reference: a directive for interfaces, and links from all names of the pages.

``.. autointerface:: postcommit.interfaces.IMailer`` describes an interface with all its
members. The type, default and bounds of an option come from the schema. The signature
of a method comes from the class or protocol that has the interface's name without the
"I".

A literal such as ``SMTPMailer``, ``send()`` or ``max_age`` becomes a link to the
reference. A text in single backticks does so as well, and is a literal otherwise.
"""
from __future__ import annotations

import inspect
import re
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyClasslike
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docstrings import prepare_docstring
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature
from zope import schema
from zope.interface import Interface
from zope.interface.interface import InterfaceClass
from zope.interface.interface import Method

import postcommit
from postcommit import interfaces
from postcommit.interfaces import Status


TYPES = {
    schema.Bool: "bool",
    schema.Float: "float",
    schema.Int: "int",
    schema.Tuple: "tuple",
}

# Where a bare name is looked up, the first place first.
PLACES = ("postcommit", "postcommit.interfaces", "postcommit.errors")
PLACES += ("postcommit.testing", "postcommit.pyramid")

# The interfaces whose members a page may name alone. An option comes first in the
# interface that an application has most to do with.
OWNERS = ("IMailDelivery", "ISMTPMailer", "IMailQueueProcessor", "IDefaultSender")
OWNERS += ("IDeliveryReport", "IFailoverMailer", "IDirectMailDelivery")
OWNERS += ("IQueuedMailDelivery", "IPipelineMailer", "IRelayCheck")

# Words that are also names of members.
WORDS = ("text", "code", "recipients", "sent", "message", "command", "folder", "mailer")
WORDS += ("username", "password", "hostname", "port", "check", "close", "run")

# What has no links in it.
NO_LINKS = (nodes.reference, nodes.title, addnodes.pending_xref)
NO_LINKS += (addnodes.desc_signature,)

_names: dict[str, str] = {}


class InterfaceDescription(PyClasslike):
    """An entry that is found as a class, and shown as an interface."""

    def run(self) -> list[nodes.Node]:
        self.name = "py:class"
        return super().run()

    def get_signature_prefix(self, sig: str) -> list[nodes.Node]:
        return [nodes.Text("interface"), addnodes.desc_sig_space()]


class AutoInterface(SphinxDirective):
    """Describes an interface of ``postcommit.interfaces``, and all its members."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0].rpartition(".")[2]
        contract = getattr(interfaces, name)
        lines = StringList()
        for line in describe(contract):
            lines.append(line, f"{interfaces.__file__}:{name}")
        node = nodes.Element()
        self.state.nested_parse(lines, self.content_offset, node)
        return node.children


def describe(contract: InterfaceClass) -> list[str]:
    """Return the reStructuredText of the entry of `contract`."""
    lines = [f".. py:interface:: postcommit.interfaces.{contract.__name__}", ""]
    bases = [base.__name__ for base in contract.__bases__ if base is not Interface]
    if bases:
        found = ", ".join(f":class:`~postcommit.interfaces.{base}`" for base in bases)
        lines += [f"   Extends {found}.", ""]
    lines += ["   " + line for line in prepare_docstring(contract.__doc__)]
    for name in contract.names():
        lines += ["   " + line for line in describe_member(contract, name)]
    return lines


def describe_member(contract: InterfaceClass, name: str) -> list[str]:
    member = contract[name]
    if isinstance(member, Method):
        head = [f".. py:method:: {name}{signature(contract, member)}", ""]
        text = prepare_docstring(member.__doc__)
    else:
        head = [f".. py:attribute:: {name}", *type_and_default(member), ""]
        text = [*paragraphs(member), ""]
    return [*head, *("   " + line for line in text)]


def signature(contract: InterfaceClass, member: Method) -> str:
    """Return the signature of a method with its types."""
    name = contract.__name__[1:]
    typed = getattr(interfaces, name, None) or getattr(postcommit, name)
    found = inspect.signature(getattr(typed, member.__name__))
    parameters = [p for n, p in found.parameters.items() if n != "self"]
    return stringify_signature(found.replace(parameters=parameters))


def type_and_default(member: Any) -> list[str]:
    """Return the options of the directive ``attribute`` for a field of a schema."""
    if not isinstance(member, schema.Field):
        return []
    kind = TYPES.get(type(member), "str")
    if isinstance(member, schema.Object):
        kind = member.schema.__name__
    if isinstance(member, schema.Choice) and Status.SENT in member.vocabulary:
        kind = "Status"
    optional = not member.required
    lines = [f"   :type: {kind} | None" if optional else f"   :type: {kind}"]
    if member.default is not None or optional:
        lines.append(f"   :value: {member.default!r}")
    return lines


def paragraphs(member: Any) -> list[str]:
    """Return the description of an attribute, with the values that it may have."""
    if not isinstance(member, schema.Field):
        return prepare_docstring(member.__doc__)
    text = [f"*{member.title}.* {member.description}"]
    low, high = getattr(member, "min", None), getattr(member, "max", None)
    if isinstance(member, schema.Choice):
        terms = [term.value for term in member.vocabulary]
        values = [getattr(value, "value", value) for value in terms]
        shown = ", ".join(f"``{value!r}``" for value in values)
        text += ["", f"Values: {shown}."]
    elif low is not None and high is not None:
        text += ["", f"From {low} to {high}."]
    elif low is not None:
        text += ["", f"At least {low}."]
    return text


class Links(SphinxPostTransform):
    """Makes a link of each literal that is a public name, once in a section."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node.get("refdomain") == "py":
                self._widen(node)
        seen: set[tuple[int, str]] = set()
        for node in list(self.document.findall(nodes.literal)):
            self._link(node, seen)

    def _widen(self, node: addnodes.pending_xref) -> None:
        """Let a bare name be found from any module, unless its own class has it."""
        objects = self.env.domains.python_domain.objects
        name = node["reftarget"].lstrip("~.")
        owner = node.get("py:class") or ""
        own = (f"{owner}.{name}", f"{node.get('py:module')}.{owner}.{name}")
        if not objects.keys() & set(own):
            node["reftarget"] = names(self.env).get(name, name)

    def _link(self, node: nodes.literal, seen: set[tuple[int, str]]) -> None:
        """Make a link of a literal that is a name of the reference."""
        text = node.astext().removesuffix("()")
        target = names(self.env).get(text)
        if self.env.docname.startswith("moving-") and "postcommit." not in text:
            return  # it may be a name of the other library
        parents = []
        parent = node.parent
        while parent is not None:
            parents.append(parent)
            parent = parent.parent
        if target is None or any(isinstance(parent, NO_LINKS) for parent in parents):
            return
        if any(isinstance(p, addnodes.desc) and target in p[0]["ids"] for p in parents):
            return
        section = next((id(p) for p in parents if isinstance(p, nodes.section)), 0)
        if (section, target) in seen:
            return
        seen.add((section, target))
        link = addnodes.pending_xref(
            "",
            refdomain="py",
            reftype="obj",
            reftarget=target,
            refdoc=self.env.docname,
            refexplicit=True,
        )
        node.replace_self(link)
        link += node


def names(env: Any) -> dict[str, str]:
    """Return the names that a page may name alone, with the entries that they mean."""
    if _names:
        return _names
    objects = env.domains.python_domain.objects
    found = {name: name for name in objects}
    for owner in reversed(OWNERS):
        prefix = f"postcommit.interfaces.{owner}."
        for name in objects:
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = name
    for place in reversed(PLACES):
        for name in objects:
            before, _, last = name.rpartition(".")
            if before == place:
                found[last] = name
            if before.rpartition(".")[0] == place:
                found[f"{before.rpartition('.')[2]}.{last}"] = name
    for word in WORDS:
        found.pop(word, None)
    _names.update(found)
    return _names


def repair_back_links(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Let a source page link back to the entry of a class that is exported elsewhere.

    viewcode takes one module for all names of a source file.
    """

    def repaired(match: re.Match[str]) -> str:
        name = match[2].removeprefix("postcommit.")
        return f"{match[1]}{names(app.env).get(name, match[2])}"

    if page.startswith("_modules/postcommit/"):
        pattern = r"(api\.html#)([\w.]+)"
        context["body"] = re.sub(pattern, repaired, context["body"])


def no_signature_of_protocols(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, *signature: Any
) -> tuple[str, None] | None:
    """Show a protocol without a constructor, because it is only for annotations."""
    is_protocol = what == "class" and getattr(obj, "_is_protocol", False)
    return ("", None) if is_protocol else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive_to_domain("py", "interface", InterfaceDescription)
    app.add_directive("autointerface", AutoInterface)
    app.add_post_transform(Links)
    app.connect("html-page-context", repair_back_links)
    app.connect("autodoc-process-signature", no_signature_of_protocols)
    _names.clear()
    return {"parallel_read_safe": True}
