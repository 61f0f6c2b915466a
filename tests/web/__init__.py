"""Tests of the page for queues and mailboxes."""
