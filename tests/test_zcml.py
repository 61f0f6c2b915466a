"""The directives for Zope: every attribute to its object, errors to their line."""
from __future__ import annotations

import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import transaction
from zope.component import getUtilitiesFor
from zope.component import getUtility
from zope.component import provideUtility
from zope.component import queryUtility
from zope.component.testing import PlacelessSetup
from zope.configuration import xmlconfig
from zope.configuration.config import ConfigurationConflictError
from zope.configuration.exceptions import ConfigurationError
from zope.schema import getFieldsInOrder
from zope.schema.interfaces import IVocabularyFactory
from zope.security.checker import ProxyFactory
from zope.security.interfaces import ForbiddenAttribute
from zope.security.interfaces import IPermission
from zope.security.interfaces import Unauthorized
from zope.security.management import endInteraction
from zope.security.management import newInteraction
from zope.security.management import setSecurityPolicy
from zope.security.proxy import removeSecurityProxy
from zope.security.simplepolicies import ParanoidSecurityPolicy
from zope.sendmail.interfaces import IMailDelivery as IOlderMailDelivery
from zope.sendmail.interfaces import IMailer as IOlderMailer

from postcommit import _zcml as zcml
from postcommit._delivery.direct import DirectMailDelivery
from postcommit._delivery.queued import QueuedMailDelivery
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import ISendmailMailer
from postcommit.interfaces import ISMTPMailer
from postcommit.testing import RecordingMailer
from tests.support.smtpd import ScriptedRelay


SITE = """\
<configure
    xmlns="http://namespaces.zope.org/zope"
    xmlns:mail="http://namespaces.zope.org/mail">
  <include package="postcommit" />
{}
</configure>
"""

MESSAGE = "Subject: x\n\nx\n"


@pytest.fixture(autouse=True)
def components() -> Iterator[None]:
    setup = PlacelessSetup()
    setup.setUp()
    yield
    for _, processor in getUtilitiesFor(IMailQueueProcessor):
        processor.stop()
    setup.tearDown()


@pytest.fixture
def configure(tmp_path: Path) -> Any:
    def configure(text: str) -> None:
        (tmp_path / "site.zcml").write_text(SITE.format(text))
        xmlconfig.file(str(tmp_path / "site.zcml"))

    return configure


# Attributes


@pytest.mark.parametrize(
    ("words", "contract"),
    [
        ("<mail:smtpMailer name='m' />", ISMTPMailer),
        ("<mail:sendmailMailer name='m' />", ISendmailMailer),
    ],
)
def test_without_attributes_the_defaults_of_the_schema(
    configure: Any, words: str, contract: Any
) -> None:
    configure(words)
    for name, field in getFieldsInOrder(contract):
        assert getattr(getUtility(IMailer, "m"), name) == field.default, name


@pytest.mark.parametrize(
    "directive",
    [
        zcml.ISMTPMailerDirective,
        zcml.ISendmailMailerDirective,
        zcml.IFileMailerDirective,
        zcml.IFailoverMailerDirective,
        zcml.IQueuedDeliveryDirective,
        zcml.IDirectDeliveryDirective,
    ],
)
def test_every_attribute_is_described(directive: Any) -> None:
    assert directive.__doc__
    for name, field in getFieldsInOrder(directive):
        assert field.title, name
        assert field.description, name


# TLS


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ("", "auto"),
        ('implicit_tls="true"', "implicit"),
        ('implicit_tls="yes"', "implicit"),
        ('implicit_tls="false"', "auto"),
        ('force_tls="true"', "starttls"),
        ('no_tls="true"', "none"),
        ('no_tls="false" force_tls="true"', "starttls"),
        ('no_tls="true" implicit_tls="false" force_tls="no"', "none"),
        ('implicit_tls="true" tls="implicit"', "implicit"),
        ('implicit_tls="false" tls="auto"', "auto"),
    ],
)
def test_the_older_attributes_for_tls(configure: Any, words: str, mode: str) -> None:
    configure(f'<mail:smtpMailer name="m" {words} />')
    assert getUtility(IMailer, "m").tls == mode


@pytest.mark.parametrize(
    "words",
    [
        'no_tls="true" force_tls="true"',
        'implicit_tls="true" force_tls="true"',
        'implicit_tls="true" tls="starttls"',
        'implicit_tls="false" tls="implicit"',
        'no_tls="yes" tls="auto"',
    ],
)
def test_attributes_that_contradict_each_other(configure: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=r"contradicts \w+=.*; rem") as caught:
        configure(f'<mail:smtpMailer name="m" {words} />')
    assert "site.zcml" in str(caught.value)


# Deliveries


def test_a_queued_delivery(configure: Any, tmp_path: Path) -> None:
    with ScriptedRelay() as relay:
        configure(
            f'<mail:smtpMailer name="r" hostname="127.0.0.1" port="{relay.port}" />\n'
            '<mail:queuedDelivery queuePath="./queue" mailer="r" />'
        )
        delivery = getUtility(IMailDelivery, "Mail")
        assert type(delivery) is QueuedMailDelivery
        assert delivery.queuePath == str(tmp_path / "queue")
        with transaction.manager:
            delivery.send("a@example.org", "b@example.org", MESSAGE)
        relay.wait_until(lambda: relay.messages)
        assert getUtility(IMailQueueProcessor, "Mail").stop(30)
        getUtility(IMailer, "r").close()


def test_without_a_thread(configure: Any, tmp_path: Path) -> None:
    configure(
        '<mail:queuedDelivery queuePath="./queue" mailer="smtp" name="shop"'
        ' processorThread="false" />'
    )
    assert queryUtility(IMailQueueProcessor, "shop") is None
    with transaction.manager:
        getUtility(IMailDelivery, "shop").send("", "b@example.org", MESSAGE)
    assert len(list((tmp_path / "queue" / "new").iterdir())) == 1


def test_a_direct_delivery(configure: Any) -> None:
    configure('<mail:directDelivery name="direct" mailer="smtp" />')
    delivery = getUtility(IMailDelivery, "direct")
    assert type(delivery) is DirectMailDelivery
    assert delivery.mailer is getUtility(IMailer, "smtp")


def test_a_queue_that_exists(configure: Any, tmp_path: Path) -> None:
    QueuedMailDelivery(str(tmp_path / "queue")).send("", "b@example.org", MESSAGE)
    transaction.abort()
    configure('<mail:queuedDelivery queuePath="queue" mailer="smtp" />')
    assert getUtility(IMailQueueProcessor, "Mail").stop(30)


def test_the_vocabulary(configure: Any) -> None:
    configure('<mail:directDelivery mailer="smtp" />')
    vocabulary = getUtility(IVocabularyFactory, "Mail Delivery Names")(None)
    assert [term.value for term in vocabulary] == ["Mail"]


def test_the_interface_is_registered(configure: Any) -> None:
    configure("")
    name = "postcommit.interfaces.IMailDelivery"
    assert getUtility(zcml.Interface, name) is IMailDelivery


# Security


@pytest.fixture
def policy() -> Iterator[list[str]]:
    """The permissions that everybody has."""
    granted: list[str] = []

    class Policy(ParanoidSecurityPolicy):
        def checkPermission(self, permission: str, object: Any) -> bool:
            return permission in granted

    before = setSecurityPolicy(Policy)
    newInteraction()
    yield granted
    endInteraction()
    setSecurityPolicy(before)


@pytest.mark.parametrize(
    "words",
    [
        '<mail:directDelivery mailer="m" permission="zope.SendMail" />',
        '<mail:queuedDelivery queuePath="queue" mailer="m"'
        ' processorThread="no" permission="zope.SendMail" />',
    ],
)
def test_with_a_permission(configure: Any, policy: list[str], words: str) -> None:
    provideUtility(RecordingMailer(), IMailer, "m")
    configure(words)
    assert getUtility(IPermission, "zope.SendMail")
    delivery = ProxyFactory(getUtility(IMailDelivery, "Mail"))
    assert type(removeSecurityProxy(delivery)) is not type(delivery)
    assert IMailDelivery.providedBy(delivery)
    with pytest.raises(Unauthorized):
        delivery.send("", "b@example.org", MESSAGE)
    policy.append("zope.SendMail")
    with transaction.manager:
        assert type(delivery.send("", "b@example.org", MESSAGE)) is str
    with pytest.raises(ForbiddenAttribute):
        _ = delivery.bind


def test_a_mail_with_a_permission_may_wait_and_be_called_off(
    configure: Any, policy: list[str]
) -> None:
    provideUtility(RecordingMailer(), IMailer, "m")
    configure(
        '<mail:queuedDelivery queuePath="queue" mailer="m"'
        ' processorThread="no" permission="zope.SendMail" />'
    )
    delivery = ProxyFactory(getUtility(IMailDelivery, "Mail"))
    policy.append("zope.SendMail")
    with transaction.manager:
        name = delivery.send("", "b@example.org", MESSAGE, not_before=timedelta(1))
    policy.clear()
    with pytest.raises(Unauthorized):
        delivery.cancel(name)
    policy.append("zope.SendMail")
    with transaction.manager:
        assert delivery.cancel(name)
    assert not delivery.cancel(name)


def test_a_permission_does_not_hold_for_trusted_code(
    configure: Any, policy: list[str]
) -> None:
    provideUtility(RecordingMailer(), IMailer, "m")
    configure('<mail:directDelivery mailer="m" permission="zope.SendMail" />')
    assert policy == []
    with transaction.manager:
        assert getUtility(IMailDelivery, "Mail").send("", "b@example.org", MESSAGE)


def test_the_public_permission(configure: Any, policy: list[str]) -> None:
    configure('<mail:directDelivery mailer="smtp" permission="zope.Public" />')
    delivery = ProxyFactory(getUtility(IMailDelivery, "Mail"))
    assert delivery.send("", "b@example.org", MESSAGE)
    transaction.abort()


def test_an_unknown_permission(configure: Any) -> None:
    with pytest.raises(ConfigurationError, match="Undefined permission"):
        configure('<mail:directDelivery mailer="smtp" permission="x.Unknown" />')


# Another package that includes zope.sendmail

OTHER = """
<configure xmlns="http://namespaces.zope.org/zope">
  <include package="zope.component" file="meta.zcml" />
  <include package="zope.sendmail" file="meta.zcml" />
  <include package="zope.sendmail" />
</configure>
"""
ONLY_ITS_DIRECTIVES = OTHER.replace('  <include package="zope.sendmail" />\n', "")


@pytest.fixture
def include_both(tmp_path: Path) -> Any:
    """Configures a site that includes us, then another package, and has a delivery."""

    def include_both(other: str, exclude: str = "") -> Any:
        (tmp_path / "other.zcml").write_text(other)
        (tmp_path / "site.zcml").write_text(
            '<configure xmlns="http://namespaces.zope.org/zope"'
            ' xmlns:mail="http://namespaces.zope.org/mail">'
            '<include package="zope.security" file="meta.zcml" />'
            f'{exclude}<include package="postcommit" /><include file="other.zcml" />'
            '<mail:directDelivery name="Mail" mailer="smtp" /></configure>'
        )
        xmlconfig.file(str(tmp_path / "site.zcml"))
        return queryUtility(IMailDelivery, "Mail")

    return include_both


def test_zope_sendmail_is_included_as_well(include_both: Any) -> None:
    with pytest.raises(ConfigurationConflictError):
        include_both(OTHER)


def test_only_the_directives_of_zope_sendmail_are_included(include_both: Any) -> None:
    assert not isinstance(include_both(ONLY_ITS_DIRECTIVES), DirectMailDelivery)


@pytest.mark.parametrize("other", [OTHER, ONLY_ITS_DIRECTIVES])
def test_zope_sendmail_is_excluded_as_the_page_says(
    include_both: Any, other: str
) -> None:
    docs = Path(__file__).parent.parent / "docs"
    page = (docs / "moving-zope-sendmail.rst").read_text()
    exclude = "".join(re.findall("<exclude .*/>", page))
    assert exclude.count("zope.sendmail") == 2
    assert isinstance(include_both(other, exclude), DirectMailDelivery)


# Several relays


SEVERAL = """
<mail:smtpMailer name="dead" hostname="127.0.0.1" port="{dead}" />
<mail:smtpMailer name="backup" hostname="127.0.0.1" port="{port}" />
<mail:failoverMailer name="relays" mailers="dead backup" retry_after="30" />
<mail:failoverMailer name="all" mailers="relays,
    smtp" round_robin="yes" />
<mail:directDelivery mailer="relays" />
"""


def test_the_next_mailer_sends_if_the_relay_of_the_first_fails(
    configure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "postcommit")
    with ScriptedRelay() as dead, ScriptedRelay() as relay:
        dead.refuse()
        configure(SEVERAL.format(dead=dead.port, port=relay.port))
        mailer: Any = getUtility(IMailer, "relays")
        assert (mailer.retry_after, mailer.round_robin) == (30.0, False)
        assert mailer.mailers == tuple(
            getUtility(IMailer, name) for name in ("dead", "backup")
        )
        outer: Any = getUtility(IMailer, "all")
        assert outer.mailers == (mailer, getUtility(IMailer, "smtp"))
        assert getUtility(IOlderMailer, "relays") is mailer
        with transaction.manager:
            getUtility(IMailDelivery, "Mail").send("a@x.org", "b@x.org", MESSAGE)
        [taken] = relay.messages
        assert taken.recipients == ("b@x.org",)
        mailer.close()
    [change] = [m for m in caplog.messages if "mail goes through" in m]
    assert change.startswith(f"<SMTPMailer 127.0.0.1:{dead.port}> failed, mail goes")


def test_the_same_relay_twice(configure: Any) -> None:
    """Both would fail together. Another login is another account."""
    local = '<mail:smtpMailer name="local" hostname="localhost" {} />'
    both = '<mail:failoverMailer name="m" mailers="smtp local" />'
    with pytest.raises(ConfigurationError, match="'smtp' and 'local' are the same"):
        configure(local.format("") + both)
    configure(local.format('username="me" password="x"') + both)


# Errors, with file and line


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ('<mail:directDelivery mailer="none" />', "mailer 'none' is not defined"),
        ('<mail:directDelivery mailer="smpt" />', "defined; do you mean 'smtp'?"),
        (
            '<mail:queuedDelivery queuePath="q" mailer="none" />',
            "mailer 'none' is not defined",
        ),
        (
            '<mail:queuedDelivery queuePath="missing/q" mailer="smtp" />',
            r"there is no folder '/\S*' to create it in",
        ),
        (
            '<mail:queuedDelivery queuePath="site.zcml" mailer="smtp" />',
            "is no folder, so no Maildir",
        ),
        (
            '<mail:queuedDelivery queuePath="q" mailer="smtp" workers="2"'
            ' processorThread="no" />',
            'workers: no effect with processorThread="false"',
        ),
        (
            '<mail:queuedDelivery queuePath="q" mailer="smtp" max_backoff="1" />',
            "must not be less than min_backoff",
        ),
        (
            '<mail:failoverMailer name="m" mailers="smtp backup" />',
            "the mailer 'backup' is not defined, or only after this one, which it is a"
            " part of",
        ),
        (
            '<mail:failoverMailer name="a" mailers="b" />'
            '<mail:failoverMailer name="b" mailers="a" />',
            "the mailer 'b' is not defined, or only after this one",
        ),
        (
            '<mail:failoverMailer name="m" mailers="smtp m" />',
            "mailers: 'm' cannot be a part of itself",
        ),
        (
            '<mail:failoverMailer name="m" mailers="smtp smtp" />',
            "mailers: 'smtp' is there twice",
        ),
        ('<mail:failoverMailer name="m" mailers="" />', "mailers"),
        ('<mail:failoverMailer name="m" mailers="," />', "at least one mailer"),
        (
            '<mail:failoverMailer name="m" mailers="smtp smpt" />',
            "a part of; do you mean 'smtp'?",
        ),
        ('<mail:failoverMailer name="m" />', "mailers"),
        (
            '<mail:failoverMailer name="m" mailers="smtp" retry_after="soon" />',
            "retry_after='soon': must be a number",
        ),
        ('<mail:smtpMailer name="m" port="70000" />', "port"),
        ('<mail:smtpMailer name="m" port="smtp" />', "port"),
        ('<mail:smtpMailer name="m" hostname="" />', "hostname"),
        ('<mail:smtpMailer name="m" verify="maybe" />', "verify"),
        ('<mail:smtpMailer name="m" tls="ssl" />', "tls"),
        ('<mail:smtpMailer name="m" debug="1" />', "debug"),
        ("<mail:smtpMailer />", "name"),
        (
            '<mail:smtpMailer name="m" password="x" />',
            "mail:smtpMailer m: password='...': has no effect without a username",
        ),
        (
            '<mail:smtpMailer name="m" username="me" password="x" no_tls="yes"'
            ' hostname="mx.example.org" />',
            "username='me': a login is never sent in clear to 'mx.example.org', and"
            " no_tls forbids TLS",
        ),
        (
            '<mail:directDelivery mailer="smtp" default_sender="The Shop" />',
            "mail:directDelivery Mail: default_sender='The Shop': ",
        ),
        ('<mail:fileMailer name="m" />', "folder"),
        (
            '<mail:sendmailMailer name="m" command="sendmail -f %(from)s %(to)s" />',
            "name the program only",
        ),
    ],
)
def test_errors_point_at_file_and_line(
    configure: Any, words: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        configure(f"\n\n{words}")
    assert 'site.zcml", line 7.0' in str(caught.value)
    assert list(getUtilitiesFor(IMailQueueProcessor)) == []


@pytest.mark.parametrize(
    "words",
    [
        '<mail:smtpMailer name="m" username="me" password="sesame" port="0" />',
        '<mail:smtpMailer name="m" username="me" password="sesa&#10;me" />',
        '<mail:smtpMailer name="m" username="me" password="sesame" />' * 2,
    ],
)
def test_no_error_tells_a_password(configure: Any, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configure(words)
    told = "".join(traceback.format_exception(caught.value))
    assert 'site.zcml", line 5.' in told
    assert "sesa" not in told


@pytest.mark.parametrize(
    "login", ['username="me"', 'username="me" password=""', ""]
)
def test_a_username_alone_is_no_login_as_with_zope_sendmail(
    configure: Any, login: str, caplog: pytest.LogCaptureFixture
) -> None:
    configure(f'<mail:smtpMailer name="m" {login} />')
    mailer: Any = getUtility(IMailer, "m")
    assert mailer.username is None
    told = "mail:smtpMailer m: a username without a password is ignored: no login"
    assert caplog.messages == ([told] if login else [])


@pytest.mark.parametrize("other", ["directDelivery", 'queuedDelivery queuePath="r"'])
def test_a_conflict(configure: Any, other: str) -> None:
    with pytest.raises(ConfigurationConflictError) as caught:
        configure(
            f'<mail:{other} mailer="smtp" />\n'
            '<mail:queuedDelivery queuePath="q" mailer="smtp" />'
        )
    assert 'site.zcml", line 6.0' in str(caught.value)
    assert "IMailDelivery" in str(caught.value)


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_is_not_the_folder_of_the_file(
    configure: Any, path: str
) -> None:
    for name, words in (
        ("queuePath", 'queuedDelivery mailer="smtp"'),
        ("cafile", 'smtpMailer name="m"'),
    ):
        with pytest.raises(ConfigurationError, match=rf"{name}='.*not.* empty"):
            configure(f'<mail:{words} {name}="{path}" />')


def test_paths_are_below_the_folder_of_the_file_or_of_the_user(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/zope")
    monkeypatch.setenv("CLIENT", "shop")
    for given, path in (
        ("certs/../ca.pem", f"{tmp_path}/ca.pem"),
        ("/etc/./ca.pem", "/etc/ca.pem"),
        (" ~/ca.pem ", "/home/zope/ca.pem"),
        ("$CLIENT.pem", f"{tmp_path}/shop.pem"),
    ):
        configure(f'<mail:smtpMailer name="m" cafile="{given}" />')
        assert getUtility(IMailer, "m").cafile == path


def test_what_is_no_choice_is_told_what_there_is(configure: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configure('<mail:smtpMailer name="smtp" tls="sometimes" />')
    told = str(caught.value)
    assert "tls='sometimes': must be one of 'auto', 'starttls'," in told
    assert 'site.zcml", line' in told


def test_a_site_overrides_what_it_includes(configure: Any, tmp_path: Path) -> None:
    (tmp_path / "part.zcml").write_text(
        SITE.format('<mail:queuedDelivery queuePath="q" mailer="smtp" />')
    )
    configure(
        '<include file="part.zcml" />\n'
        '<mail:smtpMailer name="smtp" hostname="relay.example.org" />\n'
        '<mail:directDelivery mailer="smtp" />'
    )
    delivery = getUtility(IMailDelivery, "Mail")
    assert type(delivery) is DirectMailDelivery
    assert delivery.mailer.hostname == "relay.example.org"
    assert queryUtility(IMailQueueProcessor, "Mail") is None
    assert not (tmp_path / "q").exists()


# zope.sendmail, installed or not


def test_who_looks_up_by_the_older_interfaces(configure: Any) -> None:
    configure('<mail:directDelivery mailer="smtp" />')
    delivery = getUtility(IOlderMailDelivery, "Mail")
    assert delivery is getUtility(IMailDelivery, "Mail")
    assert getUtility(IOlderMailer, "smtp") is delivery.mailer


def test_a_mailer_that_is_registered_for_the_older_interface(configure: Any) -> None:
    mailer = RecordingMailer()
    provideUtility(mailer, IOlderMailer, "own")
    configure('<mail:directDelivery mailer="own" />')
    assert getUtility(IMailDelivery, "Mail").mailer is mailer


def test_without_zope_sendmail(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zope.sendmail.interfaces", None)
    configure('<mail:directDelivery mailer="smtp" />')
    assert getUtility(IMailDelivery, "Mail")
    assert queryUtility(IOlderMailDelivery, "Mail") is None


def test_a_site_that_includes_the_older_library_as_well(configure: Any) -> None:
    """The older one's mailer of the same name is a conflict, and said so."""
    with pytest.raises(ConfigurationConflictError):
        configure(
            '<include package="zope.sendmail" file="meta.zcml" />'
            '<include package="zope.sendmail" />'
        )


def test_ours_may_override_the_older_library(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "moving-zope-sendmail.rst"
    [line] = re.findall("<includeOverrides.*", page.read_text())
    theirs = '<include package="zope.sendmail" />'
    for package in ("zope.component", "zope.security", "zope.sendmail"):
        theirs = f'<include package="{package}" file="meta.zcml" />{theirs}'
    delivery = f'<mail:queuedDelivery mailer="smtp" queuePath="{tmp_path / "q"}" />'
    site = SITE.replace('<include package="postcommit" />', theirs + line)
    xmlconfig.string(site.format(delivery))
    assert isinstance(getUtility(IMailDelivery, "Mail"), QueuedMailDelivery)
    assert getUtility(IOlderMailer, "smtp") is getUtility(IMailer, "smtp")


def test_the_page_has_every_attribute() -> None:
    page = (Path(__file__).parent.parent / "docs" / "zope.rst").read_text()
    rows = re.findall(r"   \* - ``mail:(\w+)``\n     - ((?:.*\n)+?)(?=   \*|\n)", page)
    assert len(rows) == 7
    for directive, text in rows:
        names = [name.lower() for name in vars(zcml)]
        found = names.index(f"i{directive}directive".lower())
        schema = list(vars(zcml).values())[found]
        told = set(re.findall(r"``(\w+)``", text))
        assert told == {name for name, _ in getFieldsInOrder(schema)}


WITHOUT_SECURITY = """
import sys
sys.modules["zope.security"] = None

from zope.component import getUtility
from zope.configuration import xmlconfig
from zope.configuration.exceptions import ConfigurationError
from postcommit.interfaces import IMailDelivery

protected, site = sys.argv[1:]
try:
    xmlconfig.file(protected)
except ConfigurationError as error:
    print(error)
xmlconfig.file(site)
print(getUtility(IMailDelivery, "Mail"))
"""


def test_without_zope_security(tmp_path: Path) -> None:
    for name, words in (("protected", 'permission="zope.SendMail"'), ("site", "")):
        text = SITE.format(f'<mail:directDelivery mailer="smtp" {words} />')
        (tmp_path / f"{name}.zcml").write_text(text)
    paths = [str(tmp_path / f"{name}.zcml") for name in ("protected", "site")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SECURITY, *paths],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "zope.security is not available" in done.stdout
    assert "DirectMailDelivery" in done.stdout
