"""Renders the templates, and JSON. Each value that a template shows is escaped."""
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from chameleon import PageTemplateLoader

from postcommit._log import printable
from postcommit.web._guard import form_token
from postcommit.web._http import Response
from postcommit.web._http import base_of


# Maximum number of characters of a subject, an address or a reply in a row. A mail may
# have a subject of a million.
_LONGEST = 200

_FOLDER = os.path.dirname(__file__)

_templates = PageTemplateLoader(os.path.join(_FOLDER, "templates"), ".pt")


def page(
    request: Any, name: str, title: str, status: int = 200, **values: Any
) -> Any:
    """Return the page of the template `name`."""
    text = _templates[name](
        layout=_templates["layout"],
        parts=_templates["parts"],
        base=base_of(request),
        token=form_token(request),
        user=request.environ.get("postcommit.web.user", ""),
        title=title,
        **values,
    )
    return Response(text=text, status=status, content_type="text/html")


def cut(text: str) -> str:
    """Return a text for a row: printable, and not longer than a row can show."""
    begin = printable(text[:_LONGEST])
    return begin if len(text) <= _LONGEST else f"{begin}..."


def named(addresses: Sequence[str], most: int) -> str:
    """Return the first `most` addresses for a row, and the number of the others."""
    others = len(addresses) - most
    shown = ", ".join(map(cut, addresses[:most]))
    return f"{shown} +{others}" if others > 0 else shown


def json_response(value: Any, status: int = 200) -> Any:
    """Return `value` as JSON."""
    return Response(
        json_body=value, status=status, content_type="application/json", charset="utf-8"
    )


def style() -> Any:
    """Return the stylesheet."""
    with open(os.path.join(_FOLDER, "style.css"), encoding="utf-8") as file:
        return Response(text=file.read(), content_type="text/css")
