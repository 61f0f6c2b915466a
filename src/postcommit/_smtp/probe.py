"""How a relay answers when a mailer is set up: extensions, TLS, login."""
from __future__ import annotations

import ssl
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from datetime import UTC
from datetime import datetime
from typing import Any

from postcommit._smtp.connection import Connection
from postcommit._smtp.connection import Phase
from postcommit._smtp.connection import Timeouts
from postcommit._smtp.connection import addresses_of
from postcommit._smtp.connection import connect
from postcommit._smtp.mailer import SMTPMailer
from postcommit._smtp.pool import Failure
from postcommit._smtp.pool import all_failed
from postcommit.errors import RelayError


# Time-out in seconds if the mailer sets none, because a person waits.
_PATIENCE = 30.0

_ATTRIBUTES = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
}


@dataclass(frozen=True)
class Certificate:
    """Subject, issuer («O=Example, CN=mx.example.org»), expiry, names of the host."""

    subject: str
    issuer: str
    expires: datetime
    names: tuple[str, ...]

    @classmethod
    def of(cls, shown: dict[str, Any]) -> Certificate:
        """Return what `ssl.SSLSocket.getpeercert` has shown."""
        names = shown.get("subjectAltName", ())
        return cls(
            _name(shown["subject"]),
            _name(shown["issuer"]),
            datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC),
            tuple(name for kind, name in names if kind in ("DNS", "IP Address")),
        )


def _name(parts: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    attributes = [attribute for part in parts for attribute in part]
    return ", ".join(f"{_ATTRIBUTES.get(key, key)}={text}" for key, text in attributes)


@dataclass
class Diagnosis:
    """What was found out about a relay.

    `is_connected` is True if the relay took the connection, and `is_greeted` if it said
    220, under TLS if that comes first. `is_cut_off` is True if the relay ended TLS with
    an alert. `tls` is the version that was spoken, None in clear or if it is unknown.
    `certificate` is None unless it was verified. `failure` is why the relay cannot be
    used, or None. All these are about the last address that took the
    connection. `tried` has the addresses that were tried, each with its failure, or
    None for the last one if it can be used.
    """

    is_connected: bool = False
    is_greeted: bool = False
    is_cut_off: bool = False
    tls: str | None = None
    certificate: Certificate | None = None
    extensions: dict[str, str] = field(default_factory=dict)
    logged_in: bool = False
    failure: RelayError | None = None
    tried: list[tuple[str, RelayError | None]] = field(default_factory=list)


def probe(mailer: SMTPMailer) -> Diagnosis:
    """Connect as `mailer` would, log in, and say QUIT. Sends nothing."""
    timeout = _PATIENCE if mailer.timeout is None else mailer.timeout
    timeouts = Timeouts.alike(mailer.connect_timeout, timeout)
    relay = replace(mailer.relay, timeouts=timeouts)
    found = Diagnosis()
    failures: list[Failure] = []
    try:
        addresses = addresses_of(relay)
    except RelayError as error:
        found.failure = error
        return found
    for address in addresses:
        connection = None
        try:
            connection = connect(relay, address)
            connection.greet()
        except RelayError as error:
            phase = connection.phase if connection is not None else None
            failures.append(Failure(address, error, phase))
            found.tried.append((str(address), error))
            if failures[-1].is_login_refused:
                break
        else:
            found.tried.append((str(address), None))
            found.logged_in = relay.credentials is not None
            return found
        finally:
            if connection is not None:
                _note(found, connection)
                connection.quit()
    found.failure = all_failed(relay, failures)
    return found


def _note(found: Diagnosis, connection: Connection) -> None:
    found.is_connected = True
    found.is_greeted = connection.phase is not Phase.GREETING
    found.extensions = connection.extensions
    found.tls = found.certificate = None
    encrypted = connection.tls_socket
    # After an alert, OpenSSL does not know any more what was agreed on. A relay sends
    # one behind the handshake of TLS 1.3 if it misses our certificate.
    found.is_cut_off = encrypted is not None and encrypted.version() is None
    if encrypted is not None and not found.is_cut_off:
        found.tls = encrypted.version()
        shown = encrypted.getpeercert()
        if shown:  # it was verified
            found.certificate = Certificate.of(shown)
