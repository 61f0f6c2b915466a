"""What a probe finds out about a relay, and what a certificate shows."""
from __future__ import annotations

import datetime
import shutil
import ssl
import subprocess

import pytest

from postcommit._smtp.probe import probe


def server(authority, *names, **options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert(*names, **options).configure_cert(context)
    return context


def test_a_relay_in_clear(relay, connect):
    found = probe(connect(relay))
    assert found.is_connected
    assert (found.tls, found.certificate, found.failure) == (None, None, None)
    assert "PIPELINING" in found.extensions
    assert not found.logged_in
    assert relay.commands[-1] == "QUIT"
    assert not relay.messages


def test_no_relay(relay, connect):
    relay.down()
    found = probe(connect(relay))
    assert not found.is_connected
    assert "no connection" in str(found.failure)


@pytest.mark.parametrize("password", ["secret", "wrong"])
def test_a_login(start, connect, password):
    relay = start(users={"me": "secret"})
    found = probe(connect(relay, username="me", password=password))
    assert found.logged_in is (password == "secret")
    assert (found.failure is None) is (password == "secret")
    assert "AUTH" in found.extensions


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_what_a_certificate_shows(start, connect, authority, tls):
    until = datetime.datetime(2060, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    names = ["127.0.0.1", "mx.example.org", "me@example.org"]
    options = {"common_name": "mx", "organization_name": "Shop \xe9"}
    context = server(authority, *names, not_after=until, **options)
    relay = start(tls=context, implicit_tls=tls == "implicit")
    found = probe(connect(relay, tls=tls, cafile=authority.cafile))
    assert found.failure is None
    assert found.tls.startswith("TLSv1.")
    shown = found.certificate
    assert shown.expires == until
    assert set(shown.names) == {"127.0.0.1", "mx.example.org"}
    assert "O=Shop \xe9" in shown.subject
    assert "CN=mx" in shown.subject
    assert "O=trustme" in shown.issuer


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
def test_a_certificate_for_another_host(start, connect, authority, tls):
    """The failure names the command that shows it."""
    context = server(authority, "mx.example.org")
    relay = start(tls=context, implicit_tls=tls == "implicit")
    found = probe(connect(relay, tls=tls, cafile=authority.cafile))
    assert found.certificate is None
    assert "not valid for '127.0.0.1'" in str(found.failure)
    look = str(found.failure).partition("to see it: ")[2]
    assert ("-starttls smtp" in look) is (tls == "starttls")
    done = subprocess.run(look, shell=True, capture_output=True, text=True, timeout=30)
    assert "DNS:mx.example.org" in done.stdout


def test_a_certificate_that_is_not_verified(start, connect, authority):
    """On loopback, with tls='auto', any is good enough. It is not shown."""
    found = probe(connect(start(tls=authority.server())))
    assert found.tls is not None
    assert found.certificate is None
    assert found.failure is None
