"""``list``, ``show``, ``status`` and ``check``: look at a queue, and change nothing."""
from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from postcommit._cli import selection
from postcommit._cli.output import EXTRA
from postcommit._cli.output import Column
from postcommit._cli.output import Table
from postcommit._cli.output import addresses
from postcommit._cli.output import coloured
from postcommit._cli.output import is_terminal
from postcommit._cli.output import print_json
from postcommit._cli.output import printable
from postcommit._mail.readable import fields_of_header
from postcommit._maildir.files import explained
from postcommit._maildir.item import Details
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import IOperators
from postcommit._maildir.item import Item
from postcommit._maildir.item import Reason
from postcommit._maildir.item import Survey
from postcommit._maildir.presence import Pause
from postcommit._maildir.presence import Stopped
from postcommit._maildir.reception import Reception
from postcommit._queue.attention import Limits
from postcommit._queue.attention import attention
from postcommit._queue.record import key_of
from postcommit._queue.record import record_of_entry
from postcommit._queue.record import record_of_queue
from postcommit._queue.values import age
from postcommit._queue.values import ago
from postcommit._queue.values import duration
from postcommit._queue.values import moment
from postcommit._queue.values import size
from postcommit.errors import ItemError
from postcommit.interfaces import is_database_url


_COLUMNS = (
    Column(selection.ID_TITLE, 12, rank=0),
    Column("AGE", 6, rank=4, right=True),
    Column("NEXT", 6, rank=2, right=True),
    Column("TRIES", 5, rank=5, right=True),
    Column("SIZE", 5, rank=EXTRA + 1, right=True),
    Column("FROM", 16, rank=EXTRA),
    Column("TO", 18, rank=1),
    Column("LAST REPLY", 20, rank=3, may_be_cut=True),
)

_COLOURS = {EntryState.FAILED: "red", EntryState.IN_DOUBT: "yellow"}

# States that 'status' shows only if an entry has them.
_RARE = (EntryState.SCHEDULED, EntryState.BULK, EntryState.HELD)

# The metrics, besides the number of entries in each state, and their help texts.
_GAUGES = {
    "due": "Entries that are due now.",
    "due_looked_at": "Deferred entries that were read to see when they are due.",
    "oldest_due_seconds": "For how long the oldest entry is due.",
    "next_scheduled_seconds": "In how many seconds the next scheduled entry is due.",
    "processor_alive": "Whether a processor of the queue is running.",
    "heartbeat_seconds": "How long ago a running processor gave a sign of life.",
    "paused": "Whether relay or disk are in trouble.",
    "paused_seconds": "For how long it has paused.",
    "paused_by_hand": "Whether a person has paused the queue.",
    "foreign_claims": "Young claims of another library's processor.",
    "attention": "How many things need somebody's attention.",
}

# The metrics of receivers: their keys in JSON, and their help texts.
_OF_RECEIVERS = {
    "receiver_connected": ("connected", "Whether a receiver is connected."),
    "receiver_received_total": ("received", "Entries received since it began."),
    "receiver_last_acknowledged_seconds": (
        "last_acknowledged_seconds",
        "How long ago the last entry was acknowledged to the broker.",
    ),
}

# Maximum number of entries in doubt that are listed.
_MOST_SHOWN = 10


# list


def list_arguments(parser: argparse.ArgumentParser) -> None:
    selection.queue_argument(parser)
    text = "print a JSON object for each entry, one a line"
    parser.add_argument("--json", action="store_true", help=text)
    text = "show every column whole, also where the terminal is not as wide"
    parser.add_argument("--wide", action="store_true", help=text)
    selection.choice(parser, *EntryState, default="all but dead letters")


def run_list(options: argparse.Namespace) -> int:
    """Print the entries as they are found."""
    queue = selection.operators(options)
    states = (state for state in EntryState if state is not EntryState.FAILED)
    wanted = selection.chosen(options, *states)
    with selection.meter(queue, wanted, "found") as meter, Table(
        _COLUMNS, sys.stdout, wide=options.wide, before=meter.wipe
    ) as table:

        def step() -> None:
            meter.step()
            table.look()

        for read in wanted.details(queue, step):
            meter.hit()
            if options.json:
                meter.wipe()
                print_json(record_of_entry(read))
            else:
                table.row(_row(read, time.time()), _COLOURS.get(read.state, ""))
    if not meter.hits and is_terminal(sys.stdout):
        has_dead = EntryState.FAILED in wanted.states
        hint = "" if has_dead else "; --failed lists dead letters"
        print(f"no entry found{hint}", file=sys.stderr)
    return 0


def _row(read: Details, now: float) -> list[str]:
    item = read.item
    return [
        item.id,
        duration(age(read, now)),
        _next(read, now),
        str(read.attempts),
        size(read.size),
        read.sender or "<>",
        addresses(read.recipients),
        read.last_reply or read.problem,
    ]


def _next(read: Details, now: float) -> str:
    if read.due is None:
        state = read.item.state
        return "never" if state is EntryState.FAILED else state.value
    return "now" if read.due <= now else duration(read.due - now)


# show


def show_arguments(parser: argparse.ArgumentParser) -> None:
    selection.queue_argument(parser)
    text = "its id or the beginning of it, as 'postcommit list' shows it; or the"
    text += " message id that send() returned, for every entry of that message"
    parser.add_argument("id", metavar="ID", help=text)
    form = parser.add_mutually_exclusive_group()
    text = "write the file as it is, envelope and message"
    form.add_argument("--raw", action="store_true", help=text)
    text = "print a JSON object for each entry, one a line"
    form.add_argument("--json", action="store_true", help=text)


def run_show(options: argparse.Namespace) -> int:
    """Print the entry, or each of a message. Raises `ItemError` if it is gone."""
    queue = selection.operators(options)
    items = queue.find([options.id])
    if options.raw:
        if len(items) > 1:
            text = ", ".join(item.id for item in items)
            raise ItemError(options.id, f"has {len(items)} entries, give one: {text}")
        _copy(queue, items[0])
        return 0
    for number, item in enumerate(items):
        read = queue.details(item)
        if read is None:
            raise _gone(item)
        if options.json:
            print_json({**record_of_entry(read), "header": read.header})
        else:
            if number:
                print()
            _print_details(read)
    return 0


def _print_details(read: Details) -> None:
    for title, text in _about(read, time.time()):
        print(f"{title:<11} {printable(text)}".rstrip())
    print()
    for name, text in fields_of_header(read.header):
        print(printable(f"{name}: {text}" if name else text).rstrip())


def _copy(queue: IOperators, item: Item) -> None:
    sys.stdout.flush()
    with explained(item.place, "read the entry"):
        try:
            file = queue.open(item)
        except FileNotFoundError as error:
            raise _gone(item) from error
    with file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _gone(item: Item) -> ItemError:
    return ItemError(item.id, "is gone: it was sent, or deleted, just now")


def _about(read: Details, now: float) -> Iterator[tuple[str, str]]:
    item = read.item
    yield "id", item.id
    yield "state", f"{item.state.value}; {item.state.advice}"
    yield "url" if is_database_url(item.place) else "file", item.place
    yield "size", size(read.size)
    if read.accepted is not None:
        yield "accepted", ago(read.accepted, now)
    if read.due is not None:
        wait = "now" if read.due <= now else f"in {duration(read.due - now)}"
        yield "due", f"{moment(read.due)}, {wait}"
    if read.expires is not None:
        yield "expires", moment(read.expires)
    if item.state is EntryState.FAILED:
        yield "given up", ago(read.changed, now)
    if read.problem:
        yield "problem", read.problem
        return
    uncertain = f" ({read.uncertain} uncertain)" if read.uncertain else ""
    yield "attempts", f"{read.attempts}{uncertain}"
    yield "last reply", read.last_reply or "-"
    if read.message_id:
        yield "message id", read.message_id
    yield "from", read.sender or "<>"
    for number, recipient in enumerate(read.recipients):
        yield "" if number else "to", recipient


# status


def status_arguments(parser: argparse.ArgumentParser) -> None:
    selection.queue_argument(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    text = "print metrics in the text format of Prometheus"
    form.add_argument("--prometheus", action="store_true", help=text)
    parser.add_argument(
        "--warn-age",
        metavar="AGE",
        type=selection.seconds,
        default=900.0,
        help="exit with 1 if an entry is due, or a bulk entry waits and no processor"
        " is running, for longer than this: 90 (seconds), 15m, 2h, 3d (default: 15m)",
    )
    text = "a timer runs 'postcommit flush': do not warn if no processor is running"
    parser.add_argument("--no-processor", action="store_true", help=text)
    parser.add_argument(
        "--warn-paused",
        metavar="AGE",
        type=selection.seconds,
        default=300.0,
        help="exit with 1 if something is due and the queue has paused for longer"
        " than this (default: 5m)",
    )
    parser.add_argument(
        "--warn-failed",
        metavar="N",
        type=int,
        default=None,
        help="exit with 1 if there are more dead letters than N (default: any number"
        " is fine)",
    )


def run_status(options: argparse.Namespace) -> int:
    """Print the state of the queue. Return 1 if it needs attention."""
    queue = selection.operators(options)
    seen = queue.survey()
    now = time.time()
    limits = Limits(
        options.warn_age,
        options.warn_paused,
        options.warn_failed,
        not options.no_processor,
    )
    complaints = list(attention(seen, now, limits))
    if options.json:
        print_json(record_of_queue(queue.name, seen, now, complaints))
    elif options.prometheus:
        fields = record_of_queue(queue.name, seen, now, complaints)
        _print_metrics(queue.name, fields)
    else:
        _print_survey(seen, now)
        _print_doubts(queue)
        for complaint in complaints:
            label = coloured("attention", "red", sys.stdout)
            print(f"{label}: {printable(complaint)}")
    return 1 if complaints else 0


def _print_survey(seen: Survey, now: float) -> None:
    late = ""
    if seen.oldest_due is not None:
        late = f", the oldest for {duration(max(0.0, now - seen.oldest_due))}"
    for state, count in seen.counts.items():
        if count or state not in _RARE:
            when = _next_time(seen, now) if state is EntryState.SCHEDULED else ""
            shown = _shown(seen.reasons.get(state))
            print(f"{count:>8}  {state.title_of(count)}{when}{shown}")
    if seen.looked_at < seen.counts[EntryState.DEFERRED]:
        late += f"; {seen.looked_at} of the deferred were asked, there may be more"
    print(f"{seen.due:>8}  due now{late}")
    print(f"processor {_life(seen, now)}")
    if seen.pause is not None:
        print(_pause(seen.pause, now))
    if seen.stopped is not None:
        print(printable(_stopped(seen.stopped, now)))
    for one in seen.receptions:
        print(f"receiver  {_reception(one, now)}")


def _next_time(seen: Survey, now: float) -> str:
    """Return when the next scheduled entry is due."""
    if seen.next_scheduled is None:
        return ""
    left = duration(seen.next_scheduled - now)
    return f", the next at {moment(seen.next_scheduled)}, in {left}"


def _stopped(by_hand: Stopped, now: float) -> str:
    """Return who has paused the queue, and since when."""
    return f"{by_hand}, since {ago(by_hand.since, now)}"


def _shown(reason: Reason | None) -> str:
    if reason is None:
        return ""
    share = f"{reason.count} of {reason.looked_at}"
    return f"; most often ({share}): {printable(reason.reply)}"


def _life(seen: Survey, now: float) -> str:
    if seen.heartbeat is None:
        return "not running"
    return f"alive, last sign {duration(max(0.0, now - seen.heartbeat))} ago"


def _reception(one: Reception, now: float) -> str:
    last = "nothing acknowledged yet"
    if one.last_acknowledged is not None:
        ago = duration(max(0.0, now - one.last_acknowledged))
        last = f"last acknowledged {ago} ago"
    state = "connected to" if one.connected else "not connected to"
    return printable(f"{state} {one.broker}, {one.received} received, {last}")


def _pause(paused: Pause, now: float) -> str:
    left = paused.next_attempt - now
    when = f"in {duration(left)}" if left > 0 else "with the first entry that is due"
    return (
        f"paused since {moment(paused.since)}, next attempt {when}, because:\n"
        f"          {printable(paused.reason)}"
    )


def _print_doubts(queue: IOperators) -> None:
    for number, item in enumerate(queue.items([EntryState.IN_DOUBT])):
        if number == _MOST_SHOWN:
            print("          and more")
            break
        print(f"          {selection.line(item)}")


def _print_metrics(queue: str, fields: dict[str, Any]) -> None:
    """Print a gauge for each value of the JSON object that is known."""
    label = f'queue="{_escaped(queue)}"'
    _print_help("entries", "Entries of the queue in each state.")
    for state in EntryState:
        count = fields[state.key]
        print(f'postcommit_queue_entries{{{label},state="{state.key}"}} {count}')
    pause = fields["paused"]
    values = {
        **fields,
        "oldest_due_seconds": fields["oldest_due_seconds"] or 0,
        "processor_alive": int(fields["processor_alive"]),
        "paused": int(pause is not None),
        "paused_seconds": pause and pause["seconds"],
        "paused_by_hand": int(fields["paused_by_hand"] is not None),
        "attention": len(fields["attention"]),
    }
    for name, text in _GAUGES.items():
        if values[name] is not None:
            _print_help(name, text)
            print(f"postcommit_queue_{name}{{{label}}} {values[name]}")
    _print_receivers(label, fields["receivers"])


def _print_receivers(label: str, receivers: list[dict[str, Any]]) -> None:
    """Print the metrics of each receiver from a broker."""
    for name, (key, text) in _OF_RECEIVERS.items():
        if not receivers:
            return
        _print_help(name, text, "counter" if name.endswith("_total") else "gauge")
        for one in receivers:
            if one[key] is not None:
                own = f'broker="{_escaped(one["broker"])}",process="{one["process"]}"'
                value = int(one[key]) if isinstance(one[key], bool) else one[key]
                print(f"postcommit_queue_{name}{{{label},{own}}} {value}")


def _escaped(text: str) -> str:
    return printable(text).replace("\\", r"\\").replace('"', r"\"")


def _print_help(name: str, text: str, kind: str = "gauge") -> None:
    print(f"# HELP postcommit_queue_{name} {text}")
    print(f"# TYPE postcommit_queue_{name} {kind}")


# check


def check_arguments(parser: argparse.ArgumentParser) -> None:
    selection.queue_argument(parser)
    text = "print a JSON object for each finding, one a line"
    parser.add_argument("--json", action="store_true", help=text)


def run_check(options: argparse.Namespace) -> int:
    """Print the problems of the queue. Return 1 if it has any."""
    queue = selection.operators(options)
    is_sound = True
    for finding in queue.check():
        is_sound = False
        if options.json:
            problem, advice = finding.problem, finding.advice
            print_json(
                {
                    key_of(finding.place): finding.place,
                    "problem": problem,
                    "advice": advice,
                }
            )
        else:
            text = f"{finding.place}: {finding.problem}; {finding.advice}"
            print(printable(text))
    if is_sound and not options.json:
        print("the queue is sound")
    return 0 if is_sound else 1
