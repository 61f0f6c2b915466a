"""The pages of a mailbox: its list, and one message."""
from __future__ import annotations

import time
from typing import Any

from postcommit._queue.values import duration
from postcommit._queue.values import moment
from postcommit._queue.values import size
from postcommit.web._http import Problem
from postcommit.web._http import base_of
from postcommit.web._mailbox import Letter
from postcommit.web._mailbox import Mailbox
from postcommit.web._message import shown
from postcommit.web._message_pages import message_values
from postcommit.web._message_pages import part_of_message
from postcommit.web._pages import cut
from postcommit.web._pages import json_response
from postcommit.web._pages import named
from postcommit.web._pages import page


# Maximum number of messages of one page.
MOST_ROWS = 200

# Maximum number of recipients that a row names, and that the page of a message names.
_MOST_NAMED = 10
_MOST_RECIPIENTS = 100


def serve(
    request: Any, name: str, mailbox: Mailbox, words: list[str], as_json: bool
) -> Any:
    """Return the response for the `words` of the path after the mailbox's name."""
    place = f"{base_of(request)}/mailbox/{name}"
    try:
        if not words:
            return _list(request, name, mailbox, place, as_json)
        id, *part = words
        read = mailbox.read(id)
    except OSError as error:
        raise Problem(503, f"{error}", is_logged=True) from error
    if read is None:
        raise Problem(404, "There is no such message in this mailbox.")
    data, _ = read
    if part:
        found = part_of_message(data, id, part)
        if found is None:
            raise Problem(404, "There is no such page.")
        return found
    [letter] = mailbox.letters([id])
    message = shown(data)
    if as_json:
        return json_response({**letter.as_record(), "message": message.as_record()})
    return page(
        request,
        "letter",
        cut(letter.subject) or id,
        mailbox_name=name,
        here=place,
        letter=_row(letter, time.time()),
        about=_about(letter),
        **message_values(request, message, f"{place}/{id}"),
    )


def _list(
    request: Any, name: str, mailbox: Mailbox, place: str, as_json: bool
) -> Any:
    given = str(request.GET.get("start", "") or "0")
    if not given.isascii() or not given.isdigit() or len(given) > 12:
        raise Problem(400, f"start={given!r}: must be a number")
    start = int(given)
    ids = mailbox.ids()
    letters = mailbox.letters(ids[start : start + MOST_ROWS])
    end = start + MOST_ROWS
    more = f"start={end}" if end < len(ids) else ""
    if as_json:
        records = [letter.as_record() for letter in letters]
        value = {"messages": records, "next": f"?{more}" if more else None}
        return json_response({"mailbox": mailbox.path, **value})
    now = time.time()
    return page(
        request,
        "mailbox",
        name,
        mailbox_name=name,
        here=place,
        path=mailbox.path,
        rows=[_row(letter, now) for letter in letters],
        count=len(ids),
        more=more,
        start=start,
    )


def _row(letter: Letter, now: float) -> dict[str, Any]:
    return {
        "id": letter.id,
        "subject": cut(letter.subject),
        "sender": cut(letter.sender) or "<>",
        "recipients": named(letter.recipients, _MOST_NAMED),
        "age": duration(max(0.0, now - letter.written)),
        "size": size(letter.size),
    }


def _about(letter: Letter) -> list[tuple[str, str]]:
    return [
        ("Written", moment(letter.written)),
        ("Envelope from", cut(letter.sender) or "<>"),
        ("Envelope to", named(letter.recipients, _MOST_RECIPIENTS)),
        ("Size", size(letter.size)),
    ]
