"""Pipelines: one round trip for each message, and nothing is lost when they break."""
from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from postcommit._smtp.dialogue import Step
from postcommit._smtp.dialogue import Transmission
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import message
from tests.smtp.messages import told
from tests.support.mailers import Taken
from tests.support.script import Hangup


WITHOUT = pytest.mark.parametrize("without", [(), ("PIPELINING",)], ids=str)


def mails(number, to=(B,)):
    return [(f"s{i}@example.org", to, message(i)) for i in range(number)]


def send(mailer, messages):
    return [told(report) for report in mailer.send_all(messages)]


def ids(relay):
    return [int(m.sender[1:].partition("@")[0]) for m in relay.messages]


@WITHOUT
def test_in_order(start, connect, without):
    relay = start(without=without)
    reports = list(connect(relay).send_all(mails(5)))
    assert [report.message_id for report in reports] == [
        f"{i}@example.org" for i in range(5)
    ]
    assert ids(relay) == [0, 1, 2, 3, 4]
    assert relay.connections == 1


def test_announces_nothing(relay, connect, caplog):
    mailer = connect(relay)
    with caplog.at_level(logging.DEBUG):
        send(mailer, mails(2))
    assert mailer.events == []
    assert caplog.records == []


def test_an_empty_pipeline_does_not_connect(relay, connect):
    assert send(connect(relay), []) == []
    assert relay.connections == 0


def test_one_write_for_the_end_of_one_message_and_the_next_envelope(relay, connect):
    send(connect(relay), mails(3))
    verbs = [[command[:4] for command in group] for group in relay.groups]
    assert verbs == [
        ["EHLO"],
        ["MAIL", "RCPT", "DATA"],
        [".", "MAIL", "RCPT", "DATA"],
        [".", "MAIL", "RCPT", "DATA"],
        ["."],
    ]


def test_the_next_message_is_taken_while_the_relay_is_busy(relay, connect):
    hold = relay.hold("END")
    taken = threading.Event()

    def messages():
        yield from mails(2)
        taken.set()
        yield from mails(1)

    thread = threading.Thread(target=send, args=(connect(relay), messages()))
    thread.start()
    assert hold.reached.wait(60)
    assert taken.wait(60)
    hold.release()
    thread.join(60)
    assert len(relay.messages) == 3


def test_switched_off(relay, connect):
    assert send(connect(relay, pipelining=False), mails(3)) == [["sent"]] * 3
    assert {len(group) for group in relay.groups} == {1}


@WITHOUT
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "END"])
@pytest.mark.parametrize(
    ("reply", "status"), [("450 4.2.0 Later", "deferred"), ("550 5.7.1 No", "rejected")]
)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_of_three_is_refused(start, connect, without, stage, reply, status, which):
    relay = start(without=without)

    def refuse(dialogue, usual):
        refused = stage == "MAIL" or dialogue.sender == f"s{which}@example.org"
        return dialogue.say((reply if refused else usual).encode() + b"\r\n")

    if stage == "MAIL":
        relay.reply("MAIL", reply, address=f"s{which}@example.org")
    else:
        relay.on(stage, refuse)
    expected = [["sent"]] * 3
    expected[which] = [status]
    assert send(connect(relay), mails(3)) == expected
    assert ids(relay) == [i for i in range(3) if i != which]
    assert relay.connections == 1


@WITHOUT
@pytest.mark.parametrize("which", [0, 1, 2])
def test_all_recipients_of_one_refused_but_data_welcome(
    start, connect, without, which
):
    relay = start(without=without)

    def welcome(dialogue, usual):
        return dialogue.say(b"354 Go on\r\n")

    relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
    relay.on("DATA", welcome)
    messages = mails(3)
    messages[which] = (SENDER, [C], message(9))
    expected = [["sent"]] * 3
    expected[which] = ["rejected"]
    assert send(connect(relay), messages) == expected
    assert len(relay.messages) == 2


# A connection that breaks


@WITHOUT
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("how", ["close", "reset", "421"])
def test_hangs_up_on_the_second_message(start, connect, without, stage, how):
    relay = start(without=without)
    seen = []

    def hang_up(dialogue, usual):
        seen.append(dialogue.number)
        if len(seen) == 2:
            if how == "421":
                dialogue.say(b"421 4.7.0 Enough\r\n")
            dialogue.closing = "reset" if how == "reset" else "close"
            return 0
        return dialogue.say(usual.encode() + b"\r\n")

    relay.on(stage, hang_up)
    result = send(connect(relay), mails(3))
    if stage == "MAIL":
        # replaced once, silently
        assert result == [["sent"]] * 3
        assert ids(relay) == [0, 1, 2]
    elif how == "421":
        assert result == [["sent"], "relay", "relay"]
    elif how == "close":
        assert result == [["sent"], ["deferred"], ["sent"]]
    else:  # the reset may have overtaken the replies before it
        assert result in (
            [["sent"], ["deferred"], ["sent"]],
            [["sent"], ["sent"], ["sent"]],
        )
    assert len(relay.messages) == sum(status == ["sent"] for status in result)


@WITHOUT
def test_hangs_up_after_each_message(start, connect, without):
    relay = start(without=without)
    relay.drop("END", after="250 2.0.0 Taken")
    assert send(connect(relay), mails(5)) == [["sent"]] * 5
    assert ids(relay) == [0, 1, 2, 3, 4]
    assert relay.connections == 5


@WITHOUT
def test_hangs_up_instead_of_the_final_reply(start, connect, without):
    relay = start(without=without)
    relay.drop("END", address="s1@example.org")
    result = send(connect(relay), mails(4))
    assert result == [["sent"], ["uncertain"], ["sent"], ["sent"]]
    assert ids(relay) == [0, 2, 3]


@WITHOUT
def test_421_to_the_final_dot_ends_the_pipeline(start, connect, without):
    relay = start(without=without)
    relay.drop("END", after="421 4.3.2 Bye", address="s1@example.org")
    assert send(connect(relay), mails(4)) == [["sent"], "relay", "relay", "relay"]
    assert relay.connections == 1


@WITHOUT
def test_hangs_up_again(start, connect, without):
    """It is replaced once only."""
    relay = start(without=without)
    relay.drop("MAIL", address="s1@example.org", times=2)
    result = send(connect(relay), mails(3))
    assert result == [["sent"], ["deferred"], ["sent"]]


def test_goes_away_for_good(relay, connect):
    def leave(dialogue, usual):
        relay.refuse()
        dialogue.closing = "close"
        return dialogue.say(b"250 2.0.0 Taken\r\n")

    relay.on("END", leave)
    result = send(connect(relay, connect_timeout=1), mails(4))
    assert result == [["sent"], "relay", "relay", "relay"]


def test_a_refused_reset_is_a_closed_connection(relay, connect):
    relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
    relay.reply("RSET", "500 5.5.1 What?")
    messages = [(SENDER, [C], message(0)), (SENDER, [B], message(1))]
    assert send(connect(relay), messages) == [["rejected"], ["sent"]]
    assert relay.connections == 2


# Out of step


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("MAIL", b"250 2.1.0 Ok\r\n250 2.1.0 Ok\r\n"),
        ("MAIL", b"503 5.5.1 Nested MAIL\r\n"),
        ("RCPT", b"250 2.1.5 Ok\r\n250 2.1.5 Ok\r\n"),
        ("RCPT", b"354 Go on\r\n"),
        ("DATA", b"250 2.0.0 Ok\r\n"),
        ("DATA", b"354 Go on\r\n250 2.0.0 Ok\r\n"),
        ("MAIL", b"what\r\n"),
    ],
)
def test_without_pipelining_for_one_that_is_out_of_step(
    start, connect, caplog, stage, reply
):
    relay = start(provoked=True)
    calls = []

    def out_of_step(dialogue, usual):
        calls.append(usual)
        said = reply if len(calls) == 2 else usual.encode() + b"\r\n"
        return dialogue.say(said)

    relay.on(stage, out_of_step)
    mailer = connect(relay)
    assert send(mailer, mails(4)) == [["sent"]] * 4
    assert ids(relay) == [0, 1, 2, 3]
    assert relay.connections == 2
    assert "without pipelining" in caplog.text
    assert relay.groups[-1] == ["."]
    assert relay.groups[-2] == ["DATA"]


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("MAIL", b"550 5.7.1 No\r\n250 2.1.0 Ok\r\n"),
        ("MAIL", b"450 4.2.0 Later\r\n250 2.1.0 Ok\r\n"),
        ("RCPT", b"550 5.1.1 Unknown\r\n250 2.1.5 Ok\r\n"),
        ("RCPT", b"450 4.2.0 Later\r\n250 2.1.5 Ok\r\n"),
        ("DATA", b"550 5.7.1 No\r\n354 Go on\r\n"),
    ],
)
def test_outcomes_from_before_it_was_out_of_step_are_void(
    start, connect, stage, reply
):
    """The message goes out again, and is reported as the relay then answers."""
    relay = start(provoked=True)
    calls = []

    def out_of_step(dialogue, usual):
        calls.append(usual)
        said = reply if len(calls) == 2 else usual.encode() + b"\r\n"
        dialogue.say(said)
        return int(said.splitlines()[-1][:3])

    relay.on(stage, out_of_step)
    assert send(connect(relay), mails(3, (B, C))) == [["sent"] * 2] * 3
    assert ids(relay) == [0, 1, 2]
    assert relay.connections == 2


def test_a_stray_reply_is_not_the_answer_to_the_next_command(start, connect):
    relay = start(without=["PIPELINING"], provoked=True)
    relay.reply("RCPT", b"550 5.1.1 No\r\n" * 2, address=B)
    [report] = connect(relay).send_all(mails(1, (B, C)))
    assert told(report) == ["rejected", "deferred"]
    assert "out of step" in report.deferred[0].reply.text
    assert relay.messages == []


def test_a_stray_reply_between_two_groups_of_commands(start, connect):
    """More than 100 commands are not written at once, with pipelining either."""
    relay = start(provoked=True)
    to = tuple(f"{n}@example.org" for n in range(120))
    relay.reply("RCPT", b"250 2.1.5 Ok\r\n550 5.1.1 No\r\n", address=to[5], times=1)
    mailer = connect(relay, recipients_per_transaction=200)
    assert send(mailer, mails(2, to)) == [["sent"] * 120] * 2
    assert [len(m.recipients) for m in relay.messages] == [120, 120]
    assert relay.connections == 2


def test_first_closed_and_then_out_of_step(start, connect):
    """A message that has moved because of the one may move because of the other."""
    relay = start(provoked=True)
    relay.drop("MAIL", address="s1@example.org", times=1)
    relay.reply("MAIL", b"250 Ok\r\n" * 2, address="s1@example.org", times=1)
    assert send(connect(relay), mails(3)) == [["sent"]] * 3
    assert ids(relay) == [0, 1, 2]
    assert relay.connections == 3


def test_without_pipelining_also_on_connections_from_before(start, connect):
    relay = start(provoked=True)
    mailer = connect(relay)
    hold = relay.hold("END")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, mailer, mails(1))
        assert hold.reached.wait(60)
        relay.reply("MAIL", b"250 Ok\r\n" * 2, times=1)
        assert send(mailer, mails(1)) == [["sent"]]
        hold.release()
        assert first.result(5) == [["sent"]]
    relay.groups.clear()
    assert send(mailer, mails(2)) == [["sent"]] * 2
    assert {len(group) for group in relay.groups} == {1}


def test_always_out_of_step(start, connect):
    relay = start(provoked=True)
    relay.reply("DATA", "250 2.0.0 Ok")
    assert send(connect(relay), mails(2)) == ["relay", "relay"]
    assert relay.connections == 2


@WITHOUT
@pytest.mark.parametrize(
    ("ehlo", "said"),
    [
        (b"250-x\r\n250 PIPELINING\r\n421 4.3.2 Bye\r\n", "421 4.3.2 Bye"),
        (b"250 x\r\n250 PIPELINING\r\n", "250 PIPELINING"),
        (b"250 x\r\n421 4.3", "timed out"),
    ],
)
def test_out_of_step_before_the_first_message(start, connect, without, ehlo, said):
    """A connection that is of no use is not opened again and again."""
    relay = start(without=without, provoked=True)
    relay.on("EHLO", lambda dialogue, usual: dialogue.say(ehlo))
    mailer = connect(relay)
    reports = list(mailer.send_all(mails(3)))
    assert [told(report) for report in reports] == ["relay", "relay", "relay"]
    assert said in str(reports[0].relay_failure)
    assert not any(report.failed_mid_message for report in reports)
    assert relay.connections == 1


@WITHOUT
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "END"])
def test_whose_turn_it_was_when_the_relay_failed(start, connect, without, stage):
    relay = start(without=without)
    who = "r1@example.org" if stage == "RCPT" else "s1@example.org"
    relay.drop(stage, after="421 4.3.2 Bye", address=who)
    messages = [
        (sender, (f"r{number}@example.org",), text)
        for number, (sender, _, text) in enumerate(mails(4))
    ]
    reports = list(connect(relay).send_all(messages))
    assert [told(report) for report in reports] == [["sent"], *["relay"] * 3]
    failed = [report.failed_mid_message for report in reports]
    assert failed == [False, True, False, False]


@WITHOUT
def test_silence_at_the_end_is_not_the_turn_of_the_next(start, connect, without):
    relay = start(without=without)
    relay.hold("END", address="s1@example.org")
    reports = list(connect(relay, timeout=0.3).send_all(mails(4)))
    results = [told(report) for report in reports]
    if without:  # nothing was on the wire behind it: there is a new connection
        assert results == [["sent"], ["uncertain"], ["sent"], ["sent"]]
    else:
        assert results == [["sent"], ["uncertain"], "relay", "relay"]
        assert "fell silent" in str(reports[2].relay_failure)
    assert not any(report.failed_mid_message for report in reports)


def test_silence_in_a_content_is_not_the_turn_of_the_next(relay, connect):
    def fall_silent(dialogue, usual):
        dialogue.say(b"354 Go on\r\n")
        dialogue.flush()
        relay.stopping.wait()
        raise Hangup

    relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
    relay.on("DATA", fall_silent)
    big = message(0) + (b"x" * 70 + b"\r\n") * 120_000
    messages = [(SENDER, [B, C], big), *mails(2)]
    reports = list(connect(relay, timeout=0.3).send_all(messages))
    results = [told(report) for report in reports]
    assert results == [["deferred", "rejected"], "relay", "relay"]
    assert not any(report.failed_mid_message for report in reports)


def test_nobodys_turn_it_was_where_there_is_no_connection(relay, connect):
    relay.down()
    reports = list(connect(relay).send_all(mails(2)))
    assert [told(report) for report in reports] == ["relay", "relay"]
    assert not any(report.failed_mid_message for report in reports)


def test_out_of_step_at_the_end(relay, connect):
    relay.reply("END", "354 Go on", times=1)
    assert send(connect(relay), mails(2)) == [["uncertain"], ["sent"]]


def test_a_reply_too_many_after_the_last_message(relay, connect):
    relay.reply("END", b"250 2.0.0 Taken\r\n250 2.0.0 Taken\r\n", times=1)
    mailer = connect(relay)
    assert send(mailer, mails(1)) == [["sent"]]
    assert send(mailer, mails(1)) == [["sent"]]
    assert relay.connections == 2
    assert mailer._pool.pipelining


def test_pipelining_comes_back_after_some_minutes(relay, connect, monkeypatch):
    relay.reply("MAIL", b"250 2.1.0 Ok\r\n250 2.1.0 Ok\r\n", times=1)
    mailer = connect(relay)
    assert send(mailer, mails(2)) == [["sent"]] * 2
    assert not mailer._pool.pipelining
    monkeypatch.setattr("postcommit._smtp.pool._REMEMBERED", 0.0)
    assert mailer._pool.pipelining
    assert not connect(relay, pipelining=False)._pool.pipelining


def test_a_message_that_moves_gets_a_new_connection(relay, connect, monkeypatch):
    """An idle connection of the pool may be closed, too."""
    mailer = connect(relay)
    asked = []
    checkout = mailer._pool.checkout

    def noting(*, fresh=False):
        asked.append(fresh)
        return checkout(fresh=fresh)

    monkeypatch.setattr(mailer._pool, "checkout", noting)
    relay.drop("MAIL", address="s1@example.org", times=1)
    assert send(mailer, mails(3)) == [["sent"]] * 3
    assert asked == [False, True]


# The caller


@pytest.mark.parametrize("number", [0, 1, 2, 5])
@WITHOUT
def test_an_error_out_of_the_iterable_waits_for_the_reports(
    start, connect, without, number
):
    relay = start(without=without)

    def messages():
        yield from mails(number)
        raise LookupError("no more")

    reports = connect(relay).send_all(messages())
    assert [told(next(reports)) for _ in range(number)] == [["sent"]] * number
    with pytest.raises(LookupError, match="no more"):
        next(reports)


def test_an_interrupt_does_not_wait(relay, connect):
    def messages():
        yield from mails(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(connect(relay).send_all(messages()))


def break_at(monkeypatch, stage, which):
    """Raise what nobody expects, at one stage of one message."""
    name = {"MAIL": "prepare", "DATA": "next_group", "END": "take"}[stage]
    usual = getattr(Transmission, name)

    def broken(self, *args):
        is_then = {
            "MAIL": True,
            "DATA": self.is_welcome,
            "END": args[0] is Step.SEND_ALL,
        }
        if is_then[stage] and self.account.key == which:
            raise LookupError(stage)
        return usual(self, *args)

    monkeypatch.setattr(Transmission, name, broken)


@WITHOUT
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("stage", ["MAIL", "DATA", "END"])
def test_an_error_of_the_program_waits_for_the_reports(
    start, connect, without, which, stage, monkeypatch
):
    """What was sent is not sent again because of it."""
    relay = start(without=without)
    mailer = connect(relay)
    reports = {}
    pipeline = mailer.pipeline()

    def transmit():
        with pipeline:
            for number, words in enumerate(mails(4)):
                pipeline.offer(Taken(*words), key=number)
                reports.update(pipeline.completed())
            reports.update(pipeline.drain())

    with monkeypatch.context() as patch:
        break_at(patch, stage, which)
        with pytest.raises(LookupError, match=stage):
            transmit()
    reports.update(pipeline.completed())
    expected = [["sent"]] * which
    if stage == "MAIL" and not without:
        expected = expected[1:]  # its envelope would leave with the content before it
    if stage == "END":
        expected.append(["uncertain"])
    assert list(reports) == list(range(len(expected)))
    assert [told(report) for report in reports.values()] == expected
    relay.wait_until(lambda: not relay.open)
    assert ids(relay) == list(range(len(expected)))
    assert send(mailer, mails(1)) == [["sent"]]


@pytest.mark.parametrize("method", ["completed", "drain"])
def test_a_caller_that_fails_at_a_report_finds_the_next(relay, connect, method):
    """Two reports are there at once: one is sent, the other cannot be sent."""
    pipeline = connect(relay).pipeline()

    def transmit():
        with pipeline:
            pipeline.offer(Taken(*mails(1)[0]), key=0)
            pipeline.offer(Taken("impossible", (B,), message(1)), key=1)
            if method == "completed":
                while pipeline._dialogue.awaited():
                    pipeline._advance()
            for _ in getattr(pipeline, method)():
                raise LookupError("no disk")

    with pytest.raises(LookupError, match="no disk"):
        transmit()
    [(key, report)] = pipeline.completed()
    assert (key, told(report)) == (1, ["rejected"])


def test_the_caller_loses_interest(relay, connect):
    mailer = connect(relay)
    reports = mailer.send_all(mails(10))
    assert told(next(reports)) == ["sent"]
    reports.close()
    relay.wait_until(lambda: not relay.open)
    assert ids(relay) == list(range(len(relay.messages)))
    assert len(relay.messages) <= 3
    assert send(mailer, mails(1)) == [["sent"]]


# What would be no address on the wire, or more than one.
IMPOSSIBLE = [
    "",
    "b",
    "b@",
    "@example.org",
    "b@example.org\r\nRCPT TO:<x@example.org>",
    "b@example.org>\nDATA",
    "b@example.org> NOTIFY=NEVER",
    "b@example.org>,<x@example.org",
    "b@example.org, x@example.org",
    "Ann <b@example.org>",
    "<b@example.org>",
    " b@example.org",
    "b @example.org",
    "b@exa mple.org",
    "b@[127.0.0.1",
    '"b@example.org',
    '"b>"x@example.org',
    "b\0@example.org",
    "b\x85@example.org",
    "b\u2028@example.org",
    "b\x7f@example.org",
    "\ud800@example.org",
    f"{'b' * 250}@example.org",
    "b@" + "x" * 70 + ".example.org",
]


@WITHOUT
@pytest.mark.parametrize("address", IMPOSSIBLE)
def test_an_impossible_recipient_is_rejected_and_the_others_are_not(
    start, connect, without, address
):
    relay = start(without=without)
    messages = mails(3)
    messages[1] = (SENDER, [B, address, C], message(1))
    reports = list(connect(relay).send_all(messages))
    told = [[o.status.value for o in report.outcomes] for report in reports]
    assert told == [["sent"], ["sent", "rejected", "sent"], ["sent"]]
    assert reports[1].rejected[0].recipient == address
    assert reports[1].rejected[0].reply.enhanced == "5.1.3"
    assert [m.recipients for m in relay.messages] == [(B,), (B, C), (B,)]


@pytest.mark.parametrize("address", IMPOSSIBLE[1:])
def test_an_impossible_sender(relay, connect, address):
    messages = mails(3)
    messages[1] = (address, [B, C], message(1))
    assert send(connect(relay), messages) == [["sent"], ["rejected"] * 2, ["sent"]]
    assert len(relay.messages) == 2


def test_an_impossible_recipient_stays_rejected_on_the_next_connection(relay, connect):
    relay.drop("MAIL", address="s1@example.org", times=1)
    result = send(connect(relay), [*mails(1), *mails(2, (B, "x"))[1:]])
    assert result == [["sent"], ["sent", "rejected"]]
    assert relay.connections == 2


def test_the_null_sender(relay, connect):
    assert send(connect(relay), [("", [B], message(0))]) == [["sent"]]
    assert relay.messages[0].sender == ""


def test_only_what_can_never_be_sent(relay, connect):
    assert send(connect(relay), [(SENDER, ["\n@x"], b"")]) == [["rejected"]]
    assert relay.connections == 0


def test_several_pipelines_in_threads(relay, connect):
    mailer = connect(relay)
    results = []

    def work():
        results.extend(send(mailer, mails(50)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [["sent"]] * 200
    assert len(relay.messages) == 200
    assert relay.connections <= 4
