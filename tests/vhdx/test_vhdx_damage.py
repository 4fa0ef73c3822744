"""Whatever bytes of a VHDX's structures are changed: it reads, or it is refused, and nothing else comes of it."""

from __future__ import annotations

from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import plainvhdx
from tests.plainvhdx import BAT_AT, FULL, METADATA_AT, PAGE, PARTIAL, ZERO, Disk, linked, log_entry
from vhdkit.chain.chain import open_chain
from vhdkit.errors import VhdError
from vhdkit.formats import examine, read_summary
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhdx import checksum

MIB: Final = 1 << 20
GUID: Final = b"L" * 16
BASE: Final = plainvhdx.write(Disk(size=3 * MIB, data_id=b"a" * 16, blocks={1: (FULL, b"\x77" * MIB)}))
TABLE: Final = plainvhdx.write(
    Disk(
        size=3 * MIB,
        data_id=b"b" * 16,
        texts=linked(b"a" * 16, relative="base.vhdx"),
        blocks={0: (PARTIAL, {9: b"\x99" * 512}), 2: (ZERO, b"")},
    )
)
LOGGED: Final = plainvhdx.write(
    Disk(
        size=3 * MIB,
        data_id=b"b" * 16,
        texts=linked(b"a" * 16, relative="base.vhdx"),
        log_guid=GUID,
        log=log_entry(GUID, 7, 0, [(BAT_AT, TABLE[BAT_AT : BAT_AT + PAGE]), (BAT_AT + PAGE, PAGE)], last=7 * MIB),
        blocks={0: (PARTIAL, {9: b"\x99" * 512}), 2: (ZERO, b"")},
    )
)
# Where a structure lies, how many bytes of it say something, and how many its checksum is over (0 without one).
PLACES: Final = (
    (64 << 10, 80, 4096),
    (128 << 10, 80, 4096),
    (192 << 10, 96, 65536),
    (256 << 10, 96, 65536),
    (MIB, 200, 2 * PAGE),
    (METADATA_AT, 240, 0),
    (METADATA_AT + 65536, 240, 0),
    (BAT_AT, 32, 0),
    (BAT_AT + 8 * 4096, 8, 0),
)
CHANGE: Final = st.tuples(
    st.sampled_from(PLACES), st.integers(0, 240), st.binary(min_size=1, max_size=8), st.booleans()
)


@settings(max_examples=40, deadline=None)
@given(
    original=st.sampled_from([TABLE, LOGGED]),
    changes=st.lists(CHANGE, min_size=1, max_size=3),
    length=st.one_of(st.none(), st.integers(0, len(LOGGED))),
)
def test_a_damaged_file_reads_or_is_refused(
    original: bytes, changes: list[tuple[tuple[int, int, int], int, bytes, bool]], length: int | None
) -> None:
    raw = bytearray(original)
    for (at, used, summed), offset, data, is_sealed in changes:
        place = at + offset % used
        raw[place : place + len(data)] = data
        if summed and is_sealed:
            raw[at : at + summed] = checksum.sealed(bytes(raw[at : at + summed]))
    content = bytes(raw[:length])
    folder = MemoryFolder({"/vms/d.avhdx": content, "/vms/base.vhdx": BASE})
    with folder.open("/vms/d.avhdx") as storage:
        examine(folder, storage)
        for verify in (True, False):
            try:
                read_summary(folder, storage, verify=verify)
            except VhdError:
                continue
    try:
        with open_chain("/vms/d.avhdx", folder=folder) as chain:
            for at in {0, MIB, 2 * MIB, max(0, chain.size - 512)}:
                chain.read(at, 4096)
            assert chain.leaf.is_empty() in {True, False}
            chain.leaf.checksums()
    except VhdError:
        pass
    assert folder["/vms/d.avhdx"].content == content
