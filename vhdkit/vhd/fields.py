"""Everything that a VHD says about itself as plain values, under the names that JSON output has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.disk import unique_id
from vhdkit.disk.timestamp import to_datetime
from vhdkit.vhd.footer import DiskType
from vhdkit.vhd.metadata import SparseMetadata

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhd.footer import Footer
    from vhdkit.vhd.metadata import Metadata


def fields(metadata: Metadata, storage: Storage, filename: str) -> dict[str, object]:
    """Return the fields of an image, its footer and its dynamic header."""
    footer = metadata.footer
    header = metadata.header if isinstance(metadata, SparseMetadata) else None
    is_child = footer.disk_type is DiskType.DIFFERENCING and header is not None
    return {
        "filename": filename,
        "format": "vhd",
        "virtual-size": footer.current_size,
        "actual-size": storage.allocated_size,
        "file-size": metadata.file_size,
        "disk-type": footer.disk_type.label,
        "block-size": header.block_size if header else None,
        "unique-id": unique_id.guid(footer.unique_id),
        "parent-unique-id": unique_id.guid(header.parent_unique_id) if header and is_child else None,
        "parent-name": header.parent_name if header and is_child else None,
        "creator": footer.creator_application.decode("latin-1").rstrip("\0 "),
        "created": to_datetime(footer.timestamp).isoformat(),
        "checksum-ok": metadata.checksum_ok,
        "footer": _footer(footer, metadata.footer_place),
        "header": _header(metadata) if isinstance(metadata, SparseMetadata) else None,
    }


def _footer(footer: Footer, place: str) -> dict[str, object]:
    return {
        "place": str(place),
        "features": footer.features,
        "version": f"{footer.version >> 16}.{footer.version & 0xFFFF}",
        "data-offset": footer.data_offset,
        "timestamp": footer.timestamp,
        "creator-application": footer.creator_application.decode("latin-1"),
        "creator-version": f"{footer.creator_version >> 16}.{footer.creator_version & 0xFFFF}",
        "creator-host-os": footer.creator_host_os.decode("latin-1"),
        "original-size": footer.original_size,
        "current-size": footer.current_size,
        "geometry": list(footer.geometry),
        "geometry-size": footer.geometry.size,
        "disk-type": int(footer.disk_type),
        "unique-id-big-endian": unique_id.big_endian(footer.unique_id),
        "unique-id-mixed-endian": unique_id.guid(footer.unique_id),
        "saved-state": footer.saved_state,
        "reserved-is-zero": not any(footer.reserved),
    }


def _header(metadata: SparseMetadata) -> dict[str, object]:
    header = metadata.header
    texts = {path.platform_code: path.text for path in metadata.parent_paths}
    return {
        "data-offset": header.data_offset,
        "table-offset": header.table_offset,
        "version": f"{header.version >> 16}.{header.version & 0xFFFF}",
        "max-table-entries": header.max_table_entries,
        "block-size": header.block_size,
        "parent-unique-id-big-endian": unique_id.big_endian(header.parent_unique_id),
        "parent-unique-id-mixed-endian": unique_id.guid(header.parent_unique_id),
        "parent-timestamp": header.parent_timestamp,
        "parent-name": header.parent_name,
        "parent-locators": [
            {
                "slot": slot,
                "platform-code": locator.platform_code.decode("latin-1"),
                "data-space": locator.data_space,
                "data-length": locator.data_length,
                "data-offset": locator.data_offset,
                "path": texts.get(locator.platform_code),
            }
            for slot, locator in enumerate(header.locators)
            if locator.is_used
        ],
    }
