"""Finding a parent: each rule alone, and the order in which they apply (vhd.md 2.2 to 2.5, guarantees.md).

Most trees hold a decoy with the parent's id. With it a search by id is ambiguous and fails, so that a test
passes only by the rule that it is about.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING, SECTOR, ZERO_ID
from tests.typed import as_typed
from vhdkit.chain.chain import open_chain
from vhdkit.corruption import Corruption
from vhdkit.errors import ChainError, ParentMismatchError, ParentNotFoundError, ParentRefusedError
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.plainbuild import LocatorSpec
    from vhdkit.chain.chain import Chain
    from vhdkit.storage.protocols import Folder

    Lay = Callable[[dict[str, bytes]], "Tree"]

SIZE = BLOCK = 8 * SECTOR
DECOY = "own/decoy.vhd"
LEAF = "own/leaf.avhd"


def ident(number: int) -> bytes:
    return bytes([number]) * 16


def base(unique_id: bytes = ident(1), *, fill: int = 1) -> bytes:
    sectors = {0: bytes([fill]) * SECTOR}
    return build(ImageSpec(size=SIZE, block_size=BLOCK, unique_id=unique_id, sectors=sectors))


def child(*locators: LocatorSpec, unique_id: bytes = ident(9), parent_id: bytes = ident(1), name: str = "") -> bytes:
    return build(
        ImageSpec(
            disk_type=DIFFERENCING,
            size=SIZE,
            block_size=BLOCK,
            unique_id=unique_id,
            parent_id=parent_id,
            parent_name=name,
            locators=locators,
        )
    )


def w2ru(text: str) -> LocatorSpec:
    return locator(1, b"W2ru", text)


def w2ku(text: str) -> LocatorSpec:
    return locator(0, b"W2ku", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Files below a root, on the disk or in memory."""

    folder: Folder
    root: str

    def __truediv__(self, path: str) -> str:
        return posixpath.join(self.root, path)

    def chain(self, **options: Any) -> Chain:
        return open_chain(self / LEAF, folder=self.folder, **options)

    def below_leaf(self, **options: Any) -> list[str]:
        """Return where the layers below the leaf were found, relative to the root."""
        with self.chain(**options) as chain:
            return [posixpath.relpath(layer.path, self.root) for layer in chain.layers[1:]]


@pytest.fixture(params=["local", "memory"])
def lay(request: pytest.FixtureRequest, tmp_path: Path) -> Lay:
    return in_memory if request.param == "memory" else lambda files: on_disk(tmp_path.resolve(), files)


def in_memory(files: dict[str, bytes]) -> Tree:
    return Tree(folder=MemoryFolder({f"/tree/{path}": raw for path, raw in files.items()}), root="/tree")


def on_disk(root: Path, files: dict[str, bytes]) -> Tree:
    for path, raw in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(raw)
    return Tree(folder=LocalFolder(), root=str(root))


# The explicit parent


def test_an_explicit_parent_is_taken_before_any_that_is_named(lay: Lay) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd")), "own/base.vhd": base(), "far/chosen.vhd": base(fill=2)})
    with tree.chain(parent=tree / "far/chosen.vhd") as chain:
        assert chain.layers[1].path == tree / "far/chosen.vhd"
        assert chain.read(0, 1) == b"\x02"


def test_an_explicit_parent_goes_to_the_deeper_layer_that_it_fits(lay: Lay) -> None:
    middle = child(w2ru(".\\gone.vhd"), unique_id=ident(5))
    leaf = child(w2ru(".\\middle.avhd"), parent_id=ident(5))
    tree = lay({LEAF: leaf, "own/middle.avhd": middle, "far/chosen.vhd": base()})
    assert tree.below_leaf(parent=tree / "far/chosen.vhd") == ["own/middle.avhd", "far/chosen.vhd"]


def test_an_explicit_parent_leaves_the_deeper_layers_to_be_found_by_name(
    lay: Lay,
) -> None:
    middle = child(w2ru(".\\base.vhd"), unique_id=ident(5))
    leaf = child(parent_id=ident(5))
    tree = lay({LEAF: leaf, "far/middle.avhd": middle, "far/base.vhd": base()})
    assert tree.below_leaf(parent=tree / "far/middle.avhd") == ["far/middle.avhd", "far/base.vhd"]


def test_an_explicit_parent_that_fits_nowhere_is_refused_although_a_named_one_would_do(
    lay: Lay,
) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd")), "own/base.vhd": base(), "far/other.vhd": base(ident(7))})
    with pytest.raises(ParentMismatchError) as caught:
        tree.chain(parent=tree / "far/other.vhd")
    assert (caught.value.expected, caught.value.found) == (ident(1), ident(7))
    assert "far/other.vhd" in str(caught.value)


def test_an_explicit_parent_of_an_image_without_parents_is_refused(lay: Lay) -> None:
    tree = lay({LEAF: base(ident(9)), "own/base.vhd": base()})
    with pytest.raises(ChainError):
        tree.chain(parent=tree / "own/base.vhd")


def test_an_explicit_parent_that_does_not_exist_is_the_systems_error(
    lay: Lay,
) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd")), "own/base.vhd": base()})
    with pytest.raises(FileNotFoundError):
        tree.chain(parent=tree / "far/gone.vhd")


def test_an_explicit_parent_once_taken_is_not_blamed_for_a_missing_grandparent(
    lay: Lay,
) -> None:
    middle = child(w2ru(".\\gone.vhd"), unique_id=ident(5))
    tree = lay({LEAF: child(parent_id=ident(5)), "far/middle.avhd": middle})
    with pytest.raises(ParentNotFoundError) as caught:
        tree.chain(parent=tree / "far/middle.avhd")
    assert "middle.avhd" not in {posixpath.basename(candidate.path) for candidate in caught.value.candidates}


def test_an_explicit_parent_once_taken_is_no_loop_where_a_whole_chain_has_one_id(
    lay: Lay,
) -> None:
    middle = child(w2ru(".\\base.vhd"), unique_id=ident(1))
    tree = lay({LEAF: child(unique_id=ident(1)), "far/middle.avhd": middle, "far/base.vhd": base()})
    assert tree.below_leaf(parent=tree / "far/middle.avhd") == ["far/middle.avhd", "far/base.vhd"]


# The parent map

MAPPED = [
    (w2ku("C:\\vms\\hosts\\base.vhd"), "C:\\vms"),
    (w2ku("c:\\VMs\\hosts\\base.vhd"), "C:\\vms"),
    (w2ku("C:\\vms\\hosts\\base.vhd"), "C:\\vms\\"),
    (w2ku("C:\\vms\\hosts\\base.vhd"), "c:/vms"),
    (w2ku("C:\\hosts\\base.vhd"), "C:\\"),
    (w2ku("C:/vms/hosts/base.vhd"), "C:\\vms"),
    (w2ku("\\\\server\\share\\hosts\\base.vhd"), "\\\\SERVER\\share"),
    (w2ru("C:\\vms\\hosts\\base.vhd"), "C:\\vms"),
    (locator(0, b"Wi2k", "C:\\vms\\hosts\\base.vhd"), "C:\\vms"),
    (locator(0, b"MacX", "file://localhost/srv/vms/hosts/base.vhd"), "/srv/vms"),
    (locator(0, b"MacX", "file:///srv/v%20ms/hosts/base.vhd"), "/srv/v ms"),
    (w2ku("/srv/vms/hosts/base.vhd"), "/srv/vms"),
]


@pytest.mark.parametrize(("clue", "remote"), MAPPED)
def test_a_path_map_leads_absolute_paths_to_a_local_folder(lay: Lay, clue: LocatorSpec, remote: str) -> None:
    tree = lay({LEAF: child(clue), DECOY: base(fill=2), "mnt/hosts/base.vhd": base()})
    assert tree.below_leaf(parent_map={remote: tree / "mnt"}) == ["mnt/hosts/base.vhd"]


def test_a_path_map_leads_the_name_fields_full_path_too(lay: Lay) -> None:
    leaf = child(name="C:\\vms\\hosts\\base.vhd")
    tree = lay({LEAF: leaf, DECOY: base(fill=2), "mnt/hosts/base.vhd": base()})
    assert tree.below_leaf(parent_map={"C:\\vms": tree / "mnt"}) == ["mnt/hosts/base.vhd"]


def test_a_path_map_puts_no_case_on_the_files_below_it() -> None:
    leaf = child(w2ku("C:\\VMS\\BASE.VHD"))
    tree = in_memory({LEAF: leaf, DECOY: base(fill=2), "mnt/Base.vhd": base()})
    assert tree.below_leaf(parent_map={"C:\\vms": tree / "mnt"}) == ["mnt/Base.vhd"]


@pytest.mark.parametrize("text", ["C:\\vms\\base.vhd", "C:\\vm-base.vhd", "C:\\vm"])
def test_a_path_map_knows_whole_folder_names_only(lay: Lay, text: str) -> None:
    tree = lay({LEAF: child(w2ku(text)), "mnt/s/base.vhd": base(), "mnt/base.vhd": base(), "mnts/base.vhd": base()})
    with pytest.raises(ChainError):
        tree.chain(parent_map={"C:\\vm": tree / "mnt"})


def test_of_several_mapped_folders_each_leads_to_its_own(lay: Lay) -> None:
    tree = lay({LEAF: child(w2ku("D:\\base.vhd")), "c/base.vhd": base(fill=2), "d/base.vhd": base()})
    assert tree.below_leaf(parent_map={"C:\\": tree / "c", "D:\\": tree / "d"}) == ["d/base.vhd"]


@pytest.mark.parametrize("text", ["C:\\vms\\..\\out\\base.vhd", "\\\\?\\C:\\vms\\..\\out\\base.vhd"])
def test_a_mapped_path_does_not_leave_its_folder_by_dots(lay: Lay, text: str) -> None:
    tree = lay({LEAF: child(w2ku(text)), "mnt/keep.vhd": base(ident(3)), "out/base.vhd": base()})
    with pytest.raises(ChainError):
        tree.chain(parent_map={"C:\\vms": tree / "mnt", "\\\\?\\C:\\vms": tree / "mnt"})


# Relative locators

RELATIVE = [
    w2ru(".\\sub\\base.vhd"),
    w2ru("./sub/base.vhd"),
    w2ru("sub\\base.vhd"),
    w2ru("sub/base.vhd"),
    w2ru(".\\sub\\..\\sub\\.\\base.vhd"),
    w2ru("..\\own\\sub\\base.vhd"),
    w2ru(".\\sub\\base.vhd\0\0"),
    locator(2, b"MacX", "file://sub/base.vhd"),
    locator(2, b"MacX", "file://./sub/base.vhd"),
    locator(2, b"MacX", "file://./s%75b/base%2Evhd"),
    locator(2, b"Wi2r", ".\\sub\\base.vhd"),
    w2ku(".\\sub\\base.vhd"),
    w2ku("./sub/base.vhd"),
    locator(7, b"Wi2k", "sub\\base.vhd"),
    locator(7, b"W2ru", ".\\sub\\base.vhd", unit="sectors"),
]


@pytest.mark.parametrize("clue", RELATIVE)
def test_a_relative_locator_starts_at_the_childs_folder(lay: Lay, clue: LocatorSpec) -> None:
    tree = lay({LEAF: child(clue), DECOY: base(fill=2), "own/sub/base.vhd": base()})
    assert tree.below_leaf() == ["own/sub/base.vhd"]


@pytest.mark.parametrize("text", ["file://localhost.vhd", "file://localhosts/base.vhd"])
def test_a_relative_url_may_begin_with_the_letters_of_localhost(lay: Lay, text: str) -> None:
    where = "own/" + text.removeprefix("file://")
    tree = lay({LEAF: child(locator(2, b"MacX", text)), DECOY: base(fill=2), where: base()})
    assert tree.below_leaf() == [where]


def test_a_relative_locator_starts_at_the_childs_real_folder(tmp_path: Path) -> None:
    tree = on_disk(
        tmp_path.resolve(),
        {LEAF: child(w2ru(".\\sub\\base.vhd")), DECOY: base(fill=2), "own/sub/base.vhd": base()},
    )
    (tmp_path / "links").mkdir()
    (tmp_path / "links/leaf.avhd").symlink_to(tmp_path / LEAF)
    with open_chain(str(tmp_path / "links/leaf.avhd")) as chain:
        assert chain.layers[1].path == tree / "own/sub/base.vhd"


@pytest.mark.parametrize("code", [b"W2ru", b"W2ku", b"MacX"])
def test_an_absolute_path_is_not_looked_for_below_the_childs_folder(lay: Lay, code: bytes) -> None:
    clue = locator(0, code, "file:///srv/base.vhd" if code == b"MacX" else "/srv/base.vhd")
    tree = lay({LEAF: child(clue), DECOY: base(fill=2), "own/srv/base.vhd": base()})
    assert tree.below_leaf() == [DECOY], "found by its id; the path, had it been followed, would have come first"


def test_the_name_field_is_a_base_name_and_no_relative_path(lay: Lay) -> None:
    leaf = child(name="sub/base.vhd")
    tree = lay({LEAF: leaf, "own/sub/base.vhd": base(fill=2), "own/base.vhd": base()})
    assert tree.below_leaf() == ["own/base.vhd"]


# Base names

NAMED: list[tuple[tuple[LocatorSpec, ...], str]] = [
    ((w2ru(".\\gone\\base.vhd"),), ""),
    ((w2ru("C:\\gone\\base.vhd"),), ""),
    ((w2ku("C:\\gone\\base.vhd"),), ""),
    ((w2ku("\\\\server\\share\\gone\\base.vhd"),), ""),
    ((w2ku("/srv/gone/base.vhd"),), ""),
    ((locator(0, b"MacX", "file://localhost/srv/gone/base.vhd"),), ""),
    ((locator(0, b"MacX", "file://gone/base.vhd"),), ""),
    ((locator(0, b"Wi2r", "..\\..\\gone\\base.vhd"),), ""),
    ((locator(0, b"Wi2k", "D:\\gone\\base.vhd"),), ""),
    ((), "base.vhd"),
    ((), "C:\\gone\\base.vhd"),
    ((), "gone/base.vhd"),
]


@pytest.mark.parametrize(("clues", "name"), NAMED)
def test_the_base_name_of_anything_that_names_a_parent_is_looked_for_beside_the_child(
    lay: Lay, clues: tuple[LocatorSpec, ...], name: str
) -> None:
    tree = lay({LEAF: child(*clues, name=name), DECOY: base(fill=2), "own/base.vhd": base()})
    assert tree.below_leaf() == ["own/base.vhd"]


def test_the_base_name_is_looked_for_in_the_search_folders(lay: Lay) -> None:
    tree = lay({LEAF: child(name="base.vhd"), "far/a.vhd": base(fill=2), "far/base.vhd": base()})
    assert tree.below_leaf(search=[tree / "gone", tree / "far"]) == ["far/base.vhd"]


def test_a_name_with_another_id_is_passed_over_for_the_next(lay: Lay) -> None:
    tree = lay(
        {
            LEAF: child(w2ru(".\\base.vhd"), name="other.vhd"),
            DECOY: base(fill=2),
            "own/base.vhd": base(ident(7)),
            "own/other.vhd": base(),
        }
    )
    assert tree.below_leaf() == ["own/other.vhd"]


@pytest.mark.parametrize("named", ["base.vhd", "base.avhd", "base.vud", "base.VHD"])
@pytest.mark.parametrize("present", ["base.vhd", "base.avhd", "base.vud"])
def test_extensions_of_images_stand_for_one_another(named: str, present: str) -> None:
    tree = in_memory({LEAF: child(name=named), DECOY: base(fill=2), f"own/{present}": base()})
    assert tree.below_leaf() == [f"own/{present}"]


def test_other_extensions_are_no_images(lay: Lay) -> None:
    tree = lay({LEAF: child(name="base.img"), DECOY: base(fill=2), "own/base.vhd": base()})
    with pytest.raises(ChainError):
        tree.chain()


@pytest.mark.parametrize(
    "clues",
    [(w2ru(".\\BASE.vhd"),), (w2ku("C:\\gone\\bASE.VHD"),), (locator(0, b"MacX", "file://./BASE.VHD"),)],
)
def test_a_name_in_other_case_is_found_when_it_is_the_only_one_and_told(
    clues: tuple[LocatorSpec, ...],
) -> None:
    tree = in_memory({LEAF: child(*clues), DECOY: base(fill=2), "own/Base.vhd": base()})
    with tree.chain() as chain:
        assert chain.layers[1].path == "/tree/own/Base.vhd"
        assert [finding.corruption for finding in chain.findings] == [Corruption.PARENT_FOUND_ELSEWHERE]


def test_a_name_in_other_case_is_not_guessed_among_several() -> None:
    files = {LEAF: child(w2ru(".\\base.vhd")), "own/Base.vhd": base(), "own/BASE.vhd": base(fill=2)}
    with pytest.raises(ParentNotFoundError) as caught:
        in_memory(files).chain()
    assert {"/tree/own/Base.vhd", "/tree/own/BASE.vhd"} <= {item.path for item in caught.value.candidates}


def test_the_exact_case_wins_over_others() -> None:
    files = {LEAF: child(w2ru(".\\base.vhd")), "own/BASE.vhd": base(fill=2), "own/base.vhd": base()}
    assert in_memory(files).below_leaf() == ["own/base.vhd"]


def test_folders_in_other_case_are_found_too(tmp_path: Path) -> None:
    tree = on_disk(
        tmp_path.resolve(),
        {LEAF: child(w2ru(".\\SUB\\BASE.VHD")), DECOY: base(fill=2), "own/Sub/base.vhd": base()},
    )
    if (tmp_path / "OWN").exists():
        pytest.skip("this file system does not tell upper case from lower")
    assert tree.below_leaf() == ["own/Sub/base.vhd"]


# By id


def test_a_renamed_parent_is_found_by_its_id_and_told(lay: Lay) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd")), "own/renamed.img": base(), "own/other.vhd": base(ident(7))})
    with tree.chain() as chain:
        assert chain.layers[1].path == tree / "own/renamed.img"
        (finding,) = chain.findings
        assert finding.corruption is Corruption.PARENT_FOUND_ELSEWHERE
        assert "renamed.img" in str(finding)


def test_a_moved_parent_is_found_by_its_id_deep_in_a_search_folder(lay: Lay) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd")), "far/a/b/c/moved.vhd": base(), "far/a/bad.vhd": b"\1" * 900})
    with pytest.raises(ParentNotFoundError):
        tree.chain()
    assert tree.below_leaf(search=[tree / "far"]) == ["far/a/b/c/moved.vhd"]


def test_the_id_is_looked_for_although_the_name_leads_to_another_disk(
    lay: Lay,
) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd")), "own/base.vhd": base(ident(7)), "own/renamed.vhd": base()})
    assert tree.below_leaf() == ["own/renamed.vhd"]


def test_two_files_with_the_id_are_refused_and_both_named(lay: Lay) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd")), "own/a.vhd": base(), "far/b.vhd": base(fill=2)})
    with pytest.raises(ParentNotFoundError) as caught:
        tree.chain(search=[tree / "far"])
    both = [item for item in caught.value.candidates if "right id" in item.reason]
    assert {item.path for item in both} == {tree / "own/a.vhd", tree / "far/b.vhd"}
    assert all("choose with --parent" in as_typed(item) for item in both)


def test_two_names_of_one_file_are_one_candidate(tmp_path: Path) -> None:
    tree = on_disk(tmp_path.resolve(), {LEAF: child(w2ru(".\\base.vhd")), "own/a.vhd": base()})
    (tmp_path / "own/b.vhd").hardlink_to(tmp_path / "own/a.vhd")
    assert tree.below_leaf(search=[tree / "own", tree / "."]) == ["own/a.vhd"]


def test_a_name_settles_what_ids_leave_open(lay: Lay) -> None:
    tree = lay({LEAF: child(w2ru(".\\b.vhd")), "own/a.vhd": base(fill=2), "own/b.vhd": base()})
    with tree.chain() as chain:
        assert chain.layers[1].path == tree / "own/b.vhd"
        assert chain.findings == ()


def test_a_child_with_its_parents_id_is_not_taken_for_its_own_parent(
    lay: Lay,
) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd"), unique_id=ident(1)), "own/renamed.vhd": base()})
    assert tree.below_leaf() == ["own/renamed.vhd"]


def test_a_child_with_its_parents_id_and_stem_is_not_taken_for_its_own_parent(
    lay: Lay,
) -> None:
    # leaf.avhd names leaf.vhd, which was moved: the same stem with the other extension is the child itself.
    tree = lay({LEAF: child(w2ru(".\\leaf.vhd"), unique_id=ident(1)), "far/deep/leaf.vhd": base()})
    assert tree.below_leaf(search=[tree / "far"]) == ["far/deep/leaf.vhd"]


# The null id


def test_a_raw_parent_is_read_only_when_it_is_given(lay: Lay) -> None:
    raw = b"raw" * 1000
    tree = lay({LEAF: child(w2ru(".\\disk.img"), parent_id=ZERO_ID), "own/disk.img": raw})
    with pytest.raises(ParentRefusedError) as caught:
        tree.chain()
    assert "parent= names it" in str(caught.value)
    assert "--parent FILE names it" in as_typed(caught.value)
    with tree.chain(parent=tree / "own/disk.img") as chain:
        assert chain.read(0, SIZE) == raw.ljust(SIZE, b"\0")


def test_a_tiny_raw_parent_is_read_when_it_is_given(lay: Lay) -> None:
    tree = lay({LEAF: child(parent_id=ZERO_ID), "own/disk.img": b"raw"})
    with tree.chain(parent=tree / "own/disk.img") as chain:
        assert chain.read(0, SIZE) == b"raw".ljust(SIZE, b"\0")


def test_an_explicit_raw_parent_goes_to_the_deeper_layer_that_lacks_one(
    lay: Lay,
) -> None:
    middle = child(unique_id=ident(5), parent_id=ZERO_ID)
    leaf = child(w2ru(".\\middle.avhd"), parent_id=ident(5))
    tree = lay({LEAF: leaf, "own/middle.avhd": middle, "far/disk.img": b"\7" * SIZE})
    assert tree.below_leaf(parent=tree / "far/disk.img") == ["own/middle.avhd", "far/disk.img"]


def test_an_explicit_raw_parent_of_a_child_that_knows_an_id_is_refused(
    lay: Lay,
) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd")), "own/base.vhd": base(), "own/disk.img": b"\7" * SIZE})
    with pytest.raises(Exception, match=r"disk\.img"):
        tree.chain(parent=tree / "own/disk.img")


def test_a_null_id_is_met_by_a_vhd_of_that_name_with_a_null_id_and_told(
    lay: Lay,
) -> None:
    leaf = child(w2ru(".\\base.vhd"), parent_id=ZERO_ID)
    tree = lay({LEAF: leaf, "own/base.vhd": base(ZERO_ID), "own/other.vhd": base(ZERO_ID, fill=2)})
    with tree.chain() as chain:
        assert chain.layers[1].path == tree / "own/base.vhd"
        assert [finding.corruption for finding in chain.findings] == [Corruption.PARENT_ID_NULL]


def test_a_null_id_is_never_searched_for(lay: Lay) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd"), parent_id=ZERO_ID), "own/other.vhd": base(ZERO_ID)})
    with pytest.raises(ParentRefusedError):
        tree.chain()


def test_a_null_id_is_not_met_by_a_vhd_with_an_id(lay: Lay) -> None:
    tree = lay({LEAF: child(w2ru(".\\base.vhd"), parent_id=ZERO_ID), "own/base.vhd": base()})
    with pytest.raises(ParentRefusedError):
        tree.chain()


# The order

RULES = [
    "far/explicit.vhd",
    "mnt/w2ku.vhd",
    "own/r/w2ru.vhd",
    "own/r/macx.vhd",
    "own/r/wi2r.vhd",
    "own/w2ru.vhd",
    "own/w2ku.vhd",
    "own/name.vhd",
    "own/name.avhd",
]


@pytest.mark.parametrize("first", range(len(RULES)))
def test_the_rules_apply_in_order(lay: Lay, first: int) -> None:
    clues = (
        w2ku("C:\\vms\\w2ku.vhd"),
        w2ru(".\\r\\w2ru.vhd"),
        locator(2, b"MacX", "file://r/macx.vhd"),
        locator(3, b"Wi2r", "r\\wi2r.vhd"),
    )
    tree = lay({LEAF: child(*clues, name="name.vhd"), **{path: base() for path in RULES[first:]}})
    parent = {"parent": tree / RULES[0]} if first == 0 else {}
    found = tree.below_leaf(parent_map={"C:\\vms": tree / "mnt"}, search=[tree / "far"], **parent)
    assert found == [RULES[first]]
