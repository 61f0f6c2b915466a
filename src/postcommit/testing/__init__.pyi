# The public names, once each. `postcommit._exports` reads this file, too.

from postcommit.testing.clock import FakeClock as FakeClock
from postcommit.testing.mailer import RecordingMailer as RecordingMailer
from postcommit.testing.outbox import Mail as Mail
from postcommit.testing.outbox import Outbox as Outbox
from postcommit.testing.registry import recording as recording
from postcommit.testing.registry import setUp as setUp
from postcommit.testing.registry import tearDown as tearDown
from postcommit.testing.relay import EmbeddedRelay as EmbeddedRelay
from postcommit.testing.relay import Letter as Letter
