"""Tests of the queue, with real files and processes."""
