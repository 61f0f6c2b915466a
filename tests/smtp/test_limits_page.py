"""The page of limits (docs/relays.rst) tells what happens to too many recipients."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.smtp.messages import told
from tests.smtp.test_transmissions import MANY
from tests.smtp.test_transmissions import taken
from tests.smtp.test_transmissions import transmit


PAGE = (Path(__file__).parent.parent.parent / "docs" / "relays.rst").read_text("utf-8")

EXIM = "``552 too many recipients``, then ``554 Too many recipients`` or 503 to DATA"


def row(reply):
    """Return the answer of the page to `reply`, in one line."""
    _, _, rest = PAGE.partition(f"     - {reply}\n     - ")
    return " ".join(re.split(r"\n   \*|\n\n", rest)[0].split())


@pytest.mark.parametrize("reply", ["554 Too many recipients", "503 No recipients"])
def test_exim_refuses_those_that_it_had_accepted(start, connect, reply):
    assert row(EXIM).startswith("Nothing to do: the mailer first sends")
    relay = start()
    offered = []

    def mail(dialogue, usual):
        offered.append(0)
        return dialogue.say(usual.encode() + b"\r\n")

    def rcpt(dialogue, usual):
        offered[-1] += 1
        said = usual if offered[-1] <= 20 else "552 too many recipients"
        return dialogue.say(said.encode() + b"\r\n")

    def data(dialogue, usual):
        said = usual if offered[-1] <= 20 else reply
        return dialogue.say(said.encode() + b"\r\n")

    relay.on("MAIL", mail)
    relay.on("RCPT", rcpt)
    relay.on("DATA", data)
    [report] = transmit(connect(relay), MANY[:30])
    assert told(report) == ["sent"] * 30
    assert taken(relay) == [20, 10]


@pytest.mark.parametrize(
    ("text", "outcome", "answer"),
    [
        ("554 Transaction failed: Recipient count exceeds 50.", "sent", "Nothing to"),
        ("554 Transaction failed", "rejected", "The message becomes a dead letter"),
    ],
)
@pytest.mark.parametrize("stage", ["DATA", "END"])
def test_ses_refuses_the_whole(start, connect, stage, text, outcome, answer):
    assert row(f"``{text}``").startswith(answer)
    relay = start()

    def act(dialogue, usual):
        said = text if len(dialogue.recipients) > 50 else usual
        return dialogue.say(said.encode() + b"\r\n")

    relay.on(stage, act)
    [report] = transmit(connect(relay), MANY[:60], most=1000)
    assert told(report) == [outcome] * 60
