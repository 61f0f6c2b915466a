"""What the page says of each run: text, and what its figures are compared with."""
from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field


@dataclass(frozen=True)
class Section:
    """One run on the page.

    `limits` is what limits it, `steps` what has helped so far.
    `main` is the figure that is compared, with the contestants named `peer` and
    `limit`; `ours` is what does the same as the peers, if not all of ours does. `split`
    are the parts of the case that make tables of their own, `spreads` figures of
    which the distribution is told. `scaled` is a part of the case: each contestant is
    compared with itself with one of it.
    """

    title: str
    text: str
    limits: str
    main: str = "rate"
    ours: str = ""
    peer: str = "zope.sendmail"
    limit: str = ""
    scaled: str = ""
    split: tuple[str, ...] = ()
    spreads: tuple[str, ...] = ()
    plots: tuple[str, ...] = field(default_factory=tuple)
    steps: str = ""


_STEPS = """
Processor time for a message of 4 KB, in microseconds, with one and with four
workers; all versions in turn, on 2026-11-23, 2,000 messages, medians of five.

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
   * - an envelope is read with one expression; small tuples instead of objects
     - 253
     - 435
   * - a transfer is prepared and accounted for in fewer steps, a message's id looked
       for once
     - 216
     - 386
   * - no transaction to tell nobody; as many workers as the relay keeps waiting
     - 204
     - 236
   * - one path for all mailers, an unanswered command asked for once
     - 169
     - 177
   * - entries read ahead of a quick relay, time-outs kept by the kernel, no lock
     - 151
     - 152

Of what is left, some 60 are the kernel's: 21 to send, 15 to close and 12 to unlink
the file. The rest are 190 calls in Python, cold after each system call: hot, they
take less than half."""

SECTIONS = {
    "drain": Section(
        title="Draining a queue, on loopback",
        text="""
A queue on disk, filled before, is sent to Postfix's ``smtp-sink``, which takes
everything and keeps nothing. Each worker of postcommit has a connection; the peers
have one thread, and zope.sendmail and repoze.sendmail connect anew for each message.
*smtplib* is the loop that one would write with the standard library: one
connection, no claim, no report, no log.""",
        limits="""
The interpreter. *raw sockets* is the least that Python can do: it reads a file,
writes it to a socket and counts replies. ``smtp-source`` is written in C, reads no
file and sends one message again and again, but waits for each reply, which
postcommit does not where PIPELINING is offered. More workers do not help a relay
that answers at once: they would only contend for the interpreter's lock, so
postcommit lets as many of them work as the relay keeps waiting. From 100 KB on it is
bytes that cost: line ends and dots are seen to in each message.""",
        limit="raw sockets",
        split=("size",),
        plots=("drain",),
        steps=_STEPS,
    ),
    "tls": Section(
        title="TLS",
        text="""
The same with messages of 4 KB: STARTTLS, offered by a small front, and implicit TLS,
by stunnel. postcommit and smtplib verify the certificate; zope.sendmail and
repoze.sendmail take any.""",
        limits="""
The handshake, some ten milliseconds of processor time on both sides, for who
connects anew for each message; for who does not, encryption in the relay's front,
which shares the processor with the contestants.""",
        limit="raw sockets",
        split=("tls",),
    ),
    "distance": Section(
        title="A relay far away",
        text="""
A proxy delays all bytes by half the round trip, each way. Messages of 4 KB. A worker
more brings as many messages more; those that connect for each message get fewer, for
they take a second for each.""",
        limits="""
The round trip, and nothing else. With PIPELINING, and with the envelope of a message
sent together with the end of the one before, a message costs one round trip for each
connection, which is the least that SMTP allows. Who waits for each reply pays four,
who connects anew pays seven or more. Only further connections help, up to what the
relay allows.""",
        limit="raw sockets",
        split=("round trip",),
        plots=("distance",),
    ),
    "enqueue": Section(
        title="Enqueueing",
        text="""
``send()`` and commit, messages of 4 KB. *minimal loop* is the least that is durable:
open, write, fsync, rename, fsync the folder; *bare data manager* is as little in a
transaction. They write what an entry holds, but check no address, and leave behind
whatever fails. On tmpfs a sync costs nothing, and what remains is the work of the
processor. The slow disks are an ext4 whose disk, in memory, answers each flush after 1
or 5 ms: what the kernel writes together for several threads, it writes together there,
too.""",
        limits="""
The disk: two syncs for each transaction, and what several threads wait for at once, the
kernel writes together. **On a disk that takes a millisecond or more to flush that is
all there is**: one thread is as fast as the minimal loop, and eight get 3.7 times as
far. **Where a sync takes but a quarter of a millisecond, it is the interpreter's
lock**, which threads hand over with each call that may wait. On tmpfs, where a sync
costs nothing, eight threads get half as far as one, whoever it is: 0.55 for postcommit,
and 0.55 for the minimal loop, which has nothing but eight such calls; and so does, on
the ext4, zope.sendmail, which does not sync. So much for what eight can have: 3,099 a
second with no disk at all. 2.5 times what one sends on this ext4 would be 2,640, while
each transaction also waits for two commits of the journal. Of the time that two
processors have, one thread uses 0.53 ms for a transaction, the kernel's part included;
among eight the lock changes twenty times in a transaction, not six, and it takes 0.7
ms. What was tried instead: one thread that syncs for those that wait (1.0 times as
fast; 0.8 where it links for them, too), a folder that stays open (1.05), a lock around
what is not a sync (0.9), three or four threads at a time (1.0), no hint to the disk to
begin early (1.05, but a single thread that does something for half a millisecond
between ``send()`` and commit then waits 1.18 times as long), no look for a processor to
wake (1.04). And ext4 looks past each file that was removed in the last minutes when it
makes one: on a queue that is drained meanwhile, all of these are slower.
**zope.sendmail and repoze.sendmail are faster on a disk where they are, because they do
not sync**: what they accepted in the last half minute may be gone after a power
failure, though the transaction was committed. postcommit waits for the disk, as a
database does.""",
        steps="""
In one process, in turn every few dozen transactions, on 2026-11-28: a file that gets
its name only in ``new`` makes the minimal loop 1.07 to 1.19 times as fast as one that
is renamed; that the disk is told to begin with it at once lets a commit take 0.85 of
the time, where an application does something for half a millisecond before it.""",
        limit="minimal loop",
        scaled="threads",
        split=("file system",),
        plots=("enqueue",),
    ),
    "bulk": Section(
        title="A newsletter",
        text="""
Thousands of messages of 4 KB in one transaction, from the first ``send()`` until the
relay has the last of them. *smtplib, no queue* sends them within the transaction,
which then can no longer be aborted.""",
        limits="""
First the disk, as above, then the interpreter.""",
        limit="smtplib, no queue",
    ),
    "latency": Section(
        title="From the commit to the relay's reply",
        text="""
One mail at a time, on an idle queue, the polling interval of postcommit set to an
hour: the commit wakes the processor. repoze.sendmail has no processor that runs by
itself: there it is the interval of cron.""",
        limits="""
The two syncs, one wake-up of a thread, and three writes and replies of SMTP. *one
thread* does that much without a queue between.""",
        main="latency",
        peer="zope.sendmail, polling every 3 s",
        limit="one thread, fsync and smtplib",
        spreads=("latency",),
        plots=("latency",),
    ),
    "idle": Section(
        title="Idle",
        text="""
Nothing is sent, and nothing is due. All of them are idle at the same time, each in a
process of its own, for half a minute in a round; the figures are the kernel's account
of the process, for an hour. *wake-ups* counts how often a thread went back to sleep;
one more in a half minute makes 120 in an hour. Unless another interval is named,
postcommit polls every 5 s and zope.sendmail every 3 s, their defaults. At the end each
is given a mail, and has to send it.
repoze.sendmail has no processor that runs by itself: there an interpreter is started
as often as cron says. zope.sendmail defers nothing: what failed it tries again with
each poll, so there is nothing to put beside *10,000 deferred*.""",
        limits="""
Python, which is cold after each sleep: a poll is one wake-up, five system calls, and
some two tenths of a millisecond, of the 3,600,000 ms of an hour, however deep the queue
is. Every ten seconds at least, whatever the interval, the feeder gives the sign of life
that ``postcommit status`` looks for. **With the same interval a poll of zope.sendmail
is cheaper**: it lists two folders that are empty here, and knows neither signs of life
nor deferred entries.""",
        main="processor",
        ours="postcommit",
    ),
    "mixed": Section(
        title="An hour's worth in a minute",
        text="""
18,000 mails of 4 KB in a minute, as many as an application sends in an hour that sends
five in a second; eight threads enqueue them at random moments, while the processor
drains in the same process. *send and commit* is what the application's thread waits
for; *latency* is from the commit to the relay's reply.""",
        limits="""
Nothing, as long as the rate is that at which mails come. **The threads wait less with
zope.sendmail, since it does not sync**; its mails wait for the next poll and for all
those before them.""",
        main="rate",
        spreads=("send and commit", "latency"),
        plots=("mixed",),
    ),
    "scale": Section(
        title="Deep queues",
        text="""
Of a queue with so many entries: how long until the first mail is sent, how fast
the first 500 are, and how much memory it takes. *poll* is the processor time of one
poll when all of them are deferred: *postcommit, idle*. At the default interval there
are 720 polls in an hour, and an idle processor does nothing else.""",
        limits="""
Reading the folder. postcommit sends while it reads, and keeps no list of all; its
peers read and sort the whole folder first, in each pass. *first fifth* and *last fifth*
are rates of one drain of the whole queue, *postcommit, all of it*, as often as makes
300,000 entries: once at that depth and beyond.""",
        main="first send",
        limit="reading the folder once",
        split=("depth",),
        plots=("depth",),
    ),
    "together": Section(
        title="Several processes on one queue",
        text="""
Processes that drain one queue, beside as many that have a queue each, with the same
mail in all. Messages of 4 KB go to ``smtp-sink``. A process that meets an entry which
another one has claimed goes on in another part of the folder, so that they seldom meet
again.""",
        limits="""
The number of processors: here, ``smtp-sink`` shares them with the processes.""",
        ours="one queue",
        limit="a queue each",
        split=("processes",),
    ),
    "broker": Section(
        title="Hand-over to RabbitMQ",
        text="""
Persistent messages to a quorum queue of one node, on the same two processors. All
confirms are waited for: by postcommit up to 64 behind, by pika and Celery after each
message. *from a queue on disk* is a processor with one mailer: it also reads, claims
and removes each entry.""",
        limits="""
The broker, which syncs its log before it confirms. Several messages share a sync if
they are not waited for one by one. Large entries from a queue on disk are limited by
the disk, which the broker writes to at the same time.""",
        ours="postcommit",
        peer="pika, a confirm for each",
        split=("size",),
    ),
    "import": Section(
        title="Import",
        text="""
How long it takes to import the package, and what an application needs of it; less
what the interpreter itself takes.""",
        limits="""
The Zope packages. ``import postcommit`` itself reads hardly anything; names
load their module when they are asked for. **Delivery and mailer take longer than those
of zope.sendmail and repoze.sendmail**: they are more modules.""",
        main="time",
        ours="delivery and mailer",
        peer="zope.sendmail, delivery and mailer",
        limit="its dependencies alone",
    ),
}
