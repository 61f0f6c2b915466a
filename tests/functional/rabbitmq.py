"""RabbitMQ as Debian has it: one node, or a cluster, each with a folder of its own.

All ports are on the loopback interface, and the nodes know each other by an Erlang
cookie that is made for them. Nothing of the machine's own broker is read or written.
"""
from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any

import amqp
from tests.functional.servers import Server
from tests.functional.servers import public_folder
from tests.support.certificates import Authority
from tests.support.ports import free_port


_PROGRAMS = glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin")

# The folder of its programs. Those in the PATH of Debian act for the machine's broker.
SBIN = _PROGRAMS[0] if _PROGRAMS else ""

# The alarms are raised by the tests, and not by this machine.
_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
disk_free_limit.absolute = 1MB
vm_memory_high_watermark.relative = 0.9
default_user = mail
default_pass = {password}
log.file.level = warning
max_message_size = {largest}
{more}
"""

_TLS = """\
listeners.ssl.1 = 127.0.0.1:{tls_port}
ssl_options.cacertfile = {folder}/ca.pem
ssl_options.certfile = {folder}/server.pem
ssl_options.keyfile = {folder}/server.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
ssl_cert_login_from = subject_alternative_name
ssl_cert_login_san_type = email
"""

# Few threads that do not spin, because the tests share the machine.
_ERLANG = (
    "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
    " -kernel inet_dist_use_interface {127,0,0,1}"
)

# Bytes of a message that a broker takes.
LARGEST = 1_000_000

PASSWORD = "a secret of the broker"
USER = f"mail:{PASSWORD.replace(' ', '%20')}"


def why_no_broker() -> str:
    """Return why no broker can be started here; empty if it can."""
    return "" if _PROGRAMS else "the Debian package rabbitmq-server is not installed"


class Names:
    """The port mapper by which the nodes of one cluster find each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        cookie = folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        self._process = subprocess.Popen(
            ["epmd", "-port", str(self.port), "-address", "127.0.0.1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Node(Server):
    """A broker. `more` are lines of its configuration: without any, it has TLS."""

    _process: subprocess.Popen[bytes] | None = None

    def __init__(self, names: Names, name: str = "one", more: str = "") -> None:
        self.name = f"{name}@localhost"
        folder = names.folder / name
        folder.mkdir()
        super().__init__(folder)
        self._names = names
        self._dist_port = free_port()
        self.tls_port = free_port()
        if not more:
            self.authority = Authority(folder)
            self.authority.write_chain(
                folder / "server.pem", "127.0.0.1", "mq.example.org"
            )
            more = _TLS.format(tls_port=self.tls_port, folder=folder)
        self._more = more
        (folder / "plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")
        (folder / "env.conf").write_text("")

    @property
    def environ(self) -> dict[str, str]:
        return {
            **self._names.environ,
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "config"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
        }

    def configure(self, more: str) -> None:
        """Have other lines in its configuration from its next start on."""
        self._more = more

    def start(self) -> None:
        """Start it, with all that it had before."""
        config = _CONFIG.format(
            port=self.port, password=PASSWORD, largest=LARGEST, more=self._more
        )
        (self.folder / "rabbitmq.conf").write_text(config)
        with (self.folder / "errors").open("ab") as errors:
            self._process = subprocess.Popen(
                [f"{SBIN}/rabbitmq-server"],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=self.environ,
                start_new_session=True,
                cwd=self.folder,
            )

    def start_again(self) -> None:
        """Start it after `stop`, and wait until it listens."""
        self.start()
        self.wait_until(self.listens, "it does not listen")

    def stop(self) -> None:
        """Kill it, as a power failure does."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def keeps(self, queue: str) -> bool:
        """Return whether it still knows the queue after a kill.

        RabbitMQ 3.10 writes the name of a new quorum queue a few seconds later. If it
        is killed before, the queue is there, and confirms nothing.
        """
        path = self.folder / "data" / self.name / "quorum" / self.name / "names.dets"
        return queue.encode() in path.read_bytes()

    def freeze(self) -> None:
        """Let it stand still, with all its connections."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def leave(self, others: list[Node]) -> None:
        """Cut it off from `others`: they hang up, and refuse each other's calls."""
        for other in others:
            self._evaluate(
                f"erlang:set_cookie('{other.name}', cut_off),"
                f" erlang:disconnect_node('{other.name}')."
            )
        self.wait_until(
            lambda: self._evaluate("length(nodes()).") == "0", "it is still connected"
        )

    def join(self, others: list[Node]) -> None:
        """End what `leave` did."""
        for other in others:
            self._evaluate(
                f"erlang:set_cookie('{other.name}', erlang:get_cookie()),"
                f" net_kernel:connect_node('{other.name}')."
            )

    def _evaluate(self, erlang: str) -> str:
        return self.control("eval", erlang).strip()

    def control(self, *words: Any, program: str = "rabbitmqctl") -> str:
        """Return what ``rabbitmqctl`` prints."""
        done = subprocess.run(
            [f"{SBIN}/{program}", "-q", "-n", self.name, *map(str, words)],
            capture_output=True,
            text=True,
            env=self.environ,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout + self.log
        return done.stdout

    def url(self, user: str = USER) -> str:
        return f"amqp://{user}@127.0.0.1:{self.port}/"

    def tls_url(self, user: str = USER, host: str = "127.0.0.1") -> str:
        at = f"{user}@" if user else ""
        return f"amqps://{at}{host}:{self.tls_port}/"

    @property
    def log(self) -> str:
        paths = [self.folder / "errors", *sorted((self.folder / "log").glob("*"))]
        return "\n".join(p.read_text()[-4000:] for p in paths if p.is_file())


@contextmanager
def one_node() -> Iterator[Node]:
    with public_folder("rabbitmq") as folder, ExitStack() as stack:
        names = Names(folder)
        stack.callback(names.close)
        yield stack.enter_context(Node(names))


@contextmanager
def three_nodes() -> Iterator[list[Node]]:
    """Yield three nodes that do not run, and are not yet a cluster."""
    with public_folder("rabbitmq") as folder, ExitStack() as stack:
        names = Names(folder)
        stack.callback(names.close)
        nodes = [Node(names, name, "#") for name in ("mq1", "mq2", "mq3")]
        for node in nodes:
            stack.callback(node.stop)
        yield nodes


def start_all(nodes: list[Node]) -> None:
    """Start all nodes at a time, and wait until they listen."""
    for node in nodes:
        node.start()
    for node in nodes:
        node.wait_until(node.listens, "it does not listen")


@contextmanager
def connected(node: Node) -> Iterator[Any]:
    """Yield a channel of another client."""
    with amqp.Connection(
        f"127.0.0.1:{node.port}", userid="mail", password=PASSWORD
    ) as connection:
        channel = connection.channel()
        channel.auto_decode = False
        yield channel


def messages(node: Node, queue: str) -> list[Any]:
    """Take all messages of the queue."""
    found = []
    with connected(node) as channel:
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            found.append(message)
    return found


def ready(node: Node, queue: str) -> int:
    """Return the number of messages that no consumer has."""
    with connected(node) as channel:
        return int(channel.queue_declare(queue, passive=True).message_count)
