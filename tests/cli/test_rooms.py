"""Commands for mail that is scheduled, bulk or held, and the pause by hand."""
from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from transaction import TransactionManager

from postcommit import QueuedMailDelivery
from postcommit._cli import mending
from postcommit._cli.main import main
from postcommit._drain.schedule import Schedule
from postcommit._maildir.files import FileLock
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Item
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.presence import STOPPED
from postcommit._maildir.presence import Wakeup
from postcommit._maildir.presence import ring
from postcommit._maildir.store import Store
from postcommit._processor import QueueProcessor
from postcommit._queue.selection import Selection
from postcommit.errors import EntryError
from postcommit.errors import QueueError
from postcommit.interfaces import Tally
from postcommit.testing import FakeClock
from postcommit.testing import RecordingMailer
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import fill
from tests.support.queues import fill_rooms
from tests.support.queues import hold
from tests.support.queues import leave_in_doubt
from tests.support.queues import schedule
from tests.support.queues import wait
from tests.support.queues import wait_behind
from tests.support.queues import write
from tests.support.service import eventually
from tests.support.smtpd import ScriptedRelay


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


def only(store: Store, state: EntryState) -> Item:
    [item] = MaildirOperators(store.path).items([state])
    return item


def states(store: Store) -> list[str]:
    items = MaildirOperators(store.path).items(EntryState)
    return sorted(item.state.key for item in items)


def objects(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def flush(store: Store) -> Tally:
    return QueueProcessor(store.path, RecordingMailer()).flush()


# list, show, status


def test_list_has_what_waits_in_a_room(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_rooms(store)
    bury(store)
    assert main(["list", store.path]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    nexts = [row[title.index("NEXT") - 2 :].split()[0] for row in rows]
    assert sorted(nexts) == ["59m59s", "bulk", "held"] or "1h" in nexts
    for state in (EntryState.SCHEDULED, EntryState.BULK, EntryState.HELD):
        assert main(["list", store.path, f"--{state.key}", "--json"]) == 0
        [told] = objects(capsys.readouterr().out)
        assert (told["id"], told["state"]) == (only(store, state).id, state.key)
        assert told["message_id"] == "1@x.org"


def test_times_are_shown(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    schedule(store, 7200)
    item = only(store, EntryState.SCHEDULED)
    assert main(["list", store.path, "--json"]) == 0
    [told] = objects(capsys.readouterr().out)
    assert told["accepted"] < told["due"] < told["expires"]
    assert main(["show", store.path, item.id]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^due +20.* UTC.*, in (2h|1h59m)", shown, re.MULTILINE)
    assert re.search(r"^expires +20.* UTC", shown, re.MULTILINE)
    assert re.search(r"^accepted .* 0s ago$", shown, re.MULTILINE)
    assert "state       scheduled; 'postcommit retry' sends it now" in shown


def test_the_age_of_scheduled_mail_begins_when_it_was_sent(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options mean the column AGE, and never the time for which the mail waits."""
    five_days, two_hours = (time.time() - seconds for seconds in (432000, 7200))
    names = [schedule(store, due) for due in (90000.0, 90000.0, -60.0, 90000.0)]
    folder = Path(store.path, ".Later/new")
    for name, sent in zip(names, (five_days, two_hours) * 2, strict=True):
        os.utime(folder / name, (sent, sent))
    hold(store, names[1])
    # Another program may have written a file with a name that says no time.
    unnamed = write(store, "new/web.1.x")
    os.utime(unnamed, (five_days, five_days))

    def listed(*words: str) -> tuple[int, set[str]]:
        assert main(["list", store.path, *words]) == 0
        rows = capsys.readouterr().out.splitlines()[1:]
        return len(rows), {row.split()[1] for row in rows}

    assert listed("--older", "1d") == (3, {"5d"})
    assert listed("--scheduled", "--older", "1d") == (2, {"5d"})
    assert listed("--newer", "1d") == (2, {"2h"})
    assert listed("--held", "--newer", "1d") == (1, {"2h"})
    assert listed("--older", "1d", "--newer", "5d") == (0, set())
    assert listed("--older", "1d", "--to", "a@x.org") == (3, {"5d"})


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (["retry"], ["scheduled", "waiting"]),
        (["hold"], ["held", "scheduled"]),
        (["delete", "--yes"], ["scheduled"]),
    ],
)
def test_scheduled_mail_is_changed_by_its_age(
    store: Store, command: list[str], left: list[str]
) -> None:
    old = Path(store.path, ".Later/new", schedule(store, 86400.0))
    os.utime(old, (time.time() - 7200,) * 2)
    young = schedule(store, 60.0)
    age = ("--scheduled", "--older", "1h")
    assert main([*command, store.path, "ALL", *age]) == 0
    assert states(store) == left
    assert only(store, EntryState.SCHEDULED).name == young


def test_an_entry_that_is_sent_during_a_search_has_no_age(store: Store) -> None:
    schedule(store)
    queue = MaildirOperators(store.path)
    wanted = Selection((EntryState.SCHEDULED,), newer=60.0)
    gone = Path(only(store, EntryState.SCHEDULED).place)
    assert list(wanted.items(queue, step=gone.unlink)) == []


def test_a_message_id_finds_an_entry_in_every_state(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    fill_rooms(store)
    assert main(["show", store.path, "1@x.org", "--json"]) == 0
    told = objects(capsys.readouterr().out)
    assert [each["state"] for each in told] == [state.key for state in EntryState]
    for state in EntryState:
        option = f"--{state.key.replace('_', '-')}"
        words = ["list", store.path, "--message-id", "<1@x.org>", "--json", option]
        assert main(words) == 0
        [told] = objects(capsys.readouterr().out)
        assert told["state"] == state.key
        other = ["--message-id", "2@x.org", option]
        assert main(["list", store.path, *other]) == 0
        assert capsys.readouterr().out == ""


def test_status_counts_what_waits_in_a_room(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", store.path]) == 0
    plain = capsys.readouterr().out
    assert "scheduled" not in plain
    fill_rooms(store)
    schedule(store, 7200)
    assert main(["status", store.path]) == 0
    out = capsys.readouterr().out
    next_time = r"^ +2  scheduled for later, the next at 20.* UTC.*, in \S+$"
    assert re.search(next_time, out, re.MULTILINE)
    assert re.search(r"^ +1  bulk, sent after all others$", out, re.MULTILINE)
    assert re.search(r"^ +1  held$", out, re.MULTILINE)
    assert main(["status", store.path, "--json"]) == 0
    [told] = objects(capsys.readouterr().out)
    assert [told[key] for key in ("scheduled", "bulk", "held")] == [2, 1, 1]
    assert 3500 < told["next_scheduled_seconds"] <= 3600
    assert told["next_scheduled"].startswith("20")
    assert main(["status", store.path, "--prometheus"]) == 0
    samples = {
        (sample.name, sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(capsys.readouterr().out)
        for sample in family.samples
    }
    assert samples["postcommit_queue_entries", "scheduled"] == 2
    assert samples["postcommit_queue_entries", "bulk"] == 1
    assert samples["postcommit_queue_entries", "held"] == 1
    assert 3500 < samples["postcommit_queue_next_scheduled_seconds", None] <= 3600


def test_what_should_have_been_sent_needs_attention(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule(store, -7200)
    assert main(["status", store.path]) == 1
    out = capsys.readouterr().out
    assert "1  due now, the oldest for 2h" in out
    assert "attention: an entry is due for 2h: processor not running" in out


def test_bulk_mail_that_no_processor_sends_needs_attention(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a processor it is late like other mail. Otherwise it may wait."""

    def complaints(*words: str) -> list[str]:
        status = main(["status", store.path, "--json", *words])
        [told] = objects(capsys.readouterr().out)
        assert status == bool(told["attention"])
        return list(told["attention"])

    schedule(store, 3600, bulk=True)
    assert complaints("--warn-age", "0") == []
    name = wait_behind(store)
    aged = f"{int(name[:10]) - 7200}{name[10:]}"
    folder = Path(store.path, ".Bulk/new")
    assert complaints() == []
    os.rename(folder / name, folder / aged)
    wait_behind(store)
    [told] = complaints()
    assert told.startswith("a bulk entry waits for 2h: processor not running; ")
    assert "'postcommit run'" in told
    assert complaints("--no-processor") == [told]
    assert complaints("--warn-age", "1d") == []
    assert main(["pause", store.path]) == 0
    capsys.readouterr()
    assert complaints() == ["a bulk entry waits for 2h: the queue pauses"]
    assert main(["resume", store.path]) == 0
    capsys.readouterr()
    with closing(Wakeup(store.path)):
        assert complaints("--warn-age", "0") == []
    # Bulk mail waits for all other mail, which comes first here, too.
    wait(store)
    assert complaints("--no-processor", "--warn-age", "1h") == []
    [told] = complaints("--warn-age", "1h")
    assert told.startswith("1 due")


def test_check_finds_nothing_wrong_with_rooms(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule(store, 86400 * 9)
    fill_rooms(store)
    assert main(["check", store.path]) == 0, capsys.readouterr().out


def test_check_looks_into_the_rooms(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_rooms(store)
    write(store, ".Later/new/what")
    write(store, ".Bulk/new/1700000000.M1P1Q1.web", b"no entry")
    os.chmod(f"{store.path}/.Held", 0o755)
    assert main(["check", store.path]) == 1
    out = capsys.readouterr().out
    assert "does not begin with the time when it is due; none: a processor sends" in out
    assert ".Bulk/new/1700000000.M1P1Q1.web: is no entry" in out
    assert ".Held: has mode 0755" in out


# retry, delete


@pytest.mark.parametrize("state", ["scheduled", "bulk"])
@pytest.mark.parametrize("by", ["id", "option"])
def test_retry_sends_now(store: Store, state: str, by: str) -> None:
    schedule(store, 10 * 86400)
    wait_behind(store)
    item = only(store, EntryState(state))
    words = [item.id] if by == "id" else ["ALL", f"--{state}"]
    assert main(["retry", store.path, *words]) == 0
    assert only(store, EntryState.WAITING).id == item.id
    assert main(["check", store.path]) == 0


def test_a_mail_that_was_sent_early_is_deferred_as_any_other(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule(store, 10 * 86400)
    assert main(["retry", store.path, "ALL", "--scheduled"]) == 0
    mailer = RecordingMailer()
    mailer.refuse_message("450 4.2.0 Later")
    assert QueueProcessor(store.path, mailer).flush().deferred == 2
    capsys.readouterr()
    assert main(["list", store.path, "--json"]) == 0
    [told] = objects(capsys.readouterr().out)
    seconds = os.stat(told["path"]).st_mtime - time.time()
    assert 50 < seconds < 70
    assert told["expires"] is not None


@pytest.mark.parametrize("state", ["scheduled", "bulk", "held"])
def test_delete_by_state(store: Store, state: str) -> None:
    fill_rooms(store)
    before = states(store)
    assert main(["delete", store.path, "ALL", f"--{state}", "--yes"]) == 0
    before.remove(state)
    assert states(store) == before


def test_delete_all_leaves_what_waits_in_rooms(store: Store) -> None:
    fill_rooms(store)
    wait(store)
    assert main(["delete", store.path, "ALL", "--yes"]) == 0
    assert states(store) == ["bulk", "held", "scheduled"]


# hold, release


def test_what_is_held_is_not_tried_until_it_is_released(store: Store) -> None:
    wait(store)
    assert main(["hold", store.path, only(store, EntryState.WAITING).id]) == 0
    assert flush(store) == Tally()
    assert main(["release", store.path, only(store, EntryState.HELD).id]) == 0
    assert flush(store).sent == 2


def test_a_held_entry_comes_back_as_it_was(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    defer(store, due=300)
    schedule(store)
    schedule(store, bulk=True)
    wait_behind(store)
    wait(store)
    assert main(["list", store.path, "--json"]) == 0
    before = objects(capsys.readouterr().out)
    assert main(["hold", store.path]) == 0
    assert states(store) == ["held"] * 5
    assert main(["release", store.path]) == 0
    capsys.readouterr()
    assert main(["list", store.path, "--json"]) == 0
    assert objects(capsys.readouterr().out) == before


@pytest.mark.parametrize(("bulk", "room"), [(False, "waiting"), (True, "bulk")])
def test_a_held_entry_whose_time_came_is_sent(
    store: Store, bulk: bool, room: str
) -> None:
    hold(store, schedule(store, -5, bulk=bulk))
    assert main(["release", store.path, "ALL"]) == 0
    assert states(store) == [room]


def test_hold_chooses_by_options(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    schedule(store)
    assert main(["hold", store.path, "ALL", "--to", "nobody@x.org"]) == 0
    assert main(["hold", store.path, "ALL", "--deferred"]) == 0
    held = only(store, EntryState.HELD)
    assert f"{held.id}  held  " in capsys.readouterr().out
    assert main(["release", store.path, "ALL", "--held", "--to", "a@x.org"]) == 0
    assert "held" not in states(store)


def test_what_cannot_be_held_is_said(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    dead = only(store, EntryState.FAILED).id
    assert main(["hold", store.path, dead]) == 1
    said = f"postcommit: {dead}: it is a dead letter, which is never tried\n"
    assert said in capsys.readouterr().err
    assert main(["hold", store.path, only(store, EntryState.IN_DOUBT).id]) == 2
    assert "is in doubt" in capsys.readouterr().err
    waiting = only(store, EntryState.WAITING).id
    assert main(["release", store.path, waiting]) == 1
    said = f"postcommit: {waiting}: it is not held but waiting\n"
    assert said in capsys.readouterr().err
    hold(store, only(store, EntryState.WAITING).name)
    assert main(["hold", store.path, only(store, EntryState.HELD).id]) == 0
    assert main(["retry", store.path, only(store, EntryState.HELD).id]) == 1
    said = f"postcommit: {waiting}: it is held; use 'postcommit release'\n"
    assert said in capsys.readouterr().err


def test_what_is_being_sent_is_not_held(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = FileLock(f"{store.path}/new/{wait(store)}")
    assert lock.acquire()
    assert main(["hold", store.path]) == 1
    assert "0 entries held, 1 skipped" in capsys.readouterr().err
    lock.release()
    assert main(["hold", store.path]) == 0
    lock = FileLock(only(store, EntryState.HELD).place)
    assert lock.acquire()
    assert main(["release", store.path]) == 1
    lock.release()


def test_operators_refuse_what_has_no_sense(store: Store) -> None:
    leave_in_doubt(store, 1)
    doubt = only(store, EntryState.IN_DOUBT)
    queue = MaildirOperators(store.path)
    with queue.changes() as changes, pytest.raises(QueueError, match="in doubt"):
        changes.hold(doubt)
    with queue.changes() as changes, pytest.raises(EntryError, match="not held"):
        changes.release(doubt)


def test_a_name_that_is_taken_keeps_both(store: Store) -> None:
    name = wait(store)
    hold(store, name)
    write(store, f"new/{name}")
    hold(store, f"{store.path}/new/{name}")
    assert states(store) == ["held", "held"]
    assert flush(store) == Tally()
    assert main(["release", store.path]) == 0
    assert flush(store).sent == 4


# pause, resume


@contextmanager
def running(store: Store) -> Iterator[RecordingMailer]:
    mailer = RecordingMailer()
    processor = QueueProcessor(store.path, mailer, pollingInterval=600_000)
    processor.start()
    yield mailer
    processor.stop()


def test_a_paused_queue_sends_nothing_until_it_is_resumed(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with running(store) as mailer:
        assert main(["pause", store.path, "--reason", "a new\nrelay"]) == 0
        for _ in range(3):
            wait(store)
        wait_behind(store)
        schedule(store, -1)
        ring(store.path)
        eventually(lambda: "paused by hand by" in caplog.text)
        assert "a new relay" in caplog.text
        assert len(mailer.outbox) == 0
        assert main(["resume", store.path]) == 0
        eventually(lambda: len(mailer.outbox) == 5)
        assert caplog.text.count("paused by hand") == 1
        assert "it was resumed by hand" in caplog.text


def test_a_pause_by_hand_survives_a_restart(store: Store) -> None:
    assert main(["pause", store.path]) == 0
    wait(store)
    with running(store) as mailer:
        QueueProcessor(store.path, mailer).flush()
        assert len(mailer.outbox) == 0
        assert main(["resume", store.path]) == 0
        eventually(lambda: len(mailer.outbox) == 1)


def test_status_says_who_has_paused_the_queue(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "ann")
    assert main(["pause", store.path, "--reason", "new relay"]) == 0
    capsys.readouterr()
    assert main(["status", store.path]) == 0
    out = capsys.readouterr().out
    paused = r"^paused by hand by ann: new relay, since 20.* ago$"
    assert re.search(paused, out, re.MULTILINE)
    assert main(["status", store.path, "--json"]) == 0
    [told] = objects(capsys.readouterr().out)
    by_hand = told["paused_by_hand"]
    assert (by_hand["who"], by_hand["reason"]) == ("ann", "new relay")
    assert main(["status", store.path, "--prometheus"]) == 0
    assert re.search(r"paused_by_hand\{.*\} 1\n", capsys.readouterr().out)
    wait(store)
    assert main(["status", store.path, "--warn-paused", "0", "--no-processor"]) == 1
    assert "ago; 'postcommit resume' ends that" in capsys.readouterr().out
    name = f"{store.path}/new/1000000000.M1P1Q1.web"
    write(store, name)
    assert main(["status", store.path]) == 1
    assert ": the queue pauses" in capsys.readouterr().out


def test_pausing_twice_keeps_the_first_reason(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pause", store.path, "--reason", "first"]) == 0
    assert main(["pause", store.path, "--reason", "second"]) == 0
    out = capsys.readouterr().out
    assert "nothing changed: the queue is paused by hand by" in out
    assert "first since 20" in out
    assert os.listdir(f"{store.path}/tmp") == []
    assert main(["resume", store.path]) == 0
    assert main(["resume", store.path]) == 0
    assert "was not paused by hand" in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"since": "x"}', b"\xff"])
def test_a_damaged_note_still_pauses(
    store: Store, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    write(store, STOPPED, data)
    wait(store)
    assert flush(store) == Tally()
    assert main(["status", store.path, "--no-processor"]) == 0
    assert "paused by hand, since 20" in capsys.readouterr().out


def test_flush_says_that_the_queue_is_paused(
    store: Store, relay: ScriptedRelay, capsys: pytest.CaptureFixture[str]
) -> None:
    wait(store)
    wait_behind(store)
    assert main(["pause", store.path]) == 0
    words = ["flush", store.path, "--hostname", "127.0.0.1", "--port", str(relay.port)]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert "2 left in the queue" in out
    assert "the queue is paused by hand by" in err
    assert "'postcommit resume'" in err
    assert main(["resume", store.path]) == 0
    assert main(words) == 0


def test_a_pause_that_cannot_be_written_is_an_error(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = MaildirOperators(store.path)
    with queue.changes() as changes:
        os.rename(f"{store.path}/tmp", f"{store.path}/away")
        with pytest.raises(QueueError, match="cannot pause the queue"):
            changes.stop("ann")
        os.rename(f"{store.path}/away", f"{store.path}/tmp")
        assert changes.stop("ann")
        assert changes.resume()
        os.mkdir(f"{store.path}/{STOPPED}")
        with pytest.raises(QueueError, match="cannot resume the queue"):
            changes.resume()


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert mending._user() == f"user {2**31 - 7}"


def test_work_in_progress_stops_soon_after_a_pause(store: Store) -> None:
    """Also in a worker that has much to do, and while bulk mail is let in."""
    for _ in range(300):
        wait_behind(store)
    consumer = store.consumer(Schedule(60, 4000, 86400))
    assert consumer.let_in()
    assert len(consumer.take(1)) == 1
    assert main(["pause", store.path]) == 0
    time.sleep(0.25)  # the interval of the looks
    assert consumer.take(8) == []
    assert not consumer.let_in()
    assert consumer.seconds_to_wait() == float("inf")
    consumer.close()


def test_retry_refuses_what_has_expired(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be a dead letter again, and 'retry' said that it is tried."""
    clock = FakeClock()
    transactions = TransactionManager()
    delivery = QueuedMailDelivery(store.path, transaction_manager=transactions)
    delivery.send("a@x.org", "b@x.org", "x", expires=time.time() + 900)
    transactions.commit()
    clock.advance(1000)
    processor = QueueProcessor(store.path, RecordingMailer(), clock=clock)
    assert processor.flush().rejected == 1
    dead = only(store, EntryState.FAILED)
    assert main(["retry", store.path, dead.id]) == 0, "it has not expired yet"
    capsys.readouterr()
    [path] = (path for path in Path(store.path, "new").iterdir())
    data = path.read_bytes()
    path.write_bytes(re.sub(rb"(X-Zope-Expires: )\d+", rb"\g<1>1000000000", data))
    assert flush(store).rejected == 1
    assert main(["retry", store.path, dead.id]) == 1
    told = capsys.readouterr()
    said = "it cannot be sent: it expired at 2001-09-09 01:46:40 UTC"
    assert f"postcommit: {dead.id}: {said}\n" in told.err
    assert states(store) == ["failed"]
