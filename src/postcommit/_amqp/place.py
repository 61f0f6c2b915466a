"""The URL of a broker (https://www.rabbitmq.com/uri-spec.html), with several hosts.

Also the name of the header that both ends know.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from dataclasses import field
from urllib.parse import quote
from urllib.parse import unquote_to_bytes

from postcommit.errors import MISSING
from postcommit.errors import OptionError
from postcommit.interfaces import is_ip_address


# The header of a message that has the name of its entry.
NAME = "postcommit-name"

_PORTS = {"amqp": 5672, "amqps": 5671}

_URL = re.compile(
    r"(?P<scheme>amqps?)://(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?"
    r"(?P<hosts>[^@/?#]+)(?:/(?P<vhost>[^/?#]*))?",
    re.IGNORECASE,
)
_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]+))(?::(?P<port>\d{1,5}))?",
    re.ASCII,
)

_FORM = "must be like amqps://user@host:5671/vhost, or have several hosts with commas"


@dataclass(frozen=True)
class Place:
    """What the URL says. `hosts` has a name or address and a port for each.

    As text it is the URL, without the password.
    """

    is_tls: bool
    hosts: tuple[tuple[str, int], ...]
    vhost: str
    username: str | None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        scheme = "amqps" if self.is_tls else "amqp"
        user = f"{_quoted(self.username)}@" if self.username else ""
        hosts = ",".join(host_and_port(*each) for each in self.hosts)
        vhost = "" if self.vhost == "/" else _quoted(self.vhost)
        return f"{scheme}://{user}{hosts}/{vhost}"


def host_and_port(host: str, port: int) -> str:
    """Return both as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parsed_url(url: str) -> Place:
    """Return what `url` says. Raises `OptionError`, which does not show a password.

    A character that has a meaning in URLs is written as in ``%2F``. Without a vhost, or
    with an empty one, it is ``/``.
    """
    found = _URL.fullmatch(url)
    if found is None:
        if "?" in url or "#" in url:
            reason = "takes no parameters; give them as options of their own"
            raise OptionError("url", url, reason)
        # It is not shown, because the part with the password is not known.
        raise OptionError("url", MISSING, _FORM)
    scheme = found["scheme"].lower()
    hosts = []
    for part in found["hosts"].split(","):
        host = _HOST.fullmatch(part.strip())
        port = int(host["port"] or _PORTS[scheme]) if host else 0
        if host is None or not 0 < port < 65536:
            raise OptionError("url", url, _FORM)
        if host["v6"] and not is_ip_address(host["v6"]):
            raise OptionError("url", url, "has brackets around what is not an address")
        hosts.append((host["v6"] or host["name"], port))
    try:
        user, password, vhost = map(_decoded, found.group("user", "password", "vhost"))
    except UnicodeDecodeError:
        raise OptionError("url", url, "has escapes that are not UTF-8") from None
    if vhost and len(vhost.encode()) > 255:
        raise OptionError("url", url, "must not have a vhost of more than 255 bytes")
    return Place(
        scheme == "amqps",
        tuple(hosts),
        vhost or "/",
        user or None,
        password,
    )


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _decoded(text: str | None) -> str | None:
    return None if text is None else unquote_to_bytes(text).decode()
