"""Commands of root on somebody else's queue: its owner is not locked out."""
from __future__ import annotations

import argparse
import grp
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from postcommit._cli import owner
from postcommit._cli.configuration import Configuration
from postcommit._cli.main import main
from postcommit._cli.owner import act_as_owner
from postcommit._cli.owner import advice
from postcommit._cli.owner import owner_of
from postcommit._cli.owner import restored
from postcommit._maildir.checking import check
from postcommit._maildir.item import EntryState
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.store import Store
from postcommit.errors import QueueError
from postcommit.errors import RelayError
from tests.support import children
from tests.support.certificates import Authority
from tests.support.faults import _drop_capabilities
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import fill
from tests.support.queues import wait
from tests.support.queues import write
from tests.support.service import Running
from tests.support.service import command
from tests.support.service import eventually
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay
from tests.support.users import as_user
from tests.support.users import owners


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="this is about root")

# A user that no password database has, as in many containers.
UID = 47110

NOBODY = pwd.getpwnam("nobody")

# What a command of root says first.
ACTING = re.compile(r"postcommit: acting as user (.+), who owns '(.+)'\n")

Start = Callable[..., ScriptedRelay]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can look into."""
    made = Path(tempfile.mkdtemp())
    os.chmod(made, 0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def store(folder: Path) -> Store:
    """An empty queue that root still has to give away."""
    return Store(str(folder / "queue"))


def give(store: Store, uid: int = UID) -> str:
    """Give the queue and all in it to a user; return its path."""
    subprocess.run(["chown", "-hR", f"{uid}:{uid}", store.path], check=True)
    assert owners(store.path) == {(uid, uid)}
    return store.path


def item_id(queue: str, state: EntryState) -> str:
    [item] = MaildirOperators(queue).items([state])
    return item.id


# One command of root, then the owner's processor


def test_after_a_flush_of_root_the_owner_goes_on(store: Store, start: Start) -> None:
    relay = start()
    relay.reply("RCPT", "450 4.2.0 Later", address="a@x.org")
    relay.reply("RCPT", "550 5.1.1 No", address="b@x.org")
    wait(store)
    queue = give(store)
    done = command("flush", queue, *to(relay), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["left"] == 1
    assert ACTING.match(done.stderr)
    assert done.stderr.startswith(f"postcommit: acting as user {UID}, who owns")
    assert owners(queue) == {(UID, UID)}
    assert len(os.listdir(f"{queue}/.Failed/new")) == 1

    well = start()
    assert as_user(UID, "retry", queue, "ALL").returncode == 0
    assert as_user(UID, "retry", queue, "ALL", "--failed").returncode == 0
    flushed = as_user(UID, "flush", queue, *to(well))
    assert (flushed.returncode, flushed.stderr) == (0, "")
    assert flushed.stdout == "recipients: 2 sent, 0 deferred, 0 rejected\n"
    assert as_user(UID, "check", queue).stdout == "the queue is sound\n"


COMMANDS = [
    ["status", "{queue}"],
    ["list", "{queue}", "--json"],
    ["show", "{queue}", "{id}"],
    ["check", "{queue}"],
    ["retry", "{queue}", "ALL", "--failed"],
    ["retry", "{queue}", "ALL"],
    ["delete", "{queue}", "ALL", "--yes"],
    ["recover", "--send", "{queue}"],
]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: argv[0])
def test_every_command_of_root_leaves_all_files_to_the_owner(
    store: Store, argv: list[str]
) -> None:
    fill(store)
    queue = give(store, NOBODY.pw_uid)
    id = item_id(queue, EntryState.DEFERRED)
    words = [word.format(queue=queue, id=id) for word in argv]
    done = command(*words)
    assert done.returncode == (1 if argv[0] in ("status", "check") else 0), done
    said = ACTING.match(done.stderr)
    assert said is not None
    assert said.groups() == (f"nobody ({NOBODY.pw_uid})", queue)
    assert "acting" not in done.stdout
    assert owners(queue) == {(NOBODY.pw_uid, NOBODY.pw_gid)}


def test_root_is_told_the_same_as_the_owner(store: Store) -> None:
    fill(store)
    queue = give(store)
    theirs = as_user(UID, "list", queue, "--json")
    assert command("list", queue, "--json").stdout == theirs.stdout != ""
    assert theirs.stderr == ""


def test_a_queue_of_root_and_a_user_who_is_not_root(store: Store, folder: Path) -> None:
    done = command("list", store.path)
    assert (done.returncode, done.stderr) == (0, "")
    done = as_user(UID, "list", store.path)
    assert done.returncode == 2
    assert done.stderr.endswith("; run as the user that owns the queue\n")


def test_a_queue_that_a_symbolic_link_names(store: Store, folder: Path) -> None:
    queue = give(store)
    bury(store)
    give(store)
    os.symlink(queue, folder / "link")
    done = command("retry", folder / "link", "ALL", "--failed")
    assert done.returncode == 0
    assert done.stderr.startswith(f"postcommit: acting as user {UID}, ")
    assert owners(queue) == {(UID, UID)}


def test_a_queue_that_is_replaced_while_root_becomes_its_owner(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(store)
    os.symlink(store.path, folder / "link")
    become = owner._become

    def replace_and_become(user: owner.Owner) -> None:
        os.unlink(folder / "link")
        os.symlink(folder, folder / "link")
        become(user)

    monkeypatch.setattr(owner, "_become", replace_and_become)
    with restored(), pytest.raises(QueueError, match="was replaced by another folder"):
        act_as_owner(str(folder / "link"))
    assert os.geteuid() == 0


def test_a_queue_that_its_owner_cannot_reach(store: Store, folder: Path) -> None:
    queue = give(store)
    os.chmod(folder, 0o700)
    done = command("list", queue)
    assert done.returncode == 2
    assert ACTING.match(done.stderr)
    assert done.stderr.endswith("; run as the user that owns the queue\n")


def test_a_new_queue_belongs_to_the_owner_of_the_folder_around_it(
    folder: Path, start: Start
) -> None:
    home = folder / "home"
    home.mkdir(mode=0o755)
    os.chown(home, UID, UID)
    argv = ["flush", home / "queue", *to(start())]
    assert command(*argv).stderr.endswith("--create makes it\n")
    assert command(*argv, "--create").returncode == 0
    assert owners(str(home)) == {(UID, UID)}
    assert as_user(UID, "status", home / "queue").returncode == 0


# The service


def test_a_service_of_root_reads_its_files_first(
    store: Store, start: Start, authority: Authority, tmp_path: Path
) -> None:
    relay = start(tls=authority.server(), users={"shop": "s3cret"})
    relay.reply("RCPT", "550 5.1.1 No", address="b@x.org")
    relay.reply("RCPT", "450 4.2.0 Later", address="a@x.org")
    wait(store)
    queue = give(store)
    # All of this is in folders that only root can look into.
    (tmp_path / "password").write_text("s3cret\n")
    config = tmp_path / "shop.ini"
    config.write_text(
        f"[postcommit]\nqueue_path = {queue}\nhostname = 127.0.0.1\n"
        f"port = {relay.port}\ntls = starttls\ncafile = {authority.cafile}\n"
        f"username = shop\npassword_file = {tmp_path}/password\n"
    )
    with Running("run", "--config", config) as service:
        service.wait_for("b@x.org: rejected")
        eventually(lambda: len(os.listdir(f"{queue}/cur")) == 1)
        service.signal(signal.SIGHUP)
        service.wait_for("the old configuration stays")
        service.signal(signal.SIGTERM)
        assert service.ended() == 0
    assert ACTING.match(service.log)
    assert owners(queue) == {(UID, UID)}


def test_one_process_never_acts_as_two_owners(store: Store, folder: Path) -> None:
    other = Store(str(folder / "other"))
    give(other, UID + 1)
    mine = give(store)
    with restored():
        act_as_owner(mine)
        act_as_owner(mine)
        for path in (other.path, str(folder)):
            with pytest.raises(QueueError, match=f"acts as user {UID}; restart it"):
                act_as_owner(path)
        assert os.geteuid() == UID
    assert os.geteuid() == 0


def test_afterwards_the_process_is_root_again(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.getegid(), os.getgroups()
    queue = give(store)
    assert main(["list", queue]) == 0
    assert main(["show", queue, "ffff"]) == 2
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, *before)
    assert len(ACTING.findall(capsys.readouterr().err)) == 2


def test_all_threads_act_as_the_owner_with_all_groups(store: Store) -> None:
    queue = give(store, NOBODY.pw_uid)
    go, seen = threading.Event(), []

    def look() -> None:
        go.wait(60)
        seen.append((os.geteuid(), os.getegid(), set(os.getgroups())))

    thread = threading.Thread(target=look)
    thread.start()
    with restored():
        act_as_owner(queue)
        go.set()
        thread.join()
    groups = os.getgrouplist("nobody", NOBODY.pw_gid)
    assert seen == [(NOBODY.pw_uid, NOBODY.pw_gid, set(groups))]


def test_the_groups_of_an_owner() -> None:
    for user in pwd.getpwall():
        folder = os.stat_result((0, 0, 0, 0, user.pw_uid, 12345, 0, 0, 0, 0))
        if pwd.getpwuid(user.pw_uid) == user:
            owner = owner_of(folder)
            assert (owner.gid, owner.name) == (user.pw_gid, user.pw_name)
            members = {g.gr_gid for g in grp.getgrall() if user.pw_name in g.gr_mem}
            assert set(owner.groups) == members | {user.pw_gid}
    unknown = owner_of(os.stat_result((0, 0, 0, 0, UID, 12345, 0, 0, 0, 0)))
    assert (unknown.gid, unknown.groups) == (12345, (12345,))
    assert str(unknown) == f"user {UID}"


def without_capabilities(queue: str) -> None:
    _drop_capabilities()
    with redirect_stderr(sys.stdout):
        print(main(["list", queue]), os.geteuid())


def test_root_that_may_not_become_the_owner_touches_nothing(store: Store) -> None:
    queue = give(store)
    said = f"cannot act as its owner, user {UID}: Operation not permitted"
    told = f"postcommit: {queue}: {said}; run as that user\n2 0\n"
    assert children.call(without_capabilities, queue) == told
    assert owners(queue) == {(UID, UID)}


# A queue that root has damaged


def damaged(store: Store) -> str:
    """Return a queue some of whose files root has copied from somewhere."""
    defer(store)
    queue = give(store)
    bury(store)
    deferred = defer(store)
    failed = Path(queue, ".Failed")
    for path in (Path(queue, "cur", f"{deferred}:2,"), failed, *failed.rglob("*")):
        os.chown(path, 0, 0)
    assert owners(queue) == {(UID, UID), (0, 0)}
    return queue


def test_check_tells_the_owner_what_root_has_to_give_back(store: Store) -> None:
    queue = damaged(store)
    write(store, "tmp/1700000000.M1P1Q1.web")
    write(store, ".paused")
    done = as_user(UID, "check", queue)
    assert (done.returncode, done.stderr) == (1, "")
    assert "run as the user" not in done.stdout
    named = {line.partition(": ")[0] for line in done.stdout.splitlines()}
    [deferred] = [
        f"{queue}/cur/{name}"
        for name in os.listdir(f"{queue}/cur")
        if os.stat(f"{queue}/cur/{name}").st_uid == 0
    ]
    tmp = f"{queue}/tmp/1700000000.M1P1Q1.web"
    assert named == {f"{queue}/.Failed", f"{queue}/.paused", deferred, tmp}
    commands = re.findall(r"; as root, run '(.*)'\n", done.stdout)
    assert len(commands) == 4
    for line in commands:
        subprocess.run(line, shell=True, check=True)
    assert owners(queue) == {(UID, UID)}
    assert as_user(UID, "check", queue).stdout == "the queue is sound\n"


@pytest.mark.parametrize(
    "argv", [["status"], ["list", "--failed"], ["retry", "--failed", "ALL"]]
)
def test_the_owner_is_not_told_to_be_the_owner(store: Store, argv: list[str]) -> None:
    queue = damaged(store)
    done = as_user(UID, argv[0], queue, *argv[1:])
    assert done.returncode == 2
    assert "Permission denied" in done.stderr
    told = f"; 'postcommit check {queue}' names what belongs to somebody else\n"
    assert done.stderr.endswith(told)


def test_what_root_sees_as_the_owner_of_a_damaged_queue(store: Store) -> None:
    queue = damaged(store)
    os.chmod(f"{queue}/tmp", 0o000)
    with restored():
        act_as_owner(queue)
        advised = {finding.advice for finding in check(store, time.time())}
        told = f"'postcommit check {queue}' names what belongs to somebody else"
        assert advice(f"{queue}/.Failed/new/1") == advice(queue) == told
        configured = Configuration(argparse.Namespace(config=None), {})
        assert configured.mailer().hostname == "localhost"
    assert f"'chmod u=rwx {queue}/tmp'" in advised
    assert f"as root, run 'chown -hR {UID}:{UID} {queue}/.Failed'" in advised
    assert "run as the user that owns the queue" not in advised


@pytest.mark.parametrize(
    ("prefix", "made"),
    [
        ("", Configuration.mailer),
        ("amqp_", Configuration.mailer),
        ("receive_", Configuration.receiver),
    ],
)
def test_only_root_reads_certificates_before_they_are_needed(
    store: Store,
    authority: Authority,
    folder: Path,
    prefix: str,
    made: Callable[[Configuration], Any],
) -> None:
    queue = give(store)
    option = f"POSTCOMMIT_{prefix.upper()}"
    environ = {"POSTCOMMIT_QUEUE_PATH": queue}
    if prefix:
        environ[f"{option}URL"] = "amqps://mail@mq.example.org"
        environ[f"{option}PASSWORD"] = "s3cret"

    def trusting(cafile: Path) -> Any:
        variables = {**environ, f"{option}CAFILE": str(cafile)}
        return made(Configuration(argparse.Namespace(config=None), variables))

    # Two files, because mailers of the same options share what they have read.
    cafiles = [folder / "root.pem", folder / "owner.pem"]
    for cafile in cafiles:
        authority.ca.cert_pem.write_to_path(str(cafile))
    by_root = trusting(cafiles[0])
    with restored():
        act_as_owner(queue)
        by_owner = trusting(cafiles[1])
    for cafile in cafiles:
        cafile.unlink()
    by_root.read_certificates()  # it has them
    with pytest.raises(RelayError, match="holds no certificates"):
        by_owner.read_certificates()


def test_what_root_left_in_tmp(store: Store) -> None:
    give(store)
    path = write(store, "tmp/1700000000.M1P1Q1.web")
    [finding] = check(store, time.time())
    assert finding.place == str(path)
    assert finding.problem == f"belongs to user 0, the queue to user {UID}"
    assert finding.advice == f"as root, run 'chown -h {UID}:{UID} {path}'"


def test_a_user_who_is_not_root_acts_as_nobody_else(store: Store) -> None:
    queue = give(store)
    os.setresuid(UID + 1, UID + 1, 0)
    try:
        act_as_owner(queue)
        assert os.geteuid() == UID + 1
    finally:
        os.setresuid(0, 0, 0)


def test_check_by_somebody_else(store: Store) -> None:
    give(store)
    os.chmod(store.path, 0o755)
    with restored():
        os.seteuid(UID + 1)
        advised = {finding.advice for finding in check(store, time.time())}
    assert "run as the user that owns the queue" in advised


def test_advice_for_what_is_no_queue(folder: Path) -> None:
    assert advice("/") == advice(str(folder)) == "run as the user that owns the queue"
