"""Puts mail into a queue on disk, durably.

Beside the least that is durable, in Python (open, write, fsync, rename, fsync the
folder), alone and in a data manager, which are the limits, and beside zope.sendmail and
repoze.sendmail, which do not sync. ``python -m tests.benchmarks.enqueue --help``.
"""
from __future__ import annotations

import argparse
import fcntl
import os
import struct
import sys
import tempfile
from dataclasses import dataclass

from tests.benchmarks.harness import LIMIT
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.harness import versions
from tests.benchmarks.machine import file_system
from tests.benchmarks.slowdisk import slow_disk
from tests.benchmarks.slowdisk import why_not


NAMES = {
    "postcommit": ("postcommit", OURS),
    "zope": ("zope.sendmail", PEER),
    "repoze": ("repoze.sendmail", PEER),
    "minimal": ("minimal loop", LIMIT),
    "bare": ("bare data manager", LIMIT),
}

# FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_TOPDIR_FL of <linux/fs.h>.
_GET_FLAGS, _SET_FLAGS, _TOP = 0x80086601, 0x40086602, 0x00020000


@dataclass(frozen=True)
class Place:
    """Where queues are made, and how many messages each contestant puts there."""

    name: str
    folder: str
    count: int


def parser() -> argparse.ArgumentParser:
    # Few messages and many rounds: the speed of a disk drifts within seconds.
    made = common_options(__doc__, rounds=12)
    made.add_argument("--count", type=int, default=600, help="messages")
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    made.add_argument("--batch", type=int, default=600, help="in one transaction")
    made.add_argument(
        "--folders",
        nargs="*",
        default=[".", "/dev/shm"],
        help="one on each file system to measure",
    )
    made.add_argument(
        "--flush",
        type=float,
        nargs="*",
        default=[1.0, 5.0],
        metavar="MS",
        help="and disks that take so long for a flush, with a tenth of the messages",
    )
    return made


def run(options: argparse.Namespace) -> list[Result]:
    """Each place by itself; threads and batches interleaved."""
    results: list[Result] = []
    for folder in options.folders:
        place = Place(file_system(folder), folder, options.count)
        results += _compare(place, options)
    for milliseconds in options.flush:
        if reason := why_not():
            print(f"enqueue: {reason}", file=sys.stderr)
            break
        with slow_disk(milliseconds / 1000) as disk:
            name = f"{file_system(str(disk))}, a flush takes {milliseconds:g} ms"
            place = Place(name, str(disk), options.count // 10)
            results += _compare(place, options)
    return results


def _compare(place: Place, options: argparse.Namespace) -> list[Result]:
    count, batch, threads = place.count, options.batch, options.threads
    if options.quick:
        threads = [max(threads)]
        count, batch = 2 * threads[0], 2
    rounds = 1 if options.quick else options.rounds
    shapes = [(number, 1) for number in threads] + [(1, min(batch, count))]
    # Nothing is removed before all have had their turns, see `_spread`.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=place.folder) as folder:
        _spread(folder)
        contestants = [
            _contestant(kind, Place(place.name, folder, count), number, size)
            for number, size in shapes
            for kind in NAMES
            if size == 1 or kind != "bare"
        ]
        contestants = versions(contestants, options.against)
        return interleave("enqueue", contestants, rounds)


def _spread(folder: str) -> None:
    """Let ext4 put each folder below `folder` somewhere else on the disk.

    Whenever it makes a file, it looks past each that was removed near by in the last
    minutes: so what others have removed before would slow all contestants down.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        [flags] = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)))
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", flags | _TOP))
    except OSError:
        pass  # another file system, which does not do so
    finally:
        os.close(descriptor)


def _contestant(kind: str, place: Place, threads: int, batch: int) -> Contestant:
    command = [sys.executable, "-m", "tests.benchmarks.enqueuers", kind]
    command += ["--folder", place.folder, "--count", str(place.count)]
    command += ["--threads", str(threads), "--batch", str(batch)]
    name, what = NAMES[kind]
    case: dict[str, float | str] = {"file system": place.name}
    case |= {"in a transaction": batch, "threads": threads}

    def prepare() -> list[str]:
        # What the peers do not sync would be written half a minute later, while
        # others are measured: as a round takes as long, always the same ones.
        os.sync()
        return command

    return Contestant(name, prepare, what, case)


if __name__ == "__main__":
    program(parser(), run)
