"""A relay of several addresses, some of which are sick."""
from __future__ import annotations

import itertools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from postcommit._smtp import pool as pools
from postcommit._smtp.connection import Address
from postcommit._smtp.connection import Connection
from postcommit._smtp.connection import addresses_of
from postcommit._smtp.mailer import SMTPMailer
from postcommit._smtp.probe import probe
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import message
from tests.smtp.messages import told
from tests.support.hosts import Hosts
from tests.support.ports import free_port
from tests.support.smtpd import ScriptedRelay


NAME = "mx.example.org"
THREE = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@pytest.fixture
def hosts(tmp_path):
    """A thread in which `NAME` has three addresses."""
    try:
        with Hosts(tmp_path) as hosts:
            hosts.name(NAME, *THREE)
            yield hosts
    except PermissionError:  # pragma: no cover
        pytest.skip("needs root, outside of a chroot, for an /etc/hosts")


class Site:
    """A healthy relay on the last address of `NAME`. The others are what `sick` does.

    `swallowed` has the connections to black holes.
    """

    def __init__(self, stack: ExitStack, start) -> None:
        self._stack = stack
        self._start = start
        self.relays: dict[str, ScriptedRelay] = {}
        self.port = free_port(*THREE)

    def well(self, host: str, **options) -> ScriptedRelay:
        relay = self._start(host=host, port=self.port, **options)
        self.relays[host] = relay
        return relay

    def black_hole(self, host: str) -> None:
        """Listen, with a queue that is full: the kernel drops what comes."""
        listener = self._stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, self.port))
        listener.listen(0)
        first = self._stack.enter_context(socket.socket())
        first.connect((host, self.port))


@pytest.fixture
def site(start):
    with ExitStack() as stack:
        yield Site(stack, start)


def refused(site, host):
    """Nothing listens."""


def black_hole(site, host):
    site.black_hole(host)


def silent(site, host):
    site.well(host).hold("CONNECT", times=None)


def greets_421(site, host):
    site.well(host).reply("CONNECT", "421 4.3.2 Busy")


def greets_554(site, host):
    site.well(host).reply("CONNECT", ["554-5.7.1 Blocked", "554 5.7.1 See a list"])


def closes(site, host):
    site.well(host).drop("CONNECT")


def resets(site, host):
    site.well(host).drop("CONNECT", reset=True)


def is_no_smtp(site, host):
    site.well(host, provoked=True).reply("CONNECT", b"HTTP/1.1 400 Bad Request\r\n")


def refuses_ehlo(site, host):
    site.well(host).reply("EHLO", "550 5.7.1 No")


def closes_at_ehlo(site, host):
    site.well(host).drop("EHLO")


def is_silent_at_ehlo(site, host):
    site.well(host).hold("EHLO", times=None)


def goes_after_ehlo(site, host):
    """421 right behind the reply to EHLO, before anything was begun."""
    site.well(host).drop("EHLO", after=["250 mx", "421 4.3.2 Shutting down"])


def says_too_much(site, host):
    site.well(host).reply("EHLO", ["250 mx", "250 mx"])


def says_half_a_reply(site, host):
    site.well(host).reply("EHLO", b"250 mx\r\n42")


SICK = [
    refused,
    black_hole,
    silent,
    greets_421,
    greets_554,
    closes,
    resets,
    is_no_smtp,
    refuses_ehlo,
    closes_at_ehlo,
    is_silent_at_ehlo,
    goes_after_ehlo,
    says_too_much,
    says_half_a_reply,
]


@pytest.mark.parametrize("sick", SICK, ids=lambda sick: sick.__name__)
def test_two_of_three_are_sick(site, hosts, connect, sick):
    well = site.well("127.0.0.3")
    sick(site, "127.0.0.1")
    sick(site, "127.0.0.2")
    mailer = connect(well, hostname=NAME, connect_timeout=1, timeout=2)
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == ["sent"]
    assert len(well.messages) == 1
    # The next connection goes there at once.
    mailer.close()
    before = {host: relay.connections for host, relay in site.relays.items()}
    assert told(hosts.run(mailer.send, SENDER, B, message(2))) == ["sent"]
    before["127.0.0.3"] += 1
    assert {h: relay.connections for h, relay in site.relays.items()} == before


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("how", ["another name", "expired", "not offered", "garbage"])
def test_tls_fails_at_two_of_three(site, hosts, connect, authority, tls, how):
    options = {"implicit_tls": tls == "implicit"}
    well = site.well("127.0.0.3", tls=authority.server(NAME), **options)
    for host in THREE[:2]:
        if how == "another name":
            site.well(host, tls=authority.server("www.example.org"), **options)
        elif how == "expired":
            site.well(host, tls=authority.server(NAME, expired=True), **options)
        elif how == "not offered":
            site.well(host, provoked=tls == "implicit")
        else:
            relay = site.well(host, tls=authority.server(NAME), provoked=True)
            relay.reply("STARTTLS", "454 4.7.0 TLS not available")
    mailer = connect(well, hostname=NAME, tls=tls, cafile=authority.cafile, timeout=1)
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == ["sent"]
    assert well.messages[0].tls


def test_a_refused_login_is_not_tried_elsewhere(site, hosts, connect):
    for host in THREE:
        site.well(host, users={"me": "secret"})
    mailer = connect(site, hostname=NAME, username="me", password="wrong")
    report = hosts.run(mailer.send, SENDER, B, MESSAGE)
    told = f"{NAME}:{site.port}: login refused: 535 5.7.8 Wrong credentials"
    assert str(report.relay_failure) == told
    assert [relay.connections for relay in site.relays.values()] == [1, 0, 0]
    with pytest.raises(RelayError, match=f"^{NAME}:{site.port}: login refused: 535"):
        hosts.run(mailer.check)


@pytest.mark.parametrize("reply", ["421 4.3.2 Bye", "454 4.7.0 Directory is down"])
def test_a_login_that_fails_for_now_is_tried_elsewhere(site, hosts, connect, reply):
    for host in THREE:
        relay = site.well(host, users={"me": "secret"})
        if host != "127.0.0.3":
            relay.reply("AUTH", reply)
    mailer = connect(site, hostname=NAME, username="me", password="secret")
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == ["sent"]
    assert relay.messages[0].user == "me"


def test_all_are_sick_in_their_own_ways(site, hosts, connect, caplog):
    caplog.set_level("INFO", "postcommit.smtp.pool")
    site.well("127.0.0.1").reply("CONNECT", "421 4.3.2 Busy")
    site.well("127.0.0.3").drop("EHLO")
    mailer = connect(site, hostname=NAME)
    with pytest.raises(RelayError) as caught:
        hosts.run(mailer.check)
    assert str(caught.value) == (
        f"no connection to {NAME}:{site.port}: "
        "127.0.0.1: greeting refused: 421 4.3.2 Busy; "
        "127.0.0.2: [Errno 111] Connection refused; "
        "127.0.0.3: hung up or fell silent: the relay closed the connection"
    )
    assert caught.value.reply.code == 421
    assert len(caplog.records) == 3
    assert caplog.records[0].getMessage() == (
        f"address 127.0.0.1: {NAME}:{site.port}: greeting refused: 421 4.3.2 Busy;"
        " it is tried last for 10 minutes"
    )
    # The report says the same.
    failure = hosts.run(mailer.send, SENDER, B, MESSAGE).relay_failure
    assert failure.reply == caught.value.reply
    for reason in ("greeting refused: 421", "Connection refused", "hung up"):
        assert reason in str(failure)
    # An address that recovers is found, and the log does not repeat itself.
    site.relays["127.0.0.3"].script.clear()
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == ["sent"]
    assert len([r for r in caplog.records if "is tried last" in r.message]) == 3


def test_a_certificate_that_no_address_can_show(site, hosts, connect, authority):
    """A mistake in the settings is as clear as with one address."""
    for host in THREE:
        site.well(host, tls=authority.server("www.example.org"))
    mailer = connect(site, hostname=NAME, tls="starttls", cafile=authority.cafile)
    report = hosts.run(mailer.send, SENDER, B, MESSAGE)
    text = str(report.relay_failure)
    lead = f"no connection to {NAME}:{site.port}: 127.0.0.1, 127.0.0.2, 127.0.0.3: the"
    assert text.startswith(lead)
    assert text.count("www.example.org") <= 1
    assert text.count("cannot be trusted") == 1


def test_the_time_to_connect_is_for_each_address(site, hosts, connect):
    """Two black holes leave the third address all of its time."""
    well = site.well("127.0.0.3")
    site.black_hole("127.0.0.1")
    site.black_hole("127.0.0.2")
    mailer = connect(well, hostname=NAME, connect_timeout=1)
    begin = time.monotonic()
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == ["sent"]
    assert time.monotonic() - begin >= 2


def test_an_address_that_fails_later_is_left_for_the_others(site, hosts, connect):
    """At the first message: 421 is about the address, and the next attempt goes on."""
    site.well("127.0.0.2")
    site.well("127.0.0.1").reply("MAIL", "421 4.3.2 Busy")
    mailer = connect(site, hostname=NAME)
    hosts.name(NAME, *THREE[:2])
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == "relay"
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == ["sent"]
    assert len(site.relays["127.0.0.2"].messages) == 1


def test_an_address_that_refuses_one_connection_too_many_works(site, hosts, connect):
    first, second = site.well("127.0.0.1"), site.well("127.0.0.2")
    hosts.name(NAME, *THREE[:2])
    pool = connect(site, hostname=NAME)._pool
    held = hosts.run(pool.checkout)
    first.reply("CONNECT", "421 4.7.0 Too many connections", times=1)
    pool.discard(hosts.run(pool.checkout), is_lost=False)
    assert (first.connections, second.connections) == (2, 1)
    pool.discard(held, is_lost=False)
    pool.discard(hosts.run(pool.checkout), is_lost=False)
    assert (first.connections, second.connections) == (3, 1)
    # Without another connection to it, it has failed.
    first.reply("CONNECT", "421 4.7.0 Too many connections", times=1)
    for _ in range(2):
        pool.discard(hosts.run(pool.checkout), is_lost=False)
    assert (first.connections, second.connections) == (4, 3)


def test_an_idle_connection_that_dies_is_not_the_fault_of_its_address(
    site, hosts, connect
):
    for host in THREE[:2]:
        site.well(host)
    mailer = connect(site, hostname=NAME)
    hosts.name(NAME, *THREE[:2])
    for number in range(3):
        hosts.run(mailer.check)
        site.relays["127.0.0.1"].hang_up()
        assert told(hosts.run(mailer.send, SENDER, B, message(number))) == ["sent"]
        site.relays["127.0.0.1"].drop("NOOP", times=1)
    assert site.relays["127.0.0.2"].connections == 0


def test_the_memory_fades(site, hosts, connect, monkeypatch):
    """Then the order is that of the name service again."""
    site.well("127.0.0.2")
    mailer = connect(site, hostname=NAME)
    hosts.name(NAME, *THREE[:2])
    hosts.run(mailer.check)
    site.well("127.0.0.1")
    mailer.close()
    hosts.run(mailer.check)
    assert site.relays["127.0.0.1"].connections == 0
    mailer.close()
    monkeypatch.setattr(pools, "_REMEMBERED", 0.0)
    hosts.run(mailer.check)
    assert site.relays["127.0.0.1"].connections == 1


def test_the_name_is_looked_up_for_each_connection(site, hosts, connect):
    hosts.name(NAME, "127.0.0.1")
    for host in THREE[:2]:
        site.well(host)
    mailer = connect(site, hostname=NAME)
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == ["sent"]
    hosts.name(NAME, "127.0.0.2")
    mailer.close()
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == ["sent"]
    assert [relay.connections for relay in site.relays.values()] == [1, 1]
    hosts.name("other.example.org", "127.0.0.2")
    mailer.close()
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == "relay"


def test_threads_share_what_is_known(site, hosts, connect):
    site.well("127.0.0.3")
    site.black_hole("127.0.0.1")
    mailer = connect(site, hostname=NAME, connect_timeout=3)
    hosts.name(NAME, "127.0.0.1", "127.0.0.3")
    hosts.run(mailer.check)

    def send_all():
        threads = [
            threading.Thread(target=mailer.send, args=(SENDER, B, message(number)))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    begin = time.monotonic()
    hosts.run(send_all)  # threads inherit the namespace
    # None of them has waited for the address that does not answer.
    assert time.monotonic() - begin < 3
    assert len(site.relays["127.0.0.3"].messages) == 4


def test_ipv6_and_ipv4_take_turns(hosts):
    """RFC 8305, 4: one family that is broken delays the other by one address."""
    hosts.name(NAME, *THREE, "::1", "fe80::1", "fe80::2")
    relay = SMTPMailer(NAME, 2525).relay
    families = [address.family for address in hosts.run(addresses_of, relay)]
    assert sorted(families) == [socket.AF_INET] * 3 + [socket.AF_INET6] * 3
    assert all(one != two for one, two in itertools.pairwise(families))


def test_an_address_as_text():
    assert str(Address(socket.AF_INET, ("192.0.2.1", 25))) == "192.0.2.1"
    assert str(Address(socket.AF_INET6, ("::1", 25, 0, 0))) == "[::1]"
    assert str(Address(socket.AF_UNIX, "/run/lmtp")) == "/run/lmtp"


def test_a_probe_shows_each_address(site, hosts, connect):
    site.well("127.0.0.1").reply("CONNECT", "421 4.3.2 Busy")
    site.well("127.0.0.3")
    found = hosts.run(probe, connect(site, hostname=NAME))
    assert found.failure is None
    assert found.is_connected
    addresses, failures = zip(*found.tried, strict=True)
    assert addresses == THREE
    assert "421 4.3.2 Busy" in str(failures[0])
    assert "Connection refused" in str(failures[1])
    assert failures[2] is None
    assert "PIPELINING" in found.extensions


def test_a_probe_of_a_relay_that_is_sick_everywhere(site, hosts, connect):
    site.well("127.0.0.1").reply("CONNECT", "421 4.3.2 Busy")
    found = hosts.run(probe, connect(site, hostname=NAME))
    assert len(found.tried) == 3
    assert "127.0.0.2, 127.0.0.3: [Errno 111]" in str(found.failure)


def test_a_probe_of_a_name_without_an_address(hosts):
    hosts.name("other.example.org", "127.0.0.1")
    found = hosts.run(probe, SMTPMailer(NAME))
    assert not found.is_connected
    assert found.tried == []
    assert f"no connection to {NAME}:25: " in str(found.failure)


def test_a_session_ticket_is_not_a_reply(authority):
    """TLS 1.3: it comes when the server likes, and the socket looks as if text came."""
    ours, theirs = socket.socketpair()
    relay = SMTPMailer("localhost", tls="starttls", cafile=authority.cafile).relay
    connection = Connection(ours, relay)
    context = relay.tls.context(loopback=True, login=False)
    with ThreadPoolExecutor(1) as thread:
        server = authority.server()
        wrapped = thread.submit(server.wrap_socket, theirs, server_side=True)
        connection.encrypt(context, "localhost", 5)
        with wrapped.result(5) as server_side:
            assert connection.tls_socket.version() == "TLSv1.3"
            assert not connection.is_quiet
            connection._expect_silence()
            server_side.sendall(b"421 4.3.2 Bye\r\n")
            with pytest.raises(RelayError, match="connection refused: 421"):
                connection._expect_silence()
    connection.close()


# The address of this host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_source_address(start, connect, host):
    relay = start(host=host)
    peers = []

    def note(dialogue, usual):
        peers.append(dialogue.socket.getpeername()[0])
        return dialogue.say(b"220 mx\r\n")

    relay.on("CONNECT", note)
    source = "127.0.0.9" if host == "127.0.0.1" else "::1"
    mailer = connect(relay, hostname=host, source_address=source)
    assert told(mailer.send(SENDER, B, MESSAGE)) == ["sent"]
    assert peers == [source]


def test_only_addresses_of_the_family_of_the_source(site, hosts, connect):
    hosts.name(NAME, "fd00::1", "127.0.0.2")
    site.well("127.0.0.2")
    mailer = connect(site, hostname=NAME, source_address="127.0.0.1")
    [address] = hosts.run(addresses_of, mailer.relay)
    assert str(address) == "127.0.0.2"
    assert told(hosts.run(mailer.send, SENDER, B, MESSAGE)) == ["sent"]


@pytest.mark.parametrize(("source", "family"), [("192.0.2.1", "4"), ("::1", "6")])
def test_no_address_of_the_family_of_the_source(hosts, source, family):
    hosts.name(NAME, "fd00::1" if family == "4" else "127.0.0.1")
    mailer = SMTPMailer(NAME, source_address=source)
    with pytest.raises(RelayError, match=rf"only IPv{family}, because of source_addr"):
        hosts.run(mailer.check)


def test_a_source_address_of_another_host(relay, connect):
    mailer = connect(relay, source_address="192.0.2.1")
    text = "source_address='192.0.2.1' cannot be used on this host: Cannot assign"
    with pytest.raises(RelayError, match=text):
        mailer.check()


@pytest.mark.parametrize("source", ["shop.example.org", "192.0.2", "192.0.2.1:25"])
def test_a_source_address_that_is_none(source):
    with pytest.raises(OptionError, match="must be an IP address"):
        SMTPMailer(source_address=source)


# Unix sockets


@pytest.fixture
def unix(tmp_path, start):
    return start(host=str(tmp_path / "lmtp"), users={"me": "secret"})


def test_a_unix_socket(unix, connect, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "web")
    mailer = connect(unix, hostname=unix.host, username="me", password="secret")
    assert told(mailer.send(SENDER, B, MESSAGE)) == ["sent"]
    assert unix.messages[0].user == "me"
    assert unix.commands[0] == "EHLO localhost"
    assert str(mailer.relay) == unix.host
    assert repr(mailer) == f"<Mailer {unix.host}>"


def test_no_tls_over_a_unix_socket_unless_asked_for(
    tmp_path, start, connect, authority
):
    relay = start(host=str(tmp_path / "smtp"), tls=authority.server())
    mailer = connect(relay, hostname=relay.host)
    assert told(mailer.send(SENDER, B, MESSAGE)) == ["sent"]
    assert not relay.messages[0].tls


def test_tls_over_a_unix_socket(tmp_path, start, connect, authority):
    relay = start(host=str(tmp_path / "smtp"), tls=authority.server("localhost"))
    options = {"tls": "starttls", "cafile": authority.cafile}
    mailer = connect(relay, hostname=relay.host, **options)
    assert told(mailer.send(SENDER, B, MESSAGE)) == ["sent"]
    assert relay.messages[0].tls


def test_there_is_no_such_socket(tmp_path, connect):
    mailer = SMTPMailer(str(tmp_path / "missing"))
    with pytest.raises(RelayError, match=r"no connection to .*/missing: .*No such"):
        mailer.check()


def test_a_file_is_no_socket(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(RelayError, match=r"file: it is not a socket"):
        SMTPMailer(str(path)).check()


def test_a_socket_on_which_nobody_listens(unix, connect):
    mailer = connect(unix, hostname=unix.host)
    unix.refuse()
    with pytest.raises(RelayError, match="Connection refused"):
        mailer.check()


def test_a_path_that_is_too_long(tmp_path):
    with pytest.raises(RelayError, match="too long"):
        SMTPMailer("/" + "x" * 200).check()


@pytest.mark.parametrize("path", ["/", "/a\0b"])
def test_paths_that_can_never_be_those_of_a_socket(path):
    with pytest.raises(OptionError, match="hostname"):
        SMTPMailer(path)


def test_a_unix_socket_has_no_source_address():
    with pytest.raises(OptionError, match="must be omitted, because hostname is a"):
        SMTPMailer("/run/lmtp", source_address="127.0.0.1")


def test_a_relative_path_is_no_name():
    with pytest.raises(OptionError, match="the path of a unix socket"):
        SMTPMailer("run/lmtp")
