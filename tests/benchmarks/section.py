"""A question of the page, with what is written about its run."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field


@dataclass(frozen=True)
class Section:
    """One run on the page, and on the page of its full tables.

    `title` is the question. `limits` says in two sentences what limits the figures.
    These two, a small table and a plot are on the page. The page of the full tables
    also has `text` (what is compared), `details` (more about the limits) and `steps`
    (what made it faster).

    `main` is the figure that is compared with the contestants `peer` and `limit`.
    `ours` is the contestant that does the same as the peers, if not all of ours do.
    Each value of the parts of the case in `split` has a full table of its own.
    `spreads` are figures whose distribution is shown. `scaled` is a part of the case,
    such as the threads: each contestant is compared with itself with one of it.

    The small table has the results of the case `typical`. For a contestant without
    that case, it has the case with the highest value. `across` is the part of the case
    that makes its columns. Without it, the columns are the figures.
    """

    title: str
    text: str
    limits: str
    details: str = ""
    steps: str = ""
    main: str = "rate"
    ours: str = ""
    peer: str = "zope.sendmail"
    limit: str = ""
    scaled: str = ""
    split: tuple[str, ...] = ()
    spreads: tuple[str, ...] = ()
    typical: Mapping[str, float | str] = field(default_factory=dict)
    across: str = ""
    plots: tuple[str, ...] = ()
