"""Tests of the mailers besides SMTP."""
