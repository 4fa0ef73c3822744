"""Which file systems are mounted where, as Linux says it; other systems say nothing, and mounts are told by device."""

from __future__ import annotations

import os
import re
from contextlib import suppress

# What the kernel makes up as it is read: it holds no images, and reading some of it does something.
_MADE_UP = frozenset(
    (
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    )
)
# Where another machine, or another program, has to answer: a call may wait for it for ever.
_ANSWERED_ELSEWHERE = re.compile(r"nfs4?|cifs|smb3?|smbfs|9p|ceph|afs|gfs2?|ocfs2|glusterfs|lustre|beegfs|fuse(\..*)?")
# What names its server, so that two machines that mount the same call it the same.
_LENT = re.compile(r"nfs4?|cifs|smb3?|ceph|glusterfs|lustre|fuse\.(sshfs|glusterfs|cephfs)")
_AUTOMOUNTER = "autofs"
_OCTAL = re.compile(r"\\([0-7]{3})")


def mount_types() -> dict[str, str]:
    """Return the type of the file system at each mount point, empty where that cannot be had."""
    return {place: kind for place, kind, _ in _mounted()}


def shared_source(mount: str) -> str:
    """Return what a server lends that is mounted at a point, such as "nas:/vms"; "" for a disk of this machine."""
    # Of several mounts at one place the last one is seen.
    found = [(kind, source) for place, kind, source in _mounted() if place == mount]
    return found[-1][1] if found and _LENT.fullmatch(found[-1][0]) else ""


def _mounted() -> list[tuple[str, str, str]]:
    """Return place, type and source of each mount."""
    found = []
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields, _, rest = line.partition(" - ")
            kind, source, *_ = rest.split(" ")
            found.append((_unescaped(fields.split(" ")[4]), kind, _unescaped(source)))
    return found


def _unescaped(text: str) -> str:
    r"""Return a mount point as a path.

    >>> _unescaped(r"/mnt/my\040disks")
    '/mnt/my disks'
    """
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def mount_point(path: str) -> tuple[int, str]:
    """Return the number of the file system that a file or folder lies on, and the folder where that is mounted.

    Raises:
        OSError: the path leads to nothing.

    """
    here = os.path.realpath(path)
    device = os.stat(here).st_dev
    while (above := os.path.dirname(here)) != here and os.stat(above).st_dev == device:
        here = above
    return device, here


def is_made_up(kind: str) -> bool:
    """Whether a file system of a type can hold no images."""
    return kind in _MADE_UP


def may_hang(kind: str) -> bool:
    """Whether a call to a file system of a type can wait for another machine, or for another program."""
    return _ANSWERED_ELSEWHERE.fullmatch(kind) is not None


def is_automounter(kind: str) -> bool:
    """Whether looking into a file system of a type would mount others."""
    return kind == _AUTOMOUNTER
