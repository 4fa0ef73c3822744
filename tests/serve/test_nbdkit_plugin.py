"""The plugin's own memory of where bytes are; what it does in nbdkit is tested with clients."""

from __future__ import annotations

import ast
import sys
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdkit.serve import nbdkit_plugin
from vhdkit.serve.nbdkit_plugin import MAP_HEAD, Window, Windows


def window(start: int, stop: int) -> Window:
    return Window(
        bytearray(
            MAP_HEAD.pack(start, stop, 1)
            + array("q", [start]).tobytes()
            + array("q", [0]).tobytes()
            + array("h", [0]).tobytes()
        )
    )


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 15), st.integers(0, 4)).map(
            lambda each: (each[0], each[1] >> each[2] << each[2], (each[1] >> each[2] << each[2]) + (1 << each[2]))
        ),
        max_size=30,
    )
)
def test_what_is_found_is_the_newest_that_was_kept_and_not_dropped(steps: list[tuple[bool, int, int]]) -> None:
    windows, expected = Windows(), dict[int, Window]()
    for is_kept, start, stop in steps:
        if is_kept:
            new = window(start, stop)
            windows.keep(new, windows.changes)
            touched = {id(each) for at, each in expected.items() if start <= at < stop}
            expected = {at: each for at, each in expected.items() if id(each) not in touched}
            expected |= dict.fromkeys(range(start, stop), new)
        else:
            windows.drop(start, stop)
            touched = {id(each) for at, each in expected.items() if start <= at < stop}
            expected = {at: each for at, each in expected.items() if id(each) not in touched}
        assert [windows.find(at) for at in range(33)] == [expected.get(at) for at in range(33)]


def test_a_map_of_before_a_write_is_not_kept() -> None:
    windows = Windows()
    changes = windows.changes
    windows.drop(100, 101)
    windows.keep(window(0, 8), changes)
    assert windows.find(0) is None


def test_the_oldest_maps_go_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbdkit_plugin, "_MOST_STRETCHES", 100)
    windows = Windows()
    for at in range(10):
        windows.keep(window(at, at + 1), windows.changes)
    assert [at for at in range(10) if windows.find(at)] == [7, 8, 9]


@pytest.mark.parametrize("is_quick", [True, False])
def test_a_read_is_the_same_whether_the_system_has_it_in_memory_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_quick: bool
) -> None:
    if not is_quick:
        monkeypatch.setattr(nbdkit_plugin, "_preadv2", None)
    (tmp_path / "file").write_bytes(bytes(range(256)) * 64)
    with (tmp_path / "file").open("rb") as file:
        buffer = bytearray(3000)
        assert nbdkit_plugin._read(file.fileno(), memoryview(buffer)[100:2100], 5) == 2000  # noqa: SLF001
        assert bytes(buffer[100:2100]) == (bytes(range(256)) * 64)[5:2005]
        assert not any(buffer[:100])
        assert not any(buffer[2100:])
        assert nbdkit_plugin._read(file.fileno(), memoryview(buffer), 256 * 64) == 0  # noqa: SLF001
        with pytest.raises(OSError, match="Bad file descriptor"):
            nbdkit_plugin._read(1 << 20, memoryview(buffer), 0)  # noqa: SLF001


def test_the_plugin_needs_nothing_but_the_standard_library_of_python_3_9() -> None:
    source = Path(nbdkit_plugin.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names | {"nbdkit"}
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))
