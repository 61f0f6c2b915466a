"""The file system that a queue is on: where it is mounted, and what follows from that.

Read from ``/proc/self/mountinfo``, see ``proc_pid_mountinfo(5)``. A system without that
file says nothing.
"""
from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import NamedTuple


_MOUNTS = "/proc/self/mountinfo"

# Beginnings of the types of file systems whose files are elsewhere, and their names.
_REMOTE = {
    "nfs": "NFS",
    "cifs": "CIFS",
    "smb": "CIFS",
    "9p": "9p",
    "fuse": "FUSE",
    "virtiofs": "FUSE",
}

# A character that mountinfo writes as a number.
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A mounted file system: the folder where it is, and its type."""

    point: str
    type: str


def mount_of(path: str) -> Mount | None:
    """Return the mount that the folder `path` is on, None if it is not known.

    By its path. The device of a folder is not that of its mount on btrfs, for example.
    """
    real = os.path.realpath(path)
    found = None
    with suppress(OSError), open(_MOUNTS, errors="surrogateescape") as lines:
        for line in lines:
            about, _, rest = line.partition(" - ")
            point = _ESCAPED.sub(lambda m: chr(int(m[1], 8)), about.split()[4])
            # Of two at one place, the later one covers the other.
            is_above = f"{real}/".startswith(f"{point.rstrip('/')}/")
            if is_above and (found is None or len(point) >= len(found.point)):
                found = Mount(point, rest.split()[0])
    return found


def remoteness(path: str) -> str:
    """Say that the queue at `path` is not on a local disk, '' if it is."""
    mount = mount_of(path)
    for beginning, name in _REMOTE.items():
        if mount is not None and mount.type.startswith(beginning):
            return f"is on {name} ({mount.type}, mounted at {mount.point})"
    return ""


#: What follows from `remoteness`.
REMOTE_ADVICE = (
    "a local disk is safer: here, locks and durability depend on another program, and"
    " a commit on another machine does not wake the processor"
)


def is_read_only(path: str) -> bool:
    """Return whether the folder `path` is on a file system mounted read-only."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
