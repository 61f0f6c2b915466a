"""Renders the templates, and JSON. Each value that a template shows is escaped."""
from __future__ import annotations

import os
from typing import Any

from chameleon import PageTemplateLoader

from postcommit.web._guard import form_token
from postcommit.web._http import Response
from postcommit.web._http import base_of


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


def json_response(value: Any, status: int = 200) -> Any:
    """Return `value` as JSON."""
    return Response(
        json_body=value, status=status, content_type="application/json", charset="utf-8"
    )


def style() -> Any:
    """Return the stylesheet."""
    with open(os.path.join(_FOLDER, "style.css"), encoding="utf-8") as file:
        return Response(text=file.read(), content_type="text/css")
