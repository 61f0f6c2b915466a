"""The questions of the page, in its order.

Another run is a line here and in ``RUNS`` of ``tests.benchmarks.__main__``. Its section
may be in the module that measures, such as ``together.SECTION``.
"""
from __future__ import annotations

from tests.benchmarks import rowclaims
from tests.benchmarks import rowdepth
from tests.benchmarks import rowdrain
from tests.benchmarks import rowenqueue
from tests.benchmarks import together
from tests.benchmarks.section import Section


_DRAIN = Section(
    title="How fast is a queue drained?",
    limits="""
The interpreter limits it: *raw sockets* is the least that Python can do, and more
workers do not help with a relay that answers at once. From 100 KB on it is the number
of bytes, because each message is searched for line ends and dots.""",
    text="""
A queue on disk is filled before, and sent to Postfix's ``smtp-sink`` on the loopback
interface, which takes every message and keeps none. Each worker of postcommit has a
connection. The peers have one thread, and zope.sendmail and repoze.sendmail open a
connection for each message. *smtplib* is a plain loop with the standard library: one
connection, without a claim, a report or a log.""",
    details="""
*raw sockets* reads a file, writes it to a socket and counts replies. ``smtp-source`` is
written in C. It reads no file and sends the same message again and again, but waits for
each reply. postcommit does not wait where PIPELINING is offered. More workers would
compete for the interpreter's lock, so postcommit lets only as many of them work as the
relay keeps waiting.""",
    steps="""
The table has the processor time for a message of 4 KB, in microseconds, with one and
with four workers. All versions ran in turn on 2026-11-23, with 2,000 messages. The
figures are medians of five.

.. list-table::
   :header-rows: 1

   * - step
     - 1
     - 4
   * - at the beginning
     - 302
     - 519
   * - an entry is claimed and read with five system calls less
     - 283
     - 439
   * - an envelope is read with one expression, small tuples replace objects
     - 253
     - 435
   * - a transfer is prepared and accounted for in fewer steps, a message's id is
       searched for once
     - 216
     - 386
   * - no transaction without a subscriber, as many workers as the relay keeps waiting
     - 204
     - 236
   * - one path for all mailers, an unanswered command is asked for once
     - 169
     - 177
   * - entries are read ahead of a quick relay, the kernel keeps the time-outs, no lock
     - 151
     - 152

About 60 of the remaining microseconds belong to the kernel: 21 to send, 15 to close and
12 to unlink the file. The rest are 190 calls in Python. They run with cold caches after
each system call, and take less than half of that time with warm caches.""",
    limit="raw sockets",
    split=("size",),
    typical={"workers": 4},
    across="size",
    plots=("drain",),
)

_TLS = Section(
    title="What does TLS cost?",
    limits="""
A contestant with a connection for each message pays for the handshake each time,
about ten milliseconds of processor time on both sides. The others are limited by the
encryption in the relay's front, which shares the processors with them.""",
    text="""
Messages of 4 KB are sent on the loopback interface. STARTTLS is offered by a small
front before ``smtp-sink``, and implicit TLS by stunnel. postcommit and smtplib verify
the certificate. zope.sendmail and repoze.sendmail accept any certificate.""",
    limit="raw sockets",
    split=("tls",),
    typical={"workers": 4},
    across="tls",
    plots=("tls",),
)

_DISTANCE = Section(
    title="How fast is a relay that is far away?",
    limits="""
Only the round trip limits it: with PIPELINING a message costs one for each connection,
which is the least that SMTP allows. More connections help, up to the number that the
relay allows.""",
    text="""
A proxy delays all bytes by half the round trip, each way. The messages have 4 KB, and
their number grows with that of the workers. Contestants with a connection for each
message get fewer, because they need a second for each.""",
    details="""
The envelope of a message is sent together with the end of the message before. A
contestant that waits for each reply pays four round trips, and a contestant that
opens a connection for each message pays seven or more.""",
    limit="raw sockets",
    split=("round trip",),
    typical={"workers": 4},
    across="round trip",
    plots=("distance",),
)

_ENQUEUE = Section(
    title="How fast is a commit?",
    limits="""
The disk limits it: a transaction waits for two syncs, and where a flush takes a
millisecond or more, one thread is as fast as the minimal loop. **zope.sendmail is
faster, and repoze.sendmail is on such a disk, because they do not sync**, so a power
failure can lose mail that they accepted in the last half minute.""",
    text="""
``send()`` and commit, with messages of 4 KB. *minimal loop* is the least that is
durable: open, write, fsync, rename, fsync the folder. *bare data manager* does as
little, in a transaction. Both write the lines of an entry, but check no address, and
leave files behind after a failure. On tmpfs a sync costs nothing, so its figures show
the work of the processor. The slow disks are an ext4 whose disk is in memory and
answers each flush after 1 or 5 ms. There, too, the kernel writes together what
several threads wait for.""",
    details="""
postcommit waits for the disk, as a database does. Several threads that wait at the same
moment share a write of the kernel. On a disk that takes a millisecond or more to flush,
eight threads are 3.7 times as fast as one.

Where a sync takes a quarter of a millisecond, the limit of eight threads is the
interpreter's lock, which changes hands with each call that may wait. On tmpfs, eight
threads are about half as fast as one: 0.55 for postcommit, and 0.55 for the minimal
loop, which has nothing but eight such calls. The same is true of zope.sendmail on the
ext4, because it does not sync. Eight threads reach 3,099 transactions a second
without any disk. 2.5 times the rate of one thread on this ext4 would be 2,640, while
each transaction also waits for two commits of the journal. Two processors spend 0.53
ms on a transaction of one thread, including the kernel's part. With eight threads the
lock changes hands twenty times in a transaction instead of six, and it takes 0.7 ms.

These changes were tried and did not help. The number is the speed compared with that of
the present code:

- a thread that syncs for the threads that wait: 1.0, or 0.8 if it also links for them
- a folder that stays open: 1.05
- a lock around everything except the syncs: 0.9
- three or four threads at a time: 1.0
- no hint to the disk to begin early: 1.05, but a single thread that works for half a
  millisecond between ``send()`` and commit then waits 1.18 times as long
- no search for a processor to wake: 1.04

When ext4 makes a file, it skips each file that was removed in the last minutes. All of
these changes are slower on a queue that is drained at the same time.""",
    steps="""
Measured on 2026-11-28 in one process, in turn every few dozen transactions. A file
that gets its name only in ``new`` makes the minimal loop 1.07 to 1.19 times as fast
as a file that is renamed. A hint to the disk to begin at once reduces the time of a
commit to 0.85, if an application works for half a millisecond before it.""",
    limit="minimal loop",
    scaled="threads",
    split=("file system",),
    typical={"in a transaction": 1, "threads": 1},
    across="file system",
    plots=("enqueue",),
)

_BULK = Section(
    title="How fast is a newsletter?",
    limits="""
The disk limits the transaction, as for any commit, and then the interpreter limits the
drain. *smtplib, no queue* sends within the transaction, which can no longer be aborted
then.""",
    text="""
Thousands of messages of 4 KB in one transaction, from the first ``send()`` until the
relay has the last of them.""",
    limit="smtplib, no queue",
    plots=("bulk",),
)

_LATENCY = Section(
    title="How soon is a mail sent?",
    limits="""
Two syncs, one wake-up of a thread, and three writes and replies of SMTP limit it. *one
thread* does the same without a queue.""",
    text="""
From the commit to the relay's reply, one mail at a time, on an idle queue. The
polling interval of postcommit is an hour, because the commit wakes the processor.
repoze.sendmail has no processor that runs by itself. There, the latency is the
interval of cron.""",
    main="latency",
    peer="zope.sendmail, polling every 3 s",
    limit="one thread, fsync and smtplib",
    spreads=("latency",),
    plots=("latency",),
)

_IDLE = Section(
    title="What does an idle processor cost?",
    limits="""
A poll is one wake-up, five system calls and about 0.2 ms of Python with cold caches,
however deep the queue is. **With the same interval a poll of zope.sendmail is
cheaper**: it lists two folders that are empty here.""",
    text="""
Nothing is sent, and nothing is due. All contestants are idle at the same time, each
in a process of its own, for half a minute in a round. The figures are the kernel's
account of the process, for an hour. *wake-ups* counts how often a thread went back to
sleep, so one more in half a minute is 120 in an hour. Unless another interval is
named, postcommit polls every 5 s and zope.sendmail every 3 s, which are their
defaults. At the end, each gets a mail and has to send it.

repoze.sendmail has no processor that runs by itself. There, cron starts an
interpreter each time. zope.sendmail does not defer. It tries failed mail again with
each poll, so it has nothing to compare with *10,000 deferred*.""",
    details="""
At least every ten seconds, whatever the interval is, the feeder gives the sign of
life that ``postcommit status`` looks for. zope.sendmail has neither signs of life nor
deferred entries.""",
    main="processor",
    ours="postcommit",
    plots=("idle",),
)

_MIXED = Section(
    title="What does a busy hour look like?",
    limits="""
Nothing limits it while the rate is the rate at which mails come. **The threads wait
less with zope.sendmail because it does not sync**, but its mails wait for the next
poll and for all mails before them.""",
    text="""
18,000 mails of 4 KB in a minute, as many as an application with five mails a second
sends in an hour. Eight threads enqueue them at random moments, while the processor
drains in the same process. *send and commit* is the time that the application's
thread waits. *latency* is the time from the commit to the relay's reply.""",
    main="rate",
    spreads=("send and commit", "latency"),
    plots=("mixed",),
)

_SCALE = Section(
    title="How soon does a deep queue send?",
    limits="""
Reading the folder limits it. postcommit sends while it reads and keeps no list, while
its peers read and sort the whole folder first, in each pass.""",
    text="""
The tables have the time until the first mail is sent, the rate of the first 500, and
the memory. *poll* is the processor time of one poll when all entries are deferred
(*postcommit, idle*). At the default interval there are 720 polls in an hour, and an
idle processor does nothing else.""",
    details="""
*first fifth* and *last fifth* are rates of one drain of the whole queue (*postcommit,
all of it*). It was repeated until 300,000 entries were drained, so it ran once at
that depth and beyond.""",
    main="first send",
    limit="reading the folder once",
    split=("depth",),
    across="depth",
    plots=("depth",),
)

_BROKER = Section(
    title="How fast is the hand-over to RabbitMQ?",
    limits="""
The broker limits it, because it syncs its log before it confirms, and several messages
share a sync if the sender does not wait for each of them. Large entries from a queue on
disk are limited by the disk, which the broker writes to at the same time.""",
    text="""
Persistent messages to a quorum queue of one node, on the same two processors. All
contestants wait for the confirms: postcommit up to 64 messages behind, pika and
Celery after each message. *from a queue on disk* is a processor with one mailer. It
also reads, claims and removes each entry.""",
    ours="postcommit",
    peer="pika, a confirm for each",
    split=("size",),
    across="size",
    plots=("broker",),
)

_IMPORT = Section(
    title="How long does the import take?",
    limits="""
The Zope packages limit it. **Delivery and mailer take longer than those of
zope.sendmail and repoze.sendmail** because they are more modules.""",
    text="""
The time to import the package, and the names that an application needs, without the
time of the interpreter itself.""",
    details="""
``import postcommit`` itself reads hardly anything. A name loads its module when it is
used for the first time.""",
    main="time",
    ours="delivery and mailer",
    peer="zope.sendmail, delivery and mailer",
    limit="its dependencies alone",
    plots=("import",),
)

SECTIONS = {
    "drain": _DRAIN,
    "tls": _TLS,
    "distance": _DISTANCE,
    "enqueue": _ENQUEUE,
    "bulk": _BULK,
    "latency": _LATENCY,
    "idle": _IDLE,
    "mixed": _MIXED,
    "scale": _SCALE,
    "together": together.SECTION,
    "rowenqueue": rowenqueue.SECTION,
    "rowdrain": rowdrain.SECTION,
    "rowdepth": rowdepth.SECTION,
    "rowclaims": rowclaims.SECTION,
    "broker": _BROKER,
    "import": _IMPORT,
}
