"""The commands of both ends, with a real broker, and what the page says of them."""
from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.functional.rabbitmq import PASSWORD
from tests.functional.rabbitmq import Node
from tests.functional.rabbitmq import connected
from tests.functional.rabbitmq import messages
from tests.support.queues import ENTRY
from tests.support.queues import wait
from tests.support.service import ROOT
from tests.support.service import Running
from tests.support.service import command
from tests.support.service import eventually

from postcommit import QueueReceiver
from postcommit._cli import main as cli
from postcommit._cli import receive
from postcommit._cli.configuration import Configuration
from postcommit._cli.run import log_death
from postcommit._cli.service import TAKEN
from postcommit._cli.service import Signals
from postcommit._cli.service import Supervisor
from postcommit._maildir.reception import receptions
from postcommit._maildir.store import Store
from postcommit.errors import OptionError


PAGE = (ROOT / "docs" / "rabbitmq.rst").read_text()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    return path


def test_mail_goes_from_a_web_node_to_a_mail_node(
    node: Node, queue: str, secret: Path, tmp_path: Path
) -> None:
    web, mail = Store(str(tmp_path / "web")), Store(str(tmp_path / "mail"))
    name = wait(web)
    url = node.url("mail")
    to = ["--amqp-queue", queue, "--amqp-password-file", secret]
    into = ["--receive-queue", queue, "--receive-password-file", secret]
    with (
        Running("run", web.path, "--amqp-url", url, *to) as run,
        Running("receive", url, mail.path, *into) as receive,
    ):
        run.wait_for("confirmed by the broker")
        receive.wait_for("receives from the queue")
        eventually(lambda: (Path(mail.path) / "new" / name).exists())
        eventually(lambda: any(r.last_acknowledged for r in receptions(mail.path)))
        for service in (run, receive):
            service.signal(signal.SIGTERM)
            assert service.ended() == 0
            assert PASSWORD not in service.log
    assert receptions(mail.path) == []
    assert messages(node, queue) == []


def test_flush_hands_over(
    node: Node, queue: str, secret: Path, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "web"))
    wait(store)
    ini = tmp_path / "shop.ini"
    ini.write_text(
        f"[postcommit]\nqueue_path = {store.path}\namqp_url = {node.url('mail')}\n"
        f"amqp_queue = {queue}\namqp_password_file = {secret}\n"
    )
    done = command("flush", "--config", ini)
    assert done.stdout.startswith("recipients: 2 sent"), done.stderr
    assert [m.body for m in messages(node, queue)] == [ENTRY]


def test_test_relay_looks_for_the_queue_and_sends_one_mail(
    node: Node, queue: str
) -> None:
    url = {"POSTCOMMIT_AMQP_URL": node.url("mail")}
    url["POSTCOMMIT_AMQP_PASSWORD"] = PASSWORD
    done = command("test-relay", "--amqp-queue", queue, "a@x.org", **url)
    assert done.returncode == 0, done.stderr
    assert f"it has the queue {queue!r}" in done.stdout
    assert "handed over: 250 2.0.0 confirmed by the broker" in done.stdout
    assert len(messages(node, queue)) == 1
    done = command("test-relay", "--amqp-queue", queue, **url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f" answers; it has the queue {queue!r}\n")
    assert messages(node, queue) == []
    done = command("test-relay", "--amqp-queue", "nowhere", **url)
    assert done.returncode == 1
    assert "failed: queue 'nowhere'" in done.stdout
    assert PASSWORD not in done.stdout


def test_declare_creates_the_queue_and_nothing_else_does(
    node: Node, secret: Path, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "mail"))
    argv = ["receive", node.url("mail"), store.path, "--receive-queue", "declared"]
    argv += ["--receive-password-file", str(secret)]
    with Running(*argv) as service:
        service.wait_for("create it by: postcommit receive --declare")
        done = command("status", store.path)
        assert done.returncode == 1
        assert "attention: nothing is received from amqp://mail@" in done.stdout
    with Running(*argv, "--declare") as service:
        service.wait_for("receives from the queue")
    with connected(node) as channel:
        channel.queue_delete("declared")


def test_a_queue_that_cannot_be_declared_ends_the_command(
    secret: Path, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "mail"))
    done = command(
        *("receive", "amqp://mail@127.0.0.1:1/", store.path, "--declare"),
        *("--receive-password-file", secret),
    )
    assert done.returncode == 2
    assert "Connection refused" in done.stderr


def test_status_shows_the_receiver(
    node: Node, queue: str, secret: Path, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "mail"))
    argv = ["receive", node.url("mail"), store.path, "--receive-queue", queue]
    with Running(*argv, "--receive-password-file", secret):
        eventually(lambda: any(r.connected for r in receptions(store.path)))
        done = command("status", store.path)
        assert re.search(
            rf"receiver  connected to amqp://mail@127.0.0.1:{node.port}/, 0 received,"
            " nothing acknowledged yet",
            done.stdout,
        )
        [told] = json.loads(command("status", "--json", store.path).stdout)["receivers"]
        assert (told["connected"], told["received"]) == (True, 0)
        assert told["last_acknowledged"] is None
        metrics = command("status", "--prometheus", store.path).stdout
        assert re.search(r"receiver_connected\{.*broker=.*\} 1\n", metrics)
        assert "# TYPE postcommit_queue_receiver_received_total counter" in metrics


def test_a_receiver_that_dies_ends_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threading, "excepthook", log_death)
    (tmp_path / "file").touch()
    dying = QueueReceiver("amqps://mq", "q", str(tmp_path / "file"))
    with Signals(*TAKEN) as signals:
        assert receive._receive(dying, signals, Supervisor({})) == 1
    assert "the receiver has died" in caplog.text


class Hanging(QueueReceiver):
    """Gives no sign of life, but stops."""

    def run(self) -> None:
        self.last_sign = -math.inf
        self._stopping.wait(0.3)
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_receiver_that_hangs_gives_the_watchdog_no_sign(tmp_path: Path) -> None:
    class Watched(Supervisor):
        signs = 0
        watchdog_seconds = 0.03

        def alive(self) -> None:
            self.signs += 1

    hanging = Hanging("amqps://mq", "q", str(tmp_path / "queue"))
    supervisor = Watched({})
    supervisor.watchdog_seconds = 0.03
    with Signals(*TAKEN) as signals:
        assert receive._receive(hanging, signals, supervisor) == 0
    assert supervisor.signs <= 1  # at most one, before it hung


# Options


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "q", "--amqp-url", "amqps://u:s3cret@mq"], "without a password"),
        (["receive", "amqps://u:s3cret@mq", "q"], "without a password"),
        (["run", "q", "--amqp-url", "amqps://mq", "--hostname", "x"], "remove one"),
        (["run", "q", "--config", "LOOP"], "all that receive_url receives"),
        (["run", "q", "--amqp-queue", "x"], "has no effect without amqp_url"),
        (["run", "q", "--amqp-url", "amqps://u@mq"], "password"),
    ],
)
def test_options_that_can_never_work(
    argv: list[str], said: str, tmp_path: Path
) -> None:
    loop = tmp_path / "loop.ini"
    loop.write_text("[postcommit]\namqp_url = amqps://mq\nreceive_url = amqps://mq\n")
    argv = [word.replace("LOOP", str(loop)) for word in argv]
    with pytest.raises(OptionError, match=said) as caught:
        made(argv)
    assert "s3cret" not in str(caught.value)


def made(argv: list[str]) -> object:
    found = Configuration(cli._parser().parse_args(argv), {})
    return found.mailer() if argv[0] == "run" else found.receiver()


def test_a_receiver_needs_a_url(tmp_path: Path) -> None:
    done = command("receive")
    assert done.returncode == 2
    assert "receive_url" in done.stderr


def test_a_password_may_be_in_the_url_of_a_file(tmp_path: Path) -> None:
    ini = tmp_path / "shop.ini"
    ini.write_text("[postcommit]\namqp_url = amqps://u:%(x)s@mq\n")
    options = cli._parser().parse_args(["run", "q", "--config", str(ini)])
    assert Configuration(options, {}).mailer().login == ("u", "%(x)s")  # type: ignore[union-attr]


def test_systemd_has_the_password(tmp_path: Path) -> None:
    for name in ("amqp_password", "receive_password"):
        (tmp_path / name).write_text(f"{name}!\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    options = cli._parser().parse_args(["run", "q", "--amqp-url", "amqps://u@mq"])
    assert Configuration(options, environ).mailer().password == "amqp_password!"  # type: ignore[union-attr]
    options = cli._parser().parse_args(["receive", "amqps://u@mq", "q"])
    receiver = Configuration(options, environ).receiver()
    assert receiver.password == "receive_password!"


# The page and the unit


def ini_of(title: str) -> str:
    """Return the ini file below `title` of the page."""
    rest = PAGE.partition(f"{title}\n~~~")[2].partition(".. code-block:: ini\n\n")[2]
    return textwrap.dedent(re.match(r"(?:   .*\n|\n)*", rest)[0])  # type: ignore[index]


@pytest.mark.parametrize(
    ("title", "word", "maker"),
    [
        ("The mail node", "receive", Configuration.receiver),
        ("The web node", "run", Configuration.mailer),
    ],
)
def test_the_files_of_the_page_are_understood(
    title: str, word: str, maker: Callable[[Configuration], object], secret: Path
) -> None:
    config = secret.parent / "shop.ini"
    text = ini_of(title).replace("/etc/postcommit/broker.password", str(secret))
    config.write_text(text)
    options = cli._parser().parse_args([word, "--config", str(config)])
    found = maker(Configuration(options, {}))
    assert "amqps://" in repr(found)
    assert quote(PASSWORD) not in repr(found)


def test_the_commands_of_the_page_are_understood() -> None:
    commands = re.findall(r"^   \w+# \S*/postcommit (.*)$", PAGE, re.MULTILINE)
    assert [words.split()[0] for words in commands] == [
        *("receive", "status", "test-relay")
    ]
    for words in commands:
        cli._parser().parse_args(shlex.split(words))


def test_the_command_of_the_unit_is_one() -> None:
    unit = (ROOT / "docs" / "postcommit-receive@.service").read_text()
    [start] = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    program, *argv = shlex.split(start.replace("%i", "shop"))
    assert program.endswith("/postcommit")
    options = cli._parser().parse_args(argv)
    assert options.config == "/etc/postcommit/shop-receive.ini"
