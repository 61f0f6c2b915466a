"""TLS: one option, verified unless one says otherwise."""
from __future__ import annotations

import os
import pty
import signal
import socket
import ssl
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from postcommit._smtp.connection import Connection
from postcommit._smtp.mailer import SMTPMailer
from postcommit._smtp.mailer import SMTPPipeline
from postcommit._smtp.tls import TLS
from postcommit.errors import OptionError
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
        ("expired", "expired; the relay needs a new certificate"),
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
    assert report.relay_failure.reply.code == int(reply[:3])
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_certificates_that_cannot_be_read_any_more(authority, tmp_path, caplog):
    """Only root may look into the folder of the private key."""
    certfile, keyfile = authority.write_pair(tmp_path)
    tmp_path.chmod(0o700)
    tls = TLS(TLSMode.STARTTLS, authority.cafile, certfile=certfile, keyfile=keyfile)
    tls.read_certificates()
    context = tls.context(loopback=False, login=True)
    os.seteuid(65534)
    try:
        for _ in range(2):
            assert tls.context(loopback=False, login=True) is context
            tls.read_again()
    finally:
        os.seteuid(0)
    [warning] = warnings_of(caplog)
    assert warning.endswith("the certificates that were read before are used")


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


# Files that are replaced


def rewrite(path, content, *, same_time=False):
    """Write `content` as another file of that name, or into the same file."""
    if same_time:
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        path.write_bytes(content)
        os.utime(path, ns=times)
    else:
        fresh = path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(path)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == 30]


def test_a_cafile_that_is_replaced(start, connect, tmp_path):
    (tmp_path / "new").mkdir()
    old, new = Authority(tmp_path), Authority(tmp_path / "new")
    cafile = tmp_path / "ca.pem"
    relay = start(tls=old.server())
    mailer = connect(relay, tls="starttls", cafile=str(cafile), idle_timeout=0)
    assert send(mailer) == ["sent"]
    relay.tls = new.server()
    with pytest.raises(AssertionError, match="cannot be trusted"):
        send(mailer)
    rewrite(cafile, Path(new.cafile).read_bytes())
    assert send(mailer) == ["sent"]


def test_a_cafile_with_the_old_time_is_read_after_a_failure(start, connect, tmp_path):
    """As after a restore, or where the clock of the file server stands."""
    authority = Authority(tmp_path)
    cafile = tmp_path / "ca.pem"
    good = cafile.read_bytes()
    rewrite(cafile, trustme.CA().cert_pem.bytes().ljust(len(good)))
    mailer = connect(
        start(tls=authority.server()), tls="starttls", cafile=str(cafile)
    )
    for _ in range(2):
        with pytest.raises(AssertionError, match="cannot be trusted"):
            send(mailer)
    rewrite(cafile, good.ljust(cafile.stat().st_size), same_time=True)
    assert send(mailer) == ["sent"]


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "a folder"])
def test_a_cafile_that_cannot_be_read_for_a_while(
    start, connect, tmp_path, caplog, damage
):
    authority = Authority(tmp_path)
    cafile = tmp_path / "ca.pem"
    good = cafile.read_bytes()
    relay = start(tls=authority.server())
    mailer = connect(relay, tls="starttls", cafile=str(cafile), idle_timeout=0)
    assert send(mailer) == ["sent"]
    cafile.unlink()
    if damage == "a folder":
        cafile.mkdir()
    elif damage != "missing":
        cafile.write_bytes(b"" if damage == "empty" else good[: len(good) // 2])
    for _ in range(3):
        assert send(mailer) == ["sent"]
    mailer.relay.tls.read_again()  # as after a handshake that failed
    assert send(mailer) == ["sent"]
    [warning] = warnings_of(caplog)
    assert "the certificates that were read before are used" in warning
    assert repr(str(cafile)) in warning
    if damage == "a folder":
        cafile.rmdir()
    cafile.write_bytes(trustme.CA().cert_pem.bytes())
    with pytest.raises(AssertionError, match="cannot be trusted"):
        send(mailer)
    assert len(warnings_of(caplog)) == 1


def test_a_file_is_not_read_without_need(start, connect, tmp_path):
    authority = Authority(tmp_path)
    tls = TLS(TLSMode.STARTTLS, authority.cafile)
    context = tls.context(loopback=False, login=False)
    assert tls.context(loopback=True, login=True) is context
    tls.read_certificates()
    assert tls.context(loopback=False, login=False) is context
    tls.read_again()
    assert tls.context(loopback=False, login=False) is not context


def test_a_client_certificate_that_is_renewed(start, connect, tmp_path):
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder in (first, second):
        folder.mkdir()
    old, new = Authority(first), Authority(second)
    certfile, keyfile = old.write_pair(tmp_path)
    relay = start(tls=old.strict_server())
    mailer = connect(
        relay,
        tls="starttls",
        verify=False,
        certfile=certfile,
        keyfile=keyfile,
        idle_timeout=0,
    )
    assert send(mailer) == ["sent"]
    relay.tls = new.strict_server()
    with pytest.raises(AssertionError, match="does not accept the client certificate"):
        send(mailer)
    new.write_pair(tmp_path)
    assert send(mailer) == ["sent"]


# The client's certificate


VERSIONS = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
)


@STRICT
@VERSIONS
@pytest.mark.parametrize("together", [False, True])
def test_a_client_certificate(
    start, connect, authority, tmp_path, tls, version, together
):
    certfile, keyfile = authority.write_pair(tmp_path)
    if together:
        with open(certfile, "ab") as file:
            file.write(Path(keyfile).read_bytes())
        keyfile = None
    context = authority.strict_server()
    context.minimum_version = context.maximum_version = version
    relay = start(tls=context, implicit_tls=tls == "implicit")
    mailer = connect(
        relay, tls=tls, cafile=authority.cafile, certfile=certfile, keyfile=keyfile
    )
    assert send(mailer) == ["sent"]


@STRICT
@VERSIONS
def test_a_client_certificate_that_is_wanted(start, connect, authority, tls, version):
    context = authority.strict_server()
    context.minimum_version = context.maximum_version = version
    relay = start(tls=context, implicit_tls=tls == "implicit")
    report = connect(relay, tls=tls, cafile=authority.cafile).send(SENDER, B, MESSAGE)
    assert "wants a client certificate" in str(report.relay_failure)
    assert "set certfile" in str(report.relay_failure)
    assert relay.messages == []


class Unhurried(ssl.SSLContext):
    """Has its handshakes end only when `ended` is set."""

    def wrap_socket(self, *args, **options):
        connection = super().wrap_socket(*args, **options)
        assert self.ended.wait(60)
        return connection


def test_what_is_wrong_with_it_is_behind_a_write_that_fails(authority):
    """The relay has said so and has hung up before the client says EHLO."""
    client = Unhurried(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(authority.cafile)
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    client.ended = threading.Event()
    # What has come over a socket of Unix can be read after the other end is closed.
    ours, theirs = socket.socketpair()

    def serve():
        theirs.sendall(b"220 Hello\r\n")
        for reply in (b"250-Hello\r\n250 STARTTLS\r\n", b"220 Go on\r\n"):
            assert theirs.recv(1 << 16).endswith(b"\r\n")
            theirs.sendall(reply)
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            authority.strict_server().wrap_socket(theirs, server_side=True)
        client.ended.set()

    mailer = SMTPMailer("/relay", tls="starttls", ssl_context=client)
    connection = Connection(ours, mailer.relay)
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        with pytest.raises(RelayError) as caught:
            connection.greet()
        served.result(10)
    connection.close()
    assert "ALERT" not in str(caught.value.__cause__)  # it is the failure of the write
    assert "does not accept the client certificate" in str(caught.value)


def test_hanging_up_later_is_not_about_the_certificate(start, connect, authority):
    relay = start(tls=authority.server(), users={"me": "secret"})
    relay.drop("AUTH")
    mailer = connect(
        relay,
        tls="starttls",
        cafile=authority.cafile,
        username="me",
        password="secret",
    )
    report = mailer.send(SENDER, B, MESSAGE)
    assert "hung up" in str(report.relay_failure)
    assert "certfile" not in str(report.relay_failure)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("no certfile", "certfile='{cert}' cannot be read: No such file"),
        ("no keyfile", "keyfile='{key}' cannot be read: No such file"),
        ("folder", "keyfile='{key}' cannot be read: Is a directory"),
        ("swapped", "certfile='{cert}' does not hold a certificate in PEM format"),
        ("no key in it", "certfile='{cert}' does not hold a private key"),
        ("other key", "in keyfile='{key}' does not belong to the certificate in certf"),
        ("garbage", "the key in keyfile='{key}' cannot be used with certfile='{cert}'"),
        ("passphrase", "keyfile='{key}' is protected by a passphrase; write it with"),
    ],
)
def test_a_client_certificate_that_cannot_be_used(
    start, connect, authority, tmp_path, damage, told
):
    cert, key = authority.write_pair(tmp_path, "x" * 8 * (damage == "passphrase"))
    options = {"certfile": cert, "keyfile": key}
    if damage in ("no certfile", "no keyfile"):
        Path(options[damage.removeprefix("no ")]).unlink()
    elif damage == "folder":
        Path(key).unlink()
        Path(key).mkdir()
    elif damage == "swapped":
        options = {"certfile": key, "keyfile": cert}
        cert = key
    elif damage == "no key in it":
        options = {"certfile": cert}
    elif damage == "other key":
        (tmp_path / "other").mkdir()
        options["keyfile"] = key = authority.write_pair(tmp_path / "other")[1]
    elif damage == "garbage":
        marks = [f"-----{word} PRIVATE KEY-----" for word in ("BEGIN", "END")]
        Path(key).write_text("\nAAAA\n".join(marks))
    mailer = connect(start(tls=authority.server()), tls="starttls", **options)
    report = mailer.send(SENDER, B, MESSAGE)
    assert told.format(cert=cert, key=key) in str(report.relay_failure)
    with pytest.raises(RelayError, match="file="):
        mailer.read_certificates()


def test_no_passphrase_is_asked_for_on_the_terminal(authority, tmp_path):
    certfile, keyfile = authority.write_pair(tmp_path, "x" * 8)
    program = (
        "from postcommit import SMTPMailer\n"
        f"mailer = SMTPMailer(certfile={certfile!r}, keyfile={keyfile!r})\n"
        "mailer.read_certificates()\n"
    )
    pid, terminal = pty.fork()
    if not pid:
        signal.alarm(20)
        os.execv(sys.executable, [sys.executable, "-c", program])
    screen = b""
    with suppress(OSError):  # EIO at the end
        while more := os.read(terminal, 1 << 16):
            screen += more
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert b"is protected by a passphrase" in screen
    assert b"Enter" not in screen


# The name, and a context of one's own


def asked_for(context):
    """Return the list of names that clients of a server's `context` ask for."""
    names = []
    context.sni_callback = lambda connection, name, context: names.append(name)
    return names


@STRICT
def test_the_name_of_the_server(start, connect, authority, tls):
    context = authority.server("mx.example.org")
    names = asked_for(context)
    relay = start(tls=context, implicit_tls=tls == "implicit")
    options = {"tls": tls, "cafile": authority.cafile}
    assert send(connect(relay, server_name="mx.example.org", **options)) == ["sent"]
    report = connect(relay, server_name="mx.example.net", **options).send(
        SENDER, B, MESSAGE
    )
    assert "not valid for 'mx.example.net'" in str(report.relay_failure)
    assert "-servername mx.example.net -connect 127" in str(report.relay_failure)
    assert names == ["mx.example.org", "mx.example.net"]
    SMTPMailer(server_name="b\u00fccher.example.")


@pytest.mark.parametrize(
    "name", [".", ".example.org", "a..b", "x" * 64 + ".example.org"]
)
def test_a_name_that_cannot_be_asked_for(name):
    with pytest.raises(OptionError, match=r"server_name=.*cannot be the name"):
        SMTPMailer(server_name=name)


@pytest.mark.parametrize("tls", ["auto", "starttls", "implicit"])
def test_a_context_of_ones_own(start, connect, authority, tls):
    relay = start(tls=authority.server(), implicit_tls=tls == "implicit")
    context = ssl.create_default_context(cafile=authority.cafile)
    assert send(connect(relay, tls=tls, ssl_context=context)) == ["sent"]
    other = ssl.create_default_context()
    mailer = connect(relay, tls=tls, ssl_context=other)
    mailer.read_certificates()
    assert "cannot be trusted" in str(mailer.send(SENDER, B, MESSAGE).relay_failure)


def test_a_certificate_that_is_not_strict(start, connect, authority, tmp_path):
    relay = start(tls=authority.lax_server(tmp_path))
    lax = ssl.create_default_context(cafile=authority.cafile)
    lax.verify_flags &= ~ssl.VERIFY_X509_STRICT
    assert send(connect(relay, tls="starttls", ssl_context=lax)) == ["sent"]
    strict = ssl.create_default_context(cafile=authority.cafile)
    strict.verify_flags |= ssl.VERIFY_X509_STRICT  # the default of Python 3.13
    report = connect(relay, tls="starttls", ssl_context=strict).send(SENDER, B, MESSAGE)
    told = str(report.relay_failure)
    assert "Missing Authority Key Identifier" in told
    assert "not as RFC 5280 has it" in told
    assert "ssl_context without ssl.VERIFY_X509_STRICT" in told
    assert "set cafile" not in told


CONTEXT = ssl.create_default_context()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keyfile": "k"}, "keyfile='k': has no effect without certfile"),
        ({"tls": "none", "cafile": "c"}, "cafile='c': has no effect with tls='none'"),
        ({"tls": "none", "certfile": "c"}, "certfile='c': has no effect with tls='n"),
        (
            {"tls": "none", "certfile": "c", "keyfile": "k"},
            "certfile='c': has no effect with tls='none'",
        ),
        ({"tls": "none", "server_name": "x"}, "server_name='x': has no effect with"),
        ({"tls": "none", "ssl_context": CONTEXT}, "has no effect with tls='none'"),
        (
            {"ssl_context": CONTEXT, "cafile": "c"},
            "cafile='c': has no effect with an ssl_context; load it",
        ),
        ({"ssl_context": CONTEXT, "certfile": "c"}, "certfile='c': has no effect"),
        ({"ssl_context": CONTEXT, "keyfile": "c"}, "keyfile='c': has no effect"),
        ({"ssl_context": CONTEXT, "verify": False}, "verify=False: has no effect"),
        ({"ssl_context": "/etc/ca.pem"}, "must be an ssl.SSLContext"),
        (
            {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
            "must be a context for clients",
        ),
    ],
)
def test_options_that_contradict_each_other(options, told):
    with pytest.raises(OptionError) as caught:
        SMTPMailer(**options)
    assert told in str(caught.value)


# The table of modes (docs/smtp.rst)


LOGIN = {"username": "me", "password": "secret"}


@pytest.mark.parametrize("place", ["loopback", "outside"])
@pytest.mark.parametrize("certificate", [None, "good", "bad"])
@pytest.mark.parametrize("login", [False, True])
@pytest.mark.parametrize("tls", ["auto", "starttls", "implicit", "none"])
@pytest.mark.parametrize("verify", [None, "cafile", False])
def test_the_table_of_modes(
    start, connect, authority, outside, tmp_path, place, certificate, login, tls, verify
):
    """`certificate` is None if TLS is not offered."""
    if certificate is None and tls == "implicit":
        return
    host = "127.0.0.1" if place == "loopback" else outside
    server = {
        None: lambda: None,
        "good": lambda: authority.server(host),
        "bad": lambda: Authority(tmp_path).server(host),
    }[certificate]()
    relay = start(
        tls=server,
        implicit_tls=tls == "implicit",
        host=host,
        users={"me": "secret"},
        mechanisms=["PLAIN"],
    )
    options = dict(LOGIN) if login else {}
    if verify is False:
        options["verify"] = False
    elif tls != "none" and (verify == "cafile" or certificate == "good"):
        options["cafile"] = authority.cafile
    report = connect(relay, hostname=host, tls=tls, **options).send(SENDER, B, MESSAGE)

    is_encrypted = certificate is not None and tls != "none"
    if is_encrypted:
        must_be_good = verify is not False and (
            tls != "auto"
            or "cafile" in options
            or (login and place == "outside")
        )
        expected = certificate == "good" or not must_be_good
    else:
        expected = (
            tls != "starttls"
            and not (login and place == "outside")
            and "cafile" not in options
        )
    assert (report.relay_failure is None) == expected, report.relay_failure
    if expected:
        [message] = relay.messages
        assert (message.tls, message.user == "me") == (is_encrypted, login)
    else:
        assert not any(command.startswith("AUTH") for command in relay.commands)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "tls='auto' without a login"),
        ({"verify": False}, "verify=False"),
        ({"ssl_context": True}, "as the ssl_context has it"),
    ],
)
def test_what_is_not_verified_is_said_once(
    start, connect, authority, outside, caplog, options, reason
):
    if "ssl_context" in options:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        options = {"ssl_context": context}
    relay = start(tls=authority.server(), host=outside)
    with caplog.at_level("INFO", "postcommit.smtp"):
        for _ in range(2):
            mailer = connect(relay, hostname=outside, idle_timeout=0, **options)
            assert send(mailer) == send(mailer) == ["sent"]
            mailer.close()
    said = [text for text in caplog.messages if "verified" in text]
    told = f"{outside}:{relay.port}: the relay's certificate is not verified: {reason}"
    assert said == [told]


def test_each_reason_is_said_once(start, connect, authority, outside, caplog):
    server = authority.server()
    relay = start(tls=server, host=outside, users={"me": "secret"})
    strict = {"tls": "starttls", "verify": False}
    with caplog.at_level("INFO", "postcommit.smtp"):
        assert send(connect(relay, hostname=outside)) == ["sent"]
        assert send(connect(relay, hostname=outside, **LOGIN, **strict)) == ["sent"]
    said = [text.partition("verified: ")[2] for text in caplog.messages]
    assert list(filter(None, said)) == ["tls='auto' without a login", "verify=False"]


@pytest.mark.parametrize(
    ("tls", "reason"),
    [("none", "tls='none'"), ("auto", "tls='auto', and it offers no STARTTLS")],
)
def test_mail_in_clear_is_said_once(start, connect, outside, caplog, tls, reason):
    relay = start(host=outside)
    with caplog.at_level("INFO", "postcommit.smtp"):
        assert send(connect(start(), tls=tls)) == ["sent"]  # to loopback
        for _ in range(2):
            mailer = connect(relay, hostname=outside, tls=tls, idle_timeout=0)
            assert send(mailer) == send(mailer) == ["sent"]
    said = [text for text in caplog.messages if "in clear" in text]
    assert said == [f"{outside}:{relay.port}: mail goes out in clear: {reason}"]


@pytest.mark.parametrize("name", ["cafile", "server_name", "certfile", "ssl_context"])
@pytest.mark.parametrize("refuses_ehlo", [False, True])
def test_an_option_for_tls_makes_it_required(start, connect, name, refuses_ehlo):
    """An attacker on the way may hide the offer of STARTTLS."""
    relay = start()
    if refuses_ehlo:
        relay.reply("EHLO", "502 5.5.1 No")
    value = CONTEXT if name == "ssl_context" else "mx.example.org"
    mailer = connect(relay, tls="auto", **{name: value})
    report = mailer.send(SENDER, B, MESSAGE)
    told = str(report.relay_failure)
    assert "offers no STARTTLS; set tls to 'implicit'" in told
    assert told.endswith(f"to 'none' to do without, and omit {name}")
    assert relay.messages == []


def test_nothing_is_said_of_loopback_or_of_a_good_certificate(
    start, connect, authority, outside, caplog
):
    with caplog.at_level("INFO", "postcommit.smtp"):
        assert send(connect(start(tls=authority.server()))) == ["sent"]
        relay = start(tls=authority.server(outside), host=outside)
        mailer = connect(relay, hostname=outside, cafile=authority.cafile)
        assert send(mailer) == ["sent"]
    assert not [text for text in caplog.messages if "verified" in text]


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
    with suppress(BrokenPipeError):  # newer OpenSSL wants to answer half a record
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

    def discard(self, connection, *, is_lost=True):
        connection.close()


def test_a_final_dot_that_left_is_not_taken_for_one_that_did_not(authority):
    """The relay stops to read in the middle of the envelope behind it."""
    given_up = threading.Event()

    def serve(peer):
        received = b""
        while not received.endswith(b"DATA\r\n"):
            received += peer.recv(1 << 16)
        peer.sendall(b"250 Ok\r\n250 Ok\r\n354 Go on\r\n")
        assert given_up.wait(60)
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
