"""Logins at a real Postfix whose passwords Dovecot checks, and client certificates."""
from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.functional.dovecot import PROGRAM
from tests.functional.dovecot import configured
from tests.functional.postfix import Postfix
from tests.functional.servers import Program
from tests.functional.servers import public_folder
from tests.support.certificates import Authority
from tests.support.service import eventually

from postcommit import SMTPMailer


_CONFIGURATION = """\
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
protocols =
ssl = no
auth_failure_delay = 0
auth_mechanisms = plain login cram-md5 scram-sha-256
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
# Without this, an address waits up to 15 seconds after a wrong password.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  inet_listener passwords {{
    address = 127.0.0.1
    port = {port}
  }}
}}
"""


class Passwords(Program):
    """A Dovecot that checks the password of ``me``, at `port`."""

    def __init__(self, folder: Path, stored: str) -> None:
        super().__init__(folder)
        self._stored = stored

    def command(self) -> list[Any]:
        """Configure it, and return the command that starts it in the foreground."""
        (self.folder / "users").write_text(f"me:{self._stored}\n")
        configuration = self.folder / "dovecot.conf"
        text = _CONFIGURATION.format(folder=self.folder, port=self.port)
        configuration.write_text(configured(text))
        return [PROGRAM, "-F", "-c", configuration]


@contextmanager
def passwords(stored: str) -> Iterator[int]:
    """Start a Dovecot that checks the password of ``me``, and yield its port."""
    if PROGRAM is None or os.geteuid():
        pytest.skip("Debian's package dovecot-core is needed, and to be root")
    with public_folder("dovecot") as folder, Passwords(folder, stored) as dovecot:
        yield dovecot.port


def scheme(name: str) -> str:
    """Return the password as Dovecot stores it by the scheme `name`."""
    done = subprocess.run(
        ["doveadm", "-O", "pw", "-s", name, "-p", "s3cr3t, ="],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.strip()


ME: dict[str, Any] = {"username": "me", "password": "s3cr3t, ="}


def mechanisms_of(postfix: Postfix) -> list[str]:
    """Return the mechanisms with which a client has logged in."""
    words = postfix.log.replace(",", " ").split()
    return [w.partition("=")[2] for w in words if w.startswith("sasl_method=")]


def asking(start_postfix: Callable[..., Postfix], port: int, **more: str) -> Postfix:
    """Start a Postfix that takes mail only from who has logged in."""
    return start_postfix(
        {
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_type": "dovecot",
            "smtpd_sasl_path": f"inet:127.0.0.1:{port}",
            "smtpd_client_restrictions": "permit_sasl_authenticated, reject",
            **more,
        }
    )


def test_each_mechanism(start_postfix: Callable[..., Postfix]) -> None:
    with passwords("{PLAIN}s3cr3t, =") as port:
        postfix = asking(start_postfix, port)
        for auth in (None, "scram-sha-256", "cram-md5", "plain", "login"):
            mailer = SMTPMailer("127.0.0.1", postfix.port, auth=auth, **ME)
            report = mailer.send("a@example.org", "ann@example.org", "Subject: x\n\n")
            assert report.sent, (auth, report)
            mailer.close()
            wrong = {**ME, "password": "wrong"}
            mailer = SMTPMailer("127.0.0.1", postfix.port, auth=auth, **wrong)
            report = mailer.send("a@example.org", "ann@example.org", "Subject: x\n\n")
            assert str(report.relay_failure.reply).startswith("535 5.7.8")
        expected = ["SCRAM-SHA-256", "SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN"]
        eventually(lambda: mechanisms_of(postfix) == expected)
        assert len(postfix.wait_for("ann", 5)) == 5


@pytest.mark.parametrize(
    ("stored", "used"),
    [("SCRAM-SHA-256", "SCRAM-SHA-256"), ("SHA512-CRYPT", "PLAIN")],
)
def test_passwords_that_are_stored_in_another_form(
    start_postfix: Callable[..., Postfix], stored: str, used: str
) -> None:
    """Dovecot offers all mechanisms, and can do those for which it has the form."""
    with passwords(scheme(stored)) as port:
        postfix = asking(start_postfix, port)
        mailer = SMTPMailer("127.0.0.1", postfix.port, **ME)
        report = mailer.send("a@example.org", "ann@example.org", "Subject: x\n\n")
        assert report.sent, report
        eventually(lambda: mechanisms_of(postfix) == [used])


def test_a_client_certificate(
    start_postfix: Callable[..., Postfix], tmp_path: Path
) -> None:
    with public_folder("tls") as folder:
        authority = Authority(folder)
        authority.write_chain(folder / "server.pem", "127.0.0.1")
        postfix = start_postfix(
            {
                "smtpd_tls_security_level": "encrypt",
                "smtpd_tls_chain_files": f"{folder}/server.pem",
                "smtpd_tls_CAfile": authority.cafile,
                "smtpd_tls_req_ccert": "yes",
                "smtpd_tls_loglevel": "1",
            }
        )
        options: dict[str, Any] = {"tls": "starttls", "cafile": authority.cafile}
        mailer = SMTPMailer("127.0.0.1", postfix.port, **options)
        report = mailer.send("a@example.org", "ann@example.org", "Subject: x\n\n")
        assert "No client certificate presented" in str(report.relay_failure)
        certfile, keyfile = authority.write_pair(tmp_path)
        mailer = SMTPMailer(
            "127.0.0.1", postfix.port, certfile=certfile, keyfile=keyfile, **options
        )
        report = mailer.send("a@example.org", "ann@example.org", "Subject: x\n\n")
        assert report.sent, report
        assert "Trusted TLS connection established from" in postfix.log
