"""An interface, the type beside it, and the classes are one contract.

Signatures and annotations are compared as they are written, with the name of the type
in the place of each interface.
"""
from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any
from typing import get_args

import pytest
from zope.interface.interface import InterfaceClass
from zope.interface.interface import Method
from zope.schema import Bool
from zope.schema import Choice
from zope.schema import Field
from zope.schema import Float
from zope.schema import Int
from zope.schema import Object
from zope.schema import Text

import postcommit
from postcommit import _types
from postcommit import interfaces
from tests.test_interfaces import IMPLEMENTERS


SOURCE = Path(_types.__file__).parent
STUB = ast.parse((SOURCE / "interfaces.pyi").read_text())

# The interfaces of the module, and the type that the stub gives to each of them.
CONTRACTS = {
    name: contract
    for name, contract in vars(interfaces).items()
    if isinstance(contract, InterfaceClass)
    and contract.__module__ == interfaces.__name__
}
TYPES = {
    ast.unparse(node.target): ast.unparse(node.annotation).partition("[")[2][:-1]
    for node in STUB.body
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.target).startswith("I")
}
PROTOCOLS = {
    name: kind
    for name, kind in vars(_types).items()
    if getattr(kind, "_is_protocol", False) and kind.__module__ == _types.__name__
}
# Protocols that have no interface, and names that are neither a class nor a function.
VALUES = {"QueueEntry", "QueueFinding", "QueuePause", "QueueReason", "QueueStatus"}
VALUES |= {"QueueReception"}
FREE = VALUES | {
    "QueueStop",
    "BindableMailDelivery",
    "Outgoing",
    "SupportsSend",
    "TransactionManager",
}
ALIASES = {
    *("Address", "Addresses", "Moment", "Sendable"),
    *("AuthName", "ProtocolName", "TLSName"),
}

KINDS = ((Bool, "bool"), (Int, "int"), (Float, "float"), (Text, "str"))
CHOICES = {
    "status": "Status",
    "tls": "TLSMode | TLSName",
    "auth": "AuthName",
    "protocol": "ProtocolName",
}


def test_each_interface_has_a_type() -> None:
    assert TYPES.keys() == CONTRACTS.keys()
    for name, kind in TYPES.items():
        if kind in PROTOCOLS:
            assert name == f"I{kind}"
        else:  # the types of several classes are separated by |
            assert set(kind.split(" | ")) <= set(dir(postcommit))
    assert PROTOCOLS.keys() - FREE == PROTOCOLS.keys() & set(TYPES.values())


def test_the_stub_has_each_public_name_of_the_module() -> None:
    names = set(TYPES)
    for node in STUB.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname for alias in node.names if alias.asname}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
    there = {
        name
        for name, value in vars(interfaces).items()
        if (getattr(value, "__module__", None) or "").startswith("postcommit")
    }
    assert names == there | ALIASES
    for name in ALIASES:
        assert getattr(interfaces, name) is getattr(_types, name)


# What is written


def translated(annotation: str) -> str:
    """Return `annotation` with types in the place of interfaces."""
    return re.sub(r"\bI[A-Z]\w+", lambda found: TYPES[found[0]], annotation)


def written(module: str) -> dict[tuple[str, str], str]:
    """Return the signatures in `module`, by class and method, without ``self``."""
    return {
        (kind.name, method.name): translated(
            re.sub(r"^self(, )?", "", ast.unparse(method.args))
            + f" -> {ast.unparse(method.returns) if method.returns else None}"
        )
        for kind in ast.parse((SOURCE / module).read_text()).body
        if isinstance(kind, ast.ClassDef)
        for method in kind.body
        if isinstance(method, ast.FunctionDef)
    }


INTERFACES = written("interfaces.py")
MEMBERS = written("_types.py")


def value_of(field: Field) -> str:
    """Return the type of the values of `field`, or what it begins with."""
    if isinstance(field, Choice):
        kind = CHOICES[field.__name__]
    elif isinstance(field, Object):
        # A mailer need not provide the interface.
        kind = TYPES[field.schema.__name__].replace("Mailer", "SupportsSend")
    else:
        kind = next((name for k, name in KINDS if isinstance(field, k)), "tuple[")
    return kind if field.required or field.default is not None else f"{kind} | None"


@pytest.mark.parametrize("name", [name for name in CONTRACTS if name[1:] in PROTOCOLS])
def test_a_protocol_has_the_members_of_its_interface(name: str) -> None:
    contract = CONTRACTS[name]
    bases = [base.__name__ for base in PROTOCOLS[name[1:]].__mro__]
    found = {
        member: shown
        for base in reversed(bases)
        for (kind, member), shown in MEMBERS.items()
        if kind == base
    }
    assert found.keys() == set(contract.names(all=True))
    for member, shown in found.items():
        wanted = contract[member]
        if isinstance(wanted, Method):
            assert shown == INTERFACES[wanted.interface.__name__, member]
        elif isinstance(wanted, Field):
            assert shown.startswith(f" -> {value_of(wanted)}")


@pytest.mark.parametrize(
    ("contract", "kind"),
    [
        each
        for each in IMPLEMENTERS
        if each.values[0].__name__ in CONTRACTS
        # These take what those of the older libraries take.
        and not each.values[1].__module__.startswith("postcommit.compat")
    ],
)
def test_a_class_has_the_arguments_of_its_interface(
    contract: InterfaceClass, kind: type
) -> None:
    for name in contract.names(all=True):
        if isinstance(contract[name], Method) and name != "__call__":
            promised = INTERFACES[contract[name].interface.__name__, name]
            wanted = promised.partition(" ->")[0].replace("'", "")
            assert parameters(getattr(kind, name)) == wanted


def parameters(function: Any) -> str:
    found = inspect.signature(function)
    kept = [p for name, p in found.parameters.items() if name != "self"]
    shown = str(found.replace(parameters=kept, return_annotation=found.empty))[1:-1]
    # Each batch has items of its own kind. And ast writes defaults without spaces.
    shown = re.sub(r"Sequence\[\w+\]", "Sequence[Any]", shown).replace("'", "")
    return translated(shown.replace(" = ", "="))


@pytest.mark.parametrize(
    ("contract", "kind"),
    [
        (interfaces.ISMTPMailer, postcommit.SMTPMailer),
        (interfaces.ISendmailMailer, postcommit.SendmailMailer),
        (interfaces.IFileMailer, postcommit.FileMailer),
        (interfaces.IAMQPMailer, postcommit.AMQPMailer),
        (interfaces.IDirectMailDelivery, postcommit.DirectMailDelivery),
        (interfaces.IQueuedMailDelivery, postcommit.QueuedMailDelivery),
        (interfaces.IOutboxMailDelivery, postcommit.OutboxMailDelivery),
        (interfaces.IMailQueueProcessor, postcommit.QueueProcessor),
    ],
)
def test_an_option_has_the_type_of_its_field(contract: Any, kind: type) -> None:
    arguments = inspect.signature(kind).parameters
    for name in contract.names(all=True):
        if isinstance(contract[name], Field):
            assert arguments[name].annotation == value_of(contract[name])


def test_the_modes_are_those_of_the_schema() -> None:
    for option, alias in [
        ("tls", _types.TLSName),
        ("auth", _types.AuthName),
        ("protocol", _types.ProtocolName),
    ]:
        field = interfaces.ISMTPMailer[option]
        assert get_args(alias) == tuple(term.value for term in field.vocabulary)
    assert get_args(_types.TLSName) == tuple(mode.value for mode in _types.TLSMode)
