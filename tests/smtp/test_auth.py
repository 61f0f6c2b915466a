"""Logging in, and keeping the password to oneself."""
from __future__ import annotations

import base64
import logging
import socket
import threading
import traceback

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
from aiosmtpd.smtp import SMTP
from aiosmtpd.smtp import AuthResult

from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import told


USERS = {"me": "s3cr3t"}
ME = {"username": "me", "password": "s3cr3t"}


def send(mailer):
    return told(mailer.send(SENDER, B, MESSAGE))


def logins(relay):
    return [command for command in relay.commands if command.startswith("AUTH")]


@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "PLAIN", "LOGIN"])
@pytest.mark.parametrize("password", ["s3cr3t", "\u00fc \u20ac"])
def test_passwords(start, connect, mechanism, password):
    relay = start(users={"me": password}, mechanisms=[mechanism])
    mailer = connect(relay, username="me", password=password)
    assert send(mailer) == send(mailer) == ["sent"]
    assert [m.user for m in relay.messages] == ["me", "me"]
    assert len(logins(relay)) == 1


def test_a_long_password_waits_for_its_turn(start, connect):
    relay = start(users={"me": "x" * 400}, mechanisms=["PLAIN"])
    assert send(connect(relay, username="me", password="x" * 400)) == ["sent"]
    assert logins(relay) == ["AUTH PLAIN"]


def test_the_old_form_of_the_offer(start, connect):
    relay = start(users=USERS, mechanisms=["LOGIN"])
    relay.reply("EHLO", ["250-relay.example", "250 AUTH=LOGIN"])
    assert send(connect(relay, **ME)) == ["sent"]


def test_the_best_one_offered(start, connect):
    relay = start(users=USERS)
    assert send(connect(relay, **ME)) == ["sent"]
    assert logins(relay) == ["AUTH CRAM-MD5"]


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_under_tls(start, connect, authority, tls):
    relay = start(tls=authority.server(), implicit_tls=tls == "implicit", users=USERS)
    mailer = connect(relay, tls=tls, cafile=authority.cafile, **ME)
    assert send(mailer) == ["sent"]
    assert [(m.tls, m.user) for m in relay.messages] == [(True, "me")]


def test_refused(start, connect):
    relay = start(users=USERS, mechanisms=["PLAIN", "LOGIN"])
    mailer = connect(relay, username="me", password="wrong")
    report = mailer.send(SENDER, B, MESSAGE)
    assert report.relay_failure.code == 535
    assert relay.messages == []
    assert len(logins(relay)) == 1  # LOGIN would say the same


def test_cram_md5_refused_where_plain_is_not(start, connect):
    """Some offer what they cannot do, having only hashes of the passwords."""
    relay = start(users=USERS)
    relay.reply("AUTH", "535 5.7.8 Hm", times=1)
    assert send(connect(relay, **ME)) == ["sent"]
    assert [login.split()[1] for login in logins(relay)] == ["CRAM-MD5", "PLAIN"]


def test_a_mechanism_refused(start, connect):
    relay = start(users=USERS, mechanisms=["PLAIN", "LOGIN"])
    relay.reply("AUTH", "504 5.5.4 Not that one", times=1)
    assert send(connect(relay, **ME)) == ["sent"]


@pytest.mark.parametrize("reply", ["421 4.3.2 Bye", "454 4.7.0 Later"])
def test_refused_for_now(start, connect, reply):
    relay = start(users=USERS, mechanisms=["PLAIN"])
    relay.reply("AUTH", reply)
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    assert str(report.relay_failure) == reply


def test_hangs_up(start, connect):
    relay = start(users=USERS)
    relay.drop("AUTH")
    assert send(connect(relay, **ME)) == "relay"


@pytest.mark.parametrize("offer", [["GSSAPI"], ["CRAM-SHA1", "PLAINER"]])
def test_no_mechanism_in_common(start, connect, offer):
    relay = start(users=USERS, mechanisms=offer)
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    assert f"AUTH {' '.join(offer)}; CRAM-MD5 or" in str(report.relay_failure)


def test_not_offered_at_all(relay, connect):
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    assert "offers AUTH not at all" in str(report.relay_failure)


def test_asks_for_ever(start, connect):
    # it takes the answers for commands
    relay = start(provoked=True, users=USERS, mechanisms=["LOGIN"])
    relay.reply("AUTH", b"334 x\r\n" * 9)
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    assert told(report) == "relay"


# Never in clear


@pytest.fixture
def outside():
    """An address of this host that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]


@pytest.mark.parametrize("tls", ["auto", "none"])
def test_never_in_clear(start, connect, outside, tls):
    relay = start(users=USERS, host=outside)
    report = connect(relay, hostname=outside, tls=tls, **ME).send(SENDER, B, MESSAGE)
    assert "not sent in clear; set tls to" in str(report.relay_failure)
    assert logins(relay) == []


def test_not_to_somebody_unknown(start, connect, authority, outside):
    """`auto` trusts loopback only."""
    relay = start(tls=authority.server(), users=USERS, host=outside)
    report = connect(relay, hostname=outside, **ME).send(SENDER, B, MESSAGE)
    assert "cannot be trusted" in str(report.relay_failure)
    assert logins(relay) == []


def test_to_somebody_known(start, connect, authority, outside):
    relay = start(tls=authority.server(outside), users=USERS, host=outside)
    mailer = connect(relay, hostname=outside, cafile=authority.cafile, **ME)
    assert send(mailer) == ["sent"]


# Tokens


class Tokens:
    """Gives out one token after the other."""

    def __init__(self, *tokens):
        self.tokens = list(tokens)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        token = self.tokens.pop(0)
        if isinstance(token, Exception):
            raise token
        return token


BEARERS = pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])


@BEARERS
@pytest.mark.parametrize("length", [5, 2000])
def test_tokens(start, connect, mechanism, length):
    relay = start(tokens=["t" * length], mechanisms=[mechanism])
    mailer = connect(relay, username="me", token=Tokens("t" * length))
    assert send(mailer) == ["sent"]
    assert relay.messages[0].user == "me"
    mailer.close()
    assert send(mailer) == ["sent"]  # with the same token
    assert mailer.token.calls == 1


@BEARERS
def test_a_fresh_token_for_one_that_is_refused(start, connect, mechanism):
    relay = start(tokens=["old"], mechanisms=[mechanism])
    mailer = connect(relay, username="me", token=Tokens("old", "new"))
    assert send(mailer) == ["sent"]
    mailer.close()
    relay.tokens = {"new"}
    assert send(mailer) == ["sent"]
    assert mailer.token.calls == 2


@BEARERS
def test_the_fresh_token_is_refused_too(start, connect, mechanism):
    relay = start(tokens=["good"], mechanisms=[mechanism])
    mailer = connect(relay, username="me", token=Tokens("bad", "worse", "good"))
    report = mailer.send(SENDER, B, MESSAGE)
    assert report.relay_failure.code == 535
    assert send(mailer) == ["sent"]
    assert mailer.token.calls == 3
    # The token that was refused last is not tried again.
    assert sum(command.startswith("AUTH") for command in relay.commands) == 3


@BEARERS
def test_the_relay_hangs_up_on_the_old_token(start, connect, mechanism):
    relay = start(tokens=["good"], mechanisms=[mechanism])
    relay.drop("AUTH", times=1)
    mailer = connect(relay, username="me", token=Tokens("bad", "good"))
    assert send(mailer) == "relay"
    assert send(mailer) == ["sent"]


def test_no_token_to_be_had(start, connect):
    relay = start(tokens=["good"], mechanisms=["XOAUTH2"])
    tokens = Tokens(ConnectionError("no network"), "good")
    mailer = connect(relay, username="me", token=tokens)
    report = mailer.send(SENDER, B, MESSAGE)
    assert "no network" in str(report.relay_failure)
    assert send(mailer) == ["sent"]


def test_an_error_in_the_token_function_is_the_callers(start, connect):
    relay = start(tokens=["good"], mechanisms=["XOAUTH2"])
    mailer = connect(relay, username="me", token=Tokens(LookupError("oops"), "good"))
    with pytest.raises(LookupError):
        mailer.send(SENDER, B, MESSAGE)
    relay.wait_until(lambda: not relay.open)
    assert send(mailer) == ["sent"]


# Keeping it secret


@pytest.mark.parametrize(
    "options",
    [
        {"username": "me"},
        {"token": lambda: "t"},
        {"username": "", "token": lambda: "t"},
        {"username": "me", "token": "t"},
    ],
)
def test_incomplete_credentials(options):
    with pytest.raises(OptionError):
        SMTPMailer(**options)


def test_a_password_without_a_name_is_not_used(relay, connect):
    assert send(connect(relay, username="", password="s3cr3t")) == ["sent"]


@pytest.mark.parametrize("trouble", ["refused", "hangs up", "clear", "garbage"])
def test_told_to_nobody(start, connect, caplog, outside, trouble):
    host = outside if trouble == "clear" else "127.0.0.1"
    relay = start(users=USERS, mechanisms=["PLAIN"], host=host)
    mailer = connect(relay, hostname=host, username="me", password="Pa55word")
    if trouble == "hangs up":
        relay.drop("AUTH")
    elif trouble == "garbage":
        relay.reply("AUTH", b"???\r\n")
    with caplog.at_level(logging.DEBUG):
        report = mailer.send(SENDER, B, MESSAGE)
    text = caplog.text + repr(mailer) + repr(mailer.relay) + repr(report)
    if isinstance(report.relay_failure, RelayError):
        chain = traceback.TracebackException.from_exception(
            report.relay_failure, capture_locals=True
        )
        text += "".join(chain.format())
    assert "relay failed" in text
    assert "Pa55word" not in text
    assert base64.b64encode(b"\0me\0Pa55word").decode() not in text


# aiosmtpd


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("password", ["s3cr3t", "wrong"])
def test_aiosmtpd(connect, authority, password):
    def authenticate(server, session, envelope, mechanism, data):
        good = (data.login, data.password) == (b"me", b"s3cr3t")
        return AuthResult(success=good, handled=False)

    gone = threading.Event()

    class Server(SMTP):
        def connection_lost(self, error):
            super().connection_lost(error)
            gone.set()

    class Relay(Controller):
        def factory(self):
            return Server(self.handler, **self.SMTP_kwargs)

    controller = Relay(
        Sink(),
        hostname="127.0.0.1",
        port=free_port(),
        tls_context=authority.server(),
        require_starttls=True,
        authenticator=authenticate,
        auth_required=True,
    )
    controller.start()
    try:
        mailer = connect(
            controller,
            tls="starttls",
            cafile=authority.cafile,
            username="me",
            password=password,
        )
        expected = ["sent"] if password == "s3cr3t" else "relay"
        assert send(mailer) == expected
        mailer.close()
        assert gone.wait(5)
    finally:
        controller.stop()
