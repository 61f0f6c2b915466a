"""The format of an entry's file, and claims."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from email.message import EmailMessage
from pathlib import Path

import pytest
import transaction
from hypothesis import given
from hypothesis import strategies as st
from repoze.sendmail.delivery import QueuedMailDelivery as RepozeDelivery
from zope.sendmail.delivery import QueuedMailDelivery as ZopeDelivery
from zope.sendmail.queue import QueueProcessorThread

from postcommit._mail.entry import Entry
from postcommit._maildir.entry import accepted_at
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.entry import preamble
from postcommit._maildir.entry import preamble_of
from postcommit._maildir.entry import stem
from postcommit._maildir.files import FileLock
from postcommit._maildir.store import Claim
from postcommit.errors import EntryError
from postcommit.errors import QueueError


MESSAGE = b"Message-Id: <1@x.org>\nSubject: x\n\nText.\n"


def written(entry: Entry) -> bytes:
    return preamble_of(entry) + entry.message


# The format


def test_a_fresh_entry_is_its_envelope_and_its_message() -> None:
    entry = Entry("shop@x.org", ("ann@x.org", "bob@x.org"), MESSAGE)
    assert written(entry) == (
        b"X-Zope-From: shop@x.org\nX-Zope-To: ann@x.org, bob@x.org\n" + MESSAGE
    )


def test_an_entry_that_was_tried_tells_how_often_and_what_was_said() -> None:
    entry = Entry("", ("ann@x.org",), MESSAGE, 2, "450 4.2.0\nGreylisted")
    assert written(entry).splitlines()[:4] == [
        b"X-Zope-From: ",
        b"X-Zope-To: ann@x.org",
        b"X-Zope-Attempts: 2",
        b"X-Zope-Reply: 450 4.2.0 Greylisted",
    ]


ADDRESSES = st.builds(
    "{}@{}".format,
    st.from_regex(r"[a-z0-9.+é]{1,12}|\"[ a-z,@]{1,8}\"", fullmatch=True),
    st.sampled_from(["example.org", "bücher.example", "[127.0.0.1]"]),
)
MESSAGES = st.one_of(
    st.binary(min_size=1),
    st.from_regex(
        rb"(X-Zope-(Attempts|Reply|From|To): ?[0-9a\n]{0,3}\n){1,4}.*", fullmatch=True
    ),
)


@given(
    st.just("") | ADDRESSES,
    st.lists(ADDRESSES, min_size=1, max_size=4, unique=True),
    MESSAGES,
    st.integers(0, 99),
    st.text(st.characters(codec="utf-8"), max_size=40),
)
def test_what_was_written_is_read_again(
    sender: str, recipients: list[str], message: bytes, attempts: int, reply: str
) -> None:
    entry = Entry(sender, tuple(recipients), message, attempts, reply)
    read = parse_entry(written(entry))
    assert (read.sender, read.recipients) == (sender, tuple(recipients))
    assert read.message == message
    assert read.attempts == attempts
    assert read.last_reply == " ".join(reply.split())
    assert parse_entry(written(read)) == read


@given(st.binary())
def test_whatever_is_no_entry_is_an_entry_error(data: bytes) -> None:
    with pytest.raises(EntryError):
        parse_entry(data)


def with_times(expires: bytes, not_before: bytes) -> bytes:
    """Return an entry in which somebody has edited the times."""
    envelope = b"X-Zope-From: a@x.org\nX-Zope-To: b@x.org\n"
    history = b"X-Zope-Attempts: 0\nX-Zope-Reply: \n"
    times = b"X-Zope-Expires: %b\nX-Zope-Not-Before: %b\n" % (expires, not_before)
    return envelope + history + times + b"\nText."


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"Subject: x\n\nText.", "no envelope"),
        (b"\0" * 4096, "no envelope"),
        (b"X-Zope-From: a@x.org", "no whole line X-Zope-From:"),
        (b"X-Zope-From: a@x.org\n", "no whole line X-Zope-To:"),
        (b"X-Zope-From: a@x.org\nSubject: x\n", "no whole line X-Zope-To:"),
        (b"X-Zope-From: a@x.org\nX-Zope-To: b@x.org", "no whole line X-Zope-To:"),
        (b"X-Zope-From: a@x.org\nX-Zope-To: b@x.org\n", "no message"),
        (b"X-Zope-From: \xff\nX-Zope-To: b@x.org\nx", "X-Zope-From: is no UTF-8"),
        (b"X-Zope-From: a@x.org\nX-Zope-To: \nx", "it is empty"),
        (b"X-Zope-From: a\nX-Zope-To: b@x.org\nx", "damaged"),
        (b"X-Zope-From: a@x.org\nX-Zope-To: b b@x.org\nx", "damaged"),
        (b"X-Zope-Unreadable: it is broken\nanything", "before: it is broken"),
        (b"X-Actually-From: a@x.org\n\nText.", "no envelope"),
        (b"X-Actually-From: =?x-no?q?a?=\nX-Actually-To: b@x.org\n\n", "damaged"),
        (b"X-Actually-From: a@x.org\nX-Actually-To: \xff\n\n", "damaged"),
        (with_times(b"tomorrow", b""), "^X-Zope-Expires: tomorrow is not a time$"),
        (with_times(b"", b"1e9"), "^X-Zope-Not-Before: 1e9 is not a time$"),
        (with_times(b"\xff", b"5"), "^X-Zope-Expires: \ufffd is not a time$"),
    ],
)
def test_what_is_wrong_is_told(data: bytes, reason: str) -> None:
    with pytest.raises(EntryError, match=reason) as caught:
        parse_entry(data)
    assert isinstance(caught.value, ValueError)


def test_uncertain_attempts_are_read() -> None:
    entry = Entry("a@x.org", ("b@x.org",), MESSAGE, 3, "lost", 2)
    assert parse_entry(written(entry)) == entry


def test_display_names_and_crlf_of_others_are_understood() -> None:
    data = (
        b'X-Zope-From: "Shop, The" <shop@x.org>\r\n'
        b'X-Zope-To: "Ann, A" <ann@x.org>, bob@x.org\r\nA: b\r\n\r\n'
    )
    entry = parse_entry(data)
    assert entry.sender == "shop@x.org"
    assert entry.recipients == ("ann@x.org", "bob@x.org")
    assert entry.message == b"A: b\r\n\r\n"


def test_a_preamble_keeps_own_lines_of_a_message_apart() -> None:
    assert preamble("", ("a@x.org",), b"x-zope-attempts: 7").count(b"\n") == 4
    assert preamble("", ("a@x.org",), b"Subject: x").count(b"\n") == 2


def test_a_preamble_is_written_whatever_was_said() -> None:
    lines = preamble("", ("a@x.org",), b"Subject: x", 1, "450 Sp\udce4ter")
    assert lines.endswith(b"X-Zope-Attempts: 1\nX-Zope-Reply: 450 Sp?ter\n")


# Entries of the older libraries


def test_an_entry_of_zope_sendmail_is_read_and_it_reads_ours(tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    ZopeDelivery(str(queue)).send("shop@x.org", ["ann@x.org", "bob@x.org"], MESSAGE)
    transaction.commit()
    [path] = (queue / "new").iterdir()
    entry = parse_entry(path.read_bytes())
    assert entry == Entry("shop@x.org", ("ann@x.org", "bob@x.org"), MESSAGE)
    assert accepted_at(path.name) is not None
    theirs = QueueProcessorThread()._parseMessage(written(entry))
    assert theirs == ("shop@x.org", ("ann@x.org", "bob@x.org"), MESSAGE)


def test_an_entry_of_repoze_sendmail_is_read(tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    message = EmailMessage()
    message["Message-Id"] = "<1@x.org>"
    message["Subject"] = "x"
    message.set_content("X-Actually-To: eve@x.org\n")
    recipients = [f"a.rather.long.name.{n}@example.org" for n in range(9)]
    RepozeDelivery(str(queue)).send("shop@x.org", recipients, message)
    transaction.commit()
    [path] = (queue / "new").iterdir()
    entry = parse_entry(path.read_bytes())
    assert entry.sender == "shop@x.org"
    assert entry.recipients == tuple(recipients)
    assert (entry.attempts, entry.last_reply, entry.uncertain) == (0, "", 0)
    header, _, body = entry.message.partition(b"\n\n")
    assert b"X-Actually" not in header
    assert b"Subject: x" in header
    assert body == b"X-Actually-To: eve@x.org\n"


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("1700000000.M000123P1Q2.host", 1700000000.000123),
        ("1700000000.123.host.456", 1700000000),
        ("1700000000.M123P4.host", 1700000000.000123),
        ("0000000001.M000000P1Q1.host", 1),
        ("message", None),
        ("12.host", None),
        ("20261128101112.host", None),  # a date
        ("1732791600000.host", None),  # milliseconds
        ("202611281011.M000123P1.host", None),
    ],
)
def test_the_name_tells_when_an_entry_was_accepted(
    name: str, accepted: float | None
) -> None:
    assert accepted_at(name) == accepted


def test_the_stem_is_the_name_without_flags() -> None:
    assert stem("queue/cur/1.M2.host:2,S") == "1.M2.host"
    assert stem("queue/new/1.M2.host") == "1.M2.host"


# Claims


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "1700000000.M000000P1Q1.host"
    path.write_bytes(written(Entry("", ("ann@x.org",), MESSAGE)))
    return str(path)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_an_entry_is_claimed_once_until_it_is_released(path: str) -> None:
    before = descriptors()
    claim = Claim.take(path)
    assert claim is not None
    assert claim.read() == claim.read() == Entry("", ("ann@x.org",), MESSAGE)
    assert claim.key == os.path.basename(path)
    assert Claim.take(path) is None
    claim.release()
    claim.release()
    again = Claim.take(path)
    assert again is not None
    again.release(removed=True)
    assert descriptors() == before


def test_what_is_added_to_a_claimed_file_is_read_too(path: str) -> None:
    claim = Claim.take(path)
    assert claim is not None
    before = claim.read_bytes()
    with open(path, "ab") as file:
        file.write(2 * before)
    assert claim.read_bytes() == 3 * before
    os.truncate(path, 10)
    assert claim.read_bytes() == before[:10]
    claim.release()


def test_what_is_gone_cannot_be_claimed(path: str) -> None:
    os.unlink(path)
    assert Claim.take(path) is None


@pytest.mark.parametrize("settled", ["replaced", "renamed"])
def test_a_file_that_was_settled_while_we_opened_it_is_not_claimed(
    path: str, settled: str
) -> None:
    class Locks(dict[str, FileLock]):
        def __setitem__(self, key: str, lock: FileLock) -> None:
            # Its holder settles the entry now, and lets go of the lock.
            super().__setitem__(key, lock)
            if settled != "replaced":
                os.rename(path, f"{path}:2,")
            else:
                os.rename(shutil.copy(path, f"{path}.new"), path)

    locks = Locks()
    assert Claim.take(path, locks) is None
    assert [lock.descriptor for lock in locks.values()] == [-1]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_regular_file_is_an_error_and_leaks_nothing(
    tmp_path: Path, path: str, kind: str
) -> None:
    odd = tmp_path / kind
    {
        "folder": odd.mkdir,
        "pipe": lambda: os.mkfifo(odd),
        "link": lambda: odd.symlink_to(path),
    }[kind]()
    before = descriptors()
    with pytest.raises(OSError, match=kind):
        Claim.take(str(odd))
    if kind == "pipe":
        with pytest.raises(QueueError, match="no regular file"):
            Claim.take(str(odd))
    assert descriptors() == before


def test_no_claim_outlives_its_holder(path: str) -> None:
    code = (
        "import os, signal, sys\n"
        "from postcommit._maildir.store import Claim\n"
        "claim = Claim.take(sys.argv[1])\n"
        "assert claim\n"
        "print('claimed', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"claimed\n"
        assert Claim.take(path) is None
        process.kill()
        process.wait()
    claim = Claim.take(path)
    assert claim is not None
    claim.release()
