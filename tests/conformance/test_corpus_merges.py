"""Every chain of the corpus, merged: what the leaf read before is what the destination reads after.

Each chain is copied with its own family only, in the corpus' folders: siblings would rightly stop the merge.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import vhdkit
from tests.plaincheck import validate
from tests.plainvhd import flat, parse
from vhdkit.journal.ended_view import SUFFIX as ENDED_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST: Final = (Path(__file__).resolve().parents[3] / "shared" / "corpus" / "MANIFEST.tsv").resolve()
# The chains that the law does not speak of; each has its own test below.
EXCEPTIONS: Final = {
    "dfvfs/image-differential.vhd": "edited by hand, its checksums are wrong",
    "vhdutil-made/child-of-raw.vhd": "its parent is a raw file, which is never merged into",
}


def rows() -> dict[str, dict[str, str]]:
    """Read the manifest by path; empty where the corpus is not there."""
    if not MANIFEST.exists():
        return {}
    with MANIFEST.open(encoding="utf-8", newline="") as stream:
        return {row["path"]: row for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)}


ROWS: Final = rows()
CHAINS: Final = [path for path, row in ROWS.items() if row["type"] == "differencing" and path not in EXCEPTIONS]


def ancestry(path: str) -> Iterator[str]:
    """Yield a leaf and all below it."""
    while path:
        yield path
        path = ROWS[path]["parent_present"]


LONG_CHAINS: Final = [path for path in CHAINS if len(list(ancestry(path))) > 2]


@dataclass(frozen=True, slots=True)
class Family:
    """A copied chain, leaf first, and the folder that holds all of it."""

    root: Path
    chain: list[Path]
    expected: str

    @classmethod
    def copy(cls, corpus: Path, path: str, root: Path) -> Family:
        chain = []
        for name in ancestry(path):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            chain.append(Path(shutil.copyfile(corpus / name, root / name)))
        return cls(root, chain, ROWS[path]["flat_sha256_own"])

    @property
    def leaf(self) -> Path:
        return self.chain[0]

    def view(self, path: Path) -> str:
        """Return the digest of what an image shows."""
        with vhdkit.open_chain(str(path), search=[str(self.root)]) as chain:
            return hashlib.sha256(chain.read(0, chain.size)).hexdigest()

    def files(self) -> dict[Path, str]:
        """Return the digest of every file but the marks of layers whose view has ended, which hold times."""
        files = (path for path in self.root.rglob("*") if path.is_file() and path.suffix != ENDED_SUFFIX)
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def merge(
        self, *, into: Path | None = None, to: Path | None = None, keep_sources: bool = False
    ) -> vhdkit.MergeResult:
        plan = vhdkit.plan_merge(
            str(self.leaf),
            into=None if into is None else str(into),
            to=None if to is None else str(to),
            keep_sources=keep_sources,
            search=[str(self.root)],
        )
        assert plan.obstacles == ()
        return vhdkit.merge(plan)


@pytest.fixture
def family(request: pytest.FixtureRequest, corpus: Path, tmp_path: Path) -> Family:
    return Family.copy(corpus, request.param, tmp_path)


def of_each(chains: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", chains, ids=chains, indirect=True)


def test_the_law_speaks_of_every_chain_but_the_exceptions(corpus: Path) -> None:
    assert corpus == MANIFEST.parent
    differencing = {path for path, row in ROWS.items() if row["type"] == "differencing"}
    assert differencing == {*CHAINS, *EXCEPTIONS}
    assert (len(CHAINS), len(LONG_CHAINS)) == (19, 5)


@of_each(CHAINS)
def test_a_merge_into_the_parent_keeps_what_the_leaf_reads(family: Family) -> None:
    leaf, destination, *below = family.chain
    complaints, others = validate(destination), {path: family.files()[path] for path in below}
    assert family.view(leaf) == family.expected
    family.merge()
    assert family.view(destination) == family.expected
    assert set(validate(destination)) <= set(complaints)
    after = family.files()
    assert after == {destination: after[destination], **others}


@of_each(LONG_CHAINS)
def test_a_merge_into_the_base_keeps_what_the_leaf_reads(family: Family) -> None:
    base = family.chain[-1]
    complaints = validate(base)
    family.merge(into=base)
    assert family.view(base) == family.expected
    assert set(validate(base)) <= set(complaints)
    assert list(family.files()) == [base]


@of_each(LONG_CHAINS)
def test_merging_level_by_level_gives_the_same_disk_as_at_once(family: Family) -> None:
    chain = family.chain
    for leaf in chain[:-1]:
        vhdkit.merge(vhdkit.plan_merge(str(leaf), search=[str(family.root)]))
    assert family.view(chain[-1]) == family.expected


@of_each(CHAINS)
def test_a_merge_to_a_new_file_leaves_every_input_as_it_was(family: Family) -> None:
    before, new = family.files(), family.root / "new.vhd"
    family.merge(to=new)
    assert family.view(new) == family.expected
    assert validate(new) == []
    after = family.files()
    assert after == {**before, new: after[new]}


@of_each(CHAINS)
def test_a_merge_that_keeps_its_sources_changes_the_destination_only(family: Family) -> None:
    base, before, complaints = family.chain[-1], family.files(), validate(family.chain[-1])
    result = family.merge(into=base, keep_sources=True)
    assert result.removed == ()
    assert {family.view(path) for path in (family.leaf, base)} == {family.expected}
    assert set(validate(base)) <= set(complaints)
    assert family.files() == {**before, base: family.files()[base]}


@of_each(CHAINS)
def test_a_merge_done_twice_is_a_merge_done_once(family: Family) -> None:
    base = family.chain[-1]
    family.merge(into=base, keep_sources=True)
    once = family.files()
    assert family.merge(into=base, keep_sources=True).blocks_added == 0
    assert family.files() == once


# The exceptions


def test_a_corrupt_chain_is_not_merged(corpus: Path, tmp_path: Path) -> None:
    family = Family.copy(corpus, "dfvfs/image-differential.vhd", tmp_path)
    before = family.files()
    with pytest.raises(vhdkit.CorruptImageError):
        vhdkit.plan_merge(str(family.leaf))
    with pytest.raises(vhdkit.CorruptImageError):
        vhdkit.plan_merge(str(family.leaf), to=str(tmp_path / "new.vhd"))
    assert family.files() == before


def test_a_child_of_a_raw_file_is_merged_to_a_new_file_only(corpus: Path, tmp_path: Path) -> None:
    family = Family.copy(corpus, "vhdutil-made/child-of-raw.vhd", tmp_path)
    leaf, raw = (str(path) for path in family.chain)
    before, new = family.files(), tmp_path / "new.vhd"
    with pytest.raises(vhdkit.ParentRefusedError):
        vhdkit.plan_merge(leaf)
    with pytest.raises(vhdkit.MergeError):
        vhdkit.plan_merge(leaf, parent=raw)
    expected = hashlib.sha256(flat([parse(leaf), Path(raw).read_bytes()]).tobytes()).hexdigest()
    vhdkit.merge(vhdkit.plan_merge(leaf, parent=raw, to=str(new)))
    assert family.view(new) == expected
    assert family.files() == {**before, new: family.files()[new]}


# Children that are relinked, and siblings


def test_merging_a_middle_layer_relinks_the_leaf_in_another_folder(corpus: Path, tmp_path: Path) -> None:
    family = Family.copy(corpus, "vhdutil-made/sub/deep.vhd", tmp_path)
    leaf, middle, base = family.chain
    result = vhdkit.merge(vhdkit.plan_merge(str(middle), search=[str(tmp_path)]))
    assert (result.relinked, result.removed) == ((str(leaf),), (str(middle),))
    assert family.view(leaf) == family.expected
    assert validate(leaf) == []
    assert validate(base) == []


def test_a_parent_with_other_children_is_not_merged_into(corpus: Path, tmp_path: Path) -> None:
    family = Family.copy(corpus, "vhdutil-made/grand.vhd", tmp_path)
    sibling = Family.copy(corpus, "vhdutil-made/sub/deep.vhd", tmp_path).leaf
    before = family.files()
    plan = vhdkit.plan_merge(str(family.leaf), search=[str(tmp_path)])
    with pytest.raises(vhdkit.SiblingsError) as caught:
        vhdkit.merge(plan)
    assert caught.value.siblings == (str(sibling),)
    assert family.files() == before
