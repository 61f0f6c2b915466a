"""What our mailers do alike: compose, transmit, announce."""
from __future__ import annotations

from abc import ABC
from abc import abstractmethod

from postcommit.event import Notify
from postcommit.event import announce
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import Sendable
from postcommit.message import compose


class BaseMailer(ABC):
    """Has `IMailer.send`; what becomes of the message, its `_transmit` tells."""

    notify: Notify

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
    ) -> IDeliveryReport:
        """See `IMailer`."""
        composed = compose(fromaddr, toaddrs, message)
        report = self._transmit(
            composed.sender, composed.recipients, bytes(composed), composed.message_id
        )
        announce(report, self.notify)
        return report

    @abstractmethod
    def _transmit(
        self, sender: str, recipients: tuple[str, ...], message: bytes, message_id: str
    ) -> IDeliveryReport:
        """Transmit `message`, and report. Raises nothing, announces nothing."""
