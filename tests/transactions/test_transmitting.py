"""A direct delivery during and after the commit, with mailers that are in trouble."""
from __future__ import annotations

from typing import Any

import pytest
from transaction import TransactionManager
from zope.interface import implementer

from postcommit import DirectMailDelivery
from postcommit import MailDeferredEvent
from postcommit import MailSentEvent
from postcommit._mail.message import message_id_of
from postcommit._transaction.event import committing
from postcommit.errors import OptionError
from postcommit.interfaces import IRelayCheck
from postcommit.interfaces import Outgoing
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipeline
from tests.support.mailers import ScriptedPipelineMailer
from tests.support.transactions import BEFORE
from tests.support.transactions import Mailer
from tests.support.transactions import Partner
from tests.support.transactions import explicit
from tests.support.transactions import mail


ANN, BOB = "ann@example.org", "bob@example.org"


def begun(mailer: Any, *names: str, check_relay: bool = False) -> TransactionManager:
    """Return a manager with a transaction in which `names` are sent by `mailer`."""
    manager = explicit()
    manager.begin()
    delivery = DirectMailDelivery(
        mailer, check_relay=check_relay, transaction_manager=manager
    )
    for name in names:
        delivery.send(ANN, BOB, mail(f"{name}@example.org"))
    return manager


def test_the_data_manager_says_to_which_manager_it_belongs() -> None:
    manager = begun(Mailer(), "a")
    [resource] = manager.get()._resources
    assert resource.transaction_manager is manager


# Options


def test_a_bad_check_relay_is_named_with_its_value() -> None:
    with pytest.raises(OptionError) as caught:
        DirectMailDelivery(Mailer(), check_relay="yes")  # type: ignore[arg-type]
    assert caught.value.value == "yes"
    with pytest.raises(OptionError, match=r"neither check\(\) nor vote\(\)") as caught:
        DirectMailDelivery(Mailer(), check_relay=True)
    assert caught.value.value is True


class OnlyVoting(Mailer):
    """As one of zope.sendmail, without ``abort()``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def vote(self, fromaddr: Any, toaddrs: Any, message: Any) -> None:
        self.calls.append("vote")


class Voting(OnlyVoting):
    def abort(self) -> None:
        self.calls.append("abort")


@implementer(IRelayCheck)
class Checking(Voting):
    """Has both ways to say whether its relay answers."""

    def check(self) -> None:
        self.calls.append("check")


def test_a_mailer_with_check_is_not_told_of_an_abort() -> None:
    mailer = Checking()
    begun(mailer, "a", check_relay=True).abort()
    begun(mailer, "b", check_relay=True).commit()
    assert mailer.calls == ["check"]


def test_a_mailer_without_abort_is_not_told_of_an_abort(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun(OnlyVoting(), "a", check_relay=True).abort()
    assert caplog.text == ""


def test_a_mailer_that_voted_is_told_of_an_abort_in_doubt() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    mailer = Voting()
    manager = begun(mailer, "a", check_relay=True)
    manager.get().join(Partner(BEFORE, tpc_finish=interrupt))
    with pytest.raises(KeyboardInterrupt):
        manager.commit()
    manager.abort()
    assert mailer.calls == ["vote", "abort"]


# Pipelines


class Pipeline(ScriptedPipeline):
    """Does with its messages what its mailer says."""

    def __enter__(self) -> Pipeline:
        self.mailer.steps.append("enter")
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.mailer.steps.append("exit")

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        if len(self.mailer.attempts) == self.mailer.fails_at:
            self.done += self.behind
            self.behind = []
            raise KeyError("a mistake")
        super().offer(mail, key)

    def drain(self) -> list[tuple[Any, Any]]:
        self.mailer.steps.append("drain")
        return super().drain()[self.mailer.forgets :]


class PipelineMailer(ScriptedPipelineMailer):
    def __init__(self, fails_at: int = -1, forgets: int = 0) -> None:
        super().__init__()
        self.fails_at = fails_at
        self.forgets = forgets
        self.steps: list[str] = []

    def pipeline(self) -> Pipeline:
        return Pipeline(self)


def events_of(mailer: ScriptedMailer) -> list[tuple[type, str]]:
    return [(type(event), event.messageId) for event in mailer.events]  # type: ignore[attr-defined]


def test_a_pipeline_is_closed_before_the_commit_ends() -> None:
    mailer = PipelineMailer()
    begun(mailer, "a").commit()
    assert mailer.steps == ["enter", "drain", "exit"]


def test_what_was_sent_before_an_error_of_the_mailer_is_announced_as_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mailer = PipelineMailer(fails_at=1)
    begun(mailer, "a", "b", "c").commit()
    # From then on it fails at each.
    assert mailer.steps == ["enter", "exit"] * 2
    assert events_of(mailer) == [
        (MailSentEvent, "a@example.org"),
        (MailDeferredEvent, "b@example.org"),
        (MailDeferredEvent, "c@example.org"),
    ]
    assert "a mistake" in mailer.events[1].errorMessage  # type: ignore[attr-defined]
    assert "KeyError: 'a mistake'" in caplog.text


class Picky(PipelineMailer):
    """Makes a mistake at one message, whenever it is offered it."""

    def __init__(self, *dislikes: bytes) -> None:
        super().__init__()
        self.dislikes = dislikes

    def pipeline(self) -> Pipeline:
        return PickyPipeline(self)


class PickyPipeline(Pipeline):
    def offer(self, mail: Outgoing, key: Any = None) -> None:
        if any(word in mail.message for word in self.mailer.dislikes):
            self.done += self.behind
            self.behind = []
            raise KeyError("a mistake")
        super().offer(mail, key)


@pytest.mark.parametrize("disliked", ["a", "b", "c", "d", "ab", "bc", "ad", "abcd"])
def test_the_others_are_sent_if_a_mailer_makes_a_mistake_at_some(disliked: str) -> None:
    mailer = Picky(*(f"<{name}@".encode() for name in disliked))
    begun(mailer, "a", "b", "c", "d").commit()
    assert [(kind, name[0]) for kind, name in events_of(mailer)] == [
        (MailDeferredEvent if name in disliked else MailSentEvent, name)
        for name in "abcd"
    ]
    offered = [message_id_of(taken.message)[0] for taken in mailer.attempts]
    assert offered == [name for name in "abcd" if name not in disliked]


class Closed(PipelineMailer):
    """Cannot make a pipeline, and says so to each who asks."""

    asked = 0

    def pipeline(self) -> Pipeline:
        self.asked += 1
        raise KeyError("no pipeline")


def test_a_mailer_without_its_pipeline_is_asked_once() -> None:
    mailer = Closed()
    begun(mailer, "a", "b").commit()
    assert [kind for kind, _ in events_of(mailer)] == [MailDeferredEvent] * 2
    assert mailer.asked == 1


def test_a_mailer_that_forgets_a_message_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mailer = PipelineMailer(forgets=1)
    begun(mailer, "a", "b").commit()
    assert len(mailer.events) == 2
    assert f"RuntimeError: {mailer!r} gave too few reports" in caplog.text


class Backward(ScriptedPipelineMailer):
    """Reports at the end, on the last message first."""

    def pipeline(self) -> ScriptedPipeline:
        return BackwardPipeline(self)


class BackwardPipeline(ScriptedPipeline):
    def completed(self) -> list[tuple[Any, Any]]:
        return []

    def drain(self) -> list[tuple[Any, Any]]:
        done, self.done, self.behind = self.done + self.behind, [], []
        return done[::-1]


def test_events_come_in_the_order_of_the_messages() -> None:
    mailer = Backward()
    begun(mailer, "a", "b", "c").commit()
    assert [name[0] for _, name in events_of(mailer)] == ["a", "b", "c"]


def test_after_the_commit_no_manager_is_committing() -> None:
    seen: list[object] = []
    mailer = PipelineMailer()
    mailer.before = lambda taken: seen.append(committing.get())
    manager = begun(mailer, "a")
    before = committing.get()
    manager.commit()
    assert seen == [manager]
    assert committing.get() is before
