"""Is a queue sound: each thing that may be wrong, made wrong."""
from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from postcommit._maildir import looking as module
from postcommit._maildir.checking import check
from postcommit._maildir.item import Finding
from postcommit._maildir.store import Store
from tests.support.faults import without_privileges
from tests.support.queues import ENTRY
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import leave_in_doubt
from tests.support.queues import wait
from tests.support.queues import write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "a queue"))


def findings(store: Store, now: float | None = None) -> list[Finding]:
    return list(check(store, time.time() if now is None else now))


def only(store: Store, now: float | None = None) -> Finding:
    [finding] = findings(store, now)
    return finding


def test_a_queue_in_use_is_sound(store: Store) -> None:
    assert findings(store) == []
    bury(store)
    defer(store)
    wait(store)
    store.stage("s@x.org", ("a@x.org",), [b"Subject: x\n\n"])
    assert findings(store) == []


def test_rights_and_the_command_that_mends_them(store: Store) -> None:
    bury(store)
    name = wait(store)
    for path in (store.path, f"{store.path}/new/{name}", f"{store.path}/.Failed/new"):
        os.chmod(path, 0o755)
        finding = only(store)
        assert finding.place == path
        assert finding.problem == "has mode 0755, so others can read the mail"
        # The command is all between the apostrophes, whatever the path is.
        subprocess.run(["sh", "-c", finding.advice[1:-1]], check=True)
        assert findings(store) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owners(store: Store) -> None:
    name = wait(store)
    os.chown(f"{store.path}/new/{name}", 65534, -1)
    finding = only(store)
    assert finding.problem == "belongs to user 65534, the queue to user 0"
    assert finding.advice.startswith("as root, run 'chown -h 0:")


def test_what_is_missing_below_the_dead_letters(store: Store) -> None:
    bury(store)
    os.rmdir(f"{store.path}/.Failed/cur")
    finding = only(store)
    assert finding.place == f"{store.path}/.Failed/cur"
    assert finding.problem == "is missing"


def test_a_link_in_the_place_of_a_folder(store: Store, tmp_path: Path) -> None:
    os.rename(f"{store.path}/cur", tmp_path / "cur")
    os.symlink(tmp_path / "cur", f"{store.path}/cur")
    # chmod and chown would change what the link leads to.
    finding = only(store)
    assert finding.problem == "is a symbolic link"
    assert finding.advice == "put the folder itself there"
    os.unlink(f"{store.path}/cur")
    Path(f"{store.path}/cur").touch()
    assert next(check(store, time.time())).problem == "is a file"


def test_a_link_in_the_place_of_a_file_gets_no_advice(
    store: Store, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.touch(0o666)
    os.symlink(outside, f"{store.path}/.paused")
    assert [f for f in check(store, time.time()) if "ch" in f.advice] == []


def test_a_folder_on_another_file_system(store: Store) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", f"{store.path}/tmp"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        finding = only(store)
        assert finding.place == f"{store.path}/tmp"
        assert "on another file system" in finding.problem
    finally:
        subprocess.run(["umount", f"{store.path}/tmp"], check=True)


def test_a_folder_that_this_user_may_not_use(store: Store) -> None:
    os.chmod(f"{store.path}/new", 0o000)
    found: list[Finding] = []

    def look() -> None:
        found.extend(check(store, time.time()))

    without_privileges(look)
    os.chmod(f"{store.path}/new", 0o700)
    [finding] = found
    assert finding.place == f"{store.path}/new"
    assert finding.problem == "may not be read and written by this user"
    told = shlex.quote(f"{store.path}/new")
    assert finding.advice == f"'chmod u=rwx {told}'"


@pytest.mark.parametrize(
    ("limit", "problem"),
    [("_LEAST_FREE", "MiB left"), ("_LEAST_FILES", "more files")],
)
def test_a_disk_that_is_about_to_be_full(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: str, problem: str
) -> None:
    monkeypatch.setattr(module, limit, 1 << 62)
    finding = only(store)
    assert problem in finding.problem
    assert finding.advice == "make room before the next commit fails"


def test_claims_of_another_library(store: Store) -> None:
    path = write(store, "new/.sending-1700000000.M1P1Q1.web")
    now = os.stat(path).st_mtime
    finding = only(store, now + 7)
    assert finding.place == str(path)
    assert finding.problem == "another library has claimed this entry 7 s ago"
    assert "stop its processor" in finding.advice


def test_what_was_never_complete(store: Store) -> None:
    path = write(store, "tmp/1700000000.M1P1Q1.web", b"half")
    assert findings(store) == []
    os.utime(path, (1700000000, 1700000000))
    assert "36 hours" in only(store).problem


def test_what_is_in_doubt(store: Store) -> None:
    leave_in_doubt(store, 1)
    finding = only(store)
    assert "between vote and finish" in finding.problem
    quoted = shlex.quote(store.path)
    assert finding.advice.startswith(f"'postcommit recover --send {quoted} ")
    assert finding.advice.endswith(", or --drop")


def test_what_is_no_entry(store: Store) -> None:
    path = write(store, "new/1700000000.M1P1Q1.web", b"text")
    finding = only(store)
    assert finding.place == str(path)
    assert finding.problem == "is no entry: there is no envelope"
    assert "'postcommit show --raw " in finding.advice


@pytest.mark.parametrize("place", ["new", "cur", ".Failed/new"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_not_a_file(
    store: Store, kind: str, place: str, tmp_path: Path
) -> None:
    bury(store)
    path = f"{store.path}/{place}/1700000000.M1P1Q1 x"
    target = tmp_path / "precious"
    target.touch(0o644)
    if kind == "link":
        os.symlink(target, path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.mkdir(path)
    finding = only(store)
    assert finding.problem.endswith("so it is no entry")
    if kind != "folder":
        subprocess.run(["sh", "-c", finding.advice[1:-1]], check=True)
        assert findings(store) == []
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_no_advice_reaches_a_file_that_is_linked_into_the_queue(
    store: Store, tmp_path: Path
) -> None:
    target = tmp_path / "precious"
    target.write_bytes(ENTRY)
    os.chmod(target, 0o644)
    os.chown(target, 65534, -1)
    os.link(target, f"{store.path}/new/1700000000.M1P1Q1.web")
    found = findings(store)
    assert len(found) == 2
    for finding in found:
        assert "ch" not in finding.advice.partition("'")[2]
        look = finding.advice[finding.advice.index("'") + 1 : -1]
        look = look.replace("find / ", f"find {shlex.quote(str(tmp_path))} ")
        done = subprocess.run(["sh", "-c", look], capture_output=True, text=True)
        assert str(target) in done.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_no_advice_changes_anything_outside_of_the_queue(
    store: Store, tmp_path: Path
) -> None:
    """Whatever is in the queue: links in place of files, of folders, and hard links."""
    outside = tmp_path / "outside"
    outside.mkdir(0o755)
    bury(store)
    for number, place in enumerate(("tmp", "new", "cur", ".Failed/new", ".Failed")):
        file = outside / f"{number}"
        file.write_bytes(ENTRY)
        os.chown(file, 65534, -1)
        os.symlink(file, f"{store.path}/{place}/170000000{number}.link")
        os.link(file, f"{store.path}/{place}/170000000{number}.hard")
    os.rmdir(f"{store.path}/.Failed/cur")
    os.symlink(outside, f"{store.path}/.Failed/cur")
    before = {path: os.lstat(path)[:6] for path in (outside, *outside.iterdir())}
    for finding in check(store, time.time()):
        _, _, advice = finding.advice.partition("'")
        if advice.startswith(("chmod", "chown")):
            subprocess.run(["sh", "-c", advice.rpartition("'")[0]], check=True)
    assert {path: os.lstat(path)[:6] for path in before} == before


@pytest.mark.parametrize("name", ["a b", "it's", "\x1b[2J", "l\n\\x", "\udcff\u202e'"])
def test_the_advice_means_just_this_file_whatever_its_name(
    store: Store, name: str
) -> None:
    path = write(store, f"new/1700000000.M1P1Q1.{name}")
    os.chmod(path, 0o644)
    finding = only(store)
    assert finding.advice.isprintable()
    subprocess.run(["bash", "-c", finding.advice[1:-1]], check=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert findings(store) == []


def test_a_queue_behind_a_link_is_sound(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.path)
    assert findings(Store(str(tmp_path / "link"))) == []
    os.chmod(store.path, 0o755)
    finding = only(Store(str(tmp_path / "link")))
    assert finding.problem == "has mode 0755, so others can read the mail"
    subprocess.run(["sh", "-c", finding.advice[1:-1]], check=True)
    assert findings(store) == []


def test_names_and_times(store: Store) -> None:
    write(store, "new/what")
    assert "does not tell when it was accepted" in only(store).problem
    os.unlink(f"{store.path}/new/what")
    future = int(time.time()) + 200_000
    write(store, f"new/{future}.M1P1Q1.web")
    assert only(store).problem == "was accepted in the future"
    os.unlink(f"{store.path}/new/{future}.M1P1Q1.web")
    defer(store, due=200_000)
    finding = only(store)
    assert finding.problem == "is due more than a day from now"
    assert finding.advice.startswith("'postcommit retry ")


def test_two_files_of_one_name(store: Store) -> None:
    name = defer(store)
    wait(store)
    write(store, f"new/{name}")
    other = write(store, "cur/1700000000.M1P1Q1.web:2,")
    finding = only(store)
    assert finding.place == f"{store.path}/cur/{name}:2,"
    assert "would be sent twice" in finding.problem
    assert other.exists()


def test_what_goes_while_we_look_is_not_found_fault_with(store: Store) -> None:
    for number in (1, 2):
        path = write(store, f"tmp/170000000{number}.M1P1Q1.web", b"half")
        os.utime(path, (1700000000, 1700000000))
        write(store, f"new/170000000{number}.M1P1Q1.web", b"text")
        os.chmod(f"{store.path}/new/170000000{number}.M1P1Q1.web", 0o644)
    found = []
    for finding in check(store, time.time()):
        found.append(os.path.relpath(finding.place, store.path))
        for path in Path(os.path.dirname(finding.place)).iterdir():
            path.unlink()
    # Of each folder one file; the others went with it.
    assert [os.path.dirname(path) for path in found] == ["tmp", "new", "new"]
    assert found[1] == found[2]
