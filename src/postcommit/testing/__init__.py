"""For the tests of applications: what was sent, without a relay.

`setUp` (or the pytest fixture ``mail_outbox``) replaces the deliveries and mailers of a
registry, and collects the mail of committed transactions. `RecordingMailer` is a mailer
whose answers a test chooses. `EmbeddedRelay` is a relay on this machine.

The names are in the stub ``__init__.pyi``. They are imported on first use, because
pytest imports this package in each run for its fixtures.
"""
from __future__ import annotations

from postcommit._exports import exports


__getattr__, __dir__ = exports(__name__)
