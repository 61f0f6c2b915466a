"""A password is in no error, traceback, repr or log, whichever way it came."""
from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pyramid.config import Configurator
from zope.component.testing import PlacelessSetup
from zope.configuration import xmlconfig
from zope.schema import Object
from zope.schema import getFieldNamesInOrder

from postcommit._build import build
from postcommit._cli import main as cli
from postcommit._cli.configuration import Configuration
from postcommit._config.options import Given
from postcommit._config.options import fields_of
from postcommit._delivery.direct import DirectMailDelivery
from postcommit._delivery.queued import QueuedMailDelivery
from postcommit._maildir.maildir import Maildir
from postcommit._mailers.file import FileMailer
from postcommit._mailers.sendmail import SendmailMailer
from postcommit._processor import QueueProcessor
from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import OptionError
from postcommit.errors import masked
from postcommit.interfaces import IFileMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import ISendmailMailer
from postcommit.interfaces import ISMTPMailer
from postcommit.testing import RecordingMailer


# User and password, where a host name, a path or anything else belongs.
MISPLACED = [
    "smtp://me:hunter2@mx.example.org:587",
    "me:hunter2@mx.example.org",
    "hunter2@mx.example.org",
    "me:hunter2@mx.example.org\n",
    "me:p@ss-hunter2@mx.example.org",
    "postgresql://me:hunter2@db.example.org/queue",
    "postgresql://db.example.org/queue?password=hunter2",
]

SECRET = "hunter2"

# Any other text may be a path, and a path may have an @.
URLS = [text for text in MISPLACED if "://" in text]
FILES = ("cafile", "certfile", "keyfile")
PATHS = (*FILES, "queuePath", "queue_path", "command", "folder")

MISSPELT = ["pasword", "passwd", "PASSWORD", "Pass", "smtp_pwd", "hunter", "pass word"]

SMTP = fields_of(ISMTPMailer)
PROCESSOR = fields_of(IMailQueueProcessor)

CONSTRUCTORS: list[tuple[Callable[..., Any], Any, dict[str, Any]]] = [
    (SMTPMailer, ISMTPMailer, {}),
    (SendmailMailer, ISendmailMailer, {}),
    (FileMailer, IFileMailer, {"folder": "mails"}),
    (
        QueueProcessor,
        IMailQueueProcessor,
        {"queuePath": "queue", "mailer": RecordingMailer()},
    ),
]


@pytest.fixture(autouse=True)
def _without_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have OpenSSL find no certificates: reading the system's takes 80 ms a mailer."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))


def told_by(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Return all that a program can show of what `call` raises."""
    try:
        call(*arguments, **options)
    except Exception as error:
        told = "".join(traceback.format_exception(error))
        return f"{told} {error!r} {vars(error)}"
    return ""


def test_a_constructor() -> None:
    for kind, contract, needed in CONSTRUCTORS:
        for name in getFieldNamesInOrder(contract):
            for value in [*MISPLACED, *(text.encode() for text in MISPLACED)]:
                told = told_by(kind, **{**needed, name: value})
                assert SECRET not in told, (kind, name, value)
                if isinstance(contract[name], Object) or not isinstance(value, str):
                    assert told, (kind, name, value)


@pytest.mark.parametrize("value", MISPLACED[:-1])
def test_a_host_name_is_refused_and_its_end_is_shown(value: str) -> None:
    with pytest.raises(OptionError, match=r"\*\*\*@mx|\*\*\*@db"):
        SMTPMailer(value)


@pytest.mark.parametrize("value", URLS)
@pytest.mark.parametrize(
    "open_it",
    [
        QueuedMailDelivery,
        Maildir,
        FileMailer,
        SendmailMailer,
        lambda value: QueueProcessor(value, RecordingMailer()),
        lambda value: SMTPMailer(cafile=value),
    ],
)
def test_a_url_is_not_a_path(value: str, open_it: Callable[[str], Any]) -> None:
    told = told_by(open_it, value)
    assert "URL" in told
    assert SECRET not in told


def test_settings_in_the_place_of_an_object() -> None:
    settings = {"mail.host": "mx", "mail.password": "hunter2"}
    mailer: Any = settings
    for call in (
        lambda: DirectMailDelivery(mailer),
        lambda: QueueProcessor("queue", mailer),
        lambda: SMTPMailer(mailer),
        lambda: SMTPMailer(port=mailer),
        lambda: SMTPMailer(username="me", token=settings["mail.password"]),
    ):
        told = told_by(call)
        assert "OptionError" in told
        assert SECRET not in told


def test_whatever_is_built() -> None:
    for _, contract, needed in CONSTRUCTORS:
        for name in fields_of(contract):
            for value in MISPLACED:
                for source in ("", "environment"):
                    given_one = {name: Given(source, name, value)}
                    told = told_by(build, contract, given_one, **needed)
                    assert SECRET not in told, (contract, name, value)


@pytest.mark.parametrize("host", MISPLACED)
def test_a_login_that_is_never_sent_to_a_misplaced_password(host: str) -> None:
    given_ones = {
        name: Given("", name, value)
        for name, value in [
            ("username", "me"),
            ("password", SECRET),
            ("tls", "none"),
            ("hostname", host),
        ]
    }
    told = told_by(build, ISMTPMailer, given_ones)
    assert "username='me': a login is never sent" in told
    assert SECRET not in told


PYRAMID = [
    *SMTP,
    *PROCESSOR,
    *("mailer", "ssl", "processor", "sendmail_app", "sendmail_command", "folder"),
    *("sendmail_timeout", "debug", "host"),
]


def test_the_settings_of_pyramid() -> None:
    def include(name: str, value: str) -> None:
        config = Configurator(settings={f"mail.{name}": value})
        config.include("postcommit.pyramid")
        config.make_wsgi_app()

    for name in MISSPELT:
        told = told_by(include, name, SECRET)
        assert f"mail.{name}" in told
        assert SECRET not in told
    for name in PYRAMID:
        for value in MISPLACED:
            assert SECRET not in told_by(include, name, value), name


def test_a_misspelt_setting_of_pyramid_is_answered_with_the_nearest() -> None:
    config = Configurator(settings={"mail.passwd": "hunter2"})
    told = told_by(config.include, "postcommit.pyramid")
    assert "do you mean mail.password?" in told


@pytest.fixture
def components() -> Iterator[None]:
    setup = PlacelessSetup()
    setup.setUp()
    yield
    setup.tearDown()


SITE = """\
<configure xmlns:mail="http://namespaces.zope.org/mail">
  <include package="postcommit" />
  <mail:{} {}="{}" />
</configure>
"""


@pytest.mark.usefixtures("components")
@pytest.mark.parametrize(
    ("directive", "contract"),
    [
        ('smtpMailer name="m"', ISMTPMailer),
        ('sendmailMailer name="m"', ISendmailMailer),
        ('fileMailer name="m"', IFileMailer),
        ('queuedDelivery mailer="m"', IMailQueueProcessor),
    ],
)
def test_zcml(directive: str, contract: Any, tmp_path: Path) -> None:
    def configure(name: str, value: str) -> None:
        value = value.replace("\n", "&#10;")
        (tmp_path / "site.zcml").write_text(SITE.format(directive, name, value))
        xmlconfig.file(str(tmp_path / "site.zcml"))

    names = [name for name in getFieldNamesInOrder(contract) if name != "mailer"]
    for name in [*names, *(name for name in MISSPELT if " " not in name)]:
        for value in URLS[1:] if name in PATHS else MISPLACED[:3]:
            assert SECRET not in told_by(configure, name, value), name


def configured(path: Path, environ: dict[str, str], *argv: str) -> None:
    options = cli._parser().parse_args(["run", "--config", str(path), *argv])
    found = Configuration(options, environ)
    found.processor(found.mailer())


@pytest.mark.parametrize("section", ["postcommit", "app:zope-sendmail", "app:qp"])
def test_an_ini_file(section: str, tmp_path: Path) -> None:
    path = tmp_path / "shop.ini"
    older = ("interval", "force_tls", "no_tls", "ssl", "debug_smtp", "log_level")
    for name in (*MISSPELT, *SMTP, *PROCESSOR, *older, "password_file"):
        for value in (SECRET, *MISPLACED):
            if value == SECRET and name not in (*MISSPELT, "password", "password_file"):
                continue  # nothing tells that it is one
            path.write_text(f"[{section}]\n{name} = {value}")
            told = told_by(configured, path, {}, "queue")
            assert SECRET not in told, (name, value)


def test_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "shop.ini"
    path.write_text("[postcommit]\n")
    names = [name.upper() for name in (*MISSPELT, *SMTP, *PROCESSOR, "password_file")]
    for name in (*names, "LOG_LEVEL", "LOG_FORMAT"):
        for value in MISPLACED:
            environ = {f"POSTCOMMIT_{name}": value}
            told = told_by(configured, path, environ, "queue")
            assert SECRET not in told, (name, value)
    environ = {"POSTCOMMIT_PASSWORD_FILE": "hunter2"}
    told = told_by(configured, path, environ, "queue")
    assert "POSTCOMMIT_PASSWORD_FILE" in told
    assert SECRET not in told


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_the_command_line(debug: list[str], capsys: Any, tmp_path: Path) -> None:
    calls = [["run", "queue", f"--{name}", SECRET] for name in ("passwd", "pasword")]
    calls += [["run", "queue", f"{call[2]}=hunter2"] for call in calls]
    calls += [["run", "queue", f"--{name}=hunter2"] for name in ("passwor", "p")]
    names = [name.replace("_", "-") for name in (*SMTP, *PROCESSOR)]
    names = [name for name in names if name not in FILES]
    calls += [["test-relay", f"--{file}", value] for file in FILES for value in URLS]
    for value in MISPLACED:
        calls += [["run", "queue", f"--{name}", value] for name in names]
        calls += [["test-relay", f"--{name}={value}"] for name in names]
    for value in URLS:
        for command in ("run", "flush", "status", "list", "check"):
            calls.append([command, value])
        calls.append(["retry", value, "ALL"])
    for call in calls:
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(cli.main([*debug, *call]))
        said = "".join(capsys.readouterr())
        assert ended.value.code == 2, call
        assert SECRET not in said, call


def test_what_holds_a_password_does_not_show_it() -> None:
    mailer = SMTPMailer("mx", username="me", password="hunter2")
    given_one = Given("environment", "POSTCOMMIT_PASSWORD", "hunter2")
    for holder in (mailer, given_one, mailer.relay, DirectMailDelivery(mailer)):
        assert SECRET not in f"{holder!r} {holder!s}"


def test_an_error_that_is_copied_or_comes_from_another_process_stays_masked() -> None:
    error = OptionError("mail.host", "me:hunter2@mx", "must be a name")
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert other.value == "***@mx"
        assert str(other) == "mail.host='***@mx': must be a name"


def test_what_is_masked() -> None:
    for name in ("password", "mail.password", "POSTCOMMIT_PASSWORD", "token", "--pwd"):
        assert masked(name, "x") == masked(name, 7) == masked(name, b"x") == "***"
    assert masked("password", None) is None
    assert masked("port", 7) == 7
    assert masked("queue_path", "/var/spool/shop") == "/var/spool/shop"
    assert masked("hostname", "smtp://me:x@mx:25") == "smtp://***@mx:25"
    assert masked("queue_path", "sql://db/x?password=x") == "sql://db/x?***"
    # An address is no secret.
    sender = "Shop <shop@example.org>"
    assert masked("mail.default_sender", sender) == sender


@hypothesis_settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(), st.text(alphabet=st.characters(exclude_characters="@")))
def test_nothing_before_an_at_sign_is_shown(secret: str, host: str) -> None:
    marked = f"hunter2{secret}hunter2@{host}"
    for value in (marked, marked.encode(errors="replace"), [marked], {"x": marked}):
        error = OptionError("hostname", value, "must be a name")
        assert SECRET not in f"{error} {error!r} {error.value!r}"


class Quiet(dict[str, Any]):
    """Options that do not show in the frame of this test."""

    def __repr__(self) -> str:
        return "<options>"


@pytest.mark.parametrize(
    "wrong",
    [
        {"hostname": "mx.example.org:25"},
        {"port": 0},
        {"auth": "xoauth2"},
        {"tls": "none", "cafile": "/x"},
        {"ssl_context": 5},
    ],
    ids=str,
)
def test_a_mailer_that_cannot_be_made_leaves_no_password_in_the_traceback(
    wrong: dict[str, Any],
) -> None:
    options = Quiet(hostname="mx.example.org", username="shop", password=SECRET)
    options |= wrong
    with pytest.raises(OptionError) as caught:
        SMTPMailer(**options)
    for frame, _ in traceback.walk_tb(caught.value.__traceback__):
        for name, value in dict(frame.f_locals).items():
            assert SECRET not in repr(value), (frame.f_code.co_name, name)
    made = traceback.TracebackException.from_exception(
        caught.value, capture_locals=True
    )
    assert SECRET not in "".join(made.format())


def test_a_mailer_without_options_can_be_shown() -> None:
    mailer = SMTPMailer.__new__(SMTPMailer)
    assert repr(mailer) == "<SMTPMailer without options>"
