"""Programs for a process in which gevent has replaced sockets and threads.

``python -m tests.support.patched NAME ARGUMENT`` patches first, as a site does that
gevent serves, and then calls one of the functions with the argument, which is JSON. It
prints what the function returns, as JSON.
"""
from gevent import monkey


monkey.patch_all()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from transaction import TransactionManager  # noqa: E402

from postcommit import QueuedMailDelivery  # noqa: E402
from postcommit import QueueProcessor  # noqa: E402
from postcommit import SMTPMailer  # noqa: E402
from postcommit._mailers.sendmail import SendmailMailer  # noqa: E402
from tests.smtp.messages import MESSAGE  # noqa: E402
from tests.smtp.messages import SENDER  # noqa: E402
from tests.smtp.messages import B  # noqa: E402
from tests.smtp.messages import C  # noqa: E402
from tests.smtp.messages import message  # noqa: E402
from tests.smtp.messages import told  # noqa: E402
from tests.support.mailers import send_all  # noqa: E402


# Seconds after which something hangs.
_PATIENCE = 10.0


def send(cases: list[dict[str, Any]]) -> list[Any]:
    """Send to the relay of each case, all at once.

    A case has the options of a mailer, and under ``size`` the bytes of the messages.
    Return the outcomes of two messages in one batch, the second to two recipients, and
    then of closing the mailer; "hangs" where they take too long.
    """
    with ThreadPoolExecutor(len(cases)) as pool:
        return list(pool.map(_send, cases))


def _send(case: dict[str, Any]) -> Any:
    size = case.pop("size", 0)
    mailer = SMTPMailer(case.pop("hostname", "127.0.0.1"), notify=str, **case)
    first = message(1) + b"x" * 70 * (size // 70)
    batch = [(SENDER, [C], first), (SENDER, [B, C], message(2))]
    with gevent.Timeout(_PATIENCE, False):
        results = [told(report) for report in send_all(mailer, batch)]
        mailer.close()
        return results
    return "hangs"


def drain(case: dict[str, Any]) -> dict[str, Any]:
    """Have two processors drain the queue while mail is committed, and fork."""
    queue, count = case["queue"], case["count"]
    mailer = SMTPMailer("127.0.0.1", case["port"], timeout=0.3)
    processors = [
        QueueProcessor(queue, mailer, 3_600_000, workers=4, min_backoff=1)
        for _ in range(2)
    ]
    begin = time.monotonic()
    for processor in processors:
        processor.start()
    senders = [threading.Thread(target=_commit, args=(queue, n)) for n in range(count)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    with gevent.Timeout(6 * _PATIENCE, False):
        while any(os.scandir(f"{queue}/new")) or any(os.scandir(f"{queue}/cur")):
            time.sleep(0.01)
    found = {"seconds": time.monotonic() - begin, "child": _fork(queue, mailer)}
    signs = [processor.last_sign for processor in processors]
    found["alive"] = all(sign and sign >= begin for sign in signs)
    found["stopped"] = [processor.stop(_PATIENCE) for processor in processors]
    return found


def _commit(queue: str, number: int) -> None:
    manager = TransactionManager(explicit=True)
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    with manager:
        delivery.send(SENDER, B, message(number))


def _fork(queue: str, mailer: SMTPMailer) -> int:
    """Send from a child that was forked; return its exit status.

    It must not have open what would make it look like a processor or hold a lock.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        with gevent.Timeout(_PATIENCE, False):
            while _kept(queue):  # gevent closes descriptors when its loop runs next
                time.sleep(0.01)
        sent = told(mailer.send(SENDER, B, MESSAGE))
        mailer.close()
        status = 0 if (_kept(queue), sent) == ([], ["sent"]) else 2
    finally:
        os._exit(status)


def _kept(queue: str) -> list[str]:
    """Return the open files of this process that are in the queue."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass  # the list itself
    return [path for path in found if path.startswith(queue)]


def hand_over(case: dict[str, Any]) -> Any:
    """Hand a message to a sendmail command that never ends."""
    mailer = SendmailMailer(case["command"], timeout=0.5, notify=str)
    with gevent.Timeout(_PATIENCE, False):
        return told(mailer.send(SENDER, B, MESSAGE + b"x" * case["size"]))
    return "hangs"


def main(name: str, argument: str) -> None:
    functions: dict[str, Callable[[Any], Any]] = {"send": send, "drain": drain}
    functions["hand_over"] = hand_over
    print(json.dumps(functions[name](json.loads(argument))))


if __name__ == "__main__":
    main(*sys.argv[1:])
