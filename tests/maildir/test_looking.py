"""Looking at a queue on disk: entries, searches, and the queue as a whole."""
from __future__ import annotations

import itertools
import math
import os
import random
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from postcommit._mail.message import bare_id
from postcommit._maildir.entry import accepted_at
from postcommit._maildir.item import Details
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Item
from postcommit._maildir.item import Reason
from postcommit._maildir.item import Survey
from postcommit._maildir.item import known_names
from postcommit._maildir.looking import _changed
from postcommit._maildir.looking import details
from postcommit._maildir.looking import find
from postcommit._maildir.looking import item_at
from postcommit._maildir.looking import items
from postcommit._maildir.looking import survey
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.presence import PauseNote
from postcommit._maildir.presence import Wakeup
from postcommit._maildir.store import Store
from postcommit.errors import ItemError
from postcommit.errors import QueueError
from tests.support.faults import without_privileges
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import fill
from tests.support.queues import fill_rooms
from tests.support.queues import leave_in_doubt
from tests.support.queues import wait
from tests.support.queues import write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


@pytest.fixture
def queue(store: Store) -> MaildirOperators:
    return MaildirOperators(store.path)


def only(queue: MaildirOperators, state: EntryState) -> Item:
    [item] = queue.items([state])
    return item


def forget_names() -> None:
    for number in range(2000):
        known_names.note(f"{number}", "another")


def look(store: Store) -> Survey:
    return MaildirOperators(store.path).survey()


# Items


def test_there_is_an_item_for_each_entry_in_each_state(
    store: Store, queue: MaildirOperators
) -> None:
    fill(store)
    fill_rooms(store)
    assert [item.state for item in queue.items(EntryState)] == list(EntryState)
    assert [item.state for item in queue.items([EntryState.FAILED])] == [
        EntryState.FAILED
    ]
    assert list(queue.items([])) == []


def test_what_other_libraries_have_put_aside_is_a_dead_letter(
    store: Store, queue: MaildirOperators
) -> None:
    write(store, "new/.rejected-1700000000.M1P1Q1.web")
    write(store, "new/.sending-1700000000.M1P1Q2.web")
    item = only(queue, EntryState.FAILED)
    assert item.name == "1700000000.M1P1Q1.web"
    assert item.accepted == 1700000000.000001
    assert list(queue.items([EntryState.WAITING])) == []


def test_an_entry_keeps_its_id(store: Store, queue: MaildirOperators) -> None:
    wait(store)
    before = only(queue, EntryState.WAITING).id
    defer(store)
    after = only(queue, EntryState.DEFERRED)
    assert after.id == before
    assert len(before) == 12
    assert after.place.endswith(":2,")


def test_an_entry_in_doubt_has_the_id_that_it_will_have(
    store: Store, queue: MaildirOperators
) -> None:
    [name] = leave_in_doubt(store, 1)
    doubt = only(queue, EntryState.IN_DOUBT)
    assert doubt.name == name
    with queue.changes() as changes:
        assert list(changes.recover([doubt], send=True)) == [doubt]
    assert only(queue, EntryState.WAITING).id == doubt.id


# Details


def test_details(store: Store, queue: MaildirOperators) -> None:
    fill(store)
    for item in queue.items(EntryState):
        read = queue.details(item)
        assert read is not None
        assert (read.sender, read.recipients) == ("s@x.org", ("a@x.org", "b@x.org"))
        assert read.head.startswith(b"Message-Id")
        assert read.size == os.path.getsize(item.place)
        assert not read.problem
        if item.state is EntryState.WAITING:
            assert read.due == item.accepted
        elif item.state is EntryState.DEFERRED:
            assert read.due == pytest.approx(time.time() + 60, abs=30)
            assert (read.attempts, read.last_reply) == (1, "450 4.2.0 Later")
        else:
            assert read.due is None


def test_a_name_that_tells_no_time_is_due_since_its_file_changed(
    store: Store, queue: MaildirOperators
) -> None:
    path = write(store, "new/odd")
    os.utime(path, (5, 7))
    read = queue.details(only(queue, EntryState.WAITING))
    assert read is not None
    assert read.due == 7


def test_details_of_what_has_gone(store: Store, queue: MaildirOperators) -> None:
    wait(store)
    item = only(queue, EntryState.WAITING)
    os.unlink(item.place)
    assert queue.details(item) is None


def test_an_envelope_larger_than_what_is_read_at_first(
    store: Store, queue: MaildirOperators
) -> None:
    many = ", ".join(f"recipient.number.{n}@example.org" for n in range(3000))
    write(store, "new/1", f"X-Zope-From: \nX-Zope-To: {many}\n\nText\n".encode())
    read = queue.details(only(queue, EntryState.WAITING))
    assert read is not None
    assert len(read.recipients) == 3000


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"x" * 70_000, "there is no envelope"),
        (b"X-Zope-Unreadable: it is \xff bad\nx", "it is \ufffd bad"),
    ],
)
def test_details_of_what_is_no_entry(
    store: Store, queue: MaildirOperators, data: bytes, problem: str
) -> None:
    write(store, "new/1", data)
    read = queue.details(only(queue, EntryState.WAITING))
    assert read is not None
    assert read.problem == problem
    assert read.recipients == ()


def test_details_of_what_is_no_file(store: Store, queue: MaildirOperators) -> None:
    os.mkfifo(f"{store.path}/new/1")
    read = queue.details(only(queue, EntryState.WAITING))
    assert read is not None
    assert read.problem == "is no regular file"


def test_details_that_cannot_be_read(store: Store, queue: MaildirOperators) -> None:
    os.symlink("/etc/passwd", f"{store.path}/new/1")
    read = queue.details(only(queue, EntryState.WAITING))
    assert read is not None
    assert read.problem.startswith("cannot be read: Too many levels of symbolic links")
    assert read.due is not None  # it may be that only this user cannot read it


# Looking up


def test_ids_may_be_shortened_and_names_will_do(
    store: Store, queue: MaildirOperators
) -> None:
    fill(store)
    for item in queue.items(EntryState):
        for word in (item.id, item.id[:8], item.name, os.path.basename(item.place)):
            assert queue.find([word]) == [item]
        assert queue.find([item.id, item.name, item.id]) == [item]


def test_ids_are_found_in_the_order_in_which_they_are_given(
    store: Store, queue: MaildirOperators
) -> None:
    fill(store)
    items = list(queue.items(EntryState))[::-1]
    assert queue.find([item.id for item in items]) == items
    assert queue.find([]) == []


def test_an_id_that_was_listed_leads_to_its_file(store: Store) -> None:
    """The folder may be searched, but its names may not be read."""
    wait(store)
    [item] = items(store, EntryState)
    id, new = item.id, f"{store.path}/new"
    found: list[Item] = []
    os.chmod(new, 0o300)
    try:
        without_privileges(lambda: found.extend(find(store, [id])))
        forget_names()
        with pytest.raises(PermissionError):
            without_privileges(lambda: find(store, [id]))
    finally:
        os.chmod(new, 0o700)
    assert found == [item]


def test_an_id_is_found_wherever_its_entry_has_moved(store: Store) -> None:
    wait(store)
    [item] = items(store, EntryState)
    id = item.id
    for state, place in (
        (EntryState.DEFERRED, f"cur/{item.name}:2,"),
        (EntryState.DEFERRED, f"cur/{item.name}:2,S"),
        (EntryState.HELD, f".Held/cur/{item.name}:2,"),
        (EntryState.BULK, f".Bulk/new/{item.name}"),
        (EntryState.SCHEDULED, f".Later/new/{item.name}"),
        (EntryState.FAILED, f".Failed/new/{item.name}"),
        (EntryState.FAILED, f"new/.rejected-{item.name}"),
        (EntryState.WAITING, f"new/{item.name}"),
    ):
        target = f"{store.path}/{place}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.rename(item.place, target)
        for _ in range(2):  # the first time, the name is known
            [item] = find(store, [id])
            assert (item.state, item.place) == (state, target)
            forget_names()


def test_a_few_thousand_names_are_known(store: Store) -> None:
    names = [f"17{number:08d}.M1P1Q1.web" for number in range(5000)]
    ids = [item_at(f"{store.path}/new/{n}", EntryState.WAITING).id for n in names]
    known = [id for id in ids if known_names.get(id)]
    assert 1000 <= len(known) <= 2000
    assert known == ids[-len(known) :]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "is not an id"),
        (" ", "is not an id"),
        ("..", "is too short"),
        ("a/b", "is too short"),
        ("<a>", "is too short"),
        ("../new/x", "is not in this queue"),
        (".Failed", "is not in this queue"),
        ("new/../../x", "is not in this queue"),
        ("0123456789ab", "is not in this queue"),
        ("abcd\0", "is not in this queue"),
        ("abc", "is too short, give at least 4 digits"),
        ("0000", "is not in this queue; it may have been sent or deleted"),
        ("1700000000.M1.web", "is not in this queue"),
        ("0123456789abcdef", "is not in this queue"),
        ("2@x.org", "is not in this queue"),
        ("1@X.org", "is not in this queue"),
        ("\ud800abc@x", "is not in this queue"),
    ],
)
def test_an_id_that_means_nothing_is_refused(
    store: Store, queue: MaildirOperators, given: str, told: str
) -> None:
    fill(store)
    with pytest.raises(ItemError, match=told) as caught:
        queue.find([given])
    assert caught.value.id == given


def test_an_ambiguous_id_is_refused_and_says_between_what(
    store: Store, queue: MaildirOperators
) -> None:
    wait(store)
    item = only(queue, EntryState.WAITING)
    write(store, f"cur/{item.name}:2,")
    with pytest.raises(ItemError, match=r"give the path: .*new.* and .*cur") as one:
        queue.find([item.name])
    assert item.place in str(one.value)
    assert queue.find([item.place]) == [item]
    # Several thousand names have two that begin alike.
    for n in range(3000):
        write(store, f".Failed/new/1600000000.M{n:06d}P1Q1.web")
    ids = [item.id[:4] for item in queue.items([EntryState.FAILED])]
    twice = next(given for given in ids if ids.count(given) > 1)
    with pytest.raises(ItemError, match=f"'{twice}' is ambiguous"):
        queue.find([twice])


# By what is in the files


def fill_variously(store: Store) -> None:
    """Write entries of every kind that a search could overlook."""
    envelope = b"X-Zope-From: s@x.org\nX-Zope-To: a@x.org, B@Y.org\n"
    many = b", ".join(b"user%d@x.org" % n for n in range(400))
    header = b"Message-Id: <1@x.org>\nSubject: x\n\ntext\n"
    files = [
        envelope + header,
        envelope + header.replace(b"\n", b"\r\n"),
        envelope + b"subject: y\nMESSAGE-ID:\n <2@x.org>\n\nMessage-Id: <3@x.org>\n",
        envelope + b"To: " + many + b"\nMessage-Id: <4@x.org>\n\ntext",
        envelope + b"To: " + many * 12 + b"\nMessage-Id: <5@x.org>\n\ntext",
        b"X-Zope-From: s@x.org\nX-Zope-To: " + many + b", z@z.org\n" + header,
        b"X-Zope-From: s@x.org\nX-Zope-To: " + many * 9 + b", z@z.org\n" + header,
        b"X-Zope-From: \nX-Zope-To: ann@[192.0.2.1]\n" + header,
        "X-Zope-From: \u212aate@x.org\nX-Zope-To: jörg@x.org\n".encode() + header,
        b"X-Actually-From: s@x.org\nX-Actually-To: =?utf-8?q?c=40c=2Eorg?=\n" + header,
        envelope + b"\nno header at all, <6@x.org>\n",
        envelope + b"Subject: only",
        b"X-Zope-From: s@x.org\n",
        b"no entry 1@x.org",
        b"",
    ]
    for number, data in enumerate(files):
        folder = ("new", "cur", ".Failed/new")[number % 3]
        write(store, f"{folder}/17000000{number:02d}.M1P1Q1.web", data)
    os.mkdir(f"{store.path}/new/1700000098.M1P1Q1.web")
    os.symlink("/etc/passwd", f"{store.path}/new/1700000099.M1P1Q1.web")


def read_all(store: Store) -> list[Details]:
    read = map(details, items(store, EntryState))
    return [each for each in read if each is not None]


def matches(address: str, pattern: str) -> bool:
    address, pattern = address.lower(), pattern.lower()
    return address == pattern or fnmatchcase(address, pattern)


PATTERNS = [
    *("a@x.org", "A@X.ORG", "b@y.org", "*@x.org", "*", "?@x.org", "[ab]@*", "[!a]@x*"),
    *("z@z.org", "user399@x.org", "ann@[192.0.2.1]", "ann@[*", "*[]@]*", "c@c.org"),
    *("jörg@x.org", "JÖRG@*", "j*g@x.org", "kate@x.org", "\u212aate@x.org", "s@", "no"),
    *("*\n*", "X-Zope-From: *", "", "[", "]", "**", "*.*.*", "\u0130", "a@x.org, *"),
]


def test_a_search_for_addresses_overlooks_nothing(store: Store) -> None:
    fill_variously(store)
    for pattern in PATTERNS:
        wanted = {
            read.item
            for read in read_all(store)
            if any(matches(a, pattern) for a in (read.sender, *read.recipients))
        }
        found = [details(item, [pattern]) for item in items(store, EntryState)]
        assert wanted <= {read.item for read in found if read is not None}, pattern


def test_most_files_are_not_parsed(store: Store) -> None:
    fill_variously(store)
    wanted = ["nobody@example.org"]
    found = [details(item, wanted) for item in items(store, EntryState)]
    assert len(found) == 17
    assert sum(read is None for read in found) == 8


@given(st.text("ab@.*?[!]-\u212aK", max_size=8), st.text("abk@.[]\u212a", min_size=1))
@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=300)
def test_any_pattern(pattern: str, local: str) -> None:
    envelope = f"X-Zope-From: s@x.org\nX-Zope-To: {local}@x.org\n".encode()
    with tempfile.TemporaryDirectory() as folder:
        check_pattern(Store(f"{folder}/queue"), envelope, pattern)


def check_pattern(store: Store, envelope: bytes, pattern: str) -> None:
    write(store, "new/1700000000.M1P1Q1.web", envelope + b"Subject: x\n\n")
    [read] = read_all(store)
    [found] = [details(item, [pattern]) for item in items(store, EntryState)]
    if any(matches(address, pattern) for address in (read.sender, *read.recipients)):
        assert found == read
    else:
        assert found in (None, read)


def test_message_ids(store: Store) -> None:
    fill_variously(store)
    every = read_all(store)
    assert {read.message_id for read in every} == {*(f"{n}@x.org" for n in "1245"), ""}
    for number in range(1, 7):
        id = f"{number}@x.org"
        wanted = [read.item for read in every if read.message_id == id]
        assert list(items(store, EntryState, message_id=id)) == wanted
        assert bool(wanted) == (number in (1, 2, 4, 5))


# By what an operator gives


def test_a_message_id_means_every_entry_of_the_message(store: Store) -> None:
    fill_variously(store)
    wanted = [read.item for read in read_all(store) if read.message_id == "1@x.org"]
    assert {item.state for item in wanted} == {
        EntryState.WAITING,
        EntryState.DEFERRED,
        EntryState.FAILED,
    }
    for id in ("1@x.org", "<1@x.org>", " <1@x.org> "):
        assert find(store, [id]) == wanted
    [one] = find(store, ["<4@x.org>"])
    assert find(store, [one.id, "4@x.org", one.place, one.name, one.id[:6]]) == [one]
    mixed = find(store, [one.id[:5], "1@x.org", "2@x.org"])
    assert mixed[:-1] == [one, *wanted]


def test_a_name_may_have_an_at_and_a_message_id_none(store: Store) -> None:
    entry = b"X-Zope-From: \nX-Zope-To: a@x.org\nMessage-Id: <1234>\n\n"
    write(store, "new/1700000000.M1P1Q1.me@web", entry)
    [item] = find(store, ["1700000000.M1P1Q1.me@web"])
    assert find(store, ["1234"]) == find(store, ["<1234>", item.id]) == [item]
    assert find(store, []) == []


def test_a_message_id_may_have_what_a_path_has(store: Store) -> None:
    entry = b"X-Zope-From: \nX-Zope-To: a@x.org\nMessage-Id: <../a/b..c@x>\n\n"
    write(store, "new/1700000000.M1P1Q1.web", entry)
    [item] = find(store, ["../a/b..c@x"])
    assert item.name == "1700000000.M1P1Q1.web"


@pytest.mark.parametrize(
    ("given", "bare"),
    [("a@x", "a@x"), ("<a@x>", "a@x"), (" <a@x>\n", "a@x"), ("<a", "a"), ("<>", "")],
)
def test_angle_brackets_are_dropped(given: str, bare: str) -> None:
    assert bare_id(given) == bare


def test_of_many_that_an_id_could_mean_some_are_named(store: Store) -> None:
    names = (f"17{number:08d}.M1P1Q1.web" for number in itertools.count())
    first = item_at(f"{store.path}/new/{next(names)}", EntryState.WAITING)
    alike = [first]
    while len(alike) < 7:
        other = item_at(f"{store.path}/new/{next(names)}", EntryState.WAITING)
        if other.id[:4] == first.id[:4]:
            alike.append(other)
    for item in alike:
        write(store, f"new/{item.name}")
    with pytest.raises(ItemError, match=r"\(waiting\), and 2 more; give more of it"):
        find(store, [first.id[:4]])
    assert find(store, [item.id for item in alike]) == alike


def test_random_ids_never_match_by_accident(store: Store) -> None:
    fill_variously(store)
    dice = random.Random(18)
    known = {item.id for item in items(store, EntryState)}
    for item in items(store, EntryState):
        length = dice.randint(4, 12)
        alike = [id for id in known if id.startswith(item.id[:length])]
        if len(alike) == 1:
            assert find(store, [item.id[:length]]) == [item]


# The whole queue


def test_an_empty_queue(store: Store) -> None:
    seen = look(store)
    assert seen.counts == dict.fromkeys(EntryState, 0)
    assert (seen.due, seen.reasons) == (0, {})
    assert (seen.oldest_due, seen.looked_at, seen.foreign_claims) == (None, 0, 0)
    assert (seen.heartbeat, seen.mailbox, seen.shortages) == (None, "", ())


def test_each_state_is_counted(store: Store) -> None:
    fill(store)
    fill_rooms(store)
    leave_in_doubt(store, 2)
    seen = look(store)
    assert list(seen.counts) == list(EntryState)
    assert list(seen.counts.values()) == [1, 1, 1, 1, 1, 1, 3]
    assert seen.due == 1


def test_what_waits_is_due_since_it_came(store: Store) -> None:
    first = wait(store)
    wait(store)
    seen = look(store)
    assert seen.due == 2
    assert seen.oldest_due == accepted_at(first)


def test_the_oldest_due_is_the_first_of_new_and_deferred(store: Store) -> None:
    defer(store, due=-50)
    defer(store, due=-90)
    defer(store, due=-70)
    defer(store, due=90)
    now = time.time()
    wait(store)
    seen = survey(store, now, 2.0)
    assert seen.due == 4
    assert seen.oldest_due is not None
    assert 80 < now - seen.oldest_due < 90 + 60
    assert seen.looked_at == seen.counts[EntryState.DEFERRED] == 4


def test_an_older_one_that_waits_is_the_oldest(store: Store) -> None:
    defer(store, due=-50)
    write(store, "new/1700000000.M5P1Q1.web")
    assert look(store).oldest_due == 1700000000.000005


def test_without_time_not_all_are_asked_and_that_is_told(store: Store) -> None:
    for _ in range(3):
        defer(store, due=-50)
    seen = survey(store, time.time(), 0.0)
    assert (seen.counts[EntryState.DEFERRED], seen.looked_at, seen.due) == (3, 0, 0)
    assert seen.oldest_due is None


def test_what_goes_while_we_look_is_never_due(store: Store) -> None:
    folder = os.open(f"{store.path}/cur", os.O_RDONLY)
    try:
        assert _changed("1700000000.M1P1Q1.web:2,", folder) == math.inf
    finally:
        os.close(folder)


def test_the_most_common_reply_whatever_is_particular_in_it(store: Store) -> None:
    defer(store, "451 4.3.0 Disk full")
    defer(store, "450 4.2.0 Greylisted <a@x.org> for 17 s")
    defer(store, "450 4.2.0 Greylisted <b@x.org> for 300 s")
    seen = look(store)
    reason = seen.reasons[EntryState.DEFERRED]
    assert reason.reply.startswith("450 4.2.0 Greylisted <")
    assert (reason.count, reason.looked_at) == (2, 3)


def test_why_dead_letters_failed(store: Store) -> None:
    bury(store, "550 5.1.1 No such user")
    write(store, ".Failed/new/1700000000.M1P1Q1.web", b"")
    write(store, ".Failed/cur/1700000000.M1P1Q2.web:2,S", b"")
    seen = look(store)
    assert seen.counts[EntryState.FAILED] == 3
    assert seen.reasons[EntryState.FAILED] == Reason("the file is empty", 2, 3)


def test_entries_without_a_reply_have_no_reason(store: Store) -> None:
    write(store, "cur/1700000000.M1P1Q1.web:2,")
    assert look(store).reasons == {}


def test_what_other_libraries_have_put_aside(store: Store) -> None:
    write(store, "new/.rejected-1700000000.M1P1Q1.web")
    write(store, "new/.other")
    write(store, "new/1700000000.M1P1Q2.web")
    young = write(store, "new/.sending-1700000000.M1P1Q2.web")
    now = time.time()
    seen = survey(store, now, 2.0)
    counts = (seen.counts[EntryState.WAITING], seen.counts[EntryState.FAILED])
    assert (counts, seen.foreign_claims) == ((1, 1), 1)
    os.utime(young, (now - 4 * 3600,) * 2)
    assert survey(store, now, 2.0).foreign_claims == 0


def test_a_sign_of_life(store: Store) -> None:
    before = time.time() - 60
    wakeup = Wakeup(store.path)
    try:
        beat = look(store).heartbeat
        assert beat is not None
        assert beat > before
    finally:
        wakeup.close()
    assert look(store).heartbeat is None


def test_why_it_pauses(store: Store) -> None:
    assert look(store).pause is None
    board = PauseNote(store.path)
    try:
        board.post("away", 1)
        pause = look(store).pause
        assert pause is not None
        assert pause.reason == "away"
    finally:
        board.clear()


def test_what_cannot_be_looked_through_is_an_error(store: Store) -> None:
    os.rmdir(f"{store.path}/cur")
    with pytest.raises(QueueError, match="cannot look through the queue"):
        survey(store, time.time(), 2.0)
