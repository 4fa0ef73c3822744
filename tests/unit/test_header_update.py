"""A header that is being rewritten: read as if it were done, and finished, at whatever sector the power was cut."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import vhdkit
from tests.keeping import keep
from tests.plainbuild import ImageSpec, build, locator
from tests.plaincheck import validate
from tests.plainvhd import DIFFERENCING, SECTOR, parse
from tests.unit.test_merge_laws import SpyFolder
from vhdkit.corruption import Corruption
from vhdkit.findings import Level
from vhdkit.journal import records
from vhdkit.journal.patch import Patch
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhd import header_update
from vhdkit.vhd.open_image import open_image
from vhdkit.vhd.sparse_image import SparseImage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.storage.protocols import Folder

BASE = ImageSpec(size=64 * SECTOR, block_size=4096, unique_id=b"base" * 4, sectors={3: b"b" * SECTOR})
OTHER = replace(BASE, unique_id=b"othr" * 4, sectors={3: b"o" * SECTOR})
LEAF = ImageSpec(
    disk_type=DIFFERENCING,
    size=64 * SECTOR,
    block_size=4096,
    unique_id=b"leaf" * 4,
    parent_id=BASE.unique_id,
    parent_name="base.vhd",
    locators=(locator(0, b"W2ru", ".\\base.vhd"),),
    sectors={9: b"l" * SECTOR},
)
RELINKED = replace(
    LEAF, parent_id=OTHER.unique_id, parent_name="other.vhd", locators=(locator(0, b"W2ru", ".\\other.vhd"),)
)
BEFORE, AFTER = build(LEAF), build(RELINKED)
HEADER = 512
PATH = "/vms/leaf.avhd"
STEP = PATH + header_update.SUFFIX


def differing() -> list[int]:
    return [at for at in range(0, len(BEFORE), SECTOR) if BEFORE[at : at + SECTOR] != AFTER[at : at + SECTOR]]


def patches() -> list[Patch]:
    """The locator's data, whose length is none of whole sectors, and the header last."""
    data = [at for at in differing() if not HEADER <= at < HEADER + 1024]
    made = [Patch(offset=at, before=BEFORE[at : at + 30], after=AFTER[at : at + 30]) for at in data]
    return [*made, Patch(offset=HEADER, before=BEFORE[HEADER:1536], after=AFTER[HEADER:1536])]


def step_file(of: Sequence[Patch]) -> bytes:
    return records.encode([{"image": "leaf.avhd", "patches": [patch.to_record() for patch in of]}])


def lying(leaf: bytes, step_bytes: bytes | None = None) -> MemoryFolder:
    files = {"/vms/base.vhd": build(BASE), "/vms/other.vhd": build(OTHER), PATH: leaf}
    if step_bytes is not None:
        files[STEP] = step_bytes
    return MemoryFolder(files)


def mixes(*, header: bool = True) -> Iterator[bytes]:
    """Yield every mix of old and new sectors in which something of the header is new, or is not."""
    sectors = differing()
    for new in itertools.product((False, True), repeat=len(sectors)):
        raw = bytearray(BEFORE)
        for at, is_new in zip(sectors, new, strict=True):
            if is_new:
                raw[at : at + SECTOR] = AFTER[at : at + SECTOR]
        if (raw[HEADER : HEADER + 1024] != BEFORE[HEADER : HEADER + 1024]) == header:
            yield bytes(raw)


BEGUN = next(mixes())


# Doing it


def test_a_step_is_durable_beside_the_image_before_the_image_is_written() -> None:
    folder = SpyFolder(lying(BEFORE))
    storage = keep(folder.open(PATH, writable=True))
    header_update.apply(folder, storage, patches())
    changes = [(event.operation, event.path) for event in folder.changes()]
    writes = [("write", PATH)] * (len(patches()) - 1)
    assert changes == [
        *[("create", STEP), ("write", STEP), ("sync", STEP), ("sync folder", "/vms")],
        *[*writes, ("sync", PATH), ("write", PATH), ("sync", PATH)],
        *[("remove", STEP), ("sync folder", "/vms")],
    ]
    assert folder.changes(PATH)[-2].offset == HEADER


def test_what_is_applied_is_what_was_asked_for_and_nothing_is_left() -> None:
    folder = lying(BEFORE)
    with vhdkit.open_image(PATH, writable=True, folder=folder) as image:
        header_update.apply(folder, image.storage, patches())
    assert bytes(folder[PATH].content) == AFTER
    assert not folder.exists(STEP)
    back = [patch.reversed for patch in patches()]
    with vhdkit.open_image(PATH, writable=True, folder=folder) as image:
        header_update.apply(folder, image.storage, back)
    assert bytes(folder[PATH].content) == BEFORE


def test_an_earlier_step_that_was_cut_off_is_done_first() -> None:
    raw = bytearray(BEFORE)
    raw[HEADER : HEADER + SECTOR] = AFTER[HEADER : HEADER + SECTOR]
    folder = lying(bytes(raw), step_file(patches()))
    with vhdkit.open_image(PATH, writable=True, folder=folder) as image:
        assert isinstance(image, SparseImage)
        assert image.header.parent_unique_id == OTHER.unique_id
        header_update.apply(folder, image.storage, [patch.reversed for patch in patches()])
    assert bytes(folder[PATH].content) == BEFORE


# What a cut leaves


def findings_of(chain: vhdkit.Chain) -> list[vhdkit.Finding]:
    return [item for item in chain.findings if item.corruption is Corruption.HEADER_UNFINISHED]


@pytest.mark.parametrize("leaf", list(mixes()))
def test_every_mix_of_old_and_new_sectors_is_read_as_new_and_finished_by_a_writer(leaf: bytes) -> None:
    folder = lying(leaf, step_file(patches()))
    with vhdkit.open_image(PATH, folder=folder) as image:
        assert isinstance(image, SparseImage)
        assert image.header.parent_unique_id == OTHER.unique_id
        assert image.parent is not None
        assert [path.text for path in image.parent.paths if not path.is_bare_name] == [".\\other.vhd"]
    with vhdkit.open_chain(PATH, folder=folder) as chain:
        assert chain.layers[1].path == "/vms/other.vhd"
        assert chain.read(3 * SECTOR, SECTOR) == b"o" * SECTOR
        (finding,) = findings_of(chain)
    assert (finding.path, finding.level) == (PATH, Level.INFO)
    assert "as if it were finished" in finding.message
    assert bytes(folder[PATH].content) == leaf, "reading alone writes nothing"
    with vhdkit.open_chain(PATH, writable=True, folder=folder) as chain:
        chain.write(0, b"")
    assert bytes(folder[PATH].content) == AFTER
    assert not folder.exists(STEP)
    assert validate(AFTER) == []


@pytest.mark.parametrize("leaf", list(mixes(header=False)))
def test_a_step_whose_header_is_not_begun_is_not_read_and_is_taken_back_by_a_writer(leaf: bytes) -> None:
    folder = lying(leaf, step_file(patches()))
    # Whatever has become of what it was to lead to.
    folder.remove("/vms/other.vhd")
    with vhdkit.open_chain(PATH, folder=folder) as chain:
        assert chain.layers[1].path == "/vms/base.vhd"
        (finding,) = findings_of(chain)
    assert finding.level is Level.INFO
    assert "it is read as it was" in finding.message
    with vhdkit.open_image(PATH, folder=folder) as image:
        assert image.parent is not None
        assert [path.text for path in image.parent.paths if not path.is_bare_name] == [".\\base.vhd"]
    assert bytes(folder[PATH].content) == leaf, "reading alone writes nothing"
    assert folder.exists(STEP)
    finished(folder)
    assert bytes(folder[PATH].content) == BEFORE
    assert not folder.exists(STEP)


def test_an_image_that_is_opened_to_be_written_is_finished_first() -> None:
    folder = lying(next(mixes()), step_file(patches()))
    with open_image(PATH, writable=True, finish_step=False, folder=folder) as image:
        with pytest.raises(vhdkit.ReadOnlyImageError, match="to be finished before"):
            image.write_at(4096, b"x")
        image.finish_step(folder)
        assert bytes(folder[PATH].content) == AFTER
        image.check_writable()
    folder = lying(next(mixes()), step_file(patches()))
    vhdkit.open_image(PATH, writable=True, folder=folder).close()
    assert (bytes(folder[PATH].content), folder.exists(STEP)) == (AFTER, False)


def test_a_step_of_a_layer_in_the_middle_is_read_through_too() -> None:
    top = replace(
        LEAF, unique_id=b"top_" * 4, parent_id=LEAF.unique_id, locators=(locator(0, b"W2ru", ".\\leaf.avhd"),)
    )
    leaf = next(mixes())
    folder = MemoryFolder(
        {
            "/vms/top.avhd": build(top),
            "/vms/base.vhd": build(BASE),
            "/vms/other.vhd": build(OTHER),
            PATH: leaf,
            STEP: step_file(patches()),
        }
    )
    for is_writable in (False, True):
        with vhdkit.open_chain("/vms/top.avhd", writable=is_writable, folder=folder) as chain:
            assert [layer.path for layer in chain.layers] == ["/vms/top.avhd", PATH, "/vms/other.vhd"]
            assert [item.path for item in findings_of(chain)] == [PATH]
    assert bytes(folder[PATH].content) == leaf, "who writes to another layer leaves it alone"


def finished(folder: Folder) -> bool:
    storage = folder.open(PATH, writable=True)
    try:
        return header_update.finish(folder, storage)
    finally:
        storage.close()


def test_finishing_is_durable_before_the_step_file_goes() -> None:
    folder = SpyFolder(lying(BEGUN, step_file(patches())))
    assert finished(folder)
    changes = [(event.operation, event.path) for event in folder.changes()]
    assert changes[-4:] == [("write", PATH), ("sync", PATH), ("remove", STEP), ("sync folder", "/vms")]
    assert changes[len(patches()) - 1] == ("sync", PATH), "locators are durable before the header that refers to them"


# What is not believed


@pytest.mark.parametrize("number", range(len(patches())))
def test_a_file_that_somebody_else_changed_is_left_alone(number: int) -> None:
    patch = patches()[number]
    raw = bytearray(BEFORE)
    raw[patch.offset] ^= 0x55
    folder = lying(bytes(raw), step_file(patches()))
    storage = keep(folder.open(PATH))
    assert header_update.pending(folder, storage) == ()
    assert not finished(folder)
    assert bytes(folder[PATH].content) == bytes(raw)


GOOD: dict[str, Any] = patches()[-1].to_record()
GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(4096),
    "text": b"hello\n",
    "torn": step_file(patches())[:-1],
    "a sector lost": step_file(patches())[:512] + bytes(512) + step_file(patches())[1024:],
    "no patches": records.encode([{"image": "leaf.avhd", "patches": []}]),
    "no list": records.encode([{"patches": 5}]),
    "another record": records.encode([{"kind": "begin"}]),
    "no patch": records.encode([{"patches": [7]}]),
    "negative": records.encode([{"patches": [GOOD | {"offset": -512}]}]),
    "text offset": records.encode([{"patches": [GOOD | {"offset": "0"}]}]),
    "far behind the end": records.encode([{"patches": [GOOD | {"offset": 1 << 50}]}]),
    "beyond all files": records.encode([{"patches": [GOOD | {"offset": 1 << 70}]}]),
    "no base64": records.encode([{"patches": [GOOD | {"b": "!"}]}]),
    "lengths differ": records.encode([{"patches": [GOOD | {"b": "AAAA"}]}]),
    "nothing": records.encode([{"patches": [GOOD | {"a": "", "b": ""}]}]),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_step_file_that_is_none_is_passed_over_and_one_that_was_not_cut_off_is_told_of(
    name: str, tmp_path: Path
) -> None:
    files = {"base.vhd": build(BASE), "leaf.avhd": BEFORE, "leaf.avhd" + header_update.SUFFIX: GARBAGE[name]}
    for file, raw in files.items():
        (tmp_path / file).write_bytes(raw)
    leaf = tmp_path / "leaf.avhd"
    with vhdkit.open_chain(str(leaf)) as chain:
        assert chain.layers[1].path == str(tmp_path / "base.vhd")
        found = [(finding.corruption, finding.level) for finding in chain.findings]
    is_whole = name not in {"empty", "zeros", "text", "torn", "a sector lost"}
    assert found == [(Corruption.HEADER_UNFINISHED, Level.WARNING)] * is_whole
    vhdkit.open_chain(str(leaf), writable=True).close()
    assert leaf.read_bytes() == BEFORE
    report = vhdkit.check(str(leaf), chain=True)
    assert report.count(Level.ERROR) == 0


def test_a_step_file_that_is_huge_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "base.vhd").write_bytes(build(BASE))
    leaf = tmp_path / "leaf.avhd"
    leaf.write_bytes(BEFORE)
    with Path(str(leaf) + header_update.SUFFIX).open("wb") as file:
        file.truncate(1 << 40)
    with vhdkit.open_chain(str(leaf)) as chain:
        assert chain.layers[1].path == str(tmp_path / "base.vhd")


def test_a_step_file_that_is_a_directory_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "base.vhd").write_bytes(build(BASE))
    (tmp_path / "leaf.avhd").write_bytes(BEFORE)
    Path(str(tmp_path / "leaf.avhd") + header_update.SUFFIX).mkdir()
    with vhdkit.open_chain(str(tmp_path / "leaf.avhd")) as chain:
        assert [finding.level for finding in chain.findings] == [Level.WARNING]


# Where it cannot be finished


@pytest.mark.parametrize("closed", [PATH, "/vms"])
def test_where_nothing_may_be_written_the_step_is_read_through(closed: str) -> None:
    class Closed(SpyFolder):
        def may_write(self, path: str) -> bool:
            return path != closed

    for leaf in mixes():
        folder = Closed(lying(leaf, step_file(patches())))
        with vhdkit.open_chain(PATH, folder=folder) as chain:
            assert chain.layers[1].path == "/vms/other.vhd"
            (finding,) = [item for item in chain.findings if item.corruption is Corruption.HEADER_UNFINISHED]
        assert "as if it were finished" in finding.message
        assert folder.changes() == []


def test_a_step_that_somebody_is_at_is_left_alone_and_the_file_is_in_use() -> None:
    folder = lying(BEGUN, step_file(patches()))
    holder = folder.open(PATH, writable=True)
    holder.lock(exclusive=True)
    for is_writable in (False, True):
        with pytest.raises(vhdkit.ImageInUseError):
            vhdkit.open_chain(PATH, writable=is_writable, folder=folder)
    header_update.finish_all(folder, ["/vms"])
    assert bytes(folder[PATH].content) == BEGUN
    assert folder.exists(STEP)
    holder.close()
    with vhdkit.open_chain(PATH, writable=True, folder=folder):
        assert bytes(folder[PATH].content) == AFTER


@pytest.mark.parametrize("step", [step_file(patches()), b"cut off"], ids=["whole", "torn"])
def test_other_users_step_files_are_neither_followed_nor_removed(step: bytes) -> None:
    folder = lying(BEGUN, step)
    folder[STEP].owner = 12345
    header_update.finish_all(folder, ["/vms"])
    assert bytes(folder[PATH].content) == BEGUN
    assert bytes(folder[STEP].content) == step


def test_steps_of_images_that_are_marked_read_only_stay_though_the_superuser_could_write(tmp_path: Path) -> None:
    image, step = tmp_path / "leaf.avhd", tmp_path / f"leaf.avhd{header_update.SUFFIX}"
    image.write_bytes(BEGUN)
    step.write_bytes(step_file(patches()))
    image.chmod(0o444)
    header_update.finish_all(LocalFolder(), [str(tmp_path)])
    assert image.read_bytes() == BEGUN
    assert step.exists()


def test_it_is_read_through_where_a_reader_holds_the_file() -> None:
    folder = lying(BEGUN, step_file(patches()))
    reader = keep(folder.open(PATH))
    reader.lock(exclusive=False)
    with vhdkit.open_chain(PATH, folder=folder) as chain:
        assert chain.layers[1].path == "/vms/other.vhd"
    with pytest.raises(vhdkit.ImageInUseError):
        vhdkit.open_image(PATH, writable=True, folder=folder)
    assert bytes(folder[PATH].content) == BEGUN


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_step_file_that_is_a_pipe_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "base.vhd").write_bytes(build(BASE))
    (tmp_path / "leaf.avhd").write_bytes(BEFORE)
    os.mkfifo(str(tmp_path / "leaf.avhd") + header_update.SUFFIX)
    with vhdkit.open_image(str(tmp_path / "leaf.avhd"), folder=LocalFolder()) as image:
        assert isinstance(image, SparseImage)
        assert image.header.parent_unique_id == BASE.unique_id


# Patches


@pytest.mark.parametrize(("offset", "length"), [(0, 512), (0, 1024), (512, 1), (511, 2), (1000, 24), (500, 1100)])
def test_a_patch_fits_every_mix_of_whole_sectors_and_no_other(offset: int, length: int) -> None:
    patch = Patch(offset=offset, before=b"b" * length, after=b"a" * length)

    def fits(content: bytes) -> bool:
        with MemoryFolder({"/f": content}).open("/f") as storage:
            return patch.fits(storage)

    edges = [offset, *range((offset // SECTOR + 1) * SECTOR, offset + length, SECTOR), offset + length]
    for choice in product(b"ab", repeat=len(edges) - 1):
        file = bytearray(b"x" * 2048)
        for (start, stop), fill in zip(pairwise(edges), choice, strict=True):
            file[start:stop] = bytes([fill]) * (stop - start)
        assert fits(bytes(file))
        for at in range(offset, offset + length):
            torn = bytearray(file)
            torn[at] ^= 3  # an "a" where "b" stands, or the other way round
            is_alone = any(start == at and stop == at + 1 for start, stop in pairwise(edges))
            assert fits(bytes(torn)) == is_alone
    assert not fits(b"b" * (offset + length - 1))


def test_a_patch_survives_its_record() -> None:
    patch = patches()[0]
    assert msgspec.convert(patch.to_record(), Patch) == patch
    assert patch.reversed.reversed == patch
    assert parse(AFTER).parent_id == OTHER.unique_id
