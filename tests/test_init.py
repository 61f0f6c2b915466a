"""The package: its public names, and what importing it costs."""
from __future__ import annotations

import subprocess
import sys

import pytest

import postcommit


def test_each_public_name_is_handed_out() -> None:
    for name in postcommit.__all__:
        assert getattr(postcommit, name).__name__ == name
        assert name in dir(postcommit)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SMPTMailer'"):
        _ = postcommit.SMPTMailer


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, postcommit\n"
        "heavy = {'smtplib', 'ssl', 'email', 'socket', 'asyncio', 'idna'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "postcommit.QueuedMailDelivery\n"
        "print(sorted({'ssl', 'asyncio'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-S", "-c", code]
    path = ":".join(p for p in sys.path if p)
    done = subprocess.run(
        command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "[]"
