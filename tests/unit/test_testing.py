"""Chains for other people's tests show what they are said to show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vhdkit
from vhdkit import testing

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 256 * 1024
CONTENTS = [{0: b"base", 70_000: b"\xff" * 9000}, {2: b"XX"}, {70_512: bytes(512)}]


@given(
    st.lists(
        st.dictionaries(st.integers(0, SIZE - 3000), st.binary(min_size=1, max_size=3000), max_size=4),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=25, deadline=None)
def test_a_made_chain_shows_its_contents(contents: list[dict[int, bytes]]) -> None:
    folder = testing.MemoryFolder()
    paths = testing.make_chain("/vms", contents, size=SIZE, folder=folder)
    with vhdkit.open_chain(paths[0], folder=folder) as chain:
        assert [layer.path for layer in chain.layers] == list(paths)
        assert chain.read(0, chain.size) == testing.expected_view(contents, size=SIZE)


@pytest.mark.parametrize("disk_type", ["dynamic", "fixed"])
def test_a_made_chain_is_clean_and_can_be_merged(disk_type: Any, tmp_path: Path) -> None:
    leaf, *_, base = testing.make_chain(tmp_path, CONTENTS, size=SIZE, disk_type=disk_type)
    assert vhdkit.check(leaf, chain=True).exit_code == 0
    vhdkit.merge(vhdkit.plan_merge(leaf, into=base))
    with vhdkit.open_chain(base) as chain:
        assert chain.read(0, SIZE) == testing.expected_view(CONTENTS, size=SIZE)


def test_a_made_chain_has_the_same_ids_each_time(tmp_path: Path) -> None:
    ids = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with vhdkit.open_chain(testing.make_chain(tmp_path / name, CONTENTS)[0]) as chain:
            ids.append([layer.unique_id for layer in chain.layers])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(CONTENTS)


def test_a_chain_of_no_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one layer at least"):
        testing.make_chain(tmp_path, [])
