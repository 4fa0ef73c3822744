"""Forcing a fast path off does so: here, in the processes that a test starts, and without loading anything for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.slowpaths import ALL, PATHS, VARIABLE, chosen

ROOT = Path(__file__).resolve().parents[2]
# What tells that a path is off.
SIGNS = {
    "overlap": "vhdkit.disk.file_image.FileImage.begin_sync.__module__ == 'tests.slowpaths'",
    "kernel-copy": "vhdkit.storage.local_file.copy_in_kernel.__module__ == 'tests.slowpaths'",
    "share": "vhdkit.storage.file_copy.LongCopies._share.__module__ == 'tests.slowpaths'",
    "direct": "not vhdkit.storage.file_copy._DIRECT_FILE_SYSTEMS",
    "at-once": "vhdkit.storage.file_copy._AT_ONCE == 1",
    "many": "vhdkit.storage.local_file.LocalStorage.copy_many_from.__module__ == 'tests.slowpaths'",
    "together": "vhdkit.merging.plan.destination_pieces.MANY_PIECES > 1 << 60",
    "alone": "vhdkit.merging.plan.destination_pieces.MANY_PIECES == 1",
    "counting": "vhdkit.merging.plan.placement._are_alike() is False",
    "stacked": "vhdkit.chain.resolve_layers._STACKED > 1 << 60",
    "closing": "vhdkit.storage.local_file.LocalStorage.begin_close.__module__ == 'tests.slowpaths'",
    "forgetting": "vhdkit.merging.run.page_cache.CacheDropper.passed.__module__ == 'tests.slowpaths'",
}


def python(code: str, monkeypatch: pytest.MonkeyPatch, *without: str) -> str:
    """Run a line of Python as a test's child without some paths, whatever this run of the tests does without."""
    monkeypatch.setenv(VARIABLE, ",".join(without))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'elsewhere'}:{ROOT}")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_path_has_a_sign() -> None:
    assert set(SIGNS) == set(PATHS)


@pytest.mark.parametrize("name", SIGNS)
def test_a_path_is_off_in_a_process_that_a_test_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = PATHS[name][0]
    assert python(f"import {module}; print({SIGNS[name]})", monkeypatch, name) == "True"


def test_all_are_off_together(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = ", ".join(sorted({PATHS[name][0] for name in ALL}))
    signs = " and ".join(SIGNS[name] for name in ALL)
    assert python(f"import {modules}; print({signs})", monkeypatch, *ALL) == "True"


def test_nothing_is_off_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(SIGNS) - {"counting"}:
        assert python(f"import {PATHS[name][0]}; print({SIGNS[name]})", monkeypatch) == "False"


def test_no_module_is_loaded_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; print([name for name in sys.modules if name.split('.')[0] in ('vhdkit', 'numpy')])"
    assert python(code, monkeypatch, *ALL) == "[]"


def test_what_this_run_is_without_is_off_here(pytestconfig: pytest.Config) -> None:
    off = chosen(pytestconfig.getoption("without"))
    for name in off:
        module = __import__(PATHS[name][0], fromlist=["_"])
        here = {"vhdkit": sys.modules["vhdkit"], module.__name__: module}
        assert eval(SIGNS[name], here), name  # noqa: S307 - written above


def test_names_are_told_apart() -> None:
    assert chosen(["many", "all", "many"]) == ("many", *(name for name in ALL if name != "many"))
    with pytest.raises(ValueError, match="no fast path is called teleport"):
        chosen(["teleport"])
