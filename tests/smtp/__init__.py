"""Tests of the SMTP client, against real sockets."""
