"""What one dialogue is about: messages, options, and how the relay misbehaves.

Everything follows from the seed. Replies of the relay are counted over all connections
of a dialogue, and `tricks` says which of them is not as it should be.
"""
from __future__ import annotations

import random
from dataclasses import dataclass


# Seconds that a client waits for a reply, if the relay falls silent in the dialogue,
# and otherwise. The first is short, because most of such a dialogue is waiting.
IMPATIENT = 0.1
PATIENT = 3.0

# Ways to misbehave at one reply. After these, nothing more comes on the connection.
ENDINGS = ("close", "reset", "silent", "421", "leave", "part", "part silent")
ENDINGS += ("endless", "flood")
# These refuse, answer something else, or say the usual in another way.
ANSWERS = ("4xx", "5xx", "odd", "what", "dressed", "several", "split", "dribble")
# These put the relay out of step. Two of them in one dialogue can cancel each other.
STEPS = ("stray before", "stray after", "swap")

CODES = (220, 251, 252, 334, 354, 250, 450, 503, 554, 530, 150, 650, 2500)

# Replies of which the code is to be understood. The first %s is the code, then text.
DRESSES = (
    b"%s %s\r\r\n",
    b"%s %s\n",
    b"%s%s\r\n",
    b"%s\r\n",
    b"%s\t%s\r\n",
    b"%s \0%s\r\n",
    b"%s \xff\xfe%s\r\n",
    b"%s a\rb%s\r\n",
    b"%s " + 5000 * b"x" + b"%s\r\n",
    b"%s-%s\r\n%s\tb\r\n",
    b"%s-%s\r\n\r\nno code\r\n%s \r\n",
)

_PIECES = (
    b"\r\n",
    b"\n",
    b"\r",
    b".",
    b".\r\n",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\r.\r",
    b"QUIT\r\n",
    b"MAIL FROM:<evil@x.org>\r\n",
    b"text",
    b" ",
    "\u00e4\u20ac".encode(),
    b"x" * 997,
    b"line\r\n" * 300,
)


@dataclass(frozen=True)
class Mail:
    """A message, and to whom; the name of a recipient says how the relay answers it."""

    sender: str
    recipients: tuple[str, ...]
    message: bytes


class Plan:
    """See the module. `random` is for whoever acts by the plan."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = chance = random.Random(seed)
        self.tls = chance.choice(["none"] * 4 + ["starttls", "implicit"])
        self.pipelining = chance.random() < 0.75
        self.welcomes_nobody = chance.random() < 0.2
        self.messages_per_connection = chance.choice([100, 100, 2, 1])
        self.recipients = chance.choice([50, 50, 1000, 2])  # of a transaction
        self.protocol = chance.choice(["smtp", "smtp", "smtp", "lmtp"])
        self.first_batch = chance.randint(1, 5)
        self.mails = [self._mail(number) for number in range(chance.randint(1, 5))]
        self.tricks: dict[int, str] = {}
        self.cuts: dict[int, tuple[str, int]] = {}
        kind = chance.random()
        if kind < 0.25:
            self.tricks[chance.randrange(25)] = chance.choice(STEPS)
        else:
            for _ in range(chance.choice([1, 1, 2, 3, 5])):
                self.tricks[chance.randrange(25)] = chance.choice(ENDINGS + ANSWERS)
            if kind > 0.75:
                way = chance.choice(["received", "sent"])
                self.cuts[chance.randint(1, 2)] = (way, chance.randint(1, 1500))

    @property
    def timeout(self) -> float:
        """Seconds that the client waits for a reply."""
        waits = {"silent", "part silent", "endless", "odd", "several", "dressed"}
        return IMPATIENT if waits & set(self.tricks.values()) else PATIENT

    def _mail(self, number: int) -> Mail:
        chance = self.random
        count = 110 if chance.random() < 0.05 else chance.choice([1, 1, 1, 2, 3, 4])
        kinds = chance.choices(["ok", "later", "never"], [6, 1, 1], k=count)
        recipients = tuple(f"{kind}{n}.{number}@x.org" for n, kind in enumerate(kinds))
        body = b"".join(chance.choices(_PIECES, k=chance.randrange(12)))
        if chance.random() < 0.02:
            body *= 150  # more than sockets buffer, sometimes
        head = b"Message-Id: <%d.%d@x.org>\r\nSubject: x\r\n\r\n" % (self.seed, number)
        return Mail(f"m{number}@x.org", recipients, head + body)

    def __str__(self) -> str:
        shown = [(m.sender, len(m.recipients), len(m.message)) for m in self.mails]
        return (
            f"seed {self.seed}: {self.protocol} tls={self.tls}"
            f" pipelining={self.pipelining} recipients={self.recipients}"
            f" tricks={self.tricks} cuts={self.cuts} mails={shown}"
        )
