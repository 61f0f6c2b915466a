"""The tests that some runs leave out: a node id, or the beginning of one.

All of these run in ``tox`` itself, at least on the oldest Python.
"""
from __future__ import annotations

import pytest


# The tests that ``tox -e quick`` leaves out: they take a second or more.
SLOW = (
    # They start programs, some of them for each line or system call.
    "tests/cli",
    "tests/functional",
    "tests/test_benchmarks.py",
    "tests/contract/test_kills.py",
    "tests/maildir/test_mounts.py::test_nothing_is_left_behind_by_a_process_that_is",
    "tests/test_conftest.py",
    "tests/test_demo.py",
    "tests/test_forging.py::test_commands_on_a_terminal",
    "tests/test_reference.py",
    "tests/test_secrets.py",
    "tests/test_testing.py::test_a_failure_of_a_test_shows_the_subject",
    "tests/test_testing.py::test_pytest_finds_the_fixture_by_itself",
    # They try many examples, or large ones.
    "tests/maildir/test_entry.py::test_what_was_written_is_read_again",
    "tests/maildir/test_mark.py::test_a_large_queue_costs_no_more_than_a_small_one",
    "tests/mailers/test_failover_duplicates.py",
    "tests/smtp/test_cuts.py",
    "tests/smtp/test_fuzzer.py",
    "tests/smtp/test_sevenbit.py::test_the_meaning_stays_the_same",
    "tests/smtp/test_sevenbit.py::test_the_time_grows_with_the_message",
    "tests/smtp/test_sevenbit.py::test_the_work_grows_with_the_message",
    "tests/smtp/test_sevenbit.py::test_whatever_a_message_is",
    "tests/smtp/test_wire.py::test_arbitrary_bytes",
    "tests/mail/test_field.py::test_addresses_and_names_are_the_same",
    "tests/mail/test_field.py::test_any_file_name",
    "tests/mail/test_field.py::test_any_text",
    "tests/mail/test_field.py::test_whatever_is_in_a_field",
    "tests/mail/test_headers.py::test_any_names_and_addresses_reach_exactly_these_addresses",
    "tests/mail/test_headers.py::test_many_encoded_words_take_time_in_proportion_to_their",
    # They wait for a time-out, a pause or a child.
    "tests/drain/test_drain.py::test_a_claim_is_given_up_in_a_queue_in_which_nothing",
    "tests/drain/test_drain.py::test_after_a_pause_a_single_entry_is_tried_first",
    "tests/drain/test_drain.py::test_silence_does_not_end_a_pause",
    "tests/drain/test_drain.py::test_the_relay_comes_back_to_a_queue_in_which_nothing",
    "tests/drain/test_drain.py::test_what_is_in_flight_does_not_keep_a_pause",
    "tests/drain/test_drain.py::test_where_nothing_can_be_removed_no_more_is_sent",
    "tests/maildir/test_forks.py",
    "tests/drain/test_runner.py::test_an_idle_poll_is_two_calls",
    "tests/drain/test_runner.py::test_who_interrupts_twice_does_not_wait",
    "tests/smtp/test_failures.py::test_a_reply_to_the_final_dot_that_breaks_off",
    "tests/smtp/test_failures.py::test_falling_silent",
    "tests/mailers/test_sendmail.py::test_takes_too_long",
    "tests/smtp/test_timeouts.py::test_a_byte_at_a_time",
    "tests/smtp/test_tls.py::test_a_fork_while_certificates_are_read",
    "tests/transactions/test_datamanager.py::test_a_forked_child",
    "tests/test_delivery.py::test_a_forked_child_that_begins_again",
    "tests/test_pyramid.py::test_a_forked_process_has_one_of_its_own",
)


# The tests that only the oldest Python runs. They take minutes, for a broker, a cluster
# of databases, a browser or a benchmark, which are the same for each Python.
ONCE = (
    "tests/functional/test_operating_postfix.py",
    "tests/functional/test_postgres_contract.py::test_a_processor_that_is_killed",
    "tests/functional/test_postgres_contract.py::test_a_sender_that_is_killed",
    "tests/functional/test_postgres_cuts.py",
    "tests/functional/test_postgres_faults.py",
    "tests/functional/test_postgres_full_disk.py",
    "tests/functional/test_postgres_page.py",
    "tests/functional/test_postgres_pooler.py",
    "tests/functional/test_postgres_scale.py",
    "tests/functional/test_postgres_shops.py",
    "tests/functional/test_postgres_standby.py",
    "tests/functional/test_rabbitmq_cluster.py",
    "tests/functional/test_rabbitmq_commands.py",
    "tests/functional/test_rabbitmq_receiving.py",
    "tests/functional/test_rabbitmq_storm.py",
    "tests/functional/test_web_browser.py",
    "tests/functional/test_web_zope.py",
    "tests/test_benchmarks.py",
)


def mark(items: list[pytest.Item]) -> None:
    """Mark the tests among `items` that some runs leave out."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if item.nodeid.startswith(ONCE):
            item.add_marker(pytest.mark.once)
