"""What a new file's name says about its format, so that no file is written under the name of another format.

Programs and people go by the suffix: Hyper-V rejects a VHD that is called `.vhdx`, and what is called `.img` is copied
to a volume as it is, footer and tables included.
"""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from vhdkit.corruption import Corruption
from vhdkit.errors import CorruptImageError, FileNameError
from vhdkit.findings import Advice
from vhdkit.storage import paths
from vhdkit.storage.new_file import new_file
from vhdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.storage.protocols import Folder, Storage


class FileFormat(StrEnum):
    """The formats that are written here."""

    VHD = "VHD"
    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"


_RAW = "a raw disk"
_SAYS = {
    ".vhd": "a VHD",
    ".avhd": "a VHD",
    ".vud": "a VHD",
    ".raw": _RAW,
    ".img": _RAW,
    ".iso": _RAW,
    ".vhdx": "a VHDX",
    ".avhdx": "a VHDX",
    ".qcow2": "a qcow2",
    ".vmdk": "a VMDK",
    ".vdi": "a VDI",
}
_BOOT_SIGNATURE = b"\x55\xaa"
_GPT_SIGNATURE = b"EFI PART"
_WRITTEN = {
    FileFormat.VHD: "a VHD",
    FileFormat.RAW: _RAW,
    FileFormat.QCOW2: "a qcow2",
    FileFormat.VMDK: "a VMDK",
    FileFormat.VDI: "a VDI",
}


def check_file_name(path: str, file_format: FileFormat) -> None:
    """Refuse to write a file of a format under a name that says another one.

    Names whose suffix says nothing are free: programs that keep disks under names of their own have them.

    Raises:
        FileNameError: the suffix is that of another format.

    """
    suffix = paths.splitext(path)[1].lower()
    named, written = _SAYS.get(suffix), _WRITTEN[file_format]
    if named is None or named == written:
        return
    usual = f".{file_format.lower()}"
    raise FileNameError(
        f"its name says that it is {named}, and {written} would be written to it; take a name that ends in {usual}",
        path=path,
        suffix=suffix,
        written=file_format.value,
    )


@contextmanager
def new_image_file(folder: Folder, path: str, file_format: FileFormat) -> Iterator[Storage]:
    """Create a file for a disk of a format, as `new_file` does, under a name that does not say another format.

    Raises:
        FileNameError: the suffix is that of another format.

    """
    if not folder.exists(path):
        check_file_name(path, file_format)
    with new_file(folder, path) as storage:
        yield storage


def may_be_raw(path: str) -> bool:
    """Whether a file that is no image of a format may be a raw disk by its name: no suffix says another format."""
    return _SAYS.get(paths.splitext(path)[1].lower(), _RAW) == _RAW


def note_raw_disk(error: CorruptImageError, storage: Storage) -> None:
    """Add to the error about a file that is no VHD what to do, if the file looks like a raw disk.

    A file that is called as a VHD is not said to be one: a fixed VHD that has lost its footer looks the same.
    """
    if error.corruption is not Corruption.NOT_A_VHD or not _looks_raw(storage):
        return
    made = f"{paths.splitext(storage.path)[0]}.vhd"
    text = "it looks like a raw disk, and a VHD is needed here: {} makes one of it"
    error.add_hint(Advice.MAKE_VHD.hint(text, path=storage.path, new_path=made))


def _looks_raw(storage: Storage) -> bool:
    size, named = storage.size(), _SAYS.get(paths.splitext(storage.path)[1].lower())
    if not size or size % SECTOR or named not in {None, _RAW}:
        return False
    head = bytearray(2 * SECTOR)
    storage.read_into(0, head)
    is_partitioned = head[SECTOR - 2 : SECTOR] == _BOOT_SIGNATURE or head[SECTOR:].startswith(_GPT_SIGNATURE)
    return named == _RAW or is_partitioned
