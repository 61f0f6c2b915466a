"""Mail that waits, expires or goes last, from `send` to the relay."""
from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import transaction
import zope.event

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._drain.schedule import Schedule
from postcommit._maildir import gate
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.store import Store
from postcommit.errors import OptionError
from postcommit.interfaces import IMailRejectedEvent
from postcommit.interfaces import Tally
from postcommit.testing import FakeClock
from postcommit.testing import RecordingMailer
from tests.support.service import eventually
from tests.support.transactions import files
from tests.support.transactions import mail


ANN, BOB = "ann@example.org", "bob@example.org"
HOUR = timedelta(hours=1)
SCHEDULE = Schedule(60.0, 4000.0, 5 * 86400.0)


class Post:
    """A delivery, a processor whose clock a test moves, and what arrived."""

    def __init__(self, queue: Path) -> None:
        self.queue = queue
        self.clock = FakeClock()
        self.mailer = RecordingMailer()
        self.delivery = QueuedMailDelivery(str(queue))
        self._count = 0

    def send(self, to: Any = ANN, **terms: Any) -> str:
        self._count += 1
        message_id = f"{self._count}@x.org"
        with transaction.manager:
            self.delivery.send("shop@example.org", to, mail(message_id), **terms)
        return message_id

    def processor(self, **options: Any) -> QueueProcessor:
        options = {"pollingInterval": 600_000, "clock": self.clock, **options}
        return QueueProcessor(str(self.queue), self.mailer, **options)

    def flush(self, **options: Any) -> Tally:
        return self.processor(**options).flush()

    @property
    def arrived(self) -> list[str]:
        return [each.message_id for each in self.mailer.outbox]

    def names(self, folder: str) -> list[str]:
        path = self.queue / folder
        return sorted(os.listdir(path)) if path.exists() else []


@pytest.fixture
def post(tmp_path: Path) -> Post:
    return Post(tmp_path / "queue")


@pytest.fixture
def events(post: Post) -> Iterator[list[Any]]:
    heard: list[Any] = []
    zope.event.subscribers.append(heard.append)
    yield heard
    zope.event.subscribers.remove(heard.append)


# Not before


def test_a_scheduled_mail_waits_for_its_time(post: Post) -> None:
    post.send(not_before=HOUR)
    assert post.flush() == Tally()
    post.clock.advance(3590)
    assert post.flush() == Tally()
    post.clock.advance(100)
    assert post.flush() == Tally(1, 0, 0, 0)
    assert files(post.queue) == []


def test_a_mail_whose_time_is_over_is_an_ordinary_one(post: Post) -> None:
    post.send(not_before=datetime(2020, 1, 1, tzinfo=UTC))
    [name] = post.names("new")
    assert ",L=" not in name
    assert b"X-Zope-Not-Before" not in (post.queue / "new" / name).read_bytes()


def test_an_entry_without_terms_is_what_it_was(post: Post) -> None:
    post.send(expires=None, not_before=None, bulk=False)
    [name] = post.names("new")
    expected = b"X-Zope-From: shop@example.org\nX-Zope-To: ann@example.org\n"
    assert (post.queue / "new" / name).read_bytes() == expected + mail("1@x.org")
    assert post.names("") == ["cur", "new", "tmp"]


def test_the_file_and_the_name_say_when_a_mail_is_due(post: Post) -> None:
    post.send(not_before=2e9 + 0.25, expires=2e9 + 900)
    [name] = post.names(".Later/new")
    assert name.startswith("2000000000.M250000P")
    data = (post.queue / ".Later/new" / name).read_bytes()
    lines = data.splitlines()[2:6]
    assert lines == [
        b"X-Zope-Attempts: 0",
        b"X-Zope-Reply: ",
        b"X-Zope-Expires: 2000000900.000000",
        b"X-Zope-Not-Before: 2000000000.250000",
    ]
    entry = parse_entry(data)
    assert (entry.not_before, entry.expires) == (2000000000.25, 2000000900)
    assert entry.message == mail("1@x.org")


def test_a_mail_whose_time_somebody_has_spoilt_is_a_dead_letter(post: Post) -> None:
    post.send(expires=HOUR)
    [name] = post.names("new")
    path = post.queue / "new" / name
    path.write_bytes(path.read_bytes().replace(b"Expires: ", b"Expires: soon "))
    assert post.flush() == Tally()
    assert post.names("new") == []
    [dead] = post.names(".Failed/new")
    reason = (post.queue / ".Failed/new" / dead).read_bytes().splitlines()[0]
    assert reason.startswith(b"X-Zope-Unreadable: X-Zope-Expires: soon ")
    assert post.arrived == []


def test_scheduled_mails_go_in_the_order_of_their_times(post: Post) -> None:
    names = [post.send(not_before=n * HOUR) for n in (3, 1, 2, 4)]
    post.clock.advance(4.5 * 3600)
    assert post.flush(workers=1).sent == 4
    assert post.arrived == [names[n] for n in (1, 2, 0, 3)]


def test_the_age_of_a_scheduled_mail_begins_when_it_is_due(post: Post) -> None:
    """Otherwise it would be given up at its second attempt."""
    post.mailer.refuse(ANN, "450 4.2.0 Later")
    post.send(not_before=24 * 9 * HOUR)
    post.clock.advance(9 * 86400 + 100)
    for _ in range(3):
        assert post.flush() == Tally(0, 1, 0, 0)
        [name] = post.names("cur")
        post.clock.now = (post.queue / "cur" / name).stat().st_mtime + 1
    assert post.names(".Failed/new") == []


def test_a_running_processor_wakes_when_a_mail_is_due(post: Post) -> None:
    processor = post.processor(clock=time.time)
    processor.start()
    try:
        began = time.time()
        post.send(not_before=timedelta(seconds=0.6))
        eventually(lambda: bool(post.arrived))
        assert time.time() - began >= 0.6
    finally:
        processor.stop()


def test_the_clock_is_put_back_and_forward(post: Post) -> None:
    post.send(not_before=HOUR)
    post.clock.now -= 86400
    assert post.flush() == Tally()
    post.clock.now += 3 * 86400
    assert post.flush().sent == 1


def test_a_name_without_a_time_is_sent_at_once(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    post.send(not_before=HOUR)
    [name] = post.names(".Later/new")
    for other in ("letter", "20301231.txt", "17954352001"):
        data = (post.queue / ".Later/new" / name).read_bytes()
        (post.queue / ".Later/new" / other).write_bytes(data)
    assert post.flush().sent == 3
    assert caplog.text.count("its name does not begin with a time") == 3
    assert post.names(".Later/new") == [name]


def test_a_name_that_is_taken_in_the_queue_loses_nothing(post: Post) -> None:
    post.send(not_before=HOUR)
    [name] = post.names(".Later/new")
    data = (post.queue / ".Later/new" / name).read_bytes()
    (post.queue / "new" / name).write_bytes(data)
    post.clock.advance(3700)
    lock = Store(str(post.queue)).claim(str(post.queue / "new" / name))
    assert lock is not None
    assert post.flush().sent == 1
    lock.release()
    assert post.flush().sent == 1


@pytest.mark.parametrize("room", [".Later", ".Bulk"])
def test_a_room_that_is_gone_is_logged_once_and_all_else_goes_on(
    post: Post, room: str, caplog: pytest.LogCaptureFixture
) -> None:
    post.send(not_before=HOUR)
    post.send(bulk=True)
    consumer = Store(str(post.queue)).consumer(SCHEDULE)
    while consumer.let_in():
        pass
    (post.queue / room).rename(post.queue / "elsewhere")
    for _ in range(3):
        assert not consumer.let_in()
    assert caplog.text.count("what waits there is not sent") == 1
    (post.queue / "elsewhere").rename(post.queue / room)
    consumer.let_in()
    (post.queue / room).rename(post.queue / "elsewhere")
    consumer.let_in()
    assert caplog.text.count("what waits there is not sent") == 2
    consumer.close()
    caplog.clear()
    post.send()
    assert post.flush().sent >= 1


def test_what_cannot_be_let_in_is_let_in_when_that_is_over(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    names = [post.send(not_before=n * HOUR) for n in (1, 2)]
    post.clock.advance(3 * 3600)
    consumer = Store(str(post.queue)).consumer(SCHEDULE, post.clock)
    (post.queue / "new").rename(post.queue / "away")
    assert not consumer.let_in()
    assert "what waits there is not sent" in caplog.text
    (post.queue / "away").rename(post.queue / "new")
    eventually(consumer.let_in)
    consumer.close()
    assert post.flush().sent == 2
    assert sorted(post.arrived) == sorted(names)


# Bulk


def test_bulk_mail_comes_after_all_other_mail(post: Post) -> None:
    bulk = [post.send(bulk=True) for _ in range(5)]
    later = post.send(not_before=HOUR)
    new = [post.send() for _ in range(3)]
    assert len(post.names(".Bulk/new")) == 5
    post.clock.advance(3700)
    assert post.flush(workers=1).sent == 9
    assert post.arrived == [*new, later, *bulk]


def test_new_mail_overtakes_bulk_mail(post: Post) -> None:
    for _ in range(300):
        post.send(bulk=True)
    processor = post.processor(workers=1)
    others: list[int] = []

    def arrive(event: Any) -> None:
        if len(post.arrived) == 60:
            post.send(BOB)
        elif post.mailer.outbox[-1].recipients == (BOB,):
            others.append(len(post.arrived))

    zope.event.subscribers.append(arrive)
    try:
        assert processor.flush().sent == 301
    finally:
        zope.event.subscribers.remove(arrive)
    assert others
    assert others[0] - 61 <= gate._MOST


def test_bulk_mail_may_be_scheduled(post: Post) -> None:
    post.send(bulk=True, not_before=HOUR)
    new = post.send()
    assert post.names(".Bulk/new") == []
    post.clock.advance(3700)
    other = post.send(bulk=True)
    assert post.flush(workers=1).sent == 3
    assert post.arrived[0] == new
    assert set(post.arrived[1:]) == {"1@x.org", other}


def test_all_of_many_are_sent_once_by_two_processors(post: Post) -> None:
    sent = {post.send(bulk=n % 2 == 0, not_before=HOUR) for n in range(100)}
    sent |= {post.send(bulk=True) for n in range(100)}
    post.clock.advance(3700)
    processors = [post.processor() for _ in range(2)]
    threads = [threading.Thread(target=p.flush) for p in processors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    post.flush()
    assert len(post.arrived) == 200
    assert set(post.arrived) == sent
    assert files(post.queue) == []


# Expires


EXPIRED = "4.4.7 it expired before it was sent"


def test_a_mail_that_has_expired_becomes_a_dead_letter(
    post: Post, events: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    name = post.send([ANN, BOB], expires=timedelta(minutes=15))
    post.clock.advance(1000)
    caplog.set_level(logging.INFO)
    assert post.flush() == Tally(0, 0, 2, 0)
    assert post.arrived == []
    [dead] = post.names(".Failed/new")
    entry = parse_entry((post.queue / ".Failed/new" / dead).read_bytes())
    assert (entry.last_reply, entry.attempts) == (EXPIRED, 0)
    assert entry.recipients == (ANN, BOB)
    [event] = events
    assert IMailRejectedEvent.providedBy(event)
    assert event.messageId == name
    assert event.recipients == (ANN, BOB)
    assert event.errorMessage == EXPIRED
    assert event.reply is None  # the relay was not asked
    assert EXPIRED in caplog.text


def test_a_mail_is_sent_until_it_expires(post: Post) -> None:
    post.send(expires=timedelta(minutes=15))
    post.clock.advance(899)
    assert post.flush() == Tally(1, 0, 0, 0)


def test_a_mail_expires_if_the_next_attempt_would_come_too_late(
    post: Post, events: list[Any]
) -> None:
    post.mailer.refuse(ANN, "450 4.2.0 Greylisted")
    post.mailer.refuse(BOB, "550 5.1.1 No such user")
    post.send([ANN, BOB, "eve@x.org"], expires=timedelta(seconds=50))
    assert post.flush() == Tally(1, 0, 2, 0)
    assert post.names("cur") == []
    replies = {e.recipients: getattr(e, "errorMessage", "") for e in events}
    assert replies[(ANN,)].startswith(EXPIRED)
    assert "450 4.2.0 Greylisted" in replies[(ANN,)]
    assert replies[(BOB,)] == "550 5.1.1 No such user"


def test_a_deferred_mail_keeps_its_time(post: Post) -> None:
    post.mailer.refuse(ANN, "450 4.2.0 Greylisted", times=1)
    post.send(expires=timedelta(minutes=15))
    assert post.flush() == Tally(0, 1, 0, 0)
    [name] = post.names("cur")
    assert parse_entry((post.queue / "cur" / name).read_bytes()).expires is not None
    post.clock.advance(1000)
    assert post.flush() == Tally(0, 0, 1, 0)


@pytest.mark.parametrize("terms", [{"not_before": HOUR}, {"bulk": True}])
def test_a_mail_in_a_room_expires_when_its_turn_comes(
    post: Post, terms: dict[str, Any]
) -> None:
    post.send(expires=2 * HOUR, **terms)
    post.clock.advance(7300)
    assert post.flush() == Tally(0, 0, 1, 0)
    assert post.arrived == []


def test_an_expired_mail_does_not_stop_the_others(post: Post) -> None:
    for n in range(20):
        post.send(**({"expires": HOUR} if n % 2 else {}))
    post.clock.advance(3700)
    assert post.flush() == Tally(10, 0, 10, 0)


def test_a_dead_letter_that_cannot_be_written_is_kept(post: Post) -> None:
    post.send(expires=HOUR)
    post.clock.advance(3700)
    (post.queue / ".Failed").write_text("a file")
    assert post.flush() == Tally()
    assert len(post.names("new")) + len(post.names("cur")) == 1
    (post.queue / ".Failed").unlink()
    for name in post.names("cur"):
        os.utime(post.queue / "cur" / name, (0, 0))
    assert post.flush() == Tally(0, 0, 1, 0)


# Refused, and nothing is written


@pytest.mark.parametrize(
    "terms",
    [
        {"not_before": datetime(2030, 1, 1)},
        {"expires": timedelta(0)},
        {"expires": HOUR, "not_before": 2 * HOUR},
        {"not_before": time.time() * 1000},
        {"bulk": 1},
        {"bulk": None},
    ],
)
def test_terms_that_can_never_work_are_refused(
    post: Post, terms: dict[str, Any]
) -> None:
    with pytest.raises(OptionError):
        post.send(**terms)
    assert not post.queue.exists()


def test_a_room_that_is_a_link_is_refused(post: Post, tmp_path: Path) -> None:
    post.send()
    (tmp_path / "other").mkdir()
    (post.queue / ".Later").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match=r"\.Later is a symbolic link"):
        post.send(not_before=HOUR)
    assert os.listdir(tmp_path / "other") == []
