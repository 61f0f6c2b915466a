"""Mailers and processors where gevent has replaced sockets and threads.

The relays are in this process, which is an ordinary one.
"""
from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.certificates import Authority
from tests.support.hosts import Hosts
from tests.support.ports import free_port
from tests.support.script import Hangup
from tests.support.smtpd import ScriptedRelay


pytest.importorskip("gevent")

ROOT = Path(__file__).parent.parent.parent
BIG = 16 << 20


def patched(name, argument):
    """Return what `tests.support.patched` has to say."""
    command = [sys.executable, "-m", "tests.support.patched", name]
    done = subprocess.run(
        [*command, json.dumps(argument)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def silent(relay, stage):
    """Have `relay` say nothing at `stage`, in clear."""
    if stage == "content":

        def stop_reading(dialogue, usual):
            dialogue.say(b"354 Go on\r\n")
            dialogue.flush()
            relay.stopping.wait()
            raise Hangup

        relay.on("DATA", stop_reading)
    else:
        relay.hold(stage, times=None)
    if stage == "RSET":
        relay.reply("RCPT", "550 5.1.1 Unknown", address="c@example.org")


SENT = [["sent"], ["sent", "sent"]]
FAILED = ["relay", "relay"]

# What becomes of the two messages of `tests.support.patched.send`.
STAGES = {
    "CONNECT": FAILED,
    "EHLO": FAILED,
    "AUTH": FAILED,
    "MAIL": FAILED,
    "RCPT": FAILED,
    "DATA": FAILED,
    "content": FAILED,
    "END": [["uncertain"], "relay"],
    "RSET": [["rejected"], "relay"],
    "QUIT": SENT,
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def start():
    with ExitStack() as stack:

        def start(**options):
            return stack.enter_context(ScriptedRelay(**options))

        yield start


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
def test_a_relay_that_falls_silent_does_not_hang_the_mailer(start, authority, tls):
    options = {"tls": tls, "username": "u", "password": "p"}
    options |= {"timeout": 0.5, "final_timeout": 0.5}
    if tls != "none":
        options["cafile"] = authority.cafile
    cases = []
    for stage in (*STAGES, "nothing"):
        relay = start(
            without=["SIZE"],
            users={"u": "p"},
            tls=None if tls == "none" else authority.server(),
            implicit_tls=tls == "implicit",
        )
        if stage != "nothing":
            silent(relay, stage)
        size = BIG if stage == "content" else 0
        cases.append({**options, "port": relay.port, "size": size})
    assert patched("send", cases) == [*STAGES.values(), SENT]


def test_silence_before_tls_does_not_hang_the_mailer(start, authority):
    """At STARTTLS, at the handshake that follows, and at one that comes first."""
    relays = [start(tls=authority.server()) for _ in range(2)]
    relays[0].hold("STARTTLS")
    relays[1].on("STARTTLS", lambda dialogue, usual: hush(dialogue))
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        ports = [relay.port for relay in relays]
        cases = [{"port": port, "tls": "starttls", "timeout": 0.5} for port in ports]
        cases.append({"port": deaf.getsockname()[1], "tls": "implicit", "timeout": 0.5})
        for case in cases:
            case["connect_timeout"] = 0.5
        assert patched("send", cases) == [FAILED] * 3


def hush(dialogue):
    """Say that TLS may begin, and then nothing."""
    dialogue.say(b"220 2.0.0 Go on\r\n")
    dialogue.flush()
    dialogue.relay.stopping.wait()
    raise Hangup


def test_a_connection_that_is_not_accepted_does_not_hang_the_mailer():
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        case = {"port": listener.getsockname()[1], "connect_timeout": 0.3}
        assert patched("send", [case]) == [FAILED]


def test_processors(start, tmp_path):
    """Commits wake them, each entry is sent once, and a fork keeps nothing of it.

    The relay falls silent twice, so both time-out and pause are in it.
    """
    relay = start()
    relay.hold("MAIL", times=2)
    queue = str(tmp_path / "queue")
    found = patched("drain", {"queue": queue, "port": relay.port, "count": 60})
    # Without a wake-up it would be an hour.
    assert found.pop("seconds") < 60
    assert found == {"child": 0, "alive": True, "stopped": [True, True]}
    sent = Counter(m.data.partition(b"\r\n")[0] for m in relay.messages)
    ids = {b"Message-Id: <%d@example.org>" % number for number in range(60)}
    assert sent == dict.fromkeys(ids, 1) | {b"Message-Id: <1@example.org>": 2}
    assert relay.violations == []


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_a_sendmail_command_that_hangs_is_killed(tmp_path, size):
    command = tmp_path / "sendmail"
    command.write_text(f"#!{sys.executable} -IS\nimport signal\nsignal.pause()\n")
    command.chmod(0o755)
    case = {"command": str(command), "size": size}
    assert patched("hand_over", case) == ["uncertain"]


def test_the_next_address_is_tried(start, tmp_path):
    """The first one swallows everything, the second one is busy."""
    with ExitStack() as stack:
        try:
            hosts = stack.enter_context(Hosts(tmp_path))
        except PermissionError:  # pragma: no cover
            pytest.skip("only root may have an /etc/hosts of its own")
        hosts.name("mx.example.org", "127.0.0.1", "127.0.0.2", "127.0.0.3")
        port = free_port("127.0.0.1", "127.0.0.2", "127.0.0.3")
        well = start(host="127.0.0.3", port=port)
        busy = start(host="127.0.0.2", port=well.port)
        busy.reply("CONNECT", "421 4.3.2 Busy")
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", well.port))
        listener.listen(0)
        stack.enter_context(socket.create_connection(("127.0.0.1", well.port)))
        case = {"hostname": "mx.example.org", "port": well.port, "connect_timeout": 0.5}
        assert hosts.run(patched, "send", [case]) == [SENT]
    assert len(well.messages) == 2
    assert busy.connections == 1
