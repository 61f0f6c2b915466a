"""How older libraries lose mail, and that this one does not.

One row for each situation in which zope.sendmail or repoze.sendmail was seen to
lose mail, to send it twice, or to let it leak. The tests are in the order of
the rows; what a row is about stands in the test's docstring.
"""
from __future__ import annotations

import logging
import os
import re
import resource
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transaction import TransactionManager
from zope.component import getUtility
from zope.component.testing import PlacelessSetup
from zope.configuration import xmlconfig

from postcommit import DirectMailDelivery
from postcommit import MailDeferredEvent
from postcommit import MailRejectedEvent
from postcommit import MailSentEvent
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit._maildir.entry import parse_entry
from postcommit.errors import AddressError
from postcommit.errors import QueueError
from postcommit.interfaces import IMailer
from postcommit.interfaces import Tally
from tests.support import children
from tests.support.certificates import Authority
from tests.support.faults import full_disk
from tests.support.smtpd import LENIENT_END
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


class Later:
    """A clock that is ahead, to make what was deferred due."""

    def __init__(self) -> None:
        self.hours = 0.0

    def __call__(self) -> float:
        return time.time() + 3600 * self.hours


@pytest.fixture
def heard() -> list[Any]:
    return []


@pytest.fixture
def clock() -> Later:
    return Later()


@pytest.fixture
def drain(
    queue: Path, relay: ScriptedRelay, heard: list[Any], clock: Later
) -> Iterator[Callable[[], Tally]]:
    """A pass of a processor, hours after the one before; all are checked."""
    mailer = SMTPMailer("127.0.0.1", relay.port, notify=heard.append)

    def drain() -> Tally:
        processor = QueueProcessor(str(queue), mailer, workers=1, clock=clock)
        clock.hours += 2
        return processor.flush()

    yield drain
    mailer.close()
    assert relay.violations == []


@pytest.fixture
def send(
    delivery: QueuedMailDelivery, manager: TransactionManager
) -> Callable[..., str]:
    """Send in a transaction of its own, and commit."""

    def send(*recipients: str, message: bytes = b"Subject: x\r\n\r\nx\r\n") -> str:
        message_id = delivery.send("shop@example.org", recipients, message)
        manager.commit()
        manager.begin()
        return message_id

    return send


Drain = Callable[[], Tally]
Send = Callable[..., str]


def told(heard: list[Any]) -> list[tuple[type, tuple[str, ...]]]:
    return [(type(event), event.recipients) for event in heard]


def left(queue: Path) -> dict[str, tuple[int, int]]:
    """Return what identifies the files that wait, and tells of any touch."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for folder in ("new", "cur")
        for path in (queue / folder).iterdir()
    }


def test_row_01_a_recipient_deferred_among_others_is_tried_again_alone(
    relay: ScriptedRelay, drain: Drain, send: Send
) -> None:
    relay.reply("RCPT", "450 4.2.0 Greylisted", address=BOB, times=1)
    send(ANN, BOB)
    assert drain() == Tally(1, 1, 0)
    assert drain() == Tally(1, 0, 0)
    assert [m.recipients for m in relay.messages] == [(ANN,), (BOB,)]


def test_row_02_a_recipient_rejected_among_others_is_told_and_kept(
    relay: ScriptedRelay, drain: Drain, send: Send, queue: Path, heard: list[Any]
) -> None:
    relay.reply("RCPT", "550 5.1.1 No such user", address=BOB)
    send(ANN, BOB)
    assert drain() == Tally(1, 0, 1)
    assert told(heard) == [(MailSentEvent, (ANN,)), (MailRejectedEvent, (BOB,))]
    [dead] = (queue / ".Failed" / "new").iterdir()
    assert parse_entry(dead.read_bytes()).recipients == (BOB,)


def test_row_03_greylisting_of_the_only_recipient_is_not_final(
    relay: ScriptedRelay, drain: Drain, send: Send, queue: Path
) -> None:
    relay.reply("RCPT", "450 4.2.0 Greylisted", times=1)
    send(ANN)
    assert drain() == Tally(0, 1, 0)
    assert not (queue / ".Failed").exists()
    assert drain() == Tally(1, 0, 0)


def test_row_04_an_expired_password_touches_no_message(
    queue: Path, send: Send, heard: list[Any]
) -> None:
    for _ in range(5):
        send(ANN)
    before = left(queue)
    with ScriptedRelay(users={"shop": "new"}) as relay:
        for password in ("old", "new"):
            mailer = SMTPMailer(
                "127.0.0.1", relay.port, "shop", password, notify=heard.append
            )
            tally = QueueProcessor(str(queue), mailer).flush()
            mailer.close()
            if password == "old":
                assert tally == Tally(0, 0, 0)
                assert left(queue) == before
                assert heard == []
    assert tally == Tally(5, 0, 0)


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("CONNECT", "554 5.3.2 No service"),
        ("EHLO", "554 5.3.2 No service"),
        ("CONNECT", "421 4.3.2 Going down"),
        ("EHLO", "421 4.3.2 Going down"),
        ("MAIL", "421 4.3.2 Going down"),
        ("RCPT", "421 4.3.2 Going down"),
        ("DATA", "421 4.3.2 Going down"),
        ("END", "421 4.3.2 Going down"),
    ],
)
def test_row_05_a_relay_that_refuses_to_work_touches_no_message(
    relay: ScriptedRelay, drain: Drain, send: Send, queue: Path, stage: str, reply: str
) -> None:
    relay.reply(stage, reply, times=1)
    send(ANN)
    before = left(queue)
    assert drain() == Tally(0, 0, 0)
    assert left(queue) == before
    assert drain() == Tally(1, 0, 0)


@pytest.mark.parametrize("stage", ["MAIL", "DATA", "END"])
def test_row_06_what_fails_for_now_is_tried_by_the_schedule_and_given_up_at_last(
    relay: ScriptedRelay,
    drain: Drain,
    send: Send,
    queue: Path,
    heard: list[Any],
    clock: Later,
    stage: str,
) -> None:
    relay.reply(stage, "451 4.3.0 Local error")
    send(ANN)
    for _ in range(3):
        assert drain() == Tally(0, 1, 0)
    assert {kind for kind, _ in told(heard)} == {MailDeferredEvent}
    clock.hours += 5 * 24
    assert drain() == Tally(0, 0, 1)
    assert told(heard)[-1] == (MailRejectedEvent, (ANN,))
    assert left(queue) == {}
    assert len(list((queue / ".Failed" / "new").iterdir())) == 1


def test_row_07_a_connection_lost_after_the_final_reply_changes_nothing(
    relay: ScriptedRelay, drain: Drain, send: Send
) -> None:
    relay.drop("QUIT")
    relay.drop("END", after="250 2.0.0 Queued")
    send(ANN)
    assert drain() == Tally(1, 0, 0)
    assert drain() == Tally(0, 0, 0)
    assert len(relay.messages) == 1


def test_row_08_a_relay_may_take_its_time_for_the_final_reply(
    relay: ScriptedRelay, queue: Path, send: Send
) -> None:
    # RFC 5321, 4.5.3.2.6: ten minutes. To connect has its own, shorter one.
    mailer = SMTPMailer("127.0.0.1", relay.port, connect_timeout=0.5)
    assert mailer.relay.timeouts.end == 600
    hold = relay.hold("END")
    send(ANN)
    processor = QueueProcessor(str(queue), mailer, workers=1)
    processor.start()
    assert hold.reached.wait(20)
    threading.Event().wait(0.7)
    hold.release()
    relay.wait_until(lambda: relay.messages)
    assert processor.stop(20)
    mailer.close()
    assert left(queue) == {}
    assert len(relay.messages) == 1


def test_row_09_a_file_that_another_runner_removes_does_not_end_the_loop(
    relay: ScriptedRelay, queue: Path, send: Send
) -> None:
    for _ in range(150):
        send(ANN)
    mailer = SMTPMailer("127.0.0.1", relay.port)
    processors = [QueueProcessor(str(queue), mailer) for _ in range(3)]
    for processor in processors:
        processor.start()
    # Somebody tidies up by hand.
    for path in sorted((queue / "new").iterdir())[::7]:
        path.unlink(missing_ok=True)
    send(BOB)
    relay.wait_until(lambda: any(BOB in m.recipients for m in relay.messages))
    for processor in processors:
        assert processor.stop(20)
        processor.flush()
    mailer.close()
    assert left(queue) == {}
    assert len({m.data for m in relay.messages}) == len(relay.messages)


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


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_row_11_line_ends_are_crlf_on_the_wire(
    relay: ScriptedRelay, drain: Drain, send: Send, end: bytes
) -> None:
    send(ANN, message=end.join([b"Message-Id: <1@x.org>", b"Date: x", b"", b"a", b"b"]))
    drain()
    [message] = relay.messages
    assert message.data == b"Message-Id: <1@x.org>\r\nDate: x\r\n\r\na\r\nb\r\n"


@pytest.mark.parametrize(
    "trick", [b"\r.\r\n", b"\n.\r\n", b"\r\n.\r", b"\r\n.\n", b"\n.\n", b"\r\n.\r\n"]
)
def test_row_12_no_message_ends_its_own_data(
    queue: Path, send: Send, trick: bytes
) -> None:
    body = b"a" + trick + b"MAIL FROM:<eve@example.org>\r\n"
    message = b"Message-Id: <1@x.org>\r\nDate: x\r\n\r\n" + body
    # A relay that takes anything for the end of the data.
    with ScriptedRelay(end_of_data=LENIENT_END) as relay:
        send(ANN, message=message)
        mailer = SMTPMailer("127.0.0.1", relay.port)
        assert QueueProcessor(str(queue), mailer).flush() == Tally(1, 0, 0)
        mailer.close()
        [taken] = relay.messages
        assert taken.data.splitlines()[-2:] == [b".", b"MAIL FROM:<eve@example.org>"]


@pytest.mark.parametrize("offered", [True, False])
def test_row_13_a_local_part_that_is_not_ascii_is_sent_or_rejected_with_a_reason(
    queue: Path, send: Send, heard: list[Any], offered: bool
) -> None:
    send("jörg@example.org", ANN)
    with ScriptedRelay(without=() if offered else ("SMTPUTF8",)) as relay:
        mailer = SMTPMailer("127.0.0.1", relay.port, notify=heard.append)
        tally = QueueProcessor(str(queue), mailer).flush()
        mailer.close()
    if offered:
        assert tally == Tally(2, 0, 0)
        assert relay.messages[0].recipients == ("jörg@example.org", ANN)
    else:
        assert tally == Tally(1, 0, 1)
        [rejected] = [e for e in heard if isinstance(e, MailRejectedEvent)]
        assert "SMTPUTF8" in rejected.errorMessage
    assert left(queue) == {}


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"X-Zope-From: a@x.org\n"])
def test_row_14_a_damaged_file_is_a_dead_letter_and_the_queue_goes_on(
    relay: ScriptedRelay, drain: Drain, send: Send, queue: Path, damage: bytes
) -> None:
    send(ANN)
    (queue / "new" / "0.damaged").write_bytes(damage)
    assert drain() == Tally(1, 0, 0)
    assert left(queue) == {}
    [dead] = (queue / ".Failed" / "new").iterdir()
    assert dead.read_bytes().endswith(damage)
    assert drain() == Tally(0, 0, 0)
    assert [m.sender for m in relay.messages] == ["shop@example.org"]


def test_row_15_tls_is_as_the_zcml_file_has_it() -> None:
    """`implicit_tls` arrived in the place of `no_tls`, and TLS was off.

    ``tests/config/test_every_option.py`` walks every attribute of every directive.
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


def _send_and_commit(queue: str) -> None:
    manager = TransactionManager(explicit=True)
    manager.begin()
    QueuedMailDelivery(queue, transaction_manager=manager).send(ANN, BOB, mail())
    manager.commit()
    print("committed", flush=True)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_row_16_a_certificate_that_proves_nothing_gets_no_password(
    tmp_path: Path, tls: str
) -> None:
    authority = Authority(tmp_path)
    with ScriptedRelay(
        tls=authority.server(), implicit_tls=tls == "implicit", users={"shop": "secret"}
    ) as relay:
        mailer = SMTPMailer("127.0.0.1", relay.port, "shop", "secret", tls=tls)
        report = mailer.send("shop@example.org", ANN, "Subject: x\n\n")
        assert "cannot be trusted" in str(report.relay_failure)
        assert not [c for c in relay.commands if c.startswith("AUTH")]
        assert relay.messages == []
        # Unless we are told whom to trust.
        mailer = SMTPMailer(
            "127.0.0.1",
            relay.port,
            "shop",
            "secret",
            tls=tls,
            cafile=authority.cafile,
        )
        assert mailer.send("shop@example.org", ANN, "Subject: x\n\n").sent
        mailer.close()
        [message] = relay.messages
        assert (message.tls, message.user) == (True, "shop")


@needs_strace
def test_row_17_a_power_failure_after_the_commit_loses_nothing(tmp_path: Path) -> None:
    """Nothing was synced at all; here even the queue's own folders are."""
    below = tmp_path / "below"
    below.mkdir()
    calls = trace(_send_and_commit, str(below / "queue"), below=below, scratch=tmp_path)
    name = os.listdir(below / "queue" / "new")[0]
    made = calls.index("fsync .")
    assert calls[made - 1].endswith(" queue"), "the folder is not named before"
    assert calls[made - 2].startswith("fsync .maildir-"), "or it was not complete"
    # It is complete before it has a name.
    nameless = calls[-5].removeprefix("write ")
    assert nameless.startswith("queue/tmp/#")
    tried = r"linkat \S+#\d+ (queue/tmp/\S+);unlink \1"
    assert re.fullmatch(tried, ";".join(calls[made + 1 : -5]))
    assert calls[-5:] == [
        f"write {nameless}",
        f"fsync {nameless}",
        f"linkat {nameless} queue/new/{name}",
        "fsync queue/new",
        "print committed",
    ]


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


def test_row_21_a_dead_letter_is_never_sent_by_itself(
    relay: ScriptedRelay, drain: Drain, send: Send
) -> None:
    relay.reply("RCPT", "550 5.1.1 No such user", times=1)
    send(ANN)
    assert drain() == Tally(0, 0, 1)
    for _ in range(3):
        assert drain() == Tally(0, 0, 0)
    assert relay.messages == []


def test_row_22_three_temporary_failures_and_a_success_are_one_mail(
    relay: ScriptedRelay, drain: Drain, send: Send
) -> None:
    relay.reply("END", "451 4.3.0 Local error", times=3)
    send(ANN)
    assert [drain() for _ in range(4)] == 3 * [Tally(0, 1, 0)] + [Tally(1, 0, 0)]
    assert drain() == Tally(0, 0, 0)
    assert len(relay.messages) == 1


def test_row_23_two_runners_at_once_send_one_copy(
    relay: ScriptedRelay, queue: Path, send: Send
) -> None:
    hold = relay.hold("END")
    send(ANN)
    mailer = SMTPMailer("127.0.0.1", relay.port)
    first = QueueProcessor(str(queue), mailer)
    first.start()
    assert hold.reached.wait(20)
    assert QueueProcessor(str(queue), mailer).flush() == Tally(0, 0, 0)
    hold.release()
    relay.wait_until(lambda: relay.messages)
    assert first.stop(20)
    mailer.close()
    assert QueueProcessor(str(queue), mailer).flush() == Tally(0, 0, 0)
    assert len(relay.messages) == 1


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_row_24_the_umask_opens_no_file_to_others(
    queue: Path, manager: Any, delivery: Any, umask: int
) -> None:
    """Queue files were readable by everybody, as umask 022 has it."""
    before = os.umask(umask)
    try:
        for _ in range(2):
            delivery.send(ANN, BOB, mail())
        staged = [queue / name for name in files(queue)]
        staged_modes = [stat.S_IMODE(path.stat().st_mode) for path in staged]
        manager.commit()
    finally:
        os.umask(before)
    found = [queue, *queue.rglob("*")]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir()}
    assert modes == {0o700}
    assert staged_modes == [0o600]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (queue / "new").iterdir()}
    assert modes == {0o600}


@pytest.mark.parametrize("toaddrs", [BOB, BOB.encode(), f"Bob <{BOB}>"])
def test_row_25_a_lone_address_is_never_its_letters(
    queue: Path, manager: Any, delivery: Any, toaddrs: str | bytes
) -> None:
    """The envelope was ``b, o, b, @, …``."""
    delivery.send(ANN, toaddrs, mail())
    manager.commit()
    [entry] = entries(queue)
    assert entry.recipients == (BOB,)


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


@pytest.mark.parametrize("voted", [False, True])
def test_row_28_an_abort_after_many_sends_leaves_no_file(
    queue: Path, manager: Any, delivery: Any, voted: bool
) -> None:
    """Whether it comes before the vote or after it."""
    for number in range(200):
        delivery.send(ANN, BOB, mail(f"{number}@example.org"))
    assert len(files(queue)) == 199, "all but the first, which has no name yet"
    if voted:
        manager.get().join(failing("tpc_vote", AFTER))
        with pytest.raises(PartnerFailed):
            manager.commit()
    manager.abort()
    assert files(queue) == []


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
    assert files(queue) == []
    delivery.send(ANN, BOB, mail("2@example.org"))
    manager.commit()
    assert accepted(queue) == ["1@example.org", "2@example.org"]
    assert len(files(queue)) == 2


DRAINER = """
import sys
from postcommit import QueueProcessor, SMTPMailer
QueueProcessor(sys.argv[1], SMTPMailer("127.0.0.1", int(sys.argv[2]))).flush()
"""


def test_row_30_what_a_killed_processor_was_sending_is_sent_in_the_next_pass(
    relay: ScriptedRelay, drain: Drain, send: Send, queue: Path
) -> None:
    hold = relay.hold("DATA")
    send(ANN)
    command = [sys.executable, "-c", DRAINER, str(queue), str(relay.port)]
    with subprocess.Popen(command) as process:
        assert hold.reached.wait(30)
        process.kill()
    hold.release()
    assert drain() == Tally(1, 0, 0)
    assert len(relay.messages) == 1
