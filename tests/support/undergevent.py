"""The suite in a process in which gevent has replaced sockets and threads.

``python -m gevent.monkey --module pytest tests`` patches before anything is imported.
Then `tests.conftest` calls `prepare`, and leaves out the tests in `UNFIT`.
"""
from __future__ import annotations

import os
import select

import pytest


# The tests that cannot work under gevent, with the reason.
UNFIT = {
    "tests/functional": "they start programs, which are not patched",
    "tests/cli": "they start programs, which are not patched",
    "tests/test_benchmarks.py": "they start programs, which are not patched",
    "tests/test_demo.py": "they start programs, which are not patched",
    "tests/smtp/test_fuzzer.py": "waits in threads that share time-outs of 0.1 s",
    "tests/smtp/test_addresses.py": "a greenlet cannot have an /etc/hosts of its own",
    "tests/smtp/test_pool.py::test_a_child_does_not_share_with_its_parent": (
        "the relay is a greenlet of the process that waits for the child"
    ),
    "tests/smtp/test_pool.py::test_no_thread_to_be_had": "a greenlet can be had",
    "tests/smtp/test_pool.py::test_a_child_has_connections_of_its_own": (
        "the relay is a greenlet of the process that waits for the child"
    ),
    "tests/smtp/test_pool.py::test_a_fork_while_the_pool_is_locked": (
        "the relay is a greenlet of the process that waits for the child"
    ),
    "tests/smtp/test_pool.py::test_a_restart_of_the_relay_is_not_about_the_number": (
        "a relay that is a greenlet closes its connections later"
    ),
    "tests/smtp/test_tls.py::test_a_final_dot_that_left_is_not_taken_for_one_that": (
        "other sizes fit between the two ends"
    ),
    "tests/smtp/test_tls.py::test_a_fork_while_certificates_are_read": (
        "opening a pipe to read from blocks all greenlets"
    ),
    "tests/smtp/test_auth.py::test_no_local_variable_has_it_after_an_interrupt": (
        "a greenlet cannot be sent a signal"
    ),
    "tests/drain/test_drain.py::test_it_sleeps_during_a_pause": (
        "a greenlet has no clock of its own"
    ),
    "tests/drain/test_runner.py::test_where_there_is_no_thread_to_be_had": (
        "a greenlet can be had"
    ),
    "tests/maildir/test_presence.py::test_who_sleeps_gives_signs_of_life": (
        "its loop does not let other greenlets run"
    ),
}


def prepare() -> None:
    """Have the number of open files be what the tests expect.

    gevent opens some files when its loop runs first, and closes a descriptor only when
    its loop runs next. Tests count open files at once.
    """
    from gevent import monkey

    os.close = monkey.get_original("os", "close")
    ready, end = os.pipe()
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    poll.poll(1)
    os.close(ready)
    os.close(end)


def fit(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return which of `items` can run under gevent, and which cannot."""
    unfit = [item for item in items if item.nodeid.startswith(tuple(UNFIT))]
    return [item for item in items if item not in unfit], unfit
