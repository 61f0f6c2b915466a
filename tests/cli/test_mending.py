"""``postcommit retry``, ``delete``, ``recover``; and what they refuse."""
from __future__ import annotations

import io
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from postcommit._cli.main import main
from postcommit._cli.selection import seconds
from postcommit._maildir.files import FileLock
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Item
from postcommit._maildir.looking import item_at
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.staging import leader_of
from postcommit._maildir.store import Store
from tests.support.faults import without_privileges
from tests.support.queues import ENTRY
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import fill
from tests.support.queues import leave_in_doubt
from tests.support.queues import wait
from tests.support.queues import write
from tests.support.service import COMMAND
from tests.support.service import PATIENCE
from tests.support.service import ROOT
from tests.support.service import command
from tests.support.service import environment
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay
from tests.support.terminal import on_terminal


def ids(store: Store, *states: EntryState) -> list[str]:
    return [item.id for item in MaildirOperators(store.path).items(states)]


def only(store: Store, state: EntryState) -> Item:
    [item] = MaildirOperators(store.path).items([state])
    return item


def contents(store: Store) -> list[tuple[str, int]]:
    """Return every file with its time of change: what «nothing changed» is about."""
    found = []
    for folder, _, names in os.walk(store.path):
        for path in (folder, *(f"{folder}/{name}" for name in names)):
            found.append((path, os.lstat(path).st_mtime_ns))
    return sorted(found)


def given(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


# retry


def test_retry(store: Store) -> None:
    fill(store)
    deferred, dead = only(store, EntryState.DEFERRED), only(store, EntryState.FAILED)
    waiting = only(store, EntryState.WAITING)
    chosen = [deferred.id[:6], dead.id, waiting.name]
    done = command("retry", store.path, *chosen)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{deferred.id}  will be retried  {deferred.name}",
        f"{dead.id}  will be retried  {dead.name}",
        f"{waiting.id}  will be retried  {waiting.name}",
    ]
    assert done.stderr == "3 entries will be retried, 0 skipped\n"
    assert ids(store, EntryState.FAILED) == []
    assert len(ids(store, EntryState.WAITING)) == 2
    due = MaildirOperators(store.path).details(only(store, EntryState.DEFERRED))
    assert due is not None
    assert due.due is not None
    assert due.due < os.stat(f"{store.path}/cur").st_mtime + 1


def test_retry_of_all_that_is_deferred_or_failed(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    assert main(["retry", store.path, "ALL"]) == 0
    assert capsys.readouterr().err == "1 entry will be retried, 0 skipped\n"
    assert len(ids(store, EntryState.FAILED)) == 1
    assert main(["retry", store.path, "ALL", "--failed", "--to", "a@y.org"]) == 0
    assert len(ids(store, EntryState.FAILED)) == 1
    assert main(["retry", store.path, "ALL", "--failed", "--to", "@x.org"]) == 0
    assert len(ids(store, EntryState.FAILED)) == 0


def test_retry_leaves_what_cannot_be_sent_and_goes_on(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    bury(store)
    path = write(store, ".Failed/new/1700000000.M1P1Q1.web", b"text")
    assert main(["retry", store.path, "ALL", "--failed"]) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    [dead] = MaildirOperators(store.path).items([EntryState.FAILED])
    said = f"postcommit: {dead.id}: it cannot be sent: there is no envelope\n"
    assert err.startswith(said)
    assert err.endswith("\n1 entry will be retried, 1 skipped\n")
    assert path.exists()


def test_retry_leaves_what_somebody_works_on(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    defer(store)
    item = only(store, EntryState.DEFERRED)
    lock = FileLock(item.place)
    assert lock.acquire()
    try:
        assert main(["retry", store.path, item.id]) == 1
    finally:
        lock.release()
    told = f"postcommit: {item.id}: skipped: it is gone, or a processor is sending it"
    assert capsys.readouterr().err.startswith(told)


UNCERTAIN = ENTRY.replace(
    b"Message-Id",
    b"X-Zope-Attempts: 3 (2 uncertain)\n"
    b"X-Zope-Reply: uncertain, it may have arrived: 4.4.2 Connection lost\n"
    b"Message-Id",
)


def test_retry_warns_of_a_second_copy(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["retry", store.path, bury(store)]) == 0
    assert capsys.readouterr().err == "1 entry will be retried, 0 skipped\n"
    write(store, ".Failed/new/1700000000.M1P1Q1.web", UNCERTAIN)
    write(store, ".Failed/new/1700000001.M1P1Q1.web", b"text")
    write(store, "cur/1700000002.M1P1Q1.web:2,", UNCERTAIN)
    # It would be tried again anyway.
    assert main(["retry", store.path, "ALL"]) == 0
    assert capsys.readouterr().err == "1 entry will be retried, 0 skipped\n"
    assert main(["retry", store.path, "ALL", "--failed"]) == 1
    assert capsys.readouterr().err.endswith(
        "1 entry will be retried, 1 skipped\n"
        "1 entry may have arrived already; a second copy may arrive\n"
    )


def test_the_id_of_a_dead_letter_survives_a_retry(
    store: Store, start: Callable[..., ScriptedRelay]
) -> None:
    relay = start()
    relay.reply("RCPT", "550 5.1.1 No")
    wait(store)
    first = only(store, EntryState.WAITING).id
    flush = ["flush", store.path, *to(relay)]
    assert main(flush) == 0
    for _ in range(3):
        # Dead again and again, and each time it is the same.
        dead = only(store, EntryState.FAILED)
        assert dead.id == first
        assert main(["retry", store.path, first]) == 0
        assert only(store, EntryState.WAITING).id == first
        assert main(flush) == 0


def test_a_dead_letter_of_which_some_are_tried_again_has_an_id_of_its_own(
    store: Store, start: Callable[..., ScriptedRelay]
) -> None:
    relay = start()
    relay.reply("RCPT", "550 5.1.1 No", address="a@x.org")
    relay.reply("RCPT", "450 4.2.0 Later", address="b@x.org")
    wait(store)
    first = only(store, EntryState.WAITING).id
    flush = ["flush", store.path, *to(relay)]
    assert main(flush) == 1
    assert only(store, EntryState.DEFERRED).id == first
    dead = only(store, EntryState.FAILED).id
    assert dead != first
    assert main(["retry", store.path, dead, first]) == 0
    assert main(flush) == 1
    assert only(store, EntryState.FAILED).id == dead
    assert only(store, EntryState.DEFERRED).id == first


@pytest.mark.parametrize("name", ["retry", "delete"])
def test_every_entry_of_a_message(
    store: Store, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    bury(store)
    defer(store)
    write(store, "new/1700000000.M1P1Q1.web", ENTRY.replace(b"<1@", b"<2@"))
    assert main([name, store.path, "<1@x.org>"]) == 0
    done = "will be retried" if name == "retry" else "deleted"
    assert capsys.readouterr().err == f"2 entries {done}, 0 skipped\n"
    assert ids(store, EntryState.FAILED) == []
    assert main(["delete", store.path, "ALL", "--yes", "--message-id", "2@x.org"]) == 0
    assert len(ids(store, EntryState.WAITING, EntryState.DEFERRED)) == (
        2 if name == "retry" else 0
    )


@pytest.mark.parametrize("verbose", [False, True])
def test_of_many_entries_the_first_are_named_and_all_are_counted(
    store: Store, capsys: pytest.CaptureFixture[str], verbose: bool
) -> None:
    for number in range(60):
        write(store, f".Failed/new/17{number:08d}.M1P1Q1.web")
        write(store, f".Failed/new/18{number:08d}.M1P1Q1.web", b"not an entry")
    argv = ["retry", store.path, "ALL", "--failed"]
    assert main([*argv, "--verbose"] if verbose else argv) == 1
    out, err = capsys.readouterr()
    more = ["and 40 more; --verbose names all"]
    assert len(out.splitlines()) == (60 if verbose else 21)
    assert len(err.splitlines()) == (61 if verbose else 22)
    assert out.splitlines()[20:21] == (out.splitlines()[20:21] if verbose else more)
    assert err.splitlines()[-2:-1] == (err.splitlines()[-2:-1] if verbose else more)
    assert err.endswith("\n60 entries will be retried, 60 skipped\n")


def test_delete_of_many_shows_how_far_it_is(store: Store) -> None:
    for number in range(200):
        write(store, f"new/17{number:08d}.M1P1Q1.web")
    argv = ("delete", store.path, "ALL")
    status, screen = on_terminal(*argv, answer="y\n", TEST_PATIENCE="0")
    assert status == 0
    last = screen.split("\r\x1b[K")[-1].splitlines()
    before, after = screen.split("Delete 200 entries permanently? [y/N] ")
    assert "64 of 200 entries, 0 deleted" in before
    assert "64 of 200 entries, 63 deleted" in after
    assert last == [
        "and 180 more; --verbose names all",
        "200 entries deleted, 0 skipped",
    ]
    assert screen.count("\n") == 23


# delete


def test_delete(store: Store) -> None:
    fill(store)
    item = only(store, EntryState.FAILED)
    done = command("delete", store.path, item.id)
    assert (done.returncode, done.stderr) == (0, "1 entry deleted, 0 skipped\n")
    assert done.stdout == f"{item.id}  deleted  {item.name}\n"
    assert ids(store, EntryState.FAILED) == []


def test_delete_asks_on_a_terminal(store: Store) -> None:
    bury(store)
    bury(store)
    argv = ("delete", store.path, "ALL", "--failed")
    status, screen = on_terminal(*argv, answer="n\n")
    assert status == 1
    assert "Delete 2 entries permanently? [y/N] " in screen
    assert screen.endswith("nothing deleted\n")
    assert len(ids(store, EntryState.FAILED)) == 2
    status, screen = on_terminal(*argv, answer="y\n")
    assert status == 0
    assert screen.endswith("\n2 entries deleted, 0 skipped\n")
    assert ids(store, EntryState.FAILED) == []


def test_delete_of_all_needs_yes_where_nobody_can_be_asked(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    given(monkeypatch, "")
    assert main(["delete", store.path, "ALL"]) == 2
    told = "postcommit: 'ALL' needs --yes without a terminal\n"
    assert capsys.readouterr().err == told
    assert len(ids(store, *EntryState)) == 4
    assert main(["delete", store.path, "ALL", "--yes"]) == 0
    assert len(ids(store, *EntryState)) == 2
    assert ids(store, EntryState.WAITING, EntryState.DEFERRED) == []


def test_when_nobody_reads_on_it_is_told_how_many_are_deleted(store: Store) -> None:
    for _ in range(300):
        wait(store)
    arguments = [*COMMAND, "delete", store.path, "ALL", "--waiting", "--yes"]
    arguments.append("--verbose")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        arguments,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        env=environment(),
    )
    os.close(writing)
    assert done.returncode == 1
    found = re.fullmatch(r"(\d+) entr(?:y|ies) deleted, 0 skipped\n", done.stderr)
    assert found is not None, done.stderr
    assert 0 < int(found[1]) == 300 - len(ids(store, EntryState.WAITING)) < 300


# recover


@pytest.mark.parametrize(("how", "done"), [("send", "accepted"), ("drop", "removed")])
def test_recover(store: Store, how: str, done: str) -> None:
    leave_in_doubt(store, 2)
    doubts = ids(store, EntryState.IN_DOUBT)
    every = [] if how == "send" else ["ALL"]
    ended = command("recover", f"--{how}", store.path, *every)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert sorted(line.split()[:2] for line in lines) == sorted(
        [done, each] for each in doubts
    )
    assert ids(store, EntryState.WAITING) == (doubts if how == "send" else [])
    assert ids(store, EntryState.IN_DOUBT) == []


def test_nothing_is_dropped_without_ids(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_in_doubt(store, 2)
    doubts = ids(store, EntryState.IN_DOUBT)
    assert main(["recover", "--drop", store.path]) == 2
    assert "'--drop' needs ids, or ALL" in capsys.readouterr().err
    assert ids(store, EntryState.IN_DOUBT) == doubts


def test_recover_of_some(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    leave_in_doubt(store, 2)
    first, second = ids(store, EntryState.IN_DOUBT)
    assert main(["recover", "--send", store.path, first]) == 0
    assert ids(store, EntryState.WAITING) == [first]
    assert ids(store, EntryState.IN_DOUBT) == [second]
    assert main(["recover", "--drop", store.path, first]) == 2
    told = f"postcommit: '{first}' is not in doubt but waiting\n"
    assert capsys.readouterr().err == told


def test_recover_says_that_nothing_is_in_doubt(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recover", "--drop", store.path, "ALL"]) == 0
    assert capsys.readouterr().out == "nothing is in doubt\n"


def test_recover_of_a_name_that_tells_no_time(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    [name] = leave_in_doubt(store, 1)
    path = next(store.in_doubt())
    os.rename(path, path.replace(name, "what"))
    assert main(["recover", "--send", store.path]) == 0
    assert capsys.readouterr().out.endswith("  what\n")


def test_recover_leaves_what_somebody_else_recovers(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_in_doubt(store, 1)
    item = only(store, EntryState.IN_DOUBT)
    lock = FileLock(leader_of(item.place))
    monkeypatch.setattr(MaildirOperators, "find", lambda self, ids: [item])
    assert lock.acquire()
    try:
        assert main(["recover", "--send", store.path, item.id]) == 1
    finally:
        lock.release()
    told = "1 entry skipped: another command is recovering them now\n"
    assert capsys.readouterr().out == told
    assert only(store, EntryState.IN_DOUBT) == item


# Which entries


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_ids_from_standard_input_as_list_prints_them(
    store: Store,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: list[str],
) -> None:
    defer(store)
    defer(store)
    assert main(["list", *form, store.path]) == 0
    given(monkeypatch, capsys.readouterr().out + "\n")
    assert main(["retry", store.path, "-"]) == 0
    assert capsys.readouterr().err == "2 entries will be retried, 0 skipped\n"


def test_from_one_process_to_another(store: Store) -> None:
    fill(store)
    line = " ".join([*COMMAND, "list", "--failed", store.path])
    line += " | " + " ".join([*COMMAND, "delete", store.path, "-"])
    done = subprocess.run(
        line,
        shell=True,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "1 entry deleted, 0 skipped\n")
    assert ids(store, EntryState.FAILED) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'-' finds no id on standard input"),
        ("ID  AGE\n\n", "'-' finds no id on standard input"),
        ("{}\n", "'{}' is no line of JSON with an id"),
        ("{x\n", "'{x' is no line of JSON with an id"),
        ("../x\n", "'../x' is not in this queue"),
        ("ALL\n0123\n", "'ALL' means every entry, give no other id"),
    ],
)
def test_what_is_no_id_on_standard_input(
    store: Store,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    told: str,
) -> None:
    fill(store)
    before = contents(store)
    given(monkeypatch, text)
    assert main(["delete", "--yes", store.path, "-"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"postcommit: {told}")
    assert err.count("\n") == 1
    assert contents(store) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ffff"], "is not in this queue; it may have been sent or deleted"),
        (["what"], "is not in this queue"),
        (["fff"], "is too short"),
        ([""], "is not an id"),
        ([".."], "is too short"),
        (["../new/x"], "is not in this queue"),
        (["/etc/passwd"], "is not in this queue"),
        (["all"], "has to be in capitals: ALL"),
        (["ALL", "ffff"], "means every entry, give no other id with it"),
        (["ffff", "--failed"], "'ffff' is an id, so no option may choose entries"),
        (["ffff", "--older", "1h"], "only ALL takes them"),
        (["ALL", "--older", "soon"], "'soon': must be a duration such as 90, 15m"),
        (["ALL", "--failed", "--deferred"], "not allowed with argument"),
        ([], "required: ID"),
    ],
)
@pytest.mark.parametrize("name", ["retry", "delete"])
def test_bad_input_is_one_line_and_changes_nothing(
    store: Store,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: list[str],
    told: str,
) -> None:
    fill(store)
    before = contents(store)
    try:
        status: object = main([name, store.path, *arguments])
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert contents(store) == before


def test_an_ambiguous_id_names_the_candidates(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, str] = {}
    number = 0
    while True:
        path = f"{store.path}/new/17{number:08d}.M1P1Q1.web"
        id = item_at(path, EntryState.WAITING).id
        if id[:4] in seen:
            break
        seen[id[:4]] = path
        number += 1
    other = seen[id[:4]]
    for each in (path, other):
        write(store, os.path.relpath(each, store.path))
    before = contents(store)
    assert main(["retry", store.path, id[:4]]) == 2
    err = capsys.readouterr().err
    assert f"{id} (waiting)" in err
    assert f"{item_at(other, EntryState.WAITING).id} (waiting)" in err
    assert contents(store) == before


@pytest.mark.parametrize("name", ["retry", "delete"])
def test_what_is_in_doubt_is_only_recovered(
    store: Store, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    fill(store)
    before = contents(store)
    chosen = [only(store, EntryState.DEFERRED).id, only(store, EntryState.IN_DOUBT).id]
    assert main([name, store.path, *chosen]) == 2
    told = f"postcommit: '{chosen[1]}' is in doubt; use 'postcommit recover'\n"
    assert capsys.readouterr() == ("", told)
    assert contents(store) == before


ALL_OF_THEM = [
    ["status"],
    ["list"],
    ["show", "0123"],
    ["retry", "ALL"],
    ["delete", "--yes", "ALL"],
    ["recover", "--send"],
    ["check"],
]


@pytest.mark.parametrize("argv", ALL_OF_THEM, ids=lambda argv: argv[0])
def test_what_is_no_queue_is_refused_and_not_made_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    name, *rest = argv
    for path, told in (
        (tmp_path / "missing", "is the path right?"),
        (file, "is no folder, so no Maildir; name another"),
        (tmp_path, "is no Maildir, it has no tmp"),
    ):
        assert main([name, str(path), *rest]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert str(path) in err
        assert told in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("argv", ALL_OF_THEM, ids=lambda argv: argv[0])
def test_without_permission_nothing_is_done(
    store: Store, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    fill(store)
    name, *rest = argv
    os.chmod(store.path, 0o000)
    statuses = []
    without_privileges(lambda: statuses.append(main([name, store.path, *rest])))
    os.chmod(store.path, 0o700)
    out, err = capsys.readouterr()
    assert (statuses, out) == ([2], "")
    assert err.count("\n") == 1
    assert err.endswith("; run as the user that owns the queue\n")
    assert len(ids(store, *EntryState)) == 4


@pytest.mark.parametrize("argv", ALL_OF_THEM[3:6], ids=lambda argv: argv[0])
def test_a_queue_that_another_library_drains_is_not_changed(
    store: Store, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    fill(store)
    claim = write(store, f"new/.sending-{os.path.basename(wait(store))}")
    before = contents(store)
    name, *rest = argv
    assert main([name, store.path, *rest]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"postcommit: {claim}: another library's processor drains")
    assert err.count("\n") == 1
    assert contents(store) == before


@pytest.mark.parametrize(
    ("text", "meant"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("3d", 259200)],
)
def test_durations(text: str, meant: float) -> None:
    assert seconds(text) == meant
