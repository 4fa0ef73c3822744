"""Where every field of the format's records lies. The only module of the VHDX format that imports construct.

All numbers are little-endian. Reserved areas are plain bytes and flags plain integers, so that every record comes out
byte for byte as it went in.

**Source**: docs/reference/vhdx.md 1.2 to 1.7, 1.11.
"""

from __future__ import annotations

from typing import Any

import construct as c

from vhdkit.vhdx.constants import HEADER_FIELDS_SIZE, HEADER_SIZE, IDENTIFIER_SIZE

IDENTIFIER = c.Struct("signature" / c.Bytes(8), "creator_bytes" / c.Bytes(IDENTIFIER_SIZE - 8))

HEADER = c.Struct(
    "signature" / c.Bytes(4),
    "checksum" / c.Int32ul,
    "sequence_number" / c.Int64ul,
    "file_write_guid" / c.Bytes(16),
    "data_write_guid" / c.Bytes(16),
    "log_guid" / c.Bytes(16),
    "log_version" / c.Int16ul,
    "version" / c.Int16ul,
    "log_length" / c.Int32ul,
    "log_offset" / c.Int64ul,
    "reserved" / c.Bytes(HEADER_SIZE - HEADER_FIELDS_SIZE),
)

_REGION = c.Struct("guid" / c.Bytes(16), "file_offset" / c.Int64ul, "length" / c.Int32ul, "flags" / c.Int32ul)

REGION_TABLE = c.Struct(
    "signature" / c.Bytes(4),
    "checksum" / c.Int32ul,
    "entry_count" / c.Int32ul,
    "reserved" / c.Int32ul,
    "entries" / c.Array(c.this.entry_count, _REGION),
    "rest" / c.GreedyBytes,
)

_METADATA_ENTRY = c.Struct(
    "item_id" / c.Bytes(16),
    "offset" / c.Int32ul,
    "length" / c.Int32ul,
    "flags" / c.Int32ul,
    "reserved" / c.Int32ul,
)

METADATA_TABLE = c.Struct(
    "signature" / c.Bytes(8),
    "reserved" / c.Bytes(2),
    "entry_count" / c.Int16ul,
    "reserved_tail" / c.Bytes(20),
    "entries" / c.Array(c.this.entry_count, _METADATA_ENTRY),
    "rest" / c.GreedyBytes,
)

FILE_PARAMETERS = c.Struct("block_size" / c.Int32ul, "flags" / c.Int32ul)

_LOCATOR_ENTRY = c.Struct(
    "key_offset" / c.Int32ul,
    "value_offset" / c.Int32ul,
    "key_length" / c.Int16ul,
    "value_length" / c.Int16ul,
)

LOCATOR = c.Struct(
    "locator_type" / c.Bytes(16),
    "reserved" / c.Int16ul,
    "entry_count" / c.Int16ul,
    "entries" / c.Array(c.this.entry_count, _LOCATOR_ENTRY),
    "rest" / c.GreedyBytes,
)

LOG_ENTRY = c.Struct(
    "signature" / c.Bytes(4),
    "checksum" / c.Int32ul,
    "entry_length" / c.Int32ul,
    "tail" / c.Int32ul,
    "sequence_number" / c.Int64ul,
    "descriptor_count" / c.Int32ul,
    "reserved" / c.Int32ul,
    "log_guid" / c.Bytes(16),
    "flushed_file_offset" / c.Int64ul,
    "last_file_offset" / c.Int64ul,
)

LOG_DESCRIPTOR = c.Struct(
    "signature" / c.Bytes(4),
    "trailing" / c.Bytes(4),
    "leading" / c.Bytes(8),
    "file_offset" / c.Int64ul,
    "sequence_number" / c.Int64ul,
)


def parse_record(record: c.Struct, raw: bytes) -> dict[str, Any]:
    """Return the fields of a record by name, and those of its entries likewise."""
    return _plain(record.parse(raw))


def build_record(record: c.Struct, fields: dict[str, Any]) -> bytes:
    """Return the raw bytes of a record."""
    return bytes(record.build(fields))


def _plain(container: c.Container) -> dict[str, Any]:
    """Containers never leave this package: they compare and print unlike anything else."""
    plain = {name: value for name, value in container.items() if name != "_io"}
    if "entries" in plain:
        plain["entries"] = [_plain(entry) for entry in plain["entries"]]
    return plain
