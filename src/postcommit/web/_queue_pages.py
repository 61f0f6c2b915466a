"""The pages of queues: the overview, a list, one entry, and the actions.

They show what `MailQueue` returns, and call its methods. They know nothing of entries.
"""
from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from postcommit._log import Log
from postcommit._log import printable
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import is_whole_id
from postcommit._queue.queue import MailQueue
from postcommit._queue.record import record_of_entry
from postcommit._queue.record import record_of_queue
from postcommit._queue.values import age
from postcommit._queue.values import ago
from postcommit._queue.values import duration
from postcommit._queue.values import entries
from postcommit._queue.values import moment
from postcommit._queue.values import seconds_of
from postcommit._queue.values import size
from postcommit.interfaces import ChangeStatus
from postcommit.interfaces import QueueChange
from postcommit.interfaces import QueueEntry
from postcommit.web._http import Problem
from postcommit.web._http import base_of
from postcommit.web._http import see_other
from postcommit.web._mailbox import Mailbox
from postcommit.web._message import MOST
from postcommit.web._message import shown
from postcommit.web._message_pages import message_values
from postcommit.web._message_pages import part_of_message
from postcommit.web._pages import cut
from postcommit.web._pages import json_response
from postcommit.web._pages import named
from postcommit.web._pages import page


log = Log("postcommit.web")

# Maximum number of entries of one page, and of ids in one form.
MOST_ROWS = 200

# Maximum number of seconds of a search before its page is sent.
SEARCH_SECONDS = 2.0

# Seconds for which the deferred entries of a queue are read.
_SURVEY_SECONDS = 0.25

# Maximum number of recipients that a row names, and that the page of an entry names,
# and of findings that an error shows.
_MOST_NAMED = 3
_MOST_RECIPIENTS = 100
_MOST_FINDINGS = 10


# An id, its beginning, or a message id.
_ID = re.compile(r"[0-9a-f]{4,12}|[^/]*@[^/]*")


@dataclass(frozen=True)
class Action:
    """A button. `method` of the queue is called with the ids and the `options`.

    `done` is for the log and the result. If there is a `question`, the page asks
    before it acts, and this sentence says what the action does.
    """

    name: str
    title: str
    done: str
    method: str
    question: str = ""
    options: tuple[tuple[str, Any], ...] = ()


# An action is offered if the queue has its method, and `MailQueue.actions` has its name
# for the entry.
ACTIONS = (
    Action("retry", "Retry", "retried", "retry"),
    Action("send", "Send", "accepted", "recover", options=(("send", True),)),
    Action("hold", "Hold", "held", "hold"),
    Action("release", "Release", "released", "release"),
    Action(
        *("cancel", "Cancel", "cancelled", "cancel"),
        question="Mail that still waits is removed and not sent. A dead letter stays.",
    ),
    Action(
        *("drop", "Drop", "removed", "recover"),
        question="The mail is removed and not sent.",
        options=(("send", False),),
    ),
    Action(
        *("delete", "Delete", "deleted", "delete"),
        question="Dead letters are deleted as well.",
    ),
)


def offered(queue: MailQueue, found: list[Any]) -> list[Action]:
    """Return the actions that at least one of the entries allows."""
    methods = {method for entry in found for method in queue.actions(entry)}
    return [
        action
        for action in ACTIONS
        if action.method in methods and hasattr(queue, action.method)
    ]


def trouble(queue: MailQueue, error: OSError) -> Problem:
    """Return the response for a queue that is missing or in trouble."""
    notes = []
    try:
        for finding in islice(queue.check(), _MOST_FINDINGS):
            notes.append(f"{finding.place}: {finding.problem}; {finding.advice}")
    except OSError as another:
        if str(another) != str(error):
            notes.append(str(another))
    reason = str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        notes.append("Run this page as the user that owns the queue.")
    return Problem(503, reason, notes=tuple(notes), is_logged=True)


# The overview


def overview(
    request: Any,
    queues: Mapping[str, MailQueue],
    mailboxes: Mapping[str, Mailbox],
    *,
    as_json: bool,
) -> Any:
    """Return the state of all queues, and the number of messages of each mailbox."""
    cards = [_card(name, queue) for name, queue in queues.items()]
    boxes = [_box(name, mailbox) for name, mailbox in mailboxes.items()]
    status = 503 if any(each["problem"] for each in (*cards, *boxes)) else 200
    if as_json:
        records = [
            {"name": card["name"], **card["record"], "problem": card["problem"] or None}
            for card in cards
        ]
        return json_response({"queues": records, "mailboxes": boxes}, status)
    return page(request, "overview", "Queues", status, cards=cards, mailboxes=boxes)


def _box(name: str, mailbox: Mailbox) -> dict[str, Any]:
    count, problem = None, None
    try:
        count = len(mailbox.ids())
    except OSError as error:
        problem = str(error)
    return {
        "name": name,
        "path": mailbox.path,
        "messages": count,
        "problem": problem,
    }


def _card(name: str, queue: MailQueue) -> dict[str, Any]:
    now = time.time()
    card: dict[str, Any] = {"name": name, "path": queue.name, "record": {}}
    card |= {"problem": "", "notes": (), "counts": [], "facts": [], "attention": ()}
    try:
        seen = queue.status(_SURVEY_SECONDS)
    except OSError as error:
        problem = trouble(queue, error)
        return card | {"problem": printable(problem.reason), "notes": problem.notes}
    attention = queue.attention(seen)
    card["record"] = record_of_queue(queue.name, seen, now, attention)
    card["attention"] = attention
    card["counts"] = [
        (state.key, state.title_of(count), count, _reason(seen.reasons.get(state)))
        for state, count in seen.counts.items()
    ]
    card["facts"] = list(_facts(seen, now))
    return card


def _reason(reason: Any) -> str:
    if reason is None:
        return ""
    return f"{printable(reason.reply)} ({reason.count} of {reason.looked_at})"


def _facts(seen: Any, now: float) -> list[tuple[str, str, str]]:
    """Return the label and text of each fact, and its kind for the stylesheet."""
    late = ""
    if seen.oldest_due is not None:
        late = f", the oldest for {duration(max(0.0, now - seen.oldest_due))}"
    if seen.looked_at < seen.counts[EntryState.DEFERRED]:
        late += f"; {seen.looked_at} of the deferred were read, there may be more"
    facts = [("Due now", f"{seen.due}{late}", "")]
    if seen.heartbeat is None:
        facts.append(("Processor", "not running", "bad" if seen.due else ""))
    else:
        sign = duration(max(0.0, now - seen.heartbeat))
        facts.append(("Processor", f"running, last sign of life {sign} ago", "good"))
    if seen.stopped is not None:
        since = moment(seen.stopped.since)
        facts.append(("Paused", printable(f"{seen.stopped}, since {since}"), "bad"))
    if seen.pause is not None:
        paused = seen.pause
        left = max(0.0, paused.next_attempt - now)
        when = f"since {moment(paused.since)}, next attempt in {duration(left)}"
        facts.append(("Paused", f"{when}: {printable(paused.reason)}", "bad"))
    return facts


# The pages of one queue


class QueuePages:
    """The pages of the queue that has `name`, for one request."""

    def __init__(self, request: Any, name: str, queue: MailQueue) -> None:
        self._request = request
        self._name = name
        self._queue = queue
        self._base = f"{base_of(request)}/queue/{name}"

    def serve(self, words: list[str], as_json: bool) -> Any:
        """Return the response for the `words` of the path after the queue's name."""
        match words:
            case [] if self._request.method == "POST":
                return self._change(as_json)
            case []:
                return self._list(as_json)
            case [id] if self._request.method != "POST":
                return self._entry(id, as_json)
            case [id, *part] if self._request.method != "POST":
                _check_id(id)
                data = self._queue.message(id, MOST + 1)
                found = part_of_message(data, id, part)
                if found is not None:
                    return found
        raise Problem(404, "There is no such page.")

    # The list

    def _list(self, as_json: bool) -> Any:
        wanted = _Wanted(self._request.GET)
        found, position, is_over = wanted.search(self._queue)
        more = "" if is_over else wanted.query(start=str(position))
        if as_json:
            records = [
                {**record_of_entry(e), "subject": cut(e.subject)} for e in found
            ]
            value = {"entries": records, "next": f"?{more}" if more else None}
            return json_response({"queue": self._queue.name, **value})
        now = time.time()
        return page(
            self._request,
            "list",
            self._name,
            queue_name=self._name,
            here=self._base,
            rows=[_row(entry, now) for entry in found],
            states=wanted.states_of_form(),
            wanted=wanted.values,
            actions=offered(self._queue, found),
            more=more,
            first=wanted.query(start="") if wanted.start else "",
            looked_at=position,
            is_cut=not is_over and len(found) < MOST_ROWS,
            done=_done(self._request.GET),
        )

    # One entry

    def _entry(self, id: str, as_json: bool) -> Any:
        _check_id(id)
        entry = self._queue.show(id)
        if entry.problem:
            message = shown(b"")
            message.source = self._queue.message(entry, MOST)
            message.problem = printable(entry.problem)
        else:
            message = shown(self._queue.message(entry, MOST + 1))
        if as_json:
            record = {**record_of_entry(entry), "subject": entry.subject}
            return json_response({**record, "message": message.as_record()})
        return page(
            self._request,
            "entry",
            cut(entry.subject) or entry.id,
            queue_name=self._name,
            here=self._base,
            entry=_row(entry, time.time()),
            about=_about(entry, time.time()),
            actions=offered(self._queue, [entry]),
            **message_values(self._request, message, f"{self._base}/{entry.id}"),
        )

    # Actions

    def _change(self, as_json: bool) -> Any:
        form = self._request.POST
        names = form.getall("action")
        action = next((a for a in ACTIONS if [a.name] == names), None)
        ids = list(dict.fromkeys(form.getall("id")))
        if action is None or not hasattr(self._queue, action.method):
            raise Problem(400, "The form has no action that this queue knows.")
        if not 0 < len(ids) <= MOST_ROWS:
            raise Problem(400, f"Choose from 1 to {MOST_ROWS} entries.")
        for id in ids:
            if not is_whole_id(id):
                raise Problem(404, f"{id!r} is not the whole id of an entry.")
        if action.question and not as_json and not form.get("confirmed"):
            return page(
                self._request,
                "confirm",
                f"{action.title} {entries(len(ids))}?",
                queue_name=self._name,
                here=self._base,
                action=action,
                ids=ids,
                what=entries(len(ids)),
            )
        method: Callable[..., tuple[QueueChange, ...]]
        method = getattr(self._queue, action.method)
        changes = method(*ids, **dict(action.options))
        self._log(action, changes)
        if as_json:
            records = [_record(change) for change in changes]
            value = {"queue": self._queue.name, "changes": records}
            return json_response(value, _status(changes))
        return self._result(action, changes)

    def _log(self, action: Action, changes: tuple[QueueChange, ...]) -> None:
        user = self._request.environ["postcommit.web.user"]
        for change in changes:
            result = action.done if change.done else f"not {action.done}"
            log.info(
                "%s: entry %s of %s was %s%s",
                user,
                change.id,
                self._queue.name,
                result,
                f", because {change.problem}" if change.problem else "",
            )

    def _result(self, action: Action, changes: tuple[QueueChange, ...]) -> Any:
        done = [change for change in changes if change.done]
        warned = [change for change in done if change.warning]
        if len(done) == len(changes) and not warned:
            return see_other(f"{self._base}?did={action.name}&count={len(done)}")
        return page(
            self._request,
            "result",
            "Result",
            _status(changes),
            queue_name=self._name,
            here=self._base,
            summary=f"{entries(len(done))} {action.done},"
            f" {len(changes) - len(done)} skipped",
            rows=[
                (c.id, action.done if c.done else "skipped", c.problem or c.warning)
                for c in changes
            ],
        )


def _status(changes: tuple[QueueChange, ...]) -> int:
    """Return the status of the response to a form."""
    if any(change.done for change in changes):
        return 200
    is_gone = all(change.status is ChangeStatus.GONE for change in changes)
    return 410 if is_gone else 409


def _record(change: QueueChange) -> dict[str, Any]:
    """Return the object for JSON of a change."""
    return {
        "id": change.id,
        "status": change.status.value,
        "problem": change.problem or None,
        "warning": change.warning or None,
    }


def _check_id(id: str) -> None:
    """Refuse names and paths of files, which `MailQueue` takes as well."""
    if not _ID.fullmatch(id):
        raise Problem(404, f"{id!r} is not the id of an entry.")


class _Wanted:
    """The filters of a list, from the query of a URL."""

    def __init__(self, query: Any) -> None:
        names = ("state", "to", "from", "message_id", "search", "older", "newer")
        self.values = {name: str(query.get(name, "")).strip() for name in names}
        start = str(query.get("start", "") or "0")
        if not start.isascii() or not start.isdigit() or len(start) > 12:
            raise Problem(400, f"start={start!r}: must be a number")
        self.start = int(start)
        known = {state.key: state for state in EntryState}
        chosen = self.values["state"]
        if chosen and chosen not in known:
            raise Problem(400, f"state={chosen!r}: must be one of {', '.join(known)}")
        self._states = (known[chosen],) if chosen else tuple(EntryState)

    def states_of_form(self) -> list[tuple[str, str, bool]]:
        """Return key and title of each state, and whether it is chosen."""
        chosen = self.values["state"]
        every = [("", "all states", not chosen)]
        return every + [(s.key, s.title, s.key == chosen) for s in EntryState]

    def query(self, start: str) -> str:
        """Return the query of the URL for another part of the list."""
        values = {**self.values, "start": start}
        return urlencode({name: value for name, value in values.items() if value})

    def search(self, queue: MailQueue) -> tuple[list[Any], int, bool]:
        """Return the entries of a page, where the next begins, and whether it is last.

        A search ends after `SEARCH_SECONDS`, and the next page goes on there.
        """
        until = time.monotonic() + SEARCH_SECONDS
        looked_at = 0
        found: list[Any] = []

        def step() -> None:
            nonlocal looked_at
            if looked_at > self.start and time.monotonic() > until:
                raise _Enough
            if len(found) == MOST_ROWS:
                raise _Enough
            looked_at += 1

        try:
            for entry in queue.list(
                *self._states,
                recipient=self.values["to"],
                sender=self.values["from"],
                message_id=self.values["message_id"].strip("<>"),
                search=self.values["search"],
                older=self._seconds("older"),
                newer=self._seconds("newer"),
                start=self.start,
                step=step,
            ):
                found.append(entry)
        except _Enough:
            return found, looked_at, False
        return found, looked_at, True

    def _seconds(self, name: str) -> float | None:
        text = self.values[name]
        try:
            return seconds_of(text) if text else None
        except ValueError as error:
            raise Problem(400, f"{name}={error}") from error


class _Enough(Exception):
    """A page is full, or its search has taken long enough."""


def _done(query: Any) -> str:
    """Return what the form that led here has done."""
    count = str(query.get("count", ""))
    for action in ACTIONS:
        is_number = count.isascii() and count.isdigit() and len(count) < 4
        if action.name == query.get("did") and is_number:
            return f"{entries(int(count))} {action.done}."
    return ""


# An entry in words


def _row(entry: QueueEntry, now: float) -> dict[str, Any]:
    return {
        "id": entry.id,
        "state": entry.state.key,
        "state_title": entry.state.value,
        "subject": cut(entry.subject),
        "sender": cut(entry.sender) or "<>",
        "recipients": named(entry.recipients, _MOST_NAMED),
        "age": duration(age(entry, now)),
        "next": _next(entry, now),
        "attempts": entry.attempts,
        "size": size(entry.size),
        "reply": cut(entry.last_reply or entry.problem),
    }


def _next(entry: QueueEntry, now: float) -> str:
    if entry.due is None:
        return "-"
    return "now" if entry.due <= now else f"in {duration(entry.due - now)}"


def _about(entry: QueueEntry, now: float) -> list[tuple[str, str]]:
    """Return the label and text of each fact about an entry."""
    about = [
        ("Id", entry.id),
        ("State", entry.state.value),
        ("Place", printable(entry.place)),
        ("Size", size(entry.size)),
    ]
    if entry.accepted is not None:
        about.append(("Accepted", ago(entry.accepted, now)))
    if entry.due is not None:
        about.append(("Next attempt", f"{_next(entry, now)}, {moment(entry.due)}"))
    else:
        about.append(("Written", ago(entry.changed, now)))
    if entry.problem:
        return [*about, ("Problem", printable(entry.problem))]
    uncertain = f" ({entry.uncertain} uncertain)" if entry.uncertain else ""
    return [
        *about,
        ("Attempts", f"{entry.attempts}{uncertain}"),
        ("Last reply", printable(entry.last_reply) or "-"),
        ("Message id", cut(entry.message_id) or "-"),
        ("Envelope from", cut(entry.sender) or "<>"),
        ("Envelope to", named(entry.recipients, _MOST_RECIPIENTS)),
    ]
