"""``postcommit test-relay``: checks the relay, and can send a test mail."""
from __future__ import annotations

import argparse
import sys
import time

from postcommit._amqp.mailer import AMQPMailer
from postcommit._cli import configuration
from postcommit._cli import logs
from postcommit._cli.configuration import Configuration
from postcommit._cli.output import coloured
from postcommit._cli.output import printable
from postcommit._log import one_line
from postcommit._mail.address import parse_recipients
from postcommit._mail.address import parse_sender
from postcommit._mail.message import Composed
from postcommit._mail.message import compose
from postcommit._queue.values import duration
from postcommit._queue.values import moment
from postcommit._smtp.mailer import SMTPMailer
from postcommit._smtp.probe import Certificate
from postcommit._smtp.probe import Diagnosis
from postcommit._smtp.probe import probe
from postcommit.errors import DeliveryError
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.interfaces import Status
from postcommit.interfaces import TLSMode


_LEVEL = "critical"  # the outcomes are printed instead

# Codes of replies by which a relay asks for a login, or for another login.
_WANTS_LOGIN = (530, 534, 535, 538)

# Seconds before the end of a certificate in which a warning is printed.
_SOON = 14 * 86400.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipients",
        metavar="ADDRESS",
        nargs="*",
        help="send one mail to these; without, nothing is sent",
    )
    told = "the sender of that mail (default: the first ADDRESS)"
    parser.add_argument("--from", dest="sender", metavar="ADDRESS", help=told)
    configuration.arguments(parser, level=_LEVEL)


def run(options: argparse.Namespace) -> int:
    """Print how each relay answers. Return 1 if something failed."""
    found = Configuration(options)
    broker = found.mailer()  # also refuses options without effect
    mail = _mail(options)
    logs.set_up(found.log_level(_LEVEL), found.log_format)
    if isinstance(broker, AMQPMailer):
        return _test_broker(broker, mail)
    relays = found.named_relays()
    well = 0
    for number, (name, mailer) in enumerate(relays):
        if len(relays) > 1:
            print(f"{chr(10) if number else ''}[{name}]")
        well += _test(mailer, mail)
    if len(relays) > 1:
        colour = "green" if well == len(relays) else "red"
        verb = "is" if well == 1 else "are"
        total = f"{well} of {len(relays)} relays {verb} well"
        print(f"\n{coloured(total, colour, sys.stdout)}")
    return 0 if well == len(relays) else 1


def _test_broker(mailer: AMQPMailer, mail: Composed | None) -> int:
    """Print how the broker answers. Return 1 if something failed."""
    try:
        mailer.check()
        print(f"{printable(mailer.name)} answers; it has the queue {mailer.queue!r}")
        if mail is not None:
            report = mailer.send(mail.sender, mail.recipients, mail.message)
            report.raise_for_failure()
            print(f"handed over: {report.outcomes[0].reply}")
    except (RelayError, DeliveryError) as error:
        print(f"{coloured('failed', 'red', sys.stdout)}: {printable(str(error))}")
        return 1
    finally:
        mailer.close()
    return 0


def _test(mailer: SMTPMailer, mail: Composed | None) -> bool:
    """Print how the relay of `mailer` answers; return whether it is well."""
    finding = probe(mailer)
    _print(mailer, finding)
    failure = finding.failure or _bad_file(mailer)
    if failure is not None:
        failed = coloured("failed", "red", sys.stdout)
        print(f"{failed}: {_shown(failure)}{_hint(finding, failure, mailer)}")
        return False
    if mail is not None and not _send(mailer, mail):
        return False
    print(coloured("the relay is well", "green", sys.stdout))
    return True


def _bad_file(mailer: SMTPMailer) -> RelayError | None:
    """Return why a certificate or key cannot be read, also if none was needed now."""
    try:
        mailer.read_certificates()
    except RelayError as error:
        return error
    return None


def _print(mailer: SMTPMailer, finding: Diagnosis) -> None:
    _line("relay", f"{mailer.relay}, tls={mailer.tls}")
    if len(finding.tried) > 1:
        for address, failure in finding.tried:
            _line("address", f"{address}: {'yes' if failure is None else failure}")
    _line("connection", "yes" if finding.is_connected else "no")
    if finding.is_connected:
        cut_off = "TLS, which the relay ended with an alert"
        _line("encryption", finding.tls or (cut_off if finding.is_cut_off else "none"))
    if finding.certificate is not None:
        _print_certificate(finding.certificate)
    elif finding.tls is not None:
        _line("certificate", "not verified")
    for name, parameters in sorted(finding.extensions.items()):
        _line("offers", f"{name} {parameters}".strip())
    if finding.logged_in:
        _line("login", f"as {mailer.username}")
    elif mailer.username is None:
        _line("login", "none, there is no username")
    if finding.failure is None and finding.tls is None and mailer.certfile is not None:
        _line("certfile", "not used, the relay offers no STARTTLS; to insist on it,")
        _line("", "set tls to 'starttls'")


def _hint(finding: Diagnosis, failure: RelayError, mailer: SMTPMailer) -> str:
    """Return which option to set, unless `failure` says so itself."""
    if failure.reply is not None:
        wants_login = failure.reply.code in _WANTS_LOGIN
        return "; set username and password_file" if wants_login else ""
    if mailer.relay.is_unix or "source_address" in failure.reason:
        return ""  # the rest is about hosts and ports
    if not finding.is_connected:
        return "; set hostname and port: 25, or 587 to log in, 465 with tls=implicit"
    # The relay has not sent a greeting. It may be waiting for TLS.
    is_silent = not finding.is_greeted and mailer.tls != TLSMode.IMPLICIT
    return "; set tls to 'implicit' if it is port 465" if is_silent else ""


def _print_certificate(shown: Certificate) -> None:
    _line("certificate", f"of {shown.subject}")
    _line("names", ", ".join(shown.names) or "none")
    _line("issued by", shown.issuer)
    left = shown.expires.timestamp() - time.time()
    _line("expires", f"{moment(shown.expires.timestamp())}, in {duration(left)}")
    if left < _SOON:
        _line("", "that is soon: renew it")


def _line(title: str, text: str) -> None:
    print(f"{title:<12}{_shown(text)}")


def _shown(said: object) -> str:
    return one_line(str(said))


def _mail(options: argparse.Namespace) -> Composed | None:
    """Return the mail to send, or None. Raises `AddressError`."""
    if not options.recipients:
        if options.sender is not None:
            reason = "is of no use without an ADDRESS to send to"
            raise OptionError("--from", options.sender, reason)
        return None
    recipients = parse_recipients(options.recipients)
    sender = parse_sender(recipients[0] if options.sender is None else options.sender)
    text = (
        f"From: <{sender or recipients[0]}>\nTo: <{'>, <'.join(recipients)}>\n"
        "Subject: Test of the relay\n\nSent by postcommit test-relay.\n"
    )
    return compose(sender, recipients, text)


def _send(mailer: SMTPMailer, mail: Composed) -> bool:
    """Send the mail, print each outcome, and return whether all were sent."""
    report = mailer.send(mail.sender, mail.recipients, bytes(mail))
    mailer.close()
    if report.relay_failure is not None:
        print(f"not sent: {_shown(report.relay_failure)}")
        return False
    for outcome in report.outcomes:
        is_sent = outcome.status is Status.SENT
        status = coloured(
            outcome.status.value, "green" if is_sent else "red", sys.stdout
        )
        print(f"<{outcome.recipient}> {status}: {_shown(outcome.reply)}")
    return len(report.sent) == len(report.recipients)
