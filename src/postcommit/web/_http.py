"""Requests, responses and errors of the page: what it uses of WebOb."""
from __future__ import annotations

from typing import Any
from urllib.parse import quote

from webob import Request as Request  # type: ignore[import-untyped]
from webob import Response as Response
from webob.exc import HTTPException as HTTPException  # type: ignore[import-untyped]


class Answer(Exception):
    """Ends a request with `response`."""

    def __init__(self, response: Any) -> None:
        self.response = response
        super().__init__(response.status)


class Problem(Exception):
    """The response to a request that cannot be served: a status and a sentence.

    `notes` are further sentences, `choices` are the ids that a request may mean.
    `is_logged` says that the log gets a line about the request.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        notes: tuple[str, ...] = (),
        choices: tuple[str, ...] = (),
        is_logged: bool = False,
    ) -> None:
        self.status = status
        self.reason = reason
        self.notes = notes
        self.choices = choices
        self.is_logged = is_logged
        super().__init__(reason)


def base_of(request: Any) -> str:
    """Return the path at which the page is mounted, without a slash at the end.

    It is quoted as a browser has it in its address, also for the path of a cookie.
    """
    return quote(str(request.script_name).rstrip("/"), safe="/~!$&'()*+=:@")


def see_other(place: str) -> Any:
    """Return a response that leads a browser to the path `place`.

    WebOb would make it a whole URL, with the wrong scheme behind a proxy with TLS.
    """
    return Response(status=303, location=place)


def download(data: bytes, name: str) -> Any:
    """Return a response that a browser saves as a file, and never shows."""
    ascii_name = "".join(c if c.isalnum() and c.isascii() else "_" for c in name[-100:])
    response = Response(body=data, content_type="application/octet-stream")
    response.headers["Content-Disposition"] = (
        f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''"
        f"{quote(name[-100:], safe='', errors='replace')}"
    )
    return response
