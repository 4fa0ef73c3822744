"""Real images of other makers: each reads as its maker reads it, or is refused for a reason that is named here."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from vhdkit.chain.chain import Chain, open_chain
from vhdkit.corruption import Corruption
from vhdkit.disk.extents import Kind
from vhdkit.errors import CorruptImageError, ParentRefusedError, UnsupportedImageError, VhdError
from vhdkit.vhd.open_image import open_image
from vhdkit.vhd.sparse_image import SparseImage

PIECE: Final = 8 << 20
CORPUS: Final = (Path(__file__).resolve().parents[2].parent / "shared" / "corpus").resolve()


def manifest() -> dict[str, dict[str, str]]:
    if not (CORPUS / "MANIFEST.tsv").exists():
        return {}
    with (CORPUS / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


MANIFEST: Final = manifest()


@dataclass(frozen=True, slots=True)
class Refusal:
    """An exception to "it opens and reads": the error that is right, and why."""

    error: type[VhdError]
    corruption: Corruption | None
    reason: str


REFUSALS: Final = {
    "dfvfs/image.vhd": Refusal(CorruptImageError, Corruption.FOOTER_CHECKSUM, "edited by hand, old checksum"),
    "dfvfs/image-differential.vhd": Refusal(
        CorruptImageError, Corruption.FOOTER_CHECKSUM, "edited by hand, old checksums"
    ),
    "node-vhd/footer.bin": Refusal(CorruptImageError, Corruption.FIXED_DATA_MISSING, "a footer alone"),
    "node-vhd/header.bin": Refusal(CorruptImageError, Corruption.BAT_OUTSIDE_FILE, "footer copy and header alone"),
    "node-vhd/header.older.bin": Refusal(CorruptImageError, Corruption.NOT_A_VHD, "the first 1,024 bytes alone"),
    "quoted-footers/bluescsi-fixed.footer": Refusal(CorruptImageError, Corruption.FIXED_DATA_MISSING, "a footer alone"),
    "quoted-footers/gwacl-vbox42-fixed-20M.footer": Refusal(
        CorruptImageError, Corruption.FIXED_DATA_MISSING, "a footer alone"
    ),
    "quoted-footers/uiuctf-superhot-vbox61-dynamic.footer": Refusal(
        CorruptImageError, Corruption.HEADER_OFFSET, "a footer alone"
    ),
    "vhdutil-made/child-of-raw.vhd": Refusal(
        ParentRefusedError, None, "its parent is raw: read only if it is named, see below"
    ),
    "vhdutil-made/rawparent.img": Refusal(CorruptImageError, Corruption.NOT_A_VHD, "a raw disk"),
    "virtualbox-made/max.vhd.gz": Refusal(UnsupportedImageError, None, "packed with gzip"),
    **{
        path: Refusal(CorruptImageError, Corruption.NOT_A_VHD, "made by a fuzzer: no VHD")
        for path in MANIFEST
        if path.startswith("vhd-forensic/fuzz_audit/")
    },
}
# Empty, and too big to hash byte by byte: where every byte comes from is asked instead.
TOO_BIG: Final = {"qemu-made/dyn-127G.vhd", "qemu-made/dyn-2040G-force.vhd"}
# The manifest's note has two digits too many, 36 after 5ef33a61af.
CHILD_OF_RAW: Final = "5ef33a61af876268d94f128fbf18a3ddcc3f9d161100c693004d7ce35667c238"
READABLE: Final = sorted(set(MANIFEST) - set(REFUSALS) - TOO_BIG)


def digest(chain: Chain) -> str:
    """Hash the view, a piece at a time."""
    found, buffer = hashlib.sha256(), bytearray(PIECE)
    for offset in range(0, chain.size, PIECE):
        count = chain.read_into(offset, buffer)
        found.update(memoryview(buffer)[:count])
    return found.hexdigest()


def test_the_corpus_is_all_told(corpus: Path) -> None:
    assert corpus == CORPUS
    assert set(REFUSALS) | TOO_BIG <= set(MANIFEST)
    assert all(MANIFEST[path]["flat_sha256_own"] for path in READABLE)
    assert len(READABLE) > 50


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize("path", READABLE)
def test_a_real_image_reads_as_its_maker_reads_it(path: str) -> None:
    row = MANIFEST[path]
    with open_chain(str(CORPUS / path), search=[str(CORPUS)]) as chain:
        assert chain.size == int(row["current_size"])
        assert chain.leaf.kind == row["type"]
        layers = [path]
        while MANIFEST[layers[-1]]["parent_present"]:
            layers.append(MANIFEST[layers[-1]]["parent_present"])
        assert [layer.path for layer in chain.layers] == [str(CORPUS / layer) for layer in layers]
        assert digest(chain) == row["flat_sha256_own"]


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize("path", READABLE)
def test_a_real_image_is_sound(path: str) -> None:
    row = MANIFEST[path]
    with open_image(str(CORPUS / path)) as image:
        image.check_sound()
        assert image.findings == ()
        assert image.footer.to_bytes() == (CORPUS / path).read_bytes()[-512:]
        if isinstance(image, SparseImage):
            assert sum(len(blocks) for blocks, _ in image.windows()) == int(row["allocated"])
            assert image.header.max_table_entries == int(row["max_entries"])
            start = image.footer.data_offset
            assert image.header.to_bytes() == (CORPUS / path).read_bytes()[start : start + 1024]


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize("path", sorted(TOO_BIG & set(MANIFEST)))
def test_a_huge_empty_image_is_resolved_without_reading_it(path: str) -> None:
    with open_chain(str(CORPUS / path)) as chain:
        assert chain.size == int(MANIFEST[path]["current_size"])
        items = [item for window in chain.extents() for item in window]
        assert {item.kind for item in items} == {Kind.ZERO}
        assert sum(item.length for item in items) == chain.size
        for offset in (0, chain.size // 2, chain.size - 5000):
            assert chain.read(offset, 5000) == bytes(5000)


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize("path", [path for path in REFUSALS if path in MANIFEST])
def test_what_cannot_be_read_is_refused_for_the_right_reason(path: str) -> None:
    refusal = REFUSALS[path]
    with pytest.raises(refusal.error) as caught:
        open_chain(str(CORPUS / path), search=[str(CORPUS)]).close()
    assert getattr(caught.value, "corruption", None) is refusal.corruption, refusal.reason
    assert caught.value.path == str(CORPUS / path)


def test_a_raw_parent_is_read_if_it_is_named(corpus: Path) -> None:
    child, parent = corpus / "vhdutil-made/child-of-raw.vhd", corpus / "vhdutil-made/rawparent.img"
    with open_chain(str(child), parent=str(parent)) as chain:
        assert [layer.kind for layer in chain.layers] == ["differencing", "raw"]
        assert digest(chain) == CHILD_OF_RAW


def test_wrong_checksums_are_read_if_they_are_put_up_with(corpus: Path) -> None:
    parent, child = (str(corpus / "dfvfs" / name) for name in ("image.vhd", "image-differential.vhd"))
    with Chain([open_image(parent, verify=False)]) as chain:
        assert digest(chain) == MANIFEST["dfvfs/image.vhd"]["flat_sha256_own"]
    with Chain([open_image(child, verify=False), open_image(parent, verify=False)]) as chain:
        assert digest(chain) == MANIFEST["dfvfs/image-differential.vhd"]["flat_sha256_own"]
