"""VHDX files of other makers: each reads to its digest, or is refused for what it lacks; none of them changes."""

from __future__ import annotations

import csv
import hashlib
import lzma
from pathlib import Path
from typing import Final

import pytest

from vhdkit.chain.chain import open_chain
from vhdkit.chain.check import check
from vhdkit.disk.extents import Kind
from vhdkit.errors import CorruptImageError, UnsupportedImageError, VhdError
from vhdkit.findings import Level
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhdx.corruption import VhdxCorruption

CORPUS: Final = (Path(__file__).resolve().parents[2].parent / "shared" / "corpus-vhdx").resolve()


def manifest() -> list[dict[str, str]]:
    if not (CORPUS / "MANIFEST.tsv").exists():
        return []
    with (CORPUS / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


ROWS: Final = {row["path"]: row for row in manifest()}
READ: Final = {path: row for path, row in ROWS.items() if not row["sha256_of_virtual_disk"].startswith("refused")}
# Disks of 1 and 10 GiB take four to forty seconds each, nearly all of it zeros; that of 64 TiB is asked for its data.
HUGE: Final = {path for path, row in READ.items() if int(row["virtual_size"]) >= 1 << 30}
REFUSED: Final[dict[str, tuple[type[VhdError], str]]] = {
    "qemu/q-dirty-noentry.vhdx.xz": (CorruptImageError, VhdxCorruption.LOG_WITHOUT_ENTRIES),
    "gen/j0-log-empty.vhdx.xz": (CorruptImageError, VhdxCorruption.LOG_WITHOUT_ENTRIES),
    "gen/i1-required-item.vhdx.xz": (UnsupportedImageError, "77935259-b52d-5afe-9d8b-e3fed8d78d0f"),
}


def files_of(path: str) -> dict[str, bytes]:
    """The file of a row and its parents, in folders as in the corpus."""
    texts = ROWS[path]["parents"]
    names = [texts] if " " in texts and texts.count(".vhdx") + texts.count(".avhdx") == 1 else texts.split()
    above = {Path(each).name: each for each in ROWS}
    wanted = [path, *(above[f"{name}.xz"] for name in names)]
    return {f"/{each.removesuffix('.xz')}": lzma.decompress((CORPUS / each).read_bytes()) for each in wanted}


def hashed(path: str) -> str:
    files = files_of(path)
    folder = MemoryFolder(files)
    digest = hashlib.sha256()
    with open_chain(next(iter(files)), search=["/gen"], folder=folder) as chain:
        row = ROWS[path]
        assert len(chain.layers) == len(files)
        assert str(chain.size) == row["virtual_size"]
        assert str(chain.leaf.block_size) == row["block_size"]
        assert str(chain.leaf.logical_sector_size) == row["logical"]
        assert chain.leaf.kind == row["type"]
        is_dirty = VhdxCorruption.LOG_TO_REPLAY in {finding.corruption for finding in chain.leaf.findings}
        assert is_dirty == bool(row["log_to_replay"])
        for at in range(0, chain.size, 16 << 20):
            digest.update(chain.read(at, 16 << 20))
    assert all(folder[name].content == content for name, content in files.items())
    return digest.hexdigest()


@pytest.mark.parametrize("path", sorted(set(READ) - HUGE))
def test_an_image_reads_to_its_digest(path: str) -> None:
    assert hashed(path) == ROWS[path]["sha256_of_virtual_disk"]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(path for path in HUGE if "64t" not in path))
def test_a_huge_image_reads_to_its_digest(path: str) -> None:
    assert hashed(path) == ROWS[path]["sha256_of_virtual_disk"]


@pytest.mark.parametrize("path", sorted(path for path in HUGE if "64t" in path))
def test_a_disk_of_64_tib_has_no_data(path: str) -> None:
    files = files_of(path)
    with open_chain(next(iter(files)), folder=MemoryFolder(files)) as chain:
        assert chain.size == 64 << 40
        assert all((found.kind == Kind.ZERO).all() for found in chain.extents())


@pytest.mark.parametrize("path", sorted(set(ROWS) - set(READ)))
def test_what_must_not_be_read_is_refused(path: str) -> None:
    kind, why = REFUSED[path]
    files = files_of(path)
    with pytest.raises(kind) as caught:
        open_chain(next(iter(files)), folder=MemoryFolder(files))
    assert why in str(caught.value)


# What is said of files that read, by name; notes apart.
WARNED: Final = {
    "real/ext2.vhdx.xz": {VhdxCorruption.BAT_BEHIND},  # qemu marks blocks that the disk does not have
    "gen/g0-torn-header.vhdx.xz": {VhdxCorruption.HEADER_DAMAGED},
    "gen/d1-larger.avhdx.xz": {VhdxCorruption.PARENT_SIZE},
}
# Blocks that were prepared and never used, or freed; qemu prepares those of its fixed disks and never uses them.
LEAKED: Final = {
    "qemu/q-fixed.vhdx.xz": 1,
    "gen/e1-log.avhdx.xz": 2,
    "real/iotest-dirtylog-10G-4M.vhdx.xz": 4,
}


@pytest.mark.parametrize("path", sorted(set(READ) - {"real/du-lvm2.vhdx.xz"}))
def test_no_false_alarm_about_an_image_of_another_maker(path: str) -> None:
    files = files_of(path)
    folder = MemoryFolder(files)
    report = check(next(iter(files)), chain=True, deep=True, search=["/gen"], folder=folder)
    told = {level: {item.corruption for item in report.findings if item.level is level} for level in Level}
    dirty = {VhdxCorruption.LOG_TO_REPLAY} if ROWS[path]["log_to_replay"] else set()
    assert told[Level.ERROR] == set(), [str(item) for item in report.findings]
    assert told[Level.WARNING] == WARNED.get(path, set()) | dirty, [str(item) for item in report.findings]
    assert len(report.paths) == len(files)
    assert report.leaked_bytes == LEAKED.get(path, 0) << 20
    assert report.exit_code == (3 if report.leaked_bytes else 0)
    assert all(folder[name].content == content for name, content in files.items())


@pytest.mark.parametrize("path", sorted(set(ROWS) - set(READ)))
def test_what_must_not_be_read_is_told(path: str) -> None:
    kind, why = REFUSED[path]
    files = files_of(path)
    report = check(next(iter(files)), folder=MemoryFolder(files))
    errors = [f"{item.message} [{item.corruption}]" for item in report.findings if item.level is Level.ERROR]
    assert len(errors) == 1
    assert why in errors[0]
    assert report.exit_code == (1 if kind is UnsupportedImageError else 2)
