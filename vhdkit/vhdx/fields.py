"""Everything that a VHDX says about itself as plain values, under the names that JSON output has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.disk.unique_id import guid
from vhdkit.vhdx.parent_locator import PATH_KEYS

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhdx.metadata import VhdxMetadata


def fields(metadata: VhdxMetadata, storage: Storage, filename: str) -> dict[str, object]:
    """Return the fields of an image, its header and its metadata; what a VHD has besides is None."""
    link, texts = metadata.parent, metadata.texts
    name = next((texts[key] for key in PATH_KEYS if key in texts), None)
    return {
        "filename": filename,
        "format": "vhdx",
        "virtual-size": metadata.size,
        "actual-size": storage.allocated_size,
        "file-size": metadata.file_size,
        "disk-type": metadata.kind.value,
        "block-size": metadata.block_size,
        "unique-id": guid(metadata.unique_id),
        "parent-unique-id": None if link is None else guid(link.unique_id),
        "parent-name": name,
        "creator": metadata.creator,
        "created": None,
        "checksum-ok": metadata.checksum_ok,
        "footer": None,
        "header": _header(metadata),
    }


def _header(metadata: VhdxMetadata) -> dict[str, object]:
    header = metadata.header
    return {
        "sequence-number": header.sequence_number,
        "file-write-guid": guid(header.file_write_guid),
        "data-write-guid": guid(header.data_write_guid),
        "log-guid": guid(header.log_guid),
        "log-offset": header.log_offset,
        "log-length": header.log_length,
        "log-to-replay": header.has_log,
        "version": header.version,
        "table-offset": metadata.bat.file_offset,
        "logical-sector-size": metadata.logical_sector_size,
        "physical-sector-size": metadata.physical_sector_size,
        "disk-id": None if metadata.disk_id is None else guid(metadata.disk_id),
        "is-fixed": metadata.parameters.is_fixed,
        "parent-locators": [
            {"slot": slot, "platform-code": key, "path": text}
            for slot, (key, text) in enumerate(metadata.texts.items())
        ],
    }
