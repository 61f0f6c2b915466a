"""The URL of a queue in a database, such as ``postgresql://host/db``.

It is a URL of libpq, with two parameters of ours::

    postgresql://user@host1,host2/db?target_session_attrs=read-write&postcommit_schema=news

=======================  =========================================================
parameter                meaning, and default
=======================  =========================================================
``postcommit_schema``    the schema of the queue; one schema is one queue
                         (default: postcommit)
``postcommit_prepare``   1: prepare statements on the server, which is quicker, and
                         wrong behind a pooler in transaction mode (default: 0)
=======================  =========================================================

A URL has no password, because paths of queues are in command lines, tracebacks and
files that many can read. libpq finds it in ``~/.pgpass``, in the file that ``passfile``
or ``$PGPASSFILE`` names, or in ``$PGPASSWORD``.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from postcommit.errors import OptionError
from postcommit.interfaces import is_schema


# A third slash begins the database: the host is a parameter, or the default of libpq.
_SCHEME = re.compile(r"(?:postgresql|postgres):/{1,2}", re.IGNORECASE)

# A password before the @, or as a parameter.
_PASSWORD = re.compile(r"//[^/?]*:[^/?]*@|[?&][a-z]*password=", re.IGNORECASE)

_OURS = "postcommit_"
_SCHEMA, _PREPARE = f"{_OURS}schema", f"{_OURS}prepare"

# The parameters of libpq that say where the database is. The others may be secret, or
# do not distinguish two queues.
_PLACE = ("host", "hostaddr", "port", "dbname", "service")


@dataclass(frozen=True)
class DatabaseURL:
    """The parts of a URL.

    `conninfo` is the URL for libpq. `name` is what logs and errors show: without the
    user, and of the parameters of libpq only those that say where the database is.
    """

    conninfo: str
    name: str
    schema: str = "postcommit"
    prepares: bool = False

    @property
    def quoted(self) -> str:
        """The schema as SQL has it. It may be a word of SQL, such as ``order``."""
        return f'"{self.schema}"'


def parse_database_url(text: str, option: str = "queuePath") -> DatabaseURL:
    """Return the parts of the URL `text`.

    Raises `OptionError` for `option` if it can never work.
    """
    found = _SCHEME.match(text)
    if found is None:
        raise OptionError(option, text, "must be a URL such as postgresql://host/db")
    if not text.isprintable() or " " in text:
        raise OptionError(option, text, "must not have blanks; write them as %20")
    place, _, query = text[found.end() :].partition("?")
    # libpq decodes the names of parameters, too.
    if _PASSWORD.search(f"//{place}?{query}") or _PASSWORD.search(unquote(f"?{query}")):
        reason = "a URL must be without a password; it belongs into ~/.pgpass"
        raise OptionError(option, text, reason)
    place, fragment = place.partition("#")[::2]
    if fragment or "#" in query:
        raise OptionError(option, text, "must not have a part after #")
    schema, prepares, others = "postcommit", False, []
    for parameter in filter(None, query.split("&")):
        key, _, value = parameter.partition("=")
        if key == _SCHEMA:
            schema = unquote(value)
            if not is_schema(schema):
                reason = f"{_SCHEMA} must be of small letters, digits and underscores,"
                reason += " and must not be a schema of the server itself"
                raise OptionError(option, text, reason)
        elif key == _PREPARE:
            if value not in ("0", "1"):
                raise OptionError(option, text, f"{_PREPARE} must be 0 or 1")
            prepares = value == "1"
        elif key.startswith(_OURS):
            reason = f"there is no parameter {key}, only {_SCHEMA} and {_PREPARE}"
            raise OptionError(option, text, reason)
        else:
            others.append(parameter)
    conninfo = f"postgresql://{place}" + (f"?{'&'.join(others)}" if others else "")
    shown = [each for each in others if each.partition("=")[0] in _PLACE]
    if schema != "postcommit":
        shown.append(f"{_SCHEMA}={schema}")
    name = f"postgresql://{place.rpartition('@')[2]}"
    name += f"?{'&'.join(shown)}" if shown else ""
    return DatabaseURL(conninfo, name, schema, prepares)
