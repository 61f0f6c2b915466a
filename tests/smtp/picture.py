"""The picture and the tables of `postcommit._smtp.dialogue` for the page.

To write them into docs/dialogue.rst::

    python -m tests.smtp.picture
"""
from __future__ import annotations

import enum
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from postcommit._mail.report import Stage
from postcommit._smtp.dialogue import FINALS
from postcommit._smtp.dialogue import LOSSES
from postcommit._smtp.dialogue import MOVES
from postcommit._smtp.dialogue import REPLIES
from postcommit._smtp.dialogue import Fate
from postcommit._smtp.dialogue import Kind
from postcommit._smtp.dialogue import Loss
from postcommit._smtp.dialogue import State


PAGE = Path(__file__).parent.parent.parent / "docs" / "dialogue.rst"

BEGIN = ".. The following is written by: python -m tests.smtp.picture\n\n"
END = ".. The end of what is written by: python -m tests.smtp.picture\n"

STAGES = {
    Stage.SESSION: "RSET",
    Stage.MAIL: "MAIL",
    Stage.RCPT: "RCPT",
    Stage.DATA: "DATA",
    Stage.END: "final dot",
}


def drawn() -> str:
    """Return the part of the page."""
    return "\n".join(_parts())


def _parts() -> Iterator[str]:
    yield "A transmission is in one of six states:\n"
    yield _meanings(State)
    yield "It moves to another state on these occasions. Losses are in capitals:\n"
    yield "::\n"
    yield _picture()
    yield "A reply is of a kind, seen from the command that it answers:\n"
    yield _meanings(Kind)
    yield 'The meaning of a reply. "All" are the recipients of this transmission'
    yield "without an outcome:\n"
    stages: dict[str, dict[Kind, enum.Enum | None]] = {
        name: {kind: REPLIES.get((stage, kind)) for kind in Kind}
        for stage, name in STAGES.items()
    }
    stages["final dot (LMTP)"] = {kind: FINALS.get(kind) for kind in Kind}
    yield _table("stage", Kind, stages)
    yield "A connection is lost in one of these ways:\n"
    yield _meanings(Loss)
    yield "The fate of a transmission, by its state. An empty cell cannot happen:\n"
    states = {
        state.name: {loss: LOSSES.get((state, loss)) for loss in Loss}
        for state in State
        if state is not State.DONE
    }
    yield _table("state", Loss, states)
    yield _meanings(Fate)


def _meanings(things: type[enum.Enum]) -> str:
    rows = [f"   * - {thing.name}\n     - {thing.value}\n" for thing in things]
    return ".. list-table::\n   :widths: 20 80\n\n" + "".join(rows)


def _table(
    corner: str,
    columns: type[enum.Enum],
    rows: Mapping[str, Mapping[Any, enum.Enum | None]],
) -> str:
    lines = [".. list-table::", "   :header-rows: 1", "", f"   * - {corner}"]
    lines += [f"     - {column.name}" for column in columns]
    for name, cells in rows.items():
        lines.append(f"   * - {name}")
        for column in columns:
            lines.append(f"     - {_cell(cells[column])}".rstrip())
    return "\n".join(lines) + "\n"


def _cell(cell: enum.Enum | None) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Loss):
        return f"lost: {cell.name}"
    return cell.name if isinstance(cell, Fate) else str(cell.value)


def _picture() -> str:
    arrows = list(_arrows())
    width = max(len(occasion) for _, occasion, _ in arrows) + 1
    lines = []
    for state in State:
        mine = [arrow for arrow in arrows if arrow[0] is state]
        lines.append(f"   {state.name}")
        for number, (_, occasion, to) in enumerate(mine, 1):
            corner = "\u2514" if number == len(mine) else "\u251c"
            line = "\u2500" * (width - len(occasion))
            lines.append(f"    {corner}\u2500 {occasion} {line}> {to.name}")
    return "\n".join(lines) + "\n"


def _arrows() -> Iterator[tuple[State, str, State]]:
    """Yield from where, on which occasion, and to where a transmission moves."""
    for state in State:
        for (before, after), occasion in MOVES.items():
            if before is state:
                yield state, occasion, after
        for fate in Fate:
            losses = [
                loss.name
                for loss in Loss
                if LOSSES.get((state, loss)) is fate and fate is not Fate.STAY
            ]
            if losses:
                after = State.UPCOMING if fate is Fate.AGAIN else State.DONE
                yield state, f"{', '.join(losses)}: {fate.name.lower()}", after


def main() -> None:
    text = PAGE.read_text("utf-8")
    head, rest = text.split(BEGIN)
    PAGE.write_text(head + BEGIN + drawn() + "\n" + END + rest.split(END)[1], "utf-8")


if __name__ == "__main__":
    main()
