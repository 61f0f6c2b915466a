"""Tests of messages and envelopes."""
