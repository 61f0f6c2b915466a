"""How a relay answers, for somebody who sets it up: what it offers and shows."""
from __future__ import annotations

import ssl
from dataclasses import dataclass
from dataclasses import field

from postcommit.errors import RelayError
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import TLSMode
from postcommit.smtp.certificate import Certificate
from postcommit.smtp.certificate import parse
from postcommit.smtp.channel import Channel
from postcommit.smtp.policy import TLS
from postcommit.smtp.policy import Credentials
from postcommit.smtp.policy import Relay
from postcommit.smtp.policy import Timeouts
from postcommit.smtp.session import Session
from postcommit.smtp.session import begin
from postcommit.smtp.session import dial


# Somebody waits for the answer. Seconds, unless the mailer has a time-out.
_PATIENCE = 30.0


@dataclass
class Finding:
    """What was found, as far as it went.

    `is_connected` tells whether anybody was there. `tls` is the version that was
    spoken, None in clear. `failure` is why the relay cannot be used, or None.
    """

    is_connected: bool = False
    tls: str | None = None
    certificate: Certificate | None = None
    extensions: dict[str, str] = field(default_factory=dict)
    logged_in: bool = False
    failure: RelayError | None = None


def probe(mailer: ISMTPMailer) -> Finding:
    """Connect as `mailer` would, log in, and take leave. Sends nothing.

    A certificate that cannot be trusted is looked at all the same, on a second
    connection without logging in.
    """
    tls = TLS(TLSMode(mailer.tls), mailer.cafile, mailer.verify)
    credentials = Credentials.of(mailer.username, mailer.password, mailer.token)
    finding = _probe(_relay(mailer, tls, credentials))
    finding.logged_in = credentials is not None and finding.failure is None
    cause = finding.failure and finding.failure.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        trusting = TLS(TLSMode(mailer.tls), None, verify=False)
        finding.certificate = _probe(_relay(mailer, trusting, None)).certificate
    return finding


def _relay(mailer: ISMTPMailer, tls: TLS, credentials: Credentials | None) -> Relay:
    timeout = _PATIENCE if mailer.timeout is None else mailer.timeout
    timeouts = Timeouts.of(mailer.connect_timeout, timeout)
    return Relay(mailer.hostname, mailer.port, timeouts, tls, credentials)


def _probe(relay: Relay) -> Finding:
    finding = Finding()
    try:
        channel = dial(relay)
        finding.is_connected = True
        session = Session(channel, relay)
        try:
            begin(session)
        finally:
            _note(finding, channel, session)
            session.quit()
    except RelayError as error:
        finding.failure = error
    return finding


def _note(finding: Finding, channel: Channel, session: Session) -> None:
    finding.extensions = session.extensions
    finding.tls = channel.tls_version
    shown = channel.certificate
    if shown is not None:
        finding.certificate = parse(shown)
