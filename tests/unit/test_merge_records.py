"""What a journal's record may hold: known fields once each, in their ranges; anything else is one clear error."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.cutting import JOURNAL
from tests.forging import dumps, forgeries
from tests.keeping import keep
from tests.through import ThroughStorage
from tests.unit.test_merge_journal import BEGIN, FILE, MERGED, SEEN
from vhdkit.journal import records
from vhdkit.journal.journal_writer import JournalWriter
from vhdkit.journal.merge_journal import Journal, UnbegunJournal, find_journal
from vhdkit.journal.merge_records import Begin, decode_record
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Storage

PATCH = {"offset": 512, "b": "AAAA", "a": "AAAB"}
RELINKED: dict[str, Any] = MERGED | {
    "relinks": [
        {
            "path": "../vms/child.avhd",
            "patches": [PATCH, {"offset": 512, "b": "A" * 1366 + "==", "a": "A" * 1366 + "=="}],
        }
    ]
}
GROWTH = {
    "old_count": 4,
    "entry_count": 700,
    "table_end": 4608,
    "end": 8192,
    "blocks": [0, 2],
    "batmap_bytes": 1024,
    "locator_offsets": {"0": 4608, "7": 5120},
    "batmap": "ab" * 512,
}
KINDS: list[dict[str, Any]] = [
    BEGIN
    | {"growth": GROWTH, "moved": 2, "below": [FILE], "undo": "../u.vhd", "undo_id": "dd" * 16, "view": "ee" * 32},
    {"kind": "reserved"},
    {"kind": "saved", "offset": 512, "held": 7, "undo": SEEN},
    {"kind": "mark", "offset": 1024, "bytes": 300, "mtime": 7.5},
    RELINKED,
    {"kind": "verified", "sources": [FILE | {"seen": SEEN}], "seen": SEEN},
    {"kind": "names", "sources": ["new.avhd", "middle.avhd"], "undo": ""},
    {"kind": "doubted", "reason": "put back"},
    {"kind": "dropping", "keep_file": True},
    {"kind": "stopped", "reason": "cancelled", "destination": [9, 1.5]},
]


def line(text: str, previous: str = "") -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    total = sha256(previous.encode() + raw).hexdigest().encode()
    whole = total + b" " + raw
    return whole.ljust(-(-(len(whole) + 1) // 512) * 512 - 1) + b"\n"


def found(*texts: str) -> Journal | UnbegunJournal:
    raw, previous = b"", ""
    for text in texts:
        raw += line(text, previous)
        previous = raw[-len(line(text, previous)) :][:64].decode()
    folder = MemoryFolder({"/vms/base.vhd": b"", "/vms/base.vhd" + JOURNAL: raw})
    journal = find_journal(folder, "/vms/base.vhd")
    assert journal is not None
    return journal


def said(*texts: str) -> Journal:
    journal = found(*texts)
    assert isinstance(journal, Journal)
    return journal


def refusal(*texts: str) -> vhdkit.JournalError | None:
    try:
        found(*texts).say()
    except vhdkit.JournalError as error:
        return error
    return None


@pytest.mark.parametrize("record", KINDS, ids=[record["kind"] for record in KINDS])
def test_each_record_is_read_as_it_was_written(record: dict[str, Any]) -> None:
    decode_record(dumps(record).encode())
    said(dumps(BEGIN), dumps(record))


@pytest.mark.parametrize("record", KINDS, ids=[record["kind"] for record in KINDS])
def test_every_forged_field_is_read_or_is_a_journal_error(record: dict[str, Any]) -> None:
    count = refused = 0
    for forgery in forgeries(record):
        count += 1
        error = refusal(*([] if record["kind"] == "begin" else [dumps(BEGIN)]), forgery.text)
        if error is not None:
            refused += 1
            assert error.path == "/vms/base.vhd" + JOURNAL, forgery
            assert len(str(error)) < 1000, forgery
    assert refused > count // 2


@pytest.mark.parametrize("value", ["1" + "0" * 400, "NaN", "Infinity", "1e400", "-1", "1e300"])
def test_a_number_that_no_clock_shows_is_a_journal_error(value: str) -> None:
    text = dumps(BEGIN)
    assert '"started":1.5' in text
    with pytest.raises(vhdkit.JournalError, match="no journal as they are written here"):
        said(text.replace('"started":1.5', f'"started":{value}'))


@pytest.mark.parametrize("twice", ['"job":"x",', '"\\u006aob":"x",'])
def test_a_key_that_is_there_twice_is_a_journal_error(twice: str) -> None:
    with pytest.raises(vhdkit.JournalError, match="twice"):
        said(dumps(BEGIN).replace("{", "{" + twice, 1))


def test_a_version_that_is_not_known_is_named_with_the_way_out() -> None:
    with pytest.raises(vhdkit.JournalError, match=r"of version 2.*finish its merge with the vhdkit that began it"):
        said(dumps(BEGIN | {"version": 2, "more": 1}))


@pytest.mark.parametrize("path", ["/abs.vhd", "", ".", "..", "a/../b.vhd", "../..", "a//b", "a/", "./a", "x\0y"])
def test_a_path_that_no_journal_would_have_is_a_journal_error(path: str) -> None:
    with pytest.raises(vhdkit.JournalError):
        said(dumps(BEGIN | {"destination": FILE | {"path": path}}))
    with pytest.raises(vhdkit.JournalError):
        said(dumps(BEGIN), dumps(RELINKED | {"relinks": [RELINKED["relinks"][0] | {"path": path}]}))
    if path:
        with pytest.raises(vhdkit.JournalError):
            said(dumps(BEGIN | {"undo": path, "undo_id": "dd" * 16}))


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
@pytest.mark.parametrize("field", ["destination", "sources"])
def test_an_image_that_is_merged_without_an_id_is_a_journal_error(field: str) -> None:
    nameless = FILE | {"unique_id": ""}
    with pytest.raises(ValueError, match="an image that is merged has an id"):
        decode_record(dumps(BEGIN | {field: [nameless] if field == "sources" else nameless}).encode())


@pytest.mark.parametrize("moved", [1, 3, 1 << 32])
@pytest.mark.parametrize("growth", [None, GROWTH])
def test_as_many_blocks_make_way_as_are_listed(moved: int, growth: dict[str, Any] | None) -> None:
    """Numbers of these blocks are made as an array: 2^32 of them would take 32 GiB."""
    with pytest.raises(ValueError, match="not as many as it says"):
        decode_record(dumps(BEGIN | {"growth": growth, "moved": moved}).encode())


def test_a_raw_file_below_has_no_id() -> None:
    assert decode_record(dumps(BEGIN | {"below": [FILE | {"unique_id": ""}]}).encode())


def test_a_name_that_is_no_utf_8_comes_back_as_it_was() -> None:
    name = os.fsdecode(b"base\xff\x80 \xc3\xa4.vhd")
    begin = said(dumps(BEGIN | {"destination": FILE | {"path": name}})).begin
    assert begin is not None
    assert begin.destination.path == name
    again = decode_record(dumps(BEGIN | {"sources": [FILE | {"path": "\U0001f600\udc80\\udc80"}]}).encode())
    assert isinstance(again, Begin)
    assert again.sources[0].path == "\U0001f600\udc80\\udc80"
    with pytest.raises(vhdkit.JournalError):
        said(dumps(BEGIN | {"destination": FILE | {"path": "\ud800"}}))


def test_what_could_not_be_read_again_is_not_written() -> None:
    folder = MemoryFolder({"/b": b""})
    writer = JournalWriter.create(folder, "/b")
    with pytest.raises(ValueError, match="required field"):
        writer.write("begin", version=1)
    assert bytes(folder["/b" + JOURNAL].content) == b""
    writer.close()


# The reader takes what a file deserves


SIDE_FILES = [".vhdkit-journal", ".vhdkit-header"]
MEASURED = """
import re, sys, time
import vhdkit
def peak():
    # That of getrusage is the parent's, if it had more when it forked.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
with vhdkit.open_chain(sys.argv[1]) as chain:
    chain.read(0, 512)
vhdkit.check(sys.argv[1], chain=True)
print(peak(), time.process_time())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells of it")
@pytest.mark.parametrize("suffix", SIDE_FILES)
@pytest.mark.parametrize("start", [b"", b"a" * 64 + b' {"kind":"begin"'], ids=["a hole", "a line that begins"])
def test_a_sparse_side_file_costs_no_memory(tmp_path: Path, suffix: str, start: bytes) -> None:
    base = tmp_path / "base.vhd"
    vhdkit.create_image(str(base), size=1 << 20)
    with Path(str(base) + suffix).open("wb") as file:
        file.write(start)
        file.truncate(64 << 20)
    run = subprocess.run([sys.executable, "-c", MEASURED, str(base)], check=True, capture_output=True, text=True)
    peak_mib, seconds = map(float, run.stdout.split())
    assert peak_mib < 150
    assert seconds < 2


class CountingStorage(ThroughStorage):
    """Counts the bytes that are asked for."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.asked = 0

    def read_into(self, offset: int, buffer: Buffer) -> int:
        self.asked += memoryview(buffer).nbytes
        return super().read_into(offset, buffer)


def test_of_a_hole_no_more_than_its_beginning_is_read() -> None:
    storage = keep(CountingStorage(MemoryFolder({"/j": records.encode([BEGIN]) + bytes(32 << 20)}).open("/j")))
    assert len(list(records.read_lines(storage))) == 1
    assert storage.asked <= 128 << 10


def test_a_longer_line_than_any_writer_makes_is_none() -> None:
    storage = keep(MemoryFolder({"/j": line(dumps(BEGIN | {"host": "x" * (17 << 20)}))}).open("/j"))
    assert list(records.read_lines(storage)) == []
