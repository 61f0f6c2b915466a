"""The story of ``postcommit demo``: its chapters, and what is expected in each."""
from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from postcommit._cli.demo.stage import MakeRelay
from postcommit._cli.demo.stage import Scene
from postcommit._cli.demo.stage import stage
from postcommit._cli.demo.timeline import Timeline
from postcommit._maildir.item import EntryState
from postcommit.testing.relay import EmbeddedRelay


# Maximum number of seconds of all waiting together. Usually a quarter is enough.
SECONDS = 10.0

ANN = "ann@example.org"
BOB = "bob@example.org"
CAROL = "carol@example.org"

NOBODY = "550 5.1.1 No such user"
LATER = "450 4.2.0 Greylisted"

EVENTS = [
    ("MailSentEvent", ANN),
    ("MailSentEvent", ANN),
    ("MailRejectedEvent", BOB),
    ("MailDeferredEvent", CAROL),
    ("MailSentEvent", CAROL),
    ("MailSentEvent", ANN),
    ("MailSentEvent", CAROL),
]


def tell(
    stream: TextIO,
    make_relay: MakeRelay = EmbeddedRelay,
    seconds: float = SECONDS,
    *,
    show: Callable[[Scene], None] | None = None,
) -> bool:
    """Play the story on `stream`. Return whether all expectations were met.

    At the end `show` is called, before anything is removed.
    """
    timeline = Timeline(stream, seconds=seconds)
    timeline.chapter(
        "A small shop sends mail in its transactions",
        "Its queue is a temporary folder, its relay a port of this machine.",
    )
    with stage(timeline, make_relay) as setting:
        story = Story(setting)
        story.an_order_commits()
        story.an_order_aborts()
        story.three_recipients_three_outcomes()
        story.the_relay_is_away()
        story.what_is_left()
        if show is not None:
            is_met = timeline.verdict()
            show(setting)
            return is_met
    return timeline.verdict()


class Story:
    """Each method is a chapter."""

    def __init__(self, setting: Scene) -> None:
        self._timeline = setting.timeline
        self._relay = setting.relay
        self._shop = setting.shop
        self._queue = setting.queue
        self._events = setting.events
        self._log = setting.log

    def an_order_commits(self) -> None:
        self._timeline.chapter(
            "1. An order commits",
            "The mail waits for the commit. Then it leaves at once.",
        )
        self._shop.order("teapot", ANN)
        self._expect("before the commit, nothing is in the queue", self._waiting, [])
        self._shop.commit()
        self._await("MailSentEvent", ANN)
        self._expect("the order is in the book", self._shop.orders, ["teapot"])
        self._expect("the mail has arrived", self._mailbox, [("Your teapot", ANN)])

    def an_order_aborts(self) -> None:
        self._timeline.chapter(
            "2. An order aborts",
            "send() was called already when the order book refuses the commit.",
        )
        self._shop.order("samovar", BOB)
        committed = self._shop.commit()
        self._expect("the transaction was aborted", committed, False)
        self._expect("the order is not in the book", self._shop.orders, ["teapot"])
        self._expect("no mail is in the queue", self._waiting, [])

    def three_recipients_three_outcomes(self) -> None:
        self._timeline.chapter(
            "3. One mail, three recipients, three outcomes",
            "The relay takes one of them, refuses one for good, and one for now.",
        )
        self._relay.refuse(BOB, NOBODY, times=9)
        self._relay.refuse(CAROL, LATER, times=1)
        already = len(self._mailbox)
        self._shop.order("kettle", ANN, BOB, CAROL)
        self._shop.commit()
        self._await("MailDeferredEvent", CAROL)
        arrived = self._mailbox[already:]
        self._expect("Ann has her mail", arrived, [("Your kettle", ANN)])
        self._expect("Bob's is a dead letter", self._dead_letters, [(BOB, NOBODY)])
        self._expect("Carol's stays in the queue", self._waiting, [(CAROL, LATER)])
        self._await("MailSentEvent", CAROL)
        arrived = self._mailbox[already + 1 :]
        self._expect("the retry is for Carol alone", arrived, [("Your kettle", CAROL)])

    def the_relay_is_away(self) -> None:
        self._timeline.chapter(
            "4. The relay goes away, and comes back",
            "Orders still commit. The queue pauses, and no mail in it is touched.",
        )
        already = len(self._mailbox)
        self._relay.down()
        self._shop.order("cup", ANN)
        self._shop.commit()
        self._timeline.wait_until(lambda: self._log.pauses > 0)
        self._shop.order("saucer", CAROL)
        self._shop.commit()
        untried = [(ANN, ""), (CAROL, "")]
        self._expect("both mails wait, untried", self._waiting, untried)
        self._relay.up()
        self._await("MailSentEvent", ANN, times=3)
        self._await("MailSentEvent", CAROL, times=2)
        arrived = self._mailbox[already:]
        both = [("Your cup", ANN), ("Your saucer", CAROL)]
        self._expect("the queue goes on by itself", arrived, both)

    def what_is_left(self) -> None:
        self._timeline.chapter(
            "5. What is left",
            "Nothing is lost, and nothing was sent twice.",
        )
        self._expect("five mails have arrived", len(self._mailbox), 5)
        self._expect("nothing waits in the queue", self._waiting, [])
        self._expect("one dead letter is kept", len(self._dead_letters), 1)
        self._expect("the events have told all of it", self._events.seen, EVENTS)
        self._timeline.table("The relay's mailbox", self._mailbox)
        self._timeline.table("The queue", self._waiting)
        self._timeline.table("Its dead letters", self._dead_letters)

    # What is compared

    @property
    def _mailbox(self) -> list[tuple[str, str]]:
        return [(m.subject, ", ".join(m.recipients)) for m in self._relay.mailbox]

    @property
    def _waiting(self) -> list[tuple[str, str]]:
        return self._entries(EntryState.WAITING, EntryState.DEFERRED)

    @property
    def _dead_letters(self) -> list[tuple[str, str]]:
        return self._entries(EntryState.FAILED)

    def _entries(self, *states: EntryState) -> list[tuple[str, str]]:
        """Return the recipients and the last reply of each entry, '' if untried."""
        reads = map(self._queue.details, self._queue.items(states))
        return [(", ".join(r.recipients), r.last_reply) for r in reads if r]

    def _expect(self, what: str, seen: object, wanted: object) -> None:
        self._timeline.expect(what, seen, wanted)

    def _await(self, event: str, recipient: str, times: int = 1) -> None:
        told = (event, recipient)
        self._timeline.wait_until(lambda: self._events.seen.count(told) >= times)
