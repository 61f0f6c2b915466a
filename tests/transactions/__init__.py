"""Tests of the transaction and its events."""
