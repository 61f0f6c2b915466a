"""TLS: one option, verified unless one says otherwise."""
from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from postcommit._smtp.connection import Connection
from postcommit._smtp.mailer import SMTPMailer
from postcommit._smtp.pipeline import SMTPPipeline
from postcommit._smtp.tls import TLS
from postcommit.errors import RelayError
from postcommit.interfaces import TLSMode
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import told
from tests.support.certificates import Authority
from tests.support.mailers import Taken


def send(mailer):
    report = mailer.send(SENDER, B, MESSAGE)
    if report.relay_failure is not None:
        raise AssertionError(str(report.relay_failure))
    return told(report)


@pytest.fixture
def stranger(tmp_path):
    """An authority that nobody knows."""
    return Authority(tmp_path)


# Whatever comes to pass on loopback, `starttls` and `implicit` verify.
STRICT = pytest.mark.parametrize("tls", ["starttls", "implicit"])


@STRICT
def test_verified(start, connect, authority, tls):
    relay = start(tls=authority.server(), implicit_tls=tls == "implicit")
    mailer = connect(relay, tls=tls, cafile=authority.cafile)
    assert send(mailer) == ["sent"]
    assert send(mailer) == ["sent"]
    assert [m.tls for m in relay.messages] == [True, True]
    assert relay.connections == 1


@STRICT
def test_a_batch(start, connect, authority, tls):
    relay = start(tls=authority.server(), implicit_tls=tls == "implicit")
    mailer = connect(relay, tls=tls, cafile=authority.cafile)
    big = MESSAGE + b"x" * 300_000 + b"\r\n"
    reports = mailer.send_all([(SENDER, [B], big)] * 5)
    assert [told(report) for report in reports] == [["sent"]] * 5
    assert {m.data for m in relay.messages} == {big}


@STRICT
@pytest.mark.parametrize(
    ("trouble", "remedy"),
    [
        ("stranger", "set cafile"),
        ("name", "'127.0.0.1'; set hostname, or server_name, to a name in"),
        ("expired", "expired; the relay needs a new one"),
        ("no cafile", "set cafile"),
    ],
)
def test_refused(start, connect, authority, stranger, tls, trouble, remedy):
    context = {
        "stranger": stranger.server,
        "name": lambda: authority.server("other.example"),
        "expired": lambda: authority.server("127.0.0.1", expired=True),
        "no cafile": authority.server,
    }[trouble]()
    relay = start(tls=context, implicit_tls=tls == "implicit", users={"me": "secret"})
    cafile = None if trouble == "no cafile" else authority.cafile
    mailer = connect(
        relay, tls=tls, cafile=cafile, username="me", password="secret"
    )
    report = mailer.send(SENDER, B, MESSAGE)
    assert isinstance(report.relay_failure, RelayError)
    assert "cannot be trusted" in str(report.relay_failure)
    assert remedy in str(report.relay_failure)
    assert relay.messages == []
    assert not any(command.startswith("AUTH") for command in relay.commands)


@STRICT
def test_not_verified_if_told_so(start, connect, stranger, tls):
    context = stranger.server("other.example")
    relay = start(tls=context, implicit_tls=tls == "implicit")
    assert send(connect(relay, tls=tls, verify=False)) == ["sent"]
    assert relay.messages[0].tls


def test_auto_takes_any_certificate_on_loopback(start, connect, stranger):
    relay = start(tls=stranger.server("other.example", expired=True))
    assert send(connect(relay)) == ["sent"]
    assert relay.messages[0].tls


def test_auto_by_the_name_localhost(start, connect, stranger):
    relay = start(tls=stranger.server())
    assert send(connect(relay, hostname="localhost")) == ["sent"]
    assert relay.messages[0].tls


def test_auto_on_loopback_of_ipv6(start, connect, stranger):
    relay = start(tls=stranger.server(), host="::1")
    assert send(connect(relay, hostname="::1")) == ["sent"]
    assert relay.messages[0].tls
    assert relay.commands[0] == f"EHLO {own_name('[IPv6:::1]')}"


def own_name(literal):
    name = socket.gethostname()
    return name if "." in name else literal


def test_auto_without_an_offer(relay, connect):
    assert send(connect(relay)) == ["sent"]
    assert not relay.messages[0].tls


def test_none_in_spite_of_an_offer(start, connect, authority):
    relay = start(tls=authority.server())
    assert send(connect(relay, tls="none")) == ["sent"]
    assert not relay.messages[0].tls


def test_starttls_missing(relay, connect):
    report = connect(relay, tls="starttls").send(SENDER, B, MESSAGE)
    assert "offers no STARTTLS; set tls to 'implicit'" in str(report.relay_failure)
    assert relay.messages == []


@pytest.mark.parametrize("tls", ["auto", "starttls"])
@pytest.mark.parametrize("reply", ["454 4.7.0 Not now", "501 5.5.1 No"])
def test_starttls_refused(start, connect, authority, tls, reply):
    relay = start(tls=authority.server())
    relay.reply("STARTTLS", reply)
    report = connect(relay, tls=tls).send(SENDER, B, MESSAGE)
    assert report.relay_failure.code == int(reply[:3])
    assert relay.messages == []


def test_starttls_and_then_garbage(start, connect, authority):
    relay = start(tls=authority.server())
    relay.reply("STARTTLS", b"220 Go on\r\nthis is no TLS at all, but long enough\r\n")
    report = connect(relay, tls="starttls").send(SENDER, B, MESSAGE)
    assert told(report) == "relay"
    assert relay.messages == []


def test_implicit_towards_a_relay_in_clear(start, connect):
    relay = start(provoked=True)  # a handshake is no command
    report = connect(relay, tls="implicit", timeout=1).send(SENDER, B, MESSAGE)
    assert "does not speak TLS as expected" in str(report.relay_failure)


def test_falls_silent_in_the_handshake(start, connect):
    relay = start()
    relay.hold("CONNECT")
    mailer = connect(relay, tls="implicit", connect_timeout=0.05)
    assert "timed out" in str(mailer.send(SENDER, B, MESSAGE).relay_failure)


def test_hangs_up_instead_of_the_handshake(start, connect, authority):
    relay = start(tls=authority.server())
    relay.drop("STARTTLS", after="220 Go on")
    report = connect(relay, tls="starttls").send(SENDER, B, MESSAGE)
    assert "does not speak TLS as expected" in str(report.relay_failure)


def test_old_versions_are_refused(start, connect, authority):
    context = authority.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    relay = start(tls=context)
    assert told(connect(relay).send(SENDER, B, MESSAGE)) == "relay"
    assert relay.messages == []


def test_what_was_said_in_clear_is_forgotten(start, connect, authority):
    """Somebody on the way adds to the reply to STARTTLS, and to that to EHLO."""
    relay = start(tls=authority.server(), without=("PIPELINING", "SIZE"))
    relay.reply(
        "EHLO", ["250-relay.example", "250-PIPELINING", "250 STARTTLS"], times=1
    )
    relay.reply("STARTTLS", b"220 Go on\r\n250-evil\r\n250 AUTH PLAIN\r\n", times=1)
    mailer = connect(relay, tls="starttls", cafile=authority.cafile)
    assert send(mailer) == ["sent"]
    assert {len(group) for group in relay.groups} == {1}


@pytest.mark.parametrize("content", [None, "no certificate\n"])
def test_a_cafile_that_is_none(start, connect, authority, tmp_path, content):
    relay = start(tls=authority.server())
    cafile = tmp_path / "ca.pem"
    if content:
        cafile.write_text(content)
    report = connect(relay, tls="starttls", cafile=str(cafile)).send(SENDER, B, MESSAGE)
    assert "holds no certificates to trust" in str(report.relay_failure)
    assert str(cafile) in str(report.relay_failure)


def test_certificates_that_were_read_before(start, connect, authority, tmp_path):
    """As by a command that gives up the rights of root after that."""
    relay = start(tls=authority.server())
    cafile = tmp_path / "ca.pem"
    cafile.write_bytes(authority.ca.cert_pem.bytes())
    mailer = connect(relay, tls="starttls", cafile=str(cafile))
    mailer.read_certificates()
    cafile.unlink()
    assert send(mailer) == ["sent"]
    with pytest.raises(RelayError, match="holds no certificates"):
        SMTPMailer(tls="starttls", cafile=str(cafile)).read_certificates()
    connect(relay, tls="none").read_certificates()


@pytest.mark.parametrize("loopback", [False, True])
def test_a_fork_while_certificates_are_read(authority, tmp_path, loopback):
    slow, quick = tmp_path / "slow.pem", tmp_path / "quick.pem"
    os.mkfifo(slow)
    quick.write_bytes(authority.ca.cert_pem.bytes())
    tls = TLS(TLSMode.AUTO, str(slow), verify=True)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(tls.context, loopback=loopback, login=True)
        with slow.open("wb") as writer:  # as soon as somebody reads
            quick.replace(slow)
            pid = os.fork()
            if not pid:
                try:
                    signal.alarm(5)
                    tls.context(loopback=loopback, login=True)
                    os._exit(0)
                finally:
                    os._exit(1)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert status == 0
            context = tls.context(loopback=loopback, login=True)
            writer.write(authority.ca.cert_pem.bytes())
        # Both have made one, and the same is kept for both.
        assert reading.result(10) is context


def test_the_relay_hangs_up_under_tls(start, connect, authority):
    relay = start(tls=authority.server())
    mailer = connect(relay, tls="starttls", cafile=authority.cafile)
    relay.drop("END", times=1)
    assert send(mailer) == ["uncertain"]
    relay.drop("DATA", times=1)
    assert send(mailer) == ["deferred"]
    assert send(mailer) == ["sent"]
    relay.hang_up()
    assert send(mailer) == ["sent"]


def test_cut_in_the_middle_of_a_large_message(start, connect, authority):
    relay = start(tls=authority.server())
    mailer = connect(relay, tls="starttls", cafile=authority.cafile)

    def cut(dialogue, usual):
        dialogue.say(b"354 Go on\r\n")
        dialogue.flush()
        dialogue.fill()
        dialogue.hang_up()

    relay.on("DATA", cut)
    big = MESSAGE + (b"x" * 70 + b"\r\n") * 100_000
    assert told(mailer.send(SENDER, B, big)) == ["deferred"]


# A relay that stops reading


@contextmanager
def tunnel(authority):
    """Yield a connection and the socket of its peer: TLS, and little room between."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    theirs.settimeout(10)
    client = ssl.create_default_context(cafile=authority.cafile)
    server = authority.server()
    server.num_tickets = 0  # nobody here would read them
    connection = Connection(ours, SMTPMailer(timeout=0.3).relay)
    connection.pipelining = True
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(server.wrap_socket, theirs, server_side=True)
        connection.encrypt(client, "localhost", 10)
        peer = begun.result(10)
    with peer:
        yield connection, peer
        connection.close()


def read_all(peer):
    """Return what comes until the connection is closed; half a record is nothing."""
    received = b""
    while more := peer.recv(1 << 16):
        received += more
    return received


@pytest.mark.parametrize("size", [60_000, 1_000_000])
def test_no_more_has_left_than_the_connection_says(authority, size):
    with tunnel(authority) as (connection, peer):
        with pytest.raises(TimeoutError):
            connection.write(b"x" * size, 0.2)
        connection.close()
        assert 0 < len(read_all(peer)) <= connection.sent < size


class OneConnection:
    """A place where there is one connection, and no other."""

    pipelining = True
    messages = 100

    def __init__(self, connection):
        self.connection = connection

    def checkout(self, *, fresh=False):
        return self.connection

    def discard(self, connection):
        connection.close()


def test_a_final_dot_that_left_is_not_taken_for_one_that_did_not(authority):
    """The relay stops to read in the middle of the envelope behind it."""
    given_up = threading.Event()

    def serve(peer):
        received = b""
        while not received.endswith(b"DATA\r\n"):
            received += peer.recv(1 << 16)
        peer.sendall(b"250 Ok\r\n250 Ok\r\n354 Go on\r\n")
        assert given_up.wait(10)
        return read_all(peer)

    many = [f"{'x' * 230}.{number}@example.org" for number in range(150)]
    mails = [
        Taken(SENDER, (B,), MESSAGE + b"x" * 10_000),
        Taken(SENDER, tuple(many), MESSAGE),
    ]
    with tunnel(authority) as (connection, peer), ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, peer)
        with SMTPPipeline(OneConnection(connection)) as pipeline:
            for mail in mails:
                pipeline.offer(mail)
            reports = [report for _, report in pipeline.drain()]
        given_up.set()
        received = served.result(10)
    assert b"\r\n.\r\nMAIL" in received
    assert not received.endswith(b"DATA\r\n")
    assert [told(report) for report in reports] == [["uncertain"], "relay"]
