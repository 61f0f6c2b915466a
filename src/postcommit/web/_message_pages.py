"""The parts of a page that show one message, of a queue or of a mailbox."""
from __future__ import annotations

from typing import Any

from postcommit._queue.values import size
from postcommit.web._guard import MESSAGE
from postcommit.web._http import Problem
from postcommit.web._http import Response
from postcommit.web._http import download
from postcommit.web._message import MOST
from postcommit.web._message import MOST_ATTACHMENTS
from postcommit.web._message import ShownMessage
from postcommit.web._message import attachment
from postcommit.web._message import shown


# The views of a message, and their titles.
_VIEWS = {
    "html": "HTML",
    "phone": "HTML, phone",
    "text": "Text",
    "header": "Header",
    "source": "Source",
}


def message_values(request: Any, message: ShownMessage, place: str) -> dict[str, Any]:
    """Return the values for the macro ``message``. `place` is the URL of the message.

    The query of the URL chooses the view: ``view=phone``, for example.
    """
    left_out = []
    if not message.html:
        left_out += ["html", "phone"]
    if not message.text:
        left_out += ["text"]
    views = {name: _VIEWS[name] for name in _VIEWS if name not in left_out}
    view = request.GET.get("view", "")
    if view not in views:
        view = "source" if message.problem else next(iter(views))
    return {
        "message": message,
        "place": place,
        "view": view,
        "views": list(views.items()),
        "attachments": [
            (part, size(part.size)) for part in message.attachments[:MOST_ATTACHMENTS]
        ],
        "more_attachments": max(0, len(message.attachments) - MOST_ATTACHMENTS),
        "cut": f"Only the first {size(MOST)} of the message are shown."
        if message.is_cut
        else "",
    }


def part_of_message(data: bytes, id: str, words: list[str]) -> Any | None:
    """Return the response for a part of a message, None if the part is missing."""
    match words:
        case ["html"]:
            return _html(shown(data))
        case ["source"]:
            return download(data, f"{id}.eml")
        case ["part", number] if number.isascii() and number.isdigit():
            found = attachment(data, int(number[:6]))
            if found is not None:
                part, content = found
                return download(content, part.name)
            raise Problem(404, "The message has no such attachment.")
    return None


def _html(message: ShownMessage) -> Any:
    """Return the HTML of a message, for a frame. It can do nothing there."""
    response = Response(text=message.html, content_type="text/html", charset="utf-8")
    response.headers["Content-Security-Policy"] = MESSAGE
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    return response
