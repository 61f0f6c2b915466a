"""``postcommit status``: what is in a queue, and does it need somebody?"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from postcommit.commands import arguments as args
from postcommit.commands.output import coloured
from postcommit.commands.output import duration
from postcommit.commands.output import moment
from postcommit.commands.output import print_json
from postcommit.commands.output import printable
from postcommit.commands.output import timestamp
from postcommit.queue.admin import Admin
from postcommit.queue.check import MAKE_ROOM
from postcommit.queue.check import shortages
from postcommit.queue.item import State
from postcommit.queue.notice import Notice
from postcommit.queue.survey import Reason
from postcommit.queue.survey import Survey
from postcommit.queue.survey import survey


# A processor gives a sign of life every ten seconds. One that has given none for
# so long hangs.
HANGS_AFTER = 120.0

_START = "'postcommit run' or 'postcommit flush'"

# Maximum number of entries in doubt that are listed.
_MOST_SHOWN = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    args.queue(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    told = "print metrics in the text format of Prometheus"
    form.add_argument("--prometheus", action="store_true", help=told)
    parser.add_argument(
        "--warn-age",
        metavar="AGE",
        type=args.seconds,
        default=900.0,
        help="exit with 1 if an entry is due for longer than this: 90 (seconds),"
        " 15m, 2h, 3d (default: 15m)",
    )
    told = "a timer runs 'postcommit flush': do not warn because no processor lives"
    parser.add_argument("--no-processor", action="store_true", help=told)
    parser.add_argument(
        "--warn-paused",
        metavar="AGE",
        type=args.seconds,
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


def run(options: argparse.Namespace) -> int:
    """Print how the queue is; 1 if it needs attention."""
    admin = args.admin(options)
    now = time.time()
    seen = survey(admin.store, now)
    complaints = list(_complaints(seen, now, options))
    if options.json:
        print_json(_as_json(options.queue, seen, now, complaints))
    elif options.prometheus:
        _print_metrics(options.queue, seen, now, complaints)
    else:
        _print(seen, now)
        _print_doubts(admin)
        for complaint in complaints:
            attention = coloured("attention", "red", sys.stdout)
            print(f"{attention}: {printable(complaint)}")
    return 1 if complaints else 0


def _complaints(
    seen: Survey, now: float, options: argparse.Namespace
) -> Iterator[str]:
    """Yield what somebody should look after, and how."""
    if seen.in_doubt:
        yield f"{seen.in_doubt} in doubt; 'postcommit recover' sends or drops them"
    if seen.foreign_claims:
        yield "another library's processor drains this queue; stop one of the two"
    if seen.heartbeat is not None and now - seen.heartbeat > HANGS_AFTER:
        silent = duration(now - seen.heartbeat)
        yield f"the processor hangs, no sign of life for {silent}; restart it"
    paused = seen.pause
    if paused and seen.due and now - paused.since > options.warn_paused:
        told = f"{duration(now - paused.since)}: {printable(paused.reason)}"
        hint = "'postcommit test-relay' or 'postcommit check' tell more"
        yield f"the queue has paused for {told}; {hint}"
    yield from _late(seen, now, options)
    for problem in shortages(options.queue):
        yield f"the queue {problem}; {MAKE_ROOM}"
    if options.warn_failed is not None and seen.failed > options.warn_failed:
        yield f"{seen.failed} dead letters; 'postcommit list --failed'"


def _late(seen: Survey, now: float, options: argparse.Namespace) -> Iterator[str]:
    """Yield why mail that is due is not sent."""
    # The note of a pause is locked by its processor, so that lives as well.
    lives = seen.heartbeat is not None or seen.pause is not None
    if seen.oldest_due is not None and now - seen.oldest_due > options.warn_age:
        if seen.pause:
            hint = "the queue pauses"
        elif lives:
            hint = "the processor's log tells why; 'postcommit test-relay'"
        else:
            hint = f"no processor lives; {_START}"
        yield f"an entry is due for {duration(now - seen.oldest_due)}: {hint}"
    elif seen.due and not lives and not options.no_processor:
        yield f"{seen.due} due, and no processor lives; {_START}"


def _print(seen: Survey, now: float) -> None:
    late = ""
    if seen.oldest_due is not None:
        late = f", the oldest for {duration(max(0.0, now - seen.oldest_due))}"
    rows = [
        (seen.waiting, "waiting, never tried", None),
        (seen.deferred, "deferred", seen.deferred_reason),
        (seen.failed, "dead letters", seen.failed_reason),
        (seen.in_doubt, "in doubt", None),
    ]
    for count, told, reason in rows:
        print(f"{count:>8}  {told}{_shown(reason)}")
    if seen.looked_at < seen.deferred:
        late += f"; {seen.looked_at} of the deferred were asked, there may be more"
    print(f"{seen.due:>8}  due now{late}")
    print(f"processor {_life(seen, now)}")
    if seen.pause is not None:
        print(_pause(seen.pause, now))


def _shown(reason: Reason | None) -> str:
    if reason is None:
        return ""
    share = f"{reason.count} of {reason.looked_at}"
    return f"; most often ({share}): {printable(reason.reply)}"


def _life(seen: Survey, now: float) -> str:
    if seen.heartbeat is None:
        return "not running"
    return f"alive, last sign {duration(max(0.0, now - seen.heartbeat))} ago"


def _pause(paused: Notice, now: float) -> str:
    left = paused.next_attempt - now
    when = f"in {duration(left)}" if left > 0 else "with the first entry that is due"
    return (
        f"paused since {moment(paused.since)}, next attempt {when}, because:\n"
        f"          {printable(paused.reason)}"
    )


def _print_doubts(admin: Admin) -> None:
    for number, item in enumerate(admin.items(State.IN_DOUBT)):
        if number == _MOST_SHOWN:
            print("          and more")
            break
        sent = f"  written {moment(item.accepted)}" if item.accepted is not None else ""
        print(f"          {item.id}  {printable(item.name)}{sent}")


def _as_json(
    queue: str, seen: Survey, now: float, complaints: list[str]
) -> dict[str, Any]:
    return {
        "queue": queue,
        "waiting": seen.waiting,
        "deferred": seen.deferred,
        "failed": seen.failed,
        "in_doubt": seen.in_doubt,
        "due": seen.due,
        "due_looked_at": seen.looked_at,
        "oldest_due": timestamp(seen.oldest_due),
        "oldest_due_seconds": _seconds(seen.oldest_due, now),
        "deferred_reason": _reason(seen.deferred_reason),
        "failed_reason": _reason(seen.failed_reason),
        "foreign_claims": seen.foreign_claims,
        "processor_alive": seen.heartbeat is not None,
        "heartbeat_seconds": _seconds(seen.heartbeat, now),
        "paused": _paused(seen.pause, now),
        "attention": complaints,
    }


def _seconds(then: float | None, now: float) -> float | None:
    return None if then is None else round(max(0.0, now - then), 3)


def _reason(reason: Reason | None) -> dict[str, Any] | None:
    if reason is None:
        return None
    return {
        "reply": reason.reply,
        "count": reason.count,
        "looked_at": reason.looked_at,
    }


def _paused(notice: Notice | None, now: float) -> dict[str, Any] | None:
    if notice is None:
        return None
    return {
        "since": timestamp(notice.since),
        "seconds": _seconds(notice.since, now),
        "next_attempt": timestamp(notice.next_attempt),
        "reason": notice.reason,
        "process": notice.process,
    }


def _print_metrics(
    queue: str, seen: Survey, now: float, complaints: list[str]
) -> None:
    """Print gauges; what is not known is left out, as is usual there."""
    escaped = printable(queue).replace("\\", r"\\").replace('"', r"\"")
    label = f'queue="{escaped}"'
    states = {
        "waiting": seen.waiting,
        "deferred": seen.deferred,
        "failed": seen.failed,
        "in_doubt": seen.in_doubt,
    }
    _print_help("entries", "Entries of the queue in each state.")
    for state, count in states.items():
        print(f'postcommit_queue_entries{{{label},state="{state}"}} {count}')
    for name, told, value in _gauges(seen, now, complaints):
        if value is not None:
            _print_help(name, told)
            print(f"postcommit_queue_{name}{{{label}}} {value}")


def _gauges(
    seen: Survey, now: float, complaints: list[str]
) -> Iterator[tuple[str, str, float | None]]:
    late = _seconds(seen.oldest_due, now) or 0
    silent = _seconds(seen.heartbeat, now)
    alive = int(seen.heartbeat is not None)
    yield "due", "Entries that are due now.", seen.due
    told = "How many deferred entries were asked when they are due."
    yield "due_looked_at", told, seen.looked_at
    yield "oldest_due_seconds", "For how long the oldest entry is due.", late
    yield "processor_alive", "Whether a processor of the queue is running.", alive
    told = "How long ago a living processor gave a sign of life."
    yield "heartbeat_seconds", told, silent
    paused = int(seen.pause is not None)
    yield "paused", "Whether relay or disk are in trouble.", paused
    since = _seconds(seen.pause.since, now) if seen.pause else None
    yield "paused_seconds", "For how long it has paused.", since
    told = "Young claims of another library's processor."
    yield "foreign_claims", told, seen.foreign_claims
    told = "How many things need somebody's attention."
    yield "attention", told, len(complaints)


def _print_help(name: str, told: str) -> None:
    print(f"# HELP postcommit_queue_{name} {told}")
    print(f"# TYPE postcommit_queue_{name} gauge")
