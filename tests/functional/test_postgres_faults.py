"""The database, its connections and the processors fail, at the worst moment."""
from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import transaction
from tests.contract.steps import ANN
from tests.contract.steps import BOB
from tests.contract.steps import EVE
from tests.contract.steps import accept
from tests.contract.steps import consume
from tests.contract.steps import ids
from tests.contract.steps import stage
from tests.contract.steps import take_all
from tests.contract.steps import tried
from tests.support.mailers import ScriptedMailer
from tests.support.postgres import SERVER_KILLS
from tests.support.postgres import Cluster
from tests.support.postgres import why_not
from tests.support.postgresplace import PostgresPlace
from tests.support.proxy import LossyProxy
from tests.support.transactions import BEFORE
from tests.support.transactions import Partner
from tests.support.transactions import begun
from tests.support.transactions import mail
from transaction import TransactionManager

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._drain.contract import Settled
from postcommit._drain.contract import Settlement
from postcommit._maildir.item import EntryState
from postcommit._postgres import lease as leases
from postcommit._postgres import queue as module
from postcommit._postgres.connections import failure
from postcommit._postgres.connections import is_reply_lost
from postcommit._postgres.lease import Lease
from postcommit._postgres.operators import PostgresOperators
from postcommit._postgres.queue import PostgresQueue
from postcommit.errors import PublishError
from postcommit.errors import QueueError


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

# Number of parts in which the server is killed. They may run in different processes.
_PARTS = 4


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decided commit is tried again for a second only."""
    monkeypatch.setattr(module, "_PATIENCE", 1.0)


# The connections that hold locks in the table of entries.
_LOCKED = """
select pid from pg_locks
where relation = '{schema}.entry'::regclass and pid <> pg_backend_pid()"""


def queued(place: PostgresPlace) -> list[str]:
    return sorted(seen.message_id for seen in place.look().queued)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.02)


# The database is away


def test_a_socket_that_fails_may_have_lost_a_reply(postgres: PostgresPlace) -> None:
    connections = postgres.make().connections
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with (
        pytest.raises(QueueError, match="cannot look: Too many open files") as caught,
        connections.explained("look"),
    ):
        raise error
    assert caught.value.scope == "queue"
    assert is_reply_lost(caught.value)


def test_an_error_without_a_number_keeps_its_text() -> None:
    error = failure("postgresql://db/shop", "look", TimeoutError("timed out"))
    assert error.reason == "cannot look: timed out"


def test_away_at_send(proxy: LossyProxy, url: str) -> None:
    proxy.go_away()
    with pytest.raises(QueueError, match="cannot connect") as caught:
        QueuedMailDelivery(url).send(ANN, BOB, mail())
    assert caught.value.scope == "queue"
    transaction.abort()


@pytest.mark.parametrize("count", [1, 2])
def test_away_at_the_vote(
    postgres: PostgresPlace, proxy: LossyProxy, url: str, count: int
) -> None:
    delivery = QueuedMailDelivery(url)
    for _ in range(count):
        delivery.send(ANN, BOB, mail())
    proxy.go_away()
    with pytest.raises(QueueError, match="cannot connect"):
        transaction.commit()
    transaction.abort()
    assert postgres.execute("select from {schema}.entry").fetchall() == []


@pytest.mark.usefixtures("impatient")
def test_away_at_the_finish_leaves_it_in_doubt(
    postgres: PostgresPlace, proxy: LossyProxy, url: str
) -> None:
    with begun("explicit") as manager:
        manager.get().join(Partner(BEFORE, tpc_finish=proxy.go_away))
        delivery = QueuedMailDelivery(url, transaction_manager=manager)
        names = [delivery.send(ANN, BOB, mail(f"{n}@x.org")) for n in range(2)]
        with pytest.raises(PublishError, match="2 entries stay in doubt") as caught:
            manager.commit()
    assert len(caught.value.names) == 2
    until(lambda: len(postgres.look().in_doubt) == 2)
    postgres.age(60)
    operators = PostgresOperators(postgres.url)
    doubts = list(operators.items([EntryState.IN_DOUBT]))
    assert {item.key.hex for item in doubts} == set(caught.value.names)  # type: ignore[attr-defined]
    with operators.changes() as changes:
        assert len(list(changes.recover(doubts, send=True))) == 2
    assert queued(postgres) == names


def test_a_short_absence_at_the_finish_is_not_noticed(
    postgres: PostgresPlace, proxy: LossyProxy, url: str
) -> None:
    def go() -> None:
        proxy.go_away()
        timer = threading.Timer(0.5, setattr, (proxy, "is_away", False))
        timer.start()

    with begun("explicit") as manager:
        manager.get().join(Partner(BEFORE, tpc_finish=go))
        delivery = QueuedMailDelivery(url, transaction_manager=manager)
        delivery.send(ANN, BOB, mail("a@x.org"))
        manager.commit()
    assert queued(postgres) == ["a@x.org"]


def test_an_abort_while_it_is_away_is_logged(
    postgres: PostgresPlace,
    proxy: LossyProxy,
    url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = PostgresQueue(url)
    batch = queue.batch()
    items = [stage(queue)[1]]
    batch.prepare(items)
    proxy.go_away()
    batch.discard(items)
    batch.discard(items)
    [record] = caplog.records
    assert "Left behind, and in doubt" in record.getMessage()
    until(lambda: len(postgres.look().in_doubt) == 1)


@pytest.mark.parametrize("count", [1, 2])
def test_entries_whose_insert_has_no_reply_may_be_left_behind_and_are_logged(
    postgres: PostgresPlace,
    proxy: LossyProxy,
    url: str,
    caplog: pytest.LogCaptureFixture,
    count: int,
) -> None:
    queue = PostgresQueue(url)
    batch = queue.batch()
    items = [stage(queue)[1] for _ in range(count)]
    proxy.lose_reply_to(b"insert into", and_go=True)
    with pytest.raises(QueueError, match="make the entries durable"):
        batch.prepare(items)
    batch.discard(items)
    assert "Left behind, and in doubt: batch" in caplog.text
    until(lambda: len(postgres.look().in_doubt) == count)


# Replies are lost


@pytest.mark.parametrize(
    ("words", "count"), [(b"insert into", 1), (b"update", 2), (b"delete from", 3)]
)
def test_a_lost_reply_to_a_commit_changes_nothing(
    postgres: PostgresPlace, proxy: LossyProxy, url: str, words: bytes, count: int
) -> None:
    delivery = QueuedMailDelivery(url)
    names = [delivery.send(ANN, BOB, mail(f"{n}@x.org")) for n in range(count)]
    if count > 1:
        transaction.get().join(
            Partner(BEFORE, tpc_finish=lambda: proxy.lose_reply_to(words))
        )
    else:
        proxy.lose_reply_to(words)
    transaction.commit()
    assert proxy.losses == 1
    assert queued(postgres) == names
    assert postgres.execute("select from {schema}.batch").fetchall() == []


def sent_and_removed(place: PostgresPlace) -> None:
    assert QueueProcessor(place.url, ScriptedMailer()).flush().sent == 1


def cancelled(place: PostgresPlace) -> None:
    queue = place.make()
    item = queue.cancel("1@x.org")
    batch = queue.batch()
    batch.prepare([item])
    batch.publish([item])


def deleted(place: PostgresPlace) -> None:
    with PostgresOperators(place.url).changes() as changes:
        [item] = PostgresOperators(place.url).items(list(EntryState))
        assert changes.delete(item)


def deleted_by_hand(place: PostgresPlace) -> None:
    place.execute("delete from {schema}.entry")


@contextmanager
def committing_without_reply(
    place: PostgresPlace, proxy: LossyProxy, url: str, **terms: Any
) -> Iterator[Future[None]]:
    """Commit one mail, whose reply is lost. The body lets the proxy come back."""
    manager = TransactionManager(explicit=True)
    with ThreadPoolExecutor(1) as pool:
        manager.begin()
        delivery = QueuedMailDelivery(url, transaction_manager=manager)
        delivery.send(ANN, BOB, mail("1@x.org"), **terms)
        proxy.lose_reply_to(b"insert into", and_go=True)
        done = pool.submit(manager.commit)
        until(lambda: proxy.is_away)
        assert queued(place) == ["1@x.org"]
        yield done


@pytest.mark.parametrize(
    "remove", [sent_and_removed, cancelled, deleted, deleted_by_hand]
)
def test_an_entry_that_is_removed_before_its_insert_is_repeated_stays_removed(
    postgres: PostgresPlace,
    proxy: LossyProxy,
    url: str,
    remove: Callable[[PostgresPlace], None],
) -> None:
    with committing_without_reply(postgres, proxy, url) as done:
        remove(postgres)
        proxy.is_away = False
        done.result(60)
    assert queued(postgres) == []
    assert len(postgres.execute("select from {schema}.removed").fetchall()) == 1


def test_an_insert_with_terms_is_repeated_like_any_other(
    postgres: PostgresPlace, proxy: LossyProxy, url: str
) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    for remove, left in [(deleted_by_hand, []), (queued, ["1@x.org"])]:
        with committing_without_reply(postgres, proxy, url, not_before=due) as done:
            remove(postgres)
            proxy.is_away = False
            done.result(60)
        assert queued(postgres) == left


def test_a_repeated_insert_waits_for_a_removal(
    postgres: PostgresPlace, proxy: LossyProxy, url: str
) -> None:
    """Its own statement does not see what was removed while it waited."""
    waiting = "select from pg_locks where not granted"
    with committing_without_reply(postgres, proxy, url) as done:
        with psycopg.connect(postgres.url.partition("?")[0]) as remover:
            remover.execute(f"delete from {postgres.schema}.entry".encode())
            proxy.is_away = False
            until(lambda: postgres.execute(waiting).fetchall())
        done.result(60)
    assert queued(postgres) == []


def test_a_processor_forgets_what_was_removed(postgres: PostgresPlace) -> None:
    delivery = QueuedMailDelivery(postgres.url)
    for number in range(2):
        delivery.send(ANN, BOB, mail(f"{number}@x.org"))
        transaction.commit()
    assert QueueProcessor(postgres.url, ScriptedMailer()).flush().sent == 2
    old = "update {schema}.removed set at = at - interval '61 s' where ctid = '(0,1)'"
    postgres.execute(old)
    left = "select from {schema}.removed"
    assert len(postgres.execute(left).fetchall()) == 2
    consumer = consume(postgres.make())
    consumer._lease.renew()
    assert len(postgres.execute(left).fetchall()) == 1
    consumer.close()


@pytest.mark.usefixtures("impatient")
def test_a_reply_that_stays_lost_is_an_error_that_says_so(
    postgres: PostgresPlace, proxy: LossyProxy, url: str
) -> None:
    QueuedMailDelivery(url).send(ANN, BOB, mail("a@x.org"))
    proxy.lose_reply_to(b"insert into", and_go=True)
    with pytest.raises(QueueError, match="may have been accepted, or not"):
        transaction.commit()
    transaction.abort()
    assert queued(postgres) == ["a@x.org"]


@pytest.mark.usefixtures("impatient")
def test_a_lost_reply_in_the_vote_aborts(
    postgres: PostgresPlace, proxy: LossyProxy, url: str
) -> None:
    transaction.get().join(Partner(BEFORE))
    QueuedMailDelivery(url).send(ANN, BOB, mail("a@x.org"))
    proxy.lose_reply_to(b"insert into")
    with pytest.raises(QueueError):
        transaction.commit()
    transaction.abort()
    assert postgres.execute("select from {schema}.entry").fetchall() == []
    assert postgres.execute("select from {schema}.batch").fetchall() == []


def test_claims_whose_reply_was_lost_are_freed(
    postgres: PostgresPlace,
    proxy: LossyProxy,
    url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = PostgresQueue(url)
    names = [accept(queue) for _ in range(6)]
    consumer = consume(queue)
    [first] = consumer.take(1)
    first.read()
    proxy.lose_reply_to(b"set holder")
    with pytest.raises(QueueError):
        consumer.take(3)
    other = consume(postgres.make())
    until(lambda: "were freed" in caplog.text)  # by the beat of the lease
    rest = take_all(other)
    assert sorted(ids([first, *rest])) == sorted(names)
    proxy.lose_reply_to(b"set holder")
    other.release(rest)
    with pytest.raises(QueueError):
        consumer.take(3)
    again = take_all(consumer)  # it frees them itself
    again += take_all(other)
    assert sorted(ids([first, *again])) == sorted(names)
    consumer.close()
    other.close()


SETTLEMENTS = {
    "sent": lambda claim: Settlement(),
    "later": lambda claim: Settlement(left=tried(claim.entry, BOB), due=1.0),
    "rejected": lambda claim: Settlement(rejected=tried(claim.entry, ANN)),
    "both": lambda claim: Settlement(tried(claim.entry, ANN), tried(claim.entry, EVE)),
    "all": lambda claim: Settlement(
        tried(claim.entry, ANN), tried(claim.entry, EVE), tried(claim.entry, BOB), 1.0
    ),
}


@pytest.mark.parametrize("case", SETTLEMENTS)
def test_a_settlement_whose_reply_was_lost_is_done_once(
    postgres: PostgresPlace, proxy: LossyProxy, url: str, case: str
) -> None:
    queue = PostgresQueue(url)
    accept(queue, ANN, BOB, EVE)
    consumer = consume(queue)
    [claim] = take_all(consumer)
    settlement = SETTLEMENTS[case](claim)
    proxy.lose_reply_to(claim.token.bytes)
    if case == "sent":
        proxy.lose_reply_to(b"delete from")
    with pytest.raises(QueueError):
        consumer.settle(claim, settlement)
    assert proxy.losses == 1
    other = consume(postgres.make())
    taken = other.take(8)  # another has it meanwhile
    assert len(taken) == (1 if settlement.left else 0)
    assert consumer.settle(claim, settlement) is Settled.DONE
    look = postgres.look()
    assert len(look.queued) == (1 if settlement.left else 0)
    letters = [one for one in (settlement.rejected, settlement.uncertain) if one]
    assert sorted(seen.recipients for seen in look.failed) == sorted(
        letter.recipients for letter in letters
    )
    other.close()
    consumer.close()


def test_an_entry_that_somebody_removed_is_not_settled(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    accept(queue)
    consumer = consume(queue)
    [claim] = take_all(consumer)
    postgres.execute("delete from {schema}.entry")
    claim._message = None  # as that of a large one
    with pytest.raises(QueueError, match="was removed"):
        claim.read()
    assert consumer.settle(claim, Settlement()) is Settled.REMOVED
    consumer.close()


def test_a_processor_goes_on_after_lost_replies(
    postgres: PostgresPlace, proxy: LossyProxy, url: str
) -> None:
    queue = postgres.make()
    names = [accept(queue) for _ in range(30)]
    mailer = ScriptedMailer()
    losses = [b"set holder", b"delete from", b"delete from", b"set holder"]

    def lose(taken: Any) -> None:
        if losses and len(mailer.attempts) % 5 == 4:
            proxy.lose_reply_to(losses.pop())

    mailer.before = lose
    processor = QueueProcessor(url, mailer)
    processor.start()
    until(lambda: postgres.look().queued == [])
    assert processor.stop(30)
    assert Counter(name for name, _ in mailer.sent) == Counter(names)
    assert proxy.losses >= 3


# Leases


def leased(url: str, seconds: float) -> Any:
    return consume(PostgresQueue(url, lease_seconds=seconds))


def test_a_processor_that_is_cut_off_stops_and_comes_back(
    postgres: PostgresPlace,
    proxy: LossyProxy,
    url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = postgres.make()
    names = [accept(queue) for _ in range(2)]
    consumer = leased(url, 1.0)
    [claim] = consumer.take(1)
    assert consumer.is_sure(claim)
    proxy.go_away()
    until(lambda: not consumer.is_sure(claim))
    with pytest.raises(QueueError, match="lease is not renewed") as caught:
        consumer.take(1)
    assert caught.value.scope == "queue"
    consumer.post("it is away", 5)  # never raises
    consumer.wait(1.5)
    other = leased(postgres.url, 1.0)
    taken: list[Any] = []
    until(lambda: taken.extend(other.take(8)) or len(taken) == 2)
    proxy.is_away = False
    until(lambda: "stood still, or was cut off" in caplog.text)
    assert not consumer.is_sure(claim)
    assert consumer.settle(claim, Settlement()) is Settled.TAKEN
    consumer.release([claim])
    for one in taken:
        one.read()
    assert sorted(ids(taken)) == sorted(names)
    other.release(taken)
    until(lambda: len(consumer.take(8)) == 2)  # under its new lease
    consumer.close()
    other.close()


def test_a_lease_that_was_lost_is_noticed_by_a_claim(
    postgres: PostgresPlace, caplog: pytest.LogCaptureFixture
) -> None:
    queue = postgres.make()
    accept(queue)
    consumer = consume(queue)
    postgres.execute("delete from {schema}.process")
    with pytest.raises(QueueError):
        consumer.take(1)
    until(lambda: "lost its claims" in caplog.text)
    assert len(consumer.take(1)) == 1
    consumer.close()


def test_a_feeder_that_hangs_keeps_its_claims_and_shows_it(
    postgres: PostgresPlace,
) -> None:
    consumer = leased(postgres.url, 1.0)
    consumer._lease.last_sign -= 300  # as if it had waited for a relay
    operators = PostgresOperators(postgres.url)

    def silent() -> float:
        heartbeat = operators.survey().heartbeat
        return 0.0 if heartbeat is None else time.time() - heartbeat

    until(lambda: silent() > 200)
    other = leased(postgres.url, 1.0)
    assert len(postgres.execute("select from {schema}.process").fetchall()) == 2
    consumer.close()
    other.close()


def test_a_process_that_was_stopped_for_long_sends_nothing_more(
    postgres: PostgresPlace,
) -> None:
    """SIGSTOP, longer than the lease, with eight claims."""
    warnings.simplefilter("ignore", DeprecationWarning)
    queue = postgres.make()
    names = [accept(queue) for _ in range(8)]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            consumer = leased(postgres.url, 1.0)
            claims = consumer.take(8)
            os.write(writer, b"%d" % len(claims))
            os.kill(os.getpid(), signal.SIGSTOP)
            # One message was on the wire; the others are asked for.
            sure = sum(consumer.is_sure(claim) for claim in claims)
            settled = consumer.settle(claims[0], Settlement())
            os.write(writer, f"{sure} {settled.name}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    assert os.read(reader, 100) == b"8"
    other = leased(postgres.url, 1.0)
    claims: list[Any] = []
    until(lambda: claims.extend(other.take(8)) or len(claims) == 8)
    os.kill(child, signal.SIGCONT)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"0 TAKEN"
    for claim in claims:
        claim.read()
        assert other.settle(claim, Settlement()) is Settled.DONE
    assert sorted(ids(claims)) == sorted(names)
    other.close()
    os.close(reader)
    os.close(writer)


def test_the_end_of_a_lease_without_the_database_is_logged(
    proxy: LossyProxy, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = consume(PostgresQueue(url))
    claims = consumer.take(1)
    proxy.go_away()
    consumer.release(claims)
    consumer.close()
    assert "claims stay until the lease ends" in caplog.text


def test_what_cannot_be_released_is_logged_and_freed_later(
    postgres: PostgresPlace,
    proxy: LossyProxy,
    url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = postgres.make()
    accept(queue)
    consumer = consume(PostgresQueue(url))
    [claim] = consumer.take(1)
    proxy.go_away()
    consumer.release([claim])
    assert "not released" in caplog.text
    with pytest.raises(QueueError):
        consumer.bury_unreadable(claim, "it is odd")
    proxy.is_away = False
    until(lambda: _takes_one(consumer))
    consumer.close()


def _takes_one(consumer: Any) -> bool:
    try:
        return len(consumer.take(1)) == 1
    except QueueError:
        return False


def test_the_thread_of_a_lease_survives_an_error(
    postgres: PostgresPlace, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    lease = Lease(postgres.make().connections, 1.0, fail)
    until(lambda: caplog.text.count("ZeroDivisionError") > 1)
    assert lease.is_sure
    lease.close()
    lease.close()


def test_a_renewal_that_hangs_does_not_keep_a_drain_from_its_end(
    postgres: PostgresPlace,
    proxy: LossyProxy,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "_PATIENCE", 0.1)
    lease = Lease(PostgresQueue(url).connections, 60.0, lambda: None)
    with lease._renewing:  # as a thread that waits for the server
        lease.close()
    lease.renew()  # it changes nothing any more
    assert postgres.execute("select from {schema}.process").fetchall() == []


def test_an_interrupt_in_the_finish_leaves_it_in_doubt(
    postgres: PostgresPlace, caplog: pytest.LogCaptureFixture
) -> None:
    queue = postgres.make()
    batch = queue.batch()
    items = [stage(queue)[1]]
    batch.prepare(items)
    connection, is_open = batch._connection()
    assert is_open
    connection.close()  # as `publish` does after an interrupt
    batch.abandon(items)
    assert "in doubt, for 'postcommit recover'" in caplog.text
    until(lambda: len(postgres.look().in_doubt) == 1)


def test_a_full_disk_is_told_from_other_errors(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    statement = """do $$ begin raise exception 'no space' using errcode = '53100';
        end $$"""
    with pytest.raises(QueueError) as caught:
        queue.connections.count(statement, doing="accept the entry")
    assert caught.value.is_full
    assert caught.value.scope == "queue"
    with pytest.raises(QueueError) as caught:
        queue.connections.rows("select 'x'::int", doing="read")
    assert caught.value.scope == "entry"


# The server is killed


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_PARTS))
def test_a_server_that_is_killed_loses_no_commit(part: int) -> None:
    """Senders and a processor work while it is killed and started again."""
    server = Cluster()
    server.start()
    try:
        kills = max(1, SERVER_KILLS // _PARTS)
        _drain_while_it_is_killed(server, kills, random.Random(part))
    finally:
        server.stop()


def _drain_while_it_is_killed(
    server: Cluster, kills: int, chance: random.Random
) -> None:
    url = server.new_queue()
    accepted: list[str] = []
    aborted: list[str] = []
    is_over = threading.Event()

    def send(part: int) -> None:
        with begun("explicit") as manager:
            manager.abort()
            delivery = QueuedMailDelivery(url, transaction_manager=manager)
            number = 0
            while not is_over.is_set():
                number += 1
                name = f"{part}.{number}@x.org"
                manager.begin()
                if part:
                    manager.get().join(Partner(BEFORE))
                try:
                    delivery.send(ANN, BOB, mail(name))
                    manager.commit()
                    accepted.append(name)
                except PublishError:
                    manager.abort()
                    accepted.append(name)  # it is in doubt, and recovered below
                except QueueError as error:
                    manager.abort()
                    if "may have been" not in str(error):
                        aborted.append(name)
                    is_over.wait(0.05)
            manager.begin()

    mailer = ScriptedMailer()
    processor = QueueProcessor(url, mailer, workers=2, min_backoff=1.0)
    processor.start()
    senders = [threading.Thread(target=send, args=(part,)) for part in range(2)]
    for sender in senders:
        sender.start()
    for _ in range(kills):
        is_over.wait(chance.uniform(0.3, 1.0))
        server.kill()
        server.start()
    is_over.wait(0.5)
    is_over.set()
    for sender in senders:
        sender.join()
    operators = PostgresOperators(url)
    with server.connect() as connection:
        schema = url.partition("postcommit_schema=")[2]
        old = f"update {schema}.batch set voted = voted - interval '1 minute'"
        connection.execute(old.encode())
        with operators.changes() as changes:
            for item in list(operators.items([EntryState.IN_DOUBT])):
                read = operators.details(item)
                assert read is not None
                is_decided = read.message_id in accepted
                assert list(changes.recover([item], send=is_decided)) == [item]
        left = f"select count(*) from {schema}.entry".encode()
        # Longer than the longest pause of a processor, which has seen many failures.
        until(lambda: connection.execute(left).fetchone() == (0,), 400)
    assert processor.stop(30)
    sent = Counter(name for name, _ in mailer.sent)
    assert len(accepted) > 20
    assert set(accepted) <= set(sent), "lost"
    assert not set(aborted) & set(sent)
    # A settlement that was not committed is repeated, unless its lease has ended.
    assert sum(count - 1 for count in sent.values()) <= kills


# A mail is called off


def test_a_mail_that_cannot_be_looked_for_waits(postgres: PostgresPlace) -> None:
    queue = PostgresQueue(postgres.url)
    name = accept(queue)
    postgres.execute("alter table {schema}.entry rename to away")
    with pytest.raises(QueueError, match="cannot look for the mail: ") as caught:
        queue.cancel(name)
    assert caught.value.scope == "queue"
    postgres.execute("alter table {schema}.away rename to entry")
    assert postgres.execute(_LOCKED).fetchall() == []
    assert queue.cancel(name), "the next one has another connection"


def test_a_mail_of_the_same_transaction_needs_no_statement(
    postgres: PostgresPlace,
) -> None:
    delivery = QueuedMailDelivery(postgres.url)
    delivery.send(ANN, BOB, mail("1@x.org"))
    delivery.send(ANN, BOB, mail("2@x.org"))
    assert delivery.cancel("1@x.org")
    assert postgres.execute(_LOCKED).fetchall() == []
    transaction.commit()
    assert queued(postgres) == ["2@x.org"]
    delivery.send(ANN, BOB, mail("3@x.org"))
    savepoint = transaction.savepoint()
    assert delivery.cancel("3@x.org")
    savepoint.rollback()
    transaction.commit()
    assert queued(postgres) == ["2@x.org", "3@x.org"]


def cancelled(place: PostgresPlace) -> tuple[uuid.UUID, Any]:
    """Accept a mail and call it off. Return its key, and the end of its lock."""
    delivery = QueuedMailDelivery(place.url)
    delivery.send(ANN, BOB, mail("1@x.org"))
    transaction.commit()
    [(id,)] = place.execute("select id from {schema}.entry")
    assert delivery.cancel("1@x.org")

    def lose_the_lock() -> None:
        for (pid,) in place.execute(f"select distinct pid from ({_LOCKED}) locks"):
            place.execute("select pg_terminate_backend(%s)", [pid])
        until(lambda: not place.execute(_LOCKED).fetchall())

    return id, lose_the_lock


def test_the_lock_is_lost_before_the_vote(postgres: PostgresPlace) -> None:
    """The mail can be sent again, so the transaction must not commit."""
    _, lose_the_lock = cancelled(postgres)
    lose_the_lock()
    partner = Partner(BEFORE)
    transaction.get().join(partner)
    with pytest.raises(QueueError, match="cannot remove what was called off: "):
        transaction.commit()
    transaction.abort()
    assert "tpc_finish" not in partner.calls
    assert QueueProcessor(postgres.url, ScriptedMailer()).flush().sent == 1


def test_the_lock_is_lost_before_the_mail_is_removed(
    postgres: PostgresPlace, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit is decided, and the mail is sent all the same: it is said loudly."""
    id, lose_the_lock = cancelled(postgres)
    partner = Partner(BEFORE)
    partner.tpc_finish = lambda transaction: lose_the_lock()
    transaction.get().join(partner)
    with pytest.raises(QueueError, match="cannot remove what was called off: "):
        transaction.commit()
    transaction.abort()
    # `transaction` says in its own words that the second phase has failed.
    [record] = [each for each in caplog.records if "called off" in each.getMessage()]
    assert record.levelname == "CRITICAL"
    said = f"{id.hex}: was called off, but cannot be removed and may be sent: "
    assert said in record.getMessage()
    mailer = ScriptedMailer()
    assert QueueProcessor(postgres.url, mailer).flush().sent == 1


def test_an_interrupted_commit_says_what_may_be_sent(
    postgres: PostgresPlace, caplog: pytest.LogCaptureFixture
) -> None:
    queue = PostgresQueue(postgres.url)
    item = queue.cancel(accept(queue))
    batch = queue.batch()
    batch.prepare([item])
    batch.abandon([item])
    assert "the commit was interrupted; called off, but may be sent: " in caplog.text
    assert postgres.execute(_LOCKED).fetchall() == []
    assert len(queued(postgres)) == 1


def test_all_mails_of_a_transaction_are_called_off_by_one_connection(
    postgres: PostgresPlace,
) -> None:
    delivery = QueuedMailDelivery(postgres.url)
    names = [delivery.send(ANN, BOB, mail(f"{n}@x.org")) for n in range(60)]
    transaction.commit()
    for name in names[:50]:
        assert delivery.cancel(name)
    assert not delivery.cancel(names[0])
    savepoint = transaction.savepoint()
    for name in names[50:]:
        assert delivery.cancel(name)
    assert not delivery.cancel("unknown@x.org")
    count = f"select count(distinct pid) from ({_LOCKED}) locks"
    assert postgres.execute(count).fetchone() == (1,)
    other = QueuedMailDelivery(postgres.url).bind(TransactionManager())
    assert not other.cancel(names[55])
    savepoint.rollback()
    assert other.cancel(names[55]), "it waits again"
    assert not other.cancel(names[5])
    assert delivery.cancel(names[56])
    savepoint.rollback()
    assert delivery.cancel(names[57])
    transaction.commit()
    left = sorted(name for name in names[50:] if name != names[57])
    assert queued(postgres) == left
    other.transaction_manager.commit()
    assert queued(postgres) == sorted({*left} - {names[55]})
    assert postgres.execute(_LOCKED).fetchall() == []


def test_the_vote_refuses_what_the_database_does_not_remove(
    postgres: PostgresPlace,
) -> None:
    queue = PostgresQueue(postgres.url)
    names = [accept(queue) for _ in range(4)]
    postgres.execute(
        "create function {schema}.refuse() returns trigger language plpgsql as"
        " $$ begin raise exception 'not %', old.message_id; end $$"
    )
    postgres.execute(
        "create trigger refuse before delete on {schema}.entry for each row"
        f" when (old.message_id in ('{names[1]}', '{names[2]}'))"
        " execute function {schema}.refuse()"
    )
    items: list[Any] = []
    for name in names:
        items.append(queue.cancel(name, items))
    batch = queue.batch()
    with pytest.raises(QueueError, match=f"not ({names[1]}|{names[2]})"):
        batch.prepare(items)
    batch.discard(items)
    assert queued(postgres) == sorted(names)
    assert postgres.execute(_LOCKED).fetchall() == []


def test_two_calls_that_share_nothing_both_take_effect(
    postgres: PostgresPlace, caplog: pytest.LogCaptureFixture
) -> None:
    """The first error is raised when both were tried."""
    queue = PostgresQueue(postgres.url)
    items = [queue.cancel(accept(queue)) for _ in range(3)]
    batch = queue.batch()
    batch.prepare(items)
    for item in items[:2]:
        assert item is not None
        item.locks._held.close()
    with pytest.raises(QueueError, match="cannot remove what was called off"):
        batch.publish(items)
    assert caplog.text.count("and may be sent") == 2
    assert len(queued(postgres)) == 2


def test_a_failed_search_keeps_what_was_called_off_before(
    postgres: PostgresPlace,
) -> None:
    role = f"nobody_{postgres.schema}"
    postgres.execute(f"create role {role}")
    delivery = QueuedMailDelivery(postgres.url)
    for name in ("1@x.org", "2@x.org"):
        delivery.send(ANN, BOB, mail(name))
    transaction.commit()
    assert delivery.cancel("1@x.org")
    [resource] = transaction.get()._resources
    held = resource.items[0].locks._held
    held.execute(f"set local role {role}")
    with pytest.raises(QueueError, match="look for the mail: permission denied"):
        delivery.cancel("2@x.org")
    held.execute("reset role")
    transaction.commit()
    assert queued(postgres) == ["2@x.org"]
    postgres.execute(f"drop role {role}")
