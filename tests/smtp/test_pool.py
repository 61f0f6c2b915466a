"""Connections are reused, replaced, limited, and closed politely."""
from __future__ import annotations

import functools
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import transaction

from postcommit import DirectMailDelivery
from postcommit import FailoverMailer
from postcommit import _forks as forks
from postcommit._mail.message import compose
from postcommit._smtp import pool as pools
from postcommit._smtp.connection import Connection
from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import RelayError
from postcommit.errors import TooManyConnections
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import message
from tests.smtp.messages import told
from tests.support.script import lines
from tests.support.service import eventually


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


@pytest.mark.parametrize(
    "options",
    [
        {"extensions": ["LIMITS MAILMAX=1"]},
        {"extensions": ["PIPELINING"]},
    ],
)
def test_an_address_is_not_to_blame_for_a_connection_that_we_end(
    start, connect, options
):
    relay = start(**options)
    mailer = connect(relay, protocol="smtp" if "LIMITS" in str(options) else "lmtp")
    if mailer.protocol == "lmtp":
        # Such a relay waits for a final dot that has no reply.
        relay.reply("RCPT", "550 5.1.1 Nobody")
        relay.reply("DATA", "354 Go on")
    for number in range(2):
        mailer.send(SENDER, B, message(number))
    assert relay.connections == 2
    assert mailer._pool._addresses._failed == {}


def test_an_address_is_not_to_blame_for_an_interrupt(relay, connect):
    mailer = connect(relay)
    pipeline = mailer.pipeline()
    pipeline._connection = mailer._pool.checkout()
    pipeline.__exit__(Interrupt, Interrupt(), None)
    assert mailer._pool._addresses._failed == {}


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
        assert hold.reached.wait(60)
    assert relay.open == 2
    for hold in holds:
        hold.release()
    for thread in threads:
        thread.join(60)
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
    assert hold.reached.wait(60)
    mailer.close()
    hold.release()
    thread.join(60)
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


# Mailers with equal settings


def sweepers():
    """The threads that close idle connections."""
    alive = threading.enumerate()
    return [thread for thread in alive if thread.name == "postcommit-smtp-idle"]


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def make(relay, **options):
    """A mailer that nobody but the caller refers to."""
    return SMTPMailer("127.0.0.1", relay.port, notify=str, **options)


def test_two_hundred_mailers_leave_one_connection(relay):
    gc.collect()
    before, threads = descriptors(), sweepers()
    mailers = [make(relay, messages_per_connection=1000) for _ in range(200)]
    for number, mailer in enumerate(mailers):
        assert told(mailer.send(SENDER, B, message(number))) == ["sent"]
    assert (relay.connections, relay.open) == (1, 1)
    assert descriptors() <= before + 2  # the relay has the other end
    assert len(set(sweepers()) - set(threads)) == 1  # one of before may have ended
    pool = mailer._pool
    assert pool in pools._pools.values()
    del mailers, mailer, pool
    # Not later: no collection of garbage is needed.
    relay.wait_until(lambda: not relay.open)
    assert relay.commands[-1] == "QUIT"
    assert not any(key[0].port == relay.port for key in pools._pools)
    for thread in set(sweepers()) - set(threads):
        thread.join(60)
    assert set(sweepers()) <= set(threads)


def test_mailers_that_are_used_once_and_dropped(relay):
    before = sweepers()
    for number in range(20):
        assert told(make(relay).send(SENDER, B, message(number))) == ["sent"]
        assert relay.most_open == 1
        relay.wait_until(lambda: not relay.open)
    for thread in set(sweepers()) - set(before):
        thread.join(60)
    assert set(sweepers()) <= set(before)


def test_a_pool_that_is_gone_and_was_never_swept(relay):
    """No thread was to be had, and the relay has closed its end."""
    mailer = make(relay)
    mailer._pool._sweeper = threading.main_thread()
    send(mailer)
    relay.hang_up()
    del mailer
    gc.collect()
    assert relay.open == 0


@pytest.mark.parametrize("idle_timeout", [60, 0.001])
def test_the_sweeper_has_the_last_reference(relay, idle_timeout):
    """It looks at the pool while the mailer goes."""
    mailer = make(relay, idle_timeout=60)
    send(mailer)
    mailer._pool._idle_timeout = idle_timeout
    changed, idle, last = mailer._pool._changed, mailer._pool._idle, [mailer._pool]
    del mailer
    pools._sweep(lambda: last.pop() if last else None, changed, idle)
    assert not idle
    relay.wait_until(lambda: not relay.open)


def test_the_last_rites_may_be_said_in_any_thread(relay):
    """Also in the one that has the lock: any line may collect garbage."""
    mailer = make(relay)
    send(mailer)
    pool = mailer._pool
    with pool._changed:
        pools._abandon(pool._changed, pool._idle)
    relay.wait_until(lambda: not relay.open)
    send(mailer)


def function():
    return "token"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"username": "me", "password": "secret"},
        {"username": "me", "token": function},
        {"username": "me", "token": functools.lru_cache(function).cache_info},
        {"cafile": "/ca.pem", "tls": "starttls", "timeout": 7, "helo_name": "web"},
        {"hostname": "/run/lmtp", "protocol": "lmtp"},
    ],
)
def test_equal_settings_share(options):
    one, other = SMTPMailer(**options), SMTPMailer(**options)
    assert one._pool is other._pool
    assert one.relay is other.relay


def test_threads_that_make_equal_mailers_at_once_share():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for port in range(1, 201):
            start, made = threading.Barrier(4), []

            def make(port=port, start=start, made=made):
                start.wait()
                made.append(SMTPMailer(port=port))

            threads = [threading.Thread(target=make) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len({id(mailer._pool) for mailer in made}) == 1
    finally:
        sys.setswitchinterval(interval)


class Token:
    """Equal to each other, so that it has no hash."""

    def __eq__(self, other):
        return isinstance(other, Token)

    def __call__(self):
        return "token"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"password": "secret"}, {"password": "Secret"}),
        ({"password": "secret"}, {"password": ""}),
        ({"password": "secret"}, {"password": "secret", "username": "you"}),
        ({"password": "secret"}, {"password": "secret", "auth": "plain"}),
        ({"token": lambda: "token"}, {"token": lambda: "token"}),
        ({"token": Token()}, {"token": Token()}),
        ({"password": "secret"}, {"token": function}),
        ({"password": "secret"}, {"password": "secret", "idle_timeout": 7}),
        ({"password": "secret"}, {"password": "secret", "pipelining": False}),
        ({"password": "secret"}, {"password": "secret", "source_address": "::1"}),
        ({"password": "secret"}, {"password": "secret", "port": 26}),
        ({"password": "secret"}, {"password": "secret", "messages_per_connection": 7}),
    ],
)
def test_other_settings_do_not(one, other):
    mailers = [SMTPMailer(**{"username": "me", **options}) for options in (one, other)]
    assert mailers[0]._pool is not mailers[1]._pool


def test_nobody_gets_the_login_of_another(start, connect):
    relay = start(users={"me": "secret"})
    good = connect(relay, username="me", password="secret")
    bad = connect(relay, username="me", password="wrong")
    assert told(good.send(SENDER, B, message(1))) == ["sent"]
    assert told(bad.send(SENDER, B, message(2))) == "relay"
    assert told(good.send(SENDER, B, message(3))) == ["sent"]
    assert [m.user for m in relay.messages] == ["me", "me"]


def test_a_password_is_known_as_long_as_its_mailer(relay):
    mailer = make(relay, username="me", password="A secret that is never typed")
    keys = [key for key in pools._pools if key[0] is mailer.relay]
    assert "never typed" not in repr(keys)
    assert len(keys) == 1
    del mailer, keys
    assert not any(key[0].port == relay.port for key in pools._pools)


def test_close_does_not_cut_the_message_of_another(relay, connect):
    one, other = connect(relay), connect(relay)
    hold = relay.hold("END")
    thread = threading.Thread(target=send, args=(one,))
    thread.start()
    assert hold.reached.wait(60)
    other.close()
    hold.release()
    thread.join(60)
    assert len(relay.messages) == 1
    relay.wait_until(lambda: not relay.open)
    send(other)
    send(one)
    assert relay.connections == 2


# One connection too many


REFUSALS = [
    {"after": "421 4.7.0 mx Error: too many connections from 127.0.0.1"},
    {"after": "421 Too many concurrent SMTP connections; please try again later."},
    {"after": "421 Service not available"},
    {"after": "450 4.7.0 Not now"},
    {"after": "554 5.7.0 Limit"},
    {"after": "554 Too many connections"},
    {"after": "554 No"},
    {"after": "554 5.7.1 Blocked"},
    {},
    {"reset": True},
]


def try_once(mailer, text):
    """Transmit as a processor does: without waiting for another connection."""
    with mailer.pipeline() as pipeline:
        pipeline.offer(compose(SENDER, B, text))
        [(_, report)] = pipeline.drain()
    return report


def in_use(relay, connect, **options):
    """Return a mailer with a message under way, and what ends it."""
    mailer = connect(relay, **options)
    hold = relay.hold("END")
    thread = threading.Thread(target=send, args=(mailer,))
    thread.start()
    assert hold.reached.wait(60)

    def end():
        hold.release()
        thread.join(60)

    return mailer, end


@pytest.mark.parametrize("how", REFUSALS, ids=str)
def test_one_connection_too_many(relay, connect, how):
    mailer, end = in_use(relay, connect)
    relay.drop("CONNECT", **how)
    report = try_once(mailer, message(2))
    assert told(report) == "relay"
    assert report.too_many_connections
    end()
    # The same, when it is the only one: the relay is in trouble.
    mailer.close()
    report = mailer.send(SENDER, B, message(2))
    assert told(report) == "relay"
    assert not report.too_many_connections


def test_nobody_listens_any_more(relay, connect):
    mailer, end = in_use(relay, connect, connect_timeout=0.3)
    relay.refuse()
    with pytest.raises(TooManyConnections, match="Connection refused"):
        mailer.check()
    end()
    mailer.close()
    with pytest.raises(RelayError, match="Connection refused") as caught:
        mailer.check()
    assert type(caught.value) is RelayError


def test_a_restart_of_the_relay_is_not_about_the_number(relay, connect):
    """One thread connects again, before the other has noticed its loss."""
    pool = connect(relay)._pool
    lost = [pool.checkout() for _ in range(2)]
    relay.down()
    eventually(lambda: lost[1].is_hung_up)
    pool.discard(lost[0])
    with pytest.raises(RelayError, match="Connection refused") as caught:
        pool.checkout()
    assert type(caught.value) is RelayError
    relay.up()
    connection = pool.checkout()
    relay.refuse()
    with pytest.raises(TooManyConnections):
        pool.checkout()
    for each in (lost[1], connection):
        pool.discard(each)
        assert not each.is_hung_up, "it is closed"


def test_too_many_at_ehlo(relay, connect):
    mailer, end = in_use(relay, connect)
    relay.reply("EHLO", "421 4.7.0 Too many connections")
    assert try_once(mailer, message(2)).too_many_connections
    end()


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("CONNECT", "421 4.3.2 Shutting down"),
        ("EHLO", "550 5.7.0 No"),
        ("CONNECT", b"hello\r\n"),
    ],
)
def test_other_trouble_is_not_about_the_number(relay, connect, stage, reply):
    mailer, end = in_use(relay, connect)
    relay.reply(stage, reply)
    report = mailer.send(SENDER, B, message(2))
    assert told(report) == "relay"
    assert not report.too_many_connections
    end()


def test_a_login_that_is_refused_is_not_about_the_number(start, connect):
    relay = start(users={"me": "secret"})
    mailer = connect(relay, username="me", password="secret")
    connection = mailer._pool.checkout()
    relay.users["me"] = "changed"
    report = mailer.send(SENDER, B, MESSAGE)
    assert report.relay_failure.reply.code == 535
    assert not report.too_many_connections
    mailer._pool.discard(connection)


def test_of_two_that_connect_at_once_one_is_too_many(relay, connect):
    """The refusal comes first. The other one has not got as far as a message."""
    mailer = connect(relay)
    hold = relay.hold("EHLO")
    thread = threading.Thread(target=send, args=(mailer,))
    thread.start()
    assert hold.reached.wait(60)
    relay.drop("CONNECT", after="421 4.7.0 Too many connections")
    reports = []
    second = threading.Thread(
        target=lambda: reports.append(try_once(mailer, message(2)))
    )
    second.start()
    relay.wait_until(lambda: relay.connections == 2 and relay.open == 1)
    hold.release()
    thread.join(60)
    second.join(60)
    assert reports[0].too_many_connections


def test_a_relay_that_refuses_all_is_in_trouble(relay, connect):
    """However many connect at once."""
    relay.drop("CONNECT", after="421 4.7.0 Busy")
    mailer = connect(relay)
    reports = []

    def transmit(number):
        reports.append(mailer.send(SENDER, B, message(number)))

    threads = [threading.Thread(target=transmit, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [report.too_many_connections for report in reports] == [False] * 4


# Waiting for a connection in use


def limit_to(relay, most):
    """Let the relay refuse each connection over `most`."""

    def greet(dialogue, usual):
        if relay.open <= most:
            return dialogue.say(lines(usual))
        dialogue.closing = "close"
        return dialogue.say(b"421 4.7.0 Too many connections\r\n")

    relay.on("CONNECT", greet)


def test_many_threads_share_the_connections_that_a_relay_permits(relay, connect):
    limit_to(relay, 2)
    delivery = DirectMailDelivery(connect(relay))

    def commit(number):
        with transaction.manager:
            delivery.send(SENDER, B, message(number))

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(relay.messages) == 12


def test_a_vote_waits_for_a_connection_in_use(relay, connect):
    """The relay answers. Otherwise the transaction would abort."""
    limit_to(relay, 2)
    mailer = connect(relay, connect_timeout=60)
    delivery = DirectMailDelivery(mailer, check_relay=True)
    refused = []

    def commit(number):
        try:
            with transaction.manager:
                delivery.send(SENDER, B, message(number))
        except RelayError as error:
            refused.append(error)

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert refused == []
    assert len(relay.messages) == 12


@pytest.mark.parametrize(
    "options", [{"idle_timeout": 0}, {"messages_per_connection": 1}]
)
def test_a_connection_that_is_not_kept_makes_room(relay, connect, options):
    limit_to(relay, 1)
    mailer = connect(relay, **options)
    hold = relay.hold("END", times=1)
    reports = []
    threads = [
        threading.Thread(
            target=lambda n=n: reports.append(mailer.send(SENDER, B, message(n)))
        )
        for n in range(2)
    ]
    threads[0].start()
    assert hold.reached.wait(60)
    threads[1].start()
    relay.wait_until(lambda: relay.connections == 2 and relay.open == 1)
    hold.release()
    for thread in threads:
        thread.join(60)
    assert [told(report) for report in reports] == [["sent"], ["sent"]]


def test_nobody_waits_for_longer_than_connecting_may_take(relay, connect):
    limit_to(relay, 1)
    mailer = connect(relay, connect_timeout=0.3)
    hold = relay.hold("END", times=1)
    thread = threading.Thread(target=send, args=(mailer,))
    thread.start()
    assert hold.reached.wait(60)
    begin = time.monotonic()
    report = mailer.send(SENDER, B, message(2))
    assert 0.3 <= time.monotonic() - begin < 5
    assert report.too_many_connections
    hold.release()
    thread.join(60)


def test_a_connection_that_is_lost_makes_room_for_another(relay, connect):
    limit_to(relay, 1)
    mailer = connect(relay, connect_timeout=60)
    pool = mailer._pool
    lost = pool.checkout()
    thread = threading.Thread(target=send, args=(mailer,))
    thread.start()
    eventually(lambda: pool._waiting)
    lost.close()
    relay.wait_until(lambda: not relay.open)
    pool.discard(lost)
    thread.join(60)
    assert len(relay.messages) == 1


def test_no_thread_waits_for_itself(relay, connect):
    """As a subscriber that sends while a processor of the same thread has one."""
    limit_to(relay, 1)
    mailer = connect(relay, connect_timeout=20)
    connection = mailer._pool.checkout()
    begin = time.monotonic()
    report = mailer.send(SENDER, B, message(2))
    assert time.monotonic() - begin < 5
    assert report.too_many_connections
    mailer._pool.checkin(connection)
    assert told(mailer.send(SENDER, B, message(3))) == ["sent"]


def test_the_next_mailer_is_not_kept_waiting(relay, start, connect):
    limit_to(relay, 1)
    mailer, end = in_use(relay, connect)
    second = start()
    failover = FailoverMailer([mailer, connect(second)])
    begin = time.monotonic()
    assert told(failover.send(SENDER, B, message(2))) == ["sent"]
    assert time.monotonic() - begin < 5
    assert len(second.messages) == 1
    end()


@pytest.mark.parametrize("round_robin", [False, True])
@pytest.mark.parametrize("names", ["limited dead", "dead limited", "limited"])
def test_a_connection_is_waited_for_if_no_other_relay_works(
    relay, start, connect, names, round_robin
):
    """Otherwise a direct delivery would lose the mail."""
    limit_to(relay, 2)
    dead = start()
    dead.refuse()
    limited = connect(relay, connect_timeout=60)
    mailers = {"limited": limited, "dead": connect(dead)}
    failover = FailoverMailer(
        [mailers[name] for name in names.split()], round_robin=round_robin
    )
    delivery = DirectMailDelivery(failover)

    def commit(number):
        with transaction.manager:
            for each in range(3):
                delivery.send(SENDER, B, message(f"{number}{each}"))

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(relay.messages) == len({one.data for one in relay.messages}) == 24


def test_it_is_waited_for_once_only(relay, start, connect):
    limit_to(relay, 1)
    dead = start()
    dead.refuse()
    mailer = connect(relay, connect_timeout=0.3)
    hold = relay.hold("END", times=1)
    thread = threading.Thread(target=send, args=(mailer,))
    thread.start()
    assert hold.reached.wait(60)
    report = FailoverMailer([mailer, connect(dead)]).send(SENDER, B, message(2))
    assert told(report) == "relay"
    assert report.too_many_connections
    hold.release()
    thread.join(60)
    assert len(relay.messages) == 1


def test_wait_when_the_others_have_just_gone(relay, connect):
    pool = connect(relay)._pool
    assert pool.wait(time.monotonic() + 5)
    assert not pool.wait(time.monotonic() - 1)
    pool.checkin(pool.checkout())
    assert pool.wait(time.monotonic() + 5)


# Interrupts


class Interrupt(BaseException):
    """As KeyboardInterrupt."""


def test_an_interrupt_leaves_no_connection_busy(relay, connect):
    """A signal handler raises while a pool looks at an idle connection."""
    mailer = connect(relay)
    send(mailer)

    def raise_it(number, frame):
        raise Interrupt

    class Slow(Connection):
        @property
        def is_quiet(self):
            signal.raise_signal(signal.SIGUSR1)

    [(_, idle)] = mailer._pool._idle
    idle.__class__ = Slow
    del idle
    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        with pytest.raises(Interrupt):
            mailer._pool.checkout()
    finally:
        signal.signal(signal.SIGUSR1, before)
    relay.wait_until(lambda: not relay.open)
    assert not mailer._pool._busy
    send(mailer)
    assert relay.connections == 2


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


def test_a_child_does_not_share_with_its_parent(relay, connect):
    mailer = connect(relay)
    send(mailer)

    def in_the_child():
        another = make(relay, timeout=5, final_timeout=5)
        assert another._pool is mailer._pool
        send(another)

    assert in_child(in_the_child) == 0
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
            done.wait(60)

    thread = threading.Thread(target=lock)
    thread.start()
    locked.wait(60)
    try:
        assert in_child(lambda: send(mailer)) == 0
    finally:
        done.set()
        thread.join(60)


def test_a_child_does_not_wait_for_a_lock_of_its_parent_when_a_pool_goes(relay):
    mailer = make(relay)
    send(mailer)
    locked, done = threading.Event(), threading.Event()

    def lock(changed):
        with changed:
            locked.set()
            done.wait(20)

    thread = threading.Thread(target=lock, args=(mailer._pool._changed,))
    thread.start()
    locked.wait(60)
    pools_of = [mailer]
    del mailer

    def end():
        signal.alarm(10)  # instead of waiting for ever
        pools_of.clear()
        gc.collect()

    try:
        assert in_child(end) == 0
    finally:
        done.set()
        thread.join(60)


def test_the_end_of_a_process_does_not_wait_for_a_lock():
    code = """if True:
        import threading
        from postcommit import SMTPMailer
        mailer = SMTPMailer()
        locked = threading.Event()
        def lock():
            with mailer._pool._changed:
                locked.set()
                threading.Event().wait()
        threading.Thread(target=lock, daemon=True).start()
        locked.wait()
    """
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)


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
    thread.join(60)


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
        thread.join(60)
