"""``postcommit test-relay``: what a relay offers and shows, and whether it works."""
from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from postcommit._cli.main import main
from tests.support.certificates import Authority
from tests.support.hosts import Hosts
from tests.support.ports import free_port
from tests.support.service import command
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay


Start = Callable[..., ScriptedRelay]


def told(capsys: Any, relay: ScriptedRelay, *argv: str) -> tuple[int, str]:
    status = main(["test-relay", *to(relay), *argv])
    out, err = capsys.readouterr()
    assert err == ""
    return status, out


def test_what_it_offers(relay: ScriptedRelay) -> None:
    done = command("test-relay", *to(relay))
    assert done.returncode == 0
    assert done.stderr == ""
    assert "connection  yes\nencryption  none\n" in done.stdout
    assert "offers      SIZE 10485760\n" in done.stdout
    assert "login       none" in done.stdout
    assert done.stdout.endswith("the relay is well\n")
    assert not relay.messages


def test_tls_certificate_and_login(
    start: Start, authority: Authority, tmp_path: Path, capsys: Any
) -> None:
    relay = start(tls=authority.server(), users={"shop": "s3cret"})
    (tmp_path / "password").write_text("s3cret\n")
    argv = ["--tls", "starttls", "--cafile", authority.cafile, "--username", "shop"]
    argv += ["--password-file", str(tmp_path / "password")]
    status, out = told(capsys, relay, *argv)
    assert status == 0
    assert "encryption  TLSv1." in out
    assert "names       127.0.0.1, localhost\n" in out
    assert "issued by   O=trustme" in out
    assert "expires     3000-01-01" in out
    assert "login       as shop\n" in out
    assert "offers      AUTH" in out
    assert "s3cret" not in out


def test_a_login_refused(start: Start, tmp_path: Path, capsys: Any) -> None:
    relay = start(users={"shop": "s3cret"})
    (tmp_path / "password").write_text("old")
    argv = ["--username", "shop", "--password-file", str(tmp_path / "password")]
    status, out = told(capsys, relay, *argv, "a@x.org")
    assert status == 1
    assert "failed: " in out
    assert "login refused: 535" in out
    assert "; set username and password_file\n" in out
    assert "login       " not in out
    assert not relay.messages


def test_an_expired_certificate(
    start: Start, authority: Authority, capsys: Any
) -> None:
    relay = start(tls=authority.server(expired=True))
    argv = ["--tls", "starttls", "--cafile", authority.cafile]
    status, out = told(capsys, relay, *argv)
    assert status == 1
    assert "certificate has expired" in out
    look = f"openssl s_client -starttls smtp -connect 127.0.0.1:{relay.port}"
    assert f"to see it: {look} </dev/null | openssl x509 -noout -text\n" in out
    assert "issued by" not in out


def test_a_certificate_that_is_not_verified(
    start: Start, authority: Authority, capsys: Any
) -> None:
    relay = start(tls=authority.server(expired=True))
    status, out = told(capsys, relay)
    assert status == 0
    assert "encryption  TLSv1." in out
    assert "certificate not verified\n" in out


def test_a_certificate_that_expires_soon(
    start: Start, authority: Authority, capsys: Any
) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert("127.0.0.1", not_after=soon).configure_cert(context)
    relay = start(tls=context, implicit_tls=True)
    argv = ["--tls", "implicit", "--cafile", authority.cafile]
    status, out = told(capsys, relay, *argv)
    assert status == 0
    assert "in 2d23h\n" in out or "in 3d\n" in out
    assert "renew it" in out


def test_nobody_is_there(relay: ScriptedRelay, capsys: Any) -> None:
    relay.down()
    status, out = told(capsys, relay)
    assert status == 1
    assert "connection  no\n" in out
    assert "encryption" not in out
    assert "Connection refused; set hostname and port: 25, or 587" in out


def test_each_address_that_was_tried(
    start: Start, tmp_path: Path, capsys: Any
) -> None:
    try:
        with Hosts(tmp_path) as hosts:
            port = free_port("127.0.0.1", "127.0.0.2", "127.0.0.3")
            relay = start(host="127.0.0.3", port=port)
            busy = start(host="127.0.0.1", port=relay.port)
            busy.reply("CONNECT", "421 4.3.2 Busy")
            hosts.name("mx.example", "127.0.0.1", "127.0.0.2", "127.0.0.3")
            argv = ["test-relay", "--hostname", "mx.example", "--port"]
            status = hosts.run(main, [*argv, str(relay.port)])
    except PermissionError:  # pragma: no cover
        pytest.skip("needs root, outside of a chroot, for an /etc/hosts")
    out = capsys.readouterr().out
    assert status == 0
    lines = [line for line in out.splitlines() if line.startswith("address")]
    at = f"mx.example:{relay.port}"
    assert lines == [
        f"address     127.0.0.1: {at}: greeting refused: 421 4.3.2 Busy",
        f"address     127.0.0.2: no connection to {at}: [Errno 111] Connection refused",
        "address     127.0.0.3: yes",
    ]
    assert "connection  yes\n" in out


def test_a_unix_socket(start: Start, tmp_path: Path, capsys: Any) -> None:
    relay = start(host=str(tmp_path / "lmtp"))
    argv = ["test-relay", "--hostname", relay.host, "--protocol", "lmtp"]
    assert main(argv) == 0
    assert f"relay       {relay.host}, tls=auto\n" in capsys.readouterr().out
    relay.down()
    assert main(argv) == 1
    assert capsys.readouterr().out.endswith("Connection refused\n")


def test_a_port_that_speaks_another_protocol(
    start: Start, authority: Authority, capsys: Any
) -> None:
    relay = start(tls=authority.server(), implicit_tls=True)
    status, out = told(capsys, relay, "--timeout", "0.3")
    assert status == 1
    assert "set tls to 'implicit' if it is port 465\n" in out
    plain = start(provoked=True)
    status, out = told(capsys, plain, "--tls", "implicit", "--timeout", "5")
    assert status == 1
    assert "is it the port for tls='implicit'?\n" in out


def test_a_relay_that_refuses_us(relay: ScriptedRelay, capsys: Any) -> None:
    relay.reply("CONNECT", "554 5.7.1 Go away")
    status, out = told(capsys, relay)
    assert status == 1
    assert out.endswith("greeting refused: 554 5.7.1 Go away\n")


def test_no_starttls_says_what_to_set(relay: ScriptedRelay, capsys: Any) -> None:
    status, out = told(capsys, relay, "--tls", "starttls", "--timeout", "5")
    assert status == 1
    assert "offers no STARTTLS; set tls to 'implicit'" in out


def test_a_mail_and_what_became_of_each_recipient(
    relay: ScriptedRelay, capsys: Any
) -> None:
    relay.reply("RCPT", "550 5.1.1 No\x1b such user", address="b@x.org")
    status, out = told(capsys, relay, "a@x.org", "b@x.org")
    assert status == 1
    assert "<a@x.org> sent: 250" in out
    assert "<b@x.org> rejected: 550 5.1.1 No" in out
    assert "\x1b" not in out
    assert "the relay is well" not in out
    [message] = relay.messages
    assert message.sender == "a@x.org"
    assert b"Subject: Test of the relay" in message.data
    status, out = told(capsys, relay, "--from", "", "Ann <a@x.org>")
    assert status == 0
    assert relay.messages[-1].sender == ""
    assert b"From: <a@x.org>\r\nTo: <a@x.org>\r\n" in relay.messages[-1].data
    assert out.endswith("the relay is well\n")


def test_a_relay_that_fails_in_between(relay: ScriptedRelay, capsys: Any) -> None:
    relay.reply("MAIL", "421 4.3.2 Closing")
    status, out = told(capsys, relay, "a@x.org")
    assert status == 1
    assert "not sent: 421 4.3.2 Closing" in out


def test_an_address_that_is_none_is_refused_before_anything_is_said(
    relay: ScriptedRelay, capsys: Any
) -> None:
    assert main(["test-relay", *to(relay), "a b@x.org"]) == 2
    assert "'a b@x.org' is not an envelope address" in capsys.readouterr().err
    assert main(["test-relay", *to(relay), "--from", "a@x.org"]) == 2
    assert "--from='a@x.org': is of no use" in capsys.readouterr().err
    assert relay.connections == 0


def test_each_relay_is_tested(start: Start, capsys: Any) -> None:
    relays = start(), start()
    argv = ["--failover", f"127.0.0.1:{relays[1].port}", "a@x.org"]
    status, out = told(capsys, relays[0], *argv)
    assert status == 0
    assert out.count("the relay is well\n") == 2
    assert out.startswith("[postcommit]\nrelay       127.0.0.1:")
    assert f"\n\n[127.0.0.1:{relays[1].port}]\nrelay" in out
    assert out.endswith("\n\n2 of 2 relays are well\n")
    assert [len(relay.messages) for relay in relays] == [1, 1]
    relays[0].refuse()
    status, out = told(capsys, relays[0], *argv)
    assert status == 1
    assert "failed: " in out
    assert out.endswith("the relay is well\n\n1 of 2 relays is well\n")


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("shown", [False, True])
def test_a_client_certificate_that_the_relay_misses(
    shown: bool,
    version: str,
    start: Start,
    authority: Authority,
    tmp_path: Path,
    capsys: Any,
) -> None:
    """The next relay is tested all the same."""
    context = authority.server()
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.cafile)
    relay, other = start(tls=context, implicit_tls=True), start()
    ini = tmp_path / "shop.ini"
    second = f"hostname = 127.0.0.1\nport = {other.port}\n"
    ini.write_text(f"[postcommit]\n[postcommit:second]\n{second}")
    argv = ["--tls", "implicit", "--cafile", authority.cafile, "--config", str(ini)]
    if shown:
        stranger = tmp_path / "stranger.pem"
        trustme.CA().issue_cert("shop").private_key_and_cert_chain_pem.write_to_path(
            stranger
        )
        argv += ["--certfile", str(stranger)]
    status, out = told(capsys, relay, *argv)
    assert status == 1
    if shown:
        assert "; the relay does not accept the client certificate (certfile)\n" in out
    else:
        assert "set certfile\n" in out
    if version == "TLSv1_3":
        assert "encryption  TLS, which the relay ended with an alert\n" in out
    assert out.endswith("the relay is well\n\n1 of 2 relays is well\n")


@pytest.mark.parametrize("option", ["--cafile", "--certfile"])
def test_a_file_that_is_not_needed_yet_is_read(
    option: str, start: Start, tmp_path: Path, capsys: Any
) -> None:
    relay = start(host=str(tmp_path / "smtp"))  # "auto" does without TLS there
    assert main(["test-relay", "--hostname", relay.host, option, "nope.pem"]) == 1
    out = capsys.readouterr().out
    assert "encryption  none\n" in out
    assert f"failed: {option[2:]}='nope.pem' " in out


def test_a_client_certificate_that_is_not_used(
    start: Start, relay: ScriptedRelay, tmp_path: Path, capsys: Any
) -> None:
    pair = tmp_path / "shop.pem"
    trustme.CA().issue_cert("shop").private_key_and_cert_chain_pem.write_to_path(pair)
    local = start(host=str(tmp_path / "smtp"))  # "auto" does without TLS there
    argv = ["test-relay", "--hostname", local.host, "--certfile", str(pair)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "certfile    not used, the relay offers no STARTTLS" in out
    status, out = told(capsys, relay, "--certfile", str(pair))
    assert status == 1
    assert "offers no STARTTLS; set tls to 'implicit'" in out


@pytest.mark.parametrize("source", ["192.0.2.77", "2001:db8::77"])
def test_an_address_of_this_host_that_does_not_fit(
    source: str, relay: ScriptedRelay, capsys: Any
) -> None:
    status, out = told(capsys, relay, "--source-address", source)
    assert status == 1
    assert "source_address" in out
    assert "set hostname and port" not in out


def test_the_wrong_protocol_over_a_unix_socket(
    start: Start, tmp_path: Path, capsys: Any
) -> None:
    relay = start(host=str(tmp_path / "lmtp"))
    argv = ["test-relay", "--hostname", relay.host]
    assert main([*argv, "--tls", "starttls"]) == 1
    assert capsys.readouterr().out.endswith("no STARTTLS; set tls to 'none'\n")
    relay.reply("EHLO", "500 5.5.1 Unknown command")  # LHLO, too
    relay.reply("HELO", "500 5.5.1 Unknown command")
    for protocol, other in (("smtp", "lmtp"), ("lmtp", "smtp")):
        assert main([*argv, "--protocol", protocol]) == 1
        said = f"; set protocol to {other!r} if it speaks {other.upper()}\n"
        assert capsys.readouterr().out.endswith(said)


def test_an_ipv6_address_has_brackets(capsys: Any) -> None:
    assert main(["test-relay", "--hostname", "::1", "--port", "1"]) == 1
    out = capsys.readouterr().out
    assert "relay       [::1]:1, tls=auto\n" in out
    assert "no connection to [::1]:1: " in out
