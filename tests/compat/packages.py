"""The tests of the real packages, as they are on the index, with our classes in them.

``tox -e compat`` runs this module. It needs the index, and packages that no other test
needs.
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent.parent

# Seconds that the tests of one package may take.
_PATIENCE = 600


def sources(package: str, folder: Path) -> Path:
    """Return the folder with the sources of `package`, such as ``name==1.0``."""
    name = package.partition("==")[0]
    options = ("-q", "--no-deps", "--no-binary", name, "-d", folder)
    _run("pip", "download", *options, package)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    [found] = [path for path in folder.iterdir() if path.is_dir()]
    return found


def _run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", **environment},
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    print(done.stdout[-20000:], done.stderr[-5000:])
    return done


def run_pytest(folder: Path, replace: str) -> subprocess.CompletedProcess[str]:
    """Run the tests in `folder` with our classes in the package `replace`."""
    options = ("-q", "-rf", "--tb=short", "-p", "no:cacheprovider", "--rootdir", folder)
    plugin = ("-p", "tests.compat.replacing")
    # A function for zope.testrunner, which returns a suite, is not a test of pytest.
    suite = ("-W", "ignore::pytest.PytestReturnNotNoneWarning")
    return _run("pytest", *options, *plugin, *suite, folder, REPLACE=replace)


def test_pyramid_mailer(tmp_path: Path) -> None:
    found = sources("pyramid_mailer==0.15.1", tmp_path)
    tests = tmp_path / "tests_of_pyramid_mailer"
    shutil.copytree(found / "pyramid_mailer" / "tests", tests)
    assert "128 passed" in run_pytest(tests, "pyramid_mailer").stdout


@pytest.mark.parametrize("debug", ["true", "false"])
@pytest.mark.parametrize("included", ["before", "after"])
def test_kinto_emailer(tmp_path: Path, included: str, debug: str) -> None:
    found = sources("kinto-emailer==4.0.0", tmp_path)
    settings = found / "tests" / "config" / "kinto.ini"
    theirs, line = "kinto_emailer", "postcommit.pyramid_mailer"
    both = [line, theirs] if included == "before" else [theirs, line]
    indent = "\n                 "
    text = settings.read_text()
    assert text.count(indent + theirs + "\n") == text.count("debug_mailer = true") == 1
    text = text.replace(indent + theirs, indent + indent.join(both))
    settings.write_text(text.replace("debug_mailer = true", f"debug_mailer = {debug}"))
    tests = tmp_path / "tests_of_kinto_emailer"
    shutil.copytree(found / "tests", tests)
    assert "37 passed" in run_pytest(tests, "").stdout


# Versions of Products.MailHost and zope.sendmail, and the number of tests. The mailer
# of an older zope.sendmail has fewer attributes.
VERSIONS = [("6.1", "7.3", 47), ("6.1", "6.2", 47), ("5.2", "6.2", 45)]

# Sends an immediate, a direct and a queued mail through a mail host.
SENDING = """
import sys
import tempfile
import transaction
import zope.sendmail
import tests.compat.replacing
from Products.MailHost.MailHost import MailHost
from tests.support.smtpd import ScriptedRelay

assert zope.sendmail.__file__.startswith(sys.argv[1]), zope.sendmail.__file__
to = {"mto": "a@example.org", "mfrom": "s@example.org"}
with ScriptedRelay() as relay, tempfile.TemporaryDirectory() as folder:
    queue = {"smtp_queue": True, "smtp_queue_directory": f"{folder}/queue"}
    queued = MailHost("queued", "", "127.0.0.1", relay.port, **queue)
    direct = MailHost("direct", "", "127.0.0.1", relay.port)
    direct.send("Subject: x\\n\\nx", immediate=True, **to)
    for host in (direct, queued):
        host.send("Subject: x\\n\\nx", **to)
    transaction.commit()
    relay.wait_until(lambda: len(relay.messages) == 3)
    queued.manage_restartQueueThread("stop")
"""


@pytest.fixture(params=VERSIONS, ids=str)
def versions(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """The folder with a pair of versions, and the number of tests."""
    mailhost, sendmail, count = request.param
    packages = (f"Products.MailHost=={mailhost}", f"zope.sendmail=={sendmail}")
    _run("pip", "install", "-q", "--no-deps", "--target", tmp_path, *packages)
    return tmp_path, count


def _with_versions(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": f"{folder}:{ROOT / 'src'}",
            "REPLACE": "mailhost",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0
    return done.stdout


def test_products_mailhost(versions: tuple[Path, int]) -> None:
    folder, count = versions
    script = "; ".join(
        (
            "import tests.compat.replacing",
            "from zope.testrunner import run",
            "run(__import__('sys').argv[1:])",
        )
    )
    said = _with_versions(
        folder,
        script,
        *("--test-path", str(folder), "-s", "Products.MailHost", "-v"),
        *("--tests-pattern", "^(testMailHost|test_exportimport|test_SendMailTag)$"),
    )
    assert f"Total: {count} tests, 0 failures, 0 errors and 0 skipped" in said


def test_a_mail_host_sends(versions: tuple[Path, int]) -> None:
    folder, _ = versions
    _with_versions(folder, SENDING, str(folder))


# What tests of zope.sendmail assert of its implementation, and these tests.
DETAILS = {
    "the calls that a class in place of smtplib.SMTP gets": """
        SMTPMailer.test_abort_fails_call_close SMTPMailer.test_monkeypatch_smtp
        SMTPMailer.test_send SMTPMailer.test_send_auth
        SMTPMailer.test_send_auth_nonascii SMTPMailer.test_send_auth_unicode
        SMTPMailer.test_send_default_timeout SMTPMailer.test_send_explicit_timeout
        SMTPMailer.test_send_failQuit SMTPMailer.test_send_multiple_same_mailer
        SMTPMailer.test_send_multiple_threads
        SMTPMailer.test_send_no_esmtp_with_username SMTPMailer.test_send_no_tls_forced
        SMTPMailer.test_send_timeout_opt_out SMTPMailer.test_vote_bad_connection
        SMTPMailerWithNoEHLO.test_abort_fails_call_close
        SMTPMailerWithNoEHLO.test_monkeypatch_smtp SMTPMailerWithNoEHLO.test_send
        SMTPMailerWithNoEHLO.test_send_default_timeout
        SMTPMailerWithNoEHLO.test_send_explicit_timeout
        SMTPMailerWithNoEHLO.test_send_failQuit
        SMTPMailerWithNoEHLO.test_send_multiple_same_mailer
        SMTPMailerWithNoEHLO.test_send_multiple_threads
        SMTPMailerWithNoEHLO.test_send_no_esmtp_with_username
        SMTPMailerWithNoEHLO.test_send_no_tls_forced
        SMTPMailerWithNoEHLO.test_send_timeout_opt_out
        SMTPMailerWithNoEHLO.test_vote_bad_connection
    """,
    "the calls that objects in place of os, socket and time get": """
        Maildir.test_iteration Maildir.test_newMessage Maildir.test_newMessage_error
        Maildir.test_newMessage_never_loops QueuedMailDelivery.testSend
    """,
    "the interfaces of zope.sendmail, in place of ours": """
        DirectMailDelivery.testInterface QueuedMailDelivery.testInterface
        Maildir.test_factory SMTPMailer.test_interface
        SMTPMailerWithNoEHLO.test_interface
    """,
    "the address 'Jim <jim@example.com', which has no end, is taken": """
        DirectMailDelivery.testBrokenMailerErrorsAreEaten
        DirectMailDelivery.testRefusingMailerDiesInVote
        DirectMailDelivery.testSavepoint DirectMailDelivery.testSend
        DirectMailDelivery.testSendCLRFLineSeparator DirectMailDelivery.testSendLatin1
        DirectMailDelivery.testSendUnicode
    """,
    "the private method createDataManager, and a warning": """
        DirectMailDelivery.test_old_mailer_without_vote
    """,
    "a mailer without send() is taken": """
        Directives.testDirectDelivery Directives.testQueuedDelivery
        Directives.testSMTPMailer Directives.testSMTPMailerTimeout
        Directives.test_zcml_without_registered_mailer
        Directives.test_zcml_without_registered_smtp_mailer
    """,
    "the private methods of the thread, its name, and its links .sending-NAME": """
        ConsoleApp.test_run QueueProcessorThread.test_deliveration
        QueueProcessorThread.test_error_logging
        QueueProcessorThread.test_makeMaildir_creates
        QueueProcessorThread.test_parseMessage
        QueueProcessorThread.test_parseMessageWithCommaInName
        QueueProcessorThread.test_parseMessage_empty_address
        QueueProcessorThread.test_parseMessage_error
        QueueProcessorThread.test_run_forever
        QueueProcessorThread.test_smtp_recipients_refused
        QueueProcessorThread.test_smtp_response_error_permanent
        QueueProcessorThread.test_smtp_response_error_transient
        QueueProcessorThread.test_stop_while_running
        QueueProcessorThread.test_threadName
        QueueProcessorThread.test_tmpfile_cannot_stat
        QueueProcessorThread.test_tmpfile_exists
        QueueProcessorThread.test_tmpfile_too_old
        QueueProcessorThread.test_tmpfile_too_old_unlink_fails_dne
        QueueProcessorThread.test_tmpfile_too_old_unlink_fails_generic
        QueueProcessorThread.test_utime_fails_dne
    """,
}


def test_zope_sendmail() -> None:
    import zope.sendmail

    folder = Path(zope.sendmail.__file__).parent / "tests"
    done = run_pytest(folder, "zope.sendmail")
    found = re.findall(r"^FAILED .*::(\w+)::(\w+)", done.stdout, re.MULTILINE)
    failed = {
        f"{kind.removeprefix('Test').removesuffix('Test')}.{name}"
        for kind, name in found
    }
    expected = {name for names in DETAILS.values() for name in names.split()}
    assert sorted(failed) == sorted(expected)
    assert f"{len(expected)} failed, 22 passed" in done.stdout
