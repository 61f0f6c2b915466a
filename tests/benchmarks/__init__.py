"""Benchmarks: programs of their own, side by side with peers and limits.

None of them is a test of time. ``python -m tests.benchmarks.drain --help``.
"""
