from __future__ import annotations

import itertools
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdkit import fleet
from vhdkit.fleet.patterns import Pattern

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("a.vhd", "a.avhd", "b1.avhd", "web[1].avhd", ".hidden.avhd", "x")
FOLDERS = ("", "vm", "vm/Snapshots", "other", "other/vm")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for folder, name in itertools.product(FOLDERS, NAMES):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).touch()
    return root


PARTS = st.sampled_from(["**", "*", "vm", "o*", "*m", "?m", "Snap*", "[o-v]*"])
PIECES = st.sampled_from(["*", "?", "a", "b", "[ab]", "[!a]", "[]", "[!]", "[a-b]", "[", "]"])
LAST = st.sampled_from(["*", "*.avhd", "?.avhd", "[ab]*", "[!a]*", "a.*", "*.[av]*hd", "*1*"])


@given(st.lists(PARTS, max_size=3), LAST)
def test_the_files_that_a_pattern_means_are_those_that_pathlib_finds(tree: Path, parts: list[str], last: str) -> None:
    text = "/".join([*parts, last])
    files = [path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()]
    found = {path.relative_to(tree).as_posix() for path in tree.glob(text) if path.is_file()}
    pattern = Pattern.of(f"./{text}")
    # What stands before the first wildcard is the root.
    root = pattern.root.removeprefix(".").removeprefix("/")
    below = {
        path: path.removeprefix(root).removeprefix("/")
        for path in files
        if f"{path}/".startswith(f"{root}/" if root else "")
    }
    assert {path for path, relative in below.items() if pattern.matches(relative)} == found


def test_two_stars_alone_mean_every_file_below(tree: Path) -> None:
    found = fleet.find_chains(Pattern.of(f"{tree}/**"), fleet.ParentPolicy())
    damaged = {chain.leaf.path for chain in found.chains}
    assert damaged == {str(path) for path in tree.rglob("*hd") if path.is_file()}


@given(st.lists(PIECES, max_size=9).map("".join), st.text("ab[]!-\n", max_size=9))
def test_a_name_is_matched_as_by_fnmatch(name: str, file: str) -> None:
    assert Pattern(text=f"*/{name}").matches(f"x/{file}") == fnmatchcase(file, name)


@pytest.mark.parametrize("pattern", ["*a" * 30 + "*b", "**/a/" * 30 + "*b"])
def test_many_wildcards_take_no_time_of_powers(pattern: str) -> None:
    expression = Pattern.of(pattern)
    assert expression.matches("a/" * 200 + "b") == ("/" in pattern)
    assert not expression.matches("a/" * 200 + "c")
    assert not expression.matches("a" * 200)


def test_a_range_holds_no_slash_and_one_that_is_none_is_refused() -> None:
    assert not Pattern.of("x/*[.-0]a").matches("x/y/a")
    with pytest.raises(ValueError, match="z-a ends before it begins"):
        Pattern.of("x[z-a].vhd")


@pytest.mark.parametrize(
    ("given", "host", "text"),
    [
        ("hv07:/vms/**/*.avhd", "hv07", "/vms/**/*.avhd"),
        ("hv07.example.org:C:\\vms\\*.avhd", "hv07.example.org", "C:\\vms\\*.avhd"),
        ("C:\\vms\\*.avhd", "", "C:\\vms\\*.avhd"),
        ("vms/a:b.vhd", "", "vms/a:b.vhd"),
        ("relative:file.vhd", "", "relative:file.vhd"),
    ],
)
def test_a_host_stands_before_an_absolute_path(given: str, host: str, text: str) -> None:
    pattern = Pattern.of(given)
    assert (pattern.host, pattern.text) == (host, text)


@pytest.mark.parametrize("url", ["https://server/vms/*.vhd", "s3://bucket/*.vhd"])
def test_the_files_of_a_server_are_no_pattern(url: str) -> None:
    with pytest.raises(ValueError, match="cannot be listed"):
        Pattern.of(url)
