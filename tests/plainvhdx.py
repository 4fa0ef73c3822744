"""VHDX files as the reference has them, byte by byte: a writer and a reader that share nothing with the package.

The reader knows nothing of windows, arrays or overlays: it replays the log into a copy and looks every sector up.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass, field, replace
from functools import lru_cache

MIB = 1 << 20
PAGE = 4096
LOG_AT, METADATA_AT, BAT_AT = MIB, 2 * MIB, 3 * MIB
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULL, PARTIAL = 0, 1, 2, 3, 6, 7

ITEMS = {
    "parameters": "CAA16737-FA36-4D43-B3B6-33F0AA44E76B",
    "size": "2FA54224-CD1B-4876-B211-5DBED83BF4B8",
    "id": "BECA12AB-B2E6-4523-93EF-C309E000C746",
    "logical": "8141BF1D-A96F-4709-BA47-F233A8FAAB5F",
    "physical": "CDA348C7-445D-4471-9CC9-E9885251C556",
    "locator": "A8D35F2D-B30B-454D-ABF7-D3D84834AB0C",
}
BAT_REGION = "2DC27766-F623-4200-9D64-115E9BFD4A08"
METADATA_REGION = "8B7CA206-4790-4B9A-B8FE-575F050F886E"
LOCATOR_TYPE = "B04AEFB7-D19E-4A81-B789-25B8E9445913"


def crc32c(raw: bytes) -> int:
    value = 0xFFFF_FFFF
    for byte in raw:
        value = CRC_TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFF_FFFF


def _shifted(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)
    return value


CRC_TABLE = [_shifted(value) for value in range(256)]


def guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


@lru_cache(maxsize=256)
def sealed(raw: bytes) -> bytes:
    """With the checksum at offset 4."""
    return raw[:4] + struct.pack("<I", crc32c(raw[:4] + bytes(4) + raw[8:])) + raw[8:]


@dataclass(kw_only=True)
class Disk:
    """A disk to write: blocks by index are (state, sectors by number in the block, or all of them as bytes)."""

    size: int
    block_size: int = MIB
    sector: int = 512
    data_id: bytes = bytes(range(16))
    texts: dict[str, str] | None = None
    blocks: dict[int, tuple[int, dict[int, bytes] | bytes]] = field(default_factory=dict)
    is_fixed: bool = False
    log_guid: bytes = bytes(16)
    log: bytes = b""
    sequence: int = 7

    @property
    def ratio(self) -> int:
        return (1 << 23) * self.sector // self.block_size


def linked(data_id: bytes, *, relative: str = "", other: bytes | None = None, absolute: str = "") -> dict[str, str]:
    texts = {"parent_linkage": "{" + str(uuid.UUID(bytes_le=data_id)) + "}"}
    if relative:
        texts["relative_path"] = relative
    if absolute:
        texts["absolute_win32_path"] = absolute
    if other is not None:
        texts["parent_linkage2"] = "{" + str(uuid.UUID(bytes_le=other)).upper() + "}"
    return texts


def locator(texts: dict[str, str]) -> bytes:
    at = 20 + 12 * len(texts)
    entries, rest = b"", b""
    for key, value in texts.items():
        raw_key, raw_value = key.encode("utf-16-le"), value.encode("utf-16-le")
        entries += struct.pack("<IIHH", at, at + len(raw_key), len(raw_key), len(raw_value))
        rest += raw_key + raw_value
        at += len(raw_key) + len(raw_value)
    return guid(LOCATOR_TYPE) + struct.pack("<HH", 0, len(texts)) + entries + rest


def header(disk: Disk, sequence: int) -> bytes:
    raw = b"head" + bytes(4) + struct.pack("<Q", sequence) + b"F" + disk.data_id[1:] + disk.data_id + disk.log_guid
    raw += struct.pack("<HHIQ", 0, 1, MIB, LOG_AT)
    return sealed(raw.ljust(PAGE, b"\0"))


def region_table(regions: list[tuple[str, int, int, int]]) -> bytes:
    raw = b"regi" + bytes(4) + struct.pack("<II", len(regions), 0)
    for name, at, length, flags in regions:
        raw += guid(name) + struct.pack("<QII", at, length, flags)
    return sealed(raw.ljust(1 << 16, b"\0"))


def metadata(disk: Disk) -> bytes:
    flags = disk.is_fixed | (disk.texts is not None) << 1
    items = [
        ("parameters", 4, struct.pack("<II", disk.block_size, flags)),
        ("size", 6, struct.pack("<Q", disk.size)),
        ("logical", 6, struct.pack("<I", disk.sector)),
        ("physical", 6, struct.pack("<I", 4096)),
        ("id", 6, b"page 83 identity"),
    ]
    if disk.texts is not None:
        items.append(("locator", 4, locator(disk.texts)))
    table, rest = b"metadata" + struct.pack("<HH20x", 0, len(items)), b""
    for name, item_flags, content in items:
        table += guid(ITEMS[name]) + struct.pack("<IIII", (1 << 16) + len(rest), len(content), item_flags, 0)
        rest += content
    return table.ljust(1 << 16, b"\0") + rest


def write(disk: Disk) -> bytes:
    """The file: log at 1 MiB, metadata at 2, BAT at 3, then bitmap blocks and blocks as they come."""
    count = -(-disk.size // disk.block_size)
    chunks = -(-count // disk.ratio)
    entries = chunks * (disk.ratio + 1) if disk.texts is not None else count + (count - 1) // disk.ratio
    bat_bytes = -(-entries * 8 // MIB) * MIB
    out = bytearray(BAT_AT + bat_bytes)
    table = [0] * entries
    bitmaps: dict[int, int] = {}
    per_block = disk.block_size // disk.sector
    for number, (state, content) in sorted(disk.blocks.items()):
        entry = number + number // disk.ratio
        table[entry] = state
        if state < FULL:
            continue
        chunk = number // disk.ratio
        if state == PARTIAL and chunk not in bitmaps:
            bitmaps[chunk] = len(out)
            table[chunk * (disk.ratio + 1) + disk.ratio] = len(out) | FULL
            out += bytes(MIB)
        at = len(out)
        table[entry] |= at
        out += bytes(disk.block_size)
        if isinstance(content, bytes):
            out[at : at + len(content)] = content
            continue
        for sector, data in content.items():
            out[at + sector * disk.sector : at + (sector + 1) * disk.sector] = data
            if state == PARTIAL:
                bit = number % disk.ratio * per_block + sector
                out[bitmaps[chunk] + bit // 8] |= 1 << bit % 8
    out[BAT_AT : BAT_AT + 8 * entries] = struct.pack(f"<{entries}Q", *table)
    regions = [(BAT_REGION, BAT_AT, bat_bytes, 1), (METADATA_REGION, METADATA_AT, MIB, 1)]
    parts = [
        (0, b"vhdxfile" + "oracle".encode("utf-16-le")),
        (64 << 10, header(disk, disk.sequence)),
        (128 << 10, header(disk, disk.sequence + 1)),
        (192 << 10, region_table(regions)),
        (256 << 10, region_table(regions)),
        (LOG_AT, disk.log),
        (METADATA_AT, metadata(disk)),
    ]
    for at, raw in parts:
        out[at : at + len(raw)] = raw
    return bytes(out)


def log_entry(
    log_guid: bytes,
    sequence: int,
    tail: int,
    changes: list[tuple[int, bytes | int]],
    *,
    flushed: int = 0,
    last: int = 0,
) -> bytes:
    """An entry: changes are (file offset, a page), or (file offset, how many zeros)."""
    descriptors, pages = b"", b""
    for at, change in changes:
        if isinstance(change, int):
            descriptors += b"zero" + struct.pack("<IQQQ", 0, change, at, sequence)
        else:
            descriptors += b"desc" + change[-4:] + change[:8] + struct.pack("<QQ", at, sequence)
            pages += b"data" + struct.pack("<I", sequence >> 32) + change[8:-4]
            pages += struct.pack("<I", sequence & 0xFFFF_FFFF)
    front = -(-(len(changes) + 2) // 128) * PAGE
    raw = b"loge" + struct.pack("<IIIQII", 0, front + len(pages), tail, sequence, len(changes), 0) + log_guid
    raw += struct.pack("<QQ", flushed, last) + descriptors
    return sealed(raw.ljust(front, b"\0") + pages)


def left_dirty(disk: Disk, places: list[int], stale: bytes = bytes(PAGE)) -> bytes:
    """The file as a power cut leaves it: what its pages at `places` should be is in its log, and they are stale."""
    clean = write(disk)
    log_guid = b"left dirty 16 by"
    log = log_entry(log_guid, 77, 0, [(at, clean[at : at + PAGE]) for at in places], flushed=len(clean))
    out = bytearray(write(replace(disk, log_guid=log_guid, log=log)))
    for at in places:
        out[at : at + PAGE] = stale
    return bytes(out)


def read(files: list[bytes], most: int = 1 << 62) -> bytes:
    """What a chain shows, leaf first; each is as long as it says, and what lies behind a layer's end is zeros.

    Of a disk of more than `most` bytes so many are read.
    """
    below = read(files[1:], most) if len(files) > 1 else b""
    raw = replayed(files[0])
    regions = _regions(raw)
    items = _items(raw, regions[guid(METADATA_REGION)])
    block_size, flags = struct.unpack("<II", items["parameters"])
    size = min(most, struct.unpack("<Q", items["size"])[0])
    (sector,) = struct.unpack("<I", items["logical"])
    ratio, bat = (1 << 23) * sector // block_size, regions[guid(BAT_REGION)]
    out = bytearray(size)
    out[: min(size, len(below))] = below[:size]
    for number in range(-(-size // block_size)):
        entry = _entry(raw, bat, number + number // ratio)
        state, at = entry & 7, entry >> 20 << 20
        start, stop = number * block_size, min(size, (number + 1) * block_size)
        if state in {UNDEFINED, ZERO, UNMAPPED} or (state == NOT_PRESENT and not flags & 2):
            out[start:stop] = bytes(stop - start)
        elif state == FULL:
            out[start:stop] = raw[at : at + stop - start]
        elif state == PARTIAL:
            bitmap = _entry(raw, bat, number // ratio * (ratio + 1) + ratio) >> 20 << 20
            for index in range((stop - start) // sector):
                bit = number % ratio * (block_size // sector) + index
                if raw[bitmap + bit // 8] >> bit % 8 & 1:
                    place = index * sector
                    out[start + place : start + place + sector] = raw[at + place : at + place + sector]
    return bytes(out)


def _entry(raw: bytes, bat: int, index: int) -> int:
    return int.from_bytes(raw[bat + 8 * index : bat + 8 * index + 8], "little")


def _current(raw: bytes) -> bytes:
    found = [raw[at : at + PAGE] for at in (64 << 10, 128 << 10)]
    valid = [each for each in found if each[:4] == b"head" and sealed(each) == each]
    return max(valid, key=lambda each: int.from_bytes(each[8:16], "little"))


def _regions(raw: bytes) -> dict[bytes, int]:
    at = 192 << 10
    one, other = raw[at : at + 65536], raw[at + 65536 : at + 131072]
    # Summing 64 KiB here takes long: only where the copies differ.
    if one != other and (sealed(one) != one or int.from_bytes(one[8:12], "little") > 2047):
        at = 256 << 10
    count = int.from_bytes(raw[at + 8 : at + 12], "little")
    assert count <= 2047
    entries = [raw[at + 16 + 32 * n : at + 48 + 32 * n] for n in range(count)]
    return {entry[:16]: int.from_bytes(entry[16:24], "little") for entry in entries}


def _items(raw: bytes, at: int) -> dict[str, bytes]:
    names = {guid(text): name for name, text in ITEMS.items()}
    found = {}
    for number in range(int.from_bytes(raw[at + 10 : at + 12], "little")):
        entry = raw[at + 32 + 32 * number : at + 64 + 32 * number]
        offset, length = struct.unpack("<II", entry[16:24])
        if entry[24] & 1 or entry[:16] not in names:
            continue
        found[names[entry[:16]]] = raw[at + offset : at + offset + length]
    return found


def replayed(raw: bytes) -> bytes:
    """The file with its log replayed."""
    current = _current(raw)
    log_guid = current[48:64]
    if log_guid == bytes(16):
        return raw
    length, at = struct.unpack("<IQ", current[68:80])
    ring = raw[at : at + length] * 2
    runs = []
    for start in range(0, length, PAGE):
        run: list[tuple[int, bytes]] = []
        here = start
        while (entry := _log_entry_at(ring, here % length, log_guid, length)) and here < start + length:
            if run and _number(entry) != _number(run[-1][1]) + 1:
                break
            run.append((here % length, entry))
            here += len(entry)
        if run and _tail(run[-1][1]) in [place for place, _ in run]:
            runs.append(run)
    best = max(runs, key=lambda run: _number(run[-1][1]))
    places = [place for place, _ in best]
    out = bytearray(raw)
    for _, entry in best[places.index(_tail(best[-1][1])) :]:
        _apply(out, entry)
    last = int.from_bytes(best[-1][1][56:64], "little")
    out += bytes(max(0, last - len(out)))
    return bytes(out)


def _number(entry: bytes) -> int:
    return int.from_bytes(entry[16:24], "little")


def _tail(entry: bytes) -> int:
    return int.from_bytes(entry[12:16], "little")


def _log_entry_at(ring: bytes, at: int, log_guid: bytes, length: int) -> bytes:
    size = int.from_bytes(ring[at + 8 : at + 12], "little")
    if ring[at : at + 4] != b"loge" or ring[at + 32 : at + 48] != log_guid or not 0 < size <= length or size % PAGE:
        return b""
    entry = ring[at : at + size]
    return entry if sealed(entry) == entry else b""


def _apply(out: bytearray, entry: bytes) -> None:
    count = int.from_bytes(entry[24:28], "little")
    page_at = -(-(count + 2) // 128) * PAGE
    for number in range(count):
        at = 64 + 32 * number
        offset = int.from_bytes(entry[at + 16 : at + 24], "little")
        if entry[at : at + 4] == b"zero":
            data = bytes(int.from_bytes(entry[at + 8 : at + 16], "little"))
        else:
            page = entry[page_at : page_at + PAGE]
            data = entry[at + 8 : at + 16] + page[8:-4] + entry[at + 4 : at + 8]
            page_at += PAGE
        out += bytes(max(0, offset + len(data) - len(out)))
        out[offset : offset + len(data)] = data
