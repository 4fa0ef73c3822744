"""Where every field of the format's records lies. The only module that imports construct.

Reserved areas are plain Bytes and flags plain integers: construct's Padding and FlagsEnum lose bits on the
way back, and every record here must come out byte for byte as it went in.

**Source**: docs/reference/vhd.md 1.2, 1.4, 1.5, 1.8.
"""

from __future__ import annotations

from typing import Any

import construct as c

from vhdkit.vhd.checksum import CHECKSUM_OFFSETS, checksum
from vhdkit.vhd.constants import (
    FOOTER_COOKIE,
    HEADER_COOKIE,
    LOCATOR_COUNT,
    PARENT_NAME_BYTES,
)

_FOOTER = c.Struct(
    "cookie" / c.Bytes(8),
    "features" / c.Int32ub,
    "version" / c.Int32ub,
    "data_offset" / c.Int64ub,
    "timestamp" / c.Int32ub,
    "creator_application" / c.Bytes(4),
    "creator_version" / c.Int32ub,
    "creator_host_os" / c.Bytes(4),
    "original_size" / c.Int64ub,
    "current_size" / c.Int64ub,
    "cylinders" / c.Int16ub,
    "heads" / c.Int8ub,
    "sectors_per_track" / c.Int8ub,
    "disk_type" / c.Int32ub,
    "checksum" / c.Int32ub,
    "unique_id" / c.Bytes(16),
    "saved_state" / c.Int8ub,
    "reserved" / c.Bytes(427),
)

_LOCATOR = c.Struct(
    "platform_code" / c.Bytes(4),
    "data_space" / c.Int32ub,
    "data_length" / c.Int32ub,
    "reserved" / c.Int32ub,
    "data_offset" / c.Int64ub,
)

_HEADER = c.Struct(
    "cookie" / c.Bytes(8),
    "data_offset" / c.Int64ub,
    "table_offset" / c.Int64ub,
    "version" / c.Int32ub,
    "max_table_entries" / c.Int32ub,
    "block_size" / c.Int32ub,
    "checksum" / c.Int32ub,
    "parent_unique_id" / c.Bytes(16),
    "parent_timestamp" / c.Int32ub,
    "reserved_word" / c.Int32ub,
    "parent_name_bytes" / c.Bytes(PARENT_NAME_BYTES),
    "locators" / c.Array(LOCATOR_COUNT, _LOCATOR),
    "reserved" / c.Bytes(256),
)

_BATMAP = c.Struct(
    "cookie" / c.Bytes(8),
    "data_offset" / c.Int64ub,
    "sectors" / c.Int32ub,
    "version" / c.Int32ub,
    "checksum" / c.Int32ub,
    "marker" / c.Int8ub,
    "key_hash" / c.Int8ub,
)


def parse_footer(raw: bytes) -> dict[str, Any]:
    """Return the fields of 512 raw bytes, by name."""
    return _plain(_FOOTER.parse(raw))


def build_footer(fields: dict[str, Any]) -> bytes:
    """Return 512 raw bytes with a fresh checksum."""
    return _sealed(_FOOTER.build(fields | {"cookie": FOOTER_COOKIE, "checksum": 0}))


def parse_header(raw: bytes) -> dict[str, Any]:
    """Return the fields of 1024 raw bytes, by name; locators as a list of such dictionaries."""
    return _plain(_HEADER.parse(raw))


def build_header(fields: dict[str, Any]) -> bytes:
    """Return 1024 raw bytes with a fresh checksum."""
    return _sealed(_HEADER.build(fields | {"cookie": HEADER_COOKIE, "checksum": 0}))


def parse_batmap(raw: bytes) -> dict[str, Any]:
    """Return the fields of a blktap batmap header (docs/reference/vhd.md 3.3)."""
    return _plain(_BATMAP.parse(raw))


def build_batmap(fields: dict[str, Any], data_offset: int, sectors: int) -> bytes:
    """Return the fixed part of a batmap header for a map of `sectors` zeros at `data_offset`.

    The checksum of a map is the inverted sum of its bytes: all ones for a map of zeros.
    """
    new = {"data_offset": data_offset, "sectors": sectors, "checksum": 0xFFFF_FFFF}
    return bytes(_BATMAP.build(fields | new))


def _sealed(raw: bytes) -> bytes:
    at = CHECKSUM_OFFSETS[len(raw)]
    return raw[:at] + checksum(raw).to_bytes(4, "big") + raw[at + 4 :]


def _plain(container: c.Container) -> dict[str, Any]:
    """Containers never leave this package: they compare and print unlike anything else."""
    plain = {name: value for name, value in container.items() if name != "_io"}
    if "locators" in plain:
        plain["locators"] = [_plain(locator) for locator in plain["locators"]]
    return plain
