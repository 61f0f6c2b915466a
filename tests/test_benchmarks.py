"""Each benchmark runs, and what it handles is counted right; never how long it takes.

A contestant checks its count itself, and fails if mail is left or lacking.
"""
from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks import __main__ as all_of_them
from tests.benchmarks import broker
from tests.benchmarks import bulk
from tests.benchmarks import drain
from tests.benchmarks import enqueue
from tests.benchmarks import harness
from tests.benchmarks import idle
from tests.benchmarks import import_time
from tests.benchmarks import latency
from tests.benchmarks import machine
from tests.benchmarks import mixed
from tests.benchmarks import relays
from tests.benchmarks import report
from tests.benchmarks import scale
from tests.benchmarks import slowdisk
from tests.benchmarks import store
from tests.benchmarks import together
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.sections import SECTIONS
from tests.functional.rabbitmq import why_no_broker
from tests.support.proxy import DelayingProxy


PEERS = {"zope.sendmail", "repoze.sendmail"}


def quickly(
    program: ModuleType, folder: Path, arguments: Sequence[str] = ()
) -> list[Result]:
    parser: argparse.ArgumentParser = program.parser()
    quick = ["--quick", "--folder", str(folder), *arguments]
    results: list[Result] = program.run(parser.parse_args(quick))
    assert all(result.values for result in results)
    return results


def subjects(results: Sequence[Result], figure: str) -> set[str]:
    return {one.subject for one in results if one.figure == figure}


def test_the_drain(tmp_path: Path) -> None:
    results = quickly(drain, tmp_path, ["--workers", "1"])
    limits = {"raw sockets", "smtp-source -d", "smtplib, one connection"}
    assert subjects(results, "rate") == {"postcommit", *PEERS, *limits}
    assert subjects(results, "processor time") == subjects(results, "rate")
    assert {result.case["size"] for result in results} == {4096}


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
def test_the_ways_to_a_relay(tls: str, tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    delay = 2 if tls == "none" else 0
    with relays.way(tmp_path, tls=tls, delay=delay) as way:
        options = drain.parser().parse_args(["--quick", "--workers", "1"])
        setting = drain.setting(options, 4096, tls, delay)
        ours, *_ = drain.contestants(options, setting, queue, way)
        results = harness.interleave("drain", [ours], 1)
    assert subjects(results, "rate") == {"postcommit"}
    assert not list(queue.glob("new/*"))


def test_a_delayed_connection_ends_without_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            DelayingProxy(port, 0.01) as proxy,
            socket.create_connection(("127.0.0.1", proxy.port)) as client,
        ):
            there, _ = server.accept()
            client.sendall(b"x")
            with there:
                assert there.recv(1) == b"x"
    assert caplog.records == []


def test_the_enqueueing(tmp_path: Path) -> None:
    arguments = ["--threads", "4", "--folders", str(tmp_path), "--flush"]
    results = quickly(enqueue, tmp_path, arguments)
    limits = {"minimal loop", "bare data manager"}
    assert subjects(results, "rate") == {"postcommit", *limits, *PEERS}
    shapes = {(one.case["in a transaction"], one.case["threads"]) for one in results}
    assert shapes == {(1, 4), (2, 1)}


def test_the_enqueueing_on_a_slow_disk(tmp_path: Path) -> None:
    if reason := slowdisk.why_not():
        pytest.skip(reason)
    arguments = ["--threads", "2", "--folders", str(tmp_path), "--flush", "1", "2"]
    results = quickly(enqueue, tmp_path, arguments)
    systems = list(dict.fromkeys(one.case["file system"] for one in results))
    assert systems[1:] == [
        "ext4, a flush takes 1 ms",
        "ext4, a flush takes 2 ms",
    ]
    assert len(results) % 3 == 0
    # Nothing stays mounted, and no disk is left.
    assert "slow" not in Path("/proc/self/mounts").read_text()


def test_each_sync_waits_for_the_slow_disk() -> None:
    if reason := slowdisk.why_not():
        pytest.skip(reason)
    with slowdisk.slow_disk(0.05) as folder, (folder / "file").open("wb") as file:
        begin = time.monotonic()
        file.write(b"x")
        file.flush()
        assert sorted(os.listdir(folder)) == ["file", "lost+found"]
        os.fsync(file.fileno())
        assert time.monotonic() - begin >= 0.05


def test_the_newsletter(tmp_path: Path) -> None:
    results = quickly(bulk, tmp_path)
    assert subjects(results, "rate") == {"postcommit", "smtplib, no queue", *PEERS}


def test_the_latency(tmp_path: Path) -> None:
    results = quickly(latency, tmp_path)
    names = {name for _, name, _ in latency.NAMES.values()}
    assert subjects(results, "latency") == names
    assert [len(result.values) for result in results] == [1, 1, 1, 1]


def test_several_processes_on_one_queue(tmp_path: Path) -> None:
    results = quickly(together, tmp_path)
    assert subjects(results, "rate") == {together.ONE, together.EACH}
    assert {result.case["processes"] for result in results} == {2, 3}


def test_the_idle_cost(tmp_path: Path) -> None:
    results = quickly(idle, tmp_path)
    names = {kind.name for kind in idle.KINDS.values()}
    for figure in ("processor", "wake-ups", "peak memory"):
        assert subjects(results, figure) == names
    assert len(results) == 3 * len(names)
    # It polls every tenth of a second; the account is not of some other process.
    [polls] = [
        result
        for result in results
        if (result.subject, result.figure) == ("zope.sendmail", "wake-ups")
    ]
    assert polls.median > 0
    assert not list(tmp_path.iterdir())


def test_each_sleep_of_each_thread_is_a_wake_up() -> None:
    slept, done = threading.Event(), threading.Event()

    def work() -> None:
        for _ in range(10):
            time.sleep(0.001)
        slept.set()
        done.wait()

    before = idle.account(os.getpid())
    thread = threading.Thread(target=work)
    thread.start()
    slept.wait()
    used = idle.account(os.getpid()) - before
    done.set()
    thread.join()
    assert used.wake_ups >= 10
    assert used.seconds > 0


_LIVES = "import sys; print('idle', flush=True); sys.stdin.read()"


@pytest.mark.parametrize(
    ("code", "entries", "told"),
    [
        ("pass", 0, "a process that sleeps did not begin"),
        (f"{_LIVES}; sys.exit(3)", 0, "a process that sleeps ended with 3"),
        (_LIVES, 1, "a process that sleeps left 1 in new"),
    ],
)
def test_who_cannot_send_was_not_idle(
    code: str, entries: int, told: str, tmp_path: Path
) -> None:
    def live() -> None:
        queue = tmp_path / "queue"
        drain.fill(queue, entries, 200)
        command = [sys.executable, "-c", code]
        with idle.Idler(idle.KINDS["sleeper"], queue, command) as idler:
            idler.wait_until_begun()
            idler.end()

    with pytest.raises(SystemExit, match=f"^{told}$"):
        live()


def test_the_mixed_load(tmp_path: Path) -> None:
    results = quickly(mixed, tmp_path)
    for figure in ("rate", "send and commit", "latency"):
        assert subjects(results, figure) == {"postcommit", "zope.sendmail"}


def test_deep_queues(tmp_path: Path) -> None:
    results = quickly(scale, tmp_path)
    whole = "postcommit, all of it"
    assert subjects(results, "rate") == {"postcommit", whole, *PEERS}
    assert subjects(results, "poll") == {"postcommit, idle"}
    assert subjects(results, "last fifth") == {whole}
    assert {result.case["depth"] for result in results} == {40}


def test_the_broker(tmp_path: Path) -> None:
    if reason := why_no_broker():
        pytest.skip(reason)
    results = quickly(broker, tmp_path)
    assert subjects(results, "rate") == {name for _, name, _ in broker.NAMES.values()}


def test_the_import(tmp_path: Path) -> None:
    results = quickly(import_time, tmp_path)
    assert "import postcommit" in subjects(results, "time")


def test_a_contestant_that_fails_is_not_counted() -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    failing = Contestant("failing", lambda: command)
    with pytest.raises(SystemExit, match=r"^failing: .* ended with 3$"):
        harness.interleave("none", [failing], 1)


def test_contestants_take_turns() -> None:
    turns: list[str] = []

    def contestant(name: str) -> Contestant:
        def prepare() -> list[str]:
            turns.append(name)
            value = len(turns)
            return ["echo", f'{{"rate": ["1/s", {value}]}}']

        return Contestant(name, prepare)

    results = harness.interleave("none", [contestant("a"), contestant("b")], 3)
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert [(one.subject, one.values) for one in results] == [
        ("a", [1, 4, 5]),
        ("b", [2, 3, 6]),
    ]
    assert results[0].median == 4


def test_another_checkout_is_compared_with_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "checkout"
    other.mkdir()
    (other / "src").symlink_to(os.path.abspath("src"))
    arguments = ["--workers", "1", "--against", str(other)]
    results = quickly(drain, tmp_path, arguments)
    assert subjects(results, "rate") == {"postcommit, here", "postcommit, there"}
    harness.print_ratios(results)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_code_of_the_other_checkout_runs(tmp_path: Path) -> None:
    package = tmp_path / "src" / "postcommit"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("mark = 'another version'\n")
    show = [sys.executable, "-c", "import postcommit; print(postcommit.mark)"]
    ours, other = harness.versions([Contestant("x", lambda: show)], str(tmp_path))
    shown = subprocess.run(other.prepare(), capture_output=True, text=True)
    assert shown.stdout == "another version\n"
    assert "AttributeError" in subprocess.run(
        ours.prepare(), capture_output=True, text=True
    ).stderr


def test_a_checkout_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no postcommit in its src"):
        harness.versions([], str(tmp_path))


def test_a_program_that_compares_no_checkouts_says_so() -> None:
    with pytest.raises(SystemExit, match="bulk does not compare checkouts"):
        harness.print_ratios([result("postcommit", "ours", "rate", 1)])


# The page


def test_each_run_has_its_place_on_the_page() -> None:
    assert set(all_of_them.RUNS) <= set(SECTIONS)


def test_results_are_the_same_when_read_again(tmp_path: Path) -> None:
    results = [Result("drain", "postcommit", "rate", "1/s", [1.5, 2], case={"size": 1})]
    runs = {"drain": store.Run("2026-11-23", "abc1234+", 2, {"cores": "2"}, results)}
    store.save(tmp_path / "results.json", runs)
    assert store.load(tmp_path / "results.json") == runs


def result(subject: str, kind: str, figure: str, *values: float) -> Result:
    return Result("bulk", subject, figure, "1/s", values, kind)


def test_a_table_compares_medians_with_peer_and_limit() -> None:
    results = [
        result("postcommit", "ours", "rate", 1000, 3000, 2000),
        result("zope.sendmail", "peer", "rate", 1000, 1000, 4000),
        result("repoze.sendmail", "peer", "rate", 5000, 5000, 1),
        result("smtplib, no queue", "limit", "rate", 4000, 4000, 4000),
        result("postcommit", "ours", "peak memory", 20, 30, 25),
    ]
    table = report.Table(SECTIONS["bulk"], results)
    peers = ["/ zope.sendmail", "/ smtplib, no queue"]
    assert table.head() == ["", "per s", *peers, "MiB peak"]
    assert table.rows() == [
        ["**postcommit**", "2,000", "1.00", "0.50", "25"],
        ["zope.sendmail", "1,000", "1.00", "0.25", ""],
        ["repoze.sendmail", "5,000", "5.00", "1.25", ""],
        ["smtplib, no queue *(limit)*", "4,000", "4.00", "1.00", ""],
    ]
    assert table.faster_peers() == ["repoze.sendmail: 1.67 times"]


def test_a_ratio_is_that_of_most_rounds() -> None:
    """The machine gets slower by the minute: it is as fast all the same."""
    results = [
        result("postcommit", "ours", "rate", 900, 90, 9),
        result("zope.sendmail", "peer", "rate", 600, 60, 6),
        result("smtplib, no queue", "limit", "rate", 90, 9, 90),
    ]
    rows = report.Table(SECTIONS["bulk"], results).rows()
    assert [row[1:4] for row in rows] == [
        ["90", "1.50", "10"],
        ["60", "1.00", "6.67"],
        ["90", "0.15", "1.00"],
    ]


def test_a_contestant_is_compared_with_itself_with_one_thread() -> None:
    def enqueued(subject: str, threads: int, batch: int, *values: float) -> Result:
        case: dict[str, float | str] = {"file system": "ext4"}
        case |= {"in a transaction": batch, "threads": threads}
        return Result("enqueue", subject, "rate", "1/s", values, case=case)

    results = [
        enqueued("postcommit", 1, 1, 10, 20, 30),
        enqueued("postcommit", 8, 1, 30, 60, 60),
        enqueued("minimal loop", 8, 1, 30, 30, 30),
        enqueued("postcommit", 1, 1000, 100, 100, 100),
    ]
    table = report.Table(SECTIONS["enqueue"], results)
    assert table.head()[-2:] == ["/ minimal loop", "/ itself, threads 1"]
    assert [row[-1] for row in table.rows()] == ["1.00", "3.00", "", "1.00"]


def test_less_processor_time_is_better() -> None:
    def idles(subject: str, kind: str, value: float) -> Result:
        return Result("idle", subject, "processor", "ms per hour", [value], kind)

    results = [
        idles("postcommit", "ours", 300),
        idles("postcommit, polling every hour", "ours", 1),
        idles("zope.sendmail", "peer", 400),
        idles("zope.sendmail, polling every 5 s", "peer", 200),
        idles("a process that sleeps", "limit", 0),
    ]
    table = report.Table(SECTIONS["idle"], results)
    ratios = [row[2] for row in table.rows()]
    assert ratios == ["0.75", "0.00", "1.00", "0.50", "0.00"]
    assert table.faster_peers() == ["zope.sendmail, polling every 5 s: 1.50 times"]


def drained(subject: str, workers: int, size: int, value: float) -> Result:
    case: dict[str, float | str] = {"size": size, "workers": workers}
    return Result("drain", subject, "rate", "1/s", [value], case=case)


def test_the_small_table_has_the_typical_case_of_each_contestant() -> None:
    results = [
        drained("postcommit", 1, 4096, 10),
        drained("postcommit", 4, 4096, 20),
        drained("postcommit", 16, 4096, 30),
        drained("postcommit", 4, 102400, 40),
        drained("smtplib", 1, 4096, 50),
    ]
    run = store.Run("2026-11-23", "abc1234", 1, {}, results)
    assert report.small_table(SECTIONS["drain"], run) == report.list_table(
        ["messages per s", "4 KB", "100 KB"],
        [["**postcommit**", "20", "40"], ["**smtplib**", "50", ""]],
    )


def test_the_small_table_shows_the_slowest_of_a_hundred() -> None:
    waited = Result("mixed", "a", "latency", "ms", [float(n) for n in range(101)])
    rate = Result("mixed", "a", "rate", "1/s", [3])
    other = Result("mixed", "b", "rate", "1/s", [4], "peer")
    run = store.Run("2026-11-23", "abc1234", 1, {}, [waited, rate, other])
    assert report.small_table(SECTIONS["mixed"], run) == report.list_table(
        ["", "latency, ms, median", "latency, ms, 99 of 100", "messages per s"],
        [["**a**", "50", "99", "3"], ["b", "", "", "4"]],
    )


def test_each_question_has_a_plot_and_two_sentences() -> None:
    for section in SECTIONS.values():
        assert section.plots
        assert section.limits.count(".\n") + section.limits.count(". ") <= 2


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_this_checkout() -> None:
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert machine.commit().rstrip("+") == (done.stdout.strip() or "unknown")


def test_the_pages_are_what_their_results_say() -> None:
    docs = Path(__file__).parent.parent / "docs"
    runs = store.load(docs / report.RESULTS)
    pages = report.pages(runs)
    assert {path: (docs / path).read_text() for path in pages} == pages
    full = {path.name for path in (docs / report.FOLDER).glob("*.rst")}
    assert full == {f"{name}.rst" for name in runs}
    for name in runs:
        for plot in SECTIONS[name].plots:
            assert "</svg>" in (docs / report.FOLDER / f"{plot}.svg").read_text()
