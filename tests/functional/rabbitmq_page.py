"""The commands of the page "Beyond one machine", each as if on its machine.

All of its machines are this one, so paths, names and ports are replaced. What needs
root or systemd is left out.
"""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.functional.rabbitmq import SBIN
from tests.functional.rabbitmq import Node
from tests.functional.rabbitmq import start_all
from tests.functional.test_pages import blocks
from tests.support.service import ROOT
from tests.support.service import environment


# The password that is typed where one is asked for.
SECRET = "a secret of the page"

PAGE = "rabbitmq.rst"

_SERVICE = "tests.support.service"

# Commands that only prepare a machine. All nodes of a test have one cookie.
_LEFT_OUT = re.compile(
    r"apt |systemctl |useradd |chown |python3 -m venv |\S*/pip |"
    r"scp /var/lib/rabbitmq/.erlang.cookie "
)

_RESTART = "systemctl restart rabbitmq-server"


def commands() -> list[tuple[str, str]]:
    """Return each command of the page, after the machine on which it is run."""
    text = "".join(blocks(PAGE, "code-block:: console"))
    found = [line.partition("# ") for line in text.splitlines() if line]
    return [(machine, command) for machine, _, command in found]


class Machines:
    """The machines of the page: `nodes` are the brokers, the others have folders."""

    def __init__(self, nodes: list[Node], folder: Path) -> None:
        self.nodes = {node.name.partition("@")[0]: node for node in nodes}
        self.homes = {name: node.folder for name, node in self.nodes.items()}
        for name in ("mail1", "web1"):
            self.homes[name] = folder / name
            (folder / name / "spool").mkdir(parents=True)
        for home in self.homes.values():
            (home / "etc").mkdir()
        [script] = blocks(PAGE, "code-block:: sh")
        script = script.replace("$name.example.org", "localhost")
        (self.homes["mq1"] / "certificates.sh").write_text(script)
        conf, receive, send = blocks(PAGE, "code-block:: ini")
        for name, node in self.nodes.items():
            port = f"listeners.ssl.1 = 127.0.0.1:{node.tls_port}"
            own = conf.replace("listeners.ssl.default = 5671", port)
            node.configure(self.here(name, own.replace("listeners.tcp = none\n", "")))
        self._write("mail1", "shop-receive.ini", receive)
        self._write("web1", "shop.ini", send)

    def _write(self, machine: str, name: str, text: str) -> None:
        for number, node in self.nodes.items():
            text = text.replace(f"{number}.example.org", f"localhost:{node.tls_port}")
        # "mail" is the user of other tests of the same nodes.
        text = re.sub("//mail@", "//post@", text)
        text = re.sub("/mail$", "/post", text, flags=re.M)
        (self.homes[machine] / "etc" / name).write_text(self.here(machine, text))

    def here(self, machine: str, text: str) -> str:
        """Return a command or a file of the page, for this machine."""
        home = str(self.homes[machine])
        for old, new in (
            ("/etc/postcommit", f"{home}/etc"),
            ("/var/spool/postcommit", f"{home}/spool"),
            ("/opt/postcommit/bin/postcommit", f"{sys.executable} -m {_SERVICE}"),
            ("/etc/rabbitmq", f"{home}/etc"),
            ("rabbit@mq1", "mq1@localhost"),
            ("$(hostname -s)", machine),
            (" -o postcommit", ""),
            (" -o rabbitmq", ""),
        ):
            text = text.replace(old, new)
        if text.startswith("rabbitmqctl"):
            text = re.sub(r"\bmail\b", "post", text)
        if text.startswith("scp"):
            text = re.sub(r"\b(mq\d):", lambda m: f"{self.homes[m[1]]}/", text)
            text = text.replace("scp", "cp", 1)
        return text

    def set_up_the_broker(self) -> None:
        """Run all commands of the nodes, which are started where the page says."""
        for machine, command in commands():
            if command == _RESTART:
                start_all(list(self.nodes.values()))
            elif machine.startswith("mq") and not _LEFT_OUT.match(command):
                for name in [machine] if machine in self.nodes else self.nodes:
                    self.run(name, [command])

    def set_up(self, machine: str) -> None:
        """Run the commands of the mail node, but those of postcommit.

        The page says that a web node is set up in the same way.
        """
        lines = [
            command
            for name, command in commands()
            if name == "mail1" and not _LEFT_OUT.match(command)
        ]
        self.run(machine, [line for line in lines if not line.startswith("/opt/")])

    def words_of(self, machine: str, word: str) -> list[str]:
        """Return the arguments with which the page runs ``postcommit WORD``."""
        start = f"/opt/postcommit/bin/postcommit {word} "
        [found] = [c for m, c in commands() if m == machine and c.startswith(start)]
        return self.here(machine, found.partition("bin/postcommit ")[2]).split()

    def run(self, machine: str, lines: list[str]) -> str:
        """Run commands in a shell, and return what they print."""
        environ = environment()
        if machine in self.nodes:
            environ = self.nodes[machine].environ
            environ = {**environ, "PATH": f"{SBIN}:{environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-ec", "\n".join(self.here(machine, line) for line in lines)],
            cwd=self.homes[machine],
            env={**environ, "PYTHONPATH": f"{ROOT}:{environ.get('PYTHONPATH', '')}"},
            input=f"{SECRET}\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (lines, done.stdout, done.stderr)
        return done.stdout


