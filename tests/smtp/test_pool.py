"""Connections are reused, replaced, limited, and closed politely."""
from __future__ import annotations

import os
import socket
import struct
import threading
from types import SimpleNamespace

import pytest

from postcommit import _forks as forks
from postcommit.errors import RelayError
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import message
from tests.smtp.messages import told


def send(mailer, number=1):
    for i in range(number):
        assert told(mailer.send(SENDER, B, message(i))) == ["sent"]


def test_reused(relay, connect):
    send(connect(relay), 5)
    assert relay.connections == 1


def test_messages_per_connection(relay, connect):
    mailer = connect(relay, messages_per_connection=2)
    send(mailer, 5)
    batch = [(SENDER, [B], message(i)) for i in range(5)]
    assert [told(r) for r in mailer.send_all(batch)] == [["sent"]] * 5
    mailer.close()
    relay.wait_until(lambda: not relay.open)
    numbers = [m.connection for m in relay.messages]
    assert numbers == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert relay.commands.count("QUIT") == 5


def test_closed_by_the_relay_meanwhile(relay, connect):
    mailer = connect(relay)
    send(mailer)
    relay.hang_up()
    send(mailer)
    assert relay.connections == 2


def test_a_connection_that_the_relay_closed_is_not_lent(relay, connect):
    pool = connect(relay)._pool
    connection = pool.checkout()
    pool.checkin(connection)
    assert pool.checkout() is connection
    pool.checkin(connection)
    relay.hang_up()
    another = pool.checkout()
    assert another is not connection
    pool.discard(another)


def test_closed_with_a_word_by_the_relay_meanwhile(relay, connect):
    mailer = connect(relay)
    hold = relay.hold("NOOP")
    relay.drop("END", after=b"250 2.0.0 Taken\r\n421 4.4.2 Bye\r\n", times=1)
    send(mailer, 2)
    assert relay.connections == 2
    hold.release()


@pytest.mark.parametrize(
    "how", [{}, {"reset": True}, {"after": "421 4.4.2 Time-out"}], ids=str
)
def test_closed_by_the_relay_when_the_message_comes(relay, connect, how):
    mailer = connect(relay)
    send(mailer)
    relay.drop("MAIL", times=1, **how)
    send(mailer)
    assert relay.connections == 2


def test_replaced_by_a_new_one_only(relay, connect):
    """All idle connections may be dead."""
    mailer = connect(relay)
    sessions = [mailer._pool.checkout() for _ in range(3)]
    for session in sessions:
        session.messages = 1
        mailer._pool.checkin(session)
    relay.drop("MAIL", times=1)
    send(mailer)
    assert relay.connections == 4


def test_idle_for_long(relay, connect):
    mailer = connect(relay, idle_timeout=0.05)
    send(mailer)
    relay.wait_until(lambda: not relay.open)
    assert relay.commands[-1] == "QUIT"
    send(mailer)
    assert relay.connections == 2


def test_idle_until_others_are(relay, connect):
    """The one that was used last is used next, the others grow old."""
    mailer = connect(relay, idle_timeout=1)
    sessions = [mailer._pool.checkout() for _ in range(3)]
    for session in sessions:
        mailer._pool.checkin(session)
    while relay.open > 1:
        send(mailer)
    assert relay.connections == 3


def test_overdue_before_anybody_noticed(relay, connect):
    mailer = connect(relay, idle_timeout=60)
    send(mailer)
    mailer._pool._idle_timeout = 0
    send(mailer)
    assert relay.connections == 2


def test_no_thread_to_be_had(relay, connect):
    """As at the exit of the interpreter."""
    mailer = connect(relay)
    mailer.check()
    mailer.close()
    session = mailer._pool.checkout()
    mailer._pool._sweeper = None
    size = threading.stack_size(1 << 46)
    try:
        mailer._pool.checkin(session)
    finally:
        threading.stack_size(size)
    assert mailer._pool._sweeper is None
    send(mailer)
    assert relay.connections == 2


def test_not_kept_at_all(relay, connect):
    send(connect(relay, idle_timeout=0), 2)
    assert relay.connections == 2


def test_threads_have_connections_of_their_own(relay, connect):
    mailer = connect(relay)
    holds = [relay.hold("END"), relay.hold("END")]
    threads = [threading.Thread(target=send, args=(mailer,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for hold in holds:
        assert hold.reached.wait(5)
    assert relay.open == 2
    for hold in holds:
        hold.release()
    for thread in threads:
        thread.join(5)
    send(mailer, 2)
    assert relay.connections == 2


def test_after_an_error_reset(relay, connect):
    relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
    mailer = connect(relay)
    assert told(mailer.send(SENDER, C, MESSAGE)) == ["rejected"]
    send(mailer)
    assert relay.commands.index("RSET") == 4
    assert relay.connections == 1


# Closing


def test_close(relay, connect):
    mailer = connect(relay)
    send(mailer)
    mailer.close()
    relay.wait_until(lambda: not relay.open)
    assert relay.commands[-1] == "QUIT"
    mailer.close()
    send(mailer)
    assert relay.connections == 2


def test_close_while_in_use(relay, connect):
    mailer = connect(relay)
    hold = relay.hold("END")
    thread = threading.Thread(target=send, args=(mailer,))
    thread.start()
    assert hold.reached.wait(5)
    mailer.close()
    hold.release()
    thread.join(5)
    relay.wait_until(lambda: not relay.open)
    assert len(relay.messages) == 1


def test_close_does_not_wait_for_the_reply_to_quit(relay, connect):
    mailer = connect(relay, timeout=0.5)
    relay.hold("QUIT")
    send(mailer)
    mailer.close()


def test_quit_into_a_closed_connection(relay, connect):
    mailer = connect(relay)
    send(mailer)
    relay.hang_up()
    mailer.close()


# Forking


def in_child(work):
    """Run `work` in a child process, and return its exit status."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_has_connections_of_its_own(relay, connect):
    mailer = connect(relay)
    send(mailer)
    assert in_child(lambda: send(mailer)) == 0
    send(mailer)
    assert [m.connection for m in relay.messages] == [1, 2, 1]


def test_what_happens_in_a_child(relay, connect):
    """As above, where coverage can see it."""
    mailer = connect(relay)
    send(mailer)
    forks._after_in_child()
    send(mailer)
    assert relay.connections == 2
    assert "QUIT" not in relay.commands


def test_a_fork_while_the_pool_is_locked(relay, connect):
    mailer = connect(relay)
    locked, done = threading.Event(), threading.Event()

    def lock():
        with mailer._pool._changed:
            locked.set()
            done.wait(10)

    thread = threading.Thread(target=lock)
    thread.start()
    locked.wait(5)
    try:
        assert in_child(lambda: send(mailer)) == 0
    finally:
        done.set()
        thread.join(5)


def test_a_child_does_not_keep_connections_open(relay, connect):
    mailer = connect(relay)
    send(mailer)
    read, write = os.pipe()

    def wait():
        os.close(write)
        os.read(read, 1)

    thread = threading.Thread(target=in_child, args=(wait,))
    thread.start()
    mailer.close()
    relay.wait_until(lambda: not relay.open)
    os.close(write)
    os.close(read)
    thread.join(5)


def test_a_fork_in_the_middle_of_a_batch(relay, connect):
    """The child goes on with the generator; its parent's socket is closed there."""
    mailer = connect(relay, pipelining=False)
    statuses = []

    def messages():
        yield SENDER, [B], message(0)
        yield SENDER, [B], message(1)
        pid = os.fork()
        if not pid:
            os._exit(1 if _works(mailer._pool) else 0)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        yield SENDER, [B], message(2)

    reports = [told(report) for report in mailer.send_all(messages())]
    assert reports == [["sent"]] * 3
    assert statuses == [0]


def _works(of):
    """Whether a child has any of the sessions of the pool."""
    return bool(of._idle or of._busy)


# Checking


def test_check(relay, connect):
    mailer = connect(relay)
    mailer.check()
    mailer.check()
    send(mailer)
    assert relay.connections == 1
    assert relay.commands.count("NOOP") == 2


def test_check_when_the_connection_is_gone(relay, connect):
    mailer = connect(relay)
    mailer.check()
    relay.drop("NOOP", times=1)
    mailer.check()
    relay.reply("NOOP", "421 4.3.2 Bye", times=1)
    mailer.check()
    assert relay.connections == 3


def test_check_when_the_relay_is_gone(relay, connect):
    mailer = connect(relay)
    relay.down()
    with pytest.raises(RelayError, match=r"no connection to 127\.0\.0\.1"):
        mailer.check()


def test_check_refused(relay, connect):
    relay.reply("CONNECT", "554 5.7.1 No")
    with pytest.raises(RelayError, match="greeting refused: 554") as caught:
        connect(relay).check()
    assert caught.value.reply.code == 554


# Connecting


def test_an_unknown_name(relay, connect):
    mailer = connect(relay, hostname="unknown.invalid")
    assert told(mailer.send(SENDER, B, MESSAGE)) == "relay"


@pytest.mark.parametrize("name", ["a..b", "x" * 70 + ".example", "a\0b"])
def test_an_impossible_name(relay, connect, name):
    assert told(connect(relay, hostname=name).send(SENDER, B, MESSAGE)) == "relay"


def test_nobody_answers(connect):
    """A listener whose backlog is full drops what comes."""
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        there = SimpleNamespace(port=listener.getsockname()[1])
        mailer = connect(there, connect_timeout=0.05)
        report = mailer.send(SENDER, B, MESSAGE)
        assert told(report) == "relay"
        assert "timed out" in str(report.relay_failure)


def test_hangs_up_at_once(connect):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def accept():
            connection, _ = listener.accept()
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()

        thread = threading.Thread(target=accept)
        thread.start()

        there = SimpleNamespace(port=listener.getsockname()[1])
        assert told(connect(there).send(SENDER, B, MESSAGE)) == "relay"
        thread.join(5)
