"""How older libraries lose mail, and that this one does not.

One row for each situation in which zope.sendmail or repoze.sendmail was seen to
lose mail, to send it twice, or to let it leak. The tests are in the order of
the rows; what a row is about stands in the test's docstring.
"""
from __future__ import annotations

import logging
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transaction import TransactionManager
from zope.component import getUtility
from zope.component.testing import PlacelessSetup
from zope.configuration import xmlconfig

from postcommit import DirectMailDelivery
from postcommit import MailRejectedEvent
from postcommit import MailSentEvent
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit.errors import AddressError
from postcommit.errors import QueueError
from postcommit.interfaces import IMailer
from tests.support import children
from tests.support.faults import full_disk
from tests.support.smtpd import ScriptedRelay
from tests.support.strace import needs_strace
from tests.support.strace import trace
from tests.support.transactions import AFTER
from tests.support.transactions import BEFORE
from tests.support.transactions import STAGES
from tests.support.transactions import Hearing
from tests.support.transactions import Partner
from tests.support.transactions import PartnerFailed
from tests.support.transactions import accepted
from tests.support.transactions import entries
from tests.support.transactions import failing
from tests.support.transactions import files
from tests.support.transactions import mail


ANN, BOB, EVE = "ann@example.org", "bob@example.org", "eve@example.org"


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        yield relay


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def manager() -> TransactionManager:
    manager = TransactionManager(explicit=True)
    manager.begin()
    return manager


@pytest.fixture
def delivery(queue: Path, manager: TransactionManager) -> QueuedMailDelivery:
    return QueuedMailDelivery(str(queue), transaction_manager=manager)


def flush(queue: Path, relay: ScriptedRelay) -> None:
    """Drain the queue once, and check that the relay was treated well."""
    mailer = SMTPMailer("127.0.0.1", relay.port)
    QueueProcessor(str(queue), mailer, workers=1).flush()
    mailer.close()
    assert relay.violations == []


# Row 10


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\u2028"])
def test_row_10_a_line_break_in_fromaddr_is_refused(
    queue: Path, manager: Any, delivery: Any, line_break: str
) -> None:
    """It added a line to the envelope, and the mail went to whoever was in it."""
    fromaddr = f"{ANN}{line_break}X-Zope-To: {EVE}"
    with pytest.raises(AddressError) as caught:
        delivery.send(fromaddr, BOB, mail())
    assert caught.value.address == fromaddr
    manager.commit()
    assert files(queue) == []


def test_row_10_lines_of_the_message_are_no_envelope(
    queue: Path, manager: Any, delivery: Any, relay: ScriptedRelay
) -> None:
    """What a message begins with cannot become a part of the envelope."""
    injected = f"X-Zope-Attempts: 1\r\nX-Zope-Reply: x\r\nX-Zope-To: {EVE}\r\n"
    message = injected.encode() + mail()
    delivery.send(ANN, BOB, message)
    manager.commit()
    flush(queue, relay)
    [received] = relay.messages
    assert received.recipients == (BOB,)
    assert received.data == message


# Row 15


def test_row_15_tls_is_as_the_zcml_file_has_it() -> None:
    """`implicit_tls` arrived in the place of `no_tls`, and TLS was off.

    ``tests/test_zcml.py`` walks every attribute of every directive.
    """
    modes = {"implicit_tls": "implicit", "force_tls": "starttls", "no_tls": "none"}
    directives = "".join(
        f'<mail:smtpMailer name="{flag}" {flag}="true" />' for flag in modes
    )
    setup = PlacelessSetup()
    setup.setUp()
    try:
        xmlconfig.string(
            '<configure xmlns="http://namespaces.zope.org/zope"'
            ' xmlns:mail="http://namespaces.zope.org/mail">'
            f'<include package="postcommit" />{directives}</configure>'
        )
        for flag, mode in modes.items():
            assert getUtility(IMailer, flag).tls == mode
    finally:
        setup.tearDown()


# Row 17


def _send_and_commit(queue: str) -> None:
    manager = TransactionManager(explicit=True)
    manager.begin()
    QueuedMailDelivery(queue, transaction_manager=manager).send(ANN, BOB, mail())
    manager.commit()
    print("committed", flush=True)


@needs_strace
def test_row_17_a_power_failure_after_the_commit_loses_nothing(tmp_path: Path) -> None:
    """Nothing was synced at all; here even the queue's own folders are."""
    below = tmp_path / "below"
    below.mkdir()
    calls = trace(_send_and_commit, str(below / "queue"), below=below, scratch=tmp_path)
    name = os.listdir(below / "queue" / "new")[0]
    prepared = f"queue/tmp/{name}:prepared={name}"
    made = calls.index("fsync .")
    assert calls[made - 1].endswith(" queue"), "the folder is not named before"
    assert calls[made - 2].startswith("fsync .maildir-"), "or it was not complete"
    assert calls[made + 1 :] == [
        f"write queue/tmp/{name}",
        f"fsync queue/tmp/{name}",
        f"rename queue/tmp/{name} {prepared}",
        "fsync queue/tmp",
        f"rename {prepared} queue/new/{name}",
        "fsync queue/new",
        "print committed",
    ]


# Row 18


@pytest.mark.parametrize("folder", ["", "tmp", "new"])
def test_row_18_a_queue_that_vanishes_aborts_the_transaction(
    queue: Path, manager: Any, delivery: Any, folder: str
) -> None:
    """The commit succeeded, and the mail stayed in ``tmp`` for ever."""
    partner = Partner(BEFORE)
    manager.get().join(partner)
    delivery.send(ANN, BOB, mail())
    (queue / folder).rename(queue.parent / "elsewhere")
    with pytest.raises(QueueError, match=str(queue)):
        manager.commit()
    manager.abort()
    assert "tpc_finish" not in partner.calls
    assert files(queue) == []


def test_row_18_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """The same, with a disk that is full."""
    with full_disk(tmp_path) as disk:
        manager = TransactionManager(explicit=True)
        manager.begin()
        queue = disk / "queue"
        delivery = QueuedMailDelivery(str(queue), transaction_manager=manager)
        delivery.send(ANN, BOB, mail("small@example.org"))
        with pytest.raises(QueueError, match=str(queue)):
            delivery.send(ANN, BOB, mail("large@example.org", "x" * 100_000))
        manager.abort()
        assert files(queue) == []


# Row 19


def test_row_19_a_refusal_of_direct_mail_is_an_event_after_a_commit_that_stands(
    manager: Any, relay: ScriptedRelay, caplog: pytest.LogCaptureFixture
) -> None:
    """It was swallowed, or came out of ``tpc_finish`` as an exception."""
    relay.reply("RCPT", "550 5.1.1 No such user", address=EVE)
    hearing = Hearing()
    mailer = SMTPMailer("127.0.0.1", relay.port, notify=hearing)
    partners = [Partner(BEFORE), Partner(AFTER)]
    for partner in partners:
        manager.get().join(partner)
    delivery = DirectMailDelivery(mailer, transaction_manager=manager)
    delivery.send(ANN, [EVE, BOB], mail("1@example.org"))
    manager.commit()
    mailer.close()
    assert all("tpc_finish" in partner.calls for partner in partners)
    assert all("tpc_abort" not in partner.calls for partner in partners)
    told = {event.recipients: event for event in hearing}
    assert type(told[EVE,]) is MailRejectedEvent
    assert told[EVE,].reply.code == 550
    assert type(told[BOB,]) is MailSentEvent
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    logged = record.getMessage()
    assert all(word in logged for word in ("1@example.org", EVE, "550", "No such user"))


# Row 20


@pytest.mark.parametrize("sort_key", [BEFORE, AFTER])
@pytest.mark.parametrize("stage", [s for s in STAGES if s != "tpc_finish"])
def test_row_20_another_resource_that_fails_leaves_no_file(
    queue: Path, manager: Any, delivery: Any, stage: str, sort_key: str
) -> None:
    """The file stayed in ``tmp`` when another resource failed after our vote."""
    manager.get().join(failing(stage, sort_key))
    delivery.send(ANN, BOB, mail())
    with pytest.raises(PartnerFailed):
        manager.commit()
    assert files(queue) == []
    manager.abort()
    assert files(queue) == []


# Row 24


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_row_24_the_umask_opens_no_file_to_others(
    queue: Path, manager: Any, delivery: Any, umask: int
) -> None:
    """Queue files were readable by everybody, as umask 022 has it."""
    before = os.umask(umask)
    try:
        delivery.send(ANN, BOB, mail())
        staged = [queue / name for name in files(queue)]
        staged_modes = [stat.S_IMODE(path.stat().st_mode) for path in staged]
        manager.commit()
    finally:
        os.umask(before)
    found = [queue, *queue.rglob("*")]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir()}
    assert modes == {0o700}
    [path] = (queue / "new").iterdir()
    assert [*staged_modes, stat.S_IMODE(path.stat().st_mode)] == [0o600, 0o600]


# Row 25


@pytest.mark.parametrize("toaddrs", [BOB, BOB.encode(), f"Bob <{BOB}>"])
def test_row_25_a_lone_address_is_never_its_letters(
    queue: Path, manager: Any, delivery: Any, toaddrs: str | bytes
) -> None:
    """The envelope was ``b, o, b, @, …``."""
    delivery.send(ANN, toaddrs, mail())
    manager.commit()
    [entry] = entries(queue)
    assert entry.recipients == (BOB,)


# Row 26


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_row_26_a_body_passes_the_queue_byte_for_byte(
    queue: Path, manager: Any, delivery: Any, relay: ScriptedRelay, encoding: str
) -> None:
    """The charset became us-ascii, and the text question marks."""
    declared = f"Content-Type: text/plain; charset={encoding}\r\n".encode()
    body = "Grüße aus Görlitz\r\n".encode(encoding)
    message = mail().replace(b"\r\n\r\n", b"\r\n" + declared + b"\r\n") + body
    delivery.send(ANN, BOB, message)
    manager.commit()
    flush(queue, relay)
    [received] = relay.messages
    assert received.data == message


# Row 27


def _send_a_thousand(queue: str) -> None:
    manager = TransactionManager(explicit=True)
    manager.begin()
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    delivery.send(ANN, BOB, mail("0@example.org"))
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 1 + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    for number in range(1, 1000):
        # As an application does that binds it to its request each time.
        bound = delivery.bind(manager)
        bound.send(ANN, BOB, mail(f"{number}@example.org"))
    manager.commit()


def test_row_27_a_thousand_messages_in_a_transaction_need_few_open_files(
    queue: Path,
) -> None:
    """Files stayed open until the commit, and the process ran out of them."""
    children.call(_send_a_thousand, str(queue))
    wanted = {f"{number}@example.org" for number in range(1000)}
    assert set(accepted(queue)) == wanted
    assert len(files(queue)) == 1000


# Row 28


@pytest.mark.parametrize("voted", [False, True])
def test_row_28_an_abort_after_many_sends_leaves_no_file(
    queue: Path, manager: Any, delivery: Any, voted: bool
) -> None:
    """Whether it comes before the vote or after it."""
    for number in range(200):
        delivery.send(ANN, BOB, mail(f"{number}@example.org"))
    assert len(files(queue)) == 200
    if voted:
        manager.get().join(failing("tpc_vote", AFTER))
        with pytest.raises(PartnerFailed):
            manager.commit()
    manager.abort()
    assert files(queue) == []


# Row 29


def test_row_29_a_savepoint_rolled_back_drops_exactly_what_came_after(
    queue: Path, manager: Any, delivery: Any
) -> None:
    """This one worked; it still does, and exactly."""
    first = manager.savepoint()
    delivery.send(ANN, BOB, mail("dropped@example.org"))
    first.rollback()
    delivery.send(ANN, BOB, mail("1@example.org"))
    second = manager.savepoint()
    for _ in range(2):
        delivery.send(ANN, BOB, mail("dropped@example.org"))
        second.rollback()
    assert len(files(queue)) == 1
    delivery.send(ANN, BOB, mail("2@example.org"))
    manager.commit()
    assert accepted(queue) == ["1@example.org", "2@example.org"]
    assert len(files(queue)) == 2
