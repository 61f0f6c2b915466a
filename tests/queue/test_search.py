"""Finding entries by what is in their files, and by what an operator gives."""
from __future__ import annotations

import itertools
import os
import random
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from postcommit.errors import ItemError
from postcommit.queue.item import Details
from postcommit.queue.item import Item
from postcommit.queue.item import State
from postcommit.queue.item import details
from postcommit.queue.item import items
from postcommit.queue.search import bare_id
from postcommit.queue.search import find
from postcommit.queue.search import with_addresses
from postcommit.queue.search import with_message_ids
from postcommit.queue.store import Store
from tests.support.queues import write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


def fill(store: Store) -> None:
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
    read = map(details, items(store, State))
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
    fill(store)
    for pattern in PATTERNS:
        wanted = {
            read.item
            for read in read_all(store)
            if any(matches(a, pattern) for a in (read.sender, *read.recipients))
        }
        found = with_addresses(items(store, State), [pattern])
        assert wanted <= {read.item for read in found if read is not None}, pattern


def test_most_files_are_not_parsed(store: Store) -> None:
    fill(store)
    found = list(with_addresses(items(store, State), ["nobody@example.org"]))
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
    [found] = with_addresses(items(store, State), [pattern])
    if any(matches(address, pattern) for address in (read.sender, *read.recipients)):
        assert found == read
    else:
        assert found in (None, read)


def test_message_ids(store: Store) -> None:
    fill(store)
    every = read_all(store)
    assert {read.message_id for read in every} == {*(f"{n}@x.org" for n in "1245"), ""}
    for number in range(1, 7):
        id = f"{number}@x.org"
        wanted = [read for read in every if read.message_id == id]
        found = with_message_ids(items(store, State), [id, "other@x.org"])
        assert [read for read in found if read is not None] == wanted
        assert bool(wanted) == (number in (1, 2, 4, 5))


# By what an operator gives


def test_a_message_id_means_every_entry_of_the_message(store: Store) -> None:
    fill(store)
    wanted = [read.item for read in read_all(store) if read.message_id == "1@x.org"]
    assert {item.state for item in wanted} == {
        State.WAITING,
        State.DEFERRED,
        State.FAILED,
    }
    for id in ("1@x.org", "<1@x.org>", " <1@x.org> "):
        assert find(store, [id]) == wanted
    [one] = find(store, ["<4@x.org>"])
    assert find(store, [one.id, "4@x.org", one.path, one.name, one.id[:6]]) == [one]
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
    first = Item(f"{store.path}/new/{next(names)}", State.WAITING)
    alike = [first]
    while len(alike) < 7:
        other = Item(f"{store.path}/new/{next(names)}", State.WAITING)
        if other.id[:4] == first.id[:4]:
            alike.append(other)
    for item in alike:
        write(store, f"new/{item.name}")
    with pytest.raises(ItemError, match=r"\(waiting\), and 2 more; give more of it"):
        find(store, [first.id[:4]])
    assert find(store, [item.id for item in alike]) == alike


def test_random_ids_never_match_by_accident(store: Store) -> None:
    fill(store)
    dice = random.Random(18)
    known = {item.id for item in items(store, State)}
    for item in items(store, State):
        length = dice.randint(4, 12)
        alike = [id for id in known if id.startswith(item.id[:length])]
        if len(alike) == 1:
            assert find(store, [item.id[:length]]) == [item]
