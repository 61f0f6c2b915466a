"""``postcommit status``, ``list``, ``show``, ``check``: looking changes nothing."""
from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from postcommit._cli.main import main
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Item
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.presence import Wakeup
from postcommit._maildir.reception import Reception
from postcommit._maildir.reception import ReceptionNote
from postcommit._maildir.store import Store
from postcommit._queue.values import moment
from postcommit._queue.values import timestamp
from tests.support.faults import full_disk
from tests.support.queues import ENTRY
from tests.support.queues import MESSAGE
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import fill
from tests.support.queues import leave_in_doubt
from tests.support.queues import wait
from tests.support.queues import write
from tests.support.service import COMMAND
from tests.support.service import ROOT
from tests.support.service import command
from tests.support.service import environment
from tests.support.terminal import on_terminal


def only(store: Store, state: EntryState) -> Item:
    [item] = MaildirOperators(store.path).items([state])
    return item


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# list


def test_list_is_a_table(store: Store) -> None:
    fill(store)
    done = command("list", store.path)
    assert (done.returncode, done.stderr) == (0, "")
    titles, *rows = done.stdout.splitlines()
    assert " ".join(titles.split()) == "ID AGE NEXT TRIES SIZE FROM TO LAST REPLY"
    states = (EntryState.WAITING, EntryState.DEFERRED, EntryState.IN_DOUBT)
    ids = [only(store, state).id for state in states]
    assert [row.split()[0] for row in rows] == ids
    waiting, deferred, doubt = rows
    assert re.search(r" now +0 +94  s@x\.org +a@x\.org \+1$", waiting)
    assert re.search(r" \d+s +1 +\d+  s@x\.org +a@x\.org \+1 +450 4\.2\.0 L", deferred)
    assert " in doubt " in doubt
    assert "\x1b" not in done.stdout


def test_list_of_dead_letters(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    write(store, ".Failed/new/what", b"text")
    assert main(["list", "--failed", store.path]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    assert re.search(r" never +1 +\d+  s@x\.org .* 550 5\.1\.1 No such user\n", out)
    assert re.search(r" never +0 +4  <> .* there is no envelope\n", out)


def test_list_for_programs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    name = defer(store, due=-3)
    write(store, "new/what", b"text")
    assert main(["list", "--json", store.path]) == 0
    damaged, deferred = objects(capsys.readouterr().out)
    path = f"{store.path}/cur/{name}:2,"
    due = deferred.pop("due")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", due)
    assert re.fullmatch(r"20.*\+00:00", deferred.pop("accepted"))
    assert deferred == {
        "id": only(store, EntryState.DEFERRED).id,
        "state": "deferred",
        "name": name,
        "path": path,
        "message_id": "1@x.org",
        "expires": None,
        "attempts": 1,
        "sender": "s@x.org",
        "recipients": ["a@x.org", "b@x.org"],
        "size": os.path.getsize(path),
        "last_reply": "450 4.2.0 Later",
        "problem": None,
    }
    assert (damaged["sender"], damaged["recipients"]) == (None, [])
    assert damaged["accepted"] is damaged["message_id"] is None
    assert damaged["problem"] == "there is no envelope"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--to", "b@x.org"], ["deferred", "in_doubt", "waiting"]),
        (["--to", "B@X.org", "--waiting"], ["waiting"]),
        (["--deferred"], ["deferred"]),
        (["--in-doubt"], ["in_doubt"]),
        (["--failed", "--to", "@x.org"], ["failed"]),
        (["--to", "c@x.org"], []),
        (["--from", "s@*"], ["deferred", "in_doubt", "waiting"]),
        (["--from", "@y.org"], []),
        (["--older", "1h"], []),
        (["--newer", "1h"], ["deferred", "in_doubt", "waiting"]),
        (["--older", "0", "--newer", "2d", "--waiting"], ["waiting"]),
    ],
)
def test_list_chooses(
    store: Store,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    found: list[str],
) -> None:
    fill(store)
    assert main(["list", "--json", store.path, *arguments]) == 0
    states = [each["state"] for each in objects(capsys.readouterr().out)]
    assert sorted(states) == found


def test_list_leaves_out_what_goes_meanwhile(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait(store)
    found = MaildirOperators.items

    def sent_at_once(*args: Any, **options: Any) -> Iterator[Item]:
        for item in found(*args, **options):
            os.unlink(item.place)
            yield item

    monkeypatch.setattr(MaildirOperators, "items", sent_at_once)
    assert main(["list", store.path]) == 0
    wait(store)
    assert main(["list", "--to", "a@x.org", store.path]) == 0
    assert capsys.readouterr().out == ""


def test_list_tells_at_once_and_stops_when_nobody_reads(store: Store) -> None:
    for number in range(4000):
        write(store, f"new/17{number:08d}.M1P1Q1.web")
    with subprocess.Popen(
        [*COMMAND, "list", "--json", store.path],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["state"] == "waiting"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.parametrize("id", ["2@x.org", "<2@x.org>"])
def test_list_by_message_id(
    store: Store, capsys: pytest.CaptureFixture[str], id: str
) -> None:
    fill(store)
    other = ENTRY.replace(b"<1@x.org>", b"<2@x.org>")
    write(store, "cur/1700000000.M1P1Q1.web:2,", other)
    write(store, ".Failed/new/1700000001.M1P1Q1.web", other)
    assert main(["list", store.path, "--message-id", id, "--json"]) == 0
    [found] = objects(capsys.readouterr().out)
    assert (found["state"], found["message_id"]) == ("deferred", "2@x.org")
    assert main(["list", store.path, "--failed", f"--message-id={id}", "--json"]) == 0
    [found] = objects(capsys.readouterr().out)
    assert found["name"] == "1700000001.M1P1Q1.web"
    again = ["list", store.path, "--message-id", id, "--to", "nobody@x.org"]
    assert main(again) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("id", ["", " ", "<>"])
def test_an_empty_message_id_is_refused(
    store: Store, capsys: pytest.CaptureFixture[str], id: str
) -> None:
    with pytest.raises(SystemExit):
        main(["list", store.path, "--message-id", id])
    assert f"{id!r}: must be a message id; see" in capsys.readouterr().err


# On a terminal


def test_a_long_search_shows_how_far_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(130):
        write(store, f"new/17{number:08d}.M1P1Q1.web")
    write(store, "new/1799999999.M1P1Q1.web", ENTRY.replace(b"a@x.org", b"c@x.org"))
    argv = ("list", store.path, "--to", "c@x.org")
    status, screen = on_terminal(*argv, TEST_PATIENCE="0")
    assert status == 0
    shown = screen.split("\r\x1b[K")
    assert "64 of 131 entries, 0 found" in shown
    assert re.search(r"1799999999|c@x\.org", shown[-1])
    assert "entries" not in shown[-1]
    silent = command(*argv)
    assert (silent.stderr, silent.stdout.count("\n")) == ("", 2)


def test_a_table_fits_the_terminal(store: Store) -> None:
    bury(store, "550 5.1.1 \x1b]0;evil\x07 " + "No such user " * 20)
    long = "a.very.long.recipient.address@some.where.example.org"
    entry = ENTRY.replace(b"a@x.org, b@x.org", long.encode())
    write(store, ".Failed/new/1700000000.M1P1Q1.web", entry)
    for columns, count in ((80, 4), (110, 3)):
        status, screen = on_terminal("list", store.path, "--failed", columns=columns)
        assert status == 0
        lines = re.sub(r"\x1b\[\d+m", "", screen).splitlines()
        assert len(lines) == count
        assert columns - 12 < max(map(len, lines)) <= columns
        assert "\x07" not in screen
        assert f" {long}" in screen  # at 80 columns on a line of its own
    assert r" 550 5.1.1 \x1b]0;evil" in screen
    status, screen = on_terminal("list", store.path, "--failed", "--wide")
    assert r" s@x.org " in screen
    assert "No such user " * 19 in screen


def test_a_list_of_nothing_says_so_to_a_person(store: Store) -> None:
    bury(store)
    status, screen = on_terminal("list", store.path)
    assert (status, screen) == (0, "no entry found; --failed lists dead letters\n")
    _, screen = on_terminal("list", store.path, "--failed", "--to", "c@x.org")
    assert screen == "no entry found\n"
    silent = command("list", store.path)
    assert (silent.stdout, silent.stderr) == ("", "")


def test_colours_only_on_a_terminal_that_wants_them(store: Store) -> None:
    bury(store)
    argv = ("list", "--failed", store.path)
    red = re.compile(r"\x1b\[31m[0-9a-f]{12} .*\x1b\[0m")
    assert red.search(on_terminal(*argv)[1])
    screen = on_terminal(*argv, NO_COLOR="1")[1]
    assert "550 5.1.1" in screen
    assert "\x1b" not in screen


# show


def test_show(store: Store) -> None:
    fill(store)
    item = only(store, EntryState.DEFERRED)
    done = command("show", store.path, item.id[:6])
    assert (done.returncode, done.stderr) == (0, "")
    about, header = done.stdout.split("\n\n")
    told = dict(line.split(None, 1) for line in about.splitlines() if line[0] != " ")
    assert told["id"] == item.id
    assert told["state"] == "deferred; 'postcommit retry' makes it due now"
    assert told["file"] == item.place
    assert told["attempts"] == "1"
    assert told["last"] == "reply  450 4.2.0 Later"
    assert told["from"] == "s@x.org"
    assert about.endswith("\nto          a@x.org\n            b@x.org")
    assert re.search(r"\ndue         20\d\d-.*, in \d+s\n", about)
    assert header == "Message-Id: <1@x.org>\nSubject: Teapot\n"


def test_show_in_each_state(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store)
    for state, told in (
        (EntryState.WAITING, r"\nstate       waiting; .*\ndue .*, now\n"),
        (EntryState.FAILED, r"\nstate       failed; .*\ngiven up    20.* ago\n"),
        (EntryState.IN_DOUBT, r"\nstate       in doubt; 'postcommit recover' "),
    ):
        assert main(["show", store.path, only(store, state).id]) == 0
        assert re.search(told, capsys.readouterr().out, re.DOTALL)


def test_show_what_is_no_entry(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    write(store, "new/what", b"text")
    assert main(["show", store.path, "what"]) == 0
    out = capsys.readouterr().out
    assert "\nproblem     there is no envelope\n" in out
    assert "accepted" not in out
    assert "from" not in out


def test_show_obeys_no_message(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    head = b"Subject: \x1b[2J\xff caf\xc3\xa9\r\n\r\nnot \x1b this\r\n"
    entry = b"X-Zope-From: \nX-Zope-To: a@x.org\n"
    write(store, "new/what", entry + head)
    write(store, "new/headless", entry + b"Subject: only")
    assert main(["show", store.path, "what"]) == 0
    out = capsys.readouterr().out
    assert "\nfrom        <>\n" in out
    assert out.endswith("\n\nSubject: \\x1b[2J\\xff café\n")
    assert main(["show", store.path, "headless"]) == 0
    assert capsys.readouterr().out.endswith("\n\nSubject: only\n")


def test_show_raw_is_the_file_byte_for_byte(store: Store) -> None:
    data = b"X-Zope-From: \nX-Zope-To: a@x.org\nA: b\r\n\r\n\xff\x00\x1b\r" * 9000
    write(store, "new/what", data)
    done = subprocess.run(
        [*COMMAND, "show", "--raw", store.path, "what"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        check=True,
    )
    assert done.stdout == data


def test_show_for_programs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    wait(store)
    item = only(store, EntryState.WAITING)
    assert main(["show", "--json", store.path, item.id]) == 0
    [shown] = objects(capsys.readouterr().out)
    assert shown.pop("header") == "Message-Id: <1@x.org>\nSubject: Teapot\n"
    assert main(["list", "--json", store.path]) == 0
    assert objects(capsys.readouterr().out) == [shown]


@pytest.mark.parametrize("form", [[], ["--raw"]])
def test_show_what_goes_meanwhile(
    store: Store,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: list[str],
) -> None:
    wait(store)
    [item] = MaildirOperators(store.path).items([EntryState.WAITING])
    os.unlink(item.place)
    monkeypatch.setattr(MaildirOperators, "find", lambda self, ids: [item])
    assert main(["show", *form, store.path, item.id]) == 2
    told = f"postcommit: '{item.id}' is gone: it was sent, or deleted, just now\n"
    assert capsys.readouterr() == ("", told)


def test_show_by_message_id(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    bury(store)
    dead = only(store, EntryState.FAILED)
    assert main(["show", store.path, "1@x.org"]) == 0
    out = capsys.readouterr().out
    assert f"id          {dead.id}\nstate       failed; " in out
    assert "\nmessage id  1@x.org\n" in out
    defer(store)
    deferred = only(store, EntryState.DEFERRED)
    assert main(["show", store.path, "<1@x.org>"]) == 0
    first, second = capsys.readouterr().out.split("\n\nid ")
    assert deferred.id in first
    assert dead.id in second
    assert main(["show", "--json", store.path, "<1@x.org>"]) == 0
    states = [each["state"] for each in objects(capsys.readouterr().out)]
    assert states == ["deferred", "failed"]
    assert main(["show", "--raw", store.path, "<1@x.org>"]) == 2
    told = f"'<1@x.org>' has 2 entries, give one: {deferred.id}, {dead.id}\n"
    assert capsys.readouterr().err == f"postcommit: {told}"


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Subject: Grüße"),
        ("Subject: =?utf-8?b?4oKs?=\n =?iso-8859-1?q?=E6?= x", "Subject: €æ x"),
        ("From: =?utf-8?q?J=C3=B6rg?= <j@x.org>", "From: Jörg <j@x.org>"),
        ("Subject: a\r\n\tb", "Subject: a b"),
        ("Subject: =?utf-8?q?=1B[2J=0AEvil:_x?=", r"Subject: \x1b[2J\nEvil: x"),
        ("Subject: =?utf-8?b?4oCu?=", r"Subject: \u202e"),
        ("Subject: a\u2028Evil: x", r"Subject: a\u2028Evil: x"),
        ("Subject: =?utf-8?q?a?= =?nope?q?b?=", "Subject: =?utf-8?q?a?= =?nope?q?b?="),
        ("Subject: =?utf-8?b?a?=", "Subject: =?utf-8?b?a?="),
        ("Subject: =?zip?b?YQ==?=", "Subject: =?zip?b?YQ==?="),
        ("Subject: =?utf-8?q?=FF?=", "Subject: =?utf-8?q?=FF?="),
        ("no field", "no field"),
    ],
)
def test_show_decodes_fields_and_no_control_characters(
    store: Store, capsys: pytest.CaptureFixture[str], field: str, shown: str
) -> None:
    envelope = b"X-Zope-From: \nX-Zope-To: a@x.org\n"
    write(store, "new/what", envelope + field.encode() + b"\nX-End: 1\n\ntext")
    assert main(["show", store.path, "what"]) == 0
    assert capsys.readouterr().out.endswith(f"\n\n{shown}\nX-End: 1\n")


def test_show_has_the_whole_of_a_long_header(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    many = b"X-Long: " + b"x" * 70_000 + b"\nX-Last: 1\nMessage-Id: <9@x>\n\n"
    write(store, "new/what", b"X-Zope-From: \nX-Zope-To: a@x.org\n" + many)
    assert main(["show", store.path, "9@x.org"]) == 2
    assert main(["show", store.path, "what"]) == 0
    found = capsys.readouterr().out
    assert main(["show", store.path, "9@x"]) == 0
    assert capsys.readouterr().out == found
    assert main(["show", store.path, "<9@x>"]) == 0
    assert capsys.readouterr().out.endswith("\nX-Last: 1\nMessage-Id: <9@x>\n")


def test_show_of_an_envelope_longer_than_most_files(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    many = b", ".join(b"user%d@example.org" % number for number in range(60_000))
    data = b"X-Zope-From: \nX-Zope-To: " + many + b"\nMessage-Id: <1@x>\n\ntext"
    assert len(data) > 1 << 20
    write(store, "new/what", data)
    assert main(["show", "--json", store.path, "<1@x>"]) == 0
    [shown] = objects(capsys.readouterr().out)
    assert len(shown["recipients"]) == 60_000


def test_show_of_a_header_that_does_not_end(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in (65536 - 42, 3 << 20):
        data = b"X-Zope-From: \nX-Zope-To: a@x.org\n" + b"X-Long: " + b"x" * size
        write(store, "new/what", data)
        assert main(["show", store.path, "what"]) == 0
        out = capsys.readouterr().out
        assert "problem" not in out
        assert out.count("x") >= min(size, (1 << 20) - 100)


# status


def test_status(store: Store) -> None:
    fill(store)
    done = command("status", store.path)
    assert (done.returncode, done.stderr) == (1, "")
    item = only(store, EntryState.IN_DOUBT)
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "       1  waiting, never tried",
        "       1  deferred; most often (1 of 1): 450 4.2.0 Later",
        "       1  dead letter; most often (1 of 1): 550 5.1.1 No such user",
        "       1  in doubt",
    ]
    assert re.fullmatch(r" {7}1  due now, the oldest for .+s", lines[4])
    assert lines[5] == "processor not running"
    assert lines[6].split()[0] == item.id
    assert lines[7:] == [
        "attention: 1 in doubt; 'postcommit recover' sends or drops them",
        "attention: 1 due, processor not running; 'postcommit run' or"
        " 'postcommit flush'",
    ]


def test_status_of_a_queue_that_needs_nobody(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    wakeup = Wakeup(store.path)
    try:
        assert main(["status", store.path]) == 0
    finally:
        wakeup.close()
    out = capsys.readouterr().out
    assert re.search(r"\n {7}0  due now\nprocessor alive, last sign \d+s ago\n$", out)
    assert "attention" not in out


def test_status_tells_a_processor_that_hangs(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    defer(store, due=-4000)
    wakeup = Wakeup(store.path)
    try:
        os.utime(f"{store.path}/.wakeup", (time.time() - 300,) * 2)
        assert main(["status", store.path]) == 1
    finally:
        wakeup.close()
    out = capsys.readouterr().out
    assert re.search(r"attention: the processor hangs, no sign of life for 5m", out)
    assert "an entry is due for 1h6m: the processor's log says why" in out


def test_status_warns_as_asked(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    bury(store)
    bury(store)
    defer(store, due=-600)
    argv = ["status", store.path, "--no-processor"]
    assert main(argv) == 0
    assert main([*argv, "--warn-age", "5m"]) == 1
    assert "an entry is due for 10m: processor not running" in capsys.readouterr().out
    assert main([*argv, "--warn-failed", "2"]) == 0
    assert main([*argv, "--warn-failed", "1"]) == 1
    assert "2 dead letters; 'postcommit list --failed'" in capsys.readouterr().out


def test_status_says_at_once_that_no_processor_lives(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def attention(*options: str) -> list[str]:
        status = main(["status", "--json", store.path, *options])
        [told] = objects(capsys.readouterr().out)
        assert status == bool(told["attention"])
        return list(told["attention"])

    deferred = defer(store, due=3600)
    assert attention() == []  # nothing is due
    wait(store)
    assert attention() == [
        "1 due, processor not running; 'postcommit run' or 'postcommit flush'"
    ]
    assert attention("--no-processor") == []
    os.utime(f"{store.path}/cur/{deferred}:2,", (time.time() - 1,) * 2)
    assert attention()[0].startswith("2 due, processor not running")
    wakeup = Wakeup(store.path)
    try:
        assert attention() == []
    finally:
        wakeup.close()


def test_status_says_that_the_disk_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(tmp_path) as disk:
        if not os.path.ismount(disk):
            pytest.skip("may not mount here")
        store = Store(str(disk / "queue"))
        assert main(["status", store.path]) == 1
        told = "attention: the queue is on a disk with 0 MiB left; make room"
        assert told in capsys.readouterr().out
        assert main(["status", "--prometheus", store.path]) == 1
        assert re.search(r"attention\{.*\} [1-9]", capsys.readouterr().out)


TIMES = [-(2**62), -62135596801, -1, 0, 253402300800, 300000000000, 2**62]


@pytest.fixture
def any_time() -> Iterator[Store]:
    """A queue on a file system that has times of any year."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Store(f"{folder}/queue")


@pytest.mark.parametrize("seconds", TIMES)
def test_files_of_any_time_can_be_looked_at(
    seconds: int, any_time: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "1700000000.M1P1Q1.web"
    paths = [write(any_time, f"{folder}/{name}") for folder in ("new", "cur")]
    paths.append(write(any_time, f"new/{'9' * 11}.M999999P1Q1.web"))
    paths.append(write(any_time, f"new/{'9' * 200}.M999999P1Q1.web"))
    bury(any_time)
    paths += Path(any_time.path, ".Failed/new").iterdir()
    leave_in_doubt(any_time, 1)
    paths += Path(any_time.path, "tmp").iterdir()
    for path in paths:
        subprocess.run(["touch", "-c", "-d", f"@{seconds}", path], check=True)
    path = any_time.path
    for words in (["status"], ["list"], ["list", "--failed"], ["check"]):
        for form in ([], ["--json"]):
            assert main([*words, *form, path]) in (0, 1)
            assert capsys.readouterr().err == ""
    for item in MaildirOperators(path).items(EntryState):
        for form in ([], ["--json"]):
            assert main(["show", *form, path, item.id]) == 0
    assert main(["status", "--prometheus", path]) == 1
    assert main(["recover", "--drop", path, "ALL"]) == 0


@given(st.integers(-(2**70), 2**70) | st.floats(allow_nan=False))
def test_any_number_of_seconds_is_a_time(seconds: float) -> None:
    told = timestamp(seconds)
    assert told is not None
    assert datetime.fromisoformat(told).tzinfo is not None
    assert moment(seconds).isprintable()


def test_status_says_what_it_did_not_look_at(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    defer(store)
    monkeypatch.setattr(MaildirOperators.survey, "__defaults__", (0.0,))
    assert main(["status", store.path]) == 0
    told = "0  due now; 0 of the deferred were asked, there may be more\n"
    assert told in capsys.readouterr().out


def test_status_tells_of_another_librarys_processor(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    write(store, "new/.sending-1700000000.M1P1Q1.web")
    assert main(["status", store.path]) == 1
    assert "another library's processor drains" in capsys.readouterr().out


def test_status_says_when_a_receiver_last_acknowledged(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = ReceptionNote(store.path, Reception("amqp://mq/", "postcommit"))
    mine.reception.received = 7
    mine.reception.last_acknowledged = time.time() - 7200.0
    mine.show(connected=False, problem="it is down")
    main(["status", store.path])
    mine.close()
    told = "not connected to amqp://mq/, 7 received, last acknowledged 2h ago"
    assert f"receiver  {told}\n" in capsys.readouterr().out


def test_status_names_a_few_of_those_in_doubt(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    names = leave_in_doubt(store, 12)
    path = next(store.in_doubt())
    os.rename(path, path.replace(names[0], "what"))
    assert main(["status", store.path]) == 1
    out = capsys.readouterr().out
    assert len(re.findall(r"^ {10}[0-9a-f]{12}  ", out, re.MULTILINE)) == 10
    assert "          and more\n" in out
    assert "attention: 12 in doubt" in out


def test_status_for_programs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store)
    assert main(["status", "--json", store.path]) == 1
    [told] = objects(capsys.readouterr().out)
    assert re.fullmatch(r"20.*\+00:00", told.pop("oldest_due"))
    assert told.pop("oldest_due_seconds") >= 0
    assert told == {
        "queue": store.path,
        "waiting": 1,
        "scheduled": 0,
        "deferred": 1,
        "bulk": 0,
        "held": 0,
        "failed": 1,
        "in_doubt": 1,
        "due": 1,
        "due_looked_at": 1,
        "next_scheduled": None,
        "next_scheduled_seconds": None,
        "deferred_reason": {"reply": "450 4.2.0 Later", "count": 1, "looked_at": 1},
        "failed_reason": {
            "reply": "550 5.1.1 No such user",
            "count": 1,
            "looked_at": 1,
        },
        "foreign_claims": 0,
        "processor_alive": False,
        "heartbeat_seconds": None,
        "paused": None,
        "paused_by_hand": None,
        "receivers": [],
        "attention": [
            "1 in doubt; 'postcommit recover' sends or drops them",
            "1 due, processor not running; 'postcommit run' or 'postcommit flush'",
        ],
    }


def test_status_of_an_empty_queue_for_programs(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--json", store.path]) == 0
    [told] = objects(capsys.readouterr().out)
    assert told["oldest_due"] is told["oldest_due_seconds"] is None
    assert told["deferred_reason"] is told["failed_reason"] is None
    assert told["attention"] == []


def test_status_for_prometheus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path / 'a "queue\\'))
    fill(store)
    wakeup = Wakeup(store.path)
    try:
        assert main(["status", "--prometheus", store.path]) == 1
    finally:
        wakeup.close()
    # Prometheus' own parser.
    families = list(text_string_to_metric_families(capsys.readouterr().out))
    assert {family.type for family in families} == {"gauge"}
    assert all(family.documentation for family in families)
    gauges = {}
    for sample in (sample for family in families for sample in family.samples):
        assert sample.labels.pop("queue") == store.path
        gauges[sample.name, *sample.labels.values()] = sample.value
    assert gauges.pop(("postcommit_queue_oldest_due_seconds",)) >= 0
    assert gauges.pop(("postcommit_queue_heartbeat_seconds",)) >= 0
    assert gauges == {
        ("postcommit_queue_entries", "waiting"): 1,
        ("postcommit_queue_entries", "scheduled"): 0,
        ("postcommit_queue_entries", "deferred"): 1,
        ("postcommit_queue_entries", "bulk"): 0,
        ("postcommit_queue_entries", "held"): 0,
        ("postcommit_queue_entries", "failed"): 1,
        ("postcommit_queue_entries", "in_doubt"): 1,
        ("postcommit_queue_due",): 1,
        ("postcommit_queue_processor_alive",): 1,
        ("postcommit_queue_paused",): 0,
        ("postcommit_queue_paused_by_hand",): 0,
        ("postcommit_queue_due_looked_at",): 1,
        ("postcommit_queue_foreign_claims",): 0,
        ("postcommit_queue_attention",): 1,
    }


def test_metrics_leave_out_what_is_not_known(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--prometheus", store.path]) == 0
    out = capsys.readouterr().out
    assert "heartbeat_seconds" not in out
    assert re.search(r"oldest_due_seconds\{.*\} 0\n", out)


@pytest.fixture
def mailbox(tmp_path: Path) -> Store:
    """A Maildir of messages without envelope, such as a mail reader has."""
    Maildir(str(tmp_path / "mailbox"), create=True)
    store = Store(str(tmp_path / "mailbox"), to_look=True)
    write(store, "new/1700000000.M1P1Q1.web", MESSAGE)
    write(store, "cur/1700000001.M1P1Q1.web:2,S", MESSAGE)
    return store


def test_the_status_of_a_mailbox_says_what_it_is(
    mailbox: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--json", mailbox.path]) == 1
    [told] = objects(capsys.readouterr().out)
    assert (told["waiting"], told["deferred"]) == (1, 1)
    [attention] = told["attention"]
    assert attention.startswith("it has mail, but no entry of a queue, so this may be")
    assert "flush --adopt" in attention
    assert main(["status", mailbox.path]) == 1
    assert "'postcommit run'" not in capsys.readouterr().out


def test_a_link_in_the_place_of_the_dead_letters_has_a_status(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.symlink(tmp_path, f"{store.path}/.Failed")
    assert main(["status", store.path]) == 0
    assert "0  dead letters\n" in capsys.readouterr().out


# check


def test_no_mail_of_a_mailbox_is_found_fault_with(
    mailbox: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", mailbox.path]) == 1
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{mailbox.path}: it has mail, but no entry of a queue")
    assert "delete" not in line


def test_check(store: Store) -> None:
    wait(store)
    done = command("check", store.path)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "the queue is sound\n",
        "",
    )
    path = write(store, "new/1700000000.M1P1Q1.web", b"\x1b text")
    done = command("check", store.path)
    assert (done.returncode, done.stderr) == (1, "")
    [line] = done.stdout.splitlines()
    assert line.startswith(f"{path}: is no entry: there is no envelope; 'postcommit ")


def test_check_for_programs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", store.path]) == 0
    assert capsys.readouterr().out == ""
    os.chmod(store.path, 0o750)
    assert main(["check", "--json", store.path]) == 1
    assert objects(capsys.readouterr().out) == [
        {
            "path": store.path,
            "problem": "has mode 0750, so others can read the mail",
            "advice": f"'chmod go= {store.path}'",
        }
    ]
