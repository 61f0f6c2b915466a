"""The options of a broker, and how to connect with them."""
from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING
from typing import Any

from zope.schema import getFieldNames

from postcommit._amqp.place import Place
from postcommit._amqp.place import host_and_port
from postcommit._amqp.place import parsed_url
from postcommit._config.options import checked
from postcommit._config.readonly import ReadOnlyOptions
from postcommit._smtp.tls import TLS
from postcommit.errors import MISSING
from postcommit.errors import MissingExtraError
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.interfaces import IBroker
from postcommit.interfaces import TLSMode


if TYPE_CHECKING:
    from postcommit._amqp.link import Link

_check = functools.partial(checked, IBroker)

# The user that every new broker has. The broker takes it from its own machine only.
_GUEST = "guest"


class Broker(ReadOnlyOptions):
    """The base of those who connect to a broker. See `IBroker`.

    Raises `OptionError` for options that can never work, and `MissingExtraError`
    without py-amqp. Nothing is connected or read before the first message.
    """

    url: str
    queue: str
    password: str | None
    cafile: str | None
    verify: bool
    certfile: str | None
    keyfile: str | None
    server_name: str | None
    connect_timeout: float
    timeout: float
    heartbeat: int
    _place: Place
    # The index of the host to try first.
    _turn: int
    _tls: TLS

    def _set_broker(self, given: Mapping[str, Any]) -> None:
        """Check the arguments of a constructor, and make the attributes of them."""
        if find_spec("amqp") is None:
            raise MissingExtraError("amqp", "amqp")
        options = vars(self)
        for name in getFieldNames(IBroker):
            options[name] = _check(name, given[name])
        place = options["_place"] = parsed_url(self.url)
        self._turn = 0
        if len(self.queue.encode(errors="replace")) > 255:
            raise OptionError("queue", self.queue, "must not be longer than 255 bytes")
        self._check_login(place)
        options["_tls"] = tls = TLS(
            TLSMode.IMPLICIT if place.is_tls else TLSMode.NONE,
            self.cafile,
            self.verify,
            certfile=self.certfile,
            keyfile=self.keyfile,
            server_name=self.server_name,
        )
        tls.check("amqp://, which is clear; use amqps://")

    def _check_login(self, place: Place) -> None:
        """Raise `OptionError` for half a login, or a password that is there twice."""
        if (self.password or place.password) and not place.username:
            raise OptionError("password", MISSING, "needs a user in the URL")
        if self.password and place.password:
            raise OptionError("password", self.password, "is in the URL, too")
        if place.username and not (self.password or place.password):
            reason = (
                "is needed for the user in the URL; give it by a file or the"
                " environment, or in the URL"
            )
            raise OptionError("password", MISSING, reason)

    @property
    def login(self) -> tuple[str, str] | None:
        """The user and the password; None if the client certificate is the login."""
        place = self._place
        if place.username:
            return place.username, self.password or place.password or ""
        return None if self.certfile else (_GUEST, _GUEST)

    def __repr__(self) -> str:
        # A debugger may show an object whose constructor has raised.
        place = vars(self).get("_place", "without options")
        return f"<{type(self).__name__} {place}>"

    @property
    def name(self) -> str:
        """The URL without its password, for logs."""
        return str(self._place)

    def connect(self) -> Link:
        """Return a new connection to the first host that works.

        It begins with the host that worked last. Raises `RelayError`, which says what
        is wrong with each host. After a refused login the other hosts, which have the
        same users, are not tried.
        """
        from postcommit._amqp.link import Link
        from postcommit._amqp.link import LoginRefused

        failures = []
        hosts, turn = self._place.hosts, self._turn
        for host, port in hosts[turn:] + hosts[:turn]:
            try:
                return Link(self, host, port)
            except LoginRefused:
                raise
            except RelayError as error:
                failures.append(f"{host_and_port(host, port)}: {error.reason}")
                self.avoid(host, port)
        raise RelayError("; ".join(failures))

    def avoid(self, host: str, port: int) -> None:
        """Begin with the next host, if a connection to this one has failed.

        A node that was cut off from the others still takes connections, and confirms
        nothing. Several connections to it may fail, and it is avoided once.
        """
        hosts, turn = self._place.hosts, self._turn
        if hosts[turn] == (host, port):
            self._turn = (turn + 1) % len(hosts)

    def read_certificates(self) -> None:
        """Read the certificates now, and keep them, see `ISMTPMailer`."""
        self._tls.read_certificates()
