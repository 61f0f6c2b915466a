"""The WSGI application: who may see it, which page a path means, and what fails."""
from __future__ import annotations

import os
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TypeAlias

from postcommit._config.options import checked
from postcommit._log import Log
from postcommit._log import printable
from postcommit._queue.queue import MailQueue
from postcommit.errors import ItemError
from postcommit.errors import OptionError
from postcommit.errors import QueueError
from postcommit.errors import without_userinfo
from postcommit.interfaces import IQueuePage
from postcommit.web import _guard
from postcommit.web import _mailbox_pages
from postcommit.web import _queue_pages
from postcommit.web._http import Answer
from postcommit.web._http import HTTPException
from postcommit.web._http import Problem
from postcommit.web._http import Request
from postcommit.web._mailbox import Mailbox
from postcommit.web._pages import json_response
from postcommit.web._pages import page
from postcommit.web._pages import style


log = Log("postcommit.web")

# Returns the name of the user of a `webob.Request`, or None for a user who may not see
# the page. May raise an exception of `webob.exc` to answer otherwise.
Authorize: TypeAlias = Callable[[Any], str | None]

Named: TypeAlias = str | Sequence[str] | Mapping[str, str]

_READ = ("GET", "HEAD")

# Maximum number of characters of a reason on a page and in the log.
_LONGEST = 1000


def make_app(
    queues: Named = (),
    *,
    authorize: Authorize,
    mailboxes: Named = (),
    hosts: Iterable[str] = _guard.LOOPBACK,
) -> WebApp:
    """Return a WSGI application with a page for queues and mailboxes.

    `queues` and `mailboxes` are paths of queues, and folders of `FileMailer`: one path,
    several, or a mapping from the names that the page shows to the paths. `authorize`
    is called with each request, and returns the name of the user, or None for a user
    who may not see the page. The log has this name with each change. `hosts` are the
    names under which browsers reach the page, without ports.

    Raises `OptionError` for a value that can never work. The queues are opened with
    each request, and may be missing before.
    """
    if not callable(authorize):
        raise OptionError("authorize", authorize, "must be a function of the request")
    if isinstance(hosts, str):
        raise OptionError("hosts", hosts, "must be several names, such as a list")
    return WebApp(
        {name: MailQueue(path) for name, path in _named("queues", queues).items()},
        {name: Mailbox(path) for name, path in _named("mailboxes", mailboxes).items()},
        authorize,
        frozenset(
            host.lower().strip("[]")
            for host in checked(IQueuePage, "hosts", tuple(hosts))
        ),
    )


def _named(option: str, given: Named) -> dict[str, str]:
    """Return the paths by names that can be a part of a URL."""
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        paths = [given] if isinstance(given, str) else list(given)
        pairs = [(_last_word(path), path) for path in paths]
    named: dict[str, str] = {}
    for name, path in pairs:
        word = re.sub(r"[^A-Za-z0-9_-]+", "-", without_userinfo(name)).strip("-")
        word, number = word or "queue", 2
        while (numbered := word if number == 2 else f"{word}-{number - 1}") in named:
            number += 1
        if not path:
            raise OptionError(option, path, "must be a path")
        named[numbered] = path
    return named


def _last_word(path: str) -> str:
    """Return the name of a folder, or of the database of a URL."""
    return os.path.basename(path.partition("?")[0].rstrip("/"))


class WebApp:
    """The application. `queues` and `mailboxes` may be changed between requests."""

    def __init__(
        self,
        queues: dict[str, MailQueue],
        mailboxes: dict[str, Mailbox],
        authorize: Authorize,
        hosts: frozenset[str],
    ) -> None:
        self.queues = queues
        self.mailboxes = mailboxes
        self._authorize = authorize
        self._hosts = hosts

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        request = Request(_readable(environ))
        response = self._respond(request)
        _guard.harden(request, response)
        start_response(response.status, response.headerlist)
        body: Iterable[bytes] = response.app_iter
        return () if request.method == "HEAD" else body

    def _respond(self, request: Any) -> Any:
        try:
            return self._served(request)
        except Answer as answer:
            return answer.response
        except HTTPException as answer:
            return request.get_response(answer)
        except Problem as problem:
            return _answer(request, problem)
        except ItemError as error:
            return _answer(request, _of_item(error))
        except UnicodeDecodeError:
            return _answer(request, Problem(400, "The request is not in UTF-8."))
        except Exception:
            log.exception("%s %s failed", request.method, request.path_info)
            reason = "This page has failed. The log says why."
            return _answer(request, Problem(500, reason))

    def _served(self, request: Any) -> Any:
        _guard.check_host(request, self._hosts)
        if request.method in _READ and request.path_info == "/style.css":
            return style()
        user = self._authorize(request)
        if not user:
            raise Problem(403, "You may not see this page.", is_logged=True)
        if not isinstance(user, str):
            raise TypeError("authorize must return the name of the user, or None")
        request.environ["postcommit.web.user"] = user
        if request.method == "POST":
            _guard.check_post(request)
        elif request.method not in _READ:
            raise Problem(405, "This page understands GET, HEAD and POST only.")
        return self._dispatch(request, _words(request))

    def _dispatch(self, request: Any, words: list[str]) -> Any:
        is_post = request.method == "POST"
        match words:
            case [] | ["index.json"] if not is_post:
                return _queue_pages.overview(
                    request, self.queues, self.mailboxes, as_json=bool(words)
                )
            case ["queue", name, *rest]:
                name, as_json, rest = _json_of(name, rest)
                queue = self.queues.get(name)
                if queue is not None:
                    pages = _queue_pages.QueuePages(request, name, queue)
                    return _in_queue(queue, lambda: pages.serve(rest, as_json))
            case ["mailbox", name, *rest] if not is_post:
                name, as_json, rest = _json_of(name, rest)
                mailbox = self.mailboxes.get(name)
                if mailbox is not None:
                    return _mailbox_pages.serve(request, name, mailbox, rest, as_json)
        raise Problem(404, "There is no such page.")


def _readable(environ: dict[str, Any]) -> dict[str, Any]:
    """Return `environ` with a path in UTF-8. WebOb raises for any other."""
    readable = {
        name: _in_utf8(environ.get(name, "")) for name in ("SCRIPT_NAME", "PATH_INFO")
    }
    return {**environ, **readable}


def _in_utf8(text: str) -> str:
    # WSGI has bytes as text in Latin-1 (PEP 3333).
    return text.encode("latin-1").decode("utf-8", "replace").encode().decode("latin-1")


def _words(request: Any) -> list[str]:
    return [word for word in request.path_info.split("/") if word]


def _json_of(name: str, rest: list[str]) -> tuple[str, bool, list[str]]:
    """Return the words without the ending of JSON, and whether the last one had it."""
    *before, last = name, *rest
    first, *words = *before, last.removesuffix(".json")
    return first, last.endswith(".json"), words


# What fails


def _in_queue(queue: MailQueue, serve: Callable[[], Any]) -> Any:
    """Serve a page of `queue`. Its trouble becomes a `Problem` with what it needs."""
    try:
        return serve()
    except (QueueError, OSError) as error:
        raise _queue_pages.trouble(queue, error) from error


def _of_item(error: ItemError) -> Problem:
    status = 300 if error.choices else 404
    return Problem(status, f"The id {error}.", choices=error.choices)


def _cut(text: str) -> str:
    """Return the beginning of a text that the request may have made very long."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _answer(request: Any, problem: Problem) -> Any:
    if problem.is_logged:
        log.warning(
            "%s %s from %s was refused with %d: %s",
            request.method,
            _cut(request.path_info),
            request.remote_addr or "unknown",
            problem.status,
            _cut(problem.reason),
        )
    reason = _cut(printable(problem.reason))
    if request.path_info.endswith(".json"):
        value = {"error": reason, "notes": problem.notes, "choices": problem.choices}
        return _allowing(json_response(value, problem.status))
    place = request.path_info.rpartition("/")[0]
    response = page(
        request,
        "problem",
        f"{problem.status}",
        problem.status,
        reason=reason,
        notes=[printable(note) for note in problem.notes],
        choices=[(id, f"{place}/{id}") for id in problem.choices],
    )
    return _allowing(response)


def _allowing(response: Any) -> Any:
    """Return the response, with the methods that a refused one could have been."""
    if response.status_int == 405:
        response.headers["Allow"] = "GET, HEAD, POST"
    return response
