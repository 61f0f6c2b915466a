"""What type checkers know of `postcommit.interfaces`: the type beside each interface.

They do not know that an interface has the members of the objects that provide it. So
here, each one is an object that says of which type they are. It is a class of
postcommit where there is only one, and otherwise a protocol of `postcommit._types`.
"""

from typing import Any
from typing import Generic
from typing import TypeVar
from typing import overload

from typing_extensions import TypeIs

from postcommit._amqp.mailer import AMQPMailer
from postcommit._amqp.receiver import QueueReceiver
from postcommit._delivery.direct import DirectMailDelivery
from postcommit._delivery.queued import QueuedMailDelivery
from postcommit._mailers.failover import FailoverMailer
from postcommit._mailers.file import FileMailer
from postcommit._mailers.sendmail import SendmailMailer
from postcommit._outbox import OutboxMailDelivery
from postcommit._queue.queue import MailQueue
from postcommit._smtp.mailer import SMTPMailer
from postcommit._transaction.event import MailDeferredEvent
from postcommit._transaction.event import MailRejectedEvent
from postcommit._transaction.event import MailSentEvent
from postcommit._transaction.event import MailUncertainEvent
from postcommit._types import Address as Address
from postcommit._types import Addresses as Addresses
from postcommit._types import AuthName as AuthName
from postcommit._types import Batch as Batch
from postcommit._types import BindableMailDelivery as BindableMailDelivery
from postcommit._types import ChangeStatus as ChangeStatus
from postcommit._types import DeliveryReport as DeliveryReport
from postcommit._types import MailDelivery as MailDelivery
from postcommit._types import Maildir as Maildir
from postcommit._types import MaildirFactory as MaildirFactory
from postcommit._types import MaildirMessageWriter as MaildirMessageWriter
from postcommit._types import Mailer as Mailer
from postcommit._types import MailErrorEvent as MailErrorEvent
from postcommit._types import MailEvent as MailEvent
from postcommit._types import MailQueueProcessor as MailQueueProcessor
from postcommit._types import Moment as Moment
from postcommit._types import Outcome as Outcome
from postcommit._types import Outgoing as Outgoing
from postcommit._types import Pipeline as Pipeline
from postcommit._types import PipelineMailer as PipelineMailer
from postcommit._types import ProtocolName as ProtocolName
from postcommit._types import QueueChange as QueueChange
from postcommit._types import QueueEntry as QueueEntry
from postcommit._types import QueueFinding as QueueFinding
from postcommit._types import QueuePage as QueuePage
from postcommit._types import QueuePause as QueuePause
from postcommit._types import QueueReason as QueueReason
from postcommit._types import QueueReception as QueueReception
from postcommit._types import QueueStatus as QueueStatus
from postcommit._types import QueueStop as QueueStop
from postcommit._types import RelayCheck as RelayCheck
from postcommit._types import Reply as Reply
from postcommit._types import ScheduledMailDelivery as ScheduledMailDelivery
from postcommit._types import Sendable as Sendable
from postcommit._types import Status as Status
from postcommit._types import SupportsSend as SupportsSend
from postcommit._types import Tally as Tally
from postcommit._types import TLSMode as TLSMode
from postcommit._types import TLSName as TLSName
from postcommit._types import TransactionManager as TransactionManager

_T = TypeVar("_T")
_Default = TypeVar("_Default")

class _Interface(Generic[_T]):
    """An interface. Objects that provide it have the type `_T`."""

    @overload
    def __call__(self, obj: object, /) -> _T: ...
    @overload
    def __call__(self, obj: object, alternate: _Default, /) -> _T | _Default: ...
    def providedBy(self, obj: object, /) -> TypeIs[_T]: ...
    def implementedBy(self, cls: type, /) -> bool: ...
    def extends(self, interface: _Interface[Any], strict: bool = True) -> bool: ...
    def __getitem__(self, name: str) -> Any: ...
    # Other members of an interface, such as `names` and `queryTaggedValue`.
    def __getattr__(self, name: str) -> Any: ...

IReply: _Interface[Reply]
IOutcome: _Interface[Outcome]
IDeliveryReport: _Interface[DeliveryReport]
IMailDelivery: _Interface[MailDelivery]
IScheduledMailDelivery: _Interface[ScheduledMailDelivery]
IMailer: _Interface[Mailer]
IPipeline: _Interface[Pipeline]
IPipelineMailer: _Interface[PipelineMailer]
IRelayCheck: _Interface[RelayCheck]
ITLSOptions: _Interface[SMTPMailer | AMQPMailer | QueueReceiver]
ISMTPMailer: _Interface[SMTPMailer]
ISendmailMailer: _Interface[SendmailMailer]
IFileMailer: _Interface[FileMailer]
IFailoverMailer: _Interface[FailoverMailer]
IBroker: _Interface[AMQPMailer | QueueReceiver]
IAMQPMailer: _Interface[AMQPMailer]
IQueueReceiver: _Interface[QueueReceiver]
IDefaultSender: _Interface[
    DirectMailDelivery | OutboxMailDelivery | QueuedMailDelivery
]
IDirectMailDelivery: _Interface[DirectMailDelivery]
IQueuedMailDelivery: _Interface[QueuedMailDelivery]
IOutboxMailDelivery: _Interface[OutboxMailDelivery]
IMailQueueProcessor: _Interface[MailQueueProcessor]
IMailQueue: _Interface[MailQueue]
IQueuePage: _Interface[QueuePage]
IMailEvent: _Interface[MailEvent]
IMailSentEvent: _Interface[MailSentEvent]
IMailErrorEvent: _Interface[MailErrorEvent]
IMailDeferredEvent: _Interface[MailDeferredEvent]
IMailRejectedEvent: _Interface[MailRejectedEvent]
IMailUncertainEvent: _Interface[MailUncertainEvent]
IMaildirFactory: _Interface[MaildirFactory]
IMaildir: _Interface[Maildir]
IMaildirMessageWriter: _Interface[MaildirMessageWriter]
IBatch: _Interface[Batch]

_: Any

can_be_path: Any
is_database_url: Any
can_be_queue: Any
is_schema: Any
is_page_path: Any
is_url_host: Any
def is_path(field: Any) -> bool: ...
def can_be_host(value: str) -> bool: ...
def is_ip_address(value: str) -> bool: ...
