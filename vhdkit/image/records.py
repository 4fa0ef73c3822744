"""Small files beside an image that say what is being done to it, as lines that can be believed or not.

A line is a checksum and a JSON object, padded with spaces to whole sectors, so that appending one never rewrites a
sector of another. Each checksum covers the one before: what a power cut left behind a line that is missing does not
count, whatever is written there later. Reading stops at the first line that does not fit.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from vhdkit.errors import JournalError
from vhdkit.format.layout import SECTOR
from vhdkit.storage.machine import this_user

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhdkit.storage.seam import Storage

_SUM = 64
# A merge writes a line a checkpoint and one with every header that changes; anything longer is no such file.
_MAX_BYTES = 64 << 20

Record = dict[str, Any]


def encode(records: Iterable[Record], previous: str = "") -> bytes:
    """Return lines; `previous` is the checksum of the last line that is there already."""
    lines = []
    for record in records:
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        previous = sha256((previous + text).encode()).hexdigest()
        line = f"{previous} {text}".encode()
        lines.append(line.ljust(-(-(len(line) + 1) // SECTOR) * SECTOR - 1) + b"\n")
    return b"".join(lines)


def decode(raw: bytes) -> tuple[list[Record], int, str]:
    """Return the records up to the first line that does not fit, where it begins, and the last good checksum."""
    records: list[Record] = []
    end, previous = 0, ""
    for line in raw.splitlines(keepends=True):
        text = line.rstrip()[_SUM + 1 :]
        checksum = sha256(previous.encode() + text).hexdigest()
        if len(line) % SECTOR or not line.endswith(b"\n") or line[: _SUM + 1] != f"{checksum} ".encode():
            break
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        records.append(record)
        end, previous = end + len(line), checksum
    return records, end, previous


def read(storage: Storage) -> bytes:
    """Return a file's bytes.

    Raises:
        JournalError: it is too long to be one of these.

    """
    size = storage.size()
    if size > _MAX_BYTES:
        raise JournalError(f"it has {size} bytes, too many for a journal; remove it if it is none", path=storage.path)
    raw = bytearray(size)
    return bytes(raw[: storage.read_into(0, raw)])


def is_believable(storage: Storage, image: Storage) -> bool:
    """Whether such a file may speak of the image beside it: it is the image's owner's, ours, or the system's.

    Elsewhere anybody who may put a file into the folder could have an image changed, or files removed.
    """
    return storage.owner in {0, image.owner, this_user()}
