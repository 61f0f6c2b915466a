"""Tests of the classes with the names and the behaviour of older libraries."""
