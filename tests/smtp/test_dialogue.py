"""The tables of the dialogue: each cell, without a socket."""
from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from dataclasses import field

import pytest

from postcommit._mail.report import Reply
from postcommit._mail.report import Stage
from postcommit._smtp import dialogue
from postcommit._smtp.dialogue import FINALS
from postcommit._smtp.dialogue import LOSSES
from postcommit._smtp.dialogue import MOVES
from postcommit._smtp.dialogue import REPLIES
from postcommit._smtp.dialogue import Account
from postcommit._smtp.dialogue import Dialogue
from postcommit._smtp.dialogue import Fate
from postcommit._smtp.dialogue import Kind
from postcommit._smtp.dialogue import Loss
from postcommit._smtp.dialogue import State
from postcommit._smtp.dialogue import Step
from postcommit._smtp.dialogue import Transmission
from postcommit._smtp.dialogue import is_about_number
from postcommit.errors import RelayError
from postcommit.interfaces import Status
from tests.smtp import fakerelay
from tests.smtp import picture
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import message
from tests.smtp.test_fake_relay import play
from tests.support.mailers import Taken


OK = Reply(250, "2.0.0", "Ok")
GO_ON = Reply(354, "", "Go on")
NO = Reply(550, "5.7.1", "No")
BYE = Reply(421, "4.3.2", "Bye")

ORDINARY = {stage: GO_ON if stage is Stage.DATA else OK for stage in Stage}

# Number of dialogues with a relay that follows a seed.
SEEDS = 4_000


@dataclass
class Peer:
    """A relay that speaks one of the two protocols."""

    protocol: str = "smtp"


@dataclass
class Link:
    """A connection that somebody else moves the bytes of."""

    pipelining: bool = True
    messages: int = 0
    is_dirty: bool = False
    most_recipients: int = 1000
    extensions: dict[str, str] = field(default_factory=dict)
    relay: Peer = field(default_factory=Peer)


def account(number=0, recipients=(B, C)):
    return Account(Taken(SENDER, recipients, message(number)), key=number)


def begin(link=None, offers=1, recipients=(B, C), **limits):
    """Offer messages, and take a connection into use."""
    talk = Dialogue(**limits)
    for number in range(offers):
        talk.offer(account(number, recipients))
    talk.link = Link() if link is None else link
    return talk


def say(talk, **replies):
    """Write, and give the usual replies; others by the stage."""
    data = talk.data_to_send()
    for stage in talk.awaited():
        talk.receive(replies.get(stage.name, ORDINARY[stage]))
        if talk.link is None:
            break
    return data


def reports(talk):
    return dict(talk.completed())


def statuses(report):
    return [outcome.status.value for outcome in report.outcomes]


# Replies


def replies_of(stage, kind):
    """The replies of `kind` to a command of `stage`."""
    if kind is Kind.YES:
        codes = [354] if stage is Stage.DATA else [250, 251, 299]
    elif kind is Kind.LATER:
        codes = [400, 450, 451, 499]
        codes += {Stage.RCPT: [552], Stage.DATA: [334, 399]}.get(stage, [])
    elif kind is Kind.NEVER:
        codes = [500, 550, 554, 599] + ([552] if stage is not Stage.RCPT else [])
    elif kind is Kind.TOO_MANY:
        if stage is Stage.RCPT:
            return [Reply(452), Reply(552), Reply(452, "4.5.3"), Reply(550, "5.5.3")]
        return [
            Reply(452, "4.5.3"),
            Reply(550, "5.5.3"),
            Reply(554, "", "Transaction failed: Recipient count exceeds 50"),
            Reply(554, "", "Too many recipients"),
        ]
    elif kind is Kind.RELAY:
        codes = [421, 530, 534, 535, 538]
        codes += [400, 450, 500, 550] if stage is Stage.SESSION else []
    else:
        codes = [200, 250, 299] if stage is Stage.DATA else [300, 354, 399]
        codes += [503] if stage is Stage.MAIL else []
    return [Reply(code) for code in codes]


CELLS = [
    (stage, kind, reply)
    for stage, kind in REPLIES
    for reply in replies_of(stage, kind)
]


def awaiting(stage, pipelining, kind):
    """A dialogue that awaits the reply to a command of `stage`, and its transmission.

    A second message was offered behind it. Before it, one was transmitted.
    """
    talk = begin(Link(pipelining=pipelining, messages=1, is_dirty=True), offers=2)
    first = talk.upcoming[0]
    for _ in range(10):
        if not talk.awaited():
            talk.data_to_send()
        if talk.awaited()[0] is stage and (kind is not Kind.TOO_MANY or first.accepted):
            return talk, first
        talk.receive(ORDINARY[talk.awaited()[0]])
    raise LookupError(stage)


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    ("stage", "kind", "reply"), CELLS, ids=lambda value: getattr(value, "name", None)
)
def test_a_reply(stage, kind, reply, pipelining):
    talk, first = awaiting(stage, pipelining, kind)
    step = REPLIES[stage, kind]
    before = len(first.accepted)
    talk.receive(reply)
    outcomes = {
        index: (outcome.status, outcome.reply)
        for index, outcome in first.account.outcomes.items()
    }
    assert (talk.link is None) is isinstance(step, Loss)
    if step is Step.GO_ON:
        assert outcomes == {}
    elif step is Step.ACCEPT:
        assert outcomes == {}
        assert len(first.accepted) == before + 1
    elif step is Step.LEAVE:
        assert outcomes == {}
        assert (first.accepted, first.left) == ([0], [1])
    elif step is Step.SPLIT:
        assert outcomes == {}
        halves = [waiting.indices for waiting in talk.upcoming][:2]
        assert halves == [[0], [1]]
        assert talk.link.most_recipients == 1
    elif step is Step.CONTENT:
        assert first.is_welcome
    elif step is Step.DEFER_ONE:
        assert outcomes == {0: (Status.DEFERRED, reply)}
    elif step is Step.REJECT_ONE:
        assert outcomes == {0: (Status.REJECTED, reply)}
    elif isinstance(step, Step):
        status = {
            Step.DEFER_ALL: Status.DEFERRED,
            Step.REJECT_ALL: Status.REJECTED,
            Step.SEND_ALL: Status.SENT,
        }[step]
        assert outcomes == {0: (status, reply), 1: (status, reply)}
        assert first.account.is_done
    if stage is Stage.END and isinstance(step, Step):
        assert first.state is State.DONE
    elif isinstance(step, Step):
        expected = State.OFFERED if stage is Stage.SESSION else State.BOUND
        assert first.state is expected


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    ("kind", "reply"),
    [(kind, reply) for kind in FINALS for reply in replies_of(Stage.END, kind)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_final_reply_in_lmtp(kind, reply, pipelining):
    """The first of two."""
    talk = begin(Link(pipelining=pipelining, relay=Peer("lmtp")))
    first = talk.upcoming[0]
    while not first.is_welcome:
        say(talk)
    talk.data_to_send()
    assert talk.awaited() == [Stage.END] * 2
    talk.receive(reply)
    step = FINALS[kind]
    outcomes = first.account.outcomes
    assert (talk.link is None) is isinstance(step, Loss)
    if isinstance(step, Step):
        status = {
            Step.SEND_ONE: Status.SENT,
            Step.DEFER_ONE: Status.DEFERRED,
            Step.REJECT_ONE: Status.REJECTED,
        }[step]
        assert [outcomes[0].status, outcomes[0].reply] == [status, reply]
        assert len(outcomes) == 1
        assert first.state is State.ENDED
        talk.receive(OK)
        assert first.state is State.DONE
        assert outcomes[1].status is Status.SENT
    else:
        is_refusal = step is Loss.REFUSED
        expected = ["deferred" if is_refusal else "uncertain", "uncertain"]
        assert statuses(reports(talk)[0]) == expected


@pytest.mark.parametrize("code", range(200, 600))
def test_each_final_reply_in_lmtp_has_a_cell(code):
    talk = begin(Link(relay=Peer("lmtp")))
    first = talk.upcoming[0]
    say(talk)
    talk.data_to_send()
    talk.receive(Reply(code, f"{code // 100}.5.3", "Too many recipients"))
    assert first.state in (State.ENDED, State.DONE)


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("stage", Stage)
def test_each_reply_has_a_cell(stage, pipelining):
    """Whatever the code: to the first command and to later ones."""
    codes = itertools.product(range(200, 600), ["", ".5.3", ".2.2"])
    for code, detail in codes:
        reply = Reply(code, f"{str(code)[0]}{detail}" if detail else "")
        for kind in (Kind.YES, Kind.TOO_MANY):
            if kind is Kind.TOO_MANY and stage is not Stage.RCPT:
                continue
            talk, first = awaiting(stage, pipelining, kind)
            talk.receive(reply)
            assert first.state in State


def test_503_to_the_first_mail_is_a_refusal():
    talk = begin()
    say(talk, MAIL=Reply(503, "5.5.1", "Not now"), RCPT=NO, DATA=NO)
    assert statuses(reports(talk)[0]) == ["rejected", "rejected"]


NUMBERS = [
    "Too many recipients",
    "too many recipients (#4.5.3)",
    "Error: too many recipients",
    "Transaction failed: Recipient count exceeds 50",
    "Too many RCPT commands",
    "The number of recipients exceeds the limit",
    "Your message has too many recipients",
    "Maximum of 100 recipients reached",
    "recipient limit exceeded",
]
OTHERS = [
    "",
    "No",
    "Recipient unknown",
    "Mailbox of the recipient exceeds its limit",
    "Number of recipients in this hour exceeded",
    "Too many recipients per day",
    "Maximum message size exceeded for recipient",
    "too many connections",
    "Too many errors",
    "Recipient address rejected",
]


@pytest.mark.parametrize("text", NUMBERS)
def test_texts_about_the_number_of_recipients(text):
    assert is_about_number(Reply(554, "", text))
    assert is_about_number(Reply(554, "5.0.0", text))
    assert not is_about_number(Reply(450, "4.7.1", text))
    assert not is_about_number(Reply(452, "4.2.2", text))


@pytest.mark.parametrize("text", OTHERS)
def test_texts_about_something_else(text):
    assert not is_about_number(Reply(554, "", text))
    assert is_about_number(Reply(554, "5.5.3", text))


@pytest.mark.parametrize(
    ("second", "limit"),
    [
        (Reply(452), 1),
        (Reply(452, "", "Zu viele"), 1),
        (Reply(452, "4.0.0", "Zu viele"), 1),
        (Reply(452, "4.5.0", "Zu viele"), 1),
        (Reply(452, "", "Mailbox full"), 1000),
        (Reply(452, "4.3.1", "Insufficient system storage"), 1000),
    ],
)
def test_a_limit_that_is_learned(second, limit):
    talk = begin(recipients=(B, C))
    talk.data_to_send()
    for reply in (OK, OK, second, GO_ON):
        talk.receive(reply)
    talk.data_to_send()
    assert talk.link.most_recipients == limit


def test_a_limit_is_none_if_the_next_recipient_is_accepted():
    talk = begin(recipients=(B, C, SENDER))
    talk.data_to_send()
    for reply in (OK, OK, Reply(452), OK, GO_ON):
        talk.receive(reply)
    talk.data_to_send()
    assert talk.link.most_recipients == 1000


def test_too_many_is_a_refusal_if_none_was_accepted():
    talk = begin()
    say(talk, RCPT=Reply(452, "4.5.3", "Too many"), DATA=NO)
    assert statuses(reports(talk)[0]) == ["deferred", "deferred"]
    assert talk.link.most_recipients == 1000


# Losses

ERRORS = {
    Loss.CLOSED: ConnectionResetError("gone"),
    Loss.SILENT: TimeoutError("timed out"),
    Loss.REFUSED: RelayError("421 Bye", BYE),
    Loss.OUT_OF_STEP: RelayError("out of step"),
    Loss.CONFUSED: RelayError("out of step"),
}


def lose(state, loss):
    """Lose the connection of a transmission in `state`; return its dialogue and it.

    NOT_REACHED comes from silence at the end of the message before.
    """
    link = Link(pipelining=loss is not Loss.CONFUSED, messages=1)
    is_behind = loss is Loss.NOT_REACHED
    if state is State.UPCOMING:
        # Offered behind one that has ended, or that moves when the relay refuses.
        talk = begin(link)
        first = talk.upcoming[0]
        talk.data_to_send()
        if loss is not Loss.REFUSED:
            for stage in talk.awaited():
                talk.receive(ORDINARY[stage])
            while not first.is_welcome:
                say(talk)
            talk.data_to_send()
        talk.offer(account(9))
        lost = talk.upcoming[-1]
        if is_behind:
            talk.failure = RelayError("it had failed before")
    elif is_behind:
        talk = begin(link, offers=2)
        say(talk)
        lost = talk.upcoming[0]
        talk.data_to_send()
        talk.lost(TimeoutError("timed out"))
        return talk, lost
    else:
        talk = begin(link)
        lost = talk.upcoming[0]
        if state is State.BOUND:
            link.messages = 0
        talk.data_to_send()
        if loss is Loss.ENOUGH:
            talk._sent = link, lost.account
        if state in (State.ENDING, State.ENDED):
            for stage in talk.awaited():
                talk.receive(ORDINARY[stage])
            while not lost.is_welcome:
                say(talk)
            talk.data_to_send()
    assert lost.state is (State.ENDING if state is State.ENDED else state)
    sent = 0 if state is State.ENDING else None
    talk.lost(ERRORS.get(loss, ERRORS[Loss.CLOSED]), sent)
    return talk, lost


@pytest.mark.parametrize(
    ("state", "loss"), LOSSES, ids=lambda value: getattr(value, "name", None)
)
def test_a_loss(state, loss, caplog):
    caplog.set_level(logging.CRITICAL)
    talk, lost = lose(state, loss)
    fate = LOSSES[state, loss]
    assert talk.link is None
    if fate is Fate.STAY:
        assert lost in talk.upcoming
        assert (lost.state, lost.has_moved) == (State.UPCOMING, False)
        assert not lost.account.is_done
        return
    if fate is Fate.AGAIN:
        again = talk.upcoming[0]
        assert again.account is lost.account
        assert (again.state, again.has_moved) == (State.UPCOMING, True)
        assert not again.account.is_done
        assert talk.failure is None
        assert talk.pipelining is (loss is not Loss.OUT_OF_STEP)
        return
    assert lost.state is State.DONE
    report = lost.account.report()
    if fate in (Fate.DEFERRED, Fate.UNCERTAIN):
        assert statuses(report) == [fate.name.lower()] * 2
        assert {outcome.reply.enhanced for outcome in report.outcomes} == {"4.4.2"}
        assert report.relay_failure is None
        assert talk.failure is None
    else:
        assert report.outcomes == ()
        assert report.relay_failure is not None
        assert report.failed_mid_message is (fate is Fate.RELAY)
        assert talk.failure is not None


def test_the_outcomes_of_a_message_that_moves_are_void():
    talk = begin(Link(messages=1))
    talk.data_to_send()
    talk.receive(NO)
    talk.receive(OK)
    assert not talk.upcoming
    talk.lost(ERRORS[Loss.OUT_OF_STEP])
    talk.link = Link(pipelining=False)
    for _ in range(5):
        say(talk)
    assert statuses(reports(talk)[0]) == ["sent", "sent"]


def test_a_message_moves_once_because_a_connection_was_closed():
    talk = begin(Link(messages=1))
    talk.data_to_send()
    talk.lost(ERRORS[Loss.CLOSED])
    talk.link = Link(messages=1)
    talk.data_to_send()
    talk.lost(ERRORS[Loss.CLOSED])
    assert statuses(reports(talk)[0]) == ["deferred", "deferred"]


def test_a_relay_that_fails_after_refusals_defers_the_others():
    """It may hang up because of them, and would do so each time."""
    talk = begin(Link())
    talk.data_to_send()
    for reply in (OK, NO, BYE):
        talk.receive(reply)
    report = reports(talk)[0]
    assert statuses(report) == ["rejected", "deferred"]
    assert report.deferred[0].reply == BYE
    assert talk.failure is None


def test_impossible_addresses_do_not_defer_the_others():
    """They were not the relay's word, so it did not hang up because of them."""
    talk = begin(recipients=(B, "no address"))
    say(talk, MAIL=BYE)
    report = reports(talk)[0]
    assert [outcome.recipient for outcome in report.outcomes] == ["no address"]
    assert report.relay_failure == BYE
    assert report.failed_mid_message


def test_a_relay_that_fails_after_an_uncertain_part_leaves_the_others():
    """In another transmission of the same message: they are not its cause."""
    talk = Dialogue(recipients=1)
    talk.offer(account())
    talk.link = Link(pipelining=False)
    first = talk.upcoming[0]
    while not first.is_welcome:
        say(talk)
    talk.data_to_send()
    talk.lost(ERRORS[Loss.CLOSED])
    talk.link = Link(pipelining=False)
    say(talk, MAIL=BYE)
    report = reports(talk)[0]
    assert statuses(report) == ["uncertain"]
    assert report.undecided == report.recipients[1:]
    assert not report.failed_mid_message
    assert talk.failure is not None


def test_nothing_was_on_the_wire_of_a_used_connection():
    """Another one is opened, and nothing has failed."""
    talk = begin(Link(messages=1))
    talk.lost(ERRORS[Loss.CLOSED])
    assert talk.failure is None
    assert [waiting.has_moved for waiting in talk.upcoming] == [False]


# What is written


def test_a_lone_dot_and_a_reset_if_all_recipients_are_refused():
    talk = begin(offers=2)
    say(talk, RCPT=NO)
    data = talk.data_to_send()
    assert data.startswith(b".\r\nRSET\r\nMAIL FROM")
    assert talk.awaited()[:2] == [Stage.END, Stage.SESSION]
    assert statuses(reports(talk)[0]) == ["rejected"] * 2


@pytest.mark.parametrize(
    ("reply", "expected"), [(NO, "rejected"), (Reply(450), "deferred")]
)
def test_a_refusal_of_data_is_not_about_those_that_were_too_many(reply, expected):
    talk = begin()
    talk.data_to_send()
    for said in (OK, OK, Reply(452, "4.5.3", "Too many"), reply):
        talk.receive(said)
    assert b"RCPT TO" in talk.data_to_send()
    for stage in talk.awaited():
        talk.receive(ORDINARY[stage])
    say(talk)
    assert statuses(reports(talk)[0]) == [expected, "sent"]


def test_a_lone_dot_if_mail_is_refused_and_recipients_are_accepted():
    talk = begin()
    say(talk, MAIL=NO)
    assert talk.data_to_send() == b".\r\n"
    assert statuses(reports(talk)[0]) == ["rejected"] * 2


def test_a_reset_after_a_message_that_was_refused_at_its_end():
    link = Link(pipelining=False)
    talk = begin(link, offers=2)
    first = talk.upcoming[0]
    while not first.is_welcome:
        say(talk)
    say(talk, END=NO)
    assert talk.data_to_send() == b"RSET\r\n"


def test_no_reset_if_the_next_envelope_is_on_the_wire():
    link = Link()
    talk = begin(link, offers=3)
    say(talk)
    say(talk, END=NO)
    assert b"RSET" not in talk.data_to_send()
    assert not link.is_dirty


@pytest.mark.parametrize(
    ("reply", "dirty"), [(OK, False), (NO, True), (Reply(451), True)]
)
def test_a_connection_that_is_given_back(reply, dirty):
    link = Link()
    talk = begin(link)
    say(talk)
    say(talk, END=reply)
    assert talk.awaited() == []
    assert link.is_dirty is dirty


def test_a_new_connection_that_fails_before_anything_was_offered():
    talk = begin(Link())
    talk.lost(ERRORS[Loss.CLOSED])
    report = reports(talk)[0]
    assert "gone" in str(report.relay_failure)
    assert not report.failed_mid_message


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (None, "deferred"),
        (Reply(250), "deferred"),
        (Reply(354), "deferred"),
        (Reply(450), "deferred"),
        (Reply(552), "rejected"),
        (BYE, "relay"),
    ],
)
def test_last_words_before_the_final_dot_had_left(last, expected):
    talk = begin()
    say(talk)
    talk.data_to_send()
    assert talk.ends_early(5)
    talk.lost(ERRORS[Loss.CLOSED], 5, last)
    report = reports(talk)[0]
    told = "relay" if report.relay_failure else report.outcomes[0].status.value
    assert told == expected


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (None, "uncertain"),
        (Reply(250), "sent"),
        (Reply(354), "uncertain"),
        (Reply(450), "deferred"),
        (Reply(552), "rejected"),
        (BYE, "relay"),
    ],
)
def test_the_beginning_of_a_reply_to_the_final_dot(last, expected, pipelining):
    talk = begin(Link(pipelining=pipelining))
    first = talk.upcoming[0]
    while not first.is_welcome:
        say(talk)
    data = talk.data_to_send()
    assert not talk.ends_early(len(data))
    talk.lost(ERRORS[Loss.CLOSED], len(data), last)
    report = reports(talk)[0]
    told = "relay" if report.relay_failure else report.outcomes[0].status.value
    assert told == expected


# Misuse


@pytest.mark.parametrize(
    "misuse",
    [
        lambda talk: talk.receive(OK),
        lambda talk: talk.data_to_send(),
        lambda talk: talk.lost(ERRORS[Loss.CLOSED]),
    ],
)
def test_a_driver_without_a_connection(misuse):
    with pytest.raises(RuntimeError, match=r"no reply|no connection"):
        misuse(Dialogue())


# What is reached


class Recorder(dict):
    """A table that notes which of its cells were looked at."""

    def __init__(self, table):
        super().__init__(table)
        self.seen = set()

    def __getitem__(self, cell):
        self.seen.add(cell)
        return super().__getitem__(cell)


@pytest.fixture(scope="module")
def reached():
    """The cells that dialogues with a relay reach that follows a seed."""
    replies, losses, moves = Recorder(REPLIES), Recorder(LOSSES), set()
    finals = Recorder(FINALS)

    class Recorded(Transmission):
        def __setattr__(self, name, value):
            if name == "state" and hasattr(self, "state") and self.state is not value:
                moves.add((self.state, value))
            super().__setattr__(name, value)

    class Connection(fakerelay.Connection):
        def read(self, stage):
            reply = super().read(stage)
            if stage is not None and reply.code == ORDINARY[stage].code:
                replies.seen.add((stage, Kind.YES))
            return reply

    logging.getLogger("postcommit").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialogue, "REPLIES", replies)
        patch.setattr(dialogue, "LOSSES", losses)
        patch.setattr(dialogue, "FINALS", finals)
        patch.setattr(dialogue, "Transmission", Recorded)
        patch.setattr(fakerelay, "Connection", Connection)
        for seed in range(SEEDS):
            play(seed)
    logging.getLogger("postcommit").setLevel(logging.NOTSET)
    return replies.seen, losses.seen, moves, finals.seen


def test_every_cell_of_the_replies_is_reached(reached):
    assert reached[0] == set(REPLIES)


def test_every_cell_of_the_final_replies_in_lmtp_is_reached(reached):
    assert reached[3] == set(FINALS)


def test_every_cell_of_the_losses_is_reached(reached):
    assert reached[1] == set(LOSSES)


def test_every_move_is_reached_and_no_other(reached):
    ends = {
        (state, State.DONE)
        for (state, _), fate in LOSSES.items()
        if fate not in (Fate.STAY, Fate.AGAIN)
    }
    assert reached[2] == set(MOVES) | ends


def test_the_page_shows_the_tables():
    """Otherwise run: python -m tests.smtp.picture."""
    page = picture.PAGE.read_text("utf-8")
    part = page.partition(picture.BEGIN)[2].partition(picture.END)[0]
    assert part == picture.drawn() + "\n"


# What must hold, whatever the tables say


def test_nothing_begins_again_after_its_final_dot():
    again = {state for (state, _), fate in LOSSES.items() if fate is Fate.AGAIN}
    assert again <= {State.OFFERED, State.BOUND}
    fates = {fate for (state, _), fate in LOSSES.items() if state is State.ENDED}
    assert fates == {Fate.UNCERTAIN, Fate.RELAY}
    # With a refusal, the relay itself says that it has not taken the message.
    assert [
        loss
        for (state, loss), fate in LOSSES.items()
        if (state, fate) == (State.ENDED, Fate.RELAY)
    ] == [Loss.REFUSED]


def test_only_what_ended_is_uncertain():
    uncertain = {state for (state, _), fate in LOSSES.items() if fate is Fate.UNCERTAIN}
    assert uncertain == {State.ENDED}


def test_only_a_reply_to_the_final_dot_says_that_all_were_sent():
    assert [cell for cell, step in REPLIES.items() if step is Step.SEND_ALL] == [
        (Stage.END, Kind.YES)
    ]
