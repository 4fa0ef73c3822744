"""Small files beside an image that say what is being done to it, as lines that can be believed or not.

A line is a checksum and a JSON object, padded with spaces to whole sectors, so that appending one never rewrites a
sector of another. Each checksum covers the one before: what a power cut left behind a line that is missing does not
count, whatever is written there later. Reading stops at the first line that does not fit.

The checksum guards against power cuts, not against forgery: the files are untrusted input. Their objects are decoded
into frozen records of known fields, each with its type, range and length; a key that is unknown or repeated is refused.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

import msgspec

from vhdkit.errors import JournalError
from vhdkit.storage.process import this_user
from vhdkit.units import SECTOR, round_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vhdkit.storage.protocols import Storage

_SUM = 64
# A merge writes a line a checkpoint and one with every header that changes; anything longer is no such file.
_MAX_BYTES = 64 << 20
# The longest line says how thousands of children are relinked, 3 to 4 KiB each.
MAX_LINE_BYTES = 16 << 20
_CHUNK_BYTES = 64 << 10

_REASON_LENGTH = 200

_START = re.compile(rb"[0-9a-f]{64} \{")
# Strings, with whether each is a key, and the brackets of objects.
_TOKENS = re.compile(rb'"((?:[^"\\]|\\.)*)"[ \t\r\n]*(:)?|([{}])', re.DOTALL)
# Escapes: of a pair of surrogates, of a lone one, any other.
_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u([dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)
_LONE = re.compile(r"\0(d[89a-f][0-9a-f]{2})")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an object of a side file is decoded into.

    JSON decoders differ about lone surrogates, which stand for the bytes of file names that are no UTF-8. `decode` puts
    a NUL and four digits in their place, and they are put back here; any other NUL is refused, as is what this system
    cannot have in a name.
    """

    def __post_init__(self) -> None:
        """Put lone surrogates back.

        Raises:
            ValueError: a text has a NUL in it, or a character that no file's name can have here.

        """
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if not isinstance(value, str) or (value.isascii() and "\0" not in value):
                continue
            text = _LONE.sub(lambda found: chr(int(found[1], 16)), value)
            if "\0" in text:
                raise ValueError("a text has a NUL in it")
            text.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
            msgspec.structs.force_setattr(self, field, text)


AnyRecord = TypeVar("AnyRecord")


def decode_object(text: bytes, decoder: msgspec.json.Decoder[AnyRecord]) -> AnyRecord:
    """Return the record of one JSON object; the decoder is of a `Record`'s class, or of a union of them.

    Raises:
        ValueError: it is no object of that kind, with the reason.

    """
    if b"\\u" in text:
        text = _ESCAPES.sub(lambda found: b"\\u0000" + found[1].lower() if found[1] else found[0], text)
    try:
        record = decoder.decode(text)
        check_keys(text)
    except (ValueError, RecursionError) as error:
        # A message of msgspec has the whole of what it did not expect in it.
        raise ValueError(str(error)[:_REASON_LENGTH]) from error
    return record


def check_keys(text: bytes) -> None:
    """Refuse JSON, valid otherwise, in which an object has a key twice: readers differ about which of them counts.

    Raises:
        ValueError: naming the key.

    """
    objects: list[set[bytes]] = []
    for content, colon, bracket in _TOKENS.findall(text) if len(text) < _CHUNK_BYTES else _tokens(text):
        if bracket == b"{":
            objects.append(set())
        elif bracket:
            objects.pop()
        elif colon:
            key = json.loads(b'"%b"' % content).encode("utf-8", "surrogatepass") if b"\\" in content else content
            if key in objects[-1]:
                raise ValueError(f"the key {content.decode()!r} is there twice")
            objects[-1].add(key)


def _tokens(text: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield the tokens of a long text one by one, so that they need not be in memory together."""
    for found in _TOKENS.finditer(text):
        yield found[1] or b"", found[2] or b"", found[3] or b""


def check_relative_path(path: str) -> None:
    """Refuse what is no relative path as it is written here: names and slashes, at most its first names "..".

    Raises:
        ValueError: it is another.

    """
    names = path.split("/")
    while names and names[0] == "..":
        del names[0]
    if not names or not all(names) or {".", ".."} & {*names}:
        raise ValueError(f"{path!r} is no relative path of a file")


def encode(records: Iterable[Mapping[str, object]], previous: str = "") -> bytes:
    """Return lines; `previous` is the checksum of the last line that is there already."""
    lines = []
    for record in records:
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        previous = sha256((previous + text).encode()).hexdigest()
        line = f"{previous} {text}".encode()
        lines.append(line.ljust(round_up(len(line) + 1, SECTOR) - 1) + b"\n")
    return b"".join(lines)


@dataclass(frozen=True, slots=True)
class Line:
    """A line that fits: its JSON, where it ends in the file, and its checksum, which the next one covers."""

    text: bytes
    end: int
    checksum: str


def read_lines(storage: Storage) -> Iterator[Line]:
    """Yield a file's lines up to the first that does not fit; what lies behind it, holes say, is not loaded.

    Raises:
        JournalError: it is too long to be one of these.

    """
    size = storage.size()
    if size > _MAX_BYTES:
        raise JournalError(f"it has {size} bytes, too many for a journal; remove it if it is none", path=storage.path)
    end, previous = 0, ""
    for line in _raw_lines(storage):
        text = line[_SUM + 1 :].rstrip()
        total = sha256(previous.encode())
        total.update(text)
        if len(line) % SECTOR or line[:_SUM] != total.hexdigest().encode():
            return
        end, previous = end + len(line), total.hexdigest()
        yield Line(text, end, previous)


def _raw_lines(storage: Storage) -> Iterator[bytes]:
    """Yield what ends with a newline, begins as a line does, and is no longer than one may be."""
    chunk, held, at = bytearray(_CHUNK_BYTES), bytearray(), 0
    while count := storage.read_into(at, chunk):
        first, searched = 0, len(held)
        held += memoryview(chunk)[:count]
        at += count
        while (stop := held.find(b"\n", max(first, searched)) + 1) > 0:
            if not _START.match(held, first):
                return
            yield bytes(memoryview(held)[first:stop])
            first = stop
        del held[:first]
        if len(held) > MAX_LINE_BYTES or chunk.find(b"\0", 0, count) >= 0 or not _may_start(held):
            return


def _may_start(line: bytearray) -> bool:
    return len(line) < _SUM + 2 or _START.match(line) is not None


def is_believable(storage: Storage, image: Storage) -> bool:
    """Whether such a file may speak of the image beside it: it is the image's owner's, ours, or the system's.

    Elsewhere anybody who may put a file into the folder could have an image changed, or files removed.
    """
    return storage.owner in {0, image.owner, this_user()}
